"""Sanity checks of a classifier: what do its answers rest on, and what do they survive?

Every scan is asked again with parts blanked, with harmless changes, and its heat-map is compared
with those of networks whose weights were drawn anew. What that means is said in words; see
`model_audit_findings` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chestct.arrays import Mask
from chestct.classifier import Classifier
from chestct.engines import Engine
from chestct.errors import ExplanationError, ReadError
from chestct.explain.explanation import Explanation
from chestct.explain.run import explain
from chestct.labels import THREE_CLASSES, UNSUITABLE
from chestct.pipeline import scan_name
from chestct.preprocess.prepare import prepare
from chestct.preprocess.prepared import PreparedScan
from chestct.readers import ReadOptions, read_volume
from chestct.readers.masks import read_mask
from chestct.studies.localisation import INVOLVED_FROM, mask_at_input
from chestct.studies.model_audit_blanking import WORDS, find_paint, painted_scans
from chestct.studies.model_audit_changes import (
    CHANGES,
    MIRROR,
    MIRROR_WORDS,
    changed_scan,
    mirrored,
)
from chestct.studies.model_audit_findings import judge_scan_audit
from chestct.studies.model_audit_record import (
    BLANKING,
    GIVEN_LESIONS,
    HEAT_MAP,
    STABILITY,
    TRUE_LESIONS,
    ModelAudit,
    Probe,
    ScanAudit,
)
from chestct.studies.model_audit_weights import compare_weights
from chestct.volume import Volume

SIMULATION_SEED = 21
_ROWS = 192
_SLICE_SPACING_MM = 2.5


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan to be asked about.

    Attributes:
        name: What it is called.
        volume: The scan.
        lesions: Where its disease is, on the same grid, where that is known.
        lesion_source: How that is known: a word of `model_audit_record`, or empty.
        truth: Its class, or empty.
    """

    name: str
    volume: Volume
    lesions: Volume | None = None
    lesion_source: str = ""
    truth: str = ""


@dataclass(frozen=True, eq=False)
class Auditor:
    """Who asks.

    Attributes:
        classifier: Who is asked.
        engine: Its network, made ready; maps are always made with PyTorch.
        method: How maps are made, a name in `EXPLANATIONS`.
        seed: Of noise and new weights.
        listener: Told what is being done.
    """

    classifier: Classifier
    engine: Engine
    method: str = "gradcam"
    seed: int = 1
    listener: Callable[[str], object] = lambda _what: None


def audit_model(auditor: Auditor, subjects: Iterable[Subject]) -> ModelAudit:
    """Ask a classifier about scans, one after the other.

    Raises:
        ChestCTError: A scan, its lesions, the engine or the method is not as it should be.
    """
    card = auditor.classifier.card
    return ModelAudit(
        classifier=card.name,
        version=card.version,
        weights_sha256=auditor.classifier.weights_sha256,
        recipe=auditor.classifier.recipe.name,
        trained_on=card.trained_on,
        notice=card.notice,
        scans=tuple(audit_scan(auditor, subject) for subject in subjects),
    )


def audit_scan(auditor: Auditor, subject: Subject) -> ScanAudit:
    """Ask a classifier everything about one scan; for the errors see `audit_model`."""
    auditor.listener(f"{subject.name}: reading")
    prepared = prepare(subject.volume, auditor.classifier.recipe)
    if prepared.unsuitable_reasons:
        audit = ScanAudit(subject.name, subject.truth, UNSUITABLE, {})
        return replace(audit, findings=judge_scan_audit(audit))
    shares = auditor.classifier.probabilities(prepared, auditor.engine)
    decision = max(shares, key=shares.__getitem__)
    before = ScanAudit(subject.name, subject.truth, decision, shares)
    found = _map_of(auditor, prepared, decision)
    lesion, source = _lesion(subject, prepared, found)
    # Noise must not depend on how many networks were drawn before.
    weights_rng, noise_rng = np.random.default_rng(auditor.seed).spawn(2)
    map_test = None
    if found is not None:
        auditor.listener(f"{subject.name}: drawing weights")
        map_test = compare_weights(auditor.classifier, prepared, found, weights_rng)
    audit = replace(
        before,
        lesion_source=source,
        lesion_share=None if lesion is None else _share_of_lungs(lesion, prepared),
        probes=(
            *_blanked(auditor, subject, before, (prepared, lesion)),
            *_changed(auditor, subject, before, noise_rng),
            _asked(auditor, mirrored(prepared), before, (STABILITY, MIRROR, MIRROR_WORDS)),
        ),
        map_test=map_test,
    )
    return replace(audit, findings=judge_scan_audit(audit))


def read_subjects(
    scans: Iterable[Path], lesions: Path | None = None, reading: ReadOptions | None = None
) -> Iterator[Subject]:
    """Scans from disk, each read when it is its turn.

    Args:
        scans: Their paths.
        lesions: A mask of the only scan's lesions.
        reading: How to read scans; None reads them as they are.

    Raises:
        ReadError: Lesions were given for several scans, or a file cannot be read.
    """
    paths = list(scans)
    if lesions is not None and len(paths) != 1:
        msg = f"A mask of lesions belongs to one scan and {len(paths)} were given: name only that."
        raise ReadError(msg)
    options = reading or ReadOptions()
    for path in paths:
        volume = read_volume(path, series=options.series, allow=options.allow, tiff=options.tiff)
        if lesions is None:
            yield Subject(scan_name(path), volume)
        else:
            yield Subject(scan_name(path), volume, read_mask(lesions), GIVEN_LESIONS)


def simulated_subjects(num: int, seed: int = SIMULATION_SEED) -> Iterator[Subject]:
    """Simulated patients with known lesions, the classes in turn, each made when it is its turn."""
    from chestct.simulate import ThoraxSettings, simulate_patient

    settings = ThoraxSettings(rows=_ROWS, slice_spacing_mm=_SLICE_SPACING_MM)
    for number in range(num):
        label = THREE_CLASSES[number % len(THREE_CLASSES)]
        rng = np.random.default_rng([seed, number])
        patient = simulate_patient(rng, settings, pattern=label)
        lesions = patient.volume.with_voxels(patient.lesions)
        name = f"simulated-{number + 1}-{label.lower()}"
        yield Subject(name, patient.volume, lesions, TRUE_LESIONS, label)


def _map_of(auditor: Auditor, prepared: PreparedScan, decision: str) -> Explanation | None:
    """The decision's map; None for a network of which none can be made."""
    try:
        return explain(auditor.classifier, prepared, method=auditor.method, label=decision)
    except ExplanationError:
        return None


def _lesion(
    subject: Subject, prepared: PreparedScan, found: Explanation | None
) -> tuple[Mask | None, str]:
    """What counts as the lesion at the input's size, and how it is known."""
    if subject.lesions is not None:
        known = mask_at_input(subject.lesions, prepared)
        return (known, subject.lesion_source) if known.any() else (None, "")
    if found is None or not found.has_evidence:
        return None, ""
    hot = (found.heat >= INVOLVED_FROM) & prepared.lungs
    return (hot, HEAT_MAP) if hot.any() else (None, "")


def _share_of_lungs(lesion: Mask, prepared: PreparedScan) -> float:
    return float(np.count_nonzero(lesion & prepared.lungs) / np.count_nonzero(prepared.lungs))


def _blanked(
    auditor: Auditor,
    subject: Subject,
    before: ScanAudit,
    seen: tuple[PreparedScan, Mask | None],
) -> Iterator[Probe]:
    prepared, lesion = seen
    paint = find_paint(prepared, subject.volume.unit)
    for name, painted in painted_scans(prepared, lesion, paint):
        auditor.listener(f"{subject.name}: {WORDS[name]}")
        yield _asked(auditor, painted, before, (BLANKING, name, WORDS[name]))


def _changed(
    auditor: Auditor, subject: Subject, before: ScanAudit, rng: np.random.Generator
) -> Iterator[Probe]:
    for name, change in CHANGES.items():
        auditor.listener(f"{subject.name}: {change.words}")
        changed = changed_scan(subject.volume, change, rng)
        prepared = prepare(changed, auditor.classifier.recipe)
        yield _asked(auditor, prepared, before, (STABILITY, name, change.words))


def _asked(
    auditor: Auditor, prepared: PreparedScan, before: ScanAudit, what: tuple[str, str, str]
) -> Probe:
    """Ask about a changed scan; `what` is the group, name and words of the change."""
    if prepared.unsuitable_reasons:
        return Probe(*what, {}, UNSUITABLE, None, None, is_same=False)
    shares = auditor.classifier.probabilities(prepared, auditor.engine)
    decision = max(shares, key=shares.__getitem__)
    share = shares[before.decision]
    change = share - before.share
    return Probe(*what, shares, decision, share, change, is_same=decision == before.decision)

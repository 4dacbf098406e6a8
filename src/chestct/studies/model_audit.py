"""Sanity checks of a classifier: what do its answers rest on, and what do they survive?

Every scan is asked again with parts blanked, with harmless changes, and its heat-map is compared
with those of networks whose weights were drawn anew. What that means is said in words; see
`model_audit_findings` for the rules.

Heat-maps: the test of Adebayo et al. (2018). A map that looks the same when the network's weights
are drawn anew shows the scan and not the network. Parts are drawn anew from the network's end to
its start, so that one sees from where on the map changes, and then the whole network several times,
as one draw may be like it by chance.

Kernels and matrices are drawn from a normal distribution of the trained ones' root mean square;
of biases and of what a normalisation keeps, the entries are shuffled, which leaves activations at
a scale that the network can work with. Maps are compared inside the lungs, as gates and
backgrounds make all maps alike outside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from chestct.arrays import Heat, Mask
from chestct.classifier import Classifier
from chestct.engines import Engine
from chestct.errors import ClassifierError, ExplanationError, ReadError
from chestct.explain.evidence import INVOLVED_FROM
from chestct.explain.explanation import Explanation
from chestct.explain.run import explain
from chestct.labels import UNSUITABLE
from chestct.pipeline import scan_name
from chestct.preprocess.masks import bounding_box, mask_on_grid
from chestct.preprocess.oblique import on_body
from chestct.preprocess.prepare import prepare
from chestct.preprocess.prepared import PreparedScan
from chestct.readers import ReadOptions, read_volume
from chestct.readers.masks import read_mask, same_place
from chestct.studies.model_audit_changes import (
    CHANGES,
    MIRROR,
    MIRROR_WORDS,
    WORDS,
    changed_scan,
    find_paint,
    mirrored,
    painted_scans,
)
from chestct.studies.model_audit_findings import (
    BLANKING,
    GIVEN_LESIONS,
    HEAT_MAP,
    STABILITY,
    TRUE_LESIONS,
    MapTest,
    ModelAudit,
    Probe,
    ScanAudit,
    WeightStage,
    judge_scan_audit,
)
from chestct.volume import Volume

_NUM_DRAWS: Final = 5
"""Maps of random networks that a map is compared with."""
_MOST_DRAWS: Final = 12
"""Random networks asked for them; about half give an empty map."""
_WHOLE: Final = "whole network"
_OWN_PARAMETERS: Final = "parameters of its own"
_WINDOW: Final = 7
"""Voxels along each axis that structural similarity looks at together."""
_STABILISERS: Final = (0.01**2, 0.03**2)


@dataclass(frozen=True, eq=False)
class _WithNetwork(Classifier):
    """A classifier whose network is another one than that in its folder."""

    given: nn.Module

    def load_network(self) -> nn.Module:
        """The network that was given, as it is."""
        return self.given


def with_network(classifier: Classifier, network: nn.Module) -> _WithNetwork:
    """The classifier with another network in the place of its own."""
    own = {field.name: getattr(classifier, field.name) for field in fields(Classifier)}
    return _WithNetwork(**own, given=network)


def _compare_weights(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, rng: np.random.Generator
) -> MapTest:
    """Compare a classifier's map with maps made with other weights.

    Args:
        classifier: Whose map it is; its network is not changed.
        prepared: The scan.
        found: The map, of the network's last block.
        rng: What the new weights come from.
    """
    if not found.has_evidence:
        return MapTest(found.method, found.label, has_evidence=False)
    cascade = tuple(_cascade(classifier, prepared, found, _generator(rng)))
    whole: list[WeightStage] = []
    for _ in range(_MOST_DRAWS):
        network = copy.deepcopy(classifier.network)
        generator = _generator(rng)
        for part in _parts_of(network).values():
            _redraw(part, generator)
        whole.append(_compared(_WHOLE, with_network(classifier, network), prepared, found))
        if sum(stage.spearman is not None for stage in whole) == _NUM_DRAWS:
            break
    return MapTest(found.method, found.label, True, cascade, tuple(whole))


def _parts_of(network: nn.Module) -> dict[str, list[Tensor]]:
    """What each part of a network has learned, by name, in the order in which they were made."""
    parts = {name: [*part.parameters(), *part.buffers()] for name, part in network.named_children()}
    own = [*network.parameters(recurse=False), *network.buffers(recurse=False)]
    return {name: learned for name, learned in {_OWN_PARAMETERS: own, **parts}.items() if learned}


def _redraw(learned: list[Tensor], generator: torch.Generator) -> None:
    """Draw tensors anew, in place; counts, which are whole numbers, stay."""
    with torch.no_grad():
        for tensor in (each for each in learned if each.is_floating_point()):
            if tensor.ndim > 1:
                scale = tensor.square().mean().sqrt()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            elif tensor.numel() > 1:
                tensor.copy_(tensor[torch.randperm(tensor.numel(), generator=generator)])


def _spearman(first: Heat, second: Heat, where: Mask) -> float:
    """Rank correlation of two maps inside a mask; 0 where one of them is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(heat[where]) for heat in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _structural_similarity(first: Heat, second: Heat, where: Mask) -> float:
    """Mean structural similarity (Wang et al. 2004) of two maps from 0 to 1, inside a mask."""
    from scipy.ndimage import uniform_filter

    def smoothed(values: Heat) -> Heat:
        """Mean over a window round each voxel."""
        return np.asarray(uniform_filter(values, _WINDOW), dtype=np.float32)

    one, other = smoothed(first), smoothed(second)
    spread_one, spread_other = smoothed(first**2) - one**2, smoothed(second**2) - other**2
    together = smoothed(first * second) - one * other
    low, high = _STABILISERS
    likeness = (2 * one * other + low) * (2 * together + high)
    likeness /= (one**2 + other**2 + low) * (spread_one + spread_other + high)
    return float(likeness[where].mean(dtype=np.float64))


def _cascade(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, generator: torch.Generator
) -> Iterator[WeightStage]:
    network = copy.deepcopy(classifier.network)
    changed = with_network(classifier, network)
    for name, part in reversed(_parts_of(network).items()):
        _redraw(part, generator)
        yield _compared(name, changed, prepared, found)


def _compared(
    name: str, changed: Classifier, prepared: PreparedScan, found: Explanation
) -> WeightStage:
    other = explain(changed, prepared, method=found.method, label=found.label)
    if not other.has_evidence:
        return WeightStage(name, None, None)
    return WeightStage(
        name,
        _spearman(found.heat, other.heat, prepared.lungs),
        _structural_similarity(found.heat, other.heat, prepared.lungs),
    )


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


_SIMULATION_SEED = 21
_ROWS = 192
_SLICE_SPACING_MM = 2.5


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan to be asked about.

    Attributes:
        name: What it is called.
        volume: The scan.
        lesions: Where its disease is, on the same grid, where that is known.
        lesion_source: How that is known: a word of `model_audit_findings`, or empty.
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
        finding: Which of a classifier's findings is asked about; None of classes.
    """

    classifier: Classifier
    engine: Engine
    method: str = "gradcam"
    seed: int = 1
    listener: Callable[[str], object] = lambda _what: None
    finding: str | None = None

    def answer(self, prepared: PreparedScan) -> tuple[dict[str, float], str]:
        """The probabilities of a scan and the decision; of a finding whether it is there."""
        shares = self.classifier.probabilities(prepared, self.engine)
        if self.finding is None:
            return shares, max(shares, key=shares.__getitem__)
        share, absent = shares[self.finding], f"no {self.finding}"
        is_present = share >= self.classifier.card.thresholds[self.finding]
        return {self.finding: share, absent: 1 - share}, self.finding if is_present else absent

    @property
    def assumption(self) -> str:
        """What is taken for granted of the classifier's classes, or is asked of its findings."""
        card = self.classifier.card
        if self.finding is None:
            return card.label_set.assumption
        threshold = card.thresholds[self.finding]
        return f"Asked about one finding: {self.finding}, present from {threshold:.3f} on."


def audit_model(auditor: Auditor, subjects: Iterable[Subject]) -> ModelAudit:
    """Ask a classifier about scans, one after the other.

    Raises:
        ChestCTError: A scan, its lesions, the engine or the method is not as it should be, or the
            classifier tells findings and none of them was named.
    """
    card = auditor.classifier.card
    require_finding(auditor.classifier, auditor.finding)
    return ModelAudit(
        classifier=card.name,
        version=card.version,
        weights_sha256=auditor.classifier.weights_sha256,
        recipe=auditor.classifier.recipe.name,
        trained_on=card.trained_on,
        notice=card.notice,
        scans=tuple(_audit_scan(auditor, subject) for subject in subjects),
        assumption=auditor.assumption,
    )


def require_finding(classifier: Classifier, finding: str | None) -> None:
    """Refuse an audit of findings that names none, or none of them.

    Raises:
        ClassifierError: It names none, or the classifier tells classes.
        UnknownNameError: There is no such finding.
    """
    if classifier.are_findings and finding is None:
        msg = f"'{classifier.card.name}' tells several findings, and an audit asks about one."
        raise ClassifierError(f"{msg} Name it with --finding: {', '.join(classifier.labels)}.")
    classifier.require_finding(finding)


def _audit_scan(auditor: Auditor, subject: Subject) -> ScanAudit:
    """Ask a classifier everything about one scan; for the errors see `audit_model`."""
    auditor.listener(f"{subject.name}: reading")
    prepared = prepare(subject.volume, auditor.classifier.recipe)
    if prepared.unsuitable_reasons:
        audit = ScanAudit(subject.name, subject.truth, UNSUITABLE, {})
        return replace(audit, findings=judge_scan_audit(audit))
    shares, decision = auditor.answer(prepared)
    is_finding = auditor.classifier.card.label_set.is_finding(decision)
    if auditor.finding is not None:
        is_finding = decision == auditor.finding
    before = ScanAudit(subject.name, subject.truth, decision, shares, is_finding=is_finding)
    found = _map_of(auditor, prepared, auditor.finding or decision)
    lesion, source = _lesion(subject, prepared, found)
    # Noise must not depend on how many networks were drawn before.
    weights_rng, noise_rng = np.random.default_rng(auditor.seed).spawn(2)
    map_test = None
    if found is not None:
        auditor.listener(f"{subject.name}: drawing weights")
        map_test = _compare_weights(auditor.classifier, prepared, found, weights_rng)
    audit = replace(
        before,
        lesion_source=source,
        lesion_share=None if lesion is None else float(lesion[prepared.lungs].mean()),
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


def simulated_subjects(
    num: int, labels: Collection[str], seed: int = _SIMULATION_SEED
) -> Iterator[Subject]:
    """Simulated patients with known lesions, the classes in turn, each made when it is its turn.

    Args:
        num: How many.
        labels: The classifier's classes; what was simulated is told where it is one of them.
        seed: Of the patients.
    """
    from chestct.simulate import ThoraxSettings, simulate_patient
    from chestct.simulate.lesions import PATTERNS

    settings = ThoraxSettings(rows=_ROWS, slice_spacing_mm=_SLICE_SPACING_MM)
    patterns = tuple(PATTERNS)
    for number in range(num):
        label = patterns[number % len(patterns)]
        rng = np.random.default_rng([seed, number])
        patient = simulate_patient(rng, settings, pattern=label)
        lesions = patient.volume.with_voxels(patient.lesions)
        name, truth = f"simulated-{number + 1}", label if label in labels else ""
        name = f"{name}-{truth.lower()}" if truth else name
        yield Subject(name, patient.volume, lesions, TRUE_LESIONS, truth)


def mask_at_input(mask: Volume, prepared: PreparedScan) -> Mask:
    """A mask of the scan at the size of the network's input: true where at least half is covered.

    Args:
        mask: Truth values on the scan's voxels, in any axis order.
        prepared: The scan.

    Raises:
        ReadError: The mask's grid is not the scan's.
    """
    if not same_place(mask.grid, prepared.scan_grid):
        msg = (
            f"The lesions lie on {mask.grid.shape} voxels and the scan on "
            f"{prepared.scan_grid.shape}, or at another place: draw them on this very scan."
        )
        raise ReadError(msg)
    canonical = on_body(mask)
    grid = canonical.grid
    start = grid.to_index(np.asarray(prepared.grid.origin_mm, dtype=np.float64))
    depth, height, width = (
        new / old for new, old in zip(prepared.grid.spacing_mm, grid.spacing_mm, strict=True)
    )
    voxels = np.ascontiguousarray(canonical.voxels, dtype=np.bool_)
    where = (float(start[0]), float(start[1]), float(start[2]))
    return mask_on_grid(
        voxels, bounding_box(voxels), (where, (depth, height, width), prepared.grid.shape)
    )


def _map_of(auditor: Auditor, prepared: PreparedScan, label: str) -> Explanation | None:
    """A label's map; None for a network of which none can be made."""
    try:
        return explain(auditor.classifier, prepared, method=auditor.method, label=label)
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
    shares, decision = auditor.answer(prepared)
    share = shares[before.decision]
    change = share - before.share
    return Probe(*what, shares, decision, share, change, is_same=decision == before.decision)

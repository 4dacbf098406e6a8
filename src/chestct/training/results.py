"""What a trained network says of its scans, and its classifier's folder with a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from chestct.card import Abstention, Card, MeasuredResult
from chestct.classifier import save_classifier
from chestct.datasets.manifest import TEST, VALIDATION, Manifest, ManifestRow
from chestct.evaluation.calibration import (
    AbstentionThreshold,
    abstention_threshold,
    fit_temperature,
)
from chestct.evaluation.intervals import Estimate
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.tables import EvaluationSettings, Summary
from chestct.training.division import Division
from chestct.training.outputs import Outputs, evaluate
from chestct.training.parts import Parts
from chestct.training.record import program_versions
from chestct.training.run import LabelledSets
from chestct.training.settings import RunSettings

IN_WORDS: Final = {
    TEST: "the test part: patients that chose nothing in this run",
    VALIDATION: "the validation part, which the run was watched on: likely too good",
}
"""Part of the scans to what its results are worth."""

_LICENCE: Final = "Not stated by whoever trained it; the terms of the training scans may apply."
_OVERALL: Final = ("accuracy", "balanced_accuracy", "macro_auc", "log_loss")


@dataclass(frozen=True)
class Origin:
    """Where a classifier comes from, for its card.

    Attributes:
        name: The classifier's name.
        training: The scans it learned from.
        judged_on: Name of the part its results were measured on.
        temperature: What its logits are divided by.
        promised: Abstention threshold chosen on the validation part, or why there is none.
        num_validation: Scans of that part.
    """

    name: str
    training: Manifest
    judged_on: str
    temperature: float
    promised: AbstentionThreshold
    num_validation: int


def scan_key(row: ManifestRow) -> str:
    """What a scan is called in tables: its path, and its series where a folder holds several."""
    series = row.others.get("series")
    return f"{row.scan} {series}" if series else row.scan


def judge(
    network: nn.Module,
    sets: LabelledSets,
    division: Division,
    parts: Parts,
    name: str,
    settings: RunSettings,
) -> tuple[Predictions, Origin]:
    """Fit temperature and abstention threshold on the validation part and predict the test part.

    The epoch was chosen on the validation part too, so that the threshold's promise is rather too
    good. Without a test part the validation part is predicted, without the temperature, which
    would flatter it.
    """
    workers = settings.training.workers
    watched = evaluate(network, sets.validation, batch_size=1, workers=workers)
    on_validation = predictions_of(watched, division.validation, parts.labels)
    temperature = fit_temperature(on_validation).temperature
    calibrated = predictions_of(watched, division.validation, parts.labels, temperature)
    promised = abstention_threshold(calibrated, settings.abstention.wished_error)
    is_tested = division.test is not None and sets.test is not None
    part = TEST if is_tested else VALIDATION
    origin = Origin(name, division.training, part, temperature, promised, len(on_validation))
    if division.test is None or sets.test is None:
        return on_validation, origin
    tested = evaluate(network, sets.test, batch_size=1, workers=workers)
    return predictions_of(tested, division.test, parts.labels, temperature), origin


def evaluation_settings(origin: Origin) -> EvaluationSettings:
    """How a trained network's own evaluation is made: with its threshold, or why it has none.

    On the validation part, where threshold and temperature come from, neither is judged.
    """
    promised = origin.promised
    if promised.threshold is None:
        why_not = (
            "The card holds no abstention threshold: the validation part promises no error rate of "
            f"at most {promised.wished_error:g} ({promised.note})."
        )
        return EvaluationSettings(name=origin.name, remarks=(why_not,))
    is_tested = origin.judged_on == TEST
    return EvaluationSettings(name=origin.name, promised=promised if is_tested else None)


def abstention_of(promised: AbstentionThreshold, num_scans: int) -> Abstention | None:
    """A threshold as a card holds it; None where there is none."""
    if promised.threshold is None or promised.coverage is None:
        return None
    return Abstention(
        abstain_below=promised.threshold,
        wished_error=promised.wished_error,
        level=promised.level,
        coverage=promised.coverage,
        risk=promised.risk or 0.0,
        risk_bound=promised.risk_bound or 0.0,
        num_scans=num_scans,
    )


def promised_by(card: Card) -> AbstentionThreshold | None:
    """The threshold of a card as an evaluation takes it."""
    kept = card.abstention
    if kept is None:
        return None
    return AbstentionThreshold(
        kept.abstain_below, kept.wished_error, kept.level, kept.coverage, kept.risk, kept.risk_bound
    )


def predictions_of(
    outputs: Outputs, manifest: Manifest, labels: tuple[str, ...], temperature: float = 1.0
) -> Predictions:
    """Probabilities of a set of scans, which `manifest` lists in the same order."""
    rows = manifest.rows
    logits = outputs.logits.double() / temperature
    return Predictions(
        scans=tuple(scan_key(row) for row in rows),
        patients=tuple(row.patient for row in rows),
        truth=outputs.labels.numpy(),
        probabilities=torch.softmax(logits, dim=1).numpy(),
        labels=labels,
        sites=sites_of(rows),
    )


def as_predictions(
    rows: Sequence[ManifestRow],
    probabilities: Float[np.ndarray, "scan class"],
    labels: tuple[str, ...],
) -> Predictions:
    """Probabilities of the scans of a manifest's rows, with the truth that the rows name."""
    return Predictions(
        scans=tuple(scan_key(row) for row in rows),
        patients=tuple(row.patient for row in rows),
        truth=np.array([labels.index(row.label) for row in rows], dtype=np.int64),
        probabilities=probabilities,
        labels=labels,
        sites=sites_of(rows),
    )


def undecided(rows: Sequence[ManifestRow], labels: tuple[str, ...]) -> Predictions:
    """Every class as likely: stands in for what a classifier has yet to say of these scans."""
    return as_predictions(rows, np.full((len(rows), len(labels)), 1 / len(labels)), labels)


def sites_of(rows: Sequence[ManifestRow]) -> tuple[str, ...] | None:
    """Where the scans come from, or None where the manifest does not say it."""
    return tuple(row.site for row in rows) if any(row.site for row in rows) else None


def pool(parts: list[Predictions]) -> Predictions:
    """The predictions of several folds as those of one set of scans."""
    has_sites = any(part.sites is not None for part in parts)
    return Predictions(
        scans=tuple(scan for part in parts for scan in part.scans),
        patients=tuple(patient for part in parts for patient in part.patients),
        truth=np.concatenate([part.truth for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        labels=parts[0].labels,
        sites=tuple(site for part in parts for site in part.sites or ("",) * len(part))
        if has_sites
        else None,
    )


def write_classifier(
    folder: Path, network: nn.Module, parts: Parts, origin: Origin, summary: Summary
) -> Card:
    """Save a trained network as a classifier, its card filled from settings and results.

    Raises:
        ClassifierError: A weight is not finite.
        WriteError: The folder cannot be written.
    """
    card = Card(
        name=origin.name,
        version="1",
        network=parts.network,
        network_settings=parts.network_settings,  # type: ignore[arg-type]
        recipe=asdict(parts.recipe),
        labels=parts.labels,
        trained_on=describe_scans(origin.training),
        results=measured(summary, IN_WORDS[origin.judged_on]),
        versions=program_versions(),
        licence=_LICENCE,
        temperature=origin.temperature,
        abstention=abstention_of(origin.promised, origin.num_validation),
    )
    save_classifier(folder, network, card)
    return card


def describe_scans(manifest: Manifest) -> str:
    """How many scans of which classes, in words; paths and patients are not named."""
    cases = ", ".join(f"{count} {label}" for label, count in manifest.cases.items())
    return (
        f"{len(manifest)} scans of {manifest.num_patients} patients ({cases}) listed in "
        f"{manifest.name}."
    )


def measured(summary: Summary, scans: str) -> tuple[MeasuredResult, ...]:
    """The figures that a card shows, each with its interval where there is one."""
    figures = summary.figures
    wanted: dict[str, Estimate] = {name: figures.overall[name] for name in _OVERALL}
    for label in summary.labels:
        of_class: Mapping[str, Estimate] = figures.per_class[label]
        wanted |= {f"{name} for {label}": of_class[name] for name in ("sensitivity", "specificity")}
    return tuple(
        MeasuredResult(
            measure=name.replace("_", " ", 1) if " for " not in name else name,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            num_scans=estimate.total or summary.num_scans,
            scans=scans,
        )
        for name, estimate in wanted.items()
        if estimate.value is not None
    )

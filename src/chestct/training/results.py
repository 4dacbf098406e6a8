"""What a trained network says of its scans, and its classifier's folder with a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from chestct.card import Card, MeasuredResult
from chestct.classifier import save_classifier
from chestct.datasets.confounders import baseline_probabilities
from chestct.datasets.manifest import TEST, TRAINING, VALIDATION, Manifest, ManifestRow
from chestct.datasets.scans import ScanFacts
from chestct.evaluation.calibration import fit_temperature
from chestct.evaluation.intervals import Estimate
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.summary import Summary
from chestct.training.division import Division
from chestct.training.outputs import Outputs, evaluate
from chestct.training.parts import Parts
from chestct.training.record import program_versions
from chestct.training.run import LabelledSets

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
    """

    name: str
    training: Manifest
    judged_on: str
    temperature: float = 1.0


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
    workers: int | None = 0,
) -> tuple[Predictions, Origin]:
    """Fit the temperature on the validation part and predict the test part.

    Without a test part the validation part is predicted, without the temperature, which would
    flatter it.
    """
    watched = evaluate(network, sets.validation, batch_size=1, workers=workers)
    on_validation = predictions_of(watched, division.validation, parts.labels)
    temperature = fit_temperature(on_validation).temperature
    if division.test is None or sets.test is None:
        return on_validation, Origin(name, division.training, VALIDATION, temperature)
    tested = evaluate(network, sets.test, batch_size=1, workers=workers)
    judged = predictions_of(tested, division.test, parts.labels, temperature)
    return judged, Origin(name, division.training, TEST, temperature)


def baseline_beside(
    judged: Predictions, division: Division, facts: Mapping[int, ScanFacts], part: str
) -> Predictions:
    """What age, sex and scanner alone say of the scans that a network judged."""
    joined = division.joined
    splits = [row.split for row in joined.rows]
    wanted = [index for index, split in enumerate(splits) if split == part]
    probabilities = baseline_probabilities(
        joined,
        [facts[row.number] for row in joined.rows],
        [index for index, split in enumerate(splits) if split == TRAINING],
        wanted,
    )
    keys = [scan_key(joined.rows[index]) for index in wanted]
    order = [keys.index(scan) for scan in judged.scans]
    return judged.with_probabilities(probabilities[order])


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

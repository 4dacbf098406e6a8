"""What a trained network says of its scans, beside what a baseline says, and its classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from chestct.card import Abstention, Card, MeasuredResult
from chestct.classifier import save_classifier
from chestct.datasets.confounders import BASELINE, baseline_probabilities, classes_with_facts
from chestct.datasets.manifest import (
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestRow,
    patients_by_label,
)
from chestct.datasets.scans import ScanFacts
from chestct.datasets.splits import SplitSettings, k_fold
from chestct.evaluation.calibration import (
    AbstentionThreshold,
    abstention_threshold,
    fit_temperature,
)
from chestct.evaluation.intervals import Estimate
from chestct.evaluation.metrics import OVERALL
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.report import EvaluationSettings, Summary
from chestct.familiarity import Familiarity, fit_familiarity
from chestct.report.tables import as_csv, as_markdown_table
from chestct.storage import write_text
from chestct.training.data import Division
from chestct.training.loop import Outputs, evaluate
from chestct.training.plan import Parts, program_versions
from chestct.training.run import LabelledSets
from chestct.training.settings import RunSettings

_IN_WORDS: Final = {
    TEST: "the test part: patients that chose nothing in this run",
    VALIDATION: "the validation part, which the run was watched on: likely too good",
}
"""Part of the scans to what its results are worth."""

_LICENCE: Final = "Not stated by whoever trained it; the terms of the training scans may apply."
_GIVEN_LICENCE: Final = "So may those of the weights that it began with"
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
        familiarity: What tells how far a scan lies from those it learned from.
        explanation: How its answers are explained, as its card says it.
    """

    name: str
    training: Manifest
    judged_on: str
    temperature: float
    promised: AbstentionThreshold
    num_validation: int
    familiarity: Familiarity | None = None
    explanation: str = "gradcam"


def scan_key(row: ManifestRow) -> str:
    """What a scan is called in tables: its path, and its series where a folder holds several."""
    series = row.others.get("series")
    return f"{row.scan} {series}" if series else row.scan


def reasons_by_scan(manifest: Manifest, reasons: Mapping[int, str]) -> dict[str, str]:
    """Reasons by what a scan is called instead of by row number, of the scans of a manifest."""
    return {scan_key(r): reasons[r.number] for r in manifest.rows if r.number in reasons}


def judge(
    network: nn.Module,
    sets: LabelledSets,
    division: Division,
    parts: Parts,
    name: str,
    settings: RunSettings,
) -> tuple[Predictions, Origin]:
    """Fit temperature and thresholds on the validation part and predict the test part.

    The epoch was chosen on the validation part too, so that the threshold's promise is rather too
    good.
    """
    workers = settings.training.workers
    said = answers(network, sets, division, parts.labels, batch_size=1, workers=workers)
    promised = abstention_threshold(said.calibrated, settings.abstention.wished_error)
    learned = evaluate(network, sets.training, batch_size=1, workers=workers)
    known = fit_familiarity(
        learned.features.numpy(), learned.labels.numpy(), said.watched.features.numpy()
    )
    num_validation = len(said.calibrated)
    training = division.training
    origin = Origin(name, training, said.part, said.temperature, promised, num_validation, known)
    return said.judged, origin


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a trained network says of the parts that it did not learn from.

    Attributes:
        watched: Its outputs on the validation part.
        calibrated: The same as probabilities, after the temperature.
        temperature: Fitted on the validation part.
        judged: Probabilities of the test part; of the validation part where there is none, without
            the temperature, which would flatter it.
        part: Name of the part that was judged.
    """

    watched: Outputs
    calibrated: Predictions
    temperature: float
    judged: Predictions
    part: str


def answers(
    network: nn.Module,
    sets: LabelledSets,
    division: Division,
    labels: tuple[str, ...],
    *,
    batch_size: int,
    workers: int | None = 0,
) -> _Answers:
    """Fit the temperature on the validation part, and predict the test part where there is one.

    Args:
        network: Trained.
        sets: Inputs of the division's parts.
        division: The parts.
        labels: What the logits stand for.
        batch_size: Examples at once.
        workers: Processes that read; None leaves it to the device.
    """
    watched = evaluate(network, sets.validation, batch_size=batch_size, workers=workers)
    plain = predictions_of(watched, division.validation, labels)
    temperature = fit_temperature(plain).temperature
    calibrated = predictions_of(watched, division.validation, labels, temperature)
    if division.test is None or sets.test is None:
        return _Answers(watched, calibrated, temperature, plain, VALIDATION)
    tested = evaluate(network, sets.test, batch_size=batch_size, workers=workers)
    judged = predictions_of(tested, division.test, labels, temperature)
    return _Answers(watched, calibrated, temperature, judged, TEST)


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


def _abstention_of(promised: AbstentionThreshold, num_scans: int) -> Abstention | None:
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
    probabilities = torch.softmax(outputs.logits.double() / temperature, dim=1)
    return as_predictions(manifest.rows, probabilities.numpy(), labels)


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
        sites=tuple(row.site for row in rows) if any(row.site for row in rows) else None,
    )


def undecided(rows: Sequence[ManifestRow], labels: tuple[str, ...]) -> Predictions:
    """Every class as likely: stands in for what a classifier has yet to say of these scans."""
    return as_predictions(rows, np.full((len(rows), len(labels)), 1 / len(labels)), labels)


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
    given = parts.beginning
    begun = "" if given is None else f" {given}"
    licence = _LICENCE if given is None else f"{_LICENCE} {_GIVEN_LICENCE}: {given.licence}"
    card = Card(
        name=origin.name,
        version="1",
        network=parts.network,
        network_settings=parts.network_settings,  # type: ignore[arg-type]
        recipe=asdict(parts.recipe),
        labels=parts.labels,
        classes=parts.classes,
        trained_on=describe_scans(origin.training) + begun,
        results=measured(summary, _IN_WORDS[origin.judged_on]),
        versions={**program_versions(), **parts.plugin_versions},
        licence=licence,
        temperature=origin.temperature,
        explanation=origin.explanation,
        abstention=_abstention_of(origin.promised, origin.num_validation),
    )
    save_classifier(folder, network, card, origin.familiarity)
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


BASELINE_NAME: Final = ", ".join(BASELINE)
"""What it is called in tables."""
_MOST_FOLDS: Final = 5
"""Of its cross-validation; fewer where a class has fewer patients."""


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


def cross_validated_baseline(
    judged: Predictions, manifest: Manifest, facts: Sequence[ScanFacts]
) -> tuple[Predictions | None, str]:
    """The same where there are no other scans to learn from: each fold is told from the others.

    Args:
        judged: What a finished classifier said.
        manifest: The scans that it judged, in the same order; splits and folds are not looked at.
        facts: Of every row's scan.

    Returns:
        The baseline's predictions, and a sentence on how they were made; or None, and why not.
    """
    present = tuple(label for label, cases in manifest.cases.items() if cases)
    rows = tuple(replace(row, split="", fold=None) for row in manifest.rows)
    whole = replace(manifest, rows=rows, labels=present, excluded=())
    fewest = min(len(patients) for patients in patients_by_label(whole).values())
    why_not = ""
    if len(present) < 2 or len(classes_with_facts(manifest, facts)) < 2:
        why_not = "none of them is known for two classes or more"
    elif fewest < 2:
        why_not = "a class has fewer than two patients"
    if why_not:
        return None, f"No baseline of {BASELINE_NAME} stands beside the classifier: {why_not}."
    num_folds = min(_MOST_FOLDS, fewest)
    dealt = k_fold(whole, SplitSettings(folds=num_folds))
    folds = [row.fold for row in dealt.rows]
    probabilities = np.zeros((len(dealt), len(manifest.labels)))
    for fold in dealt.folds:
        wanted = [index for index, each in enumerate(folds) if each == fold]
        others = [index for index, each in enumerate(folds) if each != fold]
        probabilities[wanted] = baseline_probabilities(manifest, facts, others, wanted)
    remark = (
        f"The baseline '{BASELINE_NAME}' is cross-validated on these very scans ({num_folds} folds "
        "by patient): it knows what these scans are like, as the classifier may not."
    )
    return judged.with_probabilities(probabilities), remark


FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss")
"""What is told of each fold; intervals are those of the pooled scans, folds are too small."""


def write_folds(folds: Mapping[str, Predictions], folder: Path) -> None:
    """Write `folds.csv` and `folds.md`: a row per fold, then mean and standard deviation.

    The standard deviation between folds is no interval: their training sets overlap.

    Raises:
        WriteError: They cannot be written.
    """
    header, *rows = _fold_rows(folds)
    write_text(folder / "folds.csv", as_csv(header, rows))
    write_text(folder / "folds.md", as_markdown_table(header, rows) + "\n")


def _fold_rows(folds: Mapping[str, Predictions]) -> list[list[str]]:
    """Header, one row per fold, mean, standard deviation; an undefined figure is an empty cell."""
    columns: dict[str, list[float]] = {name: [] for name in FIGURES}
    rows = [["fold", "scans", "patients", *FIGURES]]
    for fold, predictions in folds.items():
        cells = []
        for name in FIGURES:
            value = OVERALL[name](predictions).value
            cells.append("" if value is None else f"{value:.4f}")
            columns[name] += [] if value is None else [value]
        rows.append([fold, str(len(predictions)), str(predictions.num_patients), *cells])
    sizes = [sum(len(p) for p in folds.values()), sum(p.num_patients for p in folds.values())]
    means = [f"{mean(values):.4f}" if values else "" for values in columns.values()]
    spreads = [f"{stdev(values):.4f}" if len(values) > 1 else "" for values in columns.values()]
    rows.append(["mean", *map(str, sizes), *means])
    rows.append(["standard deviation", "", "", *spreads])
    return rows

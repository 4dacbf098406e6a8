"""What a trained network says of its scans, beside what a baseline says, and its classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from chestct.card import Abstention, Card, FindingThreshold, MeasuredResult
from chestct.classifier import save_classifier
from chestct.datasets.confounders import (
    BASELINE,
    baseline_probabilities,
    classes_with_facts,
    facts_of_finding,
)
from chestct.datasets.manifest import (
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestRow,
)
from chestct.datasets.scans import ScanFacts
from chestct.datasets.splits import SplitSettings, k_fold
from chestct.evaluation.calibration import (
    AbstentionThreshold,
    abstention_threshold,
    choose_threshold,
    fit_temperature,
)
from chestct.evaluation.metrics import Estimate, measure, overall_of
from chestct.evaluation.predictions import AnyPredictions, FindingPredictions, Predictions
from chestct.evaluation.report import EvaluationSettings, Summary
from chestct.familiarity import Familiarity, fit_familiarity
from chestct.report import as_csv, as_markdown_table
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
_OVERALL_FINDINGS: Final = ("macro_auprc", "macro_sensitivity", "macro_specificity")
"""Those of findings alone."""
_Some = TypeVar("_Some", Predictions, FindingPredictions, AnyPredictions)


@dataclass(frozen=True)
class Origin:
    """Where a classifier comes from, for its card.

    Its results were measured on the part `judged_on`. `promised` is the abstention threshold chosen
    on the validation part, of so many scans, and `findings` that of each finding, None of classes.
    `familiarity` tells how far a scan lies from those it learned from.
    """

    name: str
    training: Manifest
    judged_on: str
    temperature: float
    promised: AbstentionThreshold | None
    num_validation: int
    familiarity: Familiarity | None = None
    findings: tuple[FindingThreshold, ...] | None = None
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
) -> tuple[AnyPredictions, Origin]:
    """Fit temperature and thresholds on the validation part and predict the test part.

    The epoch was chosen on the validation part too, so that the threshold's promise is rather too
    good.
    """
    workers, labels = settings.training.workers, parts.labels
    watched = evaluate(network, sets.validation, batch_size=1, workers=workers)
    tested = (
        None if sets.test is None else evaluate(network, sets.test, batch_size=1, workers=workers)
    )
    learned = evaluate(network, sets.training, batch_size=1, workers=workers)
    groups, promised, chosen = learned.labels.numpy(), None, None
    said: Answers[Any]
    if parts.are_findings:
        wished = settings.thresholds.wished_sensitivity
        said, chosen = _answers_on_findings(watched, tested, division, labels, wished)
        # Findings divide no scans into groups: all that were learned from are one.
        groups = np.zeros(len(groups), dtype=np.int64)
    else:
        said = answers(watched, tested, division, labels)
        promised = abstention_threshold(said.calibrated, settings.abstention.wished_error)
    known = fit_familiarity(learned.features.numpy(), groups, watched.features.numpy())
    num, training = len(said.calibrated), division.training
    origin = Origin(name, training, said.part, said.temperature, promised, num, known, chosen)
    return said.judged, origin


def _answers_on_findings(
    watched: Outputs,
    tested: Outputs | None,
    division: Division,
    labels: tuple[str, ...],
    wished_sensitivity: float | None,
) -> tuple[Answers[FindingPredictions], tuple[FindingThreshold, ...]]:
    """As `answers`, of findings: one temperature for all of them, and a threshold for each."""
    plain = _findings_of(watched, division.validation, labels)
    temperature = fit_temperature(plain.pairs()).temperature
    calibrated = _findings_of(watched, division.validation, labels, temperature)
    chosen = tuple(
        choose_threshold(calibrated.of(i), wished_sensitivity) for i in range(len(labels))
    )
    part, outputs = (VALIDATION, watched) if tested is None else (TEST, tested)
    thresholds = [each.threshold for each in chosen]
    judged = _findings_of(outputs, division.parts[part], labels, temperature, thresholds)
    return Answers(calibrated, temperature, judged, part), chosen


@dataclass(frozen=True, eq=False)
class Answers(Generic[_Some]):
    """What a trained network says of the parts that it did not learn from.

    `calibrated` is the validation part's, after the temperature fitted on it. `judged` is that of
    the `part` judged: the test part, or without the temperature, which would flatter it, the
    validation part.
    """

    calibrated: _Some
    temperature: float
    judged: _Some
    part: str


def answers(
    watched: Outputs, tested: Outputs | None, division: Division, labels: tuple[str, ...]
) -> Answers[Predictions]:
    """Fit the temperature on the validation part, and predict the test part where there is one.

    `watched` and `tested` are a trained network's outputs on them.
    """
    plain = predictions_of(watched, division.validation, labels)
    temperature = fit_temperature(plain).temperature
    calibrated = predictions_of(watched, division.validation, labels, temperature)
    if division.test is None or tested is None:
        return Answers(calibrated, temperature, plain, VALIDATION)
    judged = predictions_of(tested, division.test, labels, temperature)
    return Answers(calibrated, temperature, judged, TEST)


def evaluation_settings(origin: Origin) -> EvaluationSettings:
    """How a trained network's own evaluation is made: with its threshold, or why it has none.

    On the validation part, where threshold and temperature come from, neither is judged.
    """
    promised = origin.promised
    if promised is None:
        return EvaluationSettings(name=origin.name, remarks=_remarks_on_thresholds(origin))
    if promised.threshold is None:
        why_not = (
            "The card holds no abstention threshold: the validation part promises no error rate of "
            f"at most {promised.wished_error:g} ({promised.note})."
        )
        return EvaluationSettings(name=origin.name, remarks=(why_not,))
    is_tested = origin.judged_on == TEST
    return EvaluationSettings(name=origin.name, promised=promised if is_tested else None)


def _remarks_on_thresholds(origin: Origin) -> tuple[str, ...]:
    """What has to be known of the thresholds of findings."""
    pairs = zip(origin.training.labels, origin.findings or (), strict=True)
    poor = [name for name, each in pairs if each.sensitivity is None]
    remarks = ["Abstaining is off for findings: only a scan unlike those of training is uncertain."]
    if poor:
        remarks.append(
            f"The threshold is 0.5 for {', '.join(poor)}: the validation part has no scan with it, "
            "or none without it, to choose another one on."
        )
    if origin.judged_on != TEST:
        remarks.append("The thresholds were chosen on these very scans: likely too good.")
    return tuple(remarks)


def _abstention_of(promised: AbstentionThreshold | None, num_scans: int) -> Abstention | None:
    """A threshold as a card holds it; None where there is none."""
    if promised is None or promised.threshold is None or promised.coverage is None:
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


def predictions_of(
    outputs: Outputs, manifest: Manifest, labels: tuple[str, ...], temperature: float = 1.0
) -> Predictions:
    """Probabilities of a set of scans, which `manifest` lists in the same order."""
    probabilities = torch.softmax(outputs.logits.double() / temperature, dim=1)
    return as_predictions(manifest.rows, probabilities.numpy(), labels)


def _findings_of(
    outputs: Outputs,
    manifest: Manifest,
    labels: tuple[str, ...],
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> FindingPredictions:
    """Probability of every finding of a set of scans, which `manifest` lists in the same order."""
    probabilities = torch.sigmoid(outputs.logits.double() / temperature).numpy()
    chosen = [0.5] * len(labels) if thresholds is None else thresholds
    return as_finding_predictions(manifest, probabilities, labels, chosen)


def as_finding_predictions(
    manifest: Manifest,
    probabilities: Float[np.ndarray, "scan finding"],
    labels: tuple[str, ...],
    thresholds: Sequence[float],
) -> FindingPredictions:
    """Probabilities of the scans of a manifest, with what it knows of each finding."""
    rows = manifest.rows
    return FindingPredictions(
        scans=tuple(scan_key(row) for row in rows),
        patients=tuple(row.patient for row in rows),
        truth=manifest.truths.astype(np.float64),
        probabilities=probabilities,
        thresholds=np.tile(np.array(thresholds), (len(rows), 1)),
        labels=labels,
        sites=tuple(row.site for row in rows) if any(row.site for row in rows) else None,
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
        sites=tuple(row.site for row in rows) if any(row.site for row in rows) else None,
    )


def pool(parts: Sequence[_Some]) -> _Some:
    """The predictions of several folds as those of one set of scans."""
    has_sites = any(part.sites is not None for part in parts)
    rows: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("truth", "probabilities", "thresholds")
        if hasattr(parts[0], name)
    }
    return replace(
        parts[0],
        scans=tuple(scan for part in parts for scan in part.scans),
        patients=tuple(patient for part in parts for patient in part.patients),
        sites=tuple(site for part in parts for site in part.sites or ("",) * len(part))
        if has_sites
        else None,
        **rows,
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
        findings=origin.findings,
    )
    save_classifier(folder, network, card, origin.familiarity)
    return card


def describe_scans(manifest: Manifest, what: str = "scans") -> str:
    """How many scans or slices of which classes, in words; paths and patients are not named."""
    cases = ", ".join(f"{count} {label}" for label, count in manifest.cases.items())
    return (
        f"{len(manifest)} {what} of {manifest.num_patients} patients ({cases}) listed in "
        f"{manifest.name}."
    )


def measured(summary: Summary, scans: str) -> tuple[MeasuredResult, ...]:
    """The figures that a card shows, each with its interval where there is one."""
    figures = summary.figures
    names = [name for name in (*_OVERALL, *_OVERALL_FINDINGS) if name in figures.overall]
    wanted: dict[str, Estimate] = {name: figures.overall[name] for name in names}
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
    judged: AnyPredictions, division: Division, facts: Mapping[int, ScanFacts], part: str
) -> AnyPredictions:
    """What age, sex and scanner alone say of the scans that a network judged."""
    joined = division.joined
    if isinstance(judged, FindingPredictions):
        told = [
            _baseline_beside(judged.of(index), joined.of_finding(name), facts, part)
            for index, name in enumerate(judged.labels)
        ]
        return _baseline_of_findings(judged, told)
    return _baseline_beside(judged, joined, facts, part)


def _baseline_beside(
    judged: Predictions, joined: Manifest, facts: Mapping[int, ScanFacts], part: str
) -> Predictions:
    if not len(judged):
        return judged
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


def _baseline_of_findings(
    judged: FindingPredictions, told: Sequence[Predictions]
) -> FindingPredictions:
    """What a baseline says of each finding, where it is known, beside what a network said.

    Its threshold is the finding's share among these scans; AUC and AUPRC do not depend on it.
    """
    probabilities = np.full(judged.probabilities.shape, 0.5)
    thresholds = np.full(judged.probabilities.shape, 0.5)
    for index, each in enumerate(told):
        is_known = judged.is_known[:, index]
        probabilities[is_known, index] = each.probabilities[:, 1]
        if len(each):
            thresholds[:, index] = each.truth.mean()
    return replace(judged, probabilities=probabilities, thresholds=thresholds)


def cross_validated_baseline(
    judged: AnyPredictions, manifest: Manifest, facts: Sequence[ScanFacts]
) -> tuple[AnyPredictions | None, str]:
    """The same where there are no other scans to learn from: each fold is told from the others.

    Splits and folds that the manifest has are not looked at.

    Returns:
        The baseline's predictions, and a sentence on how they were made; or None, and why not.
    """
    if isinstance(judged, FindingPredictions):
        return _cross_validated_of_findings(judged, manifest, facts)
    return _cross_validated_baseline(judged, manifest, facts)


def _cross_validated_of_findings(
    judged: FindingPredictions, manifest: Manifest, facts: Sequence[ScanFacts]
) -> tuple[FindingPredictions | None, str]:
    told, remark = [], ""
    for index, name in enumerate(judged.labels):
        view = judged.of(index)
        if len(view):
            own = facts_of_finding(manifest, facts, name) or []
            one, remark = _cross_validated_baseline(view, manifest.of_finding(name), own)
            if one is None:
                return None, f"{remark} This is said of {name}."
            view = one
        told.append(view)
    return _baseline_of_findings(judged, told), remark


def _cross_validated_baseline(
    judged: Predictions, manifest: Manifest, facts: Sequence[ScanFacts]
) -> tuple[Predictions | None, str]:
    present = tuple(label for label, cases in manifest.cases.items() if cases)
    rows = tuple(replace(row, split="", fold=None) for row in manifest.rows)
    whole = replace(manifest, rows=rows, labels=present, excluded=())
    fewest = min(len(patients) for patients in whole.patients_by_label.values())
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


_FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss")
"""What is told of each fold; intervals are those of the pooled scans, folds are too small."""


def write_folds(folds: Mapping[str, AnyPredictions], folder: Path) -> None:
    """Write `folds.csv` and `folds.md`: a row per fold, then mean and standard deviation.

    The standard deviation between folds is no interval: their training sets overlap.

    Raises:
        WriteError: They cannot be written.
    """
    header, *rows = _fold_rows(folds)
    write_text(folder / "folds.csv", as_csv(header, rows))
    write_text(folder / "folds.md", as_markdown_table(header, rows) + "\n")


def _fold_rows(folds: Mapping[str, AnyPredictions]) -> list[list[str]]:
    """Header, one row per fold, mean, standard deviation; an undefined figure is an empty cell."""
    found = {fold: _told_of(predictions) for fold, predictions in folds.items()}
    names = list(next(iter(found.values())))
    columns: dict[str, list[float]] = {name: [] for name in names}
    rows = [["fold", "scans", "patients", *names]]
    for fold, predictions in folds.items():
        cells = []
        for name in names:
            value = found[fold][name].value
            cells.append("" if value is None else f"{value:.4f}")
            columns[name] += [] if value is None else [value]
        rows.append([fold, str(len(predictions)), str(predictions.num_patients), *cells])
    sizes = [sum(len(p) for p in folds.values()), sum(p.num_patients for p in folds.values())]
    means = [f"{mean(values):.4f}" if values else "" for values in columns.values()]
    spreads = [f"{stdev(values):.4f}" if len(values) > 1 else "" for values in columns.values()]
    rows.append(["mean", *map(str, sizes), *means])
    rows.append(["standard deviation", "", "", *spreads])
    return rows


def _told_of(predictions: AnyPredictions) -> dict[str, Estimate]:
    """What is told of a fold."""
    if isinstance(predictions, FindingPredictions):
        return overall_of(predictions)
    return {name: measure(predictions, name) for name in _FIGURES}

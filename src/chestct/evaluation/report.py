"""An evaluation: what it finds, its tables, and its folder, which is complete or not there at all.

Files are made aside and moved into place, `metrics.json` last: a folder that has it is complete.
Tables are a page, Markdown and LaTeX for people, and tidy CSV (one figure per line) for programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from chestct import __version__
from chestct.errors import WriteError
from chestct.evaluation.calibration import (
    AbstentionThreshold,
    AtThreshold,
    ReliabilityBin,
    RiskPoint,
    abstention_threshold,
    coverage_risk,
    reliability_curve,
)
from chestct.evaluation.comparisons import (
    SOUND,
    Comparison,
    Judgement,
    compare,
)
from chestct.evaluation.figures import PAGE_COLORS, draw_evaluation, save_figure
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.metrics import Confusion, Estimate, confusion_matrix
from chestct.evaluation.predictions import (
    AnyPredictions,
    FindingPredictions,
    Predictions,
    PredictionsError,
)
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.report import Report, as_csv, as_markdown, as_page, fill_report
from chestct.storage import install, reason_of, working_folder

_SCHEMA: Final = "chestct.evaluation"
SCHEMA_VERSION: Final = 1
"""Raised when a field of metrics.json changes its meaning or goes; new fields leave it."""
_FORMATS: Final = {"png": ".png", "svg": ".svg", "pdf": ".pdf"}
"""Kinds of figure files."""
_COMPLETE: Final = "metrics.json"
_PAGE: Final = "evaluation.html"
_FEW_CASES: Final = 10
"""A class with fewer scans than this is pointed out."""
_MOST_WRONG: Final = 100
"""Wrong answers that the page lists, the surest first."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is made.

    Attributes:
        name: What the classifier is called in tables.
        bootstrap: How patients are drawn.
        wished_errors: Error rates that an abstention threshold is sought for.
        formats: Endings of the figure files, of "png", "svg" and "pdf".
        comparisons: Names in `COMPARISONS`, of the tests that other classifiers are compared by.
        promised: Abstention threshold of the classifier, chosen on other scans, or None.
        remarks: Sentences that join the warnings.
        reports: Scan to the report of its answer, relative to the page that links it.
    """

    name: str = "classifier"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    wished_errors: tuple[float, ...] = (0.05, 0.1)
    formats: tuple[str, ...] = tuple(_FORMATS)
    comparisons: tuple[str, ...] = SOUND
    promised: AbstentionThreshold | None = None
    remarks: tuple[str, ...] = ()
    reports: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _GroupSummary:
    """The scans of one site or another group: how many, and their figures."""

    num_scans: int
    num_patients: int
    figures: Figures


@dataclass(frozen=True, eq=False)
class Summary:
    """One classifier on one set of scans.

    Attributes:
        labels: Class names in order.
        num_scans: Scans evaluated.
        num_patients: Patients they belong to.
        cases: Scans per true label, or that have a finding.
        figures: Every figure with its interval.
        warnings: What a reader has to know before trusting the figures.
        confusion: Counts, rows true, columns decisions; empty of findings, which have none.
        sites: The same per site, empty when no sites are given.
        groups: The same by the name of a grouping, such as age, and by group.
        reliability: Accuracy by confidence.
        coverage_risk: Error rate by share of scans decided on.
        abstention: One threshold per wished error rate, chosen on these very scans.
        at_threshold: What the classifier's own threshold does on these scans, or None.
        others: Classifiers that were compared with, by name.
        comparisons: Tests against each of them.
    """

    labels: tuple[str, ...]
    num_scans: int
    num_patients: int
    cases: dict[str, int]
    figures: Figures
    warnings: tuple[str, ...]
    confusion: Confusion = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    sites: dict[str, _GroupSummary] = field(default_factory=dict)
    groups: dict[str, dict[str, _GroupSummary]] = field(default_factory=dict)
    reliability: tuple[ReliabilityBin, ...] = ()
    coverage_risk: tuple[RiskPoint, ...] = ()
    abstention: tuple[AbstentionThreshold, ...] = ()
    at_threshold: AtThreshold | None = None
    others: Mapping[str, Summary] = field(default_factory=dict)
    comparisons: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)


def summarise(
    predictions: AnyPredictions,
    settings: EvaluationSettings | None = None,
    *,
    excluded: Mapping[str, str] | None = None,
) -> Summary:
    """Compute everything; scans that got no decision, with the reason, are counted in a warning."""
    chosen = settings or EvaluationSettings()
    parts = partial(_summarise_groups, predictions, chosen)
    common: dict[str, Any] = {
        "labels": predictions.labels,
        "num_scans": len(predictions),
        "num_patients": predictions.num_patients,
        "figures": estimate_figures(predictions, chosen.bootstrap),
        "sites": parts(predictions.sites or ()),
        "groups": {name: parts(values) for name, values in predictions.groups.items()},
        "warnings": (*_warnings_of(predictions, excluded or {}), *chosen.remarks),
    }
    if isinstance(predictions, FindingPredictions):
        # They have no confusion matrix, and nothing is abstained.
        return Summary(**common, cases=_cases_of_findings(predictions))
    num_labels = len(predictions.labels)
    return Summary(
        **common,
        cases=dict(zip(predictions.labels, predictions.cases.tolist(), strict=True)),
        confusion=confusion_matrix(predictions.truth, predictions.decisions, num_labels),
        reliability=reliability_curve(predictions),
        coverage_risk=coverage_risk(predictions),
        abstention=tuple(abstention_threshold(predictions, e) for e in chosen.wished_errors),
        at_threshold=AtThreshold.of(predictions, chosen.promised),
    )


def _summarise_groups(
    predictions: AnyPredictions, settings: EvaluationSettings, values: Sequence[str]
) -> dict[str, _GroupSummary]:
    """The figures of each group of scans, in alphabetical order."""
    found = {}
    for value in sorted(set(values)):
        part = predictions.choose([i for i, each in enumerate(values) if each == value])
        figures = estimate_figures(part, settings.bootstrap)
        found[value] = _GroupSummary(len(part), part.num_patients, figures)
    return found


def _cases_of_findings(predictions: FindingPredictions) -> dict[str, int]:
    """Finding to how many scans are known to have it."""
    return {label: int(predictions.of(i).cases[1]) for i, label in enumerate(predictions.labels)}


def _warnings_of(predictions: AnyPredictions, excluded: Mapping[str, str]) -> Iterator[str]:
    """What a reader has to know: gaps, small classes, dependence, class and site in one."""
    if excluded:
        yield f"Scans without a decision, left out of the figures: {len(excluded)}."
    if isinstance(predictions, FindingPredictions):
        yield from _rare_findings(predictions)
        return
    if len(predictions) == 0:
        yield "There are no scans: every figure is undefined."
        return
    yield from _small_classes(predictions)
    yield from _odd_decisions(predictions)
    if predictions.num_patients < len(predictions):
        yield (
            f"{len(predictions)} scans belong to {predictions.num_patients} patients: Wilson's "
            "intervals are widened, McNemar's and DeLong's tests are too sure."
        )
    if _is_told_by_site(predictions):
        yield (
            "Every site has scans of one label only: class and site are the same variable, and "
            "these figures cannot tell an illness from a scanner."
        )


def _rare_findings(predictions: FindingPredictions) -> Iterator[str]:
    """Findings that are not known of all scans, and those that few scans have, or lack."""
    cases = _cases_of_findings(predictions)
    for label, num_known in zip(predictions.labels, predictions.is_known.sum(axis=0), strict=True):
        num_unknown = len(predictions) - int(num_known)
        if num_unknown:
            yield f"Not known of {label}: {num_unknown} scans, left out of its figures."
        rarer = min(cases[label], int(num_known) - cases[label])
        if rarer < _FEW_CASES:
            yield f"Few scans are with or without {label} ({rarer}): figures say little."


def _small_classes(predictions: Predictions) -> Iterator[str]:
    for label, cases in zip(predictions.labels, predictions.cases.tolist(), strict=True):
        if cases == 0:
            yield f"No scan is {label}: most of its figures are undefined."
        elif cases < _FEW_CASES:
            yield f"Few scans are {label} ({cases}): its figures say little."


def _odd_decisions(predictions: Predictions) -> Iterator[str]:
    """One decision for all, and ties."""
    called = set(predictions.decisions.tolist())
    if len(called) == 1:
        yield f"Every scan was called {predictions.labels[called.pop()]}."
    highest = predictions.probabilities == predictions.confidences[:, None]
    ties = int((highest.sum(axis=1) > 1).sum())
    if ties:
        yield f"Scans with several most probable labels, the first taken: {ties}."


def _is_told_by_site(predictions: Predictions) -> bool:
    """Whether the site alone gives the label away: several of both, and each has one label."""
    sites = predictions.sites or ()
    pairs = set(zip(sites, predictions.truth.tolist(), strict=False))
    return len({label for _, label in pairs}) > 1 and len(pairs) == len(set(sites)) > 1


def write_evaluation(
    predictions: AnyPredictions,
    folder: Path,
    *,
    settings: EvaluationSettings | None = None,
    others: Mapping[str, AnyPredictions | Judgement] | None = None,
    logs: Mapping[str, list[dict[str, Any]]] | None = None,
    excluded: Mapping[str, str] | None = None,
) -> Summary:
    """Evaluate a classifier; write metrics.json, a page, tables as text and the figures.

    Args:
        predictions: What the classifier said of labelled scans.
        folder: Made when it does not exist; files of the same names are replaced.
        settings: Name, bootstrap, wished error rates, figure formats, tests, remarks.
        others: Further classifiers by name, to be compared with in the same tables: another
            network, the baseline of age, sex and scanner. What either gave no decision on is left
            out of the other's figures and of the comparison, and counted in a warning. Beside
            findings only other predictions of the same scans, without a test.
        logs: Epochs of training runs by name (`read_log`), for the learning curves.
        excluded: Scans that got no decision, with the reason.

    Raises:
        PredictionsError: Another classifier did not judge the same scans, or has the same name.
        UnknownNameError: A figure format is unknown.
        WriteError: The folder could not be written.
    """
    chosen, excluded = settings or EvaluationSettings(), excluded or {}
    endings = [look_up(_FORMATS, name, kind="figure format") for name in chosen.formats]
    main = _beside(predictions, chosen, others or {}, excluded)
    drawn = draw_evaluation(predictions, main, chosen.bootstrap, logs or {}) if endings else {}
    pictures = {name + ending: figure for name, figure in drawn.items() for ending in endings}
    wrong = _wrong_answers(predictions, chosen.reports)
    page = as_page(_report(chosen.name, main, drawn, wrong), PAGE_COLORS, "chestct evaluate")
    _write_folder(folder, pictures, {**_texts(chosen, main, excluded), _PAGE: page})
    return main


def _beside(
    predictions: AnyPredictions,
    settings: EvaluationSettings,
    others: Mapping[str, AnyPredictions | Judgement],
    excluded: Mapping[str, str],
) -> Summary:
    """What is found of a classifier, with the others beside it and the tests against them."""
    plain = replace(settings, promised=None, remarks=())
    if isinstance(predictions, FindingPredictions):
        found = {
            name: summarise(each, plain)
            for name, each in others.items()
            if isinstance(each, FindingPredictions)
        }
        return replace(summarise(predictions, settings, excluded=excluded), others=found)
    pairs = _pairs(Judgement(predictions, excluded), settings.name, others)
    comparisons = {
        name: _compared(first, second, name, settings) for name, (first, second, _) in pairs.items()
    }
    beside = {name: summarise(second, plain) for name, (_, second, _) in pairs.items()}
    remarks = (*settings.remarks, *(remark for _, _, remark in pairs.values() if remark))
    main = summarise(predictions, replace(settings, remarks=remarks), excluded=excluded)
    return replace(main, others=beside, comparisons=comparisons)


def _write_folder(folder: Path, pictures: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Write figures and texts by their file names, `metrics.json` last."""
    try:
        with working_folder(folder.parent) as aside:
            for name, figure in pictures.items():
                save_figure(figure, aside / name)
            for name, text in texts.items():
                (aside / name).write_text(text, encoding="utf-8")
            install(aside, folder, old=[folder / _COMPLETE], last=_COMPLETE)
    except OSError as error:
        msg = f"The evaluation could not be written to '{folder.name}': {reason_of(error)}."
        raise WriteError(msg) from error


def recorded_exclusions(file: Path, predictions: Predictions) -> dict[str, str]:
    """Scans without a decision, as the evaluation of a file of predictions lists them.

    It is looked for where `chestct evaluate` and `train` write it: beside the file, or in a folder
    `evaluation` beside it. Where there is none, or one of another number of scans, there are none.
    """
    for folder in (file.parent, file.parent / "evaluation"):
        try:
            record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
            continue
        if record.get("num_scans") == len(predictions):
            return {str(scan): str(why) for scan, why in record.get("excluded", {}).items()}
    return {}


def _evaluation_record(
    settings: EvaluationSettings, main: Summary, excluded: Mapping[str, str]
) -> dict[str, Any]:
    """The content of metrics.json; its fields are described in docs/evaluation.md."""
    return {
        "schema": _SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        "classifier": settings.name,
        "settings": {name: said for name, said in asdict(settings).items() if name != "reports"},
        **_summary_record(main),
        "excluded": dict(excluded),
        "others": {name: _summary_record(each) for name, each in main.others.items()},
        "comparisons": {
            name: [asdict(row) for row in rows] for name, rows in main.comparisons.items()
        },
    }


def _pairs(
    main: Judgement, name: str, others: Mapping[str, AnyPredictions | Judgement]
) -> dict[str, tuple[Predictions, Predictions, str | None]]:
    """The classifier with each of the others on common scans, and what to say of these."""
    if name in others:
        msg = f"Two classifiers are called '{name}'. Give one of them another name."
        raise PredictionsError(msg)
    judged = {
        other: Judgement(said) if isinstance(said, Predictions) else said
        for other, said in others.items()
        if not isinstance(said, FindingPredictions)
    }
    return {other: main.beside(said, (name, other)) for other, said in judged.items()}


def _compared(
    first: Predictions, second: Predictions, name: str, settings: EvaluationSettings
) -> tuple[Comparison, ...]:
    try:
        return tuple(row for test in settings.comparisons for row in compare(first, second, test))
    except PredictionsError as error:
        msg = f"'{name}' cannot be compared with '{settings.name}'. {error}"
        raise PredictionsError(msg) from error


def _texts(
    settings: EvaluationSettings, main: Summary, excluded: Mapping[str, str]
) -> dict[str, str]:
    """The files that are not figures, by name."""
    report = _report(settings.name, main)
    texts = {
        "tables.md": as_markdown(*report.sections),
        "tables.tex": report.as_latex(),
        "figures.csv": _figures_csv({settings.name: main, **main.others}),
        "groups.csv": _groups_csv(main),
    }
    if main.confusion.size:
        texts["confusion.csv"] = _confusion_csv(main)
        texts["comparisons.csv"] = _comparisons_csv(main.comparisons)
    record = _evaluation_record(settings, main, excluded)
    texts[_COMPLETE] = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return texts


def _summary_record(summary: Summary) -> dict[str, Any]:
    return {
        "labels": list(summary.labels),
        "num_scans": summary.num_scans,
        "num_patients": summary.num_patients,
        "cases": summary.cases,
        "warnings": list(summary.warnings),
        "confusion": {"rows": "true", "columns": "decision", "counts": summary.confusion.tolist()},
        **asdict(summary.figures),
        "sites": _parts_record(summary.sites),
        "groups": {name: _parts_record(parts) for name, parts in summary.groups.items()},
        "reliability": [asdict(each) for each in summary.reliability],
        "coverage_risk": [asdict(point) for point in summary.coverage_risk],
        "abstention": [asdict(each) for each in summary.abstention],
        "at_threshold": None if summary.at_threshold is None else asdict(summary.at_threshold),
    }


def _parts_record(parts: Mapping[str, _GroupSummary]) -> dict[str, Any]:
    records = {value: asdict(part) for value, part in parts.items()}
    for record in records.values():
        record |= record.pop("figures")
    return records


FIGURE_NAMES: Final = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "kappa": "kappa",
    "brier": "Brier score (0 to 2)",
    "log_loss": "log loss (nats)",
    "expected_calibration_error": "expected calibration error",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "auc": "AUC",
    "auprc": "AUPRC",
    "macro_auprc": "macro AUPRC",
    "macro_sensitivity": "macro sensitivity",
    "macro_specificity": "macro specificity",
}
"""What the figures are called in tables, in their order."""

ESTIMATE_FIELDS: Final = ("value", "low", "high", "method", "hits", "total", "note")
"""Of an estimate, in CSV files."""
_GROUP_FIGURES = ("accuracy", "balanced_accuracy", "macro_auc", "expected_calibration_error")
_COMPARISON_COLUMNS = (
    "other", "test", "figure", "first", "second", "estimate", "low", "high", "statistic",
    "p_value", "note",
)  # fmt: skip


def _report(
    name: str,
    main: Summary,
    drawn: Mapping[str, Any] | None = None,
    wrong: _WrongAnswers | None = None,
) -> Report:
    """All tables, other classifiers beside it; a page has figures and wrong answers too."""
    figures = {name: main.figures, **{each: found.figures for each, found in main.others.items()}}

    def cells(figure: str) -> list[str]:
        """A figure of all classes, of every classifier."""
        return [format_estimate(each.overall[figure]) for each in figures.values()]

    def class_cells(label: str, figure: str) -> list[str]:
        """A figure of one class, of every classifier."""
        return [format_estimate(each.per_class[label][figure]) for each in figures.values()]

    drawn = drawn or {}
    groupings = {"Sites": ("site", main.sites)} if main.sites else {}
    groupings |= {f"By {by}": (by, parts) for by, parts in main.groups.items()}
    key_figures = _GROUP_FIGURES if main.confusion.size else tuple(main.figures.overall)[:4]
    return fill_report(
        "chestct.evaluation/tables.md.j2",
        FILTERS,
        {each: partial(drawn.__getitem__, each) for each in drawn},
        name=name,
        notice=NOT_FOR_CLINICAL_USE,
        main=main,
        figures=figures,
        cells=cells,
        class_cells=class_cells,
        groupings=groupings,
        key_figures=key_figures,
        drawn=drawn,
        wrong=wrong,
        comparisons=main.comparisons,
        at_threshold_words=at_threshold_words(main.at_threshold) if main.at_threshold else "",
    )


@dataclass(frozen=True)
class _WrongAnswers:
    """The wrong answers of a page.

    Attributes:
        judged: What there is an answer on, in words and numbers.
        num: How many are wrong.
        columns: Headings.
        lines: Cells, the surest first; of very many the first ones.
    """

    judged: str
    num: int
    columns: tuple[str, ...]
    lines: list[list[str]]


def _wrong_answers(predictions: AnyPredictions, reports: Mapping[str, str]) -> _WrongAnswers:
    """The decisions that are not the truth, or of findings those on which side they lie."""
    columns: tuple[str, ...]
    if isinstance(predictions, FindingPredictions):
        pairs = predictions.wrong_pairs
        lines = [_wrong_pair(predictions, *pair, reports) for pair in pairs[:_MOST_WRONG]]
        judged = f"{int(predictions.is_known.sum())} answers on findings that are known"
        columns = ("scan", "finding", "truth", "decision", "probability", "threshold")
        return _WrongAnswers(judged, len(pairs), columns, lines)
    rows = predictions.wrong_rows
    lines = [_wrong_line(predictions, row, reports) for row in rows[:_MOST_WRONG]]
    columns = ("scan", "true label", "decision", "probability of the decision")
    return _WrongAnswers(f"{len(predictions)} scans", len(rows), columns, lines)


def _wrong_line(predictions: Predictions, row: int, reports: Mapping[str, str]) -> list[str]:
    """Scan, true label, decision and its probability."""
    pair = (predictions.truth[row], predictions.decisions[row])
    labels = [predictions.labels[index] for index in pair]
    name = _linked(predictions, row, reports)
    return [name, *labels, f"{predictions.confidences[row]:.3f}"]


def _wrong_pair(
    predictions: FindingPredictions, row: int, column: int, reports: Mapping[str, str]
) -> list[str]:
    """Scan, finding, whether it is there and was called so, its probability and threshold."""
    is_there = predictions.truth[row, column] == 1
    said = ("present", "absent") if is_there else ("absent", "present")
    numbers = (predictions.probabilities[row, column], predictions.thresholds[row, column])
    shown = [f"{number:.3f}" for number in numbers]
    return [_linked(predictions, row, reports), predictions.labels[column], *said, *shown]


def _linked(predictions: AnyPredictions, row: int, reports: Mapping[str, str]) -> str:
    """A scan, named by its row if it is called as its patient; a link to its report if any."""
    scan = predictions.scans[row]
    # Row 1 of a file of predictions is its header.
    is_patient = scan == predictions.patients[row]
    name = f"row {row + 2} of the predictions" if is_patient else scan
    return f"[{name}]({reports[scan]})" if scan in reports else name


def estimate_lines(figures: Figures) -> list[list[object]]:
    """Every figure as cells of a CSV file: label, its name, and its `ESTIMATE_FIELDS`."""
    return [
        [label, name, *(getattr(estimate, field) for field in ESTIMATE_FIELDS)]
        for label, each in {"": figures.overall, **figures.per_class}.items()
        for name, estimate in each.items()
    ]


def _figures_csv(summaries: Mapping[str, Summary]) -> str:
    """One line per figure of each classifier, and of each site."""
    rows: list[list[object]] = []
    for name, summary in summaries.items():
        groups = {"": summary.figures, **{s: part.figures for s, part in summary.sites.items()}}
        for site, figures in groups.items():
            rows += [[name, site, *line] for line in estimate_lines(figures)]
    return as_csv(["classifier", "site", "label", "figure", *ESTIMATE_FIELDS], rows)


def _groups_csv(summary: Summary) -> str:
    """One line per figure of each group, after what divides the scans and the group."""
    rows = [
        [name, value, *line]
        for name, parts in summary.groups.items()
        for value, part in parts.items()
        for line in estimate_lines(part.figures)
    ]
    return as_csv(["by", "group", "label", "figure", *ESTIMATE_FIELDS], rows)


def _confusion_csv(summary: Summary) -> str:
    """Confusion matrix; the first column is the true label."""
    rows = zip(summary.labels, summary.confusion.tolist(), strict=True)
    return as_csv(["true", *summary.labels], ([label, *counts] for label, counts in rows))


def _comparisons_csv(comparisons: Mapping[str, Sequence[Comparison]]) -> str:
    """One line per test, of the classifier against each other one."""
    rows = [
        [other, *(getattr(test, column) for column in _COMPARISON_COLUMNS[1:])]
        for other, tests in comparisons.items()
        for test in tests
    ]
    return as_csv(_COMPARISON_COLUMNS, rows)


def format_estimate(estimate: Estimate) -> str:
    """The figure, its interval in brackets, its counts; or why there is none."""
    if estimate.value is None:
        return f"- ({estimate.note})"
    counts = f" {estimate.hits}/{estimate.total}" if estimate.total is not None else ""
    note = f" [{estimate.note}]" if estimate.note else ""
    return f"{estimate.words}{counts}{note}"


def at_threshold_words(found: AtThreshold) -> str:
    """A classifier's own threshold on the scans of an evaluation, as a sentence."""
    return (
        f"At the classifier's own threshold of {found.threshold:.4f}, chosen on other scans for an "
        f"error rate of at most {found.wished_error:g}: coverage "
        f"{format_estimate(found.coverage)}, error rate {format_estimate(found.error)}."
    )


def format_difference(row: Comparison) -> str:
    """A comparison's estimate, with its interval where the test gives one."""
    if row.low is None or row.high is None:
        return _number(row.estimate)
    return f"{_number(row.estimate)} ({row.low:.3f} to {row.high:.3f})"


def _number(value: float | None) -> str:
    """Four digits after the point; nothing for None."""
    if value is None:
        return ""
    return "< 0.0001" if 0 < value < 0.0001 else f"{value:.4f}"


FILTERS: Final[dict[str, Callable[..., object]]] = {
    "estimate": format_estimate,
    "number": _number,
    "difference": format_difference,
    "figure_name": FIGURE_NAMES.__getitem__,
    "overall": lambda name, figures: figures.overall[name],
    "of_class": lambda label, figures, name: figures.per_class[label][name],
}
"""How templates write figures; the last two choose one by its name, so that `map` can."""

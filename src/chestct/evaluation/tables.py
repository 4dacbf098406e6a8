"""An evaluation as tables: Markdown for people, tidy CSV (one figure per line) for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from chestct.evaluation.calibration import (
    AbstentionThreshold,
    AtThreshold,
    ReliabilityBin,
    RiskPoint,
    abstention_threshold,
    at_threshold,
    coverage_risk,
    reliability_curve,
)
from chestct.evaluation.comparisons import SOUND, Comparison
from chestct.evaluation.intervals import Bootstrap, Estimate, Figures, estimate_figures
from chestct.evaluation.metrics import Confusion, confusion_matrix
from chestct.evaluation.predictions import Predictions, by_site
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report.tables import as_csv, as_markdown_table

FEW_CASES: Final = 10
"""A class with fewer scans than this is pointed out."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is made.

    Attributes:
        name: What the classifier is called in tables.
        bootstrap: How patients are drawn.
        wished_errors: Error rates that an abstention threshold is sought for.
        formats: Endings of the figure files, of "png" and "svg".
        comparisons: Names in `COMPARISONS`, of the tests that other classifiers are compared by.
        promised: Abstention threshold of the classifier, chosen on other scans, or None.
        remarks: Sentences that join the warnings.
    """

    name: str = "classifier"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    wished_errors: tuple[float, ...] = (0.05, 0.1)
    formats: tuple[str, ...] = ("png", "svg")
    comparisons: tuple[str, ...] = SOUND
    promised: AbstentionThreshold | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _SiteSummary:
    """The scans of one site: how many, and their figures."""

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
        cases: Scans per true label.
        confusion: Counts, rows true, columns decisions.
        figures: Every figure with its interval.
        sites: The same per site, empty when no sites are given.
        reliability: Accuracy by confidence.
        coverage_risk: Error rate by share of scans decided on.
        abstention: One threshold per wished error rate, chosen on these very scans.
        warnings: What a reader has to know before trusting the figures.
        at_threshold: What the classifier's own threshold does on these scans, or None.
        others: Classifiers that were compared with, by name.
        comparisons: Tests against each of them.
    """

    labels: tuple[str, ...]
    num_scans: int
    num_patients: int
    cases: dict[str, int]
    confusion: Confusion
    figures: Figures
    sites: dict[str, _SiteSummary]
    reliability: tuple[ReliabilityBin, ...]
    coverage_risk: tuple[RiskPoint, ...]
    abstention: tuple[AbstentionThreshold, ...]
    warnings: tuple[str, ...]
    at_threshold: AtThreshold | None = None
    others: Mapping[str, Summary] = field(default_factory=dict)
    comparisons: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)


def summarise(
    predictions: Predictions,
    settings: EvaluationSettings | None = None,
    *,
    excluded: Mapping[str, str] | None = None,
) -> Summary:
    """Compute everything.

    Args:
        predictions: Of one classifier.
        settings: How; None takes the default.
        excluded: Scans that got no decision, with the reason; they are counted in a warning.
    """
    chosen = settings or EvaluationSettings()
    cases = dict(zip(predictions.labels, predictions.cases.tolist(), strict=True))
    return Summary(
        labels=predictions.labels,
        num_scans=len(predictions),
        num_patients=predictions.num_patients,
        cases=cases,
        confusion=confusion_matrix(
            predictions.truth, predictions.decisions, len(predictions.labels)
        ),
        figures=estimate_figures(predictions, chosen.bootstrap),
        sites={
            site: _SiteSummary(
                len(part), part.num_patients, estimate_figures(part, chosen.bootstrap)
            )
            for site, part in by_site(predictions).items()
        },
        reliability=reliability_curve(predictions),
        coverage_risk=coverage_risk(predictions),
        abstention=tuple(
            abstention_threshold(predictions, wished) for wished in chosen.wished_errors
        ),
        warnings=(*_warnings_of(predictions, excluded or {}), *chosen.remarks),
        at_threshold=at_threshold(predictions, chosen.promised),
    )


def _warnings_of(predictions: Predictions, excluded: Mapping[str, str]) -> list[str]:
    """What a reader has to know: gaps, small classes, dependence, class and site in one."""
    found = []
    if excluded:
        found.append(f"Scans without a decision, left out of the figures: {len(excluded)}.")
    if len(predictions) == 0:
        return [*found, "There are no scans: every figure is undefined."]
    return [
        *found,
        *_small_classes(predictions),
        *_odd_decisions(predictions),
        *_dependent_scans(predictions),
        *_confounded_site(predictions),
    ]


def _small_classes(predictions: Predictions) -> list[str]:
    found = []
    for label, cases in zip(predictions.labels, predictions.cases.tolist(), strict=True):
        if cases == 0:
            found.append(f"No scan is {label}: most of its figures are undefined.")
        elif cases < FEW_CASES:
            found.append(f"Few scans are {label} ({cases}): its figures say little.")
    return found


def _odd_decisions(predictions: Predictions) -> list[str]:
    """One decision for all, and ties."""
    found = []
    called = set(predictions.decisions.tolist())
    if len(called) == 1:
        found.append(f"Every scan was called {predictions.labels[called.pop()]}.")
    highest = predictions.probabilities == predictions.confidences[:, None]
    ties = int((highest.sum(axis=1) > 1).sum())
    if ties:
        found.append(f"Scans with several most probable labels, the first taken: {ties}.")
    return found


def _dependent_scans(predictions: Predictions) -> list[str]:
    if predictions.num_patients == len(predictions):
        return []
    return [
        f"{len(predictions)} scans belong to {predictions.num_patients} patients: Wilson's "
        "intervals are widened, McNemar's and DeLong's tests are too sure."
    ]


def _confounded_site(predictions: Predictions) -> list[str]:
    """Whether the site alone gives the label away."""
    if predictions.sites is None or len(set(predictions.sites)) < 2:
        return []
    pairs = Counter(zip(predictions.sites, predictions.truth.tolist(), strict=True))
    if len(pairs) > len(set(predictions.sites)) or len(np.unique(predictions.truth)) < 2:
        return []
    return [
        "Every site has scans of one label only: class and site are the same variable, and these "
        "figures cannot tell an illness from a scanner."
    ]


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
}
"""What the figures are called in tables, in their order."""

_SITE_FIGURES = ("accuracy", "balanced_accuracy", "macro_auc", "expected_calibration_error")
_COMPARISON_COLUMNS = (
    "other", "test", "figure", "first", "second", "estimate", "low", "high", "statistic",
    "p_value", "note",
)  # fmt: skip


def as_markdown(
    summaries: Mapping[str, Summary], comparisons: Mapping[str, Sequence[Comparison]]
) -> str:
    """All tables; the first summary is the classifier, the others stand beside it.

    Args:
        summaries: By name of the classifier.
        comparisons: Of the first classifier with another, by name of the other.
    """
    name, main = next(iter(summaries.items()))
    figures = {each: summary.figures for each, summary in summaries.items()}
    cases = ", ".join(f"{num} {label}" for label, num in main.cases.items())
    parts = [
        f"# Evaluation of {name}",
        f"{NOT_FOR_CLINICAL_USE}",
        f"{main.num_scans} scans of {main.num_patients} patients: {cases}.",
        "\n".join(f"- {warning}" for warning in main.warnings),
        "## All classes\n\n" + _overall_table(figures),
        "## Each class against the rest\n\n" + _class_table(main.labels, figures),
        "## Confusion matrix (rows: true label, columns: decision)\n\n" + _confusion_table(main),
        _site_table(main),
        _comparison_table(name, comparisons),
        "## Abstaining\n\n" + _at_threshold(main) + _abstention_table(main),
        "Intervals: 95 % unless set otherwise; Wilson for proportions, a bootstrap over patients "
        "within their class for the rest.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def figures_csv(summaries: Mapping[str, Summary]) -> str:
    """One line per figure: classifier, site, label, figure, value, interval, method, counts."""
    fields = ("value", "low", "high", "method", "hits", "total", "note")
    rows: list[list[object]] = []
    for name, summary in summaries.items():
        groups = {"": summary.figures, **{s: part.figures for s, part in summary.sites.items()}}
        for site, figures in groups.items():
            for label, each in {"": figures.overall, **figures.per_class}.items():
                for figure, estimate in each.items():
                    values = [getattr(estimate, field) for field in fields]
                    rows.append([name, site, label, figure, *values])
    return as_csv(["classifier", "site", "label", "figure", *fields], rows)


def confusion_csv(summary: Summary) -> str:
    """Confusion matrix; the first column is the true label."""
    rows = zip(summary.labels, summary.confusion.tolist(), strict=True)
    return as_csv(["true", *summary.labels], ([label, *counts] for label, counts in rows))


def comparisons_csv(comparisons: Mapping[str, Sequence[Comparison]]) -> str:
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
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}{counts}{note}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f}){counts}{note}"


def _overall_table(figures: Mapping[str, Figures]) -> str:
    names = next(iter(figures.values())).overall
    rows = [
        [FIGURE_NAMES[name], *(format_estimate(each.overall[name]) for each in figures.values())]
        for name in names
    ]
    return as_markdown_table(["figure", *figures], rows)


def _class_table(labels: tuple[str, ...], figures: Mapping[str, Figures]) -> str:
    rows = []
    for label in labels:
        for name in next(iter(figures.values())).per_class[label]:
            cells = [format_estimate(each.per_class[label][name]) for each in figures.values()]
            rows.append([label, FIGURE_NAMES[name], *cells])
    return as_markdown_table(["class", "figure", *figures], rows)


def _confusion_table(summary: Summary) -> str:
    rows = zip(summary.labels, summary.confusion.tolist(), strict=True)
    return as_markdown_table(
        ["", *summary.labels], [[label, *map(str, counts)] for label, counts in rows]
    )


def _site_table(summary: Summary) -> str:
    if not summary.sites:
        return ""
    rows = [
        [
            site,
            str(part.num_scans),
            *(format_estimate(part.figures.overall[name]) for name in _SITE_FIGURES),
        ]
        for site, part in summary.sites.items()
    ]
    columns = ["site", "scans", *(FIGURE_NAMES[name] for name in _SITE_FIGURES)]
    return "## Sites\n\n" + as_markdown_table(columns, rows)


def _comparison_table(name: str, comparisons: Mapping[str, Sequence[Comparison]]) -> str:
    rows = [
        [
            other,
            row.test,
            row.figure,
            format_number(row.first),
            format_number(row.second),
            format_difference(row),
            format_number(row.p_value),
            row.note,
        ]
        for other, tests in comparisons.items()
        for row in tests
    ]
    columns = ["other", "test", "figure", name, "other's", "difference", "p", "note"]
    return "## Comparisons\n\n" + as_markdown_table(columns, rows) if rows else ""


def _at_threshold(summary: Summary) -> str:
    """What the classifier's own threshold does here, or nothing where it has none."""
    found = summary.at_threshold
    if found is None:
        return ""
    words = at_threshold_words(found)
    return f"{words}\n\nBelow: thresholds chosen on these very scans.\n\n"


def at_threshold_words(found: AtThreshold) -> str:
    """A classifier's own threshold on the scans of an evaluation, as a sentence."""
    return (
        f"At the classifier's own threshold of {found.threshold:.4f}, chosen on other scans for an "
        f"error rate of at most {found.wished_error:g}: coverage "
        f"{format_estimate(found.coverage)}, error rate {format_estimate(found.error)}."
    )


def _abstention_table(summary: Summary) -> str:
    rows = [
        [
            f"{each.wished_error:g}",
            format_number(each.threshold),
            format_number(each.coverage),
            format_number(each.risk),
            format_number(each.risk_bound),
            each.note,
        ]
        for each in summary.abstention
    ]
    columns = ["wished error", "threshold", "coverage", "error", "upper bound", "note"]
    return as_markdown_table(columns, rows)


def format_difference(row: Comparison) -> str:
    """A comparison's estimate, with its interval where the test gives one."""
    if row.low is None or row.high is None:
        return format_number(row.estimate)
    return f"{format_number(row.estimate)} ({row.low:.3f} to {row.high:.3f})"


def format_number(value: float | None) -> str:
    """Four digits after the point; nothing for None."""
    if value is None:
        return ""
    return "< 0.0001" if 0 < value < 0.0001 else f"{value:.4f}"

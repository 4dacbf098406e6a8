"""An evaluation as tables: Markdown for people, tidy CSV (one figure per line) for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chestct.evaluation.abstaining import AtThreshold
from chestct.evaluation.comparisons import Comparison
from chestct.evaluation.intervals import Estimate, Figures
from chestct.evaluation.summary import Summary
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.text_tables import as_csv, as_markdown_table

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

"""The table of the damaged models: what each part's loss costs, how surely, and by what chance.

Two kinds of chance are in it. Other scans would give other figures: Wilson's interval and
McNemar's test, of the published choice of units. Another choice of units would too: the range over
the random choices, and an interval of their mean that draws both patients and choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chestct.evaluation.comparisons import Comparison, compare
from chestct.evaluation.intervals import (
    Bootstrap,
    Estimate,
    Figures,
    draw_patients,
    estimate_figures,
    percentile_interval,
    why_no_bootstrap,
)
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.tables import FIGURE_NAMES, format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.storage import write_text
from chestct.studies.damage import DamagedPart, DamageResult
from chestct.studies.row_figures import holm
from chestct.text_tables import as_csv, as_markdown_table, p_value_text

UNDAMAGED = "undamaged"
_SHOWN = ("accuracy", "macro_auc", "log_loss")


@dataclass(frozen=True)
class DamageRow:
    """One part in the table.

    Attributes:
        part: What was damaged; the first row is the undamaged classifier.
        figures: With the published choice of units.
        test: McNemar's, undamaged against damaged; None for the undamaged.
        holm: Its p-value after Holm's correction over all parts.
        mean: Mean accuracy over the random choices, with its interval; None without any.
        accuracies: Accuracy with each random choice.
    """

    part: DamagedPart | None
    figures: Figures
    test: Comparison | None = None
    holm: float | None = None
    mean: Estimate | None = None
    accuracies: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The part's, or that nothing is damaged."""
        return self.part.name if self.part else UNDAMAGED


def make_damage_rows(
    result: DamageResult, bootstrap: Bootstrap | None = None
) -> tuple[DamageRow, ...]:
    """The figures of the undamaged classifier and of every part."""
    settings = bootstrap or Bootstrap()
    rows = [_row(result.undamaged, part, settings) for part in result.parts]
    tested = [row.test.p_value if row.test else None for row in rows]
    corrected = holm([1.0 if p is None else p for p in tested])
    first = DamageRow(None, estimate_figures(result.undamaged, settings))
    return (first, *(replace(r, holm=p) for r, p in zip(rows, corrected, strict=True)))


def write_damage(
    result: DamageResult,
    folder: Path,
    *,
    remarks: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> tuple[DamageRow, ...]:
    """Write `table.md` and `table.csv`.

    Raises:
        WriteError: They cannot be written.
    """
    rows = make_damage_rows(result, bootstrap)
    write_text(folder / "table.md", damage_markdown(result, rows, remarks))
    write_text(folder / "table.csv", damage_csv(rows))
    return rows


def damage_markdown(result: DamageResult, rows: Sequence[DamageRow], remarks: Sequence[str]) -> str:
    """The table for people."""
    undamaged = result.undamaged
    left_out = f"Scans without a decision, left out: {len(result.excluded)}."
    said = [*remarks, *([left_out] if result.excluded else [])]
    parts = [
        "# Damaged models",
        NOT_FOR_CLINICAL_USE,
        "\n".join(f"- {remark}" for remark in said),
        f"{len(undamaged)} scans of {undamaged.num_patients} patients. Parts of the network are "
        "set to zero one at a time and nothing is trained again.",
        "## The published choice of units\n\n" + _published_table(rows),
        "## Against the undamaged classifier\n\n" + _test_table(rows),
        _choice_table(rows),
        "Intervals: 95 %; Wilson for accuracy and sensitivity, a bootstrap over patients for the "
        "rest. p: McNemar's exact test, two-sided; p (Holm): after Holm's correction over the "
        "parts. The interval of the mean over choices draws patients and choices of units anew.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def damage_csv(rows: Sequence[DamageRow]) -> str:
    """One line per part and figure; the mean over choices is the figure `mean accuracy`."""
    fields = ("value", "low", "high", "method", "hits", "total", "note")
    lines: list[list[object]] = []
    for row in rows:
        zeroed = row.part.zeroed.total if row.part else 0
        groups = {"": dict(row.figures.overall), **row.figures.per_class}
        if row.mean is not None:
            groups[""]["mean accuracy over choices"] = row.mean
        for label, figures in groups.items():
            for name, estimate in figures.items():
                values = [getattr(estimate, field) for field in fields]
                lines.append([row.name, zeroed, label, name, *values])
        if row.test is not None:
            lines.append([row.name, zeroed, "", "mcnemar p", row.test.p_value, *[None] * 5,
                          row.test.note])  # fmt: skip
            lines.append([row.name, zeroed, "", "mcnemar p (Holm)", row.holm, *[None] * 6])
    return as_csv(["part", "zeroed", "label", "figure", *fields], lines)


def mean_accuracy(
    repeats: Sequence[Predictions], bootstrap: Bootstrap | None = None
) -> Estimate | None:
    """Mean accuracy over choices of units, patients and choices both drawn anew; None of none."""
    if not repeats:
        return None
    settings = bootstrap or Bootstrap()
    is_right = np.stack([each.is_right for each in repeats]).astype(np.float64)
    value = float(is_right.mean())
    why_not = why_no_bootstrap(repeats[0])
    if why_not or len(repeats) == 1:
        return Estimate(value, note=why_not or "no interval: a single choice shows no spread")
    rng = np.random.default_rng([settings.seed, 1])
    means = []
    for weights in draw_patients(repeats[0], settings):
        accuracies = weights @ is_right.T / weights.sum(axis=1, keepdims=True)
        shares = np.full(len(repeats), 1 / len(repeats))
        drawn = rng.multinomial(len(repeats), shares, size=len(weights)) / len(repeats)
        means.append((accuracies * drawn).sum(axis=1))
    low, high, note = percentile_interval(np.concatenate(means), settings.level)
    return Estimate(value, low, high, "bootstrap over patients and choices", note)


def _row(undamaged: Predictions, part: DamagedPart, settings: Bootstrap) -> DamageRow:
    (test,) = compare(undamaged, part.published, "mcnemar")
    return DamageRow(
        part,
        estimate_figures(part.published, settings),
        test=test,
        mean=mean_accuracy(part.repeats, settings),
        accuracies=tuple(float(each.is_right.mean()) for each in part.repeats),
    )


def _published_table(rows: Sequence[DamageRow]) -> str:
    labels = list(rows[0].figures.per_class)
    columns = ["part", "layers", "set to zero", *(FIGURE_NAMES[name] for name in _SHOWN)]
    lines = []
    for row in rows:
        counts = [str(row.part.num_layers), f"{row.part.zeroed.total:,}"] if row.part else ["", "0"]
        figures = [row.figures.overall[name] for name in _SHOWN]
        figures += [row.figures.per_class[label]["sensitivity"] for label in labels]
        lines.append([row.name, *counts, *(format_estimate(each) for each in figures)])
    return as_markdown_table([*columns, *(f"sensitivity {label}" for label in labels)], lines)


def _test_table(rows: Sequence[DamageRow]) -> str:
    lines = [
        [row.name, f"{-(row.test.estimate or 0.0):+.3f}", row.test.note,
         p_value_text(row.test.p_value), p_value_text(row.holm)]
        for row in rows
        if row.test is not None
    ]  # fmt: skip
    header = ["part", "change of accuracy", "discordant scans (first: undamaged)", "p", "p (Holm)"]
    return as_markdown_table(header, lines)


def _choice_table(rows: Sequence[DamageRow]) -> str:
    lines = [
        [row.name, str(len(row.accuracies)), format_estimate(row.mean),
         f"{min(row.accuracies):.3f} to {max(row.accuracies):.3f}",
         f"{row.figures.overall['accuracy'].value or 0.0:.3f}"]
        for row in rows
        if row.mean is not None
    ]  # fmt: skip
    if not lines:
        return ""
    header = ["part", "choices", "mean accuracy", "lowest to highest", "published choice"]
    return "## Random choices of as many units\n\n" + as_markdown_table(header, lines)

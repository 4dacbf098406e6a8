"""The folds of a cross-validation side by side: each one's figures, their mean and spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Final

from chestct.evaluation.metrics import OVERALL
from chestct.evaluation.predictions import Predictions
from chestct.storage import write_text
from chestct.text_tables import as_csv, as_markdown_table

FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss")
"""What is told of each fold; intervals are those of the pooled scans, folds are too small."""


def write_folds(folds: Mapping[str, Predictions], folder: Path) -> None:
    """Write `folds.csv` and `folds.md`: a row per fold, then mean and standard deviation.

    The standard deviation between folds is no interval: their training sets overlap.

    Raises:
        WriteError: They cannot be written.
    """
    header, *rows = fold_rows(folds)
    write_text(folder / "folds.csv", as_csv(header, rows))
    write_text(folder / "folds.md", as_markdown_table(header, rows) + "\n")


def fold_rows(folds: Mapping[str, Predictions]) -> list[list[str]]:
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

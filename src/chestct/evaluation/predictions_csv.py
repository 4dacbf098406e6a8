"""Predictions as a CSV file: one row per scan, one column of probabilities per label."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.files import write_text
from chestct.lookup import unknown_name_message

PROBABILITY_PREFIX: Final = "probability_"
"""What the columns with probabilities are called, before the label."""


def write_predictions(predictions: Predictions, path: Path) -> Path:
    """Write one CSV row per scan: scan, patient, site, label, one probability per label.

    Probabilities keep every digit: reading the file gives the same numbers.

    Raises:
        WriteError: The file could not be written.
    """
    columns = ["scan", "patient", *(["site"] if predictions.sites else []), "label"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(PROBABILITY_PREFIX + label for label in predictions.labels)])
    for row, scan in enumerate(predictions.scans):
        site = [predictions.sites[row]] if predictions.sites else []
        label = predictions.labels[predictions.truth[row]]
        numbers = [repr(float(p)) for p in predictions.probabilities[row]]
        writer.writerow([scan, predictions.patients[row], *site, label, *numbers])
    return write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read a CSV as `write_predictions` makes it; the label order is that of its columns.

    Raises:
        PredictionsError: The file is missing or a line of it does not fit.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path.name} could not be read as a CSV of predictions: {error}."
        raise PredictionsError(msg) from error
    labels = tuple(
        name.removeprefix(PROBABILITY_PREFIX)
        for name in header
        if name.startswith(PROBABILITY_PREFIX)
    )
    _check_header(path, header, labels)
    try:
        return Predictions(
            scans=tuple(row["scan"] or "" for row in rows),
            patients=tuple(row["patient"] or "" for row in rows),
            truth=_column(path, rows, lambda row: _label_index(row, labels), np.int64),
            probabilities=_column(
                path, rows, lambda row: _numbers(row, labels), np.float64
            ).reshape(len(rows), len(labels)),
            labels=labels,
            sites=tuple(row["site"] or "" for row in rows) if "site" in header else None,
        )
    except PredictionsError as error:
        raise PredictionsError(f"{path.name}: {error}") from error


def _check_header(path: Path, header: list[str], labels: tuple[str, ...]) -> None:
    missing = [name for name in ("scan", "patient", "label") if name not in header]
    if len(labels) < 2:
        missing.append(f"at least two columns {PROBABILITY_PREFIX}LABEL")
    if missing:
        msg = (
            f"{path.name} has no {' and no '.join(missing)}. Its first line must read "
            f"scan,patient,label,{PROBABILITY_PREFIX}LABEL1,{PROBABILITY_PREFIX}LABEL2,..."
        )
        raise PredictionsError(msg)


Row = Mapping[str, str | None]


def _column(
    path: Path, rows: list[dict[str, str]], read: Callable[[Row], object], dtype: type
) -> np.ndarray:
    """One value or list per row; errors name the line of the file."""
    values = []
    for number, row in enumerate(rows, start=1):
        try:
            values.append(read(row))
        except ValueError as error:
            raise PredictionsError(f"row {number} (scan '{row['scan']}'): {error}") from error
    return np.array(values, dtype=dtype)


def _label_index(row: Row, labels: tuple[str, ...]) -> int:
    label = row["label"] or ""
    if label not in labels:
        raise ValueError(unknown_name_message(label, labels, kind="label"))
    return labels.index(label)


def _numbers(row: Row, labels: tuple[str, ...]) -> list[float]:
    return [_number(row, PROBABILITY_PREFIX + label) for label in labels]


def _number(row: Row, column: str) -> float:
    try:
        return float(row[column] or "")
    except ValueError:
        msg = f"{column} is '{row[column] or ''}', expected a number from 0 to 1."
        raise ValueError(msg) from None

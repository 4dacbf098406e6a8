"""What a classifier said of labelled scans: the one input of everything in this package.

A row is one scan. Its patient is kept because scans of one patient are not independent: every
bootstrap draws patients, never scans.

From the slices of a patient to the patient there are four ways, so that slice-level and scan-level
classifiers can stand in one table, with the same statistics. With q the probability that a slice is
not of the negative class (where none is named: of the last one, which `assumption` says):

- mean: the mean of the slices' probabilities.
- max: those of the slice with the highest q. One wrong slice decides.
- share: the share of slices with q of at least a threshold. A healthy chest has such slices too, so
  a patient is called ill from a cut on, both chosen on validation patients; below and above the cut
  the share is stretched to 0 to 0.5 and 0.5 to 1.
- attention: the mean weighted by exp(sharpness x q), a softmax over the patient's slices with one
  number, chosen on validation patients; 0 is the mean, a large one the maximum.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from chestct.card import SliceCard, VoteSettings
from chestct.errors import ChestCTError
from chestct.labels import FINDING_PREFIX, LabelSet, parse_finding, yes_no
from chestct.lookup import look_up, unknown_name_message
from chestct.report import as_csv, read_csv
from chestct.result import PatientAnswer, SliceAnswer
from chestct.storage import write_text

_SUM_TOLERANCE: Final = 1e-3
"""How far the probabilities of a row may be from one; rows off by less are divided by their sum."""
_UNNAMED_SITE: Final = "not given"
"""Stands for an empty site."""

_EXACT = 1e-9


class PredictionsError(ChestCTError):
    """Predictions are impossible or cannot be compared; the message names the row."""


class _OnScans:
    """What predictions of classes and of findings have in common."""

    scans: tuple[str, ...]
    patients: tuple[str, ...]
    sites: tuple[str, ...] | None
    groups: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.scans)

    @property
    def num_patients(self) -> int:
        """How many patients the scans belong to."""
        return len(set(self.patients))

    def _names_of(self, indices: Sequence[int]) -> dict[str, Any]:
        """What some rows are called, and what they belong to."""
        sites = self.sites
        return {
            "scans": tuple(self.scans[i] for i in indices),
            "patients": tuple(self.patients[i] for i in indices),
            "sites": None if sites is None else tuple(sites[i] for i in indices),
            "groups": {n: tuple(values[i] for i in indices) for n, values in self.groups.items()},
        }


@dataclass(frozen=True, eq=False)
class Predictions(_OnScans):
    """Probabilities and true labels of scans, checked when made; the arrays are read-only copies.

    Attributes:
        scans: Name of each scan, each once.
        patients: Patient of each scan; scans of one patient carry the same name.
        truth: Index of the true label of each scan, into `labels`.
        probabilities: One row per scan, one column per label, each row adding up to one.
        labels: Class names in the classifier's order, at least two.
        sites: Where each scan comes from, or None.
        called: Index of the decision per scan, where that is not the most probable label: whether a
            finding is there is decided by its threshold.
        groups: Further ways to divide the scans, such as age bands, by name: a value per scan.

    Raises:
        PredictionsError: Something does not fit; the message names the row and the remedy.
    """

    scans: tuple[str, ...]
    patients: tuple[str, ...]
    truth: Int[np.ndarray, " scan"]
    probabilities: Float[np.ndarray, "scan class"]
    labels: tuple[str, ...]
    sites: tuple[str, ...] | None = None
    called: Int64[np.ndarray, " scan"] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        _check_names(self)
        truth, probabilities = _checked_arrays(self)
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "probabilities", probabilities)
        if self.sites is not None:
            named = tuple(site.strip() or _UNNAMED_SITE for site in self.sites)
            object.__setattr__(self, "sites", named)

    @property
    def decisions(self) -> Int64[np.ndarray, " scan"]:
        """Index of the most probable label per scan; the first of them when several tie."""
        if self.called is not None:
            return self.called
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def confidences(self) -> Float64[np.ndarray, " scan"]:
        """Largest probability per scan."""
        return np.asarray(self.probabilities.max(axis=1), dtype=np.float64)

    @property
    def is_right(self) -> Bool[np.ndarray, " scan"]:
        """Whether the decision is the true label, per scan."""
        return np.asarray(self.decisions == self.truth)

    @property
    def wrong_rows(self) -> list[int]:
        """Rows whose decision is not the true label, the surest first."""
        wrong = np.flatnonzero(~self.is_right)
        rows: list[int] = wrong[np.argsort(-self.confidences[wrong], kind="stable")].tolist()
        return rows

    @property
    def cases(self) -> Int64[np.ndarray, " class"]:
        """Number of scans per true label."""
        return np.bincount(self.truth, minlength=len(self.labels)).astype(np.int64)

    def choose(self, rows: Sequence[int] | Int[np.ndarray, " chosen"]) -> Predictions:
        """The given rows, in the given order."""
        indices = [int(row) for row in rows]
        return replace(
            self,
            **self._names_of(indices),
            truth=self.truth[indices],
            probabilities=self.probabilities[indices],
            called=None if self.called is None else self.called[indices],
        )

    def with_probabilities(self, probabilities: Float[np.ndarray, "scan class"]) -> Predictions:
        """The same scans with other probabilities, as after temperature scaling."""
        return replace(self, probabilities=probabilities)


@dataclass(frozen=True, eq=False)
class FindingPredictions(_OnScans):
    """Probabilities, thresholds and truth of several findings per scan.

    Attributes:
        scans: Name of each scan, each once.
        patients: Patient of each scan.
        truth: 1 where a scan has a finding, 0 where not, NaN where it is not known.
        probabilities: Of each finding by itself, from 0 to 1.
        thresholds: From which probability on it was called present; a row per scan, as folds have
            thresholds of their own.
        labels: Names of the findings.
        sites: Where each scan comes from, or None.
        groups: Further ways to divide the scans, by name: a value per scan.

    Raises:
        PredictionsError: Something does not fit; the message names the row and the remedy.
    """

    scans: tuple[str, ...]
    patients: tuple[str, ...]
    truth: Float[np.ndarray, "scan finding"]
    probabilities: Float[np.ndarray, "scan finding"]
    thresholds: Float[np.ndarray, "scan finding"]
    labels: tuple[str, ...]
    sites: tuple[str, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        _check_names(self)
        wanted = (len(self.scans), len(self.labels))
        for name in ("truth", "probabilities", "thresholds"):
            values = getattr(self, name)
            is_right = values.shape == wanted and ((values >= 0) & (values <= 1))
            is_right = is_right | np.isnan(values) if name == "truth" else is_right
            if not np.all(is_right):
                msg = f"The {name} are not {wanted[0]} rows of {wanted[1]} numbers from 0 to 1 each"
                raise PredictionsError(f"{msg}, one per finding. Write the file anew.")

    def choose(self, rows: Sequence[int] | Int[np.ndarray, " chosen"]) -> FindingPredictions:
        """The given rows, in the given order."""
        indices = [int(row) for row in rows]
        return replace(
            self,
            **self._names_of(indices),
            truth=self.truth[indices],
            probabilities=self.probabilities[indices],
            thresholds=self.thresholds[indices],
        )

    @property
    def wrong_pairs(self) -> list[tuple[int, int]]:
        """Rows and findings that are judged wrongly, the farthest from their threshold first."""
        beyond = self.probabilities - self.thresholds
        is_wrong = self.is_known & ((beyond >= 0) != (self.truth == 1))
        pairs = [(int(row), int(column)) for row, column in np.argwhere(is_wrong)]
        return sorted(pairs, key=lambda pair: -abs(float(beyond[pair])))

    @property
    def is_known(self) -> Bool[np.ndarray, "scan finding"]:
        """Of which scans and findings the truth is known."""
        return np.asarray(~np.isnan(self.truth))

    def of(self, index: int) -> Predictions:
        """The scans of which one finding is known, as predictions of two classes: without, with."""
        rows, name = np.flatnonzero(self.is_known[:, index]), self.labels[index]
        shares = self.probabilities[rows, index].astype(np.float64)
        return Predictions(
            scans=tuple(self.scans[row] for row in rows),
            patients=tuple(self.patients[row] for row in rows),
            truth=self.truth[rows, index].astype(np.int64),
            probabilities=np.stack([1 - shares, shares], axis=1),
            labels=(f"no {name}", name),
            called=(shares >= self.thresholds[rows, index]).astype(np.int64),
        )

    def pairs(self) -> Predictions:
        """Every known pair of scan and finding as if it were a scan, for what all have in common.

        Raises:
            PredictionsError: Nothing is known.
        """
        rows, columns = np.nonzero(self.is_known)
        shares = self.probabilities[rows, columns].astype(np.float64)
        return Predictions(
            scans=tuple(
                f"{self.scans[i]}, {self.labels[j]}" for i, j in zip(rows, columns, strict=True)
            ),
            patients=tuple(self.patients[row] for row in rows),
            truth=self.truth[rows, columns].astype(np.int64),
            probabilities=np.stack([1 - shares, shares], axis=1),
            labels=("absent", "present"),
        )


AnyPredictions = Predictions | FindingPredictions


def align(first: Predictions, second: Predictions) -> Predictions:
    """Put the second classifier's rows in the order of the first's.

    Raises:
        PredictionsError: They are not about the same scans, labels and truth.
    """
    if first.labels != second.labels:
        raise PredictionsError(
            f"The two classifiers have the labels {', '.join(first.labels)} and "
            f"{', '.join(second.labels)}. Compare classifiers of the same labels in one order."
        )
    places = {scan: row for row, scan in enumerate(second.scans)}
    odd = sorted(set(first.scans) ^ set(second.scans))
    if odd:
        which = "first" if odd[0] in set(first.scans) else "second"
        raise PredictionsError(
            f"Scan '{odd[0]}' ({len(odd)} in all) was judged by one classifier only, the {which}; "
            f"{len(first)} scans stand against {len(second)}. Compare them on the same scans: "
            "evaluate both on one manifest, or leave the others out of both files."
        )
    aligned = second.choose([places[scan] for scan in first.scans])
    for row in np.flatnonzero(aligned.truth != first.truth):
        raise PredictionsError(
            f"Scan '{first.scans[row]}' is {first.labels[first.truth[row]]} in one file and "
            f"{first.labels[aligned.truth[row]]} in the other. Evaluate both on one manifest."
        )
    return aligned


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
        msg = f"The labels are {labels}. Expected at least two, each once, none empty."
        raise PredictionsError(msg)


def _check_names(predictions: AnyPredictions) -> None:
    """Lengths, and that every scan is named once and has a patient."""
    num = len(predictions.scans)
    names = ("patients", "truth", "probabilities", "sites")
    columns = {name: getattr(predictions, name) for name in names}
    for name, column in {**columns, **predictions.groups}.items():
        if column is not None and len(column) != num:
            msg = f"There are {num} scans and {len(column)} {name}. Expected one per scan."
            raise PredictionsError(msg)
    for row, (scan, patient) in enumerate(
        zip(predictions.scans, predictions.patients, strict=True), start=1
    ):
        if not scan.strip() or not patient.strip():
            missing = "patient" if scan.strip() else "scan name"
            msg = f"row {row} has no {missing}. Fill it in: patients keep the intervals honest."
            raise PredictionsError(msg)
    name, times = Counter(predictions.scans).most_common(1)[0] if num else ("", 0)
    if times > 1:
        rows = [str(i + 1) for i, scan in enumerate(predictions.scans) if scan == name]
        msg = f"Scan '{name}' stands in rows {', '.join(rows)}. Each scan counts once: keep one."
        raise PredictionsError(msg)


def _checked_arrays(
    predictions: Predictions,
) -> tuple[Int64[np.ndarray, " scan"], Float64[np.ndarray, "scan class"]]:
    """Read-only copies of truth and probabilities, rows adding up to one."""
    truth = np.array(predictions.truth, dtype=np.int64)
    probabilities = np.array(predictions.probabilities, dtype=np.float64)
    num_labels = len(predictions.labels)
    if probabilities.shape != (len(predictions.scans), num_labels):
        msg = f"The probabilities have shape {probabilities.shape}, expected "
        msg += f"({len(predictions.scans)}, {num_labels}): one row per scan, one column per label."
        raise PredictionsError(msg)
    unknown = (truth < 0) | (truth >= num_labels)
    _refuse(predictions, unknown, f"its true label index is not in 0..{num_labels - 1}.")
    inside = (probabilities >= 0) & (probabilities <= 1 + _EXACT)
    outside = np.any(~inside, axis=1)
    _refuse(predictions, outside, "its probabilities are not all numbers from 0 to 1.")
    sums = probabilities.sum(axis=1)
    _refuse(predictions, np.abs(sums - 1) > _SUM_TOLERANCE, "its probabilities do not add up to 1.")
    inexact = np.abs(sums - 1) > _EXACT
    probabilities[inexact] /= sums[inexact, None]
    truth.flags.writeable = probabilities.flags.writeable = False
    return truth, probabilities


def _refuse(predictions: Predictions, is_bad: Bool[np.ndarray, " scan"], why: str) -> None:
    rows = np.flatnonzero(is_bad)
    if rows.size:
        first = int(rows[0])
        values = ", ".join(f"{p:.4g}" for p in np.ravel(predictions.probabilities[first]))
        raise PredictionsError(
            f"row {first + 1} (scan '{predictions.scans[first]}', true index "
            f"{int(predictions.truth[first])}, probabilities {values}): {why} "
            f"{rows.size} row(s) in all; correct them or leave them out."
        )


_PROBABILITY_PREFIX: Final = "probability_"
"""What the columns with probabilities are called, before the label."""
_THRESHOLD_PREFIX: Final = "threshold_"
"""The same of the thresholds of findings."""


def write_predictions(predictions: AnyPredictions, path: Path) -> Path:
    """Write one CSV row per scan: scan, patient, site, label, one probability per label.

    Of findings truth, probability and threshold of each. Probabilities keep every digit: reading
    the file gives the same numbers.

    Raises:
        WriteError: The file could not be written.
    """
    labels, are_findings = predictions.labels, isinstance(predictions, FindingPredictions)
    prefixes = (_PROBABILITY_PREFIX, _THRESHOLD_PREFIX)[: 1 + are_findings]
    truths = [FINDING_PREFIX + label for label in labels] if are_findings else ["label"]
    header = ["scan", "patient", *(["site"] if predictions.sites else []), *truths]
    header += [prefix + label for prefix in prefixes for label in labels]
    lines = []
    for row, scan in enumerate(predictions.scans):
        cells = [scan, predictions.patients[row]]
        cells += [predictions.sites[row]] if predictions.sites else []
        numbers = predictions.probabilities[row]
        if isinstance(predictions, FindingPredictions):
            known = predictions.truth[row]
            cells += [yes_no(None if np.isnan(each) else bool(each)) for each in known]
            numbers = np.concatenate([numbers, predictions.thresholds[row]])
        else:
            cells.append(labels[predictions.truth[row]])
        lines.append([*cells, *(repr(float(number)) for number in numbers)])
    return write_text(path, as_csv(header, lines))


def read_any_predictions(path: Path) -> AnyPredictions:
    """Read a CSV as `write_predictions` makes it, of classes or of findings.

    Raises:
        PredictionsError: The file is missing or a line of it does not fit.
    """
    header, rows = _read_table(path)
    labels = _labels_in(header)
    if "label" in header or not all(f"{_THRESHOLD_PREFIX}{each}" in header for each in labels):
        return read_predictions(path)
    try:
        return FindingPredictions(
            scans=tuple(row["scan"] or "" for row in rows),
            patients=tuple(row["patient"] or "" for row in rows),
            truth=np.array([_truths(path, *each, labels) for each in enumerate(rows, start=2)]),
            probabilities=_column(rows, lambda row: _numbers(row, labels), np.float64),
            thresholds=_column(
                rows, lambda row: _numbers(row, labels, _THRESHOLD_PREFIX), np.float64
            ),
            labels=labels,
            sites=tuple(row["site"] or "" for row in rows) if "site" in header else None,
        )
    except KeyError as error:
        raise PredictionsError(f"{path.name} has no column {error}. Write it anew.") from error


def _truths(path: Path, number: int, row: _Row, labels: tuple[str, ...]) -> list[float]:
    try:
        known = [parse_finding(row[FINDING_PREFIX + label] or "") for label in labels]
    except ValueError as error:
        raise PredictionsError(f"{path.name}, row {number}: {error}") from None
    return [np.nan if is_there is None else float(is_there) for is_there in known]


def _read_table(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and the cells of each row by them."""
    try:
        header, *lines = read_csv(path, strict=False) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path.name} could not be read as a CSV of predictions: {error}."
        raise PredictionsError(msg) from error
    return header, [
        dict(zip(header, [*cells, *[""] * len(header)], strict=False)) for cells in lines if cells
    ]


def _labels_in(header: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        name.removeprefix(_PROBABILITY_PREFIX)
        for name in header
        if name.startswith(_PROBABILITY_PREFIX)
    )


def read_predictions(path: Path) -> Predictions:
    """Read a CSV as `write_predictions` makes it; the label order is that of its columns.

    Raises:
        PredictionsError: The file is missing, a line of it does not fit, or it is of findings.
    """
    header, rows = _read_table(path)
    labels = _labels_in(header)
    _check_header(path, header, labels)
    try:
        return Predictions(
            scans=tuple(row["scan"] for row in rows),
            patients=tuple(row["patient"] for row in rows),
            truth=_column(rows, lambda row: _label_index(row, labels), np.int64),
            probabilities=_column(rows, lambda row: _numbers(row, labels), np.float64).reshape(
                len(rows), len(labels)
            ),
            labels=labels,
            sites=tuple(row["site"] for row in rows) if "site" in header else None,
        )
    except PredictionsError as error:
        raise PredictionsError(f"{path.name}: {error}") from error


def _check_header(path: Path, header: list[str], labels: tuple[str, ...]) -> None:
    missing = [name for name in ("scan", "patient", "label") if name not in header]
    if len(labels) < 2:
        missing.append(f"at least two columns {_PROBABILITY_PREFIX}LABEL")
    if missing:
        raise PredictionsError(
            f"{path.name} has no {' and no '.join(missing)}. Its first line must read "
            f"scan,patient,label,{_PROBABILITY_PREFIX}LABEL1,{_PROBABILITY_PREFIX}LABEL2,..."
        )


_Row = Mapping[str, str]


def _column(rows: list[dict[str, str]], read: Callable[[_Row], object], dtype: type) -> np.ndarray:
    """One value or list per row; errors name the line of the file."""
    values = []
    for number, row in enumerate(rows, start=1):
        try:
            values.append(read(row))
        except ValueError as error:
            raise PredictionsError(f"row {number} (scan '{row['scan']}'): {error}") from error
    return np.array(values, dtype=dtype)


def _label_index(row: _Row, labels: tuple[str, ...]) -> int:
    if row["label"] not in labels:
        raise ValueError(unknown_name_message(row["label"], labels, kind="label"))
    return labels.index(row["label"])


def _numbers(row: _Row, labels: tuple[str, ...], prefix: str = _PROBABILITY_PREFIX) -> list[float]:
    found = []
    for column in (prefix + label for label in labels):
        try:
            found.append(float(row[column]))
        except ValueError:
            msg = f"{column} is '{row[column]}', expected a number from 0 to 1."
            raise ValueError(msg) from None
    return found


_THRESHOLDS: Final = (0.3, 0.5, 0.7, 0.9)
_CUTS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
_SHARPNESSES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""What `fit_votes` chooses from."""

_FLOOR: Final = 1e-3
"""No patient is certain: keeps one slice from making a log-loss infinite."""

_Shares = Float64[np.ndarray, "slice class"]
_Pooled = Float64[np.ndarray, " class"]


def vote(
    slices: Predictions,
    method: str,
    settings: VoteSettings | None = None,
    patient_labels: Mapping[str, str] | None = None,
    negative: str = "",
) -> Predictions:
    """Turn predictions of slices into predictions of patients.

    Args:
        slices: One row per slice.
        method: A name in `VOTES`.
        settings: The numbers behind the method.
        patient_labels: Patient to the class of the whole patient; without it all slices of a
            patient must have the same label.
        negative: The class that means that nothing was found; empty: what plain names say of it,
            or else the last one.

    Returns:
        One row per patient, in the order in which they first come; a row's scan is its patient.

    Raises:
        UnknownNameError: There is no such method.
        PredictionsError: A patient's class is not known.
    """
    rows = _rows_by_patient(slices.patients)
    given = (slices.labels, method, settings, negative)
    pooled = _pooled(slices.probabilities, rows, *given)
    return Predictions(
        scans=tuple(rows),
        patients=tuple(rows),
        truth=np.array([_truth(slices, *each, patient_labels) for each in rows.items()]),
        probabilities=pooled,
        labels=slices.labels,
        # Where each patient's first slice comes from.
        sites=slices.sites and tuple(slices.sites[each[0]] for each in rows.values()),
    )


def _pooled(
    shares: _Shares,
    rows: Mapping[str, list[int]],
    labels: tuple[str, ...],
    method: str,
    settings: VoteSettings | None,
    negative: str,
) -> Float64[np.ndarray, "patient class"]:
    """What the slices of each patient say of the patient.

    Raises:
        UnknownNameError: There is no such method.
    """
    pool = look_up(VOTES, method, kind="vote")
    chosen, background = settings or VoteSettings(), _background_of(labels, negative)
    pooled = [pool(shares[each], background, chosen) for each in rows.values()]
    return np.array(pooled).reshape(len(rows), len(labels))


def answers_on_patients(
    slices: Sequence[SliceAnswer], method: str, card: SliceCard
) -> list[PatientAnswer]:
    """What is said of those patients who are known and have a slice with an answer.

    The card is that of the classifier that gave the answers, with the numbers behind the method.
    One answer per patient, in the order in which they first come.

    Raises:
        UnknownNameError: There is no such method in `VOTES`.
    """
    known = [each for each in slices if each.patient and not each.failure]
    rows = _rows_by_patient([each.patient for each in known])
    shares = np.array([[*each.probabilities.values()] for each in known], dtype=np.float64)
    shares = shares.reshape(len(known), len(card.labels))
    given = (card.labels, method, card.votes, card.label_set.negative)
    pooled = _pooled(shares, rows, *given).tolist()
    failed = Counter(each.patient for each in slices if each.failure)
    return [
        PatientAnswer(patient, dict(zip(card.labels, said, strict=True)), len(own), failed[patient])
        for (patient, own), said in zip(rows.items(), pooled, strict=True)
    ]


def fit_votes(
    validation: Predictions,
    patient_labels: Mapping[str, str] | None = None,
    negative: str = "",
) -> VoteSettings:
    """Choose the numbers behind share and attention on slices of validation patients.

    Each is the one of its few candidates with the lowest log-loss over patients, the first of
    several; with so few numbers to choose from little can be learned by heart.

    Raises:
        PredictionsError: A patient's class is not known.
    """
    best = VoteSettings()
    pairs = product(_THRESHOLDS, _CUTS)
    share = [best.model_copy(update={"slice_threshold": t, "share_cut": c}) for t, c in pairs]
    best = min(share, key=lambda s: _loss(vote(validation, "share", s, patient_labels, negative)))
    attention = [best.model_copy(update={"sharpness": each}) for each in _SHARPNESSES]
    return min(
        attention,
        key=lambda s: _loss(vote(validation, "attention", s, patient_labels, negative)),
    )


def one_per_patient(scans: Predictions) -> Predictions:
    """A scan-level classifier's predictions by patient, to stand beside votes.

    Raises:
        PredictionsError: A patient has several scans.
    """
    if scans.num_patients < len(scans):
        twice = next(p for p, rows in _rows_by_patient(scans.patients).items() if len(rows) > 1)
        row = scans.patients.index(twice) + 1
        raise PredictionsError(
            f"The patient of row {row} has several scans ({scans.num_patients} patients, "
            f"{len(scans)} scans), and slices are voted on by patient. Keep one scan of each."
        )
    return replace(scans, scans=scans.patients)


def _rows_by_patient(patients: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each patient, patients in the order in which they first come."""
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    return rows


def assumption(labels: tuple[str, ...], negative: str) -> str:
    """What the votes take for granted where no class is the negative one; empty where one is."""
    if _negative_of(labels, negative):
        return ""
    return (
        f"None of the classes {', '.join(labels)} is named as the negative one: the votes max, "
        f"share and attention take the last, {labels[-1]}, for it. Mark one in the labels with "
        "'negative: true'."
    )


def _background_of(labels: tuple[str, ...], negative: str) -> int:
    """Index of the class that means that nothing was found: the negative one, or the last."""
    found = _negative_of(labels, negative)
    return labels.index(found) if found else len(labels) - 1


def _negative_of(labels: tuple[str, ...], negative: str) -> str:
    return negative or LabelSet.of_names(labels).negative


def _mean(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    return np.asarray(shares.mean(axis=0))


def _max(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    return np.asarray(shares[int(shares[:, background].argmin())])


def _share(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    illness = 1 - shares[:, background]
    counts = illness >= settings.slice_threshold
    share, cut = float(counts.mean()), settings.share_cut
    is_below = share < cut
    ill = 0.5 * share / cut if is_below else 0.5 + 0.5 * (share - cut) / (1 - cut)
    ill = min(max(ill, _FLOOR), 1 - _FLOOR)
    # Which illness it is, is said by the slices that counted.
    kinds = (shares[counts] if counts.any() else shares).mean(axis=0)
    kinds[background] = 0
    total = float(kinds.sum())
    others = len(kinds) - 1
    pooled = ill * (kinds / total if total > 0 else np.full(len(kinds), 1 / others))
    pooled[background] = 1 - ill
    return np.asarray(pooled)


def _attention(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    scores = settings.sharpness * (1 - shares[:, background])
    weights = np.exp(scores - scores.max())
    return np.asarray((weights / weights.sum()) @ shares)


VOTES: Final[dict[str, Callable[[_Shares, int, VoteSettings], _Pooled]]] = {
    "mean": _mean,
    "max": _max,
    "share": _share,
    "attention": _attention,
}
"""Vote name to a function of a patient's slices, the background's index and the settings."""


def _truth(
    slices: Predictions, patient: str, rows: list[int], patient_labels: Mapping[str, str] | None
) -> int:
    if patient_labels is not None and patient in patient_labels:
        label = patient_labels[patient]
        if label in slices.labels:
            return slices.labels.index(label)
        msg = f"The patient of row {rows[0] + 1} is '{label}', none of {', '.join(slices.labels)}."
        raise PredictionsError(f"{msg} Correct the column 'patient_label'.")
    found = {int(slices.truth[row]) for row in rows}
    if len(found) > 1:
        named = " and ".join(sorted(slices.labels[index] for index in found))
        raise PredictionsError(
            f"The patient of row {rows[0] + 1} has slices labelled {named}, and nothing says what "
            "the patient is. Add the column 'patient_label' with the class of the whole patient."
        )
    return found.pop()


def _loss(patients: Predictions) -> float:
    """Mean negative log-probability of the truth, with a floor."""
    of_truth = patients.probabilities[np.arange(len(patients)), patients.truth]
    return float(-np.log(np.maximum(of_truth, _FLOOR)).mean())

"""Which slices of a scan show infection, as radiologists marked them.

COVID-CT-MD has them as `Slice-level-labels.npy` (case, slice) of 0 and 1, filled up to the longest
scan, with an `Index.csv` that says which case is whose; or as one table per scan. Slices are
counted by ascending SliceLocation, from the feet to the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from chestct.datasets.found import read_table
from chestct.datasets.manifest import ManifestError

MAX_BYTES: Final = 2**28

_INDEX: Final = ("label index", "index")
_PATIENT: Final = ("folder/id", "patient id", "patient", "folder", "id", "subject-id")

SliceLabels = Bool[np.ndarray, " slice"]


def read_slice_labels(labels: Path, index: Path) -> dict[str, SliceLabels]:
    """Infection by slice, by patient.

    Args:
        labels: `Slice-level-labels.npy`.
        index: `Index.csv`. Its numbers are rows of the other file, from 0; where they reach
            beyond it (the published ones skip a number that the rows do not) their order counts.

    Returns:
        Patient to one truth value per slice, from the feet; longer than the scan by zeros.

    Raises:
        ManifestError: A file cannot be read or they do not fit each other.
    """
    values = _read_array(labels)
    numbered = _read_index(index)
    if max(number for number, _ in numbered) < len(values):
        return {patient: values[number] for number, patient in numbered}
    if len(numbered) != len(values):
        msg = (
            f"{index.name} lists {len(numbered)} patients and {labels.name} holds {len(values)}. "
            "Use the two files of one release."
        )
        raise ManifestError(msg)
    return {patient: values[place] for place, (_, patient) in enumerate(numbered)}


def read_slice_table(path: Path) -> SliceLabels:
    """One scan's infection by slice, of a table with the columns slice_by_location and infected.

    Raises:
        ManifestError: It is no such table.
    """
    lines = read_table(path)
    header = [name.lower() for name in lines[0]] if lines else []
    if not {"slice_by_location", "infected"} <= set(header):
        msg = f"{path} is no table of slice labels: expected the columns slice_by_location and"
        raise ManifestError(f"{msg} infected.")
    place, mark = header.index("slice_by_location"), header.index("infected")
    try:
        found = {int(cells[place]): {"0": False, "1": True}[cells[mark]] for cells in lines[1:]}
        marks = [found[number] for number in range(len(lines) - 1)]
    except (ValueError, KeyError, IndexError) as error:
        msg = f"{path.name}: expected slices 0, 1, 2, ... and infected 0 or 1 ({error})."
        raise ManifestError(msg) from error
    return np.array(marks, dtype=bool)


def cut_to_scan(labels: SliceLabels, num_slices: int, scan: str) -> Bool[np.ndarray, " kept"]:
    """The labels of a scan's own slices.

    Raises:
        ManifestError: There are fewer than the scan has, or infection where it has no slice.
    """
    if len(labels) < num_slices or labels[num_slices:].any():
        marked = int(np.flatnonzero(labels)[-1]) + 1 if labels.any() else 0
        msg = (
            f"{scan} has {num_slices} slices; its labels are for {len(labels)}, infection marked "
            f"up to slice {marked}. They belong to another scan, or slices are missing: copy the "
            "scan again, or leave it out."
        )
        raise ManifestError(msg)
    return labels[:num_slices]


def find_labels(known: Mapping[str, SliceLabels], *names: str) -> SliceLabels | None:
    """The labels of the first of a scan's names that is known, upper and lower case alike."""
    by_name = {name.lower(): each for name, each in known.items()}
    return next((by_name[n.lower()] for n in names if n.lower() in by_name), None)


def _read_array(path: Path) -> Bool[np.ndarray, "case slice"]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ManifestError(f"{path.name} is larger than {MAX_BYTES} bytes: not slice labels.")
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"The slice labels {path} cannot be read ({error}). Expected a .npy file of numbers."
        raise ManifestError(msg) from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "buif":
        msg = f"{path.name} holds no table of numbers. Expected (case, slice), 0 or 1 each."
        raise ManifestError(msg)
    if not np.isin(values, (0, 1)).all():
        raise ManifestError(f"{path.name} holds other values than 0 and 1.")
    return values.astype(bool)


def _read_index(path: Path) -> list[tuple[int, str]]:
    """Numbers and patients, in the order of the numbers."""
    lines = read_table(path)
    header = [name.lower() for name in lines[0]] if lines else []
    number = next((header.index(name) for name in _INDEX if name in header), None)
    patient = next((header.index(name) for name in _PATIENT if name in header), None)
    if number is None or patient is None:
        msg = (
            f"{path} is no index of slice labels: expected a column with the patient "
            f"({', '.join(_PATIENT)}) and one with the number ({', '.join(_INDEX)})."
        )
        raise ManifestError(msg)
    try:
        numbered = sorted((int(cells[number]), cells[patient]) for cells in lines[1:])
    except (ValueError, IndexError) as error:
        msg = f"{path.name}: a line has no whole number or no patient ({error})."
        raise ManifestError(msg) from error
    is_distinct = all(len(set(column)) == len(numbered) for column in zip(*numbered, strict=True))
    if not numbered or not is_distinct or numbered[0][0] < 0:
        msg = f"{path.name} lists no patients, or a patient or a number twice."
        raise ManifestError(f"{msg} Correct it.")
    return numbered

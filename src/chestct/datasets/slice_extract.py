"""Slices of scans as pictures, with their labels, for the slice networks.

Every slice becomes a PNG of 8 bits through a window; names of files hold numbers only. A slice of
an ill patient that shows no infection is no picture of the illness: it is left out, or taken for
the negative class, as asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.public import read_table
from chestct.datasets.scans import read_options
from chestct.labels import LabelSet
from chestct.lookup import look_up
from chestct.readers import read_volume
from chestct.storage import write_whole_with
from chestct.volume import Volume, to_canonical

_WHITE: Final = 255


WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "abdomen": (40.0, 400.0),
}
"""Window name to centre and width in HU: the two views of Fig. 1 of the MASERes paper."""


def windowed(
    voxels_hu: Num[np.ndarray, "*shape"], window: str = "lung"
) -> UInt8[np.ndarray, "*shape"]:
    """Grey values of 8 bits, as an export through a viewer's window gives them.

    Args:
        voxels_hu: Hounsfield units, of a slice or a whole scan.
        window: A name in `WINDOWS`; what lies outside it is black or white.

    Raises:
        UnknownNameError: There is no such window.
    """
    centre_hu, width_hu = look_up(WINDOWS, window, kind="window")
    share = (voxels_hu.astype(np.float32) - np.float32(centre_hu - width_hu / 2)) / width_hu
    return np.asarray(np.rint(np.clip(share, 0.0, 1.0) * _WHITE), dtype=np.uint8)


_MAX_BYTES: Final = 2**28

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


def _cut_to_scan(labels: SliceLabels, num_slices: int, scan: str) -> Bool[np.ndarray, " kept"]:
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


def _find_labels(known: Mapping[str, SliceLabels], *names: str) -> SliceLabels | None:
    """The labels of the first of a scan's names that is known, upper and lower case alike."""
    by_name = {name.lower(): each for name, each in known.items()}
    return next((by_name[n.lower()] for n in names if n.lower() in by_name), None)


def _read_array(path: Path) -> Bool[np.ndarray, "case slice"]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestError(f"{path.name} is larger than {_MAX_BYTES} bytes: not slice labels.")
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


_PATIENT_LABEL = "patient_label"
"""Column with the class of the whole patient."""


@dataclass(frozen=True)
class Extraction:
    """Which slices are taken and what they are called.

    Attributes:
        infected: Infection by slice, by patient or scan; empty where none is known.
        without_labels: Scans whose slices nobody looked at: "all" takes every slice for its
            patient's class, "negative" does so for patients of the negative class only and leaves
            the others out.
        uninfected: Slices of an ill patient without infection: "leave_out", or "negative".
        window: A name in `WINDOWS`.
        every: Take every so many slices only.
        negative: The class that means that nothing was found; empty: what plain names say of it.
    """

    infected: Mapping[str, SliceLabels] = field(default_factory=dict)
    without_labels: Literal["all", "negative"] = "negative"
    uninfected: Literal["leave_out", "negative"] = "leave_out"
    window: str = "lung"
    every: int = 1
    negative: str = ""


def extract_slices(
    manifest: Manifest,
    extraction: Extraction,
    folder: Path,
    *,
    told: Callable[[str], None] = lambda _text: None,
) -> Manifest:
    """Write the slices of a manifest's scans as pictures.

    Args:
        manifest: One row per scan.
        extraction: Which slices, and how.
        folder: Where to; a folder per scan is made in it.
        told: Told of scans that give no slices.

    Returns:
        A manifest with one row per slice, its patient's own class in the column `patient_label`.

    Raises:
        ManifestError: No slice is left, or labels do not fit a scan.
        ReadError: A scan cannot be read.
        WriteError: The folder cannot be written.
    """
    rows: list[ManifestRow] = []
    extraction = _with_negative(extraction, manifest)
    for row in manifest.rows:
        path = manifest.path(row)
        infected = _find_labels(extraction.infected, row.patient, path.name)
        is_left = row.label != extraction.negative and extraction.without_labels == "negative"
        if infected is None and is_left:
            told(f"Row {row.number} is {row.label} and has no slice labels: left out.")
            continue
        options = read_options(row, manifest.folder)
        volume = to_canonical(
            read_volume(path, series=options.series, allow=options.allow, tiff=options.tiff)
        )
        marks = None if infected is None else _cut_to_scan(infected, len(volume.voxels), row.scan)
        rows += _write_scan(row, volume, marks, extraction, folder)
    if not rows:
        msg = (
            f"No slice of {manifest.name} is left: its scans have no slice labels. Give them "
            "(--labels, --index), or take all slices of every scan (--without-labels all)."
        )
        raise ManifestError(msg)
    return Manifest(tuple(rows), manifest.labels, folder, manifest.name)


def _with_negative(extraction: Extraction, manifest: Manifest) -> Extraction:
    """The same with the negative class, which the wished slices may depend on.

    Raises:
        ManifestError: They do, and none is named.
    """
    negative = extraction.negative or LabelSet.of_names(manifest.labels).negative
    if not negative and "negative" in (extraction.without_labels, extraction.uninfected):
        msg = (
            f"None of the classes {', '.join(manifest.labels)} of {manifest.name} is named as the "
            "negative one, and which slices are taken depends on it. Mark one with 'negative: "
            "true' in a file for --classes, or say --without-labels all."
        )
        raise ManifestError(msg)
    return replace(extraction, negative=negative)


def _label_of(row: ManifestRow, is_infected: bool | None, extraction: Extraction) -> str | None:
    """Class of one slice, or None where it is to be left out."""
    if is_infected is None or is_infected or row.label == extraction.negative:
        return row.label
    return extraction.negative if extraction.uninfected == "negative" else None


def _write_scan(
    row: ManifestRow,
    volume: Volume,
    marks: SliceLabels | None,
    extraction: Extraction,
    folder: Path,
) -> Iterator[ManifestRow]:
    place = folder / f"scan-{row.number:04d}"
    for number in range(0, len(volume.voxels), extraction.every):
        is_infected = None if marks is None else bool(marks[number])
        label = _label_of(row, is_infected, extraction)
        if label is None:
            continue
        file = place / f"slice-{number:04d}.png"
        _write_picture(file, volume.voxels[number], volume.unit, extraction.window)
        others = {_PATIENT_LABEL: row.label, "source_row": str(row.number), "slice": str(number)}
        yield ManifestRow(
            str(file), row.patient, label, row.site, row.age, row.sex, row.split, others=others
        )


def _write_picture(file: Path, voxels: np.ndarray, unit: str, window: str) -> None:
    """Write a slice as a PNG, whole or not at all."""
    # An export that is windowed already has its own grey values.
    grey = windowed(voxels, window) if unit == "HU" else np.clip(voxels, 0, 255).astype(np.uint8)
    write_whole_with(file, Image.fromarray(grey).save)

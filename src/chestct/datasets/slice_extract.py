"""Slices of scans as pictures, with their labels, for the slice networks.

Every slice becomes a PNG of 8 bits through a window; names of files hold numbers only. A slice of
an ill patient that shows no infection is no picture of the illness: it is left out, or taken for
normal, as asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.scans import read_options
from chestct.datasets.slice_labels import SliceLabels, cut_to_scan, find_labels
from chestct.datasets.slice_window import windowed
from chestct.files import write_whole_with
from chestct.labels import NORMAL
from chestct.readers import read_volume
from chestct.volume import Volume, to_canonical

PATIENT_LABEL = "patient_label"
"""Column with the class of the whole patient."""


@dataclass(frozen=True)
class Extraction:
    """Which slices are taken and what they are called.

    Attributes:
        infected: Infection by slice, by patient or scan; empty where none is known.
        without_labels: Scans whose slices nobody looked at: "all" takes every slice for its
            patient's class, "normal" does so for normal patients only and leaves the others out.
        uninfected: Slices of an ill patient without infection: "leave_out", or "normal".
        window: A name in `WINDOWS`.
        every: Take every so many slices only.
    """

    infected: Mapping[str, SliceLabels] = field(default_factory=dict)
    without_labels: Literal["all", "normal"] = "normal"
    uninfected: Literal["leave_out", "normal"] = "leave_out"
    window: str = "lung"
    every: int = 1


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
    for row in manifest.rows:
        path = manifest.path(row)
        infected = find_labels(extraction.infected, row.patient, path.name)
        if infected is None and row.label != NORMAL and extraction.without_labels == "normal":
            told(f"Row {row.number} is {row.label} and has no slice labels: left out.")
            continue
        volume = to_canonical(read_volume(path, **vars(read_options(row))))
        marks = None if infected is None else cut_to_scan(infected, len(volume.voxels), row.scan)
        rows += _write_scan(row, volume, marks, extraction, folder)
    if not rows:
        msg = (
            f"No slice of {manifest.name} is left: its scans have no slice labels. Give them "
            "(--labels, --index), or take all slices of every scan (--without-labels all)."
        )
        raise ManifestError(msg)
    return Manifest(tuple(rows), manifest.labels, folder, manifest.name)


def label_of(row: ManifestRow, is_infected: bool | None, extraction: Extraction) -> str | None:
    """Class of one slice, or None where it is to be left out."""
    if is_infected is None or is_infected or row.label == NORMAL:
        return row.label
    return NORMAL if extraction.uninfected == "normal" else None


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
        label = label_of(row, is_infected, extraction)
        if label is None:
            continue
        file = place / f"slice-{number:04d}.png"
        _write_picture(file, volume.voxels[number], volume.unit, extraction.window)
        others = {PATIENT_LABEL: row.label, "source_row": str(row.number), "slice": str(number)}
        yield ManifestRow(
            str(file), row.patient, label, row.site, row.age, row.sex, row.split, others=others
        )


def _write_picture(file: Path, voxels: np.ndarray, unit: str, window: str) -> None:
    """Write a slice as a PNG, whole or not at all."""
    # An export that is windowed already has its own grey values.
    grey = windowed(voxels, window) if unit == "HU" else np.clip(voxels, 0, 255).astype(np.uint8)
    write_whole_with(file, Image.fromarray(grey).save)

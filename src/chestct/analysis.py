"""A classified scan together with what it was classified from, which is what writers need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from chestct.explain.explanation import ScanExplanation
from chestct.preprocess.prepare import PreparedScan
from chestct.result import ScanResult
from chestct.volume import Volume

if TYPE_CHECKING:
    from chestct.readers.dicom_source import SourceSeries

SCAN_FACTS: Final[dict[str, str]] = {
    "format": "Read from",
    "size_voxels": "Slices, rows, columns",
    "spacing_mm": "Voxel spacing, mm",
    "extent_mm": "Extent, mm",
    "slice_thickness_mm": "Slice thickness, mm",
    "kernel": "Kernel",
    "kvp": "Tube voltage, kV",
    "manufacturer": "Manufacturer",
    "model": "Scanner model",
    "patient_position": "Patient position",
    "lossy_compression": "Lossy compression",
    "unit": "Values",
    "left_out": "Left out",
}
"""Facts that may appear in outputs, in the order they are shown, and their names in words.

An allow-list: whatever else a reader knows stays inside the program.
"""

_SOURCES: Final[WeakKeyDictionary[Volume, SourceSeries]] = WeakKeyDictionary()
"""Headers that were read before, of volumes that are still there."""


@runtime_checkable
class Watcher(Protocol):
    """Is told how far the analysis of a scan is."""

    def was_read(self, volume: Volume, path: Path) -> None:
        """The scan was read from a path; the long work comes now."""

    def explaining(self, done: int, num: int) -> None:
        """So many steps of an explanation are done, of so many."""


@dataclass(frozen=True, eq=False)
class ScanAnalysis:
    """Everything known about one scan after it was classified.

    Attributes:
        result: The answer.
        volume: The scan as read, on its own axes.
        prepared: What the network saw and how it lies in the patient.
        explanation: Where the evidence lies, when it was asked for.
        path: What was read, for writers that copy headers; None for a volume made in memory.
            Never shown: archives name folders by patient.
        not_written: Writer name to the reason why this output is missing beside the others.
    """

    result: ScanResult
    volume: Volume
    prepared: PreparedScan
    explanation: ScanExplanation | None = None
    path: Path | None = field(default=None, repr=False)
    not_written: Mapping[str, str] = field(default_factory=dict)

    @property
    def source_series(self) -> SourceSeries | None:
        """As `source_of`, of this volume.

        Raises:
            ReadError: The files are no longer what was read.
        """
        return source_of(self.volume, self.path)

    @property
    def analysed_slices(self) -> tuple[int, int]:
        """First and last slice the network saw, counted from the feet.

        The salient slices, as far as the network's input reaches: a recipe without a threshold
        may still look at a box around the lungs only.
        """
        first, last = self.prepared.salient
        input_grid = self.prepared.grid
        faces = np.array([[-0.5, 0.0, 0.0], [input_grid.shape[0] - 0.5, 0.0, 0.0]])
        reach = self.prepared.body_grid.to_index(input_grid.to_patient(faces))[:, 0]
        low, high = int(np.ceil(reach.min())), int(np.floor(reach.max()))
        return max(first, min(low, last)), min(last, max(high, first))


def source_of(volume: Volume, path: Path | None) -> SourceSeries | None:
    """The headers behind a volume, read when first asked for; None if it was not DICOM.

    Raises:
        ReadError: The files are no longer what was read.
    """
    if path is None or volume.source.format != "dicom":
        return None
    if volume not in _SOURCES:
        from chestct.readers.dicom_source import read_source

        _SOURCES[volume] = read_source(path, volume)
    return _SOURCES[volume]

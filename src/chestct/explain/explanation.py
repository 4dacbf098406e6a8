"""What an explanation is: a heat-map as the network saw it, on the scan, and in words' numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from chestct.arrays import Heat, Spacing
from chestct.labels import LabelSet
from chestct.volume import Grid

HeatPlane: TypeAlias = Float32[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which input voxels spoke for a class.

    Attributes:
        method: A name in `EXPLANATIONS`.
        layer: Name of the network's layer the map was taken from; empty where there is none.
        label: The class it speaks for.
        heat: At the network input's size, (depth, height, width), 0 to 1; all zero where nothing
            spoke for the class.
        scale: What 1 stands for in the method's own unit, so that maps can be compared; 0 where
            nothing spoke for the class.
        cell: Size of the layer's cells (or of the patches) in input voxels, (depth, height, width):
            the map cannot tell places apart that lie closer.
    """

    method: str
    layer: str
    label: str
    heat: Heat
    scale: float
    cell: Spacing = (1.0, 1.0, 1.0)

    @property
    def has_evidence(self) -> bool:
        """Whether anything spoke for the class; if not, the map is zero everywhere."""
        return self.scale > 0.0


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A map on a scan's own grid and axes, whose slices are made when they are asked for.

    Whole, it would take twice the memory of the scan. Iterating gives its slices along depth.

    Attributes:
        grid: The scan's own grid.
        cut: The slice across an axis of the grid at an index, the other two axes in their order;
            0 to 1, NaN where the network saw nothing ("not analysed").
        whole: All slices, where they are at hand.
    """

    grid: Grid
    cut: Callable[[int, int], HeatPlane]
    whole: Heat | None = None

    @classmethod
    def of(cls, grid: Grid, voxels: Heat) -> HeatMap:
        """A map that is at hand as a whole."""
        return cls(grid, lambda axis, index: voxels[(slice(None),) * axis + (index,)], voxels)

    def __iter__(self) -> Iterator[HeatPlane]:
        """Slices along depth."""
        return (self.cut(0, index) for index in range(self.grid.shape[0]))

    @property
    def voxels(self) -> Heat:
        """All slices, (depth, height, width), float32; where not at hand, made at each call."""
        if self.whole is not None:
            return self.whole
        voxels = np.empty(self.grid.shape, dtype=np.float32)
        for plane, made in zip(voxels, self, strict=True):
            plane[...] = made
        return voxels


@dataclass(frozen=True)
class PeakSlice:
    """A slice with much evidence.

    Attributes:
        index: Slice along depth of the scan's own grid, from 0.
        uid: Its SOPInstanceUID; empty where the scan has none.
        evidence: This slice's value in `EvidenceSummary.by_slice`, 0 to 1.
    """

    index: int
    uid: str
    evidence: float


@dataclass(frozen=True, eq=False)
class EvidenceSummary:
    """Where in the lungs the evidence lies.

    Attributes:
        threshold: Heat from which a voxel counts as involved.
        shares: Region to the share of its analysed lung volume that is involved, 0 to 1. Regions:
            "lungs", "left lung", "right lung", "upper third", "middle third", "lower third", and
            "left upper third" ... "right lower third"; a region without analysed lung is left out,
            and so are those of a side where the two lungs cannot be taken apart.
        involved_ml: Lung volume that is involved, in millilitres.
        by_slice: Heat summed over the lungs of each slice of the scan's own grid, in parts of the
            largest lung section; NaN where the slice was not analysed or holds no lung.
        peaks: Slices with more evidence than any within 15 mm, strongest first, at most five; none
            where there is no evidence.
        hottest_mm: Patient position (x, y, z) of the hottest voxel in the lungs; None where there
            is no evidence in them.
    """

    threshold: float
    shares: dict[str, float]
    involved_ml: float
    by_slice: Float64[np.ndarray, " slices"]
    peaks: tuple[PeakSlice, ...]
    hottest_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class ScanExplanation:
    """An explanation on the patient's own scan.

    Attributes:
        explanation: The map as the network's input has it.
        heat: The map on the scan's own grid and axes.
        summary: Where in the lungs it lies.
        labels: The classifier's classes, with what is said of each; None: plain names.
    """

    explanation: Explanation
    heat: HeatMap
    summary: EvidenceSummary
    labels: LabelSet | None = None

    @property
    def label_set(self) -> LabelSet:
        """The classes, with what is said of each."""
        return self.labels or LabelSet.of_names((self.explanation.label,))

    @property
    def speaks_for_disease(self) -> bool:
        """Whether what is hot can be a sign of disease: evidence for the negative class is none."""
        return self.label_set.is_finding(self.explanation.label)

"""What preparing a scan gives: the network's input and the way back to the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from chestct.arrays import Mask, NetworkInput
from chestct.preprocess.oblique import body_grid
from chestct.preprocess.recipes import Recipe
from chestct.volume import Grid, Volume


@dataclass(frozen=True, eq=False, repr=False)
class PreparedScan:
    """A scan as a network sees it, and where each of its voxels lies in the patient.

    Attributes:
        input: Network input, (channel, depth, height, width).
        lungs: Lung mask at the input's size, (depth, height, width).
        grid: Grid of the input in the patient. Every step of the preparation maps each axis on its
            own and linearly, so a grid is the exact map of every input voxel.
        scan_lungs: Lung mask (bool) on the scan's own grid, in the scan's own axis order.
        scan_grid: The scan's own grid.
        salient: First and last analysed slice, counted along depth of `body_grid`;
            the whole scan where the recipe has no threshold.
        lung_area: Lung share of each such slice's area, 0 to 1, from the scan's mask.
        lung_volume_l: Volume of the lung mask in litres.
        recipe: The recipe used.
        warnings: What was noticed on the way, each saying what, where and how much.
        unsuitable_reasons: Why the scan should not be classified; empty when it may.
        lungs_are_given: Whether the lungs were given and not found by the program.
        lungs_weights_sha256: Hash of the lungs network's weights; None where none was run.
        lungs_engine: What ran that network, such as "openvino float32"; None likewise.
    """

    input: NetworkInput
    lungs: Mask
    grid: Grid
    scan_lungs: Volume
    scan_grid: Grid
    salient: tuple[int, int]
    lung_area: Float64[np.ndarray, " slices"]
    lung_volume_l: float
    recipe: Recipe
    warnings: tuple[str, ...]
    unsuitable_reasons: tuple[str, ...]
    lungs_are_given: bool = False
    lungs_weights_sha256: str | None = None
    lungs_engine: str | None = None

    def __repr__(self) -> str:
        """Recipe, size of the input and lung volume on one line."""
        size = " x ".join(str(voxels) for voxels in self.input.shape)
        return f"<PreparedScan {self.recipe.name}: {size}, lungs {self.lung_volume_l:.2f} l>"

    @property
    def body_grid(self) -> Grid:
        """The scan's grid with its axes to the head, to the back and to the left."""
        return body_grid(self.scan_grid)

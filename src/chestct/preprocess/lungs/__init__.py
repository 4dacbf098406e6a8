"""Where the lungs are: three methods in one table.

`published` and `paper` are the slice-by-slice threshold of the RoI-aware 3D ResNet, as its code
and as its text have it; `recommended` is this project's own, a small network over the whole scan,
made to keep diseased lung and to leave out airways, stomach and bowel; docs/lungs.md says how far
it does.

This module imports no method, so that the table can be listed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32

from chestct.arrays import Heat, Mask
from chestct.engines import AUTO
from chestct.lookup import look_up
from chestct.volume import Grid, Volume

_DOUBTFUL: Final = (0.2, 0.8)
"""Between these probabilities of lung the network is in doubt."""


@dataclass(frozen=True, eq=False)
class NetworkLungs:
    """What the lungs network said of a scan, on its own grid of about 4 mm.

    Attributes:
        probabilities: Of background, right lung, left lung and other gas in the body (airways,
            stomach and bowel with what is in them), in this order; they sum to 1.
        hu: What the network saw: Hounsfield units, averaged, -1024 to 600.
        grid: Where these voxels lie; blank slices at the scan's ends are not in it.
        weights_sha256: Hash of its weights file.
        engine: What ran it, such as "openvino float32".
    """

    probabilities: Float32[np.ndarray, "4 depth height width"]
    hu: Heat
    grid: Grid
    weights_sha256: str = ""
    engine: str = ""

    @property
    def right_ml(self) -> float:
        """Volume most probably right lung, in millilitres."""
        return self._volume_ml(1)

    @property
    def left_ml(self) -> float:
        """Volume most probably left lung, in millilitres."""
        return self._volume_ml(2)

    @property
    def doubtful_share(self) -> float:
        """How much of the lungs' outline is in doubt: volume in doubt over volume of a rim.

        The rim is one voxel thick on the inside of the outline, about as much as stays in doubt
        around lungs that are plain to see, because a voxel may be lung in part. 0 without lungs.
        """
        lung = self.probabilities[1] + self.probabilities[2]
        low, high = _DOUBTFUL
        doubtful = np.count_nonzero((lung > low) & (lung < high))
        return doubtful / max(1, _num_rim_voxels(lung >= 0.5))

    def _volume_ml(self, label: int) -> float:
        is_label = self.probabilities.argmax(axis=0) == label
        return float(np.count_nonzero(is_label) * self.grid.voxel_ml)


def _num_rim_voxels(mask: Mask) -> int:
    """How many true voxels have a false one on any of their six sides."""
    inner = np.pad(mask, 1, mode="edge")
    is_inner = mask.copy()
    for axis in range(3):
        for shift in (-1, 1):
            is_inner &= np.roll(inner, shift, axis)[1:-1, 1:-1, 1:-1]
    return int(np.count_nonzero(mask & ~is_inner))


@dataclass(frozen=True, eq=False)
class FoundLungs:
    """The lungs of a scan.

    Attributes:
        mask: True inside the lungs, of the scan's shape, C-contiguous.
        network: What the lungs network said; None for the methods without one.
    """

    mask: Mask
    network: NetworkLungs | None = None


def _published(volume: Volume, engine: str) -> FoundLungs:
    from chestct.preprocess.lungs.slicewise import segment_published

    return FoundLungs(segment_published(volume))


def _paper(volume: Volume, engine: str) -> FoundLungs:
    from chestct.preprocess.lungs.slicewise import segment_paper

    return FoundLungs(segment_paper(volume))


def _recommended(volume: Volume, engine: str) -> FoundLungs:
    from chestct.preprocess.lungs.recommended import find_recommended

    return find_recommended(volume, engine=engine)


LUNG_METHODS: Final[dict[str, Callable[[Volume, str], FoundLungs]]] = {
    "published": _published,
    "paper": _paper,
    "recommended": _recommended,
}
"""Name to method, called as `method(volume, engine)`; only `recommended` runs a network."""


def find_lungs(volume: Volume, method: str, *, engine: str = AUTO) -> FoundLungs:
    """Find the lungs of a scan.

    Args:
        volume: Canonical scan (`chestct.volume.to_canonical`), axes (depth, height, width); in
            Hounsfield units for `recommended`.
        method: A name in `LUNG_METHODS`.
        engine: What runs the network of `recommended`, as in `chestct.engines.voxel_runner`.

    Raises:
        UnknownNameError: No such method.
        RecipeError: `recommended` was asked of a volume that is not in Hounsfield units.
        NetworkError: The lungs network's files are missing or damaged.
        EngineError: The engine cannot run the network.
    """
    return look_up(LUNG_METHODS, method, kind="lung method")(volume, engine)


def segment_lungs(volume: Volume, method: str) -> Mask:
    """Only the mask of `find_lungs`, which tells more."""
    return find_lungs(volume, method).mask

"""Where the lungs are: three methods in one table.

`published` and `paper` are the slice-by-slice threshold of the RoI-aware 3D ResNet, as its code
and as its text have it; `recommended` is this project's own, in three dimensions, which keeps
diseased lung and leaves out the airways.

This module imports no method, so that the table can be listed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from chestct.arrays import Mask
from chestct.lookup import look_up
from chestct.volume import Volume


def _published(volume: Volume) -> Mask:
    from chestct.preprocess.lungs.published import segment_published

    return segment_published(volume)


def _paper(volume: Volume) -> Mask:
    from chestct.preprocess.lungs.paper import segment_paper

    return segment_paper(volume)


def _recommended(volume: Volume) -> Mask:
    from chestct.preprocess.lungs.recommended import segment_recommended

    return segment_recommended(volume)


LUNG_METHODS: Final[dict[str, Callable[[Volume], Mask]]] = {
    "published": _published,
    "paper": _paper,
    "recommended": _recommended,
}
"""Name to method. Each takes a canonical volume and returns a mask on the volume's grid."""


def segment_lungs(volume: Volume, method: str) -> Mask:
    """Find the lungs of a scan.

    Args:
        volume: Canonical scan (`chestct.volume.to_canonical`), axes (depth, height, width); in
            Hounsfield units for `recommended`.
        method: A name in `LUNG_METHODS`.

    Returns:
        True inside the lungs, of the volume's shape, C-contiguous.

    Raises:
        UnknownNameError: No such method.
        RecipeError: `recommended` was asked of a volume that is not in Hounsfield units.
    """
    return look_up(LUNG_METHODS, method, kind="lung method")(volume)

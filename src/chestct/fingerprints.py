"""Digests of scans that do not depend on the format, or on the order of axes, that stored them."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Shaped

from chestct.volume import Grid, Unit, Volume, to_canonical


def hash_voxels(volume: Volume) -> str:
    """SHA-256 of the voxels and where they lie, whatever format and axis order stored them.

    The axes are made canonical; for the rest see `as_stored` and `place_text`.
    """
    canonical = to_canonical(volume)
    voxels = as_stored(canonical.voxels)
    digest = hashlib.sha256(place_text(canonical.grid, canonical.unit).encode())
    digest.update(voxels.dtype.str.encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def as_stored(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Values as they are hashed: in one piece and little-endian, in 16 bits where those hold them.

    Formats keep whole numbers as integers of many sizes, or as floats.
    """
    if values.dtype != np.int16 and _fits_int16(values):
        values = values.astype(np.int16)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def place_text(grid: Grid, unit: Unit) -> str:
    """Where a canonical grid lies, as it is hashed, and the unit of what is on it.

    Formats keep positions with different precision: a hundredth of a millimetre is no other grid.
    """
    axes = np.asarray(grid.direction).round(4) + 0.0
    numbers = np.round([*grid.spacing_mm, *grid.origin_mm], 2)
    return f"{grid.shape} {numbers.tolist()} {axes.tolist()} {unit}"


def _fits_int16(values: Shaped[np.ndarray, "*shape"]) -> bool:
    low, high = values.min(), values.max()
    fits = bool(low >= -32768 and high <= 32767)
    return fits and bool((values == np.trunc(values)).all())

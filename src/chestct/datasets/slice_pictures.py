"""One slice as a picture file, read as grey values from 0 to 1, whatever it is made of.

Pictures of slices come from papers and exports: 8 or 16 bits, grey, RGB or RGBA, from 61 to 1,700
pixels, some with coloured arrows or circles drawn on them. A mark tells a network where to look,
or which class it is, so that it is not dropped silently: the share of coloured pixels is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float32, Integer
from PIL import Image

from chestct.errors import ReadError
from chestct.readers.slice_pixels import (
    MAX_COLOUR,
    MAX_COLOURED_SHARE,
    SUFFIXES,
    read_stored_pixels,
)

PICTURE_ENDINGS: Final = tuple(ending for endings in SUFFIXES.values() for ending in endings)
"""Endings of the files that are read."""
SMALLEST_SIDE: Final = 32
"""Fewest rows or columns of a picture that is read."""

GREY_SHARES: Final = (0.299, 0.587, 0.114)
"""What red, green and blue count for in a grey value (ITU-R BT.601)."""

Picture = Float32[np.ndarray, "height width"]
"""Grey values of a slice from 0 to 1."""
SixteenBit = Literal["own_range", "full_range"]
"""16-bit pictures: each one's lowest value to 0 and highest to 1, or 0 and 65,535."""


@dataclass(frozen=True, eq=False)
class SlicePicture:
    """A slice read from a file.

    Attributes:
        values: Grey values from 0 to 1, (height, width).
        bits: Of a stored value, 8 or 16.
        coloured_share: Share of the pixels that have a colour, 0 to 1.
    """

    values: Picture
    bits: int
    coloured_share: float

    @property
    def is_marked(self) -> bool:
        """Whether something coloured was drawn on it."""
        return self.coloured_share > MAX_COLOURED_SHARE


@dataclass(frozen=True)
class PictureForm:
    """How pictures become the inputs of a network.

    Attributes:
        size: Rows and columns of the input.
        interpolation: "nearest", Keras's default, which the paper's notebooks leave as it is; or
            "linear", which averages over what a smaller picture leaves out.
        keeps_shape: Whether a picture that is not square gets black margins instead of being
            pulled to a square.
        sixteen_bit: See `SixteenBit`.
    """

    size: int
    interpolation: Literal["nearest", "linear"] = "nearest"
    keeps_shape: bool = False
    sixteen_bit: SixteenBit = "own_range"


def read_picture(path: Path, sixteen_bit: SixteenBit = "own_range") -> SlicePicture:
    """Read a slice from a PNG, JPEG or TIFF file.

    Args:
        path: The file; its format is known by its name.
        sixteen_bit: What becomes 0 and 1 of a picture with 16 bits.

    Raises:
        ReadError: It is no picture, damaged, too small or too large; the message names the file.
    """
    if path.suffix.lower() not in PICTURE_ENDINGS:
        msg = f"{path.name} is no picture of a slice: expected one of {', '.join(PICTURE_ENDINGS)}."
        raise ReadError(msg)
    if not path.is_file():
        raise ReadError(f"There is no picture {path}.")
    stored = read_stored_pixels(path)
    if min(stored.shape[:2]) < SMALLEST_SIDE:
        msg = (
            f"{path.name} has {stored.shape[0]} x {stored.shape[1]} pixels; a slice of at least "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE} was expected. Leave it out."
        )
        raise ReadError(msg)
    bits = 8 * stored.dtype.itemsize
    share = _coloured_share(stored, bits)
    return SlicePicture(_scaled(_grey(stored), stored.dtype, sixteen_bit), bits, share)


def fitted(values: Picture, form: PictureForm) -> Float32[np.ndarray, "size size"]:
    """A picture at the size of a network's input."""
    if form.keeps_shape:
        values = _squared(values)
    method = {"nearest": Image.Resampling.NEAREST, "linear": Image.Resampling.BILINEAR}
    resized = Image.fromarray(values).resize((form.size, form.size), method[form.interpolation])
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)


def _grey(stored: Integer[np.ndarray, "height width *samples"]) -> Picture:
    """One value per pixel, in stored units; what alpha says is left out."""
    if stored.ndim == 2:
        return stored.astype(np.float32)
    if stored.shape[-1] < 3:
        return np.ascontiguousarray(stored[..., 0], dtype=np.float32)
    colours = stored[..., :3].astype(np.float32)
    return np.asarray(colours @ np.array(GREY_SHARES, dtype=np.float32))


def _scaled(values: Picture, dtype: np.dtype, sixteen_bit: SixteenBit) -> Picture:
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if dtype.itemsize > 1 and sixteen_bit == "own_range":
        low, high = float(values.min()), float(values.max())
    scale = 1.0 / (high - low) if high > low else 0.0
    scaled = (values - np.float32(low)) * np.float32(scale)
    return np.asarray(np.clip(scaled, 0.0, 1.0))


def _coloured_share(stored: Integer[np.ndarray, "height width *samples"], bits: int) -> float:
    """Share of pixels whose colours differ by more than JPEG's rounding makes of grey."""
    if stored.ndim == 2 or stored.shape[-1] < 3:
        return 0.0
    colours = stored[..., :3].astype(np.int32)
    spread = colours.max(axis=-1) - colours.min(axis=-1)
    return float(np.mean(spread > MAX_COLOUR * 2 ** (bits - 8)))


def _squared(values: Picture) -> Float32[np.ndarray, "side side"]:
    height, width = values.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = values
    return square

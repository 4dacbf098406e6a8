"""The pixels of one slice file: TIFF by tifffile, PNG and JPEG by Pillow.

Pillow is not used for TIFF: it returns compressed big-endian signed 16-bit slices with their bytes
swapped (seen in Pillow 13).
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Integer, UInt8
from PIL import Image

from chestct.errors import ReadError
from chestct.readers.hounsfield import Slab

MAX_SIDE = 4096
"""Most rows or columns of a slice."""

MAX_PICTURE_BYTES = 2**26
"""Largest PNG or JPEG file; a slice of the largest size fits."""

MAX_COLOUR = 8
"""Most that red, green and blue of a grey slice may differ, of 255: JPEG rounds that much."""

MAX_COLOURED_SHARE = 0.001
"""Share of pixels that may differ more, before a slice is taken for an annotated picture."""

SUFFIXES = {"TIFF": (".tif", ".tiff"), "PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
"""File name endings per format. TIFF first: its slices often come with previews as PNG or JPEG."""

# TIFF 6.0. Every compression here is unpacked into a buffer of the declared size; pictures within
# a TIFF (JPEG, JPEG 2000) have sizes of their own and are not lossless.
_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}
_GREY, _WHITE_IS_ZERO, _RGB = 1, 0, 2

# What the decoders raise on damaged files, apart from their own errors, which are among these.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class SliceKind:
    """What all slices of a stack must have in common.

    Attributes:
        rows: Height in pixels.
        columns: Width in pixels.
        bits: 8 or 16.
    """

    rows: int
    columns: int
    bits: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} at {self.bits} bits"


def format_of(path: Path) -> str | None:
    """Which format a file has by its name: "TIFF", "PNG", "JPEG" or None."""
    suffix = path.suffix.lower()
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def read_slice(path: Path) -> tuple[Slab, SliceKind]:
    """Read one slice.

    Colour slices come back grey, alpha is dropped, 16-bit colour is cut to 8 bits.

    Args:
        path: A TIFF, PNG or JPEG file, by its name.

    Returns:
        Pixels (height, width) as stored, and what they are.

    Raises:
        ReadError: Damaged, several pages, too large, coloured, or not of 8 or 16 bits.
    """
    pixels = read_stored_pixels(path)
    bits = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:
        pixels, bits = _grey_of_colour(pixels, path), 8
    return pixels, SliceKind(pixels.shape[0], pixels.shape[1], bits)


def read_stored_pixels(path: Path) -> Integer[np.ndarray, "height width *samples"]:
    """The pixels of one slice file as stored, coloured ones too.

    Raises:
        ReadError: Damaged, several pages, too large, or not of 8 or 16 bits.
    """
    name = format_of(path)
    try:
        with _quiet_decoders():
            return _read_tiff(path) if name == "TIFF" else _read_picture(path)
    except _DAMAGE as error:
        msg = f"{path.name} is not a readable {name} slice ({type(error).__name__}): cut short,"
        raise ReadError(f"{msg} damaged, or of another kind. Copy it again.") from error


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Without what the decoders say of damaged side information: only the pixels count here."""
    logger = logging.getLogger("tifffile")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _read_tiff(path: Path) -> Integer[np.ndarray, "height width *colours"]:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        _check_size(page.imagelength, page.imagewidth, path)
        has_more = (page.is_imagej or page.is_shaped) and file.series[0].size != page.size
        if file.pages.is_multipage or has_more or page.imagedepth != 1:
            _refuse_pages(path)
        _check_pixel_type(page, path)
        _check_segments(page, path)
        pixels: np.ndarray = page.asarray()
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _check_pixel_type(page: tifffile.TiffPage, path: Path) -> None:
    expected = "8-bit or 16-bit whole numbers were expected."
    if page.dtype is None or page.dtype.kind not in "iu" or page.bitspersample < 8:
        found = "one bit per pixel" if page.bitspersample == 1 else f"values of type {page.dtype}"
        raise ReadError(f"{path.name} holds {found}; {expected}")
    if page.dtype not in (np.uint8, np.uint16, np.int16):
        raise ReadError(f"{path.name} holds {page.bitspersample} bits per pixel; {expected}")
    if page.photometric == _WHITE_IS_ZERO:
        msg = f"{path.name} declares that zero is white, the reverse of Hounsfield units."
        raise ReadError(f"{msg} Save it with zero as black.")
    samples = {_GREY: (1, 2), _RGB: (3, 4)}.get(int(page.photometric), ())
    if page.samplesperpixel not in samples or page.axes not in ("YX", "YXS", "SYX"):
        msg = f"{path.name} holds {page.samplesperpixel} samples per pixel of photometric kind"
        raise ReadError(f"{msg} {int(page.photometric)}; grey or RGB was expected.")
    if page.compression not in _COMPRESSIONS:
        msg = f"{path.name} has compression {int(page.compression)} inside; none, LZW, deflate,"
        raise ReadError(f"{msg} PackBits, LZMA or Zstandard was expected. Convert it.")


def _check_segments(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse strips or tiles that are absent, which tifffile would fill with zeros."""
    num_bytes = path.stat().st_size
    is_whole = math.prod(page.chunked) == len(page.dataoffsets) == len(page.databytecounts)
    is_inside = all(
        offset > 0 and count > 0 and offset + count <= num_bytes
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    )
    if not (is_whole and is_inside) or max(page.tilewidth, page.tilelength) > MAX_SIDE:
        raise ReadError(f"{path.name} is cut short or damaged: not all its pixels are in the file.")


def _read_picture(path: Path) -> Integer[np.ndarray, "height width *colours"]:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_PICTURE_BYTES:
        raise ReadError(f"{path.name} has {num_bytes} bytes; at most {MAX_PICTURE_BYTES} are read.")
    # From memory, where Pillow cannot ask for the gigabytes that a damaged PNG chunk declares.
    content = BytesIO(path.read_bytes())
    with Image.open(content, formats=(format_of(path) or "",)) as picture:
        _check_size(picture.height, picture.width, path)
        if getattr(picture, "is_animated", False):
            _refuse_pages(path)
        if picture.mode == "I;16":
            return np.asarray(picture, dtype=np.uint16)
        if picture.mode in ("L", "LA"):
            return np.asarray(picture.convert("L"))
        if picture.mode in ("RGB", "RGBA", "P"):
            return np.asarray(picture.convert("RGB"))
        msg = f"{path.name} holds pixels of mode {picture.mode}; grey or RGB was expected."
        raise ReadError(msg)


def _check_size(rows: int, columns: int, path: Path) -> None:
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        msg = f"{path.name} is {rows} x {columns} pixels; 1 to {MAX_SIDE} a side are read."
        raise ReadError(msg)


def _refuse_pages(path: Path) -> None:
    msg = f"{path.name} holds several pages; one slice per file was expected. Split it, or convert"
    raise ReadError(f"{msg} the scan to NIfTI.")


def _grey_of_colour(
    pixels: Integer[np.ndarray, "height width samples"], path: Path
) -> UInt8[np.ndarray, "height width"]:
    """Grey values (the green ones, which JPEG keeps best) of a picture without colour."""
    colours = pixels if pixels.dtype.itemsize == 1 else pixels >> 8
    if colours.shape[-1] < 3:
        return np.ascontiguousarray(colours[..., 0], dtype=np.uint8)
    colours = np.asarray(colours[..., :3], dtype=np.uint8)
    spread = colours.max(axis=-1) - colours.min(axis=-1)
    share = np.count_nonzero(spread > MAX_COLOUR) / spread.size
    if share > MAX_COLOURED_SHARE:
        msg = f"{path.name} is coloured ({share:.1%} of its pixels); grey slices were expected."
        raise ReadError(f"{msg} Pictures with annotations cannot be read as a scan.")
    return np.ascontiguousarray(colours[..., 1])

"""Read a folder of image slices: 16-bit TIFF as in COVID-CTset and COVID-MAH-CT, or 8-bit exports.

Slices are taken as they are displayed: supine, rows to the patient's back, columns to the patient's
left. TIFF is read by tifffile, PNG and JPEG by Pillow, which is not used for TIFF: it returns
compressed big-endian signed 16-bit slices with their bytes swapped (seen in Pillow 13).

Such a folder does not say voxel size, order or Hounsfield units. They come from the caller or from
a sidecar file, `chestct.json`, in the folder of the slices:

    {
      "spacing_mm": [1.0, 0.7, 0.7],
      "order": "ascending",
      "unit": "HU",
      "slope": 1,
      "intercept": -1024
    }

| field | meaning |
|---|---|
| spacing_mm | distance between voxel centres in mm: between slices, between rows, between columns |
| order | "ascending": the first file is nearest the feet; "descending": nearest the head |
| unit | "HU" (the default), or "windowed" for exports without an absolute scale |
| slope, intercept | HU = slope * stored + intercept; needed for "HU", not allowed for "windowed" |
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Integer, UInt8

from chestct.arrays import Shape, Spacing
from chestct.errors import ReadError
from chestct.lookup import unknown_name_message
from chestct.readers.hounsfield import (
    WINDOWED_HIGHEST,
    Gathered,
    Rescale,
    Slab,
    gather,
    padding_to_air,
    why_not_hounsfield,
)
from chestct.readers.misfits import mend_misfits, without_blank_ends
from chestct.volume import MAX_VOXELS, SMALLER, Grid, ScanSource, Unit, Volume

if TYPE_CHECKING:
    import tifffile

SIDECAR = "chestct.json"
"""Name of the file that describes a folder of slices."""

_EXAMPLE = (
    '{"spacing_mm": [2.0, 0.7, 0.7], "order": "ascending", "unit": "HU",'
    ' "slope": 1, "intercept": -1024}'
)
"""A sidecar, with numbers to be replaced."""

_MAX_SIDECAR_BYTES = 65536
_MAX_SPACING_MM = 50.0

_Order = Literal["ascending", "descending"]

_MAX_SIDE = 4096
"""Most rows or columns of a slice."""

_MAX_PICTURE_BYTES = 2**26
"""Largest PNG or JPEG file; a slice of the largest size fits."""

MAX_COLOUR = 8
"""Most that red, green and blue of a grey slice may differ, of 255: JPEG rounds that much."""

MAX_COLOURED_SHARE = 0.001
"""Share of pixels that may differ more, before a slice is taken for an annotated picture."""

SUFFIXES = {"TIFF": (".tif", ".tiff"), "PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
"""File name endings per format. TIFF first: its slices often come with previews as PNG or JPEG."""

_BEGINNINGS = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
}
"""First bytes of a file per format."""

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
)


@dataclass(frozen=True)
class TiffGeometry:
    """Geometry and scale of a folder of slices; nothing of it is ever guessed.

    Attributes:
        spacing_mm: Between slices, rows and columns: (depth, height, width).
        order: "ascending" when the first file, by natural order of names, is nearest the feet.
        slope: HU = slope * stored + intercept. Needed for unit "HU".
        intercept: See `slope`; -1024 or -1000 in most exports.
        unit: "HU", or "windowed" when the values have no absolute scale.

    Raises:
        ReadError: A field is missing, impossible, or contradicts another; the message names it.
    """

    spacing_mm: Spacing
    order: _Order
    slope: float | None = None
    intercept: float | None = None
    unit: Unit = "HU"

    def __post_init__(self) -> None:
        is_possible = len(self.spacing_mm) == 3 and all(
            0 < size <= _MAX_SPACING_MM for size in self.spacing_mm
        )
        if not is_possible:
            msg = f"spacing_mm must be three sizes above 0 and up to {_MAX_SPACING_MM:g} mm"
            raise ReadError(f"{msg} (slices, rows, columns), not {self.spacing_mm}.")
        _check_choice("order", self.order, get_args(_Order))
        _check_choice("unit", self.unit, get_args(Unit))
        has_map = self.slope is not None or self.intercept is not None
        if self.unit == "windowed":
            if has_map:
                msg = "slope and intercept lead to Hounsfield units: leave them out, or set HU."
                raise ReadError(msg)
            return
        if self.slope is None or self.intercept is None:
            msg = "slope and intercept are needed: HU = slope * stored + intercept"
            raise ReadError(f'{msg}. Without an absolute scale set unit to "windowed".')
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)) or self.slope == 0:
            msg = "slope and intercept must be finite and slope not 0, not"
            raise ReadError(f"{msg} {self.slope} and {self.intercept}.")

    def as_options(self) -> str:
        """The geometry as it is said on the command line."""
        said = [f"--spacing-mm {','.join(f'{size:g}' for size in self.spacing_mm)}"]
        said.append(f"--order {self.order}")
        if self.unit == "windowed":
            said.append("--windowed")
        else:
            said += [f"--slope {self.slope:g}", f"--intercept {self.intercept:g}"]
        return " ".join(said)


def _read_sidecar(folder: Path) -> TiffGeometry | None:
    """The geometry that `chestct.json` in a folder of slices states; None without such a file.

    Raises:
        ReadError: The file is too large, not JSON, or a field is missing, unknown or impossible.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SIDECAR_BYTES + 1)
        if len(text) > _MAX_SIDECAR_BYTES:
            raise ReadError(f"{path.name} is larger than {_MAX_SIDECAR_BYTES} bytes.")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path.name} is not a readable JSON file: {error}.") from error
    try:
        return geometry_from_dict(content)
    except ReadError as error:
        raise ReadError(f"{path.name}: {error}") from error


def geometry_from_dict(content: object) -> TiffGeometry:
    """A geometry from the fields of a sidecar.

    Raises:
        ReadError: Not an object, or a field is missing, unknown or impossible.
    """
    if not isinstance(content, Mapping):
        raise ReadError(f"an object with spacing_mm and order was expected, not {content!r:.40}.")
    known = [field.name for field in fields(TiffGeometry)]
    for name in content:
        if name not in known:
            raise ReadError(unknown_name_message(str(name), known, kind="field"))
    for name in ("spacing_mm", "order"):
        if name not in content:
            raise ReadError(f"{name} is missing. Fields: {', '.join(known)}.")
    spacing = content["spacing_mm"]
    if not isinstance(spacing, list | tuple) or len(spacing) != 3:
        raise ReadError(f"spacing_mm must be three numbers in mm, not {spacing!r:.40}.")
    depth, height, width = (_number("spacing_mm", size) for size in spacing)
    scale = {
        name: _number(name, content[name])
        for name in ("slope", "intercept")
        if content.get(name) is not None
    }
    order, unit = content["order"], content.get("unit", "HU")
    _check_choice("order", order, get_args(_Order))
    _check_choice("unit", unit, get_args(Unit))
    return TiffGeometry((depth, height, width), order, unit=unit, **scale)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReadError(f"{name} must be a number, not {value!r:.40}.")
    try:
        return float(value)
    except OverflowError as error:
        raise ReadError(f"{name} must be a number of ordinary size.") from error


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ReadError(f'{name} must be "{choices[0]}" or "{choices[1]}", not {value!r:.40}.')


@dataclass(frozen=True)
class _SliceKind:
    """What all slices of a stack must have in common."""

    rows: int
    columns: int
    bits: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} at {self.bits} bits"


def _format_of(path: Path) -> str | None:
    """Which format a file has by its name: "TIFF", "PNG", "JPEG" or None."""
    suffix = path.suffix.lower()
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def stored_format(path: Path) -> str | None:
    """Which format a file has by its first bytes, or by its name where these say nothing."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(8)
    except OSError:
        begin = b""
    by_bytes = (name for name, begins in _BEGINNINGS.items() if begin.startswith(begins))
    return next(by_bytes, None) or _format_of(path)


def _read_slice(path: Path) -> tuple[Slab, _SliceKind]:
    """One slice's pixels and their kind; colour comes back grey in 8 bits, without alpha."""
    pixels = read_stored_pixels(path)
    bits = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:
        pixels, bits = _grey_of_colour(pixels, path), 8
    return pixels, _SliceKind(pixels.shape[0], pixels.shape[1], bits)


def read_stored_pixels(
    path: Path, kind: str | None = None
) -> Integer[np.ndarray, "height width *samples"]:
    """The pixels of one slice file as stored, coloured ones too.

    Args:
        path: The file.
        kind: "TIFF", "PNG" or "JPEG"; None: what its name says.

    Raises:
        ReadError: Damaged, several pages, too large, or not of 8 or 16 bits.
    """
    from PIL.Image import DecompressionBombError

    name = kind or _format_of(path)
    try:
        with _quiet_decoders():
            return _read_tiff(path) if name == "TIFF" else _read_picture(path, name or "")
    except (*_DAMAGE, DecompressionBombError) as error:
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
    import tifffile

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
    if not (is_whole and is_inside) or max(page.tilewidth, page.tilelength) > _MAX_SIDE:
        raise ReadError(f"{path.name} is cut short or damaged: not all its pixels are in the file.")


def _read_picture(path: Path, kind: str) -> Integer[np.ndarray, "height width *colours"]:
    from PIL import Image

    num_bytes = path.stat().st_size
    if num_bytes > _MAX_PICTURE_BYTES:
        raise ReadError(
            f"{path.name} has {num_bytes} bytes; at most {_MAX_PICTURE_BYTES} are read."
        )
    # From memory, where Pillow cannot ask for the gigabytes that a damaged PNG chunk declares.
    content = BytesIO(path.read_bytes())
    with Image.open(content, formats=(kind,)) as picture:
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
    if not (0 < rows <= _MAX_SIDE and 0 < columns <= _MAX_SIDE):
        msg = f"{path.name} is {rows} x {columns} pixels; 1 to {_MAX_SIDE} a side are read."
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


def is_slice_folder(folder: Path) -> bool:
    """Whether a folder holds TIFF, PNG or JPEG files, by their names."""
    return any(_format_of(path) for path in _visible_files(folder))


def read_tiff_stack(
    folder: Path, geometry: TiffGeometry | None, allow: Collection[str] = ()
) -> Volume:
    """Read a folder of single-page slices, in natural order of their names (2 before 10).

    16-bit slices become HU as the geometry says. 8-bit, RGB and RGBA slices have no absolute
    scale: they are read as unit "windowed" (0 to 255), whatever unit the geometry names, with a
    warning; colour must be grey (red, green and blue equal but for JPEG's rounding), alpha is
    ignored. Where a folder holds TIFF, PNG and JPEG files, the first of these is read and the
    rest left out.

    Args:
        folder: Folder with one file per slice. Sub-folders are not entered.
        geometry: Voxel size, order and scale; None to take them from the folder's sidecar.
        allow: "bad-slices" interpolates slices that do not fit their neighbours; "gap" reads a scan
            that jumps as it lies.

    Returns:
        int16 voxels where slope and intercept keep whole numbers that fit, else float32.
        Depth runs as the files do; blank slices at the ends are left out.

    Raises:
        ReadError: No slices, no geometry, a damaged slice, several pages, differing sizes or
            depths, coloured or floating-point slices, HU that no chest CT has: the message
            names the file. Or slices that do not fit, and that was not allowed.
    """
    paths, left_out = _find_slices(folder)
    geometry = geometry or _read_sidecar(folder)
    if geometry is None:
        msg = f"{folder.resolve().name} holds {len(paths)} image slices without voxel size and map"
        msg += " to HU. Give --spacing-mm, --order, --slope and --intercept (tiff= in Python), or"
        raise ReadError(f"{msg} put a file {SIDECAR} beside them, such as {_EXAMPLE}.")
    kind = _read_slice(paths[0])[1]
    shape = (len(paths), kind.rows, kind.columns)
    if math.prod(shape) > MAX_VOXELS:
        msg = f"{folder.resolve().name} has {shape} voxels, more than the {MAX_VOXELS}"
        raise ReadError(f"{msg} that are read. {SMALLER}")
    unit: Unit = geometry.unit if kind.bits == 16 else "windowed"
    rescale = Rescale(geometry.slope or 1.0, geometry.intercept or 0.0) if unit == "HU" else None
    gathered = gather(_slabs(paths, kind), shape, rescale=rescale)
    warnings = [*_number_warnings(paths), *_left_out_warnings(left_out)]
    if unit == "HU":
        warnings += _settle_hounsfield(gathered, geometry, folder)
    elif unit != geometry.unit:
        warnings.append(f"{kind.bits}-bit slices have no absolute scale: read as windowed.")
    elif gathered.highest > WINDOWED_HIGHEST:
        warnings.append(
            f"Windowed values reach {gathered.highest:g}; 0 to {WINDOWED_HIGHEST} was expected,"
            f" and recipes with a window cut off what is above."
        )
    warnings += mend_misfits(gathered.voxels, unit, allow)
    volume = Volume(
        grid=_grid(geometry, shape),
        voxels=gathered.voxels,
        unit=unit,
        source=ScanSource(format="tiff", facts={"stored_bits": str(kind.bits)}, left_out=left_out),
        warnings=tuple(warnings),
    )
    return without_blank_ends(volume)


def _settle_hounsfield(gathered: Gathered, geometry: TiffGeometry, folder: Path) -> list[str]:
    """Refuse values that no chest CT has under the stated map; set padding to air, in place."""
    doubt = why_not_hounsfield(gathered.voxels, gathered.lowest)
    if doubt:
        msg = f"{folder.resolve().name} cannot be in HU with slope {geometry.slope:g} and intercept"
        raise ReadError(
            f'{msg} {geometry.intercept:g}: {doubt}. Correct them, or set the unit "windowed".'
        )
    return padding_to_air(gathered.voxels)


def _visible_files(folder: Path) -> list[Path]:
    """Files of a folder without hidden ones (macOS puts a ._slice.tif beside slice.tif)."""
    if not folder.is_dir():
        raise ReadError(
            f"{folder.resolve().name} is not a folder; a folder of image slices was expected."
        )
    try:
        return [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise ReadError(f"{folder.resolve().name} cannot be listed: {error.strerror}.") from error


def _find_slices(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """The slices in order, and how many other files there are of which kind."""
    files = [path for path in _visible_files(folder) if path.name != SIDECAR]
    by_format = {name: [path for path in files if _format_of(path) == name] for name in SUFFIXES}
    chosen = next((name for name, paths in by_format.items() if paths), None)
    if chosen is None:
        msg = f"{folder.resolve().name} holds no TIFF, PNG or JPEG slices among its"
        raise ReadError(f"{msg} {len(files)} files. Name the folder of the slices.")
    left_out = {name: len(paths) for name, paths in by_format.items() if paths and name != chosen}
    num_other = len(files) - sum(len(paths) for paths in by_format.values())
    if num_other:
        left_out["not an image"] = num_other
    return sorted(by_format[chosen], key=_natural_key), left_out


def _natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sorts slice2 before slice10; equal numbers (1, 01) by name, so that the order is fixed."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path.stem.lower())
    return [(text, int(number or -1)) for text, number in parts], path.name


def _number_warnings(paths: list[Path]) -> list[str]:
    """Say that the last number in the names jumps, as it does when slices are missing."""
    endings = [re.search(r"([0-9]+)[^0-9]*$", path.stem) for path in paths]
    numbers = [int(ending.group(1)) for ending in endings if ending]
    steps = np.diff(numbers)
    if len(numbers) < len(paths) or len(steps) < 2 or min(steps) < 1:
        return []
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    jumps = [index for index, step in enumerate(steps) if step != usual]
    if not jumps:
        return []
    first = f"from {numbers[jumps[0]]} to {numbers[jumps[0] + 1]}"
    return [
        f"The numbers in the file names jump {len(jumps)} times, first {first}: slices may be"
        f" missing. They were read as evenly spaced."
    ]


def _left_out_warnings(left_out: dict[str, int]) -> list[str]:
    pictures = {name: count for name, count in left_out.items() if name in SUFFIXES}
    listed = ", ".join(f"{count} {name}" for name, count in pictures.items())
    return [f"Pictures beside the slices were left out: {listed}."] if pictures else []


def _grid(geometry: TiffGeometry, shape: Shape) -> Grid:
    to_head = 1.0 if geometry.order == "ascending" else -1.0
    return Grid(
        shape=shape,
        spacing_mm=geometry.spacing_mm,
        direction=((0.0, 0.0, to_head), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )


def _slabs(paths: list[Path], kind: _SliceKind) -> Iterator[Slab]:
    for path in paths:
        pixels, found = _read_slice(path)
        if found != kind:
            msg = f"{path.name} is {found}, while {paths[0].name} is {kind}; all slices must be"
            raise ReadError(f"{msg} alike. Put each series into a folder of its own.")
        yield pixels

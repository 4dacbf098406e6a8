"""Find the bytes of a frame and turn its stored values into Hounsfield units.

Frames are native pixels or encapsulated fragments (PS3.5 section A.4); only item headers are read
on the way, so that a multi-frame file is never held in memory. Scans are rescaled (PS3.3
C.7.6.3.1, C.11.1) into int16 wherever that is exact, straight into the volume's own memory.
"""

from __future__ import annotations

import math
import struct
from io import BufferedIOBase
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Num

from chestct.readers.dicom_decoders import LOSSY, Pixels, decode_frame
from chestct.readers.dicom_elements import ITEM, SEQUENCE_END, UNDEFINED
from chestct.readers.dicom_headers import DicomHeader, Fields, PixelLayout
from chestct.readers.files import BROKEN_STREAM, UnreadableFileError, read_range
from chestct.readers.hounsfield import LookupTable, Rescale
from chestct.volume import AIR_HU, MAX_VOXELS

_ByteRange: TypeAlias = tuple[int, int]
"""Position and length in a file."""
FrameRanges: TypeAlias = tuple[_ByteRange, ...]
"""The pieces that make up one frame, in order."""

_MAX_FRAGMENTS = 200_000
"""Most fragments in one file, ten for each frame allowed."""

_TAG_AND_LENGTH = struct.Struct("<HHL")
_ITEM_HEADER_BYTES = 8
_SMALLEST_LIMIT = 2**16


def locate_frames(stream: BufferedIOBase, layout: PixelLayout) -> list[FrameRanges]:
    """Where each frame of a file lies.

    Raises:
        UnreadableFileError: Fewer frames than declared, pieces beyond the end of the file, or a
            frame that is larger compressed than it could be.
    """
    if layout.length != UNDEFINED:
        return _native_frames(layout)
    table, fragments = _fragments(stream, layout)
    frames = _grouped(stream, table, fragments, layout)
    limit = 2 * layout.frame_bytes + _SMALLEST_LIMIT
    for ranges in frames:
        size = sum(length for _, length in ranges)
        if not 0 < size <= limit:
            raise UnreadableFileError(f"has a compressed frame of {size} bytes")
    return frames


def _read_frame(stream: BufferedIOBase, ranges: FrameRanges) -> bytes:
    """The bytes of one frame, its pieces put together."""
    pieces = [read_range(stream, start, length) for start, length in ranges]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _native_frames(layout: PixelLayout) -> list[FrameRanges]:
    """Frames of uncompressed pixels lie one after the other."""
    size = layout.frame_bytes
    if layout.length < size * layout.num_frames:
        msg = (
            f"holds {layout.length} bytes of pixels where {size * layout.num_frames} were expected"
        )
        raise UnreadableFileError(msg)
    return [((layout.offset + i * size, size),) for i in range(layout.num_frames)]


def _fragments(stream: BufferedIOBase, layout: PixelLayout) -> tuple[list[int], list[_ByteRange]]:
    """The Basic Offset Table and all fragments; the end of the file may stand for the delimiter."""
    table, position = _basic_offset_table(stream, layout.offset)
    fragments: list[_ByteRange] = []
    while True:
        header = _item_header(stream, position)
        if header is None or header[0] == SEQUENCE_END:
            break
        tag, length = header
        if tag != ITEM or length == UNDEFINED or len(fragments) >= _MAX_FRAGMENTS:
            raise UnreadableFileError(f"has broken encapsulated pixels at byte {position}")
        fragments.append((position + _ITEM_HEADER_BYTES, length))
        position += _ITEM_HEADER_BYTES + length
    if not fragments:
        raise UnreadableFileError("holds no pixels: its encapsulated pixel data is empty")
    return table, fragments


def _basic_offset_table(stream: BufferedIOBase, position: int) -> tuple[list[int], int]:
    """Offsets of the frames from the first fragment, often none, and where that fragment starts."""
    header = _item_header(stream, position)
    if header is None or header[0] != ITEM or header[1] > 4 * _MAX_FRAGMENTS:
        raise UnreadableFileError("has encapsulated pixels without an offset table")
    length = header[1] - header[1] % 4
    content = read_range(stream, position + _ITEM_HEADER_BYTES, length)
    offsets = [int(n) for (n,) in struct.iter_unpack("<L", content)]
    return offsets, position + _ITEM_HEADER_BYTES + header[1]


def _item_header(stream: BufferedIOBase, position: int) -> tuple[int, int] | None:
    """Tag and length of an item; None at the end of the file."""
    try:
        stream.seek(position)
        content = stream.read(_ITEM_HEADER_BYTES)
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be read ({type(error).__name__})") from error
    if len(content) < _ITEM_HEADER_BYTES:
        return None
    group, number, length = _TAG_AND_LENGTH.unpack(content)
    return group << 16 | number, length


def _grouped(
    stream: BufferedIOBase, table: list[int], fragments: list[_ByteRange], layout: PixelLayout
) -> list[FrameRanges]:
    """Fragments put together into frames, by whichever table or sign there is."""
    if layout.num_frames == 1:
        return [tuple(fragments)]
    if len(fragments) == layout.num_frames:
        return [(fragment,) for fragment in fragments]
    offsets = _extended_offsets(layout) or table
    base = fragments[0][0] - _ITEM_HEADER_BYTES
    starts = [base + offset + _ITEM_HEADER_BYTES for offset in offsets]
    if len(starts) != layout.num_frames:
        starts = [start for start, length in fragments if _begins_image(stream, start, length)]
    known = {start: index for index, (start, _) in enumerate(fragments)}
    if len(starts) != layout.num_frames or any(start not in known for start in starts):
        msg = (
            f"has {len(fragments)} pieces of pixels for {layout.num_frames} frames, no way to tell"
        )
        raise UnreadableFileError(f"{msg} which belong together")
    bounds = [*(known[start] for start in starts), len(fragments)]
    return [tuple(fragments[first:last]) for first, last in pairwise(bounds)]


def _extended_offsets(layout: PixelLayout) -> list[int]:
    """The Extended Offset Table (PS3.3 C.7.6.3.1.8): 64-bit offsets, as the basic one."""
    content = layout.offset_table[0]
    content = content[: len(content) - len(content) % 8]
    return [int(n) for (n,) in struct.iter_unpack("<Q", content)]


def _begins_image(stream: BufferedIOBase, start: int, length: int) -> bool:
    """Whether a fragment starts a JPEG, JPEG-LS or JPEG 2000 image, not goes on with one."""
    return length >= 4 and read_range(stream, start, 4)[:3] in (b"\xff\xd8\xff", b"\xff\x4f\xff")


_MAX_SIDE = 4096
"""Most rows or columns; CT matrices are 512 to 2048."""
_MAX_FRAMES = 20_000
"""Most frames in one file."""
_MAX_RESCALE = 1e6
"""Largest slope or intercept believed."""

_INT16 = np.iinfo(np.int16)
_DESCRIPTOR_BYTES = 6

Slab = Num[np.ndarray, "rows columns"]


def check_layout(layout: PixelLayout) -> None:
    """Check that a CT image's layout is possible, before anything is allocated for it.

    Raises:
        UnreadableFileError: Sizes, frames or bits that no CT image has.
    """
    sides, frames = (layout.rows, layout.columns), layout.num_frames
    if min(sides) < 1 or max(sides) > _MAX_SIDE or not 1 <= frames <= _MAX_FRAMES:
        msg = f"declares {frames} frame(s) of {sides[0]} x {sides[1]}; at most {_MAX_FRAMES} of"
        raise UnreadableFileError(f"{msg} {_MAX_SIDE} x {_MAX_SIDE} are read")
    if layout.rows * layout.columns * frames > MAX_VOXELS:
        raise UnreadableFileError(f"declares more than {MAX_VOXELS} voxels")
    allocated, stored = layout.bits_allocated, layout.bits_stored
    fits = 1 <= stored <= allocated and stored - 1 <= layout.high_bit < allocated
    if allocated not in (8, 16, 32) or not fits:
        msg = f"declares {stored} bits, highest {layout.high_bit}, in {allocated}; 8, 16 or 32"
        raise UnreadableFileError(f"{msg} bits were expected")


def frame_rescale(header: DicomHeader, frame: Fields) -> Rescale:
    """How a frame's values become Hounsfield units; as they are when the file does not say.

    Raises:
        UnreadableFileError: A slope or intercept that is not a number, zero or absurd.
    """
    slope = frame.numbers("slope", 1) or (1.0,)
    intercept = frame.numbers("intercept", 1) or (0.0,)
    if slope[0] == 0 or max(abs(slope[0]), abs(intercept[0])) > _MAX_RESCALE:
        msg = f"has an impossible rescale slope or intercept ({slope[0]:g}, {intercept[0]:g})"
        raise UnreadableFileError(msg)
    padding = _padding(header, slope[0], intercept[0])
    return Rescale(slope[0], intercept[0], padding, _lookup_table(header))


def _lookup_table(header: DicomHeader) -> LookupTable | None:
    """The Modality LUT of a file, which stands in place of slope and intercept (PS3.3 C.11.1).

    Raises:
        UnreadableFileError: The table is not as long as its descriptor says.
    """
    fields, layout = header.fields, header.layout
    descriptor = fields.raw.get("lut_descriptor", b"")
    if layout is None or len(descriptor) < _DESCRIPTOR_BYTES:
        return None
    order = fields.order
    num_values, first, bits = (int(n) for n in np.frombuffer(descriptor, f"{order}u2")[:3])
    # The first number mapped is signed where the pixels are (PS3.3 C.11.1.1.1).
    if layout.is_signed and first >= 2**15:
        first -= 2**16
    num_values = num_values or 2**16
    content = fields.raw.get("lut_data", b"")
    kind = "u1" if bits == 8 and len(content) < 2 * num_values else f"{order}u2"
    values = np.frombuffer(content, kind)[:num_values] if len(content) % 2 == 0 else np.empty(0)
    if len(values) < num_values:
        msg = f"has a Modality LUT of {len(values)} values where {num_values} were expected"
        raise UnreadableFileError(msg)
    # Data are unsigned, but those in Hounsfield units have to hold values below zero.
    signed = values.astype(np.uint16).view(np.int16)
    is_hounsfield = fields.text("lut_type").upper() in ("", "HU")
    return LookupTable(
        first, signed if is_hounsfield else np.minimum(values, _INT16.max).astype(np.int16)
    )


def load_frame(
    header: DicomHeader,
    index: int,
    ranges: list[FrameRanges] | None,
    space: Pixels | None = None,
) -> Pixels:
    """Read and decode one frame: the stored values, their unused bits still there.

    Args:
        header: The file.
        index: Which frame.
        ranges: Where all frames lie, if that was looked up before.
        space: 16-bit values to decode into where the decoder can; saves an allocation.

    Raises:
        UnreadableFileError: The file is cut short, damaged, or in an unknown encoding.
    """
    layout = header.layout
    if layout is None:
        raise ValueError("A file without pixels has no frames.")
    try:
        with header.source.open() as stream:
            located = ranges or locate_frames(stream, layout)
            content = _read_frame(stream, located[index])
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be read ({type(error).__name__})") from error
    return decode_frame(content, layout, space)


def to_hounsfield(pixels: Pixels, layout: PixelLayout, rescale: Rescale, out: Slab) -> int:
    """Rescale a frame into `out`, padding set to air.

    Args:
        pixels: Stored values as decoded; `out` may be the same memory.
        layout: How they are stored.
        rescale: How they become Hounsfield units.
        out: Where they go, int16 or float32, (rows, columns).

    Returns:
        How many values int16 could not hold and were set to its nearest end; padding is none.
    """
    stored = unpacked(pixels, layout)
    is_padding = _is_padding(pixels, stored, layout, rescale.padding)
    num_clipped = 0
    if rescale.table is not None:
        out[...] = rescale.table.apply(stored)
    elif out.dtype == np.int16:
        whole = round(rescale.slope), round(rescale.intercept)
        num_clipped = _rescale_whole(stored, whole, is_padding, out)
    else:
        np.multiply(stored, rescale.slope, out=out, casting="unsafe")
        out += out.dtype.type(rescale.intercept)
    if is_padding is not None:
        out[is_padding] = AIR_HU
    return num_clipped


def unpacked(pixels: Pixels, layout: PixelLayout) -> Pixels:
    """Stored values without the bits around them, with their sign."""
    num_bits = 8 * pixels.itemsize
    # Decoders give a value's own bits, whatever lay around them before compression.
    is_native = layout.length != UNDEFINED
    shift = layout.high_bit + 1 - layout.bits_stored if is_native else 0
    values = pixels.view(f"u{pixels.itemsize}")
    if shift:
        values = values >> values.dtype.type(shift)
    if layout.bits_stored >= num_bits:
        return values.view(f"i{pixels.itemsize}") if layout.is_signed else values
    if layout.is_signed:
        return _sign_extended(values, layout.bits_stored)
    return np.asarray(values & values.dtype.type((1 << layout.bits_stored) - 1))


def _sign_extended(values: Pixels, num_bits: int) -> Pixels:
    """Two's complement of fewer bits than the type has."""
    unused = 8 * values.itemsize - num_bits
    signed = (values << values.dtype.type(unused)).view(f"i{values.itemsize}")
    return np.asarray(signed >> signed.dtype.type(unused))


def _rescale_whole(
    stored: Pixels,
    whole: tuple[int, int],
    is_padding: Bool[np.ndarray, "rows columns"] | None,
    out: Slab,
) -> int:
    """Rescale by a whole slope and intercept into int16; the count of values that did not fit."""
    slope, intercept = whole
    ends = sorted(int(end) * slope + intercept for end in (stored.min(), stored.max()))
    if ends[0] >= _INT16.min and ends[1] <= _INT16.max and stored.itemsize == 2:
        # Arithmetic modulo 2^16 is exact because every result fits.
        values = stored.view(np.int16)
        if slope != 1:
            values = np.multiply(values, _wrapped(slope), out=out)
        np.add(values, _wrapped(intercept), out=out)
        return 0
    wide = stored.astype(np.int64) * slope + intercept
    np.clip(wide, _INT16.min, _INT16.max, out=out, casting="unsafe")
    if ends[0] >= _INT16.min and ends[1] <= _INT16.max:
        return 0
    is_beyond = (wide < _INT16.min) | (wide > _INT16.max)
    if is_padding is not None:
        is_beyond &= ~is_padding
    return int(np.count_nonzero(is_beyond))


def _wrapped(number: int) -> np.int16:
    """A whole number modulo 2^16, as int16."""
    return np.int16((number + 2**15) % 2**16 - 2**15)


def _padding(header: DicomHeader, slope: float, intercept: float) -> tuple[int, int] | None:
    """Range of stored values that stand for "no data" (PS3.3 C.7.5.1.1.2)."""
    fields, layout = header.fields, header.layout
    if layout is None or not fields.raw.get("padding_value"):
        return None
    value = fields.integer("padding_value", is_signed=layout.is_signed)
    limit = fields.integer("padding_limit", value, is_signed=layout.is_signed)
    low, high = min(value, limit), max(value, limit)
    air = (AIR_HU - intercept) / slope
    if layout.syntax in LOSSY and slope > 0 and high < air:
        # Lossy compression blurs padding: what is nearer to it than to air is no measurement.
        return -(2**31), max(high, math.floor((high + air) / 2))
    return low, high


def _is_padding(
    pixels: Pixels, stored: Pixels, layout: PixelLayout, padding: tuple[int, int] | None
) -> Bool[np.ndarray, "rows columns"] | None:
    """Where a frame holds "no data"; None when it nowhere can."""
    if padding is None:
        return None
    low, high = padding
    if low != high:
        return np.asarray((stored >= low) & (stored <= high))
    # Some scanners pad with a value that needs more than the stored bits.
    raw = pixels.view(f"u{pixels.itemsize}")
    found = raw == (low & ((1 << 8 * pixels.itemsize) - 1))
    return np.asarray(found | (stored == low))

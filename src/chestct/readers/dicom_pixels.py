"""Find the bytes of a frame, decode them, and turn stored values into Hounsfield units.

Frames are native pixels or encapsulated fragments (PS3.5 section A.4); only item headers are read
on the way, so that a multi-frame file is never held in memory. Scans are rescaled (PS3.3
C.7.6.3.1, C.11.1) into int16 wherever that is exact, straight into the volume's own memory.

imagecodecs decodes. Decoders allocate what a compressed image claims to be, so its own header is
read first and has to agree with the DICOM header, which has passed the bounds. JPEG Lossless goes
through libjpeg-turbo alone: it decodes all predictors and precisions and was never seen to crash
on damaged input. HTJ2K goes through OpenJPEG, because OpenJPH's binding reports errors on stderr
only.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from io import BufferedIOBase
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import imagecodecs
import numpy as np
from jaxtyping import Bool, Num, UInt8, UInt16

from chestct.readers.dicom_elements import (
    BIG_ENDIAN_UID,
    DEFLATED_UID,
    EXPLICIT_UID,
    IMPLICIT_UID,
    ITEM,
    SEQUENCE_END,
    UNDEFINED,
)
from chestct.readers.dicom_headers import LOSSY_SYNTAXES, DicomHeader, Fields, PixelLayout
from chestct.readers.files import UnreadableFileError, memory_file, read_range, readable
from chestct.readers.hounsfield import HU_NAMES, LookupTable, Rescale, Slab
from chestct.volume import AIR_HU, MAX_VOXELS

_Pixels = Num[np.ndarray, "rows columns"]
"""Values as stored, before bits are masked and rescaled."""

_ByteRange: TypeAlias = tuple[int, int]
"""Position and length in a file."""
_FrameRanges: TypeAlias = tuple[_ByteRange, ...]
"""The pieces that make up one frame, in order."""
LocatedFile: TypeAlias = tuple[DicomHeader, list[_FrameRanges] | None]
"""A file, and where its frames lie; None where it has one, which is found as it is read."""

_MAX_FRAGMENTS = 200_000
"""Most fragments in one file, ten for each frame allowed."""

_TAG_AND_LENGTH = struct.Struct("<HHL")
_ITEM_HEADER_BYTES = 8
_SMALLEST_LIMIT = 2**16


def located(header: DicomHeader) -> LocatedFile:
    """A file with its frames located, unpacked once if it has several and cannot be sought in.

    Raises:
        UnreadableFileError: It cannot be read, or has not the frames it declares.
    """
    layout, source = header.layout, header.source
    if layout is None or layout.num_frames == 1:
        return header, None
    with readable():
        if not source.is_seekable:
            # Compressed frames can be as long as uncompressed ones.
            slack = 0 if layout.length != UNDEFINED else layout.frame_bytes * layout.num_frames
            with source.open() as stream:
                content = stream.read(layout.native_end + slack)
            source = memory_file(content, source.name, source.stored_bytes)
        with source.open() as stream:
            return replace(header, source=source), _locate_frames(stream, layout)


def _locate_frames(stream: BufferedIOBase, layout: PixelLayout) -> list[_FrameRanges]:
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


def _native_frames(layout: PixelLayout) -> list[_FrameRanges]:
    """Frames of uncompressed pixels lie one after the other.

    Padding may follow them, but no further row: rows, columns or frames were then declared wrong.
    """
    size = layout.frame_bytes
    if not 0 <= layout.length - size * layout.num_frames < size // layout.rows:
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
    with readable():
        stream.seek(position)
        content = stream.read(_ITEM_HEADER_BYTES)
    if len(content) < _ITEM_HEADER_BYTES:
        return None
    group, number, length = _TAG_AND_LENGTH.unpack(content)
    return group << 16 | number, length


def _grouped(
    stream: BufferedIOBase, table: list[int], fragments: list[_ByteRange], layout: PixelLayout
) -> list[_FrameRanges]:
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

_TISSUE_HU = (-500, 3000)
"""What tissue and bone have: no value within it stands for "no data"."""

_INT16 = np.iinfo(np.int16)
_DESCRIPTOR_BYTES = 6


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
    is_hounsfield = fields.text("lut_type").upper() in HU_NAMES
    return LookupTable(
        first, signed if is_hounsfield else np.minimum(values, _INT16.max).astype(np.int16)
    )


def load_hounsfield(file: LocatedFile, index: int, rescale: Rescale, out: Slab) -> int:
    """Read and decode one frame, and rescale it into `out`, padding set to air.

    Args:
        file: What `located` gives of its file.
        index: Which frame.
        rescale: How its values become Hounsfield units.
        out: Where they go, int16 or float32, (rows, columns).

    Returns:
        How many values int16 could not hold and were set to its nearest end; padding is none.

    Raises:
        UnreadableFileError: The file is cut short, damaged, or in an unknown encoding.
    """
    (header, ranges), space = file, out.view(np.uint16) if out.dtype == np.int16 else None
    layout = header.layout
    if layout is None:
        raise ValueError("A file without pixels has no frames.")
    with readable(), header.source.open() as stream:
        pieces = (ranges or _locate_frames(stream, layout))[index]
        content = b"".join(read_range(stream, *piece) for piece in pieces)
    return _to_hounsfield(_decode_frame(content, layout, space), layout, rescale, out)


def _to_hounsfield(pixels: _Pixels, layout: PixelLayout, rescale: Rescale, out: Slab) -> int:
    """Rescale stored values, which may be in the same memory, into `out`; how many did not fit."""
    stored = _unpacked(pixels, layout)
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


def _unpacked(pixels: _Pixels, layout: PixelLayout) -> _Pixels:
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
        read = _sign_extended(values, layout.bits_stored)
    else:
        read = np.asarray(values & values.dtype.type((1 << layout.bits_stored) - 1))
    if values.max() >> layout.bits_stored:
        _check_bits(values.view(read.dtype), read, layout.bits_stored)
    return read


def _check_bits(whole: _Pixels, read: _Pixels, bits_stored: int) -> None:
    """Compare values with what is left of them in as many bits as they are said to have.

    An overlay or padding in the bits above is no part of a value: what is read without it is
    nearer to the pixel beside. Where the whole value is nearer, it has more bits.

    Raises:
        UnreadableFileError: Values have more bits.
    """
    is_more = whole != read
    edges = is_more[:, :-1] & ~is_more[:, 1:]
    beside = read[:, 1:][edges].astype(np.int64)
    away, read_away = (np.abs(each[:, :-1][edges] - beside) for each in (whole, read))
    if 2 * np.count_nonzero(away < read_away) > len(beside):
        msg = f"has values of more than the {bits_stored} bits that its header says (BitsStored)"
        raise UnreadableFileError(msg)


def _sign_extended(values: _Pixels, num_bits: int) -> _Pixels:
    """Two's complement of fewer bits than the type has."""
    unused = 8 * values.itemsize - num_bits
    signed = (values << values.dtype.type(unused)).view(f"i{values.itemsize}")
    return np.asarray(signed >> signed.dtype.type(unused))


def _rescale_whole(
    stored: _Pixels,
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
    """Range of stored values that stand for "no data" (PS3.3 C.7.5.1.1.2).

    None where tissue has them too: what is set to air would be holes in it.
    """
    fields, layout = header.fields, header.layout
    if layout is None or not fields.raw.get("padding_value"):
        return None
    value = fields.integer("padding_value", is_signed=layout.is_signed)
    limit = fields.integer("padding_limit", value, is_signed=layout.is_signed)
    low, high = min(value, limit), max(value, limit)
    lowest, highest = sorted((low * slope + intercept, high * slope + intercept))
    if highest > _TISSUE_HU[0] and lowest < _TISSUE_HU[1]:
        return None
    air = (AIR_HU - intercept) / slope
    if layout.syntax in LOSSY_SYNTAXES and slope > 0 and high < air:
        # Lossy compression blurs padding: what is nearer to it than to air is no measurement.
        return -(2**31), max(high, math.floor((high + air) / 2))
    return low, high


def _is_padding(
    pixels: _Pixels, stored: _Pixels, layout: PixelLayout, padding: tuple[int, int] | None
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


_MAX_TILES = 4096
"""Most tiles of a JPEG 2000 image; decoders allocate for each."""

_DECODE_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, MemoryError, struct.error)
"""What decoders raise on damaged pixels; imagecodecs' own errors are RuntimeErrors."""

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_LS_PRESET, _OVERSIZE_IMAGE = 0xF8, 4
_CODESTREAM_START = b"\xff\x4f\xff\x51"
_END_OF_IMAGE, _END_OF_CODESTREAM = b"\xff\xd9", b"\xff\xd9"
_LOSSLESS, _HUFFMAN, _SCAN, _RESTART_INTERVAL = 0xC3, 0xC4, 0xDA, 0xDD
_RESTARTS = range(0xD0, 0xD8)
_TILE_PART = b"\xff\x90"
_NUM_CATEGORIES = 17


def _decode_frame(content: bytes, layout: PixelLayout, space: _Pixels | None = None) -> _Pixels:
    """Decode one frame into stored values, 16-bit ones into `space` where the decoder can."""
    decode = _DECODERS.get(layout.syntax)
    if decode is None:
        msg = f"is in an encoding that is not supported (transfer syntax {layout.syntax})"
        raise UnreadableFileError(msg)
    try:
        pixels = decode(content, layout, space)
    except _DECODE_ERRORS as error:
        msg = f"has damaged pixels ({type(error).__name__} while decoding)"
        raise UnreadableFileError(msg) from error
    if pixels.shape != (layout.rows, layout.columns) or pixels.dtype.kind not in "iu":
        raise UnreadableFileError(f"decodes to {pixels.dtype} pixels of shape {pixels.shape}")
    return pixels


def _native(content: bytes, layout: PixelLayout, _: _Pixels | None) -> _Pixels:
    """Uncompressed pixels, in the byte order of the file."""
    stored = np.dtype(f"{layout.order}u{layout.bits_allocated // 8}")
    pixels = np.frombuffer(content, dtype=stored).reshape(layout.rows, layout.columns)
    return pixels.astype(stored.newbyteorder("="), copy=False)


def _rle(content: bytes, layout: PixelLayout, _: _Pixels | None) -> _Pixels:
    """RLE (PS3.5 annex G): PackBits segments, one for each byte of a value, the highest first."""
    num_bytes = layout.bits_allocated // 8
    num_segments, *starts = struct.unpack_from("<16L", content)
    if num_segments != num_bytes:
        raise UnreadableFileError(f"has {num_segments} RLE segments")
    bounds = [*starts[:num_bytes], len(content)]
    size = layout.rows * layout.columns
    planes = np.empty((size, num_bytes), dtype=np.uint8)
    for index in range(num_bytes):
        segment = content[bounds[index] : bounds[index + 1]]
        planes[:, num_bytes - 1 - index] = _rle_segment(segment, size)
    return (
        planes.view(f"<u{num_bytes}")
        .astype(f"u{num_bytes}", copy=False)
        .reshape(layout.rows, layout.columns)
    )


def _rle_segment(segment: bytes, size: int) -> UInt8[np.ndarray, " size"]:
    """One segment unpacked; it has to hold as many bytes as there are values, no more, no less.

    More than fit is an error of the decoder's own. A zero that pads a segment to an even length
    (PS3.5 G.3.1) begins a run that never comes, which it passes over.
    """
    unpacked = np.frombuffer(imagecodecs.packbits_decode(segment, out=size), np.uint8)
    if len(unpacked) < size:
        msg = f"has damaged pixels: an RLE segment ends {size - len(unpacked)} bytes early"
        raise UnreadableFileError(msg)
    return unpacked


def _jpeg(content: bytes, layout: PixelLayout, space: _Pixels | None) -> _Pixels:
    """JPEG: lossless with any predictor, and the 8- and 12-bit lossy processes."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    end = _end_of_image(content)
    pixels = np.asarray(imagecodecs.jpeg8_decode(content, out=space if num_bits > 8 else None))
    scan = _lossless_scan(content)
    if scan is not None and pixels.shape == (layout.rows, layout.columns):
        _check_scan(memoryview(content)[scan.start : end], scan, pixels)
    return pixels


def _jpeg_ls(content: bytes, layout: PixelLayout, space: _Pixels | None) -> _Pixels:
    """JPEG-LS, lossless and near-lossless; CharLS itself notices data left over or missing."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    _end_of_image(content)
    return np.asarray(imagecodecs.jpegls_decode(content, out=space if num_bits > 8 else None))


def _jpeg_2000(content: bytes, layout: PixelLayout, _: _Pixels | None) -> _Pixels:
    """JPEG 2000 and HTJ2K; a JP2 wrapping, which DICOM forbids and some write, is taken off."""
    start = content.find(_CODESTREAM_START)
    if start < 0:
        raise UnreadableFileError("holds no JPEG 2000 image")
    codestream = content[start:] if start else content
    _checked_bits(_jpeg_2000_size(codestream), layout)
    _check_tile_parts(codestream)
    with _no_warnings():
        return np.asarray(imagecodecs.jpeg2k_decode(codestream, numthreads=1, verbose=2))


class _Warnings(logging.Filter):
    """Keeps what imagecodecs logs, thread by thread; nothing of it is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record of a thread that asked for it."""
        messages: list[str] | None = getattr(self.kept, "messages", None)
        if messages is not None:
            messages.append(record.getMessage())
        return messages is None


_WARNINGS = _Warnings()
logging.getLogger("imagecodecs").addFilter(_WARNINGS)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Take a decoder's warnings for what they are: damage.

    Raises:
        UnreadableFileError: It warned, and gave pixels all the same.
    """
    messages: list[str] = []
    _WARNINGS.kept.messages = messages
    try:
        yield
    finally:
        _WARNINGS.kept.messages = None
    if messages:
        text = "".join(x for x in messages[0].rpartition(":")[2] if x.isprintable()).strip()
        raise UnreadableFileError(f"has damaged pixels: the decoder says '{text[:80]}'")


def _end_of_image(content: bytes) -> int:
    """Where the end mark of a JPEG or JPEG-LS image starts; padding may follow it.

    Raises:
        UnreadableFileError: There is none, or more than padding follows.
    """
    end = content.rfind(_END_OF_IMAGE)
    if end < 0:
        raise UnreadableFileError("has damaged pixels: no end mark")
    num_after = len(content) - end - 2
    if num_after > 1 and content[end + 2 :].strip(b"\0\xff"):
        msg = f"has damaged pixels: {num_after} bytes follow the end mark, or it is not one"
        raise UnreadableFileError(msg)
    return end


class _Scan(NamedTuple):
    """How the one scan of a lossless JPEG image is coded (ITU-T T.81 annex H)."""

    start: int
    bits: int
    lengths: tuple[int, ...]
    predictor: int
    shift: int
    restart: int


def _lossless_scan(content: bytes) -> _Scan | None:
    """Read the headers of a lossless JPEG image; None for another process or several scans."""
    tables: dict[int, tuple[int, ...]] = {}
    bits, restart = 0, 0
    for marker, start, end in _jpeg_segments(content):
        body = content[start:end]
        if marker in _START_OF_FRAME and marker != _LOSSLESS:
            return None
        if marker == _LOSSLESS:
            bits = body[0]
        elif marker == _RESTART_INTERVAL:
            restart = int(struct.unpack(">H", body)[0])
        elif marker == _HUFFMAN:
            tables |= _code_lengths(body)
        elif marker == _SCAN:
            lengths = tables.get(body[2] >> 4)
            if not bits or lengths is None:
                break
            return _Scan(end, bits, lengths, body[3], body[5] & 15, restart)
    raise UnreadableFileError("has damaged pixels: a JPEG scan without its tables")


def _code_lengths(body: bytes) -> dict[int, tuple[int, ...]]:
    """Bits of each category's code, by table, in a segment of tables (ITU-T T.81 B.2.4.2)."""
    tables: dict[int, tuple[int, ...]] = {}
    while body:
        counts = body[1:17]
        values = iter(body[17 : 17 + sum(counts)])
        lengths = [0] * 256
        for num_bits, count in enumerate(counts, start=1):
            for _ in range(count):
                lengths[next(values)] = num_bits
        tables[body[0]] = tuple(lengths[:_NUM_CATEGORIES])
        body = body[17 + sum(counts) :]
    return tables


def _check_scan(coded: memoryview, scan: _Scan, pixels: _Pixels) -> None:
    """Compare the length of a lossless scan with what its pixels take when they are coded.

    libjpeg goes on with zeros where data end early, and leaves what is left over; its warnings do
    not come through. The code of an image has one length, so that both show to the bit.

    Raises:
        UnreadableFileError: Data are left over or missing, or there are marks among them.
    """
    values = np.frombuffer(coded, np.uint8)
    while len(values) and values[-1] == 0xFF:
        # Any number of them may stand before a mark (ITU-T T.81 B.1.1.2).
        values = values[:-1]
    is_mark = values[:-1] == 0xFF
    num_marks, restarts = int(np.count_nonzero(is_mark)), 0
    num_intervals = 1 if not scan.restart else -(-pixels.size // scan.restart)
    # A zero follows what is no mark but a value of the data (ITU-T T.81 B.1.1.5).
    is_mark &= values[1:] != 0
    if is_mark.any():
        kinds = values[1:][is_mark]
        restarts = int(np.count_nonzero((kinds >= _RESTARTS.start) & (kinds < _RESTARTS.stop)))
    if restarts != num_intervals - 1 or restarts != np.count_nonzero(is_mark):
        raise UnreadableFileError("has damaged pixels: marks inside a JPEG scan")
    num_bits = 8 * (len(values) - num_marks - restarts)
    left = num_bits - _coded_bits(scan, pixels)
    if not 0 <= left < 8 * num_intervals:
        what = "are left over" if left > 0 else "are missing"
        msg = f"has damaged pixels: {-(-abs(left) // 8)} byte(s) {what} in a JPEG scan"
        raise UnreadableFileError(msg)


def _coded_bits(scan: _Scan, pixels: _Pixels) -> int:
    """Bits that the differences from their predictions take, all restart intervals together."""
    differences = _differences(scan, pixels)
    # Wrapped around, which no index needs, it is faster than with its bounds checked.
    bits = np.take(_bits_by_difference(scan.lengths), differences, mode="wrap")
    return int(bits.sum(dtype=np.uint32))


@lru_cache(maxsize=16)
def _bits_by_difference(lengths: tuple[int, ...]) -> UInt8[np.ndarray, " differences"]:
    """Bits of a difference modulo 2^16: its category's code, then as many bits as the category."""
    extra = [*range(_NUM_CATEGORIES - 1), 0]
    return np.asarray(np.take(np.add(lengths, extra).astype(np.uint8), _categories()))


@lru_cache(maxsize=1)
def _categories() -> UInt8[np.ndarray, " differences"]:
    """How many bits the size of each difference modulo 2^16 has (ITU-T T.81 table H.2)."""
    sizes = np.abs(np.arange(2**16, dtype=np.uint16).view(np.int16).astype(np.int32))
    return np.asarray(np.ceil(np.log2(sizes + 1)), dtype=np.uint8)


def _differences(scan: _Scan, pixels: _Pixels) -> UInt16[np.ndarray, "rows columns"]:
    """Differences of pixels from what the scan's predictor says, modulo 2^16 (T.81 H.1.2.1)."""
    values = pixels.astype(np.uint16, copy=False)
    if scan.shift:
        values = values >> np.uint16(scan.shift)
    found: UInt16[np.ndarray, "rows columns"] = np.empty_like(values)
    if scan.predictor == 1:
        # Over the ends of rows too: the first column is put right below.
        np.subtract(values.ravel()[1:], values.ravel()[:-1], out=found.ravel()[1:])
    else:
        found[1:, 1:] = values[1:, 1:] - _predicted(scan.predictor, values)
    found[1:, 0] = values[1:, 0] - values[:-1, 0]
    rows = max(1, scan.restart // values.shape[1]) if scan.restart else len(values)
    # The first row of each interval is predicted from the left, its first value is half the range.
    for row in range(0, len(values), rows):
        found[row, 1:] = values[row, 1:] - values[row, :-1]
        found[row, 0] = (int(values[row, 0]) - (1 << (scan.bits - scan.shift - 1))) % 2**16
    return found


def _predicted(
    predictor: int, values: UInt16[np.ndarray, "rows columns"]
) -> UInt16[np.ndarray, "lower right"]:
    """What is predicted for all but the first row and column (ITU-T T.81 table H.1)."""
    wide = values.astype(np.int32)
    left, above, corner = wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    choices: dict[int, Callable[[], np.ndarray]] = {
        2: lambda: above,
        3: lambda: corner,
        4: lambda: left + above - corner,
        5: lambda: left + ((above - corner) >> 1),
        6: lambda: above + ((left - corner) >> 1),
        7: lambda: (left + above) >> 1,
    }
    return choices[predictor]().astype(np.uint16)


def _check_tile_parts(codestream: bytes) -> None:
    """Follow the tile-parts of a JPEG 2000 codestream to its end mark (ITU-T T.800 A.4.2).

    Raises:
        UnreadableFileError: A length leads elsewhere, or there is no end mark.
    """
    position = codestream.find(_TILE_PART)
    while position >= 0 and codestream[position : position + 2] == _TILE_PART:
        length = int(struct.unpack_from(">L", codestream, position + 6)[0])
        # A length of zero stands for all up to the end mark.
        position = position + length if length else codestream.rfind(_END_OF_CODESTREAM)
    if position < 0 or codestream[position : position + 2] != _END_OF_CODESTREAM:
        raise UnreadableFileError("has damaged pixels: no end mark after its JPEG 2000 tiles")
    if len(codestream) > position + 3 and codestream[position + 2 :].strip(b"\0\xff"):
        raise UnreadableFileError("has damaged pixels: data follow the JPEG 2000 end mark")


def _checked_bits(found: tuple[int, int, int, int], layout: PixelLayout) -> int:
    """Bits per value, once rows, columns and samples that an image claims are the header's."""
    rows, columns, samples, bits = found
    agrees = (rows, columns, samples) == (layout.rows, layout.columns, layout.samples)
    if not agrees or bits > layout.bits_allocated:
        msg = (
            f"holds a compressed image of {rows} x {columns} x {samples}, {bits} bits;"
            f" its header says {layout.rows} x {layout.columns}, {layout.bits_stored} bits"
        )
        raise UnreadableFileError(msg)
    return bits


def _jpeg_size(content: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, samples and bits of a JPEG or JPEG-LS image (ITU-T T.81 annex B)."""
    for marker, start, _ in _jpeg_segments(content):
        if marker in _START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content, start)
            return rows, columns, samples, bits
        # JPEG-LS can give another, larger size after the frame header (ITU-T T.87 C.2.4.1.4).
        if marker == _LS_PRESET and content[start] == _OVERSIZE_IMAGE:
            break
    raise UnreadableFileError("has damaged pixels: no JPEG frame header")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first and last-plus-one byte of the segments of a JPEG image, up to a scan's data."""
    position = 2
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int(struct.unpack_from(">H", content, position + 2)[0])
        yield marker, position + 4, end
        position = end


def _jpeg_2000_size(codestream: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and bits of a JPEG 2000 codestream (ITU-T T.800 A.5.1)."""
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6L", codestream, 8)
    samples, depth = struct.unpack_from(">HB", codestream, 40)
    if not (tile_width and tile_height):
        raise UnreadableFileError("has damaged pixels: JPEG 2000 tiles without a size")
    num_tiles = -(-right // tile_width) * -(-bottom // tile_height)
    if num_tiles > _MAX_TILES:
        raise UnreadableFileError(f"has damaged pixels: {num_tiles} JPEG 2000 tiles")
    return bottom - top, right - left, samples, (depth & 0x7F) + 1


_Decoder = Callable[[bytes, PixelLayout, _Pixels | None], _Pixels]

_DECODERS: Final[dict[str, _Decoder]] = {
    IMPLICIT_UID: _native,
    EXPLICIT_UID: _native,
    DEFLATED_UID: _native,
    BIG_ENDIAN_UID: _native,
    "1.2.840.10008.1.2.4.50": _jpeg,
    "1.2.840.10008.1.2.4.51": _jpeg,
    "1.2.840.10008.1.2.4.57": _jpeg,
    "1.2.840.10008.1.2.4.70": _jpeg,
    "1.2.840.10008.1.2.4.80": _jpeg_ls,
    "1.2.840.10008.1.2.4.81": _jpeg_ls,
    "1.2.840.10008.1.2.4.90": _jpeg_2000,
    "1.2.840.10008.1.2.4.91": _jpeg_2000,
    "1.2.840.10008.1.2.4.201": _jpeg_2000,
    "1.2.840.10008.1.2.4.202": _jpeg_2000,
    "1.2.840.10008.1.2.4.203": _jpeg_2000,
    "1.2.840.10008.1.2.5": _rle,
}
"""Transfer syntax UID (PS3.6 table A-1) to the function that decodes a frame."""

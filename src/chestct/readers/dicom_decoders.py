"""Decode one frame's bytes into stored pixel values, with imagecodecs.

Decoders allocate what a compressed image claims to be. So its own header is read first and has to
agree with the DICOM header, which has passed the bounds. JPEG Lossless goes through libjpeg-turbo
alone: it decodes all predictors and precisions and was never seen to crash on damaged input.
HTJ2K goes through OpenJPEG, because OpenJPH's binding reports errors on stderr only.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

import imagecodecs
import numpy as np
from jaxtyping import Num, UInt8, UInt16

from chestct.readers.dicom_elements import (
    BIG_ENDIAN_UID,
    DEFLATED_UID,
    EXPLICIT_UID,
    IMPLICIT_UID,
)
from chestct.readers.dicom_headers import PixelLayout
from chestct.readers.files import UnreadableFileError

Pixels = Num[np.ndarray, "rows columns"]
"""Values as stored, before bits are masked and rescaled."""

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


def decode_frame(content: bytes, layout: PixelLayout, space: Pixels | None = None) -> Pixels:
    """Decode one frame.

    Args:
        content: The frame's bytes, its fragments put together.
        layout: What the DICOM header says about it.
        space: 16-bit values to decode into where the decoder can; saves an allocation.

    Returns:
        Stored values, (rows, columns), of 8, 16 or 32 bits.

    Raises:
        UnreadableFileError: The bytes are damaged, disagree with the header, or are in an encoding
            that is not supported.
    """
    decode = DECODERS.get(layout.syntax)
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


def _native(content: bytes, layout: PixelLayout, _: Pixels | None) -> Pixels:
    """Uncompressed pixels, in the byte order of the file."""
    stored = np.dtype(f"{layout.order}u{layout.bits_allocated // 8}")
    pixels = np.frombuffer(content, dtype=stored).reshape(layout.rows, layout.columns)
    return pixels.astype(stored.newbyteorder("="), copy=False)


def _rle(content: bytes, layout: PixelLayout, _: Pixels | None) -> Pixels:
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


def _jpeg(content: bytes, layout: PixelLayout, space: Pixels | None) -> Pixels:
    """JPEG: lossless with any predictor, and the 8- and 12-bit lossy processes."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    end = _end_of_image(content)
    pixels = np.asarray(imagecodecs.jpeg8_decode(content, out=space if num_bits > 8 else None))
    scan = _lossless_scan(content)
    if scan is not None and pixels.shape == (layout.rows, layout.columns):
        _check_scan(memoryview(content)[scan.start : end], scan, pixels)
    return pixels


def _jpeg_ls(content: bytes, layout: PixelLayout, space: Pixels | None) -> Pixels:
    """JPEG-LS, lossless and near-lossless; CharLS itself notices data left over or missing."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    _end_of_image(content)
    return np.asarray(imagecodecs.jpegls_decode(content, out=space if num_bits > 8 else None))


def _jpeg_2000(content: bytes, layout: PixelLayout, _: Pixels | None) -> Pixels:
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
    bits, restart, position = 0, 0, 2
    while True:
        marker = content[position + 1]
        length = int(struct.unpack_from(">H", content, position + 2)[0])
        body = content[position + 4 : position + 2 + length]
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
                raise UnreadableFileError("has damaged pixels: a JPEG scan without its tables")
            return _Scan(position + 2 + length, bits, lengths, body[3], body[5] & 15, restart)
        position += 2 + length


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


def _check_scan(coded: memoryview, scan: _Scan, pixels: Pixels) -> None:
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


def _coded_bits(scan: _Scan, pixels: Pixels) -> int:
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


def _differences(scan: _Scan, pixels: Pixels) -> UInt16[np.ndarray, "rows columns"]:
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
    position = 2
    while position + 10 <= len(content):
        if content[position] != 0xFF:
            break
        marker = content[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content, position + 4)
            return rows, columns, samples, bits
        # JPEG-LS can give another, larger size after the frame header (ITU-T T.87 C.2.4.1.4).
        if marker == _LS_PRESET and content[position + 4] == _OVERSIZE_IMAGE:
            break
        position += 2 + int(struct.unpack_from(">H", content, position + 2)[0])
    raise UnreadableFileError("has damaged pixels: no JPEG frame header")


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


LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
"""Transfer syntaxes that may not give back the values that were stored."""

_Decoder = Callable[[bytes, PixelLayout, Pixels | None], Pixels]

DECODERS: Final[dict[str, _Decoder]] = {
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

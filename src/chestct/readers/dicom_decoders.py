"""Decode one frame's bytes into stored pixel values, with imagecodecs.

Decoders allocate what a compressed image claims to be. So its own header is read first and has to
agree with the DICOM header, which has passed the bounds. JPEG Lossless goes through libjpeg-turbo
alone: it decodes all predictors and precisions and was never seen to crash on damaged input.
HTJ2K goes through OpenJPEG, because OpenJPH's binding reports errors on stderr only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import imagecodecs
import numpy as np
from jaxtyping import Num

from chestct.readers.dicom_dataset import (
    BIG_ENDIAN_UID,
    DEFLATED_UID,
    EXPLICIT_UID,
    IMPLICIT_UID,
)
from chestct.readers.dicom_headers import PixelLayout
from chestct.readers.files import UnreadableFileError

Pixels = Num[np.ndarray, "rows columns"]
"""Values as stored, before bits are masked and rescaled."""

MAX_TILES = 4096
"""Most tiles of a JPEG 2000 image; decoders allocate for each."""

DECODE_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, MemoryError, struct.error)
"""What decoders raise on damaged pixels; imagecodecs' own errors are RuntimeErrors."""

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_LS_PRESET, _OVERSIZE_IMAGE = 0xF8, 4
_CODESTREAM_START = b"\xff\x4f\xff\x51"


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
    except DECODE_ERRORS as error:
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
    """RLE (PS3.5 annex G): PackBits segments, one for each byte of a value."""
    num_segments = struct.unpack_from("<L", content)[0]
    if num_segments != layout.bits_allocated // 8:
        raise UnreadableFileError(f"has {num_segments} RLE segments")
    dtype = np.dtype(f"u{layout.bits_allocated // 8}")
    unpacked = imagecodecs.dicomrle_decode(content, dtype, out=layout.frame_bytes)
    return np.frombuffer(unpacked, dtype=dtype).reshape(layout.rows, layout.columns)


def _jpeg(content: bytes, layout: PixelLayout, space: Pixels | None) -> Pixels:
    """JPEG: lossless with any predictor, and the 8- and 12-bit lossy processes."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    return np.asarray(imagecodecs.jpeg8_decode(content, out=space if num_bits > 8 else None))


def _jpeg_ls(content: bytes, layout: PixelLayout, space: Pixels | None) -> Pixels:
    """JPEG-LS, lossless and near-lossless."""
    num_bits = _checked_bits(_jpeg_size(content), layout)
    return np.asarray(imagecodecs.jpegls_decode(content, out=space if num_bits > 8 else None))


def _jpeg_2000(content: bytes, layout: PixelLayout, _: Pixels | None) -> Pixels:
    """JPEG 2000 and HTJ2K; a JP2 wrapping, which DICOM forbids and some write, is taken off."""
    start = content.find(_CODESTREAM_START)
    if start < 0:
        raise UnreadableFileError("holds no JPEG 2000 image")
    codestream = content[start:] if start else content
    _checked_bits(_jpeg_2000_size(codestream), layout)
    return np.asarray(imagecodecs.jpeg2k_decode(codestream, numthreads=1))


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
    if num_tiles > MAX_TILES:
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

"""Files compressed as a whole, with gzip or Zstandard: unpacked in memory, up to a limit."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase

from chestct.readers.files import (
    BROKEN_STREAM,
    MAX_RATIO,
    FileSource,
    MemoryFile,
    UnreadableFileError,
)

MAX_UNWRAPPED_BYTES = 2**28
"""Most bytes unpacked from one file."""
SMALL_BYTES = 2**20
"""Up to this size a file may be compressed in any ratio."""
PACKED_HEAD_BYTES = 2**18
"""As much of a packed file as shows how its inside begins; a Zstandard block takes 128 KiB."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 2**20
_INSIDE_BYTES = 132
"""Preamble and prefix of DICOM: enough to tell what is inside."""
_ZSTD_BLOCK_BYTES = 2**17
_ZSTD_BLOCKS = 4
_ZSTD_RLE = 1
_ZSTD_HEADER = _ZSTD_MAGIC + b"\x00\x38"
"""A frame header that declares a window of 128 KiB and neither length nor checksum."""


def is_wrapped(content: bytes) -> bool:
    """Whether a file that starts like this is a gzip or Zstandard stream."""
    return content.startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


def first_inside(packed: bytes) -> bytes:
    """The first bytes inside a gzip or Zstandard stream, given its start; none if it is damaged.

    A stream may be cut short, and unpack to any size: no more is unpacked than is looked at.
    """
    try:
        if packed.startswith(_GZIP_MAGIC):
            return zlib.decompressobj(wbits=31).decompress(packed, _INSIDE_BYTES)
        return _first_of_zstd(packed)[:_INSIDE_BYTES]
    except (*BROKEN_STREAM, IndexError):
        return b""


def unwrapped(source: FileSource) -> MemoryFile:
    """What is inside a gzip or Zstandard stream.

    Raises:
        UnreadableFileError: It is damaged, or would unpack to more than a real file does.
    """
    limit = min(max(source.stored_bytes * MAX_RATIO, SMALL_BYTES), MAX_UNWRAPPED_BYTES)
    try:
        with source.open() as stream:
            is_gzip = stream.read(2) == _GZIP_MAGIC
            stream.seek(0)
            if is_gzip:
                content = b"".join(_gzip_chunks(stream, limit))
            else:
                content = _zstd_content(stream.read(limit), limit)
    except UnreadableFileError:
        raise
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be unpacked ({type(error).__name__})") from error
    return MemoryFile(content, source.name, source.stored_bytes)


def _gzip_chunks(stream: BufferedIOBase, limit: int) -> Iterator[bytes]:
    """The content of a gzip stream, given up as soon as it is longer than the limit."""
    num_bytes = 0
    with gzip.GzipFile(fileobj=stream) as unpacked:
        while chunk := unpacked.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > limit:
                msg = f"unpacks to over {MAX_RATIO} times its size or {MAX_UNWRAPPED_BYTES} bytes"
                raise UnreadableFileError(f"{msg}, as a bomb does")
            yield chunk


def _first_of_zstd(packed: bytes) -> bytes:
    """What the first blocks of a Zstandard frame hold, as a frame of their own (RFC 8878 3.1.1)."""
    descriptor = packed[4]
    is_single = descriptor >> 5 & 1
    length_bytes = (is_single, 2, 4, 8)[descriptor >> 6]
    start = position = 6 - is_single + (0, 1, 2, 4)[descriptor & 3] + length_bytes
    blocks, last = bytearray(packed), None
    for _ in range(_ZSTD_BLOCKS):
        header = int.from_bytes(packed[position : position + 3], "little")
        end = position + 3 + (1 if header >> 1 & 3 == _ZSTD_RLE else header >> 3)
        if position + 3 > len(packed) or end > len(packed):
            break
        last, position = position, end
        if header & 1:
            break
    if last is None:
        return b""
    blocks[last] |= 1
    return _zstd_content(
        _ZSTD_HEADER + bytes(blocks[start:position]), _ZSTD_BLOCKS * _ZSTD_BLOCK_BYTES
    )


def _zstd_content(packed: bytes, limit: int) -> bytes:
    """The content of a Zstandard stream, unpacked into a buffer of the limit's size."""
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(packed, out=bytearray(limit)))

"""Files compressed as a whole, with gzip or Zstandard: unpacked in memory, up to a limit."""

from __future__ import annotations

import gzip
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

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 2**20


def is_wrapped(content: bytes) -> bool:
    """Whether a file that starts like this is a gzip or Zstandard stream."""
    return content.startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


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


def _zstd_content(packed: bytes, limit: int) -> bytes:
    """The content of a Zstandard stream, unpacked into a buffer of the limit's size."""
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(packed, out=bytearray(limit)))

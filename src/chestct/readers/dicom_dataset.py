"""Find where a DICOM file's data set starts and how it is written (PS3.10, PS3.5 annex A).

Archives differ: with and without the preamble and its prefix, with and without file meta
information, and with transfer syntaxes that do not say what was written.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO

from chestct.readers.dicom_elements import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    Bytes,
    Encoding,
    read_element,
)
from chestct.readers.dicom_fields import Fields, wanted_name
from chestct.readers.files import FileSource, UnreadableFileError

IMPLICIT_UID = "1.2.840.10008.1.2"
EXPLICIT_UID = "1.2.840.10008.1.2.1"
DEFLATED_UID = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN_UID = "1.2.840.10008.1.2.2"

MAX_TRAILING_BYTES = 2**20
"""Most bytes inflated of what follows the pixels."""
_PIXEL_GROUP = 0x7FE0
MAX_INFLATED_HEADER_BYTES = 2**26
"""Most bytes inflated to read a header."""


@dataclass(frozen=True, slots=True)
class InflatedFile:
    """The data set of a deflated file (PS3.5 section A.5): what follows its file meta information.

    No more than `limit` bytes are ever inflated.
    """

    packed: FileSource
    start: int
    limit: int

    is_seekable = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.packed.name

    @property
    def size(self) -> int:
        """Most bytes it gives."""
        return self.limit

    @property
    def stored_bytes(self) -> int:
        """Bytes of the deflated file on disk."""
        return self.packed.stored_bytes

    def open(self) -> BufferedIOBase:
        """The inflated bytes, like a file.

        Raises:
            UnreadableFileError: The stream does not end, or goes on with what is no element.
        """
        unpacker = zlib.decompressobj(-15)
        with self.packed.open() as stream:
            stream.seek(self.start)
            content = unpacker.decompress(stream.read(), self.limit)
        rest = unpacker.decompress(unpacker.unconsumed_tail, MAX_TRAILING_BYTES)
        if not unpacker.eof:
            raise UnreadableFileError("has a damaged deflated data set: it does not end")
        # Elements after the pixels are padding or signatures, of higher groups (PS3.10 7.2).
        if rest and int.from_bytes(rest[:2], "little") <= _PIXEL_GROUP:
            raise UnreadableFileError("has a damaged deflated data set: data are left over")
        return BytesIO(content)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where the data set starts.

    Attributes:
        source: Where positions count from: the file, or what is inflated from it.
        head: Its first bytes.
        start: Position of the first element of the data set.
        encoding: How its elements are written.
        syntax: Transfer syntax UID; empty when the file does not say it.
    """

    source: FileSource
    head: Bytes
    start: int
    encoding: Encoding
    syntax: str


def open_dataset(source: FileSource, head: Bytes) -> Dataset | None:
    """Find the data set in the first bytes of a file; None when this is not DICOM.

    Raises:
        UnreadableFileError: It is DICOM but damaged or cut short.
        MoreBytesNeededError: It starts beyond the bytes at hand.
    """
    start = _start(head.content)
    if start is None:
        return None
    start, syntax = _file_meta(head, start)
    if syntax == DEFLATED_UID:
        source, head, start = _inflated(source, head, start)
    return Dataset(source, head, start, _encoding(head, start, syntax), syntax)


def looks_like_dicom(content: bytes) -> bool:
    """Whether a file starts as DICOM does, with or without preamble and file meta information."""
    return _start(content) is not None


def _start(content: bytes) -> int | None:
    """Position of the first element; None when this is not DICOM."""
    for start in (132, 4):
        if content[start - 4 : start] == b"DICM":
            return start
    # Group 2 or 8 first, in either byte order: a file without preamble, as some archives write.
    little = content[:2] in (b"\x02\x00", b"\x08\x00") and content[3:4] < b"\x20"
    big = content[:2] in (b"\x00\x02", b"\x00\x08") and content[2:3] < b"\x20"
    return 0 if len(content) >= 8 and (little or big) else None


def _file_meta(head: Bytes, position: int) -> tuple[int, str]:
    """Where the data set starts, and its transfer syntax; empty when the file does not say it."""
    syntax = ""
    while True:
        if head.is_whole and position >= len(head.content):
            raise UnreadableFileError("is cut short: it ends before its first element")
        head.require(position + 8)
        if head.content[position : position + 2] != b"\x02\x00":
            return position, syntax
        element = read_element(head, position, _detected(head, position, EXPLICIT_LITTLE))
        if wanted_name(element.tag, element.length) == "transfer_syntax":
            syntax = Fields({"syntax": head.value(element)}).text("syntax")
        position = element.start + element.length


def _inflated(source: FileSource, head: Bytes, start: int) -> tuple[FileSource, Bytes, int]:
    """The start of a deflated data set, no longer than the bytes read of the file."""
    limit = max(len(head.content), 2**14)
    stream = zlib.decompressobj(-15)
    try:
        content = stream.decompress(head.content[start:], limit)
    except zlib.error as error:
        raise UnreadableFileError("has a damaged deflated data set") from error
    is_whole = stream.eof or (head.is_whole and len(content) < limit)
    # A whole file can still inflate to more than was looked at so far.
    if head.is_whole and not is_whole:
        content = _inflated_further(head, start)
        is_whole = len(content) < MAX_INFLATED_HEADER_BYTES
    return InflatedFile(source, start, limit), Bytes(content, is_whole), 0


def _inflated_further(head: Bytes, start: int) -> bytes:
    """As much of a small deflated file as a header may take."""
    try:
        return zlib.decompressobj(-15).decompress(head.content[start:], MAX_INFLATED_HEADER_BYTES)
    except zlib.error as error:
        raise UnreadableFileError("has a damaged deflated data set") from error


def _encoding(head: Bytes, start: int, syntax: str) -> Encoding:
    """How the data set is written: as the first element looks, whatever the syntax promises."""
    if head.is_whole and start + 8 > len(head.content):
        raise UnreadableFileError("is cut short: it ends before its data set")
    head.require(start + 8)
    is_big = head.content[start] == 0 and head.content[start + 1] != 0
    if syntax == BIG_ENDIAN_UID or (not syntax and is_big):
        return EXPLICIT_BIG
    return _detected(head, start, IMPLICIT_LITTLE if syntax == IMPLICIT_UID else EXPLICIT_LITTLE)


def _detected(head: Bytes, position: int, promised: Encoding) -> Encoding:
    """The promised encoding, unless the value representation is missing or there after all."""
    has_vr = head.content[position + 4 : position + 6].isalpha()
    if has_vr and head.content[position + 4 : position + 6].isupper():
        return EXPLICIT_LITTLE
    return IMPLICIT_LITTLE if promised.order == "<" else promised

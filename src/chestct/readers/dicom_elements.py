"""How a DICOM file is written: where its data set starts, in which encoding, where elements lie.

A scan has hundreds of headers and few of their elements matter. Jumping from element to element
(PS3.5 section 7) takes 0.11 ms a slice where pydicom takes 0.43 ms for the same elements, with
`specific_tags`, `stop_before_pixels` and `defer_size`: with pydicom the whole read of a scan takes
1.17 to 1.20 times as long (medians of 12 pairs on two scans; `python benchmarks/reading.py` says
it again). And it keeps a hostile file in bounds: nothing recurses, nothing is allocated by a
declared length, and every length is compared with where its parent ends. Archives differ (PS3.10,
PS3.5 annex A): with and without the preamble and its prefix, with and without file meta
information, and with transfer syntaxes that do not say what was written.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import NamedTuple

from chestct.readers.files import FileSource, UnreadableFileError

UNDEFINED = 0xFFFFFFFF
"""Length of sequences, items and encapsulated pixels that end with a delimiter instead."""

ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
_FLOAT_PIXEL_DATA = 0x7FE00008
"""The first of the three kinds of pixels; doubles lie between it and `PIXEL_DATA` (PS3.6)."""

_MAX_NESTING = 32
"""Deepest nesting of undefined-length sequences followed; CT headers stay under 6."""
_MAX_ELEMENTS = 500_000
"""Most elements visited in one file: bounds the time; 2000 enhanced frames need 200 000."""

_LONG_FORM = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN"}) | {
    b"UR",
    b"UT",
    b"UV",
}


class MoreBytesNeededError(Exception):
    """The element lies beyond the bytes at hand, but not beyond the file."""


class Encoding(NamedTuple):
    """How elements are written: with or without value representation, in which byte order."""

    is_explicit: bool
    order: str


_IMPLICIT_LITTLE = Encoding(is_explicit=False, order="<")
_EXPLICIT_LITTLE = Encoding(is_explicit=True, order="<")
_EXPLICIT_BIG = Encoding(is_explicit=True, order=">")

_TAG_AND_LENGTH = {order: struct.Struct(f"{order}HHL") for order in "<>"}
_TAG_VR_LENGTH = {order: struct.Struct(f"{order}HH2sH") for order in "<>"}
_LONG_LENGTH = {order: struct.Struct(f"{order}L") for order in "<>"}


class Element(NamedTuple):
    """Where an element's value lies. `vr` is empty where the encoding does not write it."""

    tag: int
    vr: bytes
    start: int
    length: int


@dataclass(slots=True)
class Bytes:
    """The first bytes of a file, whether they are all of it, and how many elements were visited."""

    content: bytes
    is_whole: bool
    num_elements: int = 0

    def value(self, element: Element) -> bytes:
        """The element's value.

        Raises:
            UnreadableFileError: It ends beyond the file.
            MoreBytesNeededError: It ends beyond the bytes at hand.
        """
        self.require(element.start + element.length)
        return self.content[element.start : element.start + element.length]

    def require(self, end: int) -> None:
        """Make sure that the bytes up to `end` are at hand."""
        if end > len(self.content):
            if self.is_whole:
                msg = f"is cut short: it ends at byte {len(self.content)}, not at {end} as it says"
                raise UnreadableFileError(msg)
            raise MoreBytesNeededError


def _read_element(source: Bytes, position: int, encoding: Encoding) -> Element:
    """Read tag, value representation and length of the element at a position."""
    source.num_elements += 1
    if source.num_elements > _MAX_ELEMENTS:
        raise UnreadableFileError(f"has more than {_MAX_ELEMENTS} elements")
    if position + 12 > len(source.content):
        source.require(position + 8)
    order = encoding.order
    if encoding.is_explicit:
        group, number, vr, length = _TAG_VR_LENGTH[order].unpack_from(source.content, position)
        # Items and delimiters never carry a value representation (PS3.5 section 7.5).
        if group != 0xFFFE:
            tag = group << 16 | number
            if vr not in _LONG_FORM:
                return Element(tag, vr, position + 8, length)
            source.require(position + 12)
            (length,) = _LONG_LENGTH[order].unpack_from(source.content, position + 8)
            return Element(tag, vr, position + 12, length)
    group, number, length = _TAG_AND_LENGTH[order].unpack_from(source.content, position)
    return Element(group << 16 | number, b"", position + 8, length)


def walk_elements(
    source: Bytes,
    position: int,
    encoding: Encoding,
    end: int | None = None,
    *,
    wanted: Container[int] | None = None,
) -> Iterator[Element]:
    """Elements of a data set or of an item, nested ones skipped; pixels are the last one.

    Args:
        source: The file's bytes.
        position: Where the first element starts.
        encoding: How the elements are written.
        end: Where the item ends; None for the data set, which ends with the file.
        wanted: Tags that are of interest: others may be passed over. None gives all.

    Raises:
        UnreadableFileError: A length leads beyond the end, or the nesting is too deep.
        MoreBytesNeededError: The walk leads beyond the bytes at hand.
    """
    while end is None or position < end:
        if wanted is not None and end is None:
            position = _passed_over(source, position, encoding, wanted)
        if end is None and source.is_whole and position >= len(source.content):
            return
        element = _read_element(source, position, encoding)
        yield element
        if _FLOAT_PIXEL_DATA <= element.tag <= PIXEL_DATA:
            return
        if element.length == UNDEFINED:
            position = _skip_undefined(source, element.start, _inner(element, encoding))
        else:
            position = element.start + element.length
        if end is not None and position > end:
            raise UnreadableFileError(f"has a broken sequence at byte {element.start}")
        if end is None and source.is_whole:
            source.require(position)


def _passed_over(source: Bytes, position: int, encoding: Encoding, wanted: Container[int]) -> int:
    """Where the next element starts that is wanted, or is more than a tag, a length and a value."""
    content = source.content
    last, num_passed = len(content) - 12, 0
    if encoding.is_explicit:
        unpack = _TAG_VR_LENGTH[encoding.order].unpack_from
        while position <= last and num_passed <= _MAX_ELEMENTS:
            group, number, vr, length = unpack(content, position)
            if vr in _LONG_FORM or group >= _PIXEL_GROUP or (group << 16 | number) in wanted:
                break
            position += 8 + length
            num_passed += 1
    else:
        unpack = _TAG_AND_LENGTH[encoding.order].unpack_from
        while position <= last and num_passed <= _MAX_ELEMENTS:
            group, number, length = unpack(content, position)
            is_wanted = (group << 16 | number) in wanted
            if length == UNDEFINED or group >= _PIXEL_GROUP or is_wanted:
                break
            position += 8 + length
            num_passed += 1
    source.num_elements += num_passed
    if source.is_whole:
        source.require(position)
    return position


def walk_items(source: Bytes, element: Element, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """First and last-plus-one byte of each item of a sequence."""
    encoding = _inner(element, encoding)
    position = element.start
    is_open = element.length == UNDEFINED
    while is_open or position < element.start + element.length:
        item = _read_element(source, position, encoding)
        if item.tag == SEQUENCE_END:
            return
        if item.tag != ITEM:
            raise UnreadableFileError(f"has a broken sequence at byte {position}")
        if item.length == UNDEFINED:
            position = _skip_undefined(source, item.start, encoding, is_item=True)
            yield item.start, position - 8
        else:
            position = item.start + item.length
            source.require(position)
            yield item.start, position


def _skip_undefined(
    source: Bytes, position: int, encoding: Encoding, *, is_item: bool = False
) -> int:
    """Where a sequence or item of undefined length ends, its delimiter included.

    Raises:
        UnreadableFileError: Delimiters that do not match, or nesting deeper than `_MAX_NESTING`.
    """
    open_ones = [(is_item, encoding)]
    while open_ones:
        inside_item, encoding = open_ones[-1]
        element = _read_element(source, position, encoding)
        position = element.start
        if element.tag in (_ITEM_END, SEQUENCE_END):
            if inside_item != (element.tag == _ITEM_END):
                raise UnreadableFileError(f"has a broken sequence at byte {position}")
            open_ones.pop()
            continue
        if inside_item == (element.tag == ITEM):
            raise UnreadableFileError(f"has a broken sequence at byte {position}")
        if element.length != UNDEFINED:
            position += element.length
            continue
        if len(open_ones) > 2 * _MAX_NESTING:
            raise UnreadableFileError(f"nests sequences deeper than {_MAX_NESTING}")
        open_ones.append((element.tag == ITEM, _inner(element, encoding)))
    return position


def _inner(element: Element, encoding: Encoding) -> Encoding:
    """How the inside of a sequence is written: unknown ones are implicit (PS3.5 section 6.2.2)."""
    is_unknown = element.vr == b"UN" and element.length == UNDEFINED
    return _IMPLICIT_LITTLE if is_unknown else encoding


IMPLICIT_UID = "1.2.840.10008.1.2"
EXPLICIT_UID = "1.2.840.10008.1.2.1"
DEFLATED_UID = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN_UID = "1.2.840.10008.1.2.2"

_MAX_TRAILING_BYTES = 2**20
"""Most bytes inflated of what follows the pixels."""
_PIXEL_GROUP = 0x7FE0
_TRANSFER_SYNTAX = 0x00020010
_MAX_UID_BYTES = 64
_MAX_INFLATED_HEADER_BYTES = 2**26
"""Most bytes inflated to read a header."""


def inflated_file(packed: FileSource, start: int, limit: int) -> FileSource:
    """The data set of a deflated file (PS3.5 section A.5): what follows its file meta information.

    Args:
        packed: The file.
        start: Where its data set starts.
        limit: Most bytes that are ever inflated of it.
    """
    return FileSource(
        packed.name,
        limit,
        packed.stored_bytes,
        partial(_opened_inflated, packed, start, limit),
        is_seekable=False,
        deflated_in=packed,
    )


def _opened_inflated(packed: FileSource, start: int, limit: int) -> BytesIO:
    """The inflated bytes, like a file.

    Raises:
        UnreadableFileError: The stream does not end, or goes on with what is no element.
    """
    unpacker = zlib.decompressobj(-15)
    with packed.open() as stream:
        stream.seek(start)
        content = unpacker.decompress(stream.read(), limit)
    rest = unpacker.decompress(unpacker.unconsumed_tail, _MAX_TRAILING_BYTES)
    if not unpacker.eof:
        raise UnreadableFileError("has a damaged deflated data set: it does not end")
    # Elements after the pixels are padding or signatures, of higher groups (PS3.10 7.2).
    if rest and int.from_bytes(rest[:2], "little") <= _PIXEL_GROUP:
        raise UnreadableFileError("has a damaged deflated data set: data are left over")
    return BytesIO(content)


class _DatasetStart(NamedTuple):
    """Where the data set starts.

    Attributes:
        head: The bytes that positions count in: the file's first, or what is inflated from them.
        start: Position of the first element of the data set.
        encoding: How its elements are written.
        syntax: Transfer syntax UID; empty when the file does not say it.
        deflated_at: Where the deflated data set starts in the file; None when it is not deflated.
    """

    head: Bytes
    start: int
    encoding: Encoding
    syntax: str
    deflated_at: int | None


def find_dataset(head: Bytes) -> _DatasetStart | None:
    """Find the data set in the first bytes of a file; None when this is not DICOM.

    Raises:
        UnreadableFileError: It is DICOM but damaged or cut short.
        MoreBytesNeededError: It starts beyond the bytes at hand.
    """
    start = _start(head.content)
    if start is None:
        return None
    start, syntax = _file_meta(head, start)
    deflated_at = start if syntax == DEFLATED_UID else None
    if deflated_at is not None:
        head, start = _inflated(head, start), 0
    return _DatasetStart(head, start, _encoding(head, start, syntax), syntax, deflated_at)


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
        element = _read_element(head, position, _detected(head, position, _EXPLICIT_LITTLE))
        if element.tag == _TRANSFER_SYNTAX and element.length <= _MAX_UID_BYTES:
            syntax = head.value(element).decode("latin-1").strip(" \0")
        position = element.start + element.length


def _inflated(head: Bytes, start: int) -> Bytes:
    """The start of a deflated data set, no longer than the bytes read of the file."""
    # A whole file can still inflate to more than is looked at first.
    for limit in (max(len(head.content), 2**14), _MAX_INFLATED_HEADER_BYTES):
        stream = zlib.decompressobj(-15)
        try:
            content = stream.decompress(head.content[start:], limit)
        except zlib.error as error:
            raise UnreadableFileError("has a damaged deflated data set") from error
        is_whole = stream.eof or (head.is_whole and len(content) < limit)
        if is_whole or not head.is_whole:
            break
    return Bytes(content, is_whole)


def _encoding(head: Bytes, start: int, syntax: str) -> Encoding:
    """How the data set is written: as the first element looks, whatever the syntax promises."""
    if head.is_whole and start + 8 > len(head.content):
        raise UnreadableFileError("is cut short: it ends before its data set")
    head.require(start + 8)
    is_big = head.content[start] == 0 and head.content[start + 1] != 0
    if syntax == BIG_ENDIAN_UID or (not syntax and is_big):
        return _EXPLICIT_BIG
    return _detected(head, start, _IMPLICIT_LITTLE if syntax == IMPLICIT_UID else _EXPLICIT_LITTLE)


def _detected(head: Bytes, position: int, promised: Encoding) -> Encoding:
    """The promised encoding, unless the value representation is missing or there after all."""
    has_vr = head.content[position + 4 : position + 6].isalpha()
    if has_vr and head.content[position + 4 : position + 6].isupper():
        return _EXPLICIT_LITTLE
    return _IMPLICIT_LITTLE if promised.order == "<" else promised

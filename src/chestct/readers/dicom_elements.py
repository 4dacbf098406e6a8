"""Find elements in the bytes of a DICOM file (PS3.5 section 7) without reading their values.

A scan has hundreds of headers and few of their elements matter. Jumping from element to element
takes 0.1 ms a slice where building a pydicom data set takes 0.5 ms, and it keeps a hostile file
in bounds: nothing recurses, nothing is allocated by a declared length, and every length is
compared with where its parent ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from chestct.readers.files import UnreadableFileError

UNDEFINED = 0xFFFFFFFF
"""Length of sequences, items and encapsulated pixels that end with a delimiter instead."""

ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = 0x7FE00008
"""The first of the three kinds of pixels; doubles lie between it and `PIXEL_DATA` (PS3.6)."""

MAX_NESTING = 32
"""Deepest nesting of undefined-length sequences followed; CT headers stay under 6."""
MAX_ELEMENTS = 500_000
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


IMPLICIT_LITTLE = Encoding(is_explicit=False, order="<")
EXPLICIT_LITTLE = Encoding(is_explicit=True, order="<")
EXPLICIT_BIG = Encoding(is_explicit=True, order=">")

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


def read_element(source: Bytes, position: int, encoding: Encoding) -> Element:
    """Read tag, value representation and length of the element at a position."""
    source.num_elements += 1
    if source.num_elements > MAX_ELEMENTS:
        raise UnreadableFileError(f"has more than {MAX_ELEMENTS} elements")
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
    source: Bytes, position: int, encoding: Encoding, end: int | None = None
) -> Iterator[Element]:
    """Elements of a data set or of an item, nested ones skipped; pixels are the last one.

    Args:
        source: The file's bytes.
        position: Where the first element starts.
        encoding: How the elements are written.
        end: Where the item ends; None for the data set, which ends with the file.

    Raises:
        UnreadableFileError: A length leads beyond the end, or the nesting is too deep.
        MoreBytesNeededError: The walk leads beyond the bytes at hand.
    """
    while end is None or position < end:
        if end is None and source.is_whole and position >= len(source.content):
            return
        element = read_element(source, position, encoding)
        yield element
        if FLOAT_PIXEL_DATA <= element.tag <= PIXEL_DATA:
            return
        if element.length == UNDEFINED:
            position = skip_undefined(source, element.start, _inner(element, encoding))
        else:
            position = element.start + element.length
        if end is not None and position > end:
            raise UnreadableFileError(f"has a broken sequence at byte {element.start}")
        if end is None and source.is_whole:
            source.require(position)


def walk_items(source: Bytes, element: Element, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """First and last-plus-one byte of each item of a sequence."""
    encoding = _inner(element, encoding)
    position = element.start
    is_open = element.length == UNDEFINED
    while is_open or position < element.start + element.length:
        item = read_element(source, position, encoding)
        if item.tag == SEQUENCE_END:
            return
        if item.tag != ITEM:
            raise UnreadableFileError(f"has a broken sequence at byte {position}")
        if item.length == UNDEFINED:
            position = skip_undefined(source, item.start, encoding, is_item=True)
            yield item.start, position - 8
        else:
            position = item.start + item.length
            source.require(position)
            yield item.start, position


def skip_undefined(
    source: Bytes, position: int, encoding: Encoding, *, is_item: bool = False
) -> int:
    """Where a sequence or item of undefined length ends, its delimiter included.

    Raises:
        UnreadableFileError: Delimiters that do not match, or nesting deeper than `MAX_NESTING`.
    """
    open_ones = [(is_item, encoding)]
    while open_ones:
        inside_item, encoding = open_ones[-1]
        element = read_element(source, position, encoding)
        position = element.start
        if element.tag in (ITEM_END, SEQUENCE_END):
            if inside_item != (element.tag == ITEM_END):
                raise UnreadableFileError(f"has a broken sequence at byte {position}")
            open_ones.pop()
            continue
        if inside_item == (element.tag == ITEM):
            raise UnreadableFileError(f"has a broken sequence at byte {position}")
        if element.length != UNDEFINED:
            position += element.length
            continue
        if len(open_ones) > 2 * MAX_NESTING:
            raise UnreadableFileError(f"nests sequences deeper than {MAX_NESTING}")
        open_ones.append((element.tag == ITEM, _inner(element, encoding)))
    return position


def _inner(element: Element, encoding: Encoding) -> Encoding:
    """How the inside of a sequence is written: unknown ones are implicit (PS3.5 section 6.2.2)."""
    is_unknown = element.vr == b"UN" and element.length == UNDEFINED
    return IMPLICIT_LITTLE if is_unknown else encoding

"""Find the bytes of each frame: native pixels or encapsulated fragments (PS3.5 section A.4).

Only item headers are read on the way, so that a multi-frame file is never held in memory.
"""

from __future__ import annotations

import struct
from io import BufferedIOBase
from itertools import pairwise
from typing import TypeAlias

from chestct.readers.dicom_elements import ITEM, SEQUENCE_END, UNDEFINED
from chestct.readers.dicom_headers import PixelLayout
from chestct.readers.files import BROKEN_STREAM, UnreadableFileError, read_range

ByteRange: TypeAlias = tuple[int, int]
"""Position and length in a file."""
FrameRanges: TypeAlias = tuple[ByteRange, ...]
"""The pieces that make up one frame, in order."""

MAX_FRAGMENTS = 200_000
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


def read_frame(stream: BufferedIOBase, ranges: FrameRanges) -> bytes:
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


def _fragments(stream: BufferedIOBase, layout: PixelLayout) -> tuple[list[int], list[ByteRange]]:
    """The Basic Offset Table and all fragments; the end of the file may stand for the delimiter."""
    table, position = _basic_offset_table(stream, layout.offset)
    fragments: list[ByteRange] = []
    while True:
        header = _item_header(stream, position)
        if header is None or header[0] == SEQUENCE_END:
            break
        tag, length = header
        if tag != ITEM or length == UNDEFINED or len(fragments) >= MAX_FRAGMENTS:
            raise UnreadableFileError(f"has broken encapsulated pixels at byte {position}")
        fragments.append((position + _ITEM_HEADER_BYTES, length))
        position += _ITEM_HEADER_BYTES + length
    if not fragments:
        raise UnreadableFileError("holds no pixels: its encapsulated pixel data is empty")
    return table, fragments


def _basic_offset_table(stream: BufferedIOBase, position: int) -> tuple[list[int], int]:
    """Offsets of the frames from the first fragment, often none, and where that fragment starts."""
    header = _item_header(stream, position)
    if header is None or header[0] != ITEM or header[1] > 4 * MAX_FRAGMENTS:
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
    stream: BufferedIOBase, table: list[int], fragments: list[ByteRange], layout: PixelLayout
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

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from chestct.readers import dicom_elements
from chestct.readers.dicom_elements import (
    _EXPLICIT_BIG,
    _EXPLICIT_LITTLE,
    _IMPLICIT_LITTLE,
    _ITEM_END,
    _MAX_NESTING,
    ITEM,
    SEQUENCE_END,
    UNDEFINED,
    Bytes,
    Element,
    MoreBytesNeededError,
    _skip_undefined,
    walk_elements,
    walk_items,
)
from chestct.readers.files import UnreadableFileError


def tag_bytes(tag: int, length: int) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, length)


def written(dataset: Dataset, *, is_implicit: bool, is_little: bool) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = is_implicit, is_little
    write_dataset(stream, dataset)
    return stream.getvalue()


@st.composite
def datasets(draw: st.DrawFn, depth: int = 0) -> Dataset:
    """Random data sets with text, binary and nested elements, of either kind of length."""
    dataset = Dataset()
    for name in draw(
        st.sets(st.sampled_from(["PatientComments", "Rows", "KVP", "EncapsulatedDocument"]))
    ):
        value = {"Rows": 7, "KVP": "120", "EncapsulatedDocument": b"1234"}.get(name)
        setattr(dataset, name, value or draw(st.text("abc", max_size=20)))
    if depth < 3 and draw(st.booleans()):
        items = draw(st.lists(datasets(depth + 1), max_size=3))
        for item in items:
            item.is_undefined_length_sequence_item = draw(st.booleans())
        dataset.ReferencedImageSequence = Sequence(items)
        dataset["ReferencedImageSequence"].is_undefined_length = draw(st.booleans())
    return dataset


@pytest.mark.parametrize("encoding", [_EXPLICIT_LITTLE, _IMPLICIT_LITTLE, _EXPLICIT_BIG])
@settings(max_examples=30)
@given(dataset=datasets())
def test_walk_finds_the_elements_that_pydicom_wrote(encoding, dataset: Dataset) -> None:
    is_little = encoding.order == "<"
    content = written(dataset, is_implicit=not encoding.is_explicit, is_little=is_little)
    found = list(walk_elements(Bytes(content, is_whole=True), 0, encoding))
    assert [element.tag for element in found] == [int(element.tag) for element in dataset]


@settings(max_examples=30)
@given(dataset=datasets(), cut=st.integers(0, 200))
def test_walk_over_part_of_a_file_asks_for_more(dataset: Dataset, cut: int) -> None:
    content = written(dataset, is_implicit=False, is_little=True)
    with pytest.raises(MoreBytesNeededError):
        list(walk_elements(Bytes(content[:cut], is_whole=False), 0, _EXPLICIT_LITTLE))


def test_items_of_a_sequence_are_found_whatever_their_length() -> None:
    dataset = Dataset()
    dataset.ReferencedImageSequence = Sequence([Dataset(), Dataset()])
    for index, item in enumerate(dataset.ReferencedImageSequence):
        item.KVP = "1" * (2 + 2 * index)
        item.is_undefined_length_sequence_item = bool(index)
    for is_undefined in (False, True):
        dataset["ReferencedImageSequence"].is_undefined_length = is_undefined
        source = Bytes(written(dataset, is_implicit=False, is_little=True), is_whole=True)
        (element,) = walk_elements(source, 0, _EXPLICIT_LITTLE)
        sizes = [end - start for start, end in walk_items(source, element, _EXPLICIT_LITTLE)]
        assert sizes == [10, 12]


def test_nesting_deeper_than_the_bound_is_unreadable() -> None:
    level = tag_bytes(ITEM, UNDEFINED) + tag_bytes(0x00081140, UNDEFINED)
    content = level * (_MAX_NESTING + 2)
    with pytest.raises(UnreadableFileError, match="deeper than 32"):
        _skip_undefined(Bytes(content, is_whole=True), 0, _IMPLICIT_LITTLE)


def test_nesting_up_to_the_bound_is_read() -> None:
    level = tag_bytes(ITEM, UNDEFINED) + tag_bytes(0x00081140, UNDEFINED)
    end = tag_bytes(SEQUENCE_END, 0) + tag_bytes(_ITEM_END, 0)
    content = level * (_MAX_NESTING - 1) + end * (_MAX_NESTING - 1) + tag_bytes(SEQUENCE_END, 0)
    assert _skip_undefined(Bytes(content, is_whole=True), 0, _IMPLICIT_LITTLE) == len(content)


def test_unknown_sequence_of_undefined_length_is_implicit_inside() -> None:
    inside = tag_bytes(ITEM, UNDEFINED) + tag_bytes(0x00180060, 2) + b"12"
    ends = tag_bytes(_ITEM_END, 0) + tag_bytes(SEQUENCE_END, 0)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, UNDEFINED) + inside + ends
    after = struct.pack("<HH2sH", 0x0018, 0x0060, b"DS", 2) + b"80"
    found = list(walk_elements(Bytes(unknown + after, is_whole=True), 0, _EXPLICIT_LITTLE))
    assert [element.tag for element in found] == [0x00091001, 0x00180060]


@pytest.mark.parametrize(
    "content",
    [
        tag_bytes(_ITEM_END, 0),
        tag_bytes(0x00180060, 0),
        tag_bytes(ITEM, UNDEFINED) + tag_bytes(SEQUENCE_END, 0),
        tag_bytes(ITEM, UNDEFINED) + tag_bytes(ITEM, 0),
    ],
)
def test_delimiters_that_do_not_match_are_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableFileError, match="broken sequence"):
        _skip_undefined(Bytes(content, is_whole=True), 0, _IMPLICIT_LITTLE)


def test_sequence_that_does_not_hold_items_is_unreadable() -> None:
    element = Element(0x00081140, b"SQ", 0, 8)
    source = Bytes(tag_bytes(0x00180060, 0), is_whole=True)
    with pytest.raises(UnreadableFileError, match="broken sequence"):
        list(walk_items(source, element, _IMPLICIT_LITTLE))


def test_element_that_ends_beyond_its_item_is_unreadable() -> None:
    source = Bytes(tag_bytes(0x00180060, 4) + b"1234", is_whole=True)
    with pytest.raises(UnreadableFileError, match="broken sequence"):
        list(walk_elements(source, 0, _IMPLICIT_LITTLE, end=10))


def test_length_beyond_the_file_says_so() -> None:
    source = Bytes(tag_bytes(0x00180060, 1000), is_whole=True)
    with pytest.raises(UnreadableFileError, match="cut short"):
        list(walk_elements(source, 0, _IMPLICIT_LITTLE))


@pytest.mark.parametrize("tag", [0x7FE00008, 0x7FE00009, 0x7FE00010])
def test_pixels_of_any_kind_are_the_last_element_and_not_looked_into(tag: int) -> None:
    source = Bytes(tag_bytes(0x00180060, 0) + tag_bytes(tag, 2**31), is_whole=False)
    found = list(walk_elements(source, 0, _IMPLICIT_LITTLE))
    assert [element.tag for element in found] == [0x00180060, tag]


def test_number_of_elements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_elements, "_MAX_ELEMENTS", 10)
    content = io.BytesIO(tag_bytes(0x00180060, 0) * 11).getvalue()
    with pytest.raises(UnreadableFileError, match="more than 10 elements"):
        list(walk_elements(Bytes(content, is_whole=True), 0, _IMPLICIT_LITTLE))

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import NATIVE, ct_dataset, enhanced_dataset, pixels_at, save
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from chestct.readers import dicom_headers
from chestct.readers.dicom_elements import looks_like_dicom
from chestct.readers.dicom_headers import DicomHeader, Fields, read_header
from chestct.readers.files import UnreadableFileError, disk_file, memory_file


def header_of(content: bytes, name: str = "x.dcm") -> DicomHeader | None:
    return read_header(memory_file(content, name, len(content)))


def content_of(tmp_path: Path, syntax: str = NATIVE[0], **fields: object) -> bytes:
    return save(ct_dataset(pixels_at(3.0), 3.0, **fields), tmp_path / "x.dcm", syntax).read_bytes()


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_header_is_read_in_every_native_encoding(tmp_path: Path, syntax: str) -> None:
    header = header_of(content_of(tmp_path, syntax))
    assert header is not None
    assert header.layout is not None
    assert header.frames[0].numbers("position", 3) == (-10.0, -20.0, 3.0)
    assert (header.layout.rows, header.layout.columns) == (10, 12)
    assert (header.layout.syntax, header.layout.bits_stored) == (syntax, 12)


def test_file_without_preamble_is_read(tmp_path: Path) -> None:
    whole = content_of(tmp_path)
    for content in (whole[128:], whole[132:]):
        header = header_of(content)
        assert header is not None
        assert header.series_uid == "1.2.3.4.5"


@pytest.mark.parametrize("syntax", [s for s in NATIVE if s != DeflatedExplicitVRLittleEndian])
def test_bare_data_set_is_read_by_how_it_looks(tmp_path: Path, syntax: str) -> None:
    content = content_of(tmp_path, syntax)
    meta_length = int.from_bytes(content[140:144], "little")
    header = header_of(content[144 + meta_length :])
    assert header is not None
    assert header.layout is not None
    assert (header.layout.rows, header.series_uid) == (10, "1.2.3.4.5")


def test_explicit_file_that_is_labelled_implicit_is_read(tmp_path: Path) -> None:
    content = content_of(tmp_path)
    labelled = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    header = header_of(labelled)
    assert header is not None
    assert header.frames[0].numbers("pixel_spacing", 2) == (0.5, 0.75)


def test_implicit_file_that_is_labelled_explicit_is_read(tmp_path: Path) -> None:
    content = content_of(tmp_path, ImplicitVRLittleEndian)
    labelled = content.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.9\0")
    header = header_of(labelled)
    assert header is not None
    assert header.frames[0].numbers("pixel_spacing", 2) == (0.5, 0.75)


def test_header_longer_than_the_first_read_is_read(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0))
    dataset.add_new(0x00204001, "UT", "long " * 40_000)
    header = header_of(save(dataset, tmp_path / "x.dcm").read_bytes())
    assert header is not None
    assert header.layout is not None
    assert header.layout.offset > 200_000


def test_header_beyond_the_bound_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 2**14)
    dataset = ct_dataset(pixels_at(1.0))
    dataset.add_new(0x00204001, "UT", "long " * 40_000)
    content = save(dataset, tmp_path / "x.dcm").read_bytes()
    with pytest.raises(UnreadableFileError, match="header of more than"):
        header_of(content)


def long_dataset(**fields: object) -> Dataset:
    dataset = ct_dataset(pixels_at(1.0), **fields)
    dataset.add_new(0x00204001, "UT", "long " * 40_000)
    return dataset


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_object_of_another_modality_is_not_looked_through_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    monkeypatch.setattr(dicom_headers, "_MAX_OTHER_HEADER_BYTES", 2**14)
    dataset = long_dataset(Modality="DOC", SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    if syntax == DeflatedExplicitVRLittleEndian:
        # A small deflated file is inflated as far as this, however little of it was read.
        monkeypatch.setattr("chestct.readers.dicom_elements._MAX_INFLATED_HEADER_BYTES", 2**15)
    header = header_of(save(dataset, tmp_path / "x.dcm", syntax).read_bytes())
    assert header is not None
    assert header.layout is None
    assert header.fields.text("modality") == "DOC"
    assert header.fields.text("sop_class") == "1.2.840.10008.5.1.4.1.1.104.1"
    assert header.frames == (header.fields,)


def test_raw_data_of_ct_is_no_image_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 2**14)
    dataset = long_dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.66")
    header = header_of(save(dataset, tmp_path / "x.dcm").read_bytes())
    assert header is not None
    assert header.layout is None


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", None])
def test_ct_image_with_a_header_beyond_the_bound_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: str | None
) -> None:
    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 2**14)
    dataset = long_dataset(SOPClassUID=uid)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.3"
    content = save(dataset, tmp_path / "x.dcm").read_bytes()
    with pytest.raises(UnreadableFileError, match="header of more than"):
        header_of(content)


def test_ct_image_of_a_makers_own_class_may_have_a_long_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_headers, "_MAX_OTHER_HEADER_BYTES", 2**14)
    dataset = long_dataset(SOPClassUID="1.3.46.670589.5.0.1")
    header = header_of(save(dataset, tmp_path / "x.dcm").read_bytes())
    assert header is not None
    assert header.layout is not None


def test_wrapped_file_that_is_not_dicom_inside_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dicom_headers, "unwrapped", None)
    packed = gzip.compress(bytes(2**24))
    notes = gzip.compress(b"some notes on the patient\n" * 1000)
    for content in (packed, notes, notes[: len(notes) // 2], notes[:4]):
        assert header_of(content) is None


def test_wrapped_file_that_begins_as_dicom_and_is_cut_short_or_a_bomb_is_unreadable(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 2**12, (400, 400), dtype=np.uint16)
    content = save(ct_dataset(noise), tmp_path / "x.dcm").read_bytes()
    packed = gzip.compress(content)
    with pytest.raises(UnreadableFileError, match="cannot be unpacked"):
        header_of(packed[:-1000])
    with pytest.raises(UnreadableFileError, match="unpack"):
        header_of(gzip.compress(content[:2000] + bytes(2**24)))


def test_file_compressed_as_a_whole_is_read(tmp_path: Path) -> None:
    header = header_of(gzip.compress(content_of(tmp_path)))
    assert header is not None
    assert header.series_uid == "1.2.3.4.5"


def test_file_wrapped_twice_is_not_dicom(tmp_path: Path) -> None:
    assert header_of(gzip.compress(gzip.compress(content_of(tmp_path)))) is None


@pytest.mark.parametrize("content", [b"", b"short", b"a text file, long enough to be read" * 9])
def test_file_that_is_not_dicom_gives_none(content: bytes) -> None:
    assert header_of(content) is None
    assert not looks_like_dicom(content)


def test_header_cut_short_is_unreadable_at_every_length(tmp_path: Path) -> None:
    content = content_of(tmp_path)
    offset = len(content) - 240
    for length in range(140, offset - 12, 3):
        try:
            header = header_of(content[:length])
        except UnreadableFileError:
            continue
        # Cut between two elements, it is a whole header of an object without pixels.
        assert header is not None
        assert header.layout is None


def test_frames_of_an_enhanced_image_have_their_own_positions(tmp_path: Path) -> None:
    frames = np.stack([pixels_at(z) for z in (4.0, 2.0)])
    for syntax in NATIVE:
        dataset = enhanced_dataset(frames, [4.0, 2.0])
        header = header_of(save(dataset, tmp_path / "x.dcm", syntax).read_bytes())
        assert header is not None
        positions = [frame.numbers("position", 3) for frame in header.frames]
        assert positions == [(-10.0, -20.0, 4.0), (-10.0, -20.0, 2.0)]
        assert header.frames[1].numbers("orientation", 6) == (1, 0, 0, 0, 1, 0)
        assert header.facts()["kernel"] == "B60f"


def test_enhanced_image_without_frames_counts_as_one(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0))
    dataset.PerFrameFunctionalGroupsSequence = Sequence([])
    header = header_of(save(dataset, tmp_path / "x.dcm").read_bytes())
    assert header is not None
    assert len(header.frames) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, None),
        ({"LossyImageCompression": "00"}, None),
        ({"LossyImageCompression": "01"}, "yes"),
        ({"LossyImageCompression": "01", "LossyImageCompressionRatio": "12.5"}, "yes, 12.5 to 1"),
        (
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": ["4", "10"]},
            "yes, 10 to 1",
        ),
    ],
)
def test_lossy_compression_is_mentioned(
    tmp_path: Path, fields: dict[str, object], words: str | None
) -> None:
    header = header_of(content_of(tmp_path, **fields))
    assert header is not None
    assert header.facts().get("lossy_compression") == words


def test_a_lossy_encoding_is_mentioned_though_the_header_does_not_say_it(data_folder: Path) -> None:
    for name, words in (("CT1_J2KI.dcm", True), ("CT1_J2KR.dcm", False), ("CT1_JLSN.dcm", True)):
        path = data_folder / "dicom_transfer_syntaxes" / name
        dataset = pydicom.dcmread(path)
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio"):
            dataset.pop(keyword, None)
        content = io.BytesIO()
        dataset.save_as(content)
        header = header_of(content.getvalue())
        assert header is not None
        assert ("lossy_compression" in header.facts()) == words, name


def test_facts_hold_no_name_identifier_or_description(tmp_path: Path) -> None:
    header = header_of(content_of(tmp_path))
    assert header is not None
    assert header.facts() == {
        "kernel": "B30f",
        "slice_thickness_mm": "2",
        "manufacturer": "Maker",
        "kvp": "120",
        "patient_position": "HFS",
    }
    assert "secret" not in repr(header.facts()).lower()


def test_text_is_printable_and_short() -> None:
    fields = Fields({"kernel": b"a\x00b\x1b[31mc" + b"x" * 100})
    assert fields.text("kernel") == ("ab[31mc" + "x" * 100)[:64]


@pytest.mark.parametrize("value", [b"1\\2", b"1\\2\\x", b"1\\2\\nan", b"1\\2\\inf"])
def test_numbers_that_are_not_finite_or_too_few_are_unreadable(value: bytes) -> None:
    with pytest.raises(UnreadableFileError, match="finite number"):
        Fields({"position": value}).numbers("position", 3)


def test_empty_number_is_none_and_absent_integer_the_default() -> None:
    fields = Fields({"position": b"  ", "num_frames": b" "})
    assert fields.numbers("position", 3) is None
    assert (fields.integer("rows", 5), fields.written_integer("num_frames", 1)) == (5, 1)


def test_integer_is_read_from_binary_of_either_order_and_from_digits() -> None:
    assert Fields({"rows": b"\x00\x02"}).integer("rows") == 512
    assert Fields({"rows": b"\x02\x00"}, order=">").integer("rows") == 512
    assert Fields({"rows": b"512 "}).integer("rows") == 512
    assert Fields({"padding_value": b"\xff\xff"}).integer("padding_value", is_signed=True) == -1
    with pytest.raises(UnreadableFileError, match="no whole number"):
        Fields({"rows": b"many"}).integer("rows")


def test_value_of_absurd_length_is_unreadable(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0), ConvolutionKernel=None)
    dataset.add_new("ConvolutionKernel", "UT", "B" * 2000)
    content = save(dataset, tmp_path / "x.dcm").read_bytes()
    with pytest.raises(UnreadableFileError, match="2000 bytes where 'kernel'"):
        header_of(content)


def test_damaged_deflated_data_set_is_unreadable(tmp_path: Path) -> None:
    content = bytearray(content_of(tmp_path, DeflatedExplicitVRLittleEndian))
    meta_length = int.from_bytes(content[140:144], "little")
    content[144 + meta_length] |= 0x07
    with pytest.raises(UnreadableFileError, match="deflated"):
        header_of(bytes(content))


def test_inflated_file_gives_no_more_than_its_limit(tmp_path: Path) -> None:
    content = content_of(tmp_path, DeflatedExplicitVRLittleEndian)
    header = header_of(content)
    assert header is not None
    assert header.source.deflated_in is not None
    with header.source.open() as stream:
        assert len(stream.read()) == header.source.size
    assert header.source.stored_bytes == len(content)
    assert header.source.name == "x.dcm"


def test_deflated_header_longer_than_the_first_read_is_read(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0))
    dataset.add_new(0x00204001, "UT", "".join(map(str, range(40_000))))
    path = save(dataset, tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    header = header_of(path.read_bytes())
    assert header is not None
    assert header.layout is not None


def test_headers_of_real_files_agree_with_pydicom(data_folder: Path) -> None:
    folders = ("dicom_not_a_scan", "dicom_gantry_tilt")
    paths = [path for name in folders for path in sorted((data_folder / name).iterdir())]
    paths += sorted((data_folder / "covid_ct_md" / "P001").iterdir())[::30]
    for path in paths:
        ours = read_header(disk_file(path, path.name, path.stat().st_size))
        theirs = pydicom.dcmread(path, stop_before_pixels=True)
        assert ours is not None
        assert ours.layout is not None
        assert ours.series_uid == theirs.SeriesInstanceUID
        assert (ours.layout.rows, ours.layout.columns) == (theirs.Rows, theirs.Columns)
        assert ours.layout.bits_stored == theirs.BitsStored
        assert ours.layout.syntax == theirs.file_meta.TransferSyntaxUID
        position = theirs.get("ImagePositionPatient")
        found = ours.frames[0].numbers("position", 3)
        assert found == (tuple(map(float, position)) if position else None)


def test_two_frames_of_the_real_enhanced_image_are_found(data_folder: Path) -> None:
    path = data_folder / "dicom_transfer_syntaxes" / "enhanced_ct_multiframe.dcm"
    header = read_header(disk_file(path, path.name, path.stat().st_size))
    assert header is not None
    assert [f.numbers("position", 3) for f in header.frames] == [
        (99.5, -301.5, -159.0),
        (99.5, -301.5, -149.0),
    ]


def test_reading_does_not_change_a_nested_data_set_in_another_group(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0))
    source = Dataset()
    source.Rows = 999
    dataset.SourceImageSequence = Sequence([source])
    header = header_of(save(dataset, tmp_path / "x.dcm").read_bytes())
    assert header is not None
    assert header.layout is not None
    assert header.layout.rows == 10

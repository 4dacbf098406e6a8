from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gdcm
import imagecodecs
import numpy as np
import pytest
import SimpleITK
from dicom_files import ENCODERS, NATIVE, ct_dataset, enhanced_dataset, pixels_at, save
from dicom_files import save_encapsulated as save_packed
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate_extended

from chestct.errors import ReadError
from chestct.readers import read_volume
from chestct.readers.dicom_elements import UNDEFINED
from chestct.readers.dicom_headers import PixelLayout
from chestct.readers.dicom_pixels import (
    _DECODERS,
    Rescale,
    _decode_frame,
    _to_hounsfield,
    _unpacked,
    check_layout,
)
from chestct.readers.files import UnreadableFileError

PADDED_HU = {"CT1": -3024, "CT2": None}
LAYOUT = PixelLayout(
    rows=2,
    columns=3,
    samples=1,
    photometric="MONOCHROME2",
    bits_allocated=16,
    bits_stored=12,
    high_bit=11,
    is_signed=False,
    num_frames=1,
    syntax=NATIVE[0],
    order="<",
    offset=0,
    length=12,
)


def stored_by_gdcm(path: Path) -> np.ndarray:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    found = reader.GetImage()
    content = found.GetBuffer().encode("utf-8", errors="surrogateescape")
    columns, rows = found.GetDimension(0), found.GetDimension(1)
    kind = "i2" if found.GetPixelFormat().GetPixelRepresentation() else "u2"
    return np.frombuffer(content, dtype=kind).reshape(rows, columns)


LOSSLESS = ("J2KR", "JLSL", "JPLL", "RLE")
LOSSY = ("J2KI", "JLSN")


@pytest.mark.parametrize("slice_name", ["CT1", "CT2"])
@pytest.mark.parametrize("encoding", [*LOSSLESS, *LOSSY])
def test_real_slice_is_decoded_bit_by_bit_as_gdcm_does(
    data_folder: Path, slice_name: str, encoding: str
) -> None:
    path = data_folder / "dicom_transfer_syntaxes" / f"{slice_name}_{encoding}.dcm"
    ours = read_volume(path).voxels[0].astype(int)
    theirs = stored_by_gdcm(path).astype(int) + (-1024 if slice_name == "CT1" else 0)
    is_measured = ours != -1024
    assert np.array_equal(ours[is_measured], theirs[is_measured])
    assert theirs[~is_measured].max() <= -1024


@pytest.mark.parametrize("slice_name", ["CT1", "CT2"])
@pytest.mark.parametrize("encoding", LOSSLESS)
def test_lossless_slice_equals_the_uncompressed_one(
    data_folder: Path, tmp_path: Path, slice_name: str, encoding: str
) -> None:
    folder = data_folder / "dicom_transfer_syntaxes"
    packed = read_volume(folder / f"{slice_name}_{encoding}.dcm")
    # The references come as Zstandard archives.
    reference = tmp_path / f"{slice_name}_REF.dcm"
    reference.write_bytes(imagecodecs.zstd_decode((folder / reference.name).read_bytes()))
    plain = read_volume(reference)
    assert np.array_equal(packed.voxels, plain.voxels)


@pytest.mark.parametrize("number", [1, 50, 148])
def test_slice_of_a_real_scan_is_decoded_bit_by_bit_as_gdcm_does(
    data_folder: Path, number: int
) -> None:
    path = data_folder / "covid_ct_md" / "P001" / f"98C14734-ASSH_{number}.dcm"
    theirs = stored_by_gdcm(path).astype(np.int16) - 1024
    assert np.array_equal(read_volume(path).voxels[0], theirs)


def test_real_enhanced_image_is_read_as_simpleitk_does(data_folder: Path) -> None:
    path = data_folder / "dicom_transfer_syntaxes" / "enhanced_ct_multiframe.dcm"
    ours = read_volume(path)
    theirs = SimpleITK.ReadImage(str(path))
    # Ours runs along the normal, theirs as the frames come.
    assert np.array_equal(ours.voxels[::-1], SimpleITK.GetArrayFromImage(theirs).astype(np.int16))
    assert ours.unit == "windowed"
    assert any("RescaleType is 'US'" in warning for warning in ours.warnings)


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_uncompressed_slice_is_read_in_every_byte_order(tmp_path: Path, syntax, dtype) -> None:
    stored = pixels_at(1.0).astype(dtype)
    volume = read_volume(save(ct_dataset(stored), tmp_path / "x.dcm", syntax))
    assert np.array_equal(volume.voxels[0], stored.astype(np.int16) - 1024)


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("num_fragments", [1, 3])
def test_compressed_slice_is_read_whole_or_in_fragments(
    tmp_path: Path, syntax: str, num_fragments: int
) -> None:
    stored = pixels_at(1.0, (40, 48))
    frames = [bytes(ENCODERS[syntax](stored))]
    path = save_packed(
        ct_dataset(stored), tmp_path / "x.dcm", syntax, frames, fragments_per_frame=num_fragments
    )
    assert np.array_equal(read_volume(path).voxels[0], stored.astype(np.int16) - 1024)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("num_bits", [12, 16])
def test_jpeg_lossless_is_read_with_every_predictor(
    tmp_path: Path, predictor: int, num_bits: int
) -> None:
    stored = (pixels_at(1.0, (40, 48)).astype(int) * (1 if num_bits == 12 else 10)).astype("u2")
    frame = imagecodecs.jpeg8_encode(
        stored, lossless=True, predictor=predictor, bitspersample=num_bits
    )
    intercept = -1024 if num_bits == 12 else -6000
    dataset = ct_dataset(
        stored, BitsStored=num_bits, HighBit=num_bits - 1, RescaleIntercept=str(intercept)
    )
    path = save_packed(dataset, tmp_path / "x.dcm", "1.2.840.10008.1.2.4.57", [bytes(frame)])
    assert np.array_equal(read_volume(path).voxels[0], stored.astype(np.int32) + intercept)


def test_jpeg_extended_with_12_bits_is_read_to_its_precision(tmp_path: Path) -> None:
    stored = pixels_at(1.0, (40, 48))
    frame = bytes(imagecodecs.jpeg8_encode(stored, level=98, bitspersample=12))
    path = save_packed(ct_dataset(stored), tmp_path / "x.dcm", "1.2.840.10008.1.2.4.51", [frame])
    assert np.abs(read_volume(path).voxels[0] - (stored.astype(int) - 1024)).max() <= 4


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("num_fragments", [1, 2])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"])
def test_frames_of_a_compressed_enhanced_image_are_told_apart(
    tmp_path: Path, syntax: str, num_fragments: int, has_table: bool
) -> None:
    stored = np.stack([pixels_at(z, (40, 48)) for z in (0.0, 2.0, 4.0)])
    path = save_packed(
        enhanced_dataset(stored, [0.0, 2.0, 4.0]),
        tmp_path / "x.dcm",
        syntax,
        [bytes(ENCODERS[syntax](frame)) for frame in stored],
        has_table=has_table,
        fragments_per_frame=num_fragments,
    )
    assert np.array_equal(read_volume(path).voxels, stored.astype(np.int16) - 1024)


def test_extended_offset_table_tells_frames_apart(tmp_path: Path) -> None:
    syntax = "1.2.840.10008.1.2.5"
    stored = np.stack([pixels_at(z) for z in (0.0, 2.0)])
    frames = [bytes(ENCODERS[syntax](frame)) for frame in stored]
    # RLE frames in two fragments, which nothing but the table can tell apart.
    pieces, offsets, position = [], [], 0
    for frame in frames:
        half = len(frame) // 4 * 2
        offsets.append(position)
        for piece in (frame[:half], frame[half:]):
            pieces.append(piece)
            position += 8 + len(piece)
    dataset = enhanced_dataset(stored, [0.0, 2.0])
    _, _, lengths = encapsulate_extended(frames)
    dataset.ExtendedOffsetTable = np.array(offsets, dtype="<u8").tobytes()
    dataset.ExtendedOffsetTableLengths = lengths
    path = save_packed(dataset, tmp_path / "x.dcm", syntax, pieces, has_table=False)
    assert np.array_equal(read_volume(path).voxels, stored.astype(np.int16) - 1024)


def test_fragments_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    syntax = "1.2.840.10008.1.2.5"
    stored = np.stack([pixels_at(z) for z in (0.0, 2.0)])
    frames = [bytes(ENCODERS[syntax](frame)) for frame in stored]
    pieces = [piece for frame in frames for piece in (frame[:40], frame[40:])]
    dataset = enhanced_dataset(stored, [0.0, 2.0])
    path = save_packed(dataset, tmp_path / "x.dcm", syntax, pieces, has_table=False)
    with pytest.raises(ReadError, match="4 pieces of pixels for 2 frames"):
        read_volume(path)


def test_unknown_encoding_is_named(tmp_path: Path) -> None:
    path = save_packed(
        ct_dataset(pixels_at(1.0)), tmp_path / "x.dcm", "1.2.840.10008.1.2.4.100", [b"1234"]
    )
    with pytest.raises(ReadError, match=r"not supported \(transfer syntax 1.2.840.10008.1.2.4.100"):
        read_volume(path)


@pytest.mark.parametrize("syntax", [s for s in ENCODERS if not s.endswith(".5")])
def test_compressed_image_of_another_size_than_declared_is_refused(
    tmp_path: Path, syntax: str
) -> None:
    frame = bytes(ENCODERS[syntax](pixels_at(1.0, (40, 50))))
    path = save_packed(ct_dataset(pixels_at(1.0, (40, 48))), tmp_path / "x.dcm", syntax, [frame])
    with pytest.raises(ReadError, match="40 x 50 x 1"):
        read_volume(path)


@pytest.mark.parametrize("syntax", _DECODERS)
def test_bytes_that_are_no_image_are_unreadable(syntax: str) -> None:
    layout = replace(LAYOUT, syntax=syntax, length=UNDEFINED)
    for content in (b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51" + bytes(60), bytes(range(100))):
        with pytest.raises(UnreadableFileError):
            _decode_frame(content, layout)


def test_jpeg_2000_image_of_too_many_tiles_is_refused() -> None:
    frame = bytearray(ENCODERS["1.2.840.10008.1.2.4.90"](pixels_at(1.0, (100, 100))))
    frame[24:32] = b"\0\0\0\x01\0\0\0\x01"
    layout = replace(LAYOUT, rows=100, columns=100, syntax="1.2.840.10008.1.2.4.90")
    with pytest.raises(UnreadableFileError, match="10000 JPEG 2000 tiles"):
        _decode_frame(bytes(frame), layout)


def test_jpeg_ls_size_that_changes_after_the_frame_header_is_refused() -> None:
    content = b"\xff\xd8\xff\xf8\x00\x0d\x04\x03" + bytes(20)
    layout = replace(LAYOUT, syntax="1.2.840.10008.1.2.4.80")
    with pytest.raises(UnreadableFileError, match="no JPEG frame header"):
        _decode_frame(content, layout)


def test_wrapping_around_a_jpeg_2000_image_is_taken_off() -> None:
    stored = pixels_at(1.0, (40, 48))
    frame = bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="jp2", reversible=True))
    layout = replace(LAYOUT, rows=40, columns=48, syntax="1.2.840.10008.1.2.4.90")
    assert not frame.startswith(b"\xff\x4f")
    assert np.array_equal(_decode_frame(frame, layout), stored)


@given(
    values=st.lists(st.integers(-2048, 2047), min_size=6, max_size=6),
    high_bit=st.integers(11, 15),
    noise=st.integers(0, 2**16 - 1),
    is_signed=st.booleans(),
)
def test_bits_around_the_stored_ones_are_ignored(
    values: list[int], high_bit: int, noise: int, is_signed: bool
) -> None:
    expected = np.array(values).reshape(2, 3) + (0 if is_signed else 2048)
    shift = high_bit - 11
    mask = 0xFFF << shift
    raw = ((expected & 0xFFF) << shift) | (noise & ~mask & 0xFFFF)
    layout = replace(LAYOUT, high_bit=high_bit, is_signed=is_signed)
    assert np.array_equal(_unpacked(raw.astype(np.uint16), layout), expected)


@given(
    stored=st.lists(st.integers(0, 4095), min_size=6, max_size=6),
    slope=st.integers(-20, 20).filter(bool),
    intercept=st.integers(-100_000, 100_000),
)
def test_whole_rescale_is_exact_and_clips_only_what_does_not_fit(
    stored: list[int], slope: int, intercept: int
) -> None:
    pixels = np.array(stored, dtype=np.uint16).reshape(2, 3)
    out = np.empty((2, 3), dtype=np.int16)
    num_clipped = _to_hounsfield(pixels, LAYOUT, Rescale(slope, intercept), out)
    exact = pixels.astype(int) * slope + intercept
    assert np.array_equal(out, np.clip(exact, -32768, 32767))
    assert num_clipped == np.count_nonzero((exact < -32768) | (exact > 32767))


def test_rescale_with_fractions_gives_float32(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0), RescaleSlope="0.5", RescaleIntercept="-1000.25")
    volume = read_volume(save(dataset, tmp_path / "x.dcm"))
    assert volume.voxels.dtype == np.float32
    assert np.allclose(volume.voxels[0], pixels_at(1.0) * 0.5 - 1000.25)


def test_32_and_8_bit_slices_are_read(tmp_path: Path) -> None:
    for dtype in (np.int32, np.uint8):
        stored = (pixels_at(1.0) % 200).astype(dtype)
        volume = read_volume(save(ct_dataset(stored), tmp_path / "x.dcm"))
        assert np.array_equal(volume.voxels[0], stored.astype(int) - 1024)


def test_values_beyond_16_bits_are_set_to_the_nearest_end_and_counted(tmp_path: Path) -> None:
    stored = pixels_at(1.0).astype(np.int32)
    stored[0, :3] = 200_000
    volume = read_volume(save(ct_dataset(stored), tmp_path / "x.dcm"))
    assert volume.voxels.max() == 32767
    assert any(warning.startswith("3 voxel(s) beyond") for warning in volume.warnings)


@pytest.mark.parametrize("is_signed", [False, True])
def test_padding_beyond_16_bits_is_air_and_not_counted(tmp_path: Path, is_signed: bool) -> None:
    stored = pixels_at(0.0).astype(np.int16 if is_signed else np.uint16)
    padding = -32768 if is_signed else 63536
    stored[0] = padding
    dataset = ct_dataset(stored, BitsStored=16, HighBit=15)
    dataset.add_new("PixelPaddingValue", "SS" if is_signed else "US", padding)
    volume = read_volume(save(dataset, tmp_path / "x.dcm"))
    assert (volume.voxels[0, 0] == -1024).all()
    assert volume.warnings == ("There is 1 slice only, not a whole scan.",)


def test_values_beyond_16_bits_beside_padding_are_still_counted() -> None:
    pixels = np.array([[63536, 63536, 60_000], [0, 1024, 2000]], dtype=np.uint16)
    layout = replace(LAYOUT, bits_stored=16, high_bit=15)
    out = np.empty((2, 3), dtype=np.int16)
    assert _to_hounsfield(pixels, layout, Rescale(1.0, -1024.0, (63536, 63536)), out) == 1
    assert out.tolist() == [[-1024, -1024, 32767], [-1024, 0, 976]]


@pytest.mark.parametrize(
    ("fields", "is_air"),
    [
        ({"PixelPaddingValue": 510}, lambda stored: stored == 510),
        (
            {"PixelPaddingValue": 510, "PixelPaddingRangeLimit": 520},
            lambda stored: (stored >= 510) & (stored <= 520),
        ),
        (
            {"PixelPaddingValue": 520, "PixelPaddingRangeLimit": 510},
            lambda stored: (stored >= 510) & (stored <= 520),
        ),
    ],
)
def test_padding_becomes_air(tmp_path: Path, fields: dict[str, int], is_air) -> None:
    stored = pixels_at(0.0)
    dataset = ct_dataset(stored)
    for name, value in fields.items():
        dataset.add_new(name, "US", value)
    volume = read_volume(save(dataset, tmp_path / "x.dcm"))
    expected = np.where(is_air(stored), -1024, stored.astype(int) - 1024)
    assert np.array_equal(volume.voxels[0], expected)
    assert (volume.voxels == -1024).any()


def test_padding_that_needs_more_than_the_stored_bits_becomes_air(tmp_path: Path) -> None:
    stored = pixels_at(0.0)
    stored[0] = 63536
    dataset = ct_dataset(stored)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    volume = read_volume(save(dataset, tmp_path / "x.dcm"))
    assert (volume.voxels[0, 0] == -1024).all()
    assert np.array_equal(volume.voxels[0, 1:], stored[1:].astype(int) - 1024)


def test_padding_becomes_air_in_float_volumes_too(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(0.0), RescaleSlope="0.5")
    dataset.add_new("PixelPaddingValue", "US", 500)
    assert read_volume(save(dataset, tmp_path / "x.dcm")).voxels[0, 0, 0] == -1024


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": 0},
        {"columns": 5000},
        {"num_frames": 0},
        {"num_frames": 30_000},
        {"rows": 4096, "columns": 4096, "num_frames": 100},
        {"bits_allocated": 12},
        {"bits_stored": 17, "high_bit": 16},
        {"bits_stored": 12, "high_bit": 5},
        {"bits_stored": 0},
    ],
)
def test_layout_that_no_ct_has_is_refused_before_anything_is_allocated(
    changed: dict[str, int],
) -> None:
    with pytest.raises(UnreadableFileError, match="declares"):
        check_layout(replace(LAYOUT, **changed))


@pytest.mark.parametrize("slope", ["0", "1e9", "-1e9"])
def test_impossible_rescale_is_refused(tmp_path: Path, slope: str) -> None:
    path = save(ct_dataset(pixels_at(1.0), RescaleSlope=slope), tmp_path / "x.dcm")
    with pytest.raises(ReadError, match="impossible rescale"):
        read_volume(path)


def test_pixels_beyond_the_end_of_the_file_are_refused(tmp_path: Path) -> None:
    path = save(ct_dataset(pixels_at(1.0)), tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ReadError, match="ends at byte"):
        read_volume(path)


@pytest.mark.parametrize(("rows", "num_bytes"), [(11, 264), (9, 216)])
def test_fewer_or_more_pixels_than_declared_are_refused(
    tmp_path: Path, rows: int, num_bytes: int
) -> None:
    path = save(ct_dataset(pixels_at(1.0), Rows=rows), tmp_path / "x.dcm")
    with pytest.raises(ReadError, match=f"holds 240 bytes of pixels where {num_bytes}"):
        read_volume(path)


def test_padding_after_the_pixels_is_passed_over(tmp_path: Path) -> None:
    dataset = ct_dataset(pixels_at(1.0))
    dataset.PixelData += bytes(20)
    volume = read_volume(save(dataset, tmp_path / "x.dcm"))
    assert np.array_equal(volume.voxels[0], pixels_at(1.0).astype(int) - 1024)


def test_encapsulated_pixels_without_a_fragment_are_refused(tmp_path: Path) -> None:
    path = save_packed(
        ct_dataset(pixels_at(1.0)), tmp_path / "x.dcm", "1.2.840.10008.1.2.4.70", [b"12"]
    )
    content = path.read_bytes()
    start = content.index(b"\xfe\xff\x00\xe0")
    path.write_bytes(content[: start + 8 + content[start + 4]])
    with pytest.raises(ReadError, match="encapsulated pixel data is empty"):
        read_volume(path)

"""A series is judged as a whole: one test for each kind of series that was read wrong."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    ENCODERS,
    SERIES,
    ct_dataset,
    enhanced_dataset,
    save,
    save_encapsulated,
    save_same,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from chestct.errors import ReadError
from chestct.readers import read_volume
from chestct.readers.dicom_headers import DicomHeader, read_header
from chestct.readers.dicom_pixels import load_hounsfield, located
from chestct.readers.dicom_slices import _days
from chestct.readers.dicom_source import read_source
from chestct.readers.files import UnreadableFileError, disk_file
from chestct.readers.hounsfield import Rescale
from chestct.simulate import ThoraxSettings, simulate_patient, write_dicom_series
from chestct.volume import AIR_HU, Volume

NUM, SIDE, STEP = 12, 32, 2.0
JPEG_LOSSLESS, JPEG_LS = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"
JPEG_2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"


def chest_at(z: float, *, size: float = 1.0, seed: int = 0) -> np.ndarray:
    """Stored values of a drawn chest: a body with two lungs that change along z, and noise."""
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    hounsfield = np.full((SIDE, SIDE), -1000.0)
    body = (row / (10 + 0.1 * z)) ** 2 + (column / 14) ** 2 < size**2
    hounsfield[body] = 40
    for side in (-6, 6):
        lung = (row / (5 + 0.1 * z)) ** 2 + ((column - side * size) / 4) ** 2 < size**2
        hounsfield[lung] = -850
    noise = np.random.default_rng(abs(round(100 * z)) + 1000 * seed).normal(0, 10, (SIDE, SIDE))
    return np.clip(np.round(hounsfield + noise + 1024), 0, 4095).astype(np.uint16)


def chest(z: float, pixels: np.ndarray | None = None, **fields: object) -> Dataset:
    """One slice of the drawn chest."""
    names = {"StudyInstanceUID": "1.2.1", "FrameOfReferenceUID": "1.2.2", "AcquisitionNumber": 1}
    position = {"ImagePositionPatient": [-10, -20, z]}
    dataset = ct_dataset(chest_at(z) if pixels is None else pixels, z)
    for name, value in {**names, **position, **fields}.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def scan(folder: Path, num: int = NUM, *, start: float = 0.0, **fields: object) -> Path:
    """The drawn chest as a series."""
    for index in range(num):
        z = start + STEP * index
        file = folder / f"{start:g}-{index:02d}.dcm"
        save_same(file, ("chest", z, fields), partial(chest, z, **fields))
    return folder


def replaced(folder: Path, index: int, dataset: Dataset) -> Path:
    """The series with one slice in place of another."""
    save(dataset, folder / f"0-{index:02d}.dcm")
    return folder


def expected(num: int = NUM) -> np.ndarray:
    return np.stack([chest_at(STEP * i).astype(np.int16) - 1024 for i in range(num)])


def test_whole_series_is_read_without_a_word(tmp_path: Path) -> None:
    volume = read_volume(scan(tmp_path))
    assert np.array_equal(volume.voxels, expected())
    assert volume.warnings == ()


@pytest.mark.parametrize("num", range(1, 7))
def test_series_of_few_slices_is_read(tmp_path: Path, num: int) -> None:
    assert np.array_equal(read_volume(scan(tmp_path, num)).voxels, expected(num))


# --- rescale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intercept", "said"),
    [
        (None, "RescaleIntercept missing where others have -1024"),
        ("0", "RescaleIntercept 0 where others have -1024"),
        ("-1000", "RescaleIntercept -1000 where others have -1024"),
    ],
)
@pytest.mark.parametrize("index", [0, 5, NUM - 1])
def test_slice_with_another_rescale_than_the_rest_is_refused_with_both_values(
    tmp_path: Path, intercept: str | None, said: str, index: int
) -> None:
    replaced(scan(tmp_path), index, chest(STEP * index, RescaleIntercept=intercept))
    with pytest.raises(ReadError, match=rf"the slice at {STEP * index:.1f} mm has {said}"):
        read_volume(tmp_path)


def test_rescale_of_each_slice_that_is_consistent_with_its_pixels_is_read(tmp_path: Path) -> None:
    for index in range(NUM):
        z, slope = STEP * index, 1 + index % 3
        stored = (chest_at(z) // slope).astype(np.uint16)
        save(chest(z, stored, RescaleSlope=str(slope)), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert np.abs(volume.voxels - expected()).max() <= 2
    assert volume.warnings == ()


# --- several scans in one series --------------------------------------------------------------


@pytest.mark.parametrize("uid", [SERIES, ""])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"PatientID": "OTHER-ID"}),
        ({"PatientID": ""}, {"PatientID": "", "PatientName": "OTHER^NAME"}),
        ({"PatientID": None}, {"PatientID": None, "PatientName": "OTHER^NAME"}),
    ],
)
def test_two_patients_in_one_series_are_refused(
    tmp_path: Path, uid: str, first: dict[str, object], second: dict[str, object]
) -> None:
    scan(tmp_path / "a", SeriesInstanceUID=uid, **first)
    scan(tmp_path / "b", NUM + 2, start=1.0, SeriesInstanceUID=uid, **second)
    with pytest.raises(ReadError, match="scans of 2 patients") as raised:
        read_volume(tmp_path)
    assert "OTHER" not in str(raised.value)
    assert read_volume(tmp_path, series=f"{uid}#1").voxels.shape[0] in (NUM, NUM + 2)


@pytest.mark.parametrize("uid", [SERIES, "1.2.3.4.6"])
def test_another_name_with_another_birth_date_or_sex_is_another_patient(
    tmp_path: Path, uid: str
) -> None:
    said = {"PatientBirthDate": "19500101", "PatientSex": "F"}
    other = {"PatientName": "Other^Name", "PatientBirthDate": "19610203"}
    scan(tmp_path / "a", **said)
    scan(tmp_path / "b", NUM + 2, start=1.0, SeriesInstanceUID=uid, **{**said, **other})
    with pytest.raises(ReadError, match="scans of 2 patients") as raised:
        read_volume(tmp_path)
    assert not any(word in str(raised.value) for word in ("Other", "Secret", "19610203"))


@pytest.mark.parametrize("uid", [SERIES, "1.2.3.4.6"])
@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        ("PatientBirthDate", "19500101", "19610203"),
        ("PatientSex", "F", "M"),
        ("PatientAge", "045Y", "061Y"),
        ("PatientAge", "045Y", "018M"),
    ],
)
def test_another_birth_date_sex_or_age_under_one_patient_id_is_another_patient(
    tmp_path: Path, uid: str, name: str, own: str, other: str
) -> None:
    scan(tmp_path / "a", 7, **{name: own})
    after = {"start": 7 * STEP, "SeriesInstanceUID": uid}
    scan(tmp_path / "b", NUM - 7, **{name: other}, **after)
    with pytest.raises(ReadError, match="scans of 2 patients") as raised:
        read_volume(tmp_path)
    words = [word for word in ("Secret", "SECRET", own, other) if len(word) > 1]
    assert not any(word in str(raised.value) for word in words)


def test_another_age_on_another_day_is_no_other_patient(tmp_path: Path) -> None:
    scan(tmp_path / "a", PatientAge="045Y", StudyDate="20100101")
    later = {"PatientAge": "049Y", "StudyDate": "20140101", "StudyInstanceUID": "1.2.9"}
    scan(tmp_path / "b", NUM + 2, SeriesInstanceUID="1.2.3.4.6", **later)
    assert "1 other CT series with 12 slice(s) were not read:" in read_volume(tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"PatientName": "SECRET^NAME^Middle"}, None),
        ({"PatientName": "Name^Secret"}, None),
        ({"PatientName": "Name Secret"}, None),
        ({"PatientName": "Secret-Married^Name"}, None),
        ({"PatientName": ""}, None),
        ({"PatientBirthDate": ""}, None),
        ({"PatientName": "Married^Name"}, "PatientName"),
        ({"PatientName": "Sacret^Name", "PatientSex": ""}, "PatientName"),
        ({"PatientAge": "071Y"}, "PatientAge"),
        ({"PatientAge": "840M", "PatientWeight": "82"}, "PatientAge and PatientWeight"),
    ],
)
def test_name_that_changes_under_one_patient_id_is_said_without_it(
    tmp_path: Path, fields: dict[str, str], said: str | None
) -> None:
    known = {"PatientBirthDate": "19500101", "PatientSex": "F"}
    known |= {"PatientAge": "070Y", "PatientWeight": "70"}
    for index in range(NUM):
        own = {**known, **(fields if index > 6 else {})}
        save(chest(STEP * index, **own), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    what = f"Not all slices have the same {said}; they were taken for one patient's."
    assert volume.warnings == ((what,) if said else ())


@pytest.mark.parametrize("uid", [SERIES, ""])
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"StudyInstanceUID": "1.2.9"}, "study"),
        ({"FrameOfReferenceUID": "1.2.9"}, "frame of reference"),
    ],
)
def test_two_studies_or_frames_in_one_series_are_split(
    tmp_path: Path, uid: str, fields: dict[str, str], told: str
) -> None:
    scan(tmp_path / "a", SeriesInstanceUID=uid)
    scan(tmp_path / "b", start=STEP * NUM, SeriesInstanceUID=uid, **fields)
    with pytest.raises(ReadError, match=rf"2 parts that continue each.*\n.*{told} 1"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=f"{uid}#1")
    assert np.array_equal(volume.voxels, expected())
    assert f"12 slice(s) were not read:\n  {uid}#2" in volume.warnings[0]


def test_frame_of_reference_made_up_for_each_slice_is_no_reason_to_split(tmp_path: Path) -> None:
    for index in range(NUM):
        save(chest(STEP * index, FrameOfReferenceUID=f"1.9.{index}"), tmp_path / f"{index}.dcm")
    assert np.array_equal(read_volume(tmp_path).voxels, expected())


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("AcquisitionNumber", (1, 2), "acquisition"),
        ("TemporalPositionIdentifier", (1, 2), "temporal position"),
        ("TriggerTime", ("100", "550"), "trigger time"),
        ("NominalPercentageOfCardiacPhase", (40.0, 75.0), "cardiac phase"),
        ("ConvolutionKernel", ("B31f", "B30f"), "kernel"),
        ("KVP", ("80", "140"), "tube voltage"),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 0.7, 1.0])
def test_two_passes_in_one_series_are_split_and_told_apart(
    tmp_path: Path, name: str, values: tuple[object, object], told: str, offset: float
) -> None:
    scan(tmp_path / "a", **{name: values[0]})
    scan(tmp_path / "b", start=offset, **{name: values[1]})
    with pytest.raises(ReadError, match=rf"2 CT series that fit equally well.*\n.*{told}"):
        read_volume(tmp_path)
    volumes = [read_volume(tmp_path, series=f"{SERIES}#{part}") for part in (1, 2)]
    assert {volume.grid.spacing_mm[0] for volume in volumes} == {STEP}
    assert {volume.grid.shape[0] for volume in volumes} == {NUM}
    assert any(np.array_equal(volume.voxels, expected()) for volume in volumes)


def test_written_objects_find_the_part_that_was_read(tmp_path: Path) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", start=0.7, AcquisitionNumber=2)
    for part in (1, 2):
        volume = read_volume(tmp_path, series=f"{SERIES}#{part}")
        source = read_source(tmp_path, volume)
        assert tuple(image.uid for image in source.images) == volume.source.slice_uids
        assert source.is_exact


def test_acquisitions_that_follow_one_another_are_one_stack(tmp_path: Path) -> None:
    for index in range(NUM):
        save(chest(STEP * index, AcquisitionNumber=1 + index // 3), tmp_path / f"{index}.dcm")
    assert np.array_equal(read_volume(tmp_path).voxels, expected())


HALVES: dict[str, tuple[float, dict[str, object]]] = {
    "two studies": (0.0, {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.3.4.6"}),
    "two series": (0.0, {"SeriesInstanceUID": "1.2.3.4.6"}),
    "two series, one slice missing": (STEP, {"SeriesInstanceUID": "1.2.3.4.6"}),
    "two frames of reference": (0.0, {"FrameOfReferenceUID": "1.2.9"}),
    "one of two derived": (0.0, {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}),
    "acquisitions that overlap": (-3 * STEP, {"AcquisitionNumber": 2}),
}


@pytest.mark.parametrize("num", [NUM - 1, NUM])
@pytest.mark.parametrize("kind", HALVES)
def test_scan_in_parts_that_continue_each_other_is_refused_with_the_list(
    tmp_path: Path, kind: str, num: int
) -> None:
    away, fields = HALVES[kind]
    scan(tmp_path / "a")
    scan(tmp_path / "b", num, start=NUM * STEP + away, **fields)
    with pytest.raises(ReadError, match="a scan in 2 parts that continue each other") as raised:
        read_volume(tmp_path)
    _, *lines, remedy = str(raised.value).splitlines()
    assert len(lines) == 2
    assert any(line.endswith("from 0.0 to 22.0 mm") for line in lines)
    series = remedy.split("--series ")[1].split()[0]
    assert read_volume(tmp_path, series=series).voxels.shape[0] == NUM


def test_all_parts_of_a_scan_are_listed(tmp_path: Path) -> None:
    for number in range(5):
        uid = f"1.2.3.4.{number}"
        scan(tmp_path / uid, NUM, start=number * NUM * STEP, SeriesInstanceUID=uid)
    with pytest.raises(ReadError, match="a scan in 5 parts that continue each other"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("start", "fields"),
    [
        (NUM * STEP, {"FrameOfReferenceUID": "1.2.9"}),
        (NUM * STEP, {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}),
        (NUM * STEP, {"PixelSpacing": [0.6, 0.6]}),
        (NUM * STEP + 20, {}),
        (5 * STEP, {}),
    ],
)
def test_series_that_does_not_continue_the_longest_is_left_out(
    tmp_path: Path, start: float, fields: dict[str, object]
) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", NUM - 1, start=start, SeriesInstanceUID="1.2.3.4.6", **fields)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert "1 other CT series with 11 slice(s) were not read" in volume.warnings[0]


def test_whole_chest_is_read_though_another_series_continues_it(tmp_path: Path) -> None:
    for index in range(50):
        save(chest(5.0 * index, chest_at(index / 2)), tmp_path / f"{index}.dcm")
    for index in range(50, 80):
        below = chest(5.0 * index, chest_at(index / 2), SeriesInstanceUID="1.2.3.4.6")
        save(below, tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert volume.voxels.shape[0] == 50
    assert volume.warnings[0].endswith(", continues the one that is read")


@pytest.mark.parametrize("is_one_series", [True, False])
@pytest.mark.parametrize("num", [NUM - 2, NUM, NUM + 3])
@pytest.mark.parametrize(
    "said", [("Doe, INSP", "Doe, EXP"), ("Thorax Inspiration", "Exspiration"), ("A", "expir. 2")]
)
def test_inspiration_is_read_and_expiration_listed(
    tmp_path: Path, said: tuple[str, str], num: int, is_one_series: bool
) -> None:
    uid = SERIES if is_one_series else "1.2.3.4.6"
    scan(tmp_path / "a", SeriesDescription=said[0])
    scan(tmp_path / "b", num, start=1.0, SeriesDescription=said[1], SeriesInstanceUID=uid)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert volume.warnings[0].splitlines()[-1].endswith(", breath held in expiration")
    assert "Doe" not in volume.warnings[0]


def test_prone_and_supine_series_are_told_apart(tmp_path: Path) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", SeriesInstanceUID="1.2.3.4.6", PatientPosition="HFP")
    with pytest.raises(ReadError, match="2 CT series that fit equally well") as raised:
        read_volume(tmp_path)
    _, first, second, _ = str(raised.value).splitlines()
    assert first.endswith(", patient position HFS")
    assert second.endswith(", patient position HFP")


@pytest.mark.parametrize("word", ["Expert review", "EXPORT", "Inspector"])
def test_words_that_begin_like_those_of_breath_say_nothing(tmp_path: Path, word: str) -> None:
    scan(tmp_path / "a", SeriesDescription=word)
    scan(tmp_path / "b", SeriesInstanceUID="1.2.3.4.6")
    with pytest.raises(ReadError, match="2 CT series that fit equally well") as raised:
        read_volume(tmp_path)
    assert "breath" not in str(raised.value)


def test_passes_without_a_mark_are_told_apart_by_their_spacing(tmp_path: Path) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", start=11.3)
    with pytest.raises(ReadError, match=r"fit equally well.*\n.*pass 1.*\n.*pass 2"):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, series=f"{SERIES}#1").voxels, expected())


def test_passes_half_a_step_apart_without_a_mark_are_refused_by_what_they_show(
    tmp_path: Path,
) -> None:
    for index in range(2 * NUM):
        z = STEP * index / 2
        save(chest(z, chest_at(z, size=1 - 0.3 * (index % 2))), tmp_path / f"{index}.dcm")
    with pytest.raises(ReadError, match="alternate between two scans"):
        read_volume(tmp_path)


PHASES = {
    "TemporalPositionIndex": (range(1, 11), "temporal position {}"),
    "TriggerTime": ([f"{97 * number}" for number in range(10)], "trigger time {}"),
    "AcquisitionNumber": (range(1, 11), "acquisition {}"),
    "SeriesDescription": ([f"Doe, Jane {10 * number}%" for number in range(10)], "phase {}%"),
}
"""What tells ten phases apart, their values, and how that is said."""


@pytest.fixture(scope="module")
def breath() -> Volume:
    """Every fourth slice of a simulated chest."""
    settings = ThoraxSettings(rows=32, slice_spacing_mm=10.0, noise_hu=5.0)
    whole = simulate_patient(np.random.default_rng(5), settings, pattern="normal").volume
    few = np.ascontiguousarray(whole.voxels[::4])
    return whole.with_voxels(few, whole.grid.moved((0.0, 0.0, 0.0), (4.0, 1.0, 1.0), few.shape))


@pytest.mark.parametrize("is_one_series", [True, False])
@pytest.mark.parametrize("name", PHASES)
def test_ten_phases_are_listed_with_what_tells_them_apart_and_can_be_chosen(
    tmp_path: Path, breath: Volume, name: str, is_one_series: bool
) -> None:
    values, words = PHASES[name]
    uids = [SERIES if is_one_series else f"{SERIES}.{number}" for number in range(10)]
    for number, value in enumerate(values):
        shown = breath.with_voxels(np.clip(breath.voxels + number, -1024, None))
        for path in write_dicom_series(shown, tmp_path / str(number)):
            dataset = dcmread(path)
            dataset.SeriesInstanceUID = uids[number]
            dataset.SOPInstanceUID += f".{number}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            setattr(dataset, name, value)
            dataset.save_as(path)
    with pytest.raises(ReadError, match="10 CT series that fit equally well") as raised:
        read_volume(tmp_path)
    _, *lines, remedy = str(raised.value).splitlines()
    assert "Doe" not in str(raised.value)
    told = [str(value).removeprefix("Doe, Jane ").removesuffix("%") for value in values]
    for number, line in enumerate(lines):
        series = f"{SERIES}#{number + 1}" if is_one_series else uids[number]
        assert line.split()[0] == series
        assert line.endswith(f", {words.format(told[number])}")
        if number in (1, 9):
            chosen = read_volume(tmp_path, series=series)
            assert np.array_equal(chosen.voxels, np.clip(breath.voxels + number, -1024, None))
    assert len(lines) == 10
    assert f"--series {lines[0].split()[0]} " in remedy


def test_enhanced_image_with_two_temporal_positions_is_split(tmp_path: Path) -> None:
    heights = [STEP * (i // 2) for i in range(2 * NUM)]
    stored = np.stack([chest_at(z, seed=i % 2) for i, z in enumerate(heights)])
    dataset = enhanced_dataset(stored, heights)
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex = 1 + index % 2
        frame.FrameContentSequence = Sequence([content])
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(ReadError, match=r"fit equally well.*\n.*temporal position"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=f"{SERIES}#1")
    assert np.array_equal(volume.voxels, stored[::2].astype(np.int16) - 1024)


# --- dates ------------------------------------------------------------------------------------

DAYS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "study": ({"StudyDate": "20200101"}, {"StudyDate": "20200601"}),
    "acquisition": ({"AcquisitionDate": "20200101"}, {"AcquisitionDate": "20200103"}),
    "content": ({"ContentDate": "20200101"}, {"ContentDate": "20210101"}),
    "date and time": (
        {"AcquisitionDateTime": "20200101083000.00"},
        {"AcquisitionDateTime": "20200102093000.00"},
    ),
    "next day": (
        {"AcquisitionDate": "20200101", "AcquisitionTime": "083000"},
        {"AcquisitionDate": "20200102", "AcquisitionTime": "093000"},
    ),
}


@pytest.mark.parametrize("kind", DAYS)
def test_slices_of_two_days_are_no_one_scan(tmp_path: Path, kind: str) -> None:
    for index in range(NUM):
        z = STEP * index
        save(chest(z, **DAYS[kind][index >= 5]), tmp_path / f"{index:02d}.dcm")
    with pytest.raises(ReadError, match=r"2 parts that continue .*\n.*date.*2\b") as raised:
        read_volume(tmp_path)
    assert "2020" not in str(raised.value)
    volume = read_volume(tmp_path, series=f"{SERIES}#2")
    assert np.array_equal(volume.voxels, expected()[5:])


def test_two_days_that_alternate_are_two_series(tmp_path: Path) -> None:
    for index in range(NUM):
        day = {"StudyDate": f"2020010{1 + 4 * (index % 2)}"}
        save(chest(STEP * index, **day), tmp_path / f"{index:02d}.dcm")
    with pytest.raises(ReadError, match="2 CT series that fit equally well"):
        read_volume(tmp_path)


MIDNIGHT: dict[str, Callable[[int], dict[str, object]]] = {
    "date alone": lambda i: {"AcquisitionDate": f"2020010{1 + (i > 4)}"},
    "times on both sides": lambda i: {
        "AcquisitionDate": f"2020010{1 + (i > 4)}",
        "AcquisitionTime": "235958" if i < 5 else "000003",
    },
    "made up for each": lambda i: {"ContentDate": f"{2000 + i}0101"},
    "missing in some": lambda i: {"StudyDate": "20200101"} if i < 5 else {},
    "empty in some": lambda i: {"StudyDate": "20200101" if i < 5 else ""},
    "times without a date": lambda i: {"ContentTime": f"10{i:02d}12.13"},
    "other hours": lambda i: {"StudyDate": "20200101", "StudyTime": f"{i + 6:02d}0000"},
}


@pytest.mark.parametrize("kind", MIDNIGHT)
def test_dates_that_midnight_or_a_deidentifier_explains_are_one_scan(
    tmp_path: Path, kind: str
) -> None:
    for index in range(NUM):
        save(chest(STEP * index, **MIDNIGHT[kind](index)), tmp_path / f"{index:02d}.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert volume.warnings == ()


@pytest.mark.parametrize(
    ("moments", "numbers"),
    [
        (["2020.01.01", "2020-01-01", "20200101"], [1, 1, 1]),
        (["20200101", "20200104", "20200103"], [1, 2, 2]),
        (["20200101235900", "202001020001"], [1, 1]),
        (["99999999", "", "date", "20200101", "20200601"], [1, 1, 1, 1, 2]),
    ],
)
def test_days_are_told_however_dates_are_written(moments: list[str], numbers: list[int]) -> None:
    found = _days(moments)
    assert [found[moment] for moment in moments] == numbers


def test_frames_of_two_days_are_no_one_scan(tmp_path: Path) -> None:
    heights = [STEP * i for i in range(NUM)]
    dataset = enhanced_dataset(np.stack([chest_at(z) for z in heights]), heights)
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.FrameAcquisitionDateTime = f"2020010{1 if index < 6 else 4}120000"
        frame.FrameContentSequence = Sequence([content])
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(ReadError, match=r"2 parts that continue .*\n.*frame date"):
        read_volume(tmp_path)


# --- what changes along the stack -------------------------------------------------------------


def test_slices_of_two_scanners_are_no_one_scan(tmp_path: Path) -> None:
    for index in range(NUM):
        maker = {"Manufacturer": "Maker" if index < 5 else "Another"}
        save(chest(STEP * index, **maker), tmp_path / f"{index:02d}.dcm")
    with pytest.raises(ReadError, match=r"2 parts that continue .*\n.*scanner [12]"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ConvolutionKernel": "B70f", "KVP": "80"}, "tube voltage and kernel"),
        ({"FilterType": "WEDGE_3"}, "filter"),
        ({"BodyPartExamined": "ABDOMEN"}, "body part"),
        ({"PatientPosition": ""}, "patient position"),
    ],
)
def test_kernel_voltage_filter_or_body_part_that_changes_along_the_stack_is_said(
    tmp_path: Path, fields: dict[str, str], said: str
) -> None:
    scan(tmp_path, 5)
    scan(tmp_path, NUM - 5, start=5 * STEP, **fields)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    what = f"Not all slices have the same {said}; they were taken for one scan's."
    assert volume.warnings == (what,)


@pytest.mark.parametrize(
    "fields", [{"ConvolutionKernel": "B70f"}, {"KVP": "80"}, {"FilterType": "WEDGE_3"}]
)
def test_stacks_of_two_kernels_voltages_or_filters_in_one_series_are_split(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", NUM - 1, start=STEP / 2, **fields)
    volume = read_volume(tmp_path, series=f"{SERIES}#1")
    assert "1 other CT series with" in volume.warnings[0]
    assert len(volume.voxels) in (NUM, NUM - 1)


def test_patient_position_that_differs_is_refused_or_the_largest_group_is_read(
    tmp_path: Path,
) -> None:
    scan(tmp_path, 8)
    scan(tmp_path, NUM - 8, start=8 * STEP, PatientPosition="FFP")
    with pytest.raises(ReadError, match=r"8 of .* HFS, 4 of .* FFP.*--allow-mixed-orientations"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"mixed-orientations"})
    assert np.array_equal(volume.voxels, expected(8))


def test_stacks_of_two_thicknesses_among_each_other_are_series_to_choose_from(
    tmp_path: Path,
) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", start=STEP / 2, SliceThickness="5")
    with pytest.raises(ReadError, match=r"(?s)2 CT series that fit .* 2 mm.* thickness 5 mm"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=f"{SERIES}#1")
    assert np.array_equal(volume.voxels, expected())


@pytest.mark.parametrize("indices", [[5], [7, 8, 9, 10, 11]])
def test_another_thickness_in_part_of_the_stack_is_said_with_both(
    tmp_path: Path, indices: list[int]
) -> None:
    scan(tmp_path)
    for index in indices:
        replaced(tmp_path, index, chest(STEP * index, SliceThickness="5"))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    num = len(indices)
    listed = f"{NUM - num} of 2 mm, {num} of 5 mm"
    assert volume.warnings == (
        f"The slices are of 2 thicknesses ({listed}); they were taken for one stack.",
    )


def test_slices_farther_apart_than_they_are_thick_are_said(tmp_path: Path) -> None:
    (said,) = read_volume(scan(tmp_path, SliceThickness="1")).warnings
    assert said.startswith("The slices are 1 mm thick and 2 mm apart: what lies between them")


@pytest.mark.parametrize(
    ("shown", "fields"),
    [
        (f"2 mm apart by their positions, and {2 * STEP:g} mm by SliceLocation", {}),
        ("2 mm apart .*4 mm by SpacingBetweenSlices", {"SpacingBetweenSlices": "-4"}),
        (
            "24 mm wide by their pixels, and 48 mm by ReconstructionDiameter",
            {"ReconstructionDiameter": "48"},
        ),
    ],
)
def test_size_that_headers_contradict_is_said(
    tmp_path: Path, shown: str, fields: dict[str, object]
) -> None:
    for index in range(NUM):
        own = fields or {"SliceLocation": str(-2 * STEP * index)}
        save(chest(STEP * index, **own), tmp_path / f"{index}.dcm")
    (said,) = read_volume(tmp_path).warnings
    assert re.search(shown, said)


def test_real_scan_whose_slices_are_half_as_far_apart_as_their_locations_is_said(
    tmp_path: Path, data_folder: Path
) -> None:
    for path in (data_folder / "covid_ct_md" / "P001").iterdir():
        dataset = dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z / 2]
        dataset.save_as(tmp_path / path.name)
    (said,) = read_volume(tmp_path).warnings
    assert "1 mm apart by their positions, and 2 mm by SliceLocation" in said


@pytest.mark.parametrize(
    "fields",
    [
        {"SliceLocation": "0", "SpacingBetweenSlices": "0", "ReconstructionDiameter": ""},
        {"SpacingBetweenSlices": "2.1", "ReconstructionDiameter": "25"},
    ],
)
def test_size_that_headers_do_not_contradict_is_read_without_a_word(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    assert read_volume(scan(tmp_path, **fields)).warnings == ()


@pytest.mark.parametrize(("present", "total", "missing"), [((1, 2), 3, 3), ((2, 3), None, 1)])
def test_concatenation_of_which_a_file_is_missing_is_refused(
    tmp_path: Path, present: tuple[int, ...], total: int | None, missing: int
) -> None:
    for number in present:
        heights = [STEP * (number * 4 + i) for i in range(4)]
        dataset = enhanced_dataset(np.stack([chest_at(z) for z in heights]), heights)
        dataset.SOPInstanceUID = f"1.2.7.{number}"
        dataset.ConcatenationUID, dataset.InConcatenationNumber = "1.2.7", number
        if total:
            dataset.InConcatenationTotalNumber = total
        save(dataset, tmp_path / f"{number}.dcm")
    said = f"Of 3 files that make up one scan, number {missing} is missing."
    with pytest.raises(ReadError, match=rf"{said} .*--allow-gap"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"gap"})
    assert (volume.voxels.shape[0], volume.warnings) == (8, (said,))


def test_pixels_that_are_not_square_are_said(tmp_path: Path) -> None:
    (said,) = read_volume(scan(tmp_path, PixelSpacing=[0.5, 1.0])).warnings
    assert said.startswith("Pixels of 0.5 x 1 mm are not square")


@pytest.mark.parametrize("indices", [[5], [0], [7, 8, 9, 10, 11], [0, 2, 4, 6, 8, 10]])
def test_inverted_slices_are_refused_by_their_photometric_interpretation(
    tmp_path: Path, indices: list[int]
) -> None:
    scan(tmp_path)
    for index in indices:
        pixels = 2048 - np.minimum(chest_at(STEP * index), 2048)
        one = chest(STEP * index, pixels, PhotometricInterpretation="MONOCHROME1")
        replaced(tmp_path, index, one)
    said = f"the slice at {STEP * indices[0]:.1f} mm has PhotometricInterpretation MONOCHROME1"
    with pytest.raises(ReadError, match=f"{said} where others have MONOCHROME2"):
        read_volume(tmp_path)


@pytest.mark.parametrize("indices", [[5], [7, 8, 9, 10, 11]])
def test_photometric_interpretation_that_alone_differs_is_said(
    tmp_path: Path, indices: list[int]
) -> None:
    scan(tmp_path)
    for index in indices:
        one = chest(STEP * index, PhotometricInterpretation="MONOCHROME1")
        replaced(tmp_path, index, one)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    (said,) = volume.warnings
    first = f"the slice at {STEP * indices[0]:.1f} mm has PhotometricInterpretation MONOCHROME1"
    assert said.startswith(f"{len(indices)} slice(s) differ in a header alone: {first} where")


# --- maps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_PERFUSION"]},
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "RescaleType": "MGML"},
        {"SeriesDescription": "Iodine map 2.0"},
    ],
)
@pytest.mark.parametrize("uid", ["1.2.3.4.6", SERIES])
def test_map_with_more_slices_is_not_chosen_over_the_original(
    tmp_path: Path, fields: dict[str, object], uid: str
) -> None:
    scan(tmp_path / "a")
    scan(tmp_path / "b", NUM + 1, SeriesInstanceUID=uid, **fields)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert "1 other CT series with 13 slice(s) were not read" in volume.warnings[0]


def test_virtual_non_contrast_with_more_slices_is_not_chosen_over_the_scan(tmp_path: Path) -> None:
    scan(tmp_path / "a", SeriesDescription="Thorax")
    scan(tmp_path / "b", NUM + 2, SeriesDescription="Thorax VNC", SeriesInstanceUID="1.2.9")
    volume = read_volume(tmp_path)
    assert volume.source.series_uid == SERIES
    assert '14 slices, 2 mm, kernel "B30f", derived' in volume.warnings[0]


# --- slices that do not fit -------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 3000, (SIDE, SIDE)).astype(np.uint16)
WRONG = {
    "blank air": lambda z: np.full((SIDE, SIDE), 24, np.uint16),
    "blank 0 HU": lambda z: np.full((SIDE, SIDE), 1024, np.uint16),
    "white": lambda z: np.full((SIDE, SIDE), 4095, np.uint16),
    "shifted": lambda z: np.roll(chest_at(z), 6, axis=1),
    "noise": lambda z: NOISE,
    "of another patient": lambda z: chest_at(z, size=0.6),
    "partly destroyed": lambda z: np.where(np.arange(SIDE)[:, None] < 12, chest_at(z), NOISE),
}


@pytest.mark.parametrize("kind", WRONG)
def test_slice_that_does_not_fit_its_neighbours_is_refused_or_interpolated(
    tmp_path: Path, kind: str
) -> None:
    replaced(scan(tmp_path), 5, chest(10.0, WRONG[kind](10.0)))
    with pytest.raises(ReadError, match=r"the slice at 10\.0 mm .*--allow-bad-slices"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"bad-slices"})
    right = expected()
    assert np.array_equal(np.delete(volume.voxels, 5, 0), np.delete(right, 5, 0))
    assert np.abs(volume.voxels[5] - (right[4] / 2 + right[6] / 2)).max() <= 1
    assert "the slice at 10.0 mm" in volume.warnings[0]
    assert volume.source.left_out == {"slice that does not fit": 1}
    assert not read_source(tmp_path, volume).is_exact


@cache
def placed(source: Path) -> list[tuple[float, Path]]:
    """Heights of a real scan's slices in mm, from the feet on, and their files."""
    headers = ((dcmread(path, stop_before_pixels=True), path) for path in source.iterdir())
    return sorted((float(header.ImagePositionPatient[2]), path) for header, path in headers)


def real_scan(
    folder: Path, source: Path, numbers: range, change: Callable[[np.ndarray], object]
) -> list[str]:
    """A real scan of which some slices, by number from the feet, were changed; places in words."""
    for number, (_, path) in enumerate(placed(source)):
        if number not in numbers:
            (folder / path.name).symlink_to(path)
            continue
        dataset = dcmread(path)
        dataset.decompress()
        pixels = dataset.pixel_array.astype(np.int32)
        change(pixels)
        dataset.PixelData = np.clip(pixels, 0, 4095).astype(np.uint16).tobytes()
        dataset.save_as(folder / path.name)
    return [f"the slice at {height:.1f} mm" for height, _ in placed(source)]


@pytest.mark.parametrize("run", [range(70, 71), range(70, 78), range(130, 1000)])
@pytest.mark.parametrize(("name", "offset_hu"), [("P001", -20), ("normal001", 20)])
def test_real_slice_run_or_end_off_by_a_constant_is_said(
    tmp_path: Path, data_folder: Path, name: str, offset_hu: int, run: range
) -> None:
    source = data_folder / "covid_ct_md" / name
    places = real_scan(tmp_path, source, run, lambda pixels: np.add(pixels, offset_hu, out=pixels))
    (said,) = [each for each in read_volume(tmp_path).warnings if "constant" in each]
    jumps = re.findall(r"changes by ([+-]\d\d) HU from (.*?) to (.*?)[;.] ", said)
    found = {(before, after): float(change) for change, before, after in jumps}
    first, last = run.start, run.stop
    assert found.pop((places[first - 1], places[first])) == pytest.approx(offset_hu, abs=4)
    if last < len(places):
        assert found.pop((places[last - 1], places[last])) == pytest.approx(-offset_hu, abs=4)
    assert not found


PAINTED: dict[str, Callable[[np.ndarray], None]] = {
    "white box": lambda pixels: pixels[224:288, 224:288].__setitem__(..., 3000),
    "black box": lambda pixels: pixels[224:288, 224:288].__setitem__(..., 24),
    "moved by 3 pixels": lambda pixels: pixels.__setitem__(..., np.roll(pixels, 3, axis=1)),
}


@pytest.mark.parametrize("kind", PAINTED)
@pytest.mark.parametrize("name", ["P001", "normal001"])
def test_part_of_a_real_slice_painted_over_or_moved_is_said(
    tmp_path: Path, data_folder: Path, name: str, kind: str
) -> None:
    source = data_folder / "covid_ct_md" / name
    places = real_scan(tmp_path, source, range(70, 71), PAINTED[kind])
    said = f"A part of {places[70]} shows what neither neighbour does"
    assert [each for each in read_volume(tmp_path).warnings if said in each]


BOX = (slice(200, 220), slice(130, 150))
BURNT = np.indices((512, 512)).sum(axis=0) % 7 == 0
BURNT[20:] = BURNT[:, 100:] = False


@pytest.mark.parametrize("run", [range(70, 71), range(70, 80)])
@pytest.mark.parametrize("name", ["P001", "normal001"])
def test_small_box_of_one_value_painted_into_real_slices_is_said(
    tmp_path: Path, data_folder: Path, name: str, run: range
) -> None:
    source = data_folder / "covid_ct_md" / name
    places = real_scan(tmp_path, source, run, lambda pixels: pixels.__setitem__(BOX, 1064))
    warnings = read_volume(tmp_path).warnings
    said = f"{len(run)} slice(s) have a patch of one value without noise, as where something"
    assert [each for each in warnings if said in each and places[run.start] in each]


@pytest.mark.parametrize("value", [1064, 4095])
@pytest.mark.parametrize("name", ["P001", "normal001"])
def test_text_burnt_into_all_real_slices_is_said(
    tmp_path: Path, data_folder: Path, name: str, value: int
) -> None:
    source = data_folder / "covid_ct_md" / name
    real_scan(tmp_path, source, range(1000), lambda pixels: pixels.__setitem__(BURNT, value))
    warnings = read_volume(tmp_path).warnings
    assert [each for each in warnings if "one value in all slices, as text" in each]


@pytest.mark.parametrize("num", [1, 5, 19])
def test_slices_filled_in_between_two_others_are_said(
    tmp_path: Path, data_folder: Path, num: int
) -> None:
    source = data_folder / "covid_ct_md" / "P001"
    slices = sorted(map(dcmread, source.iterdir()), key=lambda one: one.ImagePositionPatient[2])
    real_scan(tmp_path, source, range(0), lambda _: None)
    low, high = 60, 61 + num
    first, last = (slices[i].pixel_array.astype(float) for i in (low, high))
    for index in range(low + 1, high):
        share = (index - low) / (high - low)
        mixed = np.rint((1 - share) * first + share * last).astype(np.uint16)
        slices[index].decompress()
        slices[index].PixelData = mixed.tobytes()
        path = tmp_path / Path(slices[index].filename).name
        path.unlink()
        slices[index].save_as(path)
    place = f"the slice at {slices[low + 1].ImagePositionPatient[2]:.1f} mm"
    said = f"{num} slice(s) are nothing but the mean of those beside them"
    assert [each for each in read_volume(tmp_path).warnings if said in each and place in each]


def test_scan_enlarged_by_slices_between_its_own_is_read_and_said(tmp_path: Path) -> None:
    for index in range(2 * NUM - 1):
        low, high = (chest_at(STEP * number) for number in (index // 2, (index + 1) // 2))
        save(chest(STEP / 2 * index, (low + high) // 2), tmp_path / f"{index}.dcm")
    (said,) = read_volume(tmp_path).warnings
    # Rounding hides two of eleven in so small a drawing.
    assert said.startswith(f"{NUM - 3} slice(s) are nothing but the mean of those beside them")


@pytest.mark.parametrize("name", ["0-12.dcm", "0-12", "IM00012"])
def test_empty_folder_named_like_the_slices_is_refused(tmp_path: Path, name: str) -> None:
    for path in scan(tmp_path).iterdir():
        path.rename(path.with_name(name.replace("12", path.stem[-2:])))
    (tmp_path / name).mkdir()
    with pytest.raises(ReadError, match=rf"{name} cannot be opened: it is an empty folder"):
        read_volume(tmp_path)


def test_empty_folder_of_another_name_is_no_slice(tmp_path: Path) -> None:
    (scan(tmp_path) / "results").mkdir()
    assert read_volume(tmp_path).warnings == ()


@pytest.mark.parametrize("name", ["0-12", "0-12.dcm"])
def test_link_to_nothing_named_like_the_slices_is_refused(tmp_path: Path, name: str) -> None:
    for path in scan(tmp_path).iterdir():
        path.rename(path.with_suffix(Path(name).suffix))
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ReadError, match=rf"{name} cannot be opened: No such file"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["rest.zip", "rest.tar.gz", "REST.7Z"])
def test_archive_beside_slices_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    (scan(tmp_path) / name).write_bytes(b"PK\x03\x04" + bytes(100))
    assert read_volume(tmp_path).warnings == ("Left out: 1 archive that may hold more of it.",)


def test_slice_whose_position_is_wrong_is_refused_or_interpolated(tmp_path: Path) -> None:
    replaced(scan(tmp_path), 5, chest(10.0, ImagePositionPatient=[-6, -20, 10.0]))
    with pytest.raises(ReadError, match=r"the slice at 10\.0 mm .*--allow-bad-slices"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"bad-slices"})
    assert np.array_equal(np.delete(volume.voxels, 5, 0), np.delete(expected(), 5, 0))


@pytest.mark.parametrize("index", [4, 6])
def test_slice_that_repeats_its_neighbour_is_refused_or_interpolated(
    tmp_path: Path, index: int
) -> None:
    replaced(scan(tmp_path), index, chest(STEP * index, chest_at(10.0)))
    said = rf"the slice at {STEP * index:.1f} mm is the same as another .*--allow-bad-slices"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"bad-slices"})
    right = expected()
    assert np.array_equal(np.delete(volume.voxels, index, 0), np.delete(right, index, 0))
    between = right[index - 1] / 2 + right[index + 1] / 2
    assert np.abs(volume.voxels[index] - between).max() <= 1


LONG = 40
RUN = range(14, 24)


def chest_in_long(z: float) -> np.ndarray:
    """The drawn chest, which changes a fourth as much along z."""
    return chest_at(z / 4)


def long_scan(folder: Path, shown: Callable[[int], np.ndarray]) -> Path:
    """`LONG` slices, of which each is what is shown at its number."""
    for index in range(LONG):
        save(chest(STEP * index, shown(index)), folder / f"{index:02d}.dcm")
    return folder


@pytest.mark.parametrize("last", [20, 30, LONG])
def test_slices_that_repeat_one_again_and_again_are_refused(tmp_path: Path, last: int) -> None:
    shown = chest_at(7.0)
    long_scan(tmp_path, lambda i: shown if 13 < i < last else chest_in_long(STEP * i))
    said = rf"{last - 15} slice\(s\) .*the same as another"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)


def test_slices_that_are_equal_for_want_of_noise_are_read(tmp_path: Path) -> None:
    still = np.full((SIDE, SIDE), 24, np.uint16)
    still[6:26, 4:28], still[10:22, 8:14] = 1064, 174
    for index in range(NUM):
        shown = still.copy()
        shown[12:16, 18 : 20 + index // 3] = 174
        save(chest(STEP * index, shown), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert (volume.voxels.shape[0], volume.warnings) == (NUM, ())


RUNS: dict[str, Callable[[int], np.ndarray]] = {
    "half black": lambda i: np.where(
        np.arange(SIDE)[:, None] < SIDE // 2, 24, chest_in_long(STEP * i)
    ).astype(np.uint16),
    "noise": lambda i: np.random.default_rng(i).integers(0, 3000, (SIDE, SIDE)).astype(np.uint16),
    "of another patient": lambda i: chest_at(STEP * i / 4, size=0.7, seed=1),
    "shifted": lambda i: np.roll(chest_in_long(STEP * i), 6, axis=1),
}


@pytest.mark.parametrize("num", [4, 10, 18])
@pytest.mark.parametrize("kind", RUNS)
def test_run_of_slices_that_do_not_fit_is_refused_or_left_out(
    tmp_path: Path, kind: str, num: int
) -> None:
    run = range(RUN.start, RUN.start + num)
    long_scan(tmp_path, lambda i: RUNS[kind](i) if i in run else chest_in_long(STEP * i))
    said = rf"{num} slice\(s\) of the series do not belong .*the slice at 28\.0 mm does not fit"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)
    with pytest.raises(ReadError, match=rf"{num} slice\(s\) are missing.*--allow-gap"):
        read_volume(tmp_path, allow={"bad-slices"})
    volume = read_volume(tmp_path, allow={"bad-slices", "gap"})
    right = [chest_in_long(STEP * i).astype(np.int16) - 1024 for i in range(LONG)]
    good = [i for i in range(LONG) if i not in run]
    assert np.array_equal(volume.voxels[good], np.stack(right)[good])


def test_block_of_slices_in_reverse_order_is_refused(tmp_path: Path) -> None:
    turned = dict(zip(RUN, reversed(RUN), strict=True))
    long_scan(tmp_path, lambda i: chest_in_long(STEP * turned.get(i, i)))
    said = r"10 slice\(s\) .*the slice at 28\.0 mm lies in reverse order with its neighbours"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)


@pytest.mark.parametrize("run", [range(8), range(20)])
def test_slices_in_reverse_order_at_an_end_are_refused(tmp_path: Path, run: range) -> None:
    turned = dict(zip(run, reversed(run), strict=True))
    long_scan(tmp_path, lambda i: chest_in_long(STEP * turned.get(i, i)))
    said = rf"{len(run)} slice\(s\) .*{STEP * run.start:.1f} mm lies in reverse order"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["P001", "normal001"])
@pytest.mark.parametrize("place", [slice(8), slice(-8, None)])
def test_eight_real_slices_in_reverse_order_at_an_end_are_refused(
    tmp_path: Path, data_folder: Path, name: str, place: slice
) -> None:
    paths = list((data_folder / "covid_ct_md" / name).iterdir())
    heads = {path: dcmread(path, stop_before_pixels=True) for path in paths}
    paths.sort(key=lambda path: float(heads[path].ImagePositionPatient[2]))
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    run = paths[place]
    for path, other in zip(run, reversed(run), strict=True):
        dataset = dcmread(path)
        dataset.ImagePositionPatient = heads[other].ImagePositionPatient
        (tmp_path / path.name).unlink()
        dataset.save_as(tmp_path / path.name)
    with pytest.raises(ReadError, match=r"8 slice\(s\) .*lies in reverse order"):
        read_volume(tmp_path)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("num", [2, 12])
def test_last_slices_that_do_not_fit_those_before_are_refused(
    tmp_path: Path, kind: str, num: int
) -> None:
    first = LONG - num
    long_scan(tmp_path, lambda i: chest_in_long(STEP * i) if i < first else RUNS[kind](i))
    said = rf"{num} slice\(s\) .*{STEP * first:.1f} mm (lies beyond a break|does not fit)"
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"bad-slices"})
    assert volume.voxels.shape[0] == first


@pytest.mark.parametrize("num_missing", [3, 10])
def test_gap_that_is_allowed_is_no_break_in_the_scan(tmp_path: Path, num_missing: int) -> None:
    long_scan(tmp_path, lambda i: chest_in_long(STEP * i))
    for index in range(12, 12 + num_missing):
        (tmp_path / f"{index:02d}.dcm").unlink()
    assert read_volume(tmp_path, allow={"gap"}).voxels.shape[0] == LONG


def test_slices_whose_positions_were_mixed_up_are_refused(tmp_path: Path) -> None:
    mixed = np.random.default_rng(0).permutation(LONG)
    long_scan(tmp_path, lambda i: chest_at(STEP * mixed[i] / 2))
    with pytest.raises(ReadError, match="lie in no order"):
        read_volume(tmp_path)


def cut_scan(folder: Path, num_cut: int) -> Path:
    """A long scan without some slices at 40 mm, the positions closed up."""
    return long_scan(folder, lambda i: chest_at(STEP * (i if i < 20 else i + num_cut) / 2))


@pytest.mark.parametrize("num_cut", [6, 20])
def test_slices_cut_out_whose_places_were_closed_up_are_refused(
    tmp_path: Path, num_cut: int
) -> None:
    said = r"jumps between the slice at 38\.0 mm and the slice at 40\.0 mm, .*Permit it"
    with pytest.raises(ReadError, match=said):
        read_volume(cut_scan(tmp_path, num_cut))


def test_scan_that_jumps_is_read_as_it_lies_where_that_is_permitted(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="--allow-gap"):
        read_volume(cut_scan(tmp_path, 6))
    volume = read_volume(tmp_path, allow={"gap"})
    assert volume.voxels.shape[0] == LONG
    assert "jumps between the slice at 38.0 mm" in volume.warnings[-1]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["P001", "normal001"])
def test_real_slices_fit_at_two_to_ten_millimetres(
    data_folder: Path, tmp_path: Path, name: str, every: int
) -> None:
    for _, path in placed(data_folder / "covid_ct_md" / name)[::every]:
        (tmp_path / path.name).symlink_to(path)
    gap = f"The slices are 2 mm thick and {2 * every} mm apart"
    said = [each.partition(":")[0] for each in read_volume(tmp_path).warnings]
    assert said == ([gap] if every > 1 else [])


def test_blank_slices_at_the_ends_are_left_out_with_a_word(tmp_path: Path) -> None:
    scan(tmp_path, NUM + 2, start=-STEP)
    for index in (0, NUM + 1):
        z = STEP * (index - 1)
        blank = np.full((SIDE, SIDE), 24, np.uint16)
        save(chest(z, blank), tmp_path / f"-2-{index:02d}.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert volume.warnings == ("2 blank slice(s) at the ends of the scan were left out.",)
    assert volume.source.left_out == {"blank slice at an end": 2}


# --- damage inside compressed slices ----------------------------------------------------------


def damaged_in_place(content: bytes) -> bytes:
    """Bytes in the middle of coded pixels turned round."""
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - b for b in content[middle : middle + 8])
        + (content[middle + 8 :])
    )


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no end mark": lambda frame: frame.rstrip(b"\0")[:-2],
    "cut short": lambda frame: frame[: len(frame) * 3 // 4],
    "cut short, with an end mark": lambda frame: frame[: len(frame) * 3 // 4] + b"\xff\xd9",
    "data left over": lambda frame: frame.rstrip(b"\0")[:-2] + b"\x12\x34\x56\x78\xff\xd9",
    "data after the end mark": lambda frame: frame.rstrip(b"\0") + b"\x12\x34\x56\x78",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_compressed_slice_with_data_missing_or_left_over_is_refused(
    tmp_path: Path, syntax: str, kind: str
) -> None:
    frame = DAMAGE[kind](bytes(ENCODERS[syntax](chest_at(0.0))))
    save_encapsulated(chest(0.0), tmp_path / "x.dcm", syntax, [frame])
    with pytest.raises(ReadError, match="damaged pixels"):
        read_volume(tmp_path)


@pytest.mark.parametrize("change", [-8, -4, 4, 9])
def test_rle_segment_that_is_too_short_or_too_long_is_refused(tmp_path: Path, change: int) -> None:
    frame = bytes(ENCODERS[RLE](chest_at(0.0)))
    changed = frame[:change] if change < 0 else frame + bytes([change - 1] + [7] * change)
    save_encapsulated(chest(0.0), tmp_path / "x.dcm", RLE, [changed])
    with pytest.raises(ReadError, match="damaged pixels"):
        read_volume(tmp_path)


def test_deflated_slice_whose_stream_does_not_end_is_refused(tmp_path: Path) -> None:
    path = save(chest(0.0), tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    path.write_bytes(content[:-6])
    with pytest.raises(ReadError, match=r"x\.dcm"):
        read_volume(tmp_path)


def test_deflated_slice_with_data_left_over_is_refused(tmp_path: Path) -> None:
    path = save(chest(0.0), tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 132 + 12 + int.from_bytes(content[140:144], "little")
    whole = zlib.decompress(content[start:], -15)
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(content[:start] + packer.compress(whole + b"\x12" * 50) + packer.flush())
    with pytest.raises(ReadError, match="damaged"):
        read_volume(tmp_path)


def test_most_damage_of_sixteen_bytes_in_real_lossless_slices_is_noticed(
    data_folder: Path, tmp_path: Path
) -> None:
    path = sorted((data_folder / "covid_ct_md" / "P001").iterdir())[70]
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused, out = 0, np.empty((512, 512), np.float32)
    for _ in range(20):
        place = int(rng.integers(len(content) // 4, len(content) - 40))
        damage = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        (tmp_path / "x.dcm").write_bytes(content[:place] + damage + content[place + 16 :])
        try:
            load_hounsfield(located(header_of(tmp_path / "x.dcm")), 0, Rescale(), out)
        except UnreadableFileError:
            refused += 1
    # Coded data can fall into step again after as many bits as before.
    assert refused >= 17


def header_of(path: Path) -> DicomHeader:
    header = read_header(disk_file(path, path.name, path.stat().st_size))
    assert header is not None
    return header


# --- orientation, files, positions ------------------------------------------------------------


@pytest.mark.parametrize("step", [2.0, 0.5])
def test_orientation_that_jitters_leaves_a_regular_stack_regular(
    tmp_path: Path, step: float
) -> None:
    rng = np.random.default_rng(0)
    for index in range(NUM):
        lean = float(rng.uniform(-1e-4, 1e-4))
        turned = [1.0, 0.0, lean, 0.0, 1.0, -lean]
        place = [-180.0, -350.0, step * index]
        dataset = chest(
            step * index,
            chest_at(STEP * index),
            ImageOrientationPatient=turned,
            ImagePositionPatient=place,
        )
        save(dataset, tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    assert volume.grid.spacing_mm[0] == pytest.approx(step, abs=1e-4)
    assert volume.warnings == ()


@pytest.mark.parametrize("ending", [".dcm", "", ".IMG"])
def test_slices_that_cannot_be_opened_are_counted_and_refused(tmp_path: Path, ending: str) -> None:
    for path in scan(tmp_path).iterdir():
        path.rename(path.with_suffix(ending))
    for index in (2, 3):
        name = tmp_path / f"0-{index:02d}{ending}"
        name.unlink()
        name.symlink_to(tmp_path / ".git" / "annex" / "objects" / f"{index}")
    with pytest.raises(ReadError, match=r"2 file\(s\) cannot be read and may belong") as raised:
        read_volume(tmp_path)
    assert "cannot be opened: No such file or directory" in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"/annex/objects/SHA256E-s526--a0.dcm\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
)
def test_slice_that_was_not_fetched_is_refused(tmp_path: Path, content: bytes) -> None:
    (scan(tmp_path) / "0-04.dcm").write_bytes(content)
    with pytest.raises(ReadError, match="its content was not fetched"):
        read_volume(tmp_path)


def test_link_to_nothing_that_is_like_no_slice_is_counted_and_said(tmp_path: Path) -> None:
    scan(tmp_path)
    (tmp_path / "latest.log").symlink_to(tmp_path / "absent")
    volume = read_volume(tmp_path)
    assert volume.warnings == ("Left out: 1 file that cannot be opened.",)
    assert volume.source.left_out == {"file that cannot be opened": 1}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_slice_without_permission_is_refused(tmp_path: Path) -> None:
    (scan(tmp_path) / "0-04.dcm").chmod(0)
    with pytest.raises(ReadError, match="cannot be read"):
        read_volume(tmp_path)


def test_slices_without_a_position_are_refused_unless_they_may_be_left_out(tmp_path: Path) -> None:
    scan(tmp_path)
    for index in range(5):
        save(chest(0.0, ImagePositionPatient=None), tmp_path / f"unplaced{index}.dcm")
    with pytest.raises(ReadError, match=r"5 CT slice\(s\) .*do not say where.*--allow-unplaced"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"unplaced"})
    assert np.array_equal(volume.voxels, expected())
    assert volume.warnings == ("Left out: 5 CT slices without a position.",)


# --- values -----------------------------------------------------------------------------------


def with_table(dataset: Dataset, kind: str, values: np.ndarray, first: int = 0) -> Dataset:
    """A slice whose values become others by a Modality LUT."""
    del dataset.RescaleIntercept, dataset.RescaleSlope
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, 16])
    item.ModalityLUTType = kind
    item.add_new("LUTData", "OW", values.astype(np.int16).tobytes())
    dataset.ModalityLUTSequence = Sequence([item])
    return dataset


def test_modality_lookup_table_is_applied(tmp_path: Path) -> None:
    table = np.arange(4000) - 1034
    for index in range(NUM):
        z = STEP * index
        save(with_table(chest(z), "HU", table, first=10), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    stored = np.clip(expected().astype(int) + 1024, 10, 4009)
    assert np.array_equal(volume.voxels, stored - 10 - 1034)
    assert volume.unit == "HU"


def test_modality_lookup_table_that_is_too_short_is_refused(tmp_path: Path) -> None:
    dataset = with_table(chest(0.0), "HU", np.arange(100))
    dataset.ModalityLUTSequence[0].LUTDescriptor = [200, 0, 16]
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(ReadError, match="a Modality LUT of 100 values where 200"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"RescaleIntercept": "0"}, "no voxel is below -200"),
        ({"RescaleIntercept": None, "RescaleSlope": None}, "there is no rescale intercept"),
        ({"RescaleType": "MGML"}, "RescaleType is 'MGML'"),
        ({"RescaleSlope": "8"}, "are above 4000"),
    ],
)
def test_values_that_cannot_be_hounsfield_units_are_refused_with_range_and_cause(
    tmp_path: Path, change: dict[str, str | None], why: str
) -> None:
    scan(tmp_path, **change)
    with pytest.raises(ReadError, match=r"values from .* to .*not Hounsfield units.*Intercept") as (
        raised
    ):
        read_volume(tmp_path)
    assert why in str(raised.value)
    assert "Secret" not in str(raised.value)


@pytest.mark.parametrize("is_signed", [False, True])
def test_values_of_more_bits_than_are_said_to_be_stored_are_refused(
    tmp_path: Path, data_folder: Path, is_signed: bool
) -> None:
    for path in (data_folder / "covid_ct_md" / "P001").iterdir():
        (tmp_path / path.name).symlink_to(path)
    dataset = dcmread(path)
    dataset.decompress()
    if is_signed:
        signed = dataset.pixel_array.astype(np.int16) - 1024
        dataset.PixelData, dataset.RescaleIntercept = signed.tobytes(), "0"
        dataset.PixelRepresentation = 1
    dataset.BitsStored, dataset.HighBit = 11, 10
    (tmp_path / path.name).unlink()
    dataset.save_as(tmp_path / path.name)
    with pytest.raises(ReadError, match="values of more than the 11 bits that its header says"):
        read_volume(tmp_path)


def test_overlay_or_padding_in_the_bits_above_is_no_part_of_a_value(tmp_path: Path) -> None:
    for index in range(NUM):
        stored = chest_at(STEP * index)
        stored[2:5, 3:20] |= 1 << 12
        stored[0] = 63536
        save(chest(STEP * index, stored, PixelPaddingValue=63536), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    right = expected()
    right[:, 0] = AIR_HU
    assert np.array_equal(volume.voxels, right)


@pytest.mark.parametrize("limit", [None, 1064])
def test_padding_that_tissue_has_is_not_believed(tmp_path: Path, limit: int | None) -> None:
    fields = {"PixelPaddingValue": 1000 if limit else 1064}
    scan(tmp_path, **fields, **({"PixelPaddingRangeLimit": limit} if limit else {}))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected())
    said = "PixelPaddingValue is that of tissue in 12 slice(s): it was ignored."
    assert volume.warnings == (said,)


def test_padding_that_no_header_names_becomes_air_with_a_word(tmp_path: Path) -> None:
    for index in range(NUM):
        pixels = chest_at(STEP * index).astype(np.int16) - 1024
        pixels[:2] = -3024
        fields = {"PixelRepresentation": 1, "RescaleIntercept": "0"}
        bits = {"BitsStored": 16, "HighBit": 15}
        save(chest(STEP * index, pixels, **fields, **bits), tmp_path / f"{index}.dcm")
    volume = read_volume(tmp_path)
    assert (volume.voxels[:, :2] == AIR_HU).all()
    assert np.array_equal(volume.voxels[:, 2:], expected()[:, 2:])
    assert volume.warnings[0].startswith(f"{NUM * 2 * SIDE} voxels (6.2%) were below -1500 HU")


def test_values_without_air_are_said(tmp_path: Path) -> None:
    scan(tmp_path, RescaleIntercept="-900")
    (said,) = read_volume(tmp_path).warnings
    assert re.match(r"Hardly a value is below -8\d\d HU, and air has -1000", said)


@pytest.mark.parametrize("declared", [NUM - 2, NUM + 2])
def test_frames_of_another_number_than_declared_are_refused(tmp_path: Path, declared: int) -> None:
    heights = [STEP * i for i in range(NUM)]
    dataset = enhanced_dataset(np.stack([chest_at(z) for z in heights]), heights)
    dataset.NumberOfFrames = declared
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(ReadError, match=f"holds {declared} frames and positions for {NUM}"):
        read_volume(tmp_path)


def test_half_whose_orientation_was_reversed_is_refused_not_left_out(tmp_path: Path) -> None:
    scan(tmp_path, 7)
    turned = {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}
    scan(tmp_path, NUM - 7, start=7 * STEP, **turned)
    with pytest.raises(ReadError, match=r"2 sizes or orientations.*--allow-mixed-orientations"):
        read_volume(tmp_path)


def test_lookup_table_to_something_else_is_not_taken_for_hounsfield_units(tmp_path: Path) -> None:
    for index in range(NUM):
        save(with_table(chest(STEP * index), "OD", np.arange(4096)), tmp_path / f"{index}.dcm")
    with pytest.raises(ReadError, match="ModalityLUTType is 'OD'"):
        read_volume(tmp_path)

from __future__ import annotations

import errno
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from analyses import make_analysis, make_unsuitable
from dicom_scans import analysed, small_scan
from explained import THRESHOLD
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from readers.dicom_files import ct_dataset, enhanced_dataset, pixels_at, save

from chestct.analysis import ScanAnalysis
from chestct.errors import WriteError
from chestct.explain.explanation import HeatMap
from chestct.writers import NothingToWriteError, WriteOptions
from chestct.writers.dicom_images import segments_of, write_segmentation
from chestct.writers.folders import write_outputs

UIDS = {
    "StudyInstanceUID": "1.2.3.4.1",
    "FrameOfReferenceUID": "1.2.3.4.2",
    "PatientBirthDate": "19500101",
}


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("seg") / "scan"))


def written(analysis: ScanAnalysis, folder: Path, **options: bool) -> Dataset:
    path = write_segmentation(analysis, folder, WriteOptions(**options))
    return pydicom.dcmread(path)


def reassembled(seg: Dataset, number: int, analysis: ScanAnalysis) -> np.ndarray:
    """A segment on the volume's grid, put together by the positions in the file alone."""
    grid = analysis.volume.grid
    mask = np.zeros(grid.shape, dtype=bool)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        index = grid.to_index(np.array([float(x) for x in position]))
        np.testing.assert_allclose(index[1:], 0.0, atol=1e-3)
        mask[round(float(index[0]))] = frame.astype(bool)
    return mask


def numbers_of(seg: Dataset) -> list[int]:
    """Segment number of every frame; a file of one segment says it once for all."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        return [shared.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
    return [
        groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]


def test_every_voxel_of_both_segments_comes_back_by_its_position(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    seg = written(analysis, tmp_path)
    explained = analysis.explanation
    assert explained is not None
    np.testing.assert_array_equal(
        reassembled(seg, 1, analysis), analysis.prepared.scan_lungs.voxels
    )
    np.testing.assert_array_equal(
        reassembled(seg, 2, analysis), np.nan_to_num(explained.heat.voxels) >= THRESHOLD
    )


def test_every_frame_names_the_image_it_lies_on(analysis: ScanAnalysis, tmp_path: Path) -> None:
    seg = highdicom.seg.segread(write_segmentation(analysis, tmp_path, WriteOptions()))
    uids = list(analysis.volume.source.slice_uids)
    masks = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(masks[..., 0].astype(bool), analysis.prepared.scan_lungs.voxels)


def test_segments_are_coded_and_colored(analysis: ScanAnalysis, tmp_path: Path) -> None:
    seg = written(analysis, tmp_path)
    lungs, evidence = seg.SegmentSequence
    assert lungs.SegmentedPropertyTypeCodeSequence[0].CodeValue == "39607008"
    assert evidence.SegmentedPropertyTypeCodeSequence[0].CodeValue == "130403"
    assert evidence.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "DCM"
    assert "COVID-19" in evidence.SegmentLabel
    assert "50%" in evidence.SegmentLabel
    algorithm = evidence.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "gradcam of trial"
    assert algorithm.AlgorithmVersion == "1"
    assert len(lungs.RecommendedDisplayCIELabValue) == 3
    assert "not for clinical use" in seg.SeriesDescription


@pytest.mark.parametrize(
    ("method", "label", "expected"),
    [
        ("gradcam", "CAP", "Evidence for Community-acquired pneumonia, from 50% of maximum"),
        ("strongest_channel", "CAP", "Network activity (strongest channel), from 50% of maximum"),
        ("attention", "COVID-19", "Network activity (attention), from 50% of maximum"),
    ],
)
def test_a_segment_is_evidence_for_a_class_only_where_the_method_knows_one(
    analysis: ScanAnalysis, tmp_path: Path, method: str, label: str, expected: str
) -> None:
    made = analysis.explanation
    assert made is not None
    other = replace(made, explanation=replace(made.explanation, method=method, label=label))
    seg = written(replace(analysis, explanation=other), tmp_path)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Lungs", expected]


def test_patient_study_and_frame_of_reference_are_those_of_the_series(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    seg = written(analysis, tmp_path)
    assert analysis.path is not None
    source = pydicom.dcmread(next(analysis.path.iterdir()), stop_before_pixels=True)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.Modality == "SEG"


def test_a_heat_map_of_zeros_leaves_its_segment_out(analysis: ScanAnalysis, tmp_path: Path) -> None:
    explained = analysis.explanation
    assert explained is not None
    grid = explained.heat.grid
    cold = HeatMap.of(grid, np.zeros(grid.shape, dtype=np.float32))
    zero = replace(analysis, explanation=replace(explained, heat=cold))
    seg = written(zero, tmp_path)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Lungs"]
    assert set(numbers_of(seg)) == {1}


def test_a_scan_without_lungs_has_nothing_to_outline(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    empty = analysis.volume.with_voxels(np.zeros(analysis.volume.grid.shape, dtype=bool))
    bare = replace(
        analysis, explanation=None, prepared=replace(analysis.prepared, scan_lungs=empty)
    )
    assert segments_of(bare) == []
    with pytest.raises(NothingToWriteError, match="No lungs were found"):
        write_segmentation(bare, tmp_path, WriteOptions())
    assert segments_of(make_unsuitable()) == []


def test_a_scan_that_was_not_dicom_is_told_so(tmp_path: Path) -> None:
    analysis = make_analysis()
    source = replace(analysis.volume.source, format="nifti")
    other = replace(analysis, volume=replace(analysis.volume, source=source), path=tmp_path)
    with pytest.raises(NothingToWriteError, match="read from nifti"):
        write_segmentation(other, tmp_path, WriteOptions())


def test_a_full_disk_leaves_nothing_half_written(
    analysis: ScanAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(self: Dataset, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = write_segmentation(analysis, tmp_path, WriteOptions()).read_bytes()
    monkeypatch.setattr(Dataset, "save_as", fill_up)
    with pytest.raises(WriteError, match="no space left on device"):
        write_segmentation(analysis, tmp_path, WriteOptions())
    assert (tmp_path / "segmentation.dcm").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["segmentation.dcm"]


def test_interpolated_slices_have_positions_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    for number, z in enumerate((0.0, 2.0, 6.0, 8.0)):
        save(
            ct_dataset(pixels_at(z), z, SOPInstanceUID=f"1.2.3.9.{number + 1}", **UIDS),
            folder / f"{number}.dcm",
        )
    analysis = analysed(folder)
    assert analysis.volume.grid.shape[0] == 5
    seg = written(analysis, tmp_path / "out")
    np.testing.assert_array_equal(
        reassembled(seg, 1, analysis), analysis.prepared.scan_lungs.voxels
    )
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 4


def test_a_leaning_stack_keeps_its_own_larger_planes(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    for number in range(5):
        z = 3.0 * number
        dataset = ct_dataset(
            pixels_at(z),
            z,
            ImagePositionPatient=[-10, -20 + 0.8 * number, z],
            SOPInstanceUID=f"1.2.3.9.{number + 1}",
            **UIDS,
        )
        save(dataset, folder / f"{number}.dcm")
    analysis = analysed(folder, allow=("tilt",))
    assert analysis.volume.grid.shape[1] > 10
    seg = written(analysis, tmp_path / "out")
    assert (seg.Rows, seg.Columns) == analysis.volume.grid.shape[1:]
    np.testing.assert_array_equal(
        reassembled(seg, 1, analysis), analysis.prepared.scan_lungs.voxels
    )


@pytest.mark.parametrize("is_zipped", [False, True])
def test_frames_of_a_multi_frame_file_are_named(tmp_path: Path, is_zipped: bool) -> None:
    heights = [4.0, 0.0, 2.0, 6.0]
    dataset = enhanced_dataset(np.stack([pixels_at(z) for z in heights]), heights)
    for keyword, value in UIDS.items():
        setattr(dataset, keyword, value)
    path = save(dataset, tmp_path / "scan" / "enhanced.dcm")
    if is_zipped:
        with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
            archive.write(path, "enhanced.dcm")
        path = tmp_path / "scan.zip"
    analysis = analysed(path)
    seg = written(analysis, tmp_path / "out")
    np.testing.assert_array_equal(
        reassembled(seg, 1, analysis), analysis.prepared.scan_lungs.voxels
    )
    named = {}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        z = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        named[z] = source.ReferencedFrameNumber
        assert source.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert named == {2.0: 3, 4.0: 1, 6.0: 4}


def single_frames(folder: Path, sop_class: str) -> Path:
    for number in range(5):
        z = 2.0 * number
        dataset = ct_dataset(
            pixels_at(z), z, SOPInstanceUID=f"1.2.3.9.{number + 1}", SOPClassUID=sop_class, **UIDS
        )
        dataset.file_meta.MediaStorageSOPClassUID = sop_class or CTImageStorage
        save(dataset, folder / f"{number}.dcm")
    return folder


def enhanced_files(folder: Path, *groups: list[float]) -> Path:
    for number, heights in enumerate(groups):
        dataset = enhanced_dataset(np.stack([pixels_at(z) for z in heights]), heights)
        for keyword, value in UIDS.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = f"1.2.3.9.{number + 1}"
        save(dataset, folder / f"{number}.dcm")
    return folder


SERIES_KINDS: dict[str, Callable[[Path], Path]] = {
    "a private class": lambda folder: single_frames(folder, "1.2.840.113619.4.27"),
    "an unknown class": lambda folder: single_frames(folder, "1.2.840.10008.5.1.4.1.1.999"),
    "one frame a file": lambda folder: enhanced_files(folder, [0.0], [2.0], [4.0], [6.0], [8.0]),
    "some frames a file": lambda folder: enhanced_files(folder, [2.0, 0.0], [4.0, 6.0], [8.0]),
}


@pytest.mark.parametrize("make", SERIES_KINDS.values(), ids=SERIES_KINDS)
def test_every_object_can_be_written_of_every_kind_of_series_that_is_read(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    analysis = analysed(make(tmp_path / "scan"))
    analysis = replace(analysis, prepared=replace(analysis.prepared, salient=(1, 2)))
    names = ("dicom_seg", "dicom_parametric_map", "dicom_sr", "dicom_sc")
    done = write_outputs(analysis, tmp_path / "out", WriteOptions(names=names))
    assert done.failed == {}
    seg = pydicom.dcmread(done.files["dicom_seg"])
    np.testing.assert_array_equal(
        reassembled(seg, 1, analysis), analysis.prepared.scan_lungs.voxels
    )
    series = analysis.source_series
    assert series is not None
    images = {image.position_mm[2]: image for image in series.images}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        image = images[float(groups.PlanePositionSequence[0].ImagePositionPatient[2])]
        assert source.ReferencedSOPInstanceUID == image.uid
        assert source.ReferencedSOPClassUID == image.sop_class
        assert source.get("ReferencedFrameNumber", 0) == image.frame
    files = {image.uid for image in series.images}
    for path in (done.files["dicom_seg"], done.files["dicom_parametric_map"]):
        (referred,) = pydicom.dcmread(path).ReferencedSeriesSequence
        named = [item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence]
        assert len(named) == len(set(named))
        assert set(named) <= files
    (study,) = pydicom.dcmread(done.files["dicom_sr"]).CurrentRequestedProcedureEvidenceSequence
    evidence = [
        item.ReferencedSOPInstanceUID
        for one in study.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
        if item.ReferencedSOPClassUID in {image.sop_class for image in series.images}
    ]
    assert sorted(evidence) == sorted(files)


def test_a_series_without_a_class_counts_as_ct_images(tmp_path: Path) -> None:
    folder = single_frames(tmp_path / "scan", CTImageStorage)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = ""
        dataset.save_as(path)
    seg = written(analysed(folder), tmp_path / "out")
    (referred,) = seg.ReferencedSeriesSequence
    classes = {item.ReferencedSOPClassUID for item in referred.ReferencedInstanceSequence}
    assert classes == {CTImageStorage}


def test_evidence_for_a_normal_scan_is_no_segment(analysis: ScanAnalysis) -> None:
    explained = analysis.explanation
    assert explained is not None
    normal = replace(explained, explanation=replace(explained.explanation, label="normal"))
    segments = segments_of(replace(analysis, explanation=normal))
    assert [segment.key for segment in segments] == ["lungs"]

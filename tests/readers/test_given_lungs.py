"""Masks that people and other programs give: read, taken apart, and laid on the very scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from analyses import lung_mask, make_volume
from dicom_scans import analysed, small_scan

from chestct.analysis import ScanAnalysis
from chestct.errors import ReadError
from chestct.readers.masks import read_lungs
from chestct.volume import Volume, to_own_axes
from chestct.writers import WriteOptions
from chestct.writers.dicom_images import write_segmentation
from chestct.writers.nifti import write_nifti

TOTALSEGMENTATOR = (
    '<Label Key="5"><![CDATA[liver]]></Label><Label Key="10"><![CDATA[lung_upper_lobe_left]]>'
    '</Label><Label Key="12"><![CDATA[lung_middle_lobe_right]]></Label>'
    '<Label Key="77"><![CDATA[lung_nodules]]></Label>'
)
VOLUME = make_volume()
LUNGS = lung_mask()


def is_left() -> np.ndarray:
    return np.broadcast_to(np.arange(LUNGS.shape[2]) >= LUNGS.shape[2] // 2, LUNGS.shape)


def saved(path: Path, values: np.ndarray, volume: Volume = VOLUME, names: str = "") -> Path:
    """Labels as NIfTI, stored with their x axis running the other way than the scan's."""
    plain = write_nifti(path.with_name("plain.gz.nii"), values, volume.grid)
    image = nibabel.as_closest_canonical(nibabel.load(plain, mmap=False))
    plain.unlink()
    header = image.header
    if names:
        header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", names.encode()))
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, header), path)
    return path


def reversed_scan() -> Volume:
    """The same scan, its slices stored from head to feet and its rows from back to front."""
    grid = VOLUME.grid.moved((39.0, 59.0, 0.0), (-1.0, -1.0, 1.0), VOLUME.grid.shape)
    return VOLUME.with_voxels(VOLUME.voxels[::-1, ::-1], grid)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("seg") / "scan"))


@pytest.fixture(scope="module")
def segmentation(analysis: ScanAnalysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation(analysis, tmp_path_factory.mktemp("seg"), WriteOptions())


@pytest.mark.parametrize("volume", [VOLUME, reversed_scan()], ids=["axial", "reversed"])
def test_a_nifti_mask_lies_on_the_scan_however_both_are_stored(
    tmp_path: Path, volume: Volume
) -> None:
    path = saved(tmp_path / "mask.nii.gz", LUNGS.astype(np.uint8))
    found = read_lungs(path, volume)
    assert found.grid == volume.grid
    np.testing.assert_array_equal(found.voxels, to_own_axes(LUNGS, volume.grid))


def test_labels_of_sides_and_shares_of_lung_are_lungs(tmp_path: Path) -> None:
    sides = LUNGS * np.where(is_left(), 2, 1)
    for values in (sides.astype(np.uint8), (LUNGS * 0.7).astype(np.float32), LUNGS * 255.0):
        path = saved(tmp_path / "mask.nii", values.astype(np.float32))
        np.testing.assert_array_equal(read_lungs(path, VOLUME).voxels, LUNGS)


def test_of_many_labels_those_named_lung_are_taken(tmp_path: Path) -> None:
    many = np.where(LUNGS, np.where(is_left(), 10, 12), 5).astype(np.uint8)
    many[0, 0, 0] = 77
    path = saved(tmp_path / "total.nii.gz", many, names=TOTALSEGMENTATOR)
    np.testing.assert_array_equal(read_lungs(path, VOLUME).voxels, LUNGS)


def test_a_folder_of_lobes_is_put_together(tmp_path: Path) -> None:
    saved(tmp_path / "lung_upper_lobe_left.nii.gz", (LUNGS & is_left()).astype(np.uint8))
    saved(tmp_path / "lung_lower_lobe_right.nii.gz", (LUNGS & ~is_left()).astype(np.uint8))
    saved(tmp_path / "lung_vessels.nii.gz", np.ones_like(LUNGS, dtype=np.uint8))
    np.testing.assert_array_equal(read_lungs(tmp_path, VOLUME).voxels, LUNGS)


def test_our_own_segmentation_gives_the_lungs_back(
    analysis: ScanAnalysis, segmentation: Path
) -> None:
    found = read_lungs(segmentation, analysis.volume)
    np.testing.assert_array_equal(found.voxels, analysis.prepared.scan_lungs.voxels)
    turned = read_lungs(segmentation, reversed_scan())
    np.testing.assert_array_equal(turned.voxels, LUNGS[::-1, ::-1])
    # So does the folder that holds it alone.
    assert read_lungs(segmentation.parent, analysis.volume).voxels.sum() == LUNGS.sum()


def edited(segmentation: Path, path: Path, **elements: object) -> Path:
    found = pydicom.dcmread(segmentation)
    for name, value in elements.items():
        setattr(found, name, value)
    found.save_as(path)
    return path


def test_a_segmentation_elsewhere_or_without_lungs_is_refused(
    analysis: ScanAnalysis, segmentation: Path, tmp_path: Path
) -> None:
    grid = replace(VOLUME.grid, origin_mm=(-118.0, -90.0, -300.0))
    with pytest.raises(ReadError, match="does not lie on the scan's voxels"):
        read_lungs(segmentation, replace(VOLUME, grid=grid))
    found = pydicom.dcmread(segmentation)
    for item in found.SegmentSequence:
        item.SegmentLabel = "Liver"
        item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Liver"
    found.save_as(tmp_path / "liver.dcm")
    with pytest.raises(ReadError, match="2 segments and none is named lung"):
        read_lungs(tmp_path / "liver.dcm", VOLUME)
    with pytest.raises(ReadError, match="no Segmentation"):
        read_lungs(next(iter(sorted((analysis.path or tmp_path).iterdir()))), VOLUME)
    found.SegmentSequence[0].SegmentLabel = "Lungs"
    del found.PerFrameFunctionalGroupsSequence
    found.save_as(tmp_path / "broken.dcm")
    with pytest.raises(ReadError, match="cannot be read as a DICOM Segmentation"):
        read_lungs(tmp_path / "broken.dcm", VOLUME)


def shifted(volume: Volume) -> Volume:
    return replace(volume, grid=replace(volume.grid, origin_mm=(-120.0, -90.0, -290.0)))


REFUSED = {
    "moved": (LUNGS, shifted(VOLUME), "10.0 mm from the scan's"),
    "of another size": (LUNGS[1:], VOLUME, r"\(39, 60, 80\) voxels and the scan \(40, 60, 80\)"),
    "empty": (np.zeros_like(LUNGS), VOLUME, "no voxel of it is lung"),
    "of many labels": (LUNGS * np.where(is_left(), 10, 12), VOLUME, "which are the lungs"),
    "a scan": (np.asarray(VOLUME.voxels), VOLUME, "which are no labels"),
    "of fractions": (LUNGS * 2.5, VOLUME, "fractions above 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mask_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    values, volume, words = REFUSED[what]
    kind = np.float32 if what == "of fractions" else np.int16
    grid = replace(volume.grid, shape=values.shape)
    write_nifti(tmp_path / "mask.nii", values.astype(kind), grid)
    with pytest.raises(ReadError, match=words):
        read_lungs(tmp_path / "mask.nii", VOLUME)


def test_what_is_no_mask_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="does not exist"):
        read_lungs(tmp_path / "nothing.nii", VOLUME)
    with pytest.raises(ReadError, match="0 DICOM files"):
        read_lungs(tmp_path, VOLUME)

"""The `recommended` lungs on a phantom in which everything is known, and on real masks."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from thorax_phantom import Thorax, make_thorax

from chestct.errors import RecipeError
from chestct.preprocess.lungs import segment_lungs
from chestct.readers import read_volume
from chestct.volume import Grid, Volume, to_canonical


def _segment(volume: Volume) -> np.ndarray:
    return segment_lungs(volume, "recommended")


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * np.sum(one & other) / (one.sum() + other.sum()))


def _share(mask: np.ndarray, part: np.ndarray) -> float:
    return float(mask[part].mean())


@pytest.fixture(scope="module")
def healthy() -> tuple[Thorax, np.ndarray]:
    thorax = make_thorax()
    return thorax, _segment(thorax.volume)


def test_healthy_lungs_are_found_whole(healthy) -> None:
    thorax, mask = healthy
    assert _dice(mask, thorax.lungs) > 0.99
    assert _share(mask, thorax.lungs) > 0.995


def test_trachea_main_bronchi_bowel_table_and_room_are_left_out(healthy) -> None:
    thorax, mask = healthy
    assert _share(mask, thorax.airways) < 0.01
    assert not mask[thorax.bowel].any()
    assert not mask[~thorax.body].any()


@pytest.mark.parametrize(
    ("disease", "recall"), [("bilateral", 0.85), ("lobar", 0.7), ("nodules", 0.85)]
)
def test_dense_disease_is_kept(disease: str, recall: float) -> None:
    thorax = make_thorax(disease=disease)
    mask = _segment(thorax.volume)
    assert thorax.disease.sum() > 300
    assert _share(mask, thorax.disease) > recall
    assert _dice(mask, thorax.lungs) > 0.97
    assert _share(mask, thorax.airways) < 0.01


@pytest.mark.parametrize(
    "spacing_mm", [(1.0, 3.0, 3.0), (8.0, 1.5, 1.5), (5.0, 3.0, 1.0), (4.0, 5.0, 5.0)]
)
def test_any_spacing_will_do(spacing_mm: tuple[float, float, float]) -> None:
    thorax = make_thorax(spacing_mm=spacing_mm)
    mask = _segment(thorax.volume)
    assert _dice(mask, thorax.lungs) > 0.98
    assert not mask[~thorax.body].any()


@pytest.mark.parametrize(
    ("field_mm", "offset_mm"),
    [((200.0, 250.0), (0.0, 0.0)), ((180.0, 272.0), (0.0, 0.0)), ((260.0, 380.0), (20.0, 60.0))],
)
def test_a_field_of_view_may_cut_the_body_or_be_off_centre(field_mm, offset_mm) -> None:
    thorax = make_thorax(field_mm=field_mm, offset_mm=offset_mm)
    assert _dice(_segment(thorax.volume), thorax.lungs) > 0.98


@pytest.mark.parametrize("padding_hu", [-3024, -2000, -1024])
def test_a_circular_field_of_view_may_cut_through_the_lungs(padding_hu: int) -> None:
    thorax = make_thorax()
    shape = thorax.volume.grid.shape
    y, x = np.ogrid[: shape[1], : shape[2]]
    outside = (y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2 > (118 / 2.5) ** 2
    voxels = thorax.volume.voxels.copy()
    voxels[:, outside] = padding_hu
    mask = _segment(thorax.volume.with_voxels(voxels))
    assert thorax.lungs[:, outside].any()
    assert not mask[:, outside].any()
    assert _dice(mask, thorax.lungs & ~outside) > 0.98


def test_a_mirrored_scan_gives_the_mirrored_mask_and_the_same_scan_the_same(healthy) -> None:
    thorax, mask = healthy
    mirrored = np.ascontiguousarray(thorax.volume.voxels[:, :, ::-1])
    assert _dice(_segment(thorax.volume.with_voxels(mirrored)), mask[:, :, ::-1]) > 0.995
    assert np.array_equal(_segment(thorax.volume), mask)


@pytest.mark.parametrize("slices", [slice(40, 41), slice(38, 42), slice(20, 50)])
def test_a_slab_of_a_few_slices_is_segmented_as_in_the_whole_scan(healthy, slices: slice) -> None:
    thorax, mask = healthy
    voxels = np.ascontiguousarray(thorax.volume.voxels[slices])
    slab = Volume(Grid(voxels.shape, thorax.volume.grid.spacing_mm), voxels)
    assert _dice(_segment(slab), mask[slices]) > 0.97


def test_float_voxels_give_the_same_lungs(healthy) -> None:
    thorax, mask = healthy
    voxels = thorax.volume.voxels.astype(np.float32)
    assert _dice(_segment(thorax.volume.with_voxels(voxels)), mask) > 0.999


def test_one_airless_lung_leaves_the_other() -> None:
    thorax = make_thorax()
    voxels = thorax.volume.voxels.copy()
    left = thorax.lungs & (np.arange(voxels.shape[2]) > voxels.shape[2] / 2)
    voxels[left] = 40
    mask = _segment(thorax.volume.with_voxels(voxels))
    assert _dice(mask, thorax.lungs & ~left) > 0.97


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 8), (1, 64, 64), (3, 5, 200), (90, 4, 4)])
@pytest.mark.parametrize("value", [-3024, -1024, -1000, -700, 0, 3000])
def test_a_constant_volume_has_no_lungs(shape: tuple[int, int, int], value: int) -> None:
    voxels = np.full(shape, value, dtype=np.int16)
    assert not _segment(Volume(Grid(shape, (2.0, 0.7, 0.7)), voxels)).any()


@pytest.mark.parametrize("spacing_mm", [(0.1, 0.1, 0.1), (2.0, 0.7, 0.7), (30.0, 5.0, 5.0)])
def test_noise_has_no_lungs(spacing_mm: tuple[float, float, float]) -> None:
    voxels = np.random.default_rng(1).integers(-1024, 1000, (12, 30, 40)).astype(np.int16)
    assert not _segment(Volume(Grid(voxels.shape, spacing_mm), voxels)).any()


def test_a_windowed_volume_is_refused_with_a_way_out() -> None:
    voxels = np.zeros((2, 4, 4), dtype=np.uint8)
    volume = Volume(Grid(voxels.shape, (1.0, 1.0, 1.0)), voxels, unit="windowed")
    with pytest.raises(RecipeError, match=r"Hounsfield.*'published'"):
        _segment(volume)


@pytest.mark.parametrize("name", ["chest64", "lung4d"])
def test_lungs_agree_with_masks_drawn_by_others(name: str, data_folder: Path) -> None:
    volume = to_canonical(read_volume(data_folder / "lung_masks" / f"{name}_ct.nii.gz"))
    stored = nibabel.load(data_folder / "lung_masks" / f"{name}_lungs.nii.gz")
    to_right_front_head = np.asarray(nibabel.as_closest_canonical(stored).dataobj)
    drawn = to_right_front_head[::-1, ::-1].transpose(2, 1, 0) > 0
    assert _dice(_segment(volume), drawn) > 0.96


def test_a_head_has_no_lungs(data_folder: Path) -> None:
    head = to_canonical(read_volume(data_folder / "dicom_gantry_tilt", allow={"tilt", "gap"}))
    assert not _segment(head).any()

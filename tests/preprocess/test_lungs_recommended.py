"""The `recommended` lungs: the network's answer drawn on the scan, simulated and real patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from confusing_patients import ConfusingPatient, ConfusingSettings, simulate_confusing_patient
from thorax_phantom import Thorax, make_thorax

from chestct.errors import RecipeError
from chestct.preprocess.lungs import NetworkLungs, find_lungs, segment_lungs
from chestct.preprocess.lungs.network import _lungs_input
from chestct.preprocess.lungs.recommended import _draw_lungs
from chestct.readers import read_volume
from chestct.volume import Grid, Volume, to_canonical


def _segment(volume: Volume) -> np.ndarray:
    return segment_lungs(volume, "recommended")


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * np.sum(one & other) / (one.sum() + other.sum()))


def _share(mask: np.ndarray, part: np.ndarray) -> float:
    return float(mask[part].mean())


def _patient(seed: int, **settings: object) -> ConfusingPatient:
    chosen = {"view": "chest", "metal": "none", "build": "usual", "rows": 96} | settings
    return simulate_confusing_patient(
        np.random.default_rng(seed),
        ConfusingSettings(**chosen),  # type: ignore[arg-type]
    )


def _lungs(patient: ConfusingPatient) -> np.ndarray:
    return np.asarray((patient.labels == 1) | (patient.labels == 2))


def _said_of(volume: Volume, lungs: np.ndarray, gas: np.ndarray | None = None) -> NetworkLungs:
    """What a network would say that knows how much of each of its voxels is lung."""
    values, grid = _lungs_input(volume)
    shares = []
    for mask in (lungs, np.zeros_like(lungs) if gas is None else gas):
        # A trend keeps slices without a lung from being taken for blank ones.
        as_hu = np.where(mask, 500.0, -900.0) + np.linspace(0, 80, mask.shape[2])
        trend = np.linspace(0, 80, grid.shape[2])
        seen, _ = _lungs_input(volume.with_voxels(as_hu.astype(np.float32)))
        shares.append(np.clip(((seen + 1) * 812 - 1024 + 900 - trend) / 1400, 0.001, 0.999))
    lung, other = shares
    background = np.clip(1 - lung - other, 0.001, 1)
    probabilities = np.stack([background, lung, 0 * lung, other]).astype(np.float32)
    return NetworkLungs(probabilities, (values + 1) * 812 - 1024, grid)


@pytest.fixture(scope="module")
def thorax() -> Thorax:
    return make_thorax()


@pytest.fixture(scope="module")
def healthy() -> tuple[ConfusingPatient, np.ndarray]:
    patient = _patient(3, pattern="normal", airway="closed", arms="up", slice_spacing_mm=4.0)
    return patient, _segment(patient.volume)


@pytest.mark.parametrize(
    "spacing_mm", [(4.0, 2.5, 2.5), (1.0, 3.0, 3.0), (8.0, 1.5, 1.5), (5.0, 3.0, 1.0)]
)
def test_the_surface_is_drawn_on_the_scans_own_voxels(spacing_mm) -> None:
    thorax = make_thorax(spacing_mm=spacing_mm)
    mask = _draw_lungs(thorax.volume, _said_of(thorax.volume, thorax.lungs))
    assert mask.shape == thorax.volume.grid.shape
    assert _dice(mask, thorax.lungs) > 0.985


@pytest.mark.parametrize("disease", ["bilateral", "lobar", "nodules"])
def test_dense_lung_is_drawn_where_the_network_says_lung(disease: str) -> None:
    thorax = make_thorax(disease=disease)
    mask = _draw_lungs(thorax.volume, _said_of(thorax.volume, thorax.lungs))
    assert thorax.disease.sum() > 300
    assert _share(mask, thorax.disease) > 0.9


def test_airways_are_not_drawn_though_they_are_as_thin_as_lung(thorax: Thorax) -> None:
    said = _said_of(thorax.volume, thorax.lungs, thorax.airways)
    assert _share(_draw_lungs(thorax.volume, said), thorax.airways) < 0.02


def test_a_small_piece_apart_is_not_drawn_and_a_mass_within_is(thorax: Thorax) -> None:
    said = _said_of(thorax.volume, thorax.lungs)
    with_crumb = said.probabilities.copy()
    with_crumb[:, :2, :3, :3] = np.array([0.01, 0.99, 0.0, 0.0])[:, None, None, None]
    drawn = _draw_lungs(thorax.volume, replace(said, probabilities=with_crumb))
    assert np.array_equal(drawn, _draw_lungs(thorax.volume, said))
    ball = np.zeros_like(thorax.lungs)
    depth, height, width = (int(n) for n in np.argwhere(thorax.lungs).mean(axis=0))
    left = int(np.flatnonzero(thorax.lungs[depth, height])[-1]) - 12
    ball[depth - 3 : depth + 3, height - 5 : height + 5, left - 5 : left + 5] = True
    ball &= thorax.lungs
    voxels = np.where(ball, 40, thorax.volume.voxels)
    volume = thorax.volume.with_voxels(voxels)
    mask = _draw_lungs(volume, _said_of(volume, thorax.lungs & ~ball))
    assert width > 0
    assert _share(mask, ball) > 0.9


@pytest.mark.parametrize("padding_hu", [-3024, -2000, -1024])
def test_what_no_slice_has_data_for_is_not_drawn(thorax: Thorax, padding_hu: int) -> None:
    shape = thorax.volume.grid.shape
    y, x = np.ogrid[: shape[1], : shape[2]]
    outside = (y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2 > (118 / 2.5) ** 2
    voxels = thorax.volume.voxels.copy()
    voxels[:, outside] = padding_hu
    volume = thorax.volume.with_voxels(voxels)
    mask = _draw_lungs(volume, _said_of(volume, thorax.lungs))
    assert thorax.lungs[:, outside].any()
    assert not mask[:, outside].any()


def test_a_healthy_simulated_patient_has_both_lungs(healthy) -> None:
    patient, mask = healthy
    assert _dice(mask, _lungs(patient)) > 0.95
    assert mask.flags.c_contiguous


def test_the_same_scan_gives_the_same_lungs_and_is_not_changed(healthy) -> None:
    patient, mask = healthy
    before = patient.volume.voxels.copy()
    assert np.array_equal(_segment(patient.volume), mask)
    assert np.array_equal(patient.volume.voxels, before)


def test_float_voxels_give_the_same_lungs(healthy) -> None:
    patient, mask = healthy
    voxels = patient.volume.voxels.astype(np.float32)
    assert _dice(_segment(patient.volume.with_voxels(voxels)), mask) > 0.999


def test_both_engines_draw_the_same_lungs(healthy) -> None:
    pytest.importorskip("openvino")
    patient, _ = healthy
    one, other = (
        find_lungs(patient.volume, "recommended", engine=name).mask
        for name in ("torch", "openvino")
    )
    assert _dice(one, other) > 0.9999


@pytest.mark.parametrize("where", [-1, 0, 30])
@pytest.mark.parametrize("blank_hu", [-2000, -1024, 0])
def test_a_blank_slice_changes_less_than_one_percent_elsewhere(
    healthy, where: int, blank_hu: int
) -> None:
    patient, mask = healthy
    if where == 30:
        voxels = patient.volume.voxels.copy()
        voxels[where] = blank_hu
        others = np.arange(len(voxels)) != where
        found = _segment(patient.volume.with_voxels(voxels))[others]
        expected = mask[others]
    else:
        ends = (1, 0) if where == 0 else (0, 1)
        grid = patient.volume.grid
        voxels = np.pad(patient.volume.voxels, (ends, (0, 0), (0, 0)), constant_values=blank_hu)
        grid = grid.moved((-float(ends[0]), 0.0, 0.0), (1.0, 1.0, 1.0), voxels.shape)
        found = _segment(patient.volume.with_voxels(voxels, grid))
        found = found[1:] if where == 0 else found[:-1]
        expected = mask
    assert np.count_nonzero(found != expected) < 0.01 * np.count_nonzero(expected)


def test_an_airway_open_to_the_room_changes_less_than_one_percent(healthy) -> None:
    patient, mask = healthy
    top = int(np.flatnonzero((patient.labels == 3).any(axis=(1, 2)))[-1]) - 2
    rows, columns = np.nonzero(patient.labels[top] == 3)
    voxels = patient.volume.voxels.copy()
    middle = int(columns.mean())
    voxels[top - 1 : top + 1, : int(rows.mean()) + 1, middle - 1 : middle + 2] = -1000
    found = _segment(patient.volume.with_voxels(voxels))
    changed = np.count_nonzero(found != mask)
    assert changed < 0.01 * np.count_nonzero(mask)


def _share_of_airless_lobe(seed: int) -> float:
    patient = _patient(seed, pattern="airless lobe")
    assert patient.lesions.sum() > 300
    return _share(_segment(patient.volume), patient.lesions)


def test_an_airless_lobe_is_kept() -> None:
    assert min(_share_of_airless_lobe(seed) for seed in (1, 2)) > 0.9


def test_a_wholly_airless_lung_is_found() -> None:
    patient = _patient(2, pattern="airless lung")
    mask = _segment(patient.volume)
    sides = [_share(mask, patient.labels == side) for side in (1, 2)]
    assert min(sides) > 0.5
    assert max(sides) > 0.9


@pytest.mark.parametrize("view", ["head", "abdomen"])
def test_a_scan_without_lungs_has_none(view: str) -> None:
    for seed in (4, 5):
        patient = _patient(seed, view=view, pattern="normal")
        assert not _lungs(patient).any()
        assert not _segment(patient.volume).any()


def test_thirty_slices_of_eight_millimetres_will_do() -> None:
    patient = _patient(6, pattern="normal", slice_spacing_mm=8.0)
    volume = patient.volume
    assert volume.grid.spacing_mm[0] == 8.0
    assert _dice(_segment(volume), _lungs(patient)) > 0.93


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 8), (1, 64, 64), (3, 5, 200), (90, 4, 4)])
@pytest.mark.parametrize("value", [-3024, -1024, -700, 0, 3000])
def test_a_constant_volume_has_no_lungs(shape: tuple[int, int, int], value: int) -> None:
    voxels = np.full(shape, value, dtype=np.int16)
    assert not _segment(Volume(Grid(shape, (2.0, 0.7, 0.7)), voxels)).any()


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("spacing_mm", [(0.1, 0.1, 0.1), (2.0, 0.7, 0.7), (30.0, 5.0, 5.0)])
def test_noise_has_no_lungs(spacing_mm: tuple[float, float, float], seed: int) -> None:
    voxels = np.random.default_rng(seed).integers(-1024, 1000, (12, 30, 40)).astype(np.int16)
    assert not _segment(Volume(Grid(voxels.shape, spacing_mm), voxels)).any()


def test_a_windowed_volume_is_refused_with_a_way_out() -> None:
    voxels = np.zeros((2, 4, 4), dtype=np.uint8)
    volume = Volume(Grid(voxels.shape, (1.0, 1.0, 1.0)), voxels, unit="windowed")
    with pytest.raises(RecipeError, match=r"Hounsfield.*'published'"):
        _segment(volume)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("lung_masks", "chest64"),
        ("lung_masks", "lung4d"),
        ("real_scans", "id001"),
        ("real_scans", "DCM1"),
    ],
)
def test_lungs_agree_with_masks_drawn_by_others(folder: str, name: str, data_folder: Path) -> None:
    path = data_folder / folder / f"{name}_ct.nii.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    volume = to_canonical(read_volume(path))
    stored = nibabel.load(data_folder / folder / f"{name}_lungs.nii.gz")
    to_right_front_head = np.asarray(nibabel.as_closest_canonical(stored).dataobj)
    drawn = to_right_front_head[::-1, ::-1].transpose(2, 1, 0) > 0
    assert _dice(_segment(volume), drawn) > 0.97


def test_a_real_head_has_no_lungs(data_folder: Path) -> None:
    head = to_canonical(read_volume(data_folder / "dicom_gantry_tilt", allow={"tilt", "gap"}))
    assert not _segment(head).any()

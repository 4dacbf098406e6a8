"""What a simulated patient promises, measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from chestct.errors import GridError, UnknownNameError
from chestct.labels import THREE_CLASSES
from chestct.simulate import SimulatedPatient, ThoraxSettings, simulate_patient
from chestct.simulate.anatomy import build_chest_wall, build_lungs, draw_anatomy
from chestct.simulate.thorax import (
    KERNELS,
    Model,
    Pose,
    Scanner,
    _build_mediastinum,
    _draw_blood,
    _place_scan,
    build_model,
    compose,
    make_frame,
)
from chestct.volume import CANONICAL_DIRECTION, Grid

TINY = ThoraxSettings(rows=64, slice_spacing_mm=6.0)
SILENT = Scanner(KERNELS["B30f"], 0.0, None, 0, False, False)


@pytest.fixture(scope="module")
def model() -> Model:
    """A patient who lies straight, so that scan and model share one grid."""
    rng = np.random.default_rng(4)
    anatomy = replace(draw_anatomy(rng), turn_degrees=0.0, kyphosis=0.0, scoliosis=0.0)
    return build_model(anatomy, rng)


@pytest.fixture(scope="module")
def scanned(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """That patient without noise on the model's own grid, and the lungs."""
    frame = model.frame
    z, y, x = frame.low_mm
    grid = Grid(shape=frame.shape, spacing_mm=(frame.step_mm,) * 3, origin_mm=(x, y, z))
    return compose(model, grid, Pose(model.anatomy, (0.0, 0.0)), SILENT, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("layer", "depth_mm", "low_hu", "high_hu"),
    [
        ("canal", 5.0, 10, 60),
        ("bones", 3.0, 80, 900),
        ("airways", 4.5, -1000, -900),
        ("lungs", 12.0, -930, -750),
    ],
)
def test_each_tissue_has_its_attenuation(model, scanned, layer, depth_mm, low_hu, high_hu) -> None:
    inside = getattr(model.layers, layer) < -depth_mm
    inside[[0, -1]] = False
    assert low_hu < np.median(scanned[0][inside]) < high_hu


def test_fat_lies_under_the_skin_and_muscle_under_the_fat(model, scanned) -> None:
    layers = model.layers
    fat = (layers.body < -3.5) & (layers.muscle > 2.5)
    muscle = (layers.muscle < -4) & (layers.cage > 11) & (layers.bones > 6) & (layers.lungs > 9)
    assert -125 < np.median(scanned[0][fat]) < -85
    assert 30 < np.median(scanned[0][muscle]) < 80


def test_the_liver_lies_right_and_the_heart_left(model, scanned) -> None:
    layers, frame = model.layers, model.frame
    organs = (layers.organs < -12) & (layers.bones > 5) & (layers.gas > 5)
    below = organs & (frame.z < -25) & (frame.y < 20)
    chest = organs & (frame.z > 10) & (frame.z < 60) & (frame.y < 20)
    assert (np.broadcast_to(frame.x, below.shape)[below] < 0).mean() > 0.6
    assert np.broadcast_to(frame.x, chest.shape)[chest].mean() > 4
    for organ in (below, chest):
        assert 10 < np.median(scanned[0][organ]) < 300


def test_a_slice_cuts_several_ribs_on_both_sides(model) -> None:
    level = int((0.35 * model.anatomy.lung_height - model.frame.low_mm[0]) / model.frame.step_mm)
    parts, count = ndimage.label(model.layers.bones[level] < 0)
    centres = ndimage.center_of_mass(parts > 0, parts, range(1, count + 1))
    middle = model.frame.shape[2] / 2
    assert sum(centre[1] < middle - 5 for centre in centres) >= 3
    assert sum(centre[1] > middle + 5 for centre in centres) >= 3


def test_the_right_diaphragm_is_higher_than_the_left(model) -> None:
    lungs, frame = model.layers.lungs < 0, model.frame
    half = 0.5 * model.anatomy.half_width

    def lowest(x_mm: float) -> float:
        column = lungs[:, frame.shape[1] // 2 - 5, int((x_mm - frame.low_mm[2]) / frame.step_mm)]
        return float(frame.z[np.argmax(column), 0, 0])

    assert lowest(-half) > lowest(half)


def test_lung_is_denser_behind_than_in_front(model, scanned) -> None:
    voxels, lungs = scanned
    deep = model.layers.lungs < -10
    front = deep & (model.frame.y < -0.4 * model.anatomy.half_depth)
    behind = deep & (model.frame.y > 0.4 * model.anatomy.half_depth)
    assert lungs[deep & (model.layers.airways > 3)].all()
    assert np.median(voxels[behind]) > np.median(voxels[front]) + 5


def test_vessels_fill_as_much_of_the_lung_as_in_real_scans(healthy: SimulatedPatient) -> None:
    """Two real scans: 2.4 to 3.7 % of the lung away from its rim is over -500 HU."""
    inner = ndimage.binary_erosion(healthy.lungs, np.ones((1, 5, 5)))
    dense = (healthy.volume.voxels[inner] > -500).mean()
    assert 0.008 < dense < 0.06


def test_trachea_is_air_and_not_lung(model, scanned) -> None:
    hollow = model.layers.airways < -4
    assert hollow.any()
    assert not scanned[1][hollow].any()


@pytest.mark.parametrize("seed", range(5))
def test_both_lungs_together_hold_two_to_eight_litres(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng)
    frame = make_frame(anatomy)
    cage = build_chest_wall(frame, anatomy, rng).cage
    mediastinum, _ = _build_mediastinum(frame, anatomy, _draw_blood(rng), rng)
    lungs, _ = build_lungs(frame, anatomy, cage, mediastinum, rng)
    assert 2.0 < (lungs < 0).sum() * frame.step_mm**3 / 1e6 < 8.0


def test_voxels_are_whole_hounsfield_units_within_a_scanners_range(healthy) -> None:
    voxels = healthy.volume.voxels
    assert voxels.dtype == np.int16
    assert healthy.volume.unit == "HU"
    assert healthy.volume.source.format == "simulated"
    assert voxels.min() >= -1024
    assert voxels.max() <= 3071


FIXED = ThoraxSettings(
    rows=64, slice_spacing_mm=8.0, field_of_view_mm=320.0, kernel="B70f", noise_hu=20.0
)


@pytest.fixture(scope="module")
def undrawn() -> SimulatedPatient:
    """A patient of no given pattern, whose scan is as fixed as can be."""
    return simulate_patient(np.random.default_rng(1), FIXED)


def test_same_seed_gives_the_same_patient_and_another_another(undrawn, healthy) -> None:
    again = simulate_patient(np.random.default_rng(1), FIXED)
    assert (again.label, again.lesions.any()) == ("COVID-19", True)
    assert np.array_equal(undrawn.volume.voxels, again.volume.voxels)
    assert np.array_equal(undrawn.lesions, again.lesions)
    assert np.array_equal(undrawn.lungs, again.lungs)
    assert undrawn.volume.grid == again.volume.grid
    assert undrawn.anatomy != healthy.anatomy


def test_without_a_pattern_the_label_is_drawn(undrawn: SimulatedPatient) -> None:
    assert undrawn.label == str(np.random.default_rng(1).choice(THREE_CLASSES))


def test_fixed_settings_are_kept(undrawn: SimulatedPatient) -> None:
    assert undrawn.volume.grid.spacing_mm == (8.0, 5.0, 5.0)
    assert undrawn.volume.grid.direction == CANONICAL_DIRECTION
    assert undrawn.volume.source.facts["kernel"] == "B70f"


def test_slice_spacing_is_drawn_from_one_to_five_millimetres(model) -> None:
    rng = np.random.default_rng(0)
    spacing = {_place_scan(model, ThoraxSettings(), rng)[0].spacing_mm[0] for _ in range(60)}
    assert min(spacing) == 1.0
    assert max(spacing) == 5.0
    assert len(spacing) > 4


def test_the_field_of_view_cuts_some_bodies_and_clears_others(model) -> None:
    rng = np.random.default_rng(0)
    width = [_place_scan(model, ThoraxSettings(), rng)[0].extent_mm[2] for _ in range(60)]
    body = 2 * model.half_width_mm
    assert min(width) < body < max(width)


def test_unknown_pattern_and_kernel_are_refused_with_what_there_is_before_the_body_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.simulate.thorax.build_model", lambda *_: pytest.fail("built"))
    with pytest.raises(UnknownNameError, match=r"pattern 'covid'.*COVID-19"):
        simulate_patient(np.random.default_rng(0), TINY, pattern="covid")
    with pytest.raises(UnknownNameError, match="B30f"):
        simulate_patient(np.random.default_rng(0), replace(TINY, kernel="B31"), pattern="CAP")


@pytest.mark.parametrize(
    ("field", "value"), [("rows", 8), ("slice_spacing_mm", 0.1), ("field_of_view_mm", 20.0)]
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(GridError, match=str(value)):
        replace(TINY, **{field: value})

"""Disease in the right places, with the right density, in any scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from chestct.errors import GridError, UnknownNameError
from chestct.labels import THREE_CLASSES
from chestct.simulate import SimulatedPatient, insert_lesions
from chestct.simulate.disease import LungMap, _along_the_back, map_lungs
from chestct.simulate.lesions import (
    _FINDINGS,
    PATTERNS,
    VARIED,
    _Diseased,
    _lose_tissue,
    add_disease,
)
from chestct.volume import Grid, Volume

SEEDS = range(4)
VARIED_SEEDS = range(4)


@pytest.fixture(scope="module")
def places(healthy: SimulatedPatient) -> LungMap:
    return map_lungs(healthy.lungs, healthy.volume.grid.spacing_mm)


def _left_share(patient: SimulatedPatient, lesions: np.ndarray) -> float:
    """Share of the lesions in the left lung."""
    columns = np.flatnonzero(patient.lungs.any(axis=(0, 1)))
    middle = int(columns.mean())
    return float(lesions[:, :, middle:].sum() / max(lesions.sum(), 1))


@pytest.fixture(scope="module")
def diseased(healthy: SimulatedPatient) -> dict[tuple[str, int], tuple[Volume, np.ndarray]]:
    return {
        (label, seed): insert_lesions(
            healthy.volume, healthy.lungs, label, np.random.default_rng(seed)
        )
        for label in THREE_CLASSES
        for seed in SEEDS
    }


def test_there_is_a_pattern_for_every_class() -> None:
    assert set(PATTERNS) == set(VARIED) == set(THREE_CLASSES)


@pytest.fixture(scope="module")
def varied(healthy: SimulatedPatient) -> dict[tuple[str, int], _Diseased]:
    return {
        (label, seed): add_disease(
            healthy.volume, healthy.lungs, label, np.random.default_rng(seed), varied=True
        )
        for label in THREE_CLASSES
        for seed in VARIED_SEEDS
    }


def test_varied_disease_lies_in_the_lungs_and_nothing_changes_far_from_them(
    healthy, varied
) -> None:
    near = ndimage.binary_dilation(healthy.lungs, np.ones((1, 3, 3)))
    for found in varied.values():
        assert not (found.lesions & ~healthy.lungs).any()
        assert np.array_equal(found.volume.voxels[~near], healthy.volume.voxels[~near])


@pytest.mark.parametrize("label", ["CAP", "COVID-19"])
def test_the_same_state_gives_each_varied_pattern_the_same_background(
    healthy, varied, label
) -> None:
    for seed in VARIED_SEEDS:
        ill, background = varied[label, seed], varied["normal", seed]
        # Disease only ever fills: nowhere is the ill lung darker by more than its noise.
        darker = background.volume.voxels.astype(int) - ill.volume.voxels
        assert (darker > 100).mean() < 0.002
        more = (ill.lesions | ill.effusion) & ~(background.lesions | background.effusion)
        assert more.sum() > 0.004 * healthy.lungs.sum()


def test_varied_backgrounds_hold_less_or_more_air_than_the_scan(healthy, varied) -> None:
    before = np.median(healthy.volume.voxels[healthy.lungs])
    shifts = [
        np.median(varied["normal", seed].volume.voxels[healthy.lungs]) - before
        for seed in VARIED_SEEDS
    ]
    assert max(shifts) > 30
    assert min(shifts) < 5


def test_emphysema_takes_tissue_and_leaves_vessels(healthy) -> None:
    plane = healthy.volume.voxels[healthy.volume.grid.shape[0] // 2]
    gone = np.full(plane.shape, 0.8, dtype=np.float32)
    thinned = _lose_tissue(plane, gone, healthy.volume.grid.spacing_mm[1])
    lung = healthy.lungs[healthy.volume.grid.shape[0] // 2]
    assert np.median(thinned[lung]) < np.median(plane[lung]) - 40
    assert np.array_equal(thinned[plane > 0], plane[plane > 0].astype(np.float32))


def test_covid_along_the_back_is_confluent_mostly_in_both_lungs_and_dense_at_the_wall(
    places,
) -> None:
    shares, is_in_both = [], []
    for seed in range(6):
        solid = _along_the_back(places, np.random.default_rng(seed)).dense > 0.5
        solid &= places.inside
        shares.append(solid[places.inside].mean())
        assert np.median(places.behind_mm()[solid]) < 60
        is_in_both.append(all(solid[places.side == side].any() for side in (-1, 1)))
    assert max(shares) > 0.12
    assert np.mean(is_in_both) > 0.5


def test_varied_pneumonia_has_fluid_in_some_and_round_foci_and_buds_in_others(places) -> None:
    drawn = [VARIED["CAP"](places, np.random.default_rng(seed)) for seed in range(16)]
    fluid = [(one.effusion[places.inside] > 0).any() for one in drawn]
    assert 0.2 < np.mean(fluid) < 0.9
    assert 0.2 < np.mean([len(one.buds) > 0 for one in drawn]) < 0.95
    assert all((one.dense[places.inside] > 0.4).any() for one in drawn)


def test_each_finding_that_is_no_pneumonia_is_drawn_where_it_belongs(places) -> None:
    drawn = {
        finding.__name__: finding(places, np.random.default_rng(3)) for _, finding in _FINDINGS
    }
    assert drawn["_emphysema"].lost is not None
    assert places.height[drawn["_caps"].dense * places.inside > 0.2].min() > 0.8
    assert len(drawn["_nodules"].buds) >= 1
    mass = drawn["_mass"].dense * places.inside > 0.5
    assert ndimage.label(mass)[1] >= 1
    assert mass.mean() < 0.1
    assert (drawn["_fluid"].effusion * places.inside > 0).any()
    assert (drawn["_bands"].dense[places.inside] > 0.2).any()
    assert drawn["_fibrosis"].net.max() > 0.5


@pytest.mark.parametrize("label", THREE_CLASSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_lesions_lie_in_the_lungs_and_nothing_changes_far_from_them(
    healthy, diseased, label, seed
) -> None:
    volume, lesions = diseased[label, seed]
    assert volume.grid == healthy.volume.grid
    assert volume.voxels.dtype == healthy.volume.voxels.dtype
    assert not (lesions & ~healthy.lungs).any()
    near = ndimage.binary_dilation(healthy.lungs, np.ones((1, 3, 3)))
    assert np.array_equal(volume.voxels[~near], healthy.volume.voxels[~near])


@pytest.mark.parametrize("label", ["CAP", "COVID-19"])
@pytest.mark.parametrize("seed", SEEDS)
def test_disease_makes_lung_denser(healthy, diseased, label, seed) -> None:
    volume, lesions = diseased[label, seed]
    more = volume.voxels[lesions].astype(float) - healthy.volume.voxels[lesions]
    assert lesions.sum() > 0.003 * healthy.lungs.sum()
    assert 60 < more.mean() < 900


@pytest.mark.parametrize("seed", SEEDS)
def test_covid_is_in_both_lungs(healthy, diseased, seed) -> None:
    assert 0.04 < _left_share(healthy, diseased["COVID-19", seed][1]) < 0.96


def test_covid_prefers_the_pleura_the_back_and_the_bases(places) -> None:
    depth, back, height = [], [], []
    for seed in range(8):
        disease = PATTERNS["COVID-19"](places, np.random.default_rng(seed))
        ill = (disease.haze > 0.1) & places.inside
        depth.append(np.median(places.depth_mm[ill]))
        back.append(places.back[ill].mean())
        height.append(places.height[ill].mean())
    assert np.mean(depth) < 0.9 * np.median(places.depth_mm[places.inside])
    assert np.mean(back) > places.back[places.inside].mean() + 0.05
    assert np.mean(height) < places.height[places.inside].mean() - 0.05


def test_covid_is_mild_in_some_and_wide_in_others(places) -> None:
    rng = np.random.default_rng(0)
    shares = [
        float((PATTERNS["COVID-19"](places, rng).haze > 0.1)[places.inside].mean())
        for _ in range(16)
    ]
    assert min(shares) < 0.07
    assert max(shares) > 0.2


def test_pneumonia_is_mostly_on_one_side(places) -> None:
    one_sided = []
    for seed in range(12):
        disease = PATTERNS["CAP"](places, np.random.default_rng(seed))
        solid = (disease.dense > 0.3) & places.inside
        left = (places.side[solid] > 0).mean()
        one_sided.append(min(left, 1 - left) < 0.02)
    assert sum(one_sided) >= 8


def test_pneumonia_consolidates(diseased) -> None:
    densest = [
        np.percentile(volume.voxels[lesions], 97)
        for (label, _), (volume, lesions) in diseased.items()
        if label == "CAP"
    ]
    assert min(densest) > -250
    assert max(densest) > -50


def test_a_normal_patient_has_next_to_no_lesions(healthy, diseased) -> None:
    for seed in SEEDS:
        assert diseased["normal", seed][1].sum() < 0.02 * healthy.lungs.sum()


def test_vessels_stay_visible_in_ground_glass(healthy, diseased) -> None:
    before = healthy.volume.voxels
    vessels, lung = [], []
    for seed in SEEDS:
        volume, lesions = diseased["COVID-19", seed]
        change = volume.voxels.astype(float) - before
        vessels.append(change[lesions & (before > -150) & (before < 150)])
        lung.append(change[lesions & (before < -750)])
    assert sum(map(len, vessels)) > 50
    assert abs(np.median(np.concatenate(vessels))) < 0.3 * np.median(np.concatenate(lung))


def test_noise_in_a_lesion_is_like_the_noise_around_it(healthy, diseased) -> None:
    volume, lesions = diseased["CAP", 0]

    def noise(voxels: np.ndarray) -> np.ndarray:
        # Second differences along the rows see noise and little else.
        return np.diff(voxels.astype(float), n=2, axis=1)

    inner = ndimage.binary_erosion(lesions, np.ones((1, 3, 3)))[:, 1:-1]
    within = np.median(np.abs(noise(volume.voxels)[inner]))
    before = np.median(np.abs(noise(healthy.volume.voxels)[inner]))
    assert 0.5 * before < within < 2.5 * before


@pytest.mark.parametrize("label", THREE_CLASSES)
def test_same_generator_state_gives_the_same_disease(healthy, diseased, label) -> None:
    again = insert_lesions(healthy.volume, healthy.lungs, label, np.random.default_rng(3))
    assert np.array_equal(again[0].voxels, diseased[label, 3][0].voxels)
    assert np.array_equal(again[1], diseased[label, 3][1])


def test_the_scan_and_the_mask_are_not_changed(healthy) -> None:
    voxels, lungs = healthy.volume.voxels.copy(), healthy.lungs.copy()
    insert_lesions(healthy.volume, healthy.lungs, "CAP", np.random.default_rng(0))
    assert np.array_equal(voxels, healthy.volume.voxels)
    assert np.array_equal(lungs, healthy.lungs)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("step", [(1, -1, -1), (-1, 1, 1)])
def test_any_orientation_of_the_same_scan_gets_the_same_disease(
    healthy, diseased, order, step
) -> None:
    def turn(voxels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(
            voxels[tuple(slice(None, None, s) for s in step)].transpose(order)
        )

    grid = healthy.volume.grid
    start = tuple(float(n - 1) if s < 0 else 0.0 for n, s in zip(grid.shape, step, strict=True))
    flipped = grid.moved(start, tuple(float(s) for s in step), grid.shape)
    turned = replace(
        flipped,
        shape=tuple(flipped.shape[a] for a in order),
        spacing_mm=tuple(flipped.spacing_mm[a] for a in order),
        direction=tuple(flipped.direction[a] for a in order),
    )
    scan = Volume(turned, turn(healthy.volume.voxels))
    volume, lesions = insert_lesions(
        scan, turn(healthy.lungs), "COVID-19", np.random.default_rng(1)
    )
    wanted, where = diseased["COVID-19", 1]
    assert volume.grid == turned
    assert np.array_equal(volume.voxels, turn(wanted.voxels))
    assert np.array_equal(lesions, turn(where))


@pytest.mark.parametrize("spacing", [(5.0, 2.0, 2.0), (0.6, 3.0, 3.0), (4.0, 0.9, 0.9)])
@pytest.mark.parametrize("label", ["CAP", "COVID-19"])
def test_any_spacing_works(healthy, label, spacing) -> None:
    grid = healthy.volume.grid
    lines = [
        np.arange(0, n - 1, mm / s)
        for n, s, mm in zip(grid.shape, grid.spacing_mm, spacing, strict=True)
    ]
    index = np.ix_(*[np.rint(line).astype(int) for line in lines])
    shape = tuple(len(line) for line in lines)
    step = tuple(mm / s for mm, s in zip(spacing, grid.spacing_mm, strict=True))
    scan = Volume(grid.moved((0.0, 0.0, 0.0), step, shape), healthy.volume.voxels[index])
    volume, lesions = insert_lesions(scan, healthy.lungs[index], label, np.random.default_rng(4))
    assert lesions.any()
    assert (volume.voxels[lesions] > scan.voxels[lesions]).mean() > 0.75


def test_a_floating_scan_stays_floating(healthy) -> None:
    scan = healthy.volume.with_voxels(healthy.volume.voxels.astype(np.float32))
    volume, _ = insert_lesions(scan, healthy.lungs, "COVID-19", np.random.default_rng(0))
    assert volume.voxels.dtype == np.float32


def test_an_effusion_is_fluid_outside_the_lesions_and_low_behind(healthy) -> None:
    for seed in range(40):
        found = add_disease(healthy.volume, healthy.lungs, "CAP", np.random.default_rng(seed))
        if found.effusion.sum() > 300:
            break
    fluid = found.effusion
    assert fluid.sum() > 300
    assert not (fluid & found.lesions).any()
    inner = ndimage.binary_erosion(fluid, np.ones((1, 3, 1)))
    assert -40 < np.median(found.volume.voxels[inner]) < 60
    assert np.argwhere(fluid)[:, 0].mean() < np.argwhere(healthy.lungs)[:, 0].mean()
    assert np.argwhere(fluid)[:, 1].mean() > np.argwhere(healthy.lungs)[:, 1].mean()


def test_disease_is_drawn_apart_from_the_body(patients) -> None:
    sizes = {patient.volume.grid for patient in patients.values()}
    assert len(sizes) == 1


def test_fluid_is_no_part_of_the_true_lungs(patients) -> None:
    assert (patients["CAP"].lungs <= patients["normal"].lungs).all()


def test_disease_can_be_put_into_a_real_scan(data_folder: Path) -> None:
    image = sitk.ReadImage(str(data_folder / "lung_masks" / "chest64_ct.nii.gz"))
    label = sitk.ReadImage(str(data_folder / "lung_masks" / "chest64_lungs.nii.gz"))
    lungs = sitk.GetArrayFromImage(label) > 0
    turn = np.asarray(image.GetDirection()).reshape(3, 3).T
    spacing = tuple(float(s) for s in image.GetSpacing()[::-1])
    grid = Grid(
        lungs.shape,
        spacing,
        tuple(float(v) for v in image.GetOrigin()),
        tuple(tuple(float(v) for v in turn[axis]) for axis in (2, 1, 0)),
    )
    scan = Volume(grid, sitk.GetArrayFromImage(image))
    volume, lesions = insert_lesions(scan, lungs, "COVID-19", np.random.default_rng(2))
    assert 0.01 < lesions.sum() / lungs.sum() < 0.6
    assert not (lesions & ~lungs).any()
    assert volume.voxels[lesions].mean() > scan.voxels[lesions].mean() + 80


def test_what_does_not_fit_is_refused(healthy) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UnknownNameError, match="Did you mean 'COVID-19'"):
        insert_lesions(healthy.volume, healthy.lungs, "COVID19", rng)
    with pytest.raises(GridError, match="does not fit"):
        insert_lesions(healthy.volume, healthy.lungs[1:], "CAP", rng)
    with pytest.raises(GridError, match="all but empty"):
        insert_lesions(healthy.volume, np.zeros_like(healthy.lungs), "CAP", rng)
    with pytest.raises(GridError, match="Hounsfield"):
        insert_lesions(replace(healthy.volume, unit="windowed"), healthy.lungs, "CAP", rng)


def test_one_lung_alone_is_enough(healthy) -> None:
    lungs = healthy.lungs.copy()
    columns = np.flatnonzero(lungs.any(axis=(0, 1)))
    lungs[:, :, : int(columns.mean()) + 4] = False
    for label in THREE_CLASSES:
        _, lesions = insert_lesions(healthy.volume, lungs, label, np.random.default_rng(0))
        assert not (lesions & ~lungs).any()

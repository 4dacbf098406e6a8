"""What a confusing patient promises: named options do what they say, labels fit the scan."""

from __future__ import annotations

import confusing_patients
import numpy as np
import pytest
from confusing_patients import (
    VIEWS,
    ConfusingPatient,
    ConfusingSettings,
    simulate_confusing_patient,
)
from scipy import ndimage

from chestct.errors import ChestCTError

RIGHT, LEFT, GAS = 1, 2, 3


def make(seed: int = 0, **options: object) -> ConfusingPatient:
    """A small patient without metal, padding or blank slices unless asked for."""
    plain = {"metal": "none", "padding": "none", "blank_slices": 0, "build": "usual"}
    fixed = {"rows": 48, "slice_spacing_mm": 9.0, "field_of_view_mm": 480.0, **plain, **options}
    return simulate_confusing_patient(np.random.default_rng(seed), ConfusingSettings(**fixed))


@pytest.fixture(scope="module")
def well() -> ConfusingPatient:
    """The chest of which those with disease of the same seed differ by that alone."""
    return make(8, view="chest", raised="none", pattern="normal")


def litres(patient: ConfusingPatient, *labels: int) -> float:
    """Volume of labels."""
    voxel = float(np.prod(patient.volume.grid.spacing_mm)) / 1e6
    return float(np.isin(patient.labels, labels).sum()) * voxel


@pytest.fixture(scope="module")
def whole_body() -> ConfusingPatient:
    return make(
        3, view="whole body", pattern="normal", stomach="food", colon="gas", airway="open",
        arms="down", has_contrast=True, is_prone=False, raised="none",
    )  # fmt: skip


def test_the_same_seed_gives_the_same_confusing_patient() -> None:
    first, again = (make(5, view="chest", pattern="effusion") for _ in range(2))
    assert np.array_equal(first.volume.voxels, again.volume.voxels)
    assert np.array_equal(first.labels, again.labels)
    assert first.settings == again.settings


def test_nothing_is_left_undrawn_and_what_is_fixed_stays(whole_body: ConfusingPatient) -> None:
    assert None not in vars(whole_body.settings).values()
    assert whole_body.settings.stomach == "food"
    assert whole_body.settings.is_prone is False


def test_every_view_ends_higher_than_it_begins() -> None:
    landmarks = {"base": -80.0, "dome": 0.0, "apex": 200.0}
    for low, high in VIEWS.values():
        assert landmarks[low[0]] + low[2] < landmarks[high[0]] + high[1]


@pytest.mark.parametrize("view", ["abdomen", "head", "upper chest and head", "part of the chest"])
def test_every_view_shows_the_lungs_it_should(view: str) -> None:
    patient = make(2, view=view, raised="none")
    if view in ("abdomen", "head"):
        assert litres(patient, RIGHT, LEFT) < 0.02
    else:
        assert litres(patient, RIGHT) > 0.02
        assert litres(patient, LEFT) > 0.02


def test_right_lung_lies_right_of_the_left_lung(whole_body: ConfusingPatient) -> None:
    columns = np.arange(whole_body.labels.shape[2])
    right, left = ((whole_body.labels == side).sum(axis=(0, 1)) for side in (RIGHT, LEFT))
    assert (columns * right).sum() / right.sum() < (columns * left).sum() / left.sum() - 8


def test_all_gas_of_the_body_is_labelled_and_no_room_air(whole_body: ConfusingPatient) -> None:
    voxels, labels = whole_body.volume.voxels, whole_body.labels
    assert np.median(voxels[labels == GAS]) < 60
    # Air without a label is the room, in one piece with the scan's sides, or next to nothing.
    parts, _ = ndimage.label((voxels < -700) & (labels == 0))
    room = np.unique(parts[:, :, [0, -1]])
    enclosed = (parts > 0) & ~np.isin(parts, room)
    assert enclosed.sum() < 0.03 * np.isin(labels, (RIGHT, LEFT, GAS)).sum()
    assert not labels[:, :, [0, -1]].any()
    assert not labels[:, [0, -1]].any()


def test_contents_of_the_stomach_are_labelled_food_and_all() -> None:
    patients = [
        make(4, view="abdomen with lung bases", stomach=kind, colon="empty", pattern="normal")
        for kind in ("food", "empty")
    ]
    assert litres(patients[0], GAS) > litres(patients[1], GAS) + 0.15
    contents = patients[0].volume.voxels[patients[0].labels == GAS]
    assert ((contents > -400) & (contents < 120)).mean() > 0.3


@pytest.mark.parametrize(("is_prone", "sign"), [(False, 1), (True, -1)])
def test_gas_rises_above_fluid_from_the_table(is_prone: bool, sign: int) -> None:
    patient = make(6, view="abdomen with lung bases", stomach="fluid", colon="fluid",
                   is_prone=is_prone, pattern="normal", raised="none")  # fmt: skip
    rows = np.broadcast_to(np.arange(48)[None, :, None], patient.labels.shape)
    inner = patient.labels == GAS
    gas, fluid = (inner & (patient.volume.voxels < -800)), (inner & (patient.volume.voxels > -50))
    assert sign * (rows[fluid].mean() - rows[gas].mean()) > 1.5


@pytest.mark.parametrize(
    ("airway", "view", "is_open"),
    [
        ("open", "head", True),
        ("closed", "head", False),
        ("tracheostomy", "upper chest and head", True),
    ],
)
def test_an_open_airway_reaches_the_room_and_a_closed_one_does_not(
    airway: str, view: str, is_open: bool
) -> None:
    patient = make(7, view=view, airway=airway, arms="none", field_of_view_mm=260.0, rows=64,
                   slice_spacing_mm=5.0)  # fmt: skip
    air = patient.volume.voxels < -500
    room, _ = ndimage.label(air & (patient.labels != GAS))
    beside = ndimage.binary_dilation(np.isin(room, np.unique(room[:, 0])) & (room > 0))
    assert (int((beside & (patient.labels == GAS) & air).sum()) > 3) == is_open


@pytest.mark.parametrize("pattern", ["airless lung", "airless lobe", "posterior consolidation"])
def test_airless_lung_is_lung(well: ConfusingPatient, pattern: str) -> None:
    ill = make(8, view="chest", raised="none", pattern=pattern)
    assert litres(ill, RIGHT, LEFT) > 0.65 * litres(well, RIGHT, LEFT)
    lungs = np.isin(ill.labels, (RIGHT, LEFT))
    assert (ill.volume.voxels[lungs] > -300).sum() > 1.8 * (
        well.volume.voxels[np.isin(well.labels, (RIGHT, LEFT))] > -300
    ).sum()
    assert not ill.lesions[~lungs].any()


def test_fluid_around_the_lung_is_background(well: ConfusingPatient) -> None:
    wet = make(8, view="chest", raised="none", pattern="effusion")
    fluid = np.isin(well.labels, (RIGHT, LEFT)) & (wet.labels == 0)
    assert fluid.sum() > 60
    assert -30 < np.median(wet.volume.voxels[fluid]) < 50


@pytest.mark.parametrize("value", [-3024, 0])
def test_padding_and_blank_slices_hold_their_value_and_no_label(value: int) -> None:
    patient = make(9, view="chest", padding=value, blank_slices=2)
    plain = make(9, view="chest")
    assert (patient.volume.voxels[:, 0, 0] == value).all()
    blank = (patient.volume.voxels == value).all(axis=(1, 2))
    assert blank.any()
    assert not patient.labels[blank].any()
    kept = ~blank
    assert np.array_equal(patient.volume.voxels[kept][:, 24], plain.volume.voxels[kept][:, 24])


def test_a_growth_takes_lung_away_and_is_no_lung(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for odds in (0.0, 1.0):
        monkeypatch.setattr(confusing_patients, "_GROWTH_ODDS", odds)
        taken.append(litres(make(12, view="chest", pattern="normal", raised="none"), RIGHT, LEFT))
    assert taken[1] < taken[0] - 0.01


def test_metal_is_bright_and_throws_streaks_and_no_labels_change() -> None:
    with_metal, without = (make(10, view="chest", metal=m) for m in ("pacemaker", "none"))
    change = with_metal.volume.voxels.astype(int) - without.volume.voxels
    assert with_metal.volume.voxels.max() == 3071
    assert np.abs(change).max(axis=(1, 2)).min() == 0
    touched = np.abs(change).max(axis=(1, 2)) > 0
    assert np.std(change[touched]) > 15
    assert np.array_equal(with_metal.labels, without.labels)


def test_obese_people_are_wider_than_thin_ones() -> None:
    wide = {b: make(11, view="chest", build=b, arms="none") for b in ("thin", "obese")}
    area = {b: (p.volume.voxels > -300).sum() for b, p in wide.items()}
    assert area["obese"] > 1.3 * area["thin"]


@pytest.mark.parametrize("option", [{"rows": 8}, {"stomach": "soup"}, {"view": "tail"}])
def test_impossible_confusion_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(ChestCTError, match=str(next(iter(option.values())))):
        ConfusingSettings(**option)

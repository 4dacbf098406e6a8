"""What the benchmark of heat-maps counts, and where a mask lies in a network's input."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantoms import LUNG_HU, chest
from tiny_classifiers import saved_classifier, tiny_card, tiny_recipe

from chestct.errors import ReadError
from chestct.preprocess.prepare import prepare
from chestct.readers.masks import read_mask
from chestct.studies.model_audit import _mask_at_input
from chestct.volume import Volume
from chestct.writers.nifti import write_nifti

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    localisation = import_module("localisation")

SHAPE = (10, 12, 14)
ONE = (1.0, 1.0, 1.0)


def box(*parts: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[parts] = True
    return mask


LUNGS = box(slice(2, 8), slice(2, 10), slice(2, 12))
LESIONS = box(slice(4, 6), slice(4, 6), slice(4, 6))


def heat_on(mask: np.ndarray, strength: float = 1.0) -> np.ndarray:
    return (strength * mask).astype(np.float32)


def scores(**changes: object) -> object:
    return replace(localisation._measure_map(heat_on(LESIONS), LUNGS, LESIONS, ONE), **changes)


def test_a_map_that_is_the_lesion_scores_fully() -> None:
    found = scores()
    assert (found.in_lungs, found.in_lesions, found.dice) == (1.0, 1.0, 1.0)
    assert found.is_hit
    assert found.lesion_share == pytest.approx(8 / 480)


def test_an_even_map_over_the_lungs_scores_what_chance_would() -> None:
    found = localisation._measure_map(heat_on(LUNGS), LUNGS, LESIONS, ONE)
    assert found.in_lungs == 1.0
    assert found.in_lesions == pytest.approx(found.lesion_share)
    assert not found.is_hit


def test_heat_beside_the_lesion_counts_only_for_the_grown_one() -> None:
    beside = heat_on(box(slice(6, 7), slice(4, 5), slice(4, 5)))
    found = localisation._measure_map(beside, LUNGS, LESIONS, ONE)
    assert (found.in_lesions, found.in_grown_lesions) == (0.0, 1.0)
    assert (found.is_hit, found.is_near_hit) == (False, True)
    assert found.dice == 0.0


def test_shares_are_of_the_heats_sum() -> None:
    heat = heat_on(LESIONS, 1.0) + heat_on(box(slice(0, 1), slice(0, 1), slice(0, 4)), 0.5)
    found = localisation._measure_map(heat, LUNGS, LESIONS, ONE)
    assert found.in_lungs == pytest.approx(8 / 10)
    assert found.in_grown_lungs == pytest.approx(8 / 10)
    assert found.dice == pytest.approx(2 * 8 / (12 + 8))


def test_an_empty_map_has_no_shares_and_is_a_miss() -> None:
    found = localisation._measure_map(np.zeros(SHAPE, dtype=np.float32), LUNGS, LESIONS, ONE)
    assert found.in_lungs is None
    assert not found.is_near_hit
    assert found.dice == 0.0


def test_masks_grow_by_a_cell_along_each_axis() -> None:
    middle = box(slice(5, 6), slice(5, 6), slice(5, 6))
    grown = localisation._grown_by_cells(middle, (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(grown, box(slice(4, 7), slice(3, 8), slice(2, 9)))


def test_without_lesions_nothing_is_measured() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        localisation._measure_map(heat_on(LUNGS), LUNGS, np.zeros(SHAPE, dtype=bool), ONE)


def drawn_patient() -> tuple[Volume, Volume]:
    plain = chest()
    part = np.zeros(plain.grid.shape, dtype=bool)
    part[30:45, 30:45, 55:70] = True
    lesions = part & (plain.voxels == LUNG_HU)
    voxels = np.where(lesions, -500, plain.voxels)
    noise = np.random.default_rng(0).integers(-8, 9, voxels.shape)
    voxels = (voxels + noise).clip(-1024).astype(np.int16)
    return plain.with_voxels(voxels), plain.with_voxels(lesions)


def test_truth_lands_on_the_inputs_voxels_where_it_is_in_the_patient() -> None:
    volume, lesions = drawn_patient()
    recipe = replace(tiny_recipe(shape=(48, 48, 48)), spacing_mm=(8.0, 8.0, 8.0))
    prepared = prepare(volume, recipe)
    found = _mask_at_input(lesions, prepared)
    assert found.any()
    wanted = lesions.grid.to_patient(np.argwhere(lesions.voxels).astype(np.float64)).mean(axis=0)
    centre = prepared.grid.to_patient(np.argwhere(found).astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(centre, wanted, atol=3.0)
    volume_mm3 = lesions.voxels.sum() * 5.0 * 4.5 * 4.5
    assert found.sum() * 8.0**3 == pytest.approx(volume_mm3, rel=0.15)


def test_a_map_of_a_classifier_is_made_for_the_class_and_judged(tmp_path: Path) -> None:
    volume, lesions = drawn_patient()
    recipe = replace(tiny_recipe(shape=(32, 32, 32)), spacing_mm=(12.0, 12.0, 12.0))
    classifier = saved_classifier(tmp_path / "tiny", tiny_card(recipe=asdict(recipe)), seed=3)
    prepared = prepare(volume, recipe)
    truth = _mask_at_input(lesions, prepared)
    found = localisation.measure_answer(
        classifier, prepared, truth, "CAP", localisation.Asked("layercam", "layer1")
    )
    assert found.in_lesions is not None
    assert 0 <= found.in_lesions <= found.in_grown_lesions <= 1
    assert found.in_grown_lungs >= 0.99


def test_the_truth_lies_beside_the_scan_and_is_read_as_a_mask(tmp_path: Path) -> None:
    _, lesions = drawn_patient()
    path = localisation.lesion_file(tmp_path / "patient-001.nii")
    assert path == tmp_path / "truth" / "patient-001-lesions.nii.gz"
    write_nifti(path, lesions.voxels, lesions.grid)
    found = read_mask(path)
    assert found.voxels.dtype == bool
    np.testing.assert_array_equal(found.voxels, lesions.voxels)
    assert found.grid.shape == lesions.grid.shape
    place, wanted = found.grid.index_to_patient, lesions.grid.index_to_patient
    np.testing.assert_allclose(place, wanted, atol=1e-3)


def test_a_mask_that_is_no_nifti_or_has_four_axes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.nii").write_bytes(b"no header at all")
    with pytest.raises(ReadError, match="cannot be read as NIfTI"):
        read_mask(tmp_path / "mask.nii")
    four = nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), dtype=np.uint8), np.eye(4))
    nibabel.save(four, tmp_path / "four.nii")
    with pytest.raises(ReadError, match="has 4 axes"):
        read_mask(tmp_path / "four.nii")


def test_means_have_bootstrap_intervals_and_hits_wilsons() -> None:
    shares = np.linspace(0.2, 0.6, 9)
    some = [scores(in_lungs=float(each), is_hit=index < 3) for index, each in enumerate(shares)]
    found = localisation._summarise_maps(some)
    mean = found["in_lungs"]
    assert mean.value == pytest.approx(0.4)
    spread = 1.96 * shares.std() / np.sqrt(9)
    assert mean.low == pytest.approx(0.4 - spread, abs=0.02)
    assert mean.high == pytest.approx(0.4 + spread, abs=0.02)
    assert (found["is_hit"].hits, found["is_hit"].total) == (3, 9)
    assert found["is_hit"].low == pytest.approx(0.1206, abs=1e-3)


def test_empty_maps_leave_the_means_and_are_counted() -> None:
    empty = scores(in_lungs=None, in_grown_lungs=None, in_lesions=None, in_grown_lesions=None)
    found = localisation._summarise_maps([scores(in_lungs=0.5), scores(in_lungs=0.7), empty])
    assert found["in_lungs"].value == pytest.approx(0.6)
    assert localisation._summarise_maps([empty, empty])["in_lungs"].value is None
    table = localisation.as_table({("none", "gradcam"): [scores(), empty]}, ("gating", "map"))
    assert table.splitlines()[-1].startswith("| none | gradcam | 100.0")
    assert table.splitlines()[-1].endswith("| 1 |")


def test_one_patient_has_no_interval() -> None:
    found = localisation._summarise_maps([scores(in_lungs=0.5)])["in_lungs"]
    assert (found.value, found.low) == (0.5, None)
    assert localisation._estimate_text(found) == "50.0"


def test_no_maps_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no maps"):
        localisation._summarise_maps([])


def test_the_way_a_map_is_made_has_a_name() -> None:
    assert localisation.Asked("gradcam").name == "gradcam, last block"
    assert localisation.Asked("layercam", "layer2").name == "layercam, layer2"

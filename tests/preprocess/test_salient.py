import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chestct.preprocess.placement import _salient_slices, slice_area

AREA = np.array([0.0, 0.1, 0.5, 0.8, 0.4, 1.0, 0.9, 0.2])


def test_area_is_the_share_of_the_slice():
    mask = np.zeros((2, 4, 5), dtype=bool)
    mask[1, :2] = True
    np.testing.assert_allclose(slice_area(mask), [0.0, 0.5])


def test_span_runs_from_the_first_to_the_last_slice_that_reaches_the_threshold():
    assert _salient_slices(AREA, 0.8, "span") == (3, 6)


def test_count_keeps_as_many_slices_as_reach_the_threshold():
    # Slices 3, 5 and 6 reach it: three from slice 3 on, so the dip at 4 costs slice 6.
    assert _salient_slices(AREA, 0.8, "count") == (3, 5)


def test_threshold_one_keeps_the_largest_slice():
    assert _salient_slices(AREA, 1.0, "span") == (5, 5)


def test_area_is_normalised_by_its_largest():
    assert _salient_slices(AREA * 0.03, 0.8, "span") == (3, 6)


def test_scan_without_lung_keeps_all_slices():
    assert _salient_slices(np.zeros(7), 0.8, "span") == (0, 6)


@given(
    area=arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)),
    threshold=st.floats(0.01, 1.0),
    rule=st.sampled_from(["span", "count"]),
)
def test_kept_slices_are_a_range_that_starts_with_a_salient_one(area, threshold, rule):
    first, last = _salient_slices(area, threshold, rule)
    assert 0 <= first <= last < len(area)
    if area.max() > 0:
        assert area[first] / area.max() >= threshold


@pytest.mark.parametrize("patient", ["P001", "normal001"])
def test_golden_masks_give_the_golden_range(data_folder, patient):
    import json

    expected = json.loads((data_folder / "golden" / "published_lung_mask.json").read_text())[
        patient
    ]
    with np.load(data_folder / "golden" / f"{patient}_published_lung_mask.npz") as golden:
        area = golden["area"]
    assert {
        t: list(_salient_slices(area, float(t), "span")) for t in expected["salient"]
    } == expected["salient"]

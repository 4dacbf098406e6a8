from __future__ import annotations

import numpy as np
import pytest

from chestct.datasets.slice_extract import WINDOWS, windowed
from chestct.errors import UnknownNameError

HU = np.array([[-1000, -850, -600], [40, 240, 1000]], dtype=np.int16)


def test_a_window_maps_its_ends_to_black_and_white_and_its_middle_to_grey() -> None:
    assert windowed(np.array([-1350, -600, 150, 3000]), "lung").tolist() == [0, 128, 255, 255]
    assert windowed(np.array([-160, 40, 240, -1000]), "abdomen").tolist() == [0, 128, 255, 0]


def test_lungs_are_black_in_the_abdomen_view_and_grey_in_the_lung_view() -> None:
    abdomen, lung = windowed(HU, "abdomen"), windowed(HU, "lung")
    assert abdomen[0].tolist() == [0, 0, 0]
    assert (lung[0] > 50).all()
    assert lung[1].tolist() == [236, 255, 255]
    assert lung.dtype == abdomen.dtype == np.uint8


def test_the_slice_itself_is_not_changed() -> None:
    before = HU.copy()
    windowed(HU)
    assert np.array_equal(HU, before)


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="lung"):
        windowed(HU, "lungs")
    assert set(WINDOWS) == {"lung", "abdomen"}

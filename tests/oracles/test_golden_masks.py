"""The `published` lungs against masks that the paper's own script gave in GNU Octave 7.3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestct.preprocess.lungs import segment_lungs
from chestct.readers import read_volume
from chestct.volume import to_canonical


@pytest.fixture(scope="module", params=["P001", "normal001"])
def scan(request: pytest.FixtureRequest, data_folder: Path):
    """Name, our mask and Octave's of one patient."""
    name = request.param
    volume = to_canonical(read_volume(data_folder / "covid_ct_md" / name))
    golden_file = data_folder / "golden" / f"{name}_published_lung_mask.npz"
    with np.load(golden_file, allow_pickle=False) as stored:
        shape = tuple(int(n) for n in stored["shape"])
        golden = np.unpackbits(stored["mask"], axis=-1)[..., : shape[2]].astype(np.bool_)
        area = stored["area"]
    figures = json.loads((data_folder / "golden" / "published_lung_mask.json").read_text())[name]
    return segment_lungs(volume, "published"), golden, area, figures


def test_published_mask_is_octaves_mask_voxel_for_voxel(scan) -> None:
    ours, golden, _, figures = scan
    assert ours.shape == tuple(figures["shape"])
    assert np.array_equal(ours, golden)
    assert int(ours.sum()) == figures["mask_voxels"]


def test_lung_area_per_slice_is_octaves(scan) -> None:
    ours, _, area, figures = scan
    share = ours.mean(axis=(1, 2))
    np.testing.assert_allclose(share, area, atol=1e-12)
    assert share.max() == pytest.approx(figures["area_max"], abs=1e-12)


def test_salient_ranges_on_the_unresampled_mask_are_octaves(scan) -> None:
    ours, _, _, figures = scan
    share = ours.mean(axis=(1, 2))
    for threshold, expected in figures["salient"].items():
        reached = np.flatnonzero(share / share.max() >= float(threshold))
        assert [int(reached[0]), int(reached[-1])] == expected

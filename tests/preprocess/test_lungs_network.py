"""What the lungs network sees of a scan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chestct.engines import voxel_runner
from chestct.errors import NetworkError
from chestct.networks.lungs import LungsNet
from chestct.preprocess.lungs import NetworkLungs, find_lungs, network
from chestct.preprocess.lungs.network import _lungs_input
from chestct.volume import Grid, Volume


def _volume(shape=(20, 24, 28), spacing_mm=(3.0, 2.0, 2.0)) -> Volume:
    """A smooth body with a trend along each axis."""
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    voxels = (-800 + 300 * axes[0] + 500 * axes[1] + 400 * axes[2]).astype(np.int16)
    return Volume(Grid(shape, spacing_mm, (5.0, -7.0, 90.0)), voxels)


@pytest.mark.parametrize(
    "spacing_mm", [(0.5, 0.6, 0.6), (3.0, 2.0, 2.0), (8.0, 0.8, 0.8), (10.0, 7.0, 1.0)]
)
def test_any_spacing_becomes_about_four_millimetres_over_the_same_box(spacing_mm) -> None:
    volume = _volume((40, 48, 56), spacing_mm)
    values, grid = _lungs_input(volume)
    assert values.shape == grid.shape
    assert values.dtype == np.float32
    assert np.allclose(grid.extent_mm, volume.grid.extent_mm)
    assert np.allclose(grid.spacing_mm, 4.0, rtol=0.15)
    corners = np.array([[-0.5] * 3, [n - 0.5 for n in volume.grid.shape]])
    ends = np.array([[-0.5] * 3, [n - 0.5 for n in grid.shape]])
    assert np.allclose(volume.grid.to_patient(corners), grid.to_patient(ends))


def test_values_are_means_clipped_and_scaled() -> None:
    volume = _volume((8, 8, 8), (2.0, 2.0, 2.0))
    values, _ = _lungs_input(volume)
    mean = volume.voxels[:2, :2, :2].mean()
    assert values[0, 0, 0] == pytest.approx((mean + 1024) / 812 - 1, abs=1e-5)
    extreme = np.where(np.arange(8) < 4, -3000, 3000).astype(np.float64)
    scaled, _ = _lungs_input(volume.with_voxels(np.broadcast_to(extreme, (8, 8, 8)).copy()))
    assert scaled.min() == -1.0
    assert scaled.max() == 1.0


@pytest.mark.parametrize("blank_hu", [-2000, -1024, 0])
@pytest.mark.parametrize("spacing_mm", [1.0, 8.0])
def test_blank_slices_at_an_end_change_nothing(blank_hu: int, spacing_mm: float) -> None:
    volume = _volume(spacing_mm=(spacing_mm, 2.0, 2.0))
    values, grid = _lungs_input(volume)
    voxels = np.pad(volume.voxels, ((1, 2), (0, 0), (0, 0)), constant_values=blank_hu)
    padded = Volume(volume.grid.moved((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), voxels.shape), voxels)
    again, same_grid = _lungs_input(padded)
    assert np.array_equal(again, values)
    assert np.allclose(same_grid.origin_mm, grid.origin_mm)


@pytest.mark.parametrize("blank_hu", [-2000, -1024, 0])
def test_a_blank_slice_amid_the_scan_is_filled_from_its_neighbours(blank_hu: int) -> None:
    volume = _volume(spacing_mm=(5.0, 2.0, 2.0))
    voxels = volume.voxels.copy()
    voxels[9] = blank_hu
    values, _ = _lungs_input(volume)
    filled, _ = _lungs_input(volume.with_voxels(voxels))
    assert np.abs(filled - values).max() < 0.02


def test_a_scan_without_an_image_keeps_its_extent_and_is_not_changed() -> None:
    volume = _volume()
    empty = volume.with_voxels(np.full(volume.grid.shape, -1024, dtype=np.int16))
    values, grid = _lungs_input(empty)
    assert (values == -1.0).all()
    assert np.allclose(grid.extent_mm, empty.grid.extent_mm)
    assert (empty.voxels == -1024).all()


def _network_lungs(lung: np.ndarray) -> NetworkLungs:
    """Two halves of a lung probability, right and left, background elsewhere."""
    is_left = np.arange(lung.shape[2]) >= lung.shape[2] // 2
    probabilities = np.stack([1 - lung, lung * ~is_left, lung * is_left, 0 * lung])
    grid = Grid(lung.shape, (4.0, 4.0, 4.0))
    return NetworkLungs(probabilities.astype(np.float32), np.zeros(lung.shape, np.float32), grid)


def test_volumes_and_doubt_come_from_the_probabilities() -> None:
    plain = np.zeros((20, 20, 20))
    plain[5:15, 5:15, 2:16] = 1.0
    found = _network_lungs(plain)
    assert found.right_ml == pytest.approx(10 * 10 * 8 * 0.064)
    assert found.left_ml == pytest.approx(10 * 10 * 6 * 0.064)
    assert found._volume_ml(3) == 0.0
    assert found.doubtful_share == 0.0
    doubted = np.where(np.arange(20)[:, None, None] < 10, plain, 0.5 * plain)
    assert _network_lungs(doubted).doubtful_share > 1.0
    assert _network_lungs(0 * plain).doubtful_share == 0.0


def test_methods_without_a_network_say_nothing_of_one() -> None:
    found = find_lungs(_volume(), "published")
    assert found.network is None
    assert found.mask.shape == _volume().grid.shape


@pytest.fixture
def other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network of drawn weights, in place of the one that comes with chestct."""
    torch.manual_seed(4)
    drawn = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in LungsNet().state_dict().items()
    }
    _store(tmp_path, drawn)
    monkeypatch.setattr(network, "_WEIGHTS_FOLDER", tmp_path)
    return tmp_path


def _store(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps({"weights_sha256": digest}))


@pytest.mark.parametrize("size", [(8, 16, 24), (40, 32, 48)])
def test_both_engines_give_the_same_logits_at_any_size(other_weights: Path, size) -> None:
    pytest.importorskip("openvino")
    values = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    shipped = network._shipped_network(other_weights)
    by_torch, by_openvino = (voxel_runner(shipped, n)(values) for n in ("torch", "openvino"))
    assert by_torch.shape == by_openvino.shape == (4, *size)
    assert np.abs(by_torch - by_openvino).max() < 1e-3 * np.abs(by_torch).max()


def test_a_long_scan_in_blocks_gives_what_it_gives_at_once(other_weights: Path) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (300, 10, 12)).astype(np.float32)
    run = voxel_runner(network._shipped_network(other_weights), "torch")
    sizes: list[int] = []

    def run_and_note(block: np.ndarray) -> np.ndarray:
        sizes.append(block.shape[0])
        return run(block)

    whole = network._in_blocks(run_and_note, values)
    assert sizes == [304]
    blocks = network._in_blocks(run_and_note, values, max_voxels=180 * 16 * 16)
    assert blocks.shape == whole.shape == (4, 300, 10, 12)
    assert len(sizes) > 3
    assert max(sizes[1:]) <= 180
    assert np.abs(blocks - whole).max() < 1e-4


def test_the_network_is_loaded_once(other_weights: Path, monkeypatch) -> None:
    loads: list[Path] = []
    shipped = network._shipped_network

    def counted(folder: Path):
        loads.append(folder)
        return shipped(folder)

    monkeypatch.setattr(network, "_shipped_network", counted)
    first = network.ask_network(_volume(), engine="torch")
    again = network.ask_network(_volume(), engine="torch")
    assert loads == [other_weights]
    assert np.array_equal(first.probabilities, again.probabilities)
    assert np.allclose(first.probabilities.sum(axis=0), 1.0, atol=1e-5)
    assert first.grid == _lungs_input(_volume())[1]


def _without_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def _without_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def _cut_short(folder: Path) -> None:
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[: len(content) // 2])


def _one_bit_changed(folder: Path) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "weights.safetensors").write_bytes(bytes(content))


def _with_nan(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["head.weight"][0, 0, 0, 0, 0] = float("nan")
    _store(folder, weights)


def _of_another_network(folder: Path) -> None:
    _store(folder, {"weight": torch.zeros(3)})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_without_weights, "missing or damaged"),
        (_without_card, "card is missing or damaged"),
        (_cut_short, "missing or damaged"),
        (_one_bit_changed, "not those of its card"),
        (_with_nan, "not finite"),
        (_of_another_network, "another network's"),
    ],
)
def test_missing_or_damaged_weights_are_said_to_be_with_a_way_out(
    other_weights: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(other_weights)
    with pytest.raises(NetworkError, match=rf"{says}.*Install chestct again.*'published'"):
        find_lungs(_volume(), "recommended", engine="torch")


def test_a_forked_process_loads_a_network_of_its_own(other_weights: Path, monkeypatch) -> None:
    network.ask_network(_volume(), engine="torch")
    made = network._runner.cache_info().misses
    monkeypatch.setattr(network.os, "getpid", lambda: -1)
    network.ask_network(_volume(), engine="torch")
    assert network._runner.cache_info().misses == made + 1

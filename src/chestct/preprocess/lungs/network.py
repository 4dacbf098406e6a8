"""The lungs network that comes with chestct: what it sees of a scan, and what it says of it.

It sees the whole scan at about 4 mm in every direction, values from -1 to 1. Slices without an
image in them (blank ones, or room air alone) never reach it: at the ends they are left out, amid
the scan their neighbours stand in for them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num
from safetensors import SafetensorError
from safetensors.numpy import load

from chestct.arrays import Heat
from chestct.engines import AUTO, RunVoxels, voxel_engine, voxel_runner
from chestct.errors import EngineError, NetworkError
from chestct.preprocess.lungs import NetworkLungs
from chestct.preprocess.threads import on_threads
from chestct.storage import file_sha256
from chestct.volume import Grid, Volume

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS_FOLDER: Final = Path(__file__).parent
"""Where the network's weights and their card lie."""

_NETWORK_MM: Final = 4.0
"""Voxel size aimed at; the axis's whole length is divided evenly, so it differs a little."""
_NETWORK_HU: Final = (-1024.0, 600.0)
"""Values that become -1 and 1; beyond them nothing tells lung from anything else."""

# 3 million voxels of 4 mm are 190 litres, more than most scans hold; the network's features of
# them take 500 MB.
_MAX_VOXELS_AT_ONCE = 3_000_000
_SIZE_MULTIPLE = 8
# Further away than this nothing reaches a voxel (tests/networks/test_lungs.py).
_OVERLAP = 64

_BLANK_RANGE_HU = 60.0
"""Averaged to 4 mm, any slice through a body has a larger range, and one of air alone has not."""

_Planes = Float32[np.ndarray, "slices rows columns"]


@dataclass(frozen=True)
class _ShippedNetwork:
    """The network's files, as an engine asks for them.

    Attributes:
        folder: Where they lie.
        weights_sha256: Hash of the weights.
    """

    folder: Path
    weights_sha256: str
    identity: str = "LungsNet"

    def load_network(self) -> nn.Module:
        """The network with its weights; loads PyTorch."""
        import torch

        from chestct.networks.lungs import LungsNet

        network = LungsNet()
        stored = _stored_weights(self.folder)
        weights = {
            name: torch.from_numpy(value.astype(np.float32)) for name, value in stored.items()
        }
        kept = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
        try:
            network.load_state_dict(kept | weights)
        except RuntimeError as error:
            raise NetworkError(_damage(self.folder, "they are another network's")) from error
        return network.eval()


def _damage(folder: Path, what: str) -> str:
    return (
        f"The lungs network that comes with chestct cannot be used: {what} ({folder}). Install "
        "chestct again, or use a recipe whose lung method is 'published'."
    )


def _stored_weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights as numbers, all of them finite.

    Raises:
        NetworkError: They are missing or damaged.
    """
    try:
        weights: dict[str, np.ndarray] = load((folder / "weights.safetensors").read_bytes())
    except (OSError, SafetensorError) as error:
        raise NetworkError(_damage(folder, "its weights are missing or damaged")) from error
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise NetworkError(_damage(folder, "its weights hold values that are not finite"))
    return weights


def _shipped_network(folder: Path = _WEIGHTS_FOLDER) -> _ShippedNetwork:
    """The network's files, checked against their card.

    Raises:
        NetworkError: A file is missing or damaged.
    """
    _stored_weights(folder)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        expected = str(card["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(_damage(folder, "its card is missing or damaged")) from error
    found = file_sha256(folder / "weights.safetensors")
    if found != expected:
        raise NetworkError(_damage(folder, "its weights are not those of its card"))
    return _ShippedNetwork(folder, found)


@lru_cache(maxsize=4)
def _runner(folder: Path, engine: str, process: int) -> tuple[RunVoxels, str]:
    """The network ready to run and the hash of its weights, once per process.

    A process that was forked cannot use its parent's.
    """
    network = _shipped_network(folder)
    return voxel_runner(network, engine), network.weights_sha256


def ask_network(volume: Volume, *, engine: str = AUTO) -> NetworkLungs:
    """Let the network say where the lungs are.

    Args:
        volume: Canonical scan (depth, height, width) in Hounsfield units.
        engine: As in `chestct.engines.voxel_runner`.

    Raises:
        NetworkError: The network's files are missing or damaged.
        EngineError: The engine cannot run it, or it gave values that are not finite.
    """
    run, weights_sha256 = _runner(_WEIGHTS_FOLDER, engine, os.getpid())
    values, grid = _lungs_input(volume)
    logits = _in_blocks(run, values)
    if not np.isfinite(logits).all():
        raise EngineError("The lungs network gave values that are not finite (nan or inf).")
    logits -= logits.max(axis=0)
    probabilities = np.exp(logits, out=logits)
    probabilities /= probabilities.sum(axis=0)
    low, high = _NETWORK_HU
    return NetworkLungs(
        probabilities,
        (values + 1) * np.float32((high - low) / 2) + low,
        grid,
        weights_sha256=weights_sha256,
        engine=f"{voxel_engine(engine)} float32",
    )


def _in_blocks(
    run: RunVoxels, values: Heat, max_voxels: int = _MAX_VOXELS_AT_ONCE
) -> Float32[np.ndarray, "class depth height width"]:
    """Logits of every voxel, a long scan in blocks of slices that overlap."""
    depth, height, width = values.shape
    ends = [(0, -size % _SIZE_MULTIPLE) for size in values.shape]
    padded = np.pad(values, ends, constant_values=-1.0)
    at_once = max_voxels // (padded.shape[1] * padded.shape[2])
    step = max(_SIZE_MULTIPLE, (at_once - 2 * _OVERLAP) // _SIZE_MULTIPLE * _SIZE_MULTIPLE)
    if padded.shape[0] <= step + 2 * _OVERLAP:
        step = padded.shape[0]
    blocks = []
    for first in range(0, depth, step):
        start = max(0, first - _OVERLAP)
        logits = run(padded[start : first + step + _OVERLAP])
        blocks.append(logits[:, first - start : first - start + step, :height, :width])
    return np.concatenate(blocks, axis=1)[:, :depth]


def _lungs_input(volume: Volume) -> tuple[Heat, Grid]:
    """Put a scan on the network's grid: averaged where it is finer, interpolated where coarser.

    Args:
        volume: Canonical scan (depth, height, width) in Hounsfield units.

    Returns:
        Values from -1 to 1, (depth, height, width), and their grid. It covers the scan without the
        blank slices at its ends.
    """
    spacing, (_, height, width) = volume.grid.spacing_mm, volume.grid.shape
    size = (_num_voxels(width, spacing[2]), _num_voxels(height, spacing[1]))
    planes = np.stack(on_threads(lambda plane: _resized(plane, size), volume.voxels))
    live = _live_slices(planes)
    first, last = int(live[0]), int(live[-1])
    weights = _depth_weights(live - first, spacing[0])
    values = np.tensordot(weights, planes[live], axes=1)
    low, high = _NETWORK_HU
    values = (values - low) * np.float32(2.0 / (high - low)) - np.float32(1.0)
    num_slices = last - first + 1
    step = tuple(
        old / new for old, new in zip((num_slices, height, width), values.shape, strict=True)
    )
    start = (first + 0.5 * step[0] - 0.5, 0.5 * step[1] - 0.5, 0.5 * step[2] - 0.5)
    return values, volume.grid.moved(start, step, values.shape)


def _num_voxels(size: int, spacing_mm: float) -> int:
    return max(1, round(size * spacing_mm / _NETWORK_MM))


def _resized(
    plane: Num[np.ndarray, "height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "rows columns"]:
    """A slice clipped and brought to a size (width, height), linear along axes that grow."""
    clipped = np.clip(plane, *_NETWORK_HU).astype(np.float32)
    return np.asarray(cv2.resize(clipped, size, interpolation=cv2.INTER_AREA))


def _live_slices(planes: _Planes) -> Num[np.ndarray, " live"]:
    """Indices of the slices with an image in them; of all slices where none has."""
    has_image: Bool[np.ndarray, " slices"] = np.ptp(planes, axis=(1, 2)) > _BLANK_RANGE_HU
    return np.flatnonzero(has_image) if has_image.any() else np.arange(len(planes))


def _depth_weights(
    live: Num[np.ndarray, " live"], spacing_mm: float
) -> Float32[np.ndarray, "new live"]:
    """Share of each slice with an image in each new one; the first is slice 0.

    An old slice is first interpolated between the nearest ones with an image, then new ones are
    means of the old where these are thinner, and interpolated between them where thicker.
    """
    num_slices = int(live[-1]) + 1
    num_new = _num_voxels(num_slices, spacing_mm)
    step = num_slices / num_new
    if step > 1.0:
        edges = np.clip(
            step * np.arange(num_new + 1)[:, None], np.arange(num_slices), np.arange(num_slices) + 1
        )
        of_slices = np.diff(edges, axis=0) / step
    else:
        of_slices = _interpolation(step * (np.arange(num_new) + 0.5) - 0.5, np.arange(num_slices))
    weights = of_slices @ _interpolation(np.arange(num_slices), live)
    return np.asarray(weights, dtype=np.float32)


def _interpolation(
    positions: Num[np.ndarray, " wanted"], known: Num[np.ndarray, " known"]
) -> Num[np.ndarray, "wanted known"]:
    """Weights of linear interpolation; beyond the ends the end holds."""
    return np.stack([np.interp(positions, known, row) for row in np.eye(len(known))], axis=1)

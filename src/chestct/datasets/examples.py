"""Prepared scans with their labels, on disk and in memory, as training needs them.

One file per example, so that several processes can prepare a set together and a set that was
interrupted goes on where it stopped. Inputs in [0, 1] are kept as bytes: an error of at most
1/510, under the noise of any scan, at a quarter of the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from chestct.arrays import Mask, NetworkInput
from chestct.errors import ReadError, WriteError
from chestct.storage import write_whole_with


@dataclass(frozen=True, eq=False)
class Example:
    """One labelled network input.

    Attributes:
        input: Values in [0, 1], (channel, depth, height, width).
        lungs: Lung mask at the same size, (depth, height, width).
        label: Index into the classifier's labels.
    """

    input: NetworkInput
    lungs: Mask
    label: int


def write_example(path: Path, example: Example) -> None:
    """Write one example as a compressed `.npz`, aside first and then renamed.

    Raises:
        WriteError: The input is not in [0, 1], where bytes would not hold it.
    """
    low, high = float(example.input.min()), float(example.input.max())
    if low < 0 or high > 1:
        raise WriteError(f"An example's input must be in [0, 1] to be kept, not [{low}, {high}].")

    def save(aside: Path) -> None:
        """Write it: the input in 8 bits, the lungs one bit a voxel."""
        np.savez_compressed(
            aside,
            input=np.round(example.input * 255).astype(np.uint8),
            lungs=np.packbits(example.lungs, axis=-1),
            label=np.int64(example.label),
        )

    write_whole_with(path, save)


def read_example(path: Path) -> Example:
    """Read one example back.

    Raises:
        ReadError: The file is not one `write_example` wrote.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            voxels = stored["input"].astype(np.float32) / 255
            width = voxels.shape[-1]
            lungs = np.unpackbits(stored["lungs"], axis=-1, count=width).astype(bool)
            return Example(input=voxels, lungs=lungs, label=int(stored["label"]))
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path.name} is not a prepared example ({error}). Delete it and prepare it again."
        raise ReadError(msg) from error


def _read_label(path: Path) -> int:
    """Label index of an example, without reading the rest of it."""
    with np.load(path, allow_pickle=False) as stored:
        return int(stored["label"])


class ExampleFolder(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """All examples of a folder, in the order of their file names, read when asked for."""

    def __init__(self, folder: Path, pattern: str = "*.npz") -> None:
        self.paths = sorted(folder.glob(pattern))
        if not self.paths:
            raise ReadError(f"{folder.name} holds no prepared examples ({pattern}).")
        self.labels = [_read_label(path) for path in self.paths]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Input (channel, depth, height, width), lungs (1, depth, height, width), label."""
        example = read_example(self.paths[index])
        lungs = torch.from_numpy(example.lungs[None].astype(np.float32))
        return torch.from_numpy(example.input), lungs, example.label

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chestct.datasets.examples import Example, ExampleFolder, read_example, write_example
from chestct.errors import ReadError, WriteError


def make_example(label: int = 1) -> Example:
    rng = np.random.default_rng(label)
    voxels = rng.random((1, 5, 6, 7), dtype=np.float32)
    return Example(input=voxels, lungs=voxels[0] > 0.5, label=label)


def test_an_example_comes_back_to_half_a_byte(tmp_path: Path) -> None:
    example = make_example()
    write_example(tmp_path / "a.npz", example)
    back = read_example(tmp_path / "a.npz")
    assert np.abs(back.input - example.input).max() <= 1 / 510 + 1e-6
    assert np.array_equal(back.lungs, example.lungs)
    assert back.label == example.label
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_input_outside_zero_to_one_is_refused(tmp_path: Path) -> None:
    example = make_example()
    too_bright = Example(input=example.input * 2, lungs=example.lungs, label=0)
    with pytest.raises(WriteError, match="must be in"):
        write_example(tmp_path / "a.npz", too_bright)
    assert not list(tmp_path.iterdir())


def test_a_damaged_example_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"not an archive")
    with pytest.raises(ReadError, match=r"a\.npz is not a prepared example"):
        read_example(tmp_path / "a.npz")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for label in (2, 0, 1):
        write_example(tmp_path / f"{label}.npz", make_example(label))
    examples = ExampleFolder(tmp_path)
    assert [examples[i][2] for i in range(len(examples))] == [0, 1, 2]
    batch, lungs, _ = examples[0]
    assert batch.shape == (1, 5, 6, 7)
    assert lungs.shape == (1, 5, 6, 7)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no prepared examples"):
        ExampleFolder(tmp_path)

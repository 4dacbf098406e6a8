from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from chestct.errors import ReadError
from chestct.extras import MissingExtraError
from chestct.readers import read_volume
from chestct.volume import Grid


def image(shape: tuple[int, ...] = (6, 12, 10)) -> SimpleITK.Image:
    values = np.linspace(-1000, 300, np.prod(shape), dtype=np.int16).reshape(shape)
    made = SimpleITK.GetImageFromArray(values)
    made.SetSpacing([0.7, 0.8, 2.5][: len(shape)])
    return made


def written(folder: Path, name: str, made: SimpleITK.Image | None = None) -> Path:
    SimpleITK.WriteImage(made or image(), str(folder / name.lower()))
    return (folder / name.lower()).rename(folder / name)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "SCAN.MHA"])
def test_positions_are_those_that_simpleitk_gives(tmp_path: Path, name: str) -> None:
    made = image()
    angle = np.radians(20)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Axes swapped and turned: columns run to the feet, slices nearly to the left.
    made.SetDirection((0, sin, cos, 0, cos, -sin, -1, 0, 0))
    made.SetOrigin((11.0, -22.0, 33.0))
    found = read_volume(written(tmp_path, name, made))
    for index in ((0, 0, 0), (3, 2, 1), (9, 11, 5)):
        place = np.array([made.TransformIndexToPhysicalPoint(index)])
        depth, height, width = np.rint(found.grid.to_index(place)[0]).astype(int)
        assert np.allclose(found.grid.to_patient(np.array([[depth, height, width]], float)), place)
        assert found.voxels[depth, height, width] == made[index]
    assert isinstance(found.grid, Grid)


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr"])
def test_a_header_whose_voxels_lie_in_another_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReadError, match=r"keeps its voxels in another file.*Convert it"):
        read_volume(written(tmp_path, name))


def test_no_other_file_is_opened_whatever_the_header_says(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    header = path.read_bytes().replace(b"LOCAL", b"/etc/passwd")
    path.write_bytes(header)
    with pytest.raises(ReadError, match="in another file"):
        read_volume(path)


def test_a_voxel_of_unknown_size_is_not_taken_for_a_millimetre(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    path.write_bytes(re.sub(rb"ElementSpacing = [^\n]*\n", b"", path.read_bytes()))
    with pytest.raises(ReadError, match="how large its voxels are"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(12, 10), (6, 12, 10, 3)])
def test_what_is_no_volume_of_single_values_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    values = np.zeros(shape, dtype=np.int16)
    made = SimpleITK.GetImageFromArray(values, isVector=len(shape) == 4)
    with pytest.raises(ReadError, match=r"one 3D\s+scan was expected"):
        read_volume(written(tmp_path, "scan.mha", made))


def test_a_header_that_declares_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    sized = path.read_bytes().replace(b"DimSize = 10 12 6", b"DimSize = 1024 1024 1100")
    path.write_bytes(sized)
    with pytest.raises(ReadError, match=r"declares .* voxels.*Have thicker slices reconstructed"):
        read_volume(path)


def test_without_simpleitk_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "scan.mha")
    monkeypatch.setattr("chestct.extras.is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"chestct\[itk\]"):
        read_volume(path)


def test_a_folder_may_hold_one_such_file(tmp_path: Path) -> None:
    written(tmp_path, "scan.nrrd")
    (tmp_path / "notes.txt").write_text("read by two")
    assert read_volume(tmp_path).source.format == "itk"
    written(tmp_path, "other.mha")
    with pytest.raises(ReadError, match="holds 2 MetaImage or NRRD files"):
        read_volume(tmp_path)

"""What holds for every reader of the table: the same scan in every format is the same scan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from chestct.contracts import PROMISES, Promise, ReaderCase
from chestct.errors import ReadError
from chestct.readers import READERS, format_of, read_volume
from chestct.readers.pictures import SIDECAR
from chestct.simulate.dicom_export import write_dicom_series
from chestct.volume import Grid, ScanSource, Volume, to_canonical
from chestct.writers.nifti import write_nifti

GRID = Grid(shape=(7, 40, 36), spacing_mm=(2.5, 0.8, 0.7), origin_mm=(-14.0, 20.0, 300.0))


def scan() -> Volume:
    """A box of tissue with air around and in it, alike from no two sides."""
    voxels = np.full(GRID.shape, -1000, dtype=np.int16)
    voxels[:, 6:30, 5:31] = 40
    voxels[:, 10:20, 8:16] = -850
    voxels[1, 12, 25] = 900
    return Volume(voxels=voxels, grid=GRID, unit="HU", source=ScanSource(format="simulated"))


def as_dicom(folder: Path) -> Path:
    write_dicom_series(scan(), folder / "series")
    return folder / "series"


def as_nifti(folder: Path) -> Path:
    return write_nifti(folder / "scan.nii.gz", scan().voxels, GRID)


def as_itk(folder: Path, ending: str = ".nrrd") -> Path:
    image = SimpleITK.GetImageFromArray(scan().voxels)
    image.SetSpacing(GRID.spacing_mm[::-1])
    image.SetOrigin(GRID.origin_mm)
    SimpleITK.WriteImage(image, str(folder / f"scan{ending}"), useCompression=True)
    return folder / f"scan{ending}"


def as_tiff(folder: Path) -> Path:
    import tifffile

    slices = folder / "slices"
    slices.mkdir()
    for number, plane in enumerate(scan().voxels):
        tifffile.imwrite(slices / f"{number:03d}.tif", (plane + 1024).astype(np.uint16))
    sidecar = {"spacing_mm": GRID.spacing_mm, "order": "ascending", "slope": 1, "intercept": -1024}
    (slices / SIDECAR).write_text(json.dumps(sidecar))
    return slices


WRITE: dict[str, Callable[[Path], Path]] = {
    "dicom": as_dicom,
    "nifti": as_nifti,
    "itk": as_itk,
    "tiff": as_tiff,
}


def test_every_reader_has_a_way_to_be_tried() -> None:
    assert set(WRITE) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_the_same_scan_is_read_from_every_format(name: str, tmp_path: Path) -> None:
    place = WRITE[name](tmp_path)
    assert format_of(place) == name
    found = to_canonical(read_volume(place))
    assert np.array_equal(found.voxels, scan().voxels)
    assert found.grid.spacing_mm == pytest.approx(GRID.spacing_mm, abs=1e-4)
    assert found.source.format == name
    assert found.unit == "HU"
    assert not found.voxels.flags.writeable
    if name != "tiff":
        # Slices as pictures know no place in the patient.
        assert found.grid.origin_mm == pytest.approx(GRID.origin_mm, abs=1e-3)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("promise", PROMISES["reader"], ids=lambda promise: promise.__name__)
def test_every_reader_keeps_its_promises(name: str, promise: Promise, tmp_path: Path) -> None:
    promise(ReaderCase(name, WRITE[name](tmp_path)))


@pytest.mark.parametrize("name", READERS)
def test_what_belongs_to_another_format_is_refused(name: str, tmp_path: Path) -> None:
    place = WRITE[name](tmp_path)
    if name != "dicom":
        with pytest.raises(ReadError, match="is not DICOM"):
            read_volume(place, series="1.2.3")

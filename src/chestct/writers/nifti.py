"""NIfTI files that lie where the patient lay, and `heat-map.nii.gz` and `lungs.nii.gz` among them.

The heat-map is -1 where the network saw nothing, which is not the same as zero. Not NaN: readers
built on ITK, which are most, turn NaN into zero.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int16, Num

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import HeatMap
from chestct.storage import remove_file, write_whole_with
from chestct.volume import Grid
from chestct.writers import WriteOptions

_DATA_STARTS: Final = 352
"""Bytes before the voxels of a single NIfTI-1 file: the header and an empty list of extensions."""
_FASTEST: Final = 1
_GZIP: Final = 31
"""What zlib calls a gzip stream; its header holds no time."""


def write_nifti(
    path: Path,
    voxels: Num[np.ndarray, "*channel depth height width"]
    | Bool[np.ndarray, "*channel depth height width"],
    grid: Grid,
    *,
    step: float = 1.0,
) -> Path:
    """Write an array as `.nii.gz`, or as `.nii`, by the ending of `path`.

    Args:
        path: File to write.
        voxels: (depth, height, width), or (channel, depth, height, width). One channel becomes a
            three-dimensional image, several a fourth axis. A mask is stored as bytes 0 and 1.
        grid: Where the voxels lie.
        step: What one stored unit stands for; readers multiply by it.

    Raises:
        WriteError: The file cannot be written.
    """
    import nibabel

    from chestct.readers.nifti import image_on_grid

    stored = voxels[0] if voxels.ndim == 4 and voxels.shape[0] == 1 else voxels
    if stored.dtype == np.bool_:
        stored = stored.view(np.uint8)
    made = image_on_grid(stored, grid)
    if step != 1.0:
        return write_whole_with(path, lambda aside: _save_in_steps(made, step, aside))
    return write_whole_with(path, lambda aside: nibabel.save(made, aside))


def _save_in_steps(made: Any, step: float, path: Path) -> None:
    """Save whole numbers as they are, with their step in the header.

    nibabel would take them for the scaled values and divide them first.
    """
    header = made.header.copy()
    # Written by hand where nibabel has them set by what it scales.
    header["scl_slope"], header["scl_inter"] = step, 0.0
    header["magic"], header["vox_offset"] = b"n+1", _DATA_STARTS
    start = header.binaryblock.ljust(_DATA_STARTS, b"\0")
    packer = zlib.compressobj(_FASTEST, wbits=_GZIP) if path.name.endswith(".gz") else None
    with path.open("wb") as stream:
        stream.write(packer.compress(start) if packer else start)
        for plane in np.moveaxis(np.asarray(made.dataobj), -1, 0):
            content = plane.tobytes(order="F")
            stream.write(packer.compress(content) if packer else content)
        stream.write(packer.flush() if packer else b"")


NOT_ANALYSED: Final = -1.0
"""Value where the network saw nothing."""
_STEPS: Final = 4096
"""Steps that heat from 0 to 1 is stored in."""


def write_nifti_maps(analysis: ScanAnalysis, folder: Path, _: WriteOptions | None = None) -> Path:
    """Write the lungs and, where there is one, the heat-map.

    Returns:
        The heat-map, or the lungs without one.

    Raises:
        WriteError: A file cannot be written.
    """
    lungs = write_nifti(
        folder / "lungs.nii.gz", analysis.prepared.scan_lungs.voxels, analysis.volume.grid
    )
    heat_file = folder / "heat-map.nii.gz"
    if analysis.explanation is None:
        # One of an earlier run would be taken for this one's.
        remove_file(heat_file)
        return lungs
    steps = _in_steps(analysis.explanation.heat)
    return write_nifti(heat_file, steps, analysis.volume.grid, step=1.0 / _STEPS)


def _in_steps(heat: HeatMap) -> Int16[np.ndarray, "depth height width"]:
    """Heat in whole steps of 1/4096, finer than can be seen, slice by slice to save memory."""
    steps = np.empty(heat.grid.shape, dtype=np.int16)
    for out, values in zip(steps, heat, strict=True):
        scaled = np.rint(values * np.float32(_STEPS))
        np.copyto(scaled, np.float32(NOT_ANALYSED * _STEPS), where=np.isnan(scaled))
        out[...] = scaled
    return steps

"""What a NIfTI header says, checked before anything is allocated: sizes, types, geometry.

NIfTI's world axes grow to the right, the front and the head of the patient (RAS); ours, DICOM's,
grow to the left, the back and the head (LPS). Field names and codes are those of nifti1.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from chestct.arrays import Matrix4, Shape
from chestct.errors import ReadError
from chestct.readers.hounsfield import Rescale
from chestct.volume import MAX_VOXELS, SMALLER, Grid

MAX_SIDE = 4096
"""Longest axis accepted, in voxels; no CT has a larger matrix."""
MAX_OFFSET_BYTES = 2**26
"""Most bytes of header extensions skipped before the voxels."""
SPACING_RANGE_MM = (0.05, 50.0)
"""Voxel sizes accepted; outside it the header's unit or its numbers are wrong."""
MAX_ORIGIN_MM = 1e5
"""Farthest position of the first voxel accepted."""

Header: TypeAlias = Any
"""nibabel's NIfTI-1 or NIfTI-2 header, a mapping of the fields; it carries no types."""

_HEADER_TYPES: dict[int, Any] = {348: Nifti1Header, 540: Nifti2Header}
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIFTI_UNITS_METER, _MM, _MICRON
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR_TOLERANCE = 1e-3
_SAME_PLACE_MM = 1.0


@dataclass(frozen=True)
class Layout:
    """How the voxels lie in the file.

    Attributes:
        shape: Voxels along the file's axes, slowest first: (k, j, i).
        dtype: Type of a stored number, with its byte order.
        offset: Byte at which the voxels start.
        rescale: scl_slope and scl_inter.
    """

    shape: Shape
    dtype: np.dtype[Any]
    offset: int
    rescale: Rescale

    @property
    def num_bytes(self) -> int:
        """Length of the voxels in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def read_header(stream: BufferedIOBase, path: Path) -> Header:
    """The header without its extensions, whose declared lengths are not to be believed.

    Raises:
        ReadError: Not a single-file NIfTI.
    """
    start = stream.read(4)
    for size, header_type in _HEADER_TYPES.items():
        for order, sign in (("little", "<"), ("big", ">")):
            if start == size.to_bytes(4, order):  # type: ignore[arg-type]
                block = start + stream.read(size - 4)
                if len(block) < size:
                    msg = f"{path.name} ends within its NIfTI header."
                    raise ReadError(f"{msg} Copy or download it again.")
                header = header_type(block, sign, check=False)
                _check_magic(bytes(header["magic"])[:3], path)
                return header
    raise ReadError(f"{path.name} is not a NIfTI file: it does not start with a NIfTI header.")


def _check_magic(magic: bytes, path: Path) -> None:
    if magic in (b"ni1", b"ni2"):
        msg = f"{path.name} keeps its voxels in a separate .img file; a single .nii was expected."
        raise ReadError(f"{msg} Convert the pair to one .nii.gz.")
    if magic not in (b"n+1", b"n+2"):
        raise ReadError(
            f"{path.name} is not a NIfTI file (an Analyze 7.5 file, or a damaged header)."
        )


def read_layout(header: Header, path: Path) -> Layout:
    """Sizes, type and scaling of the voxels.

    Raises:
        ReadError: Several frames, colour or complex values, too many voxels, or a header that
            contradicts itself.
    """
    shape = _read_shape(header, path)
    try:
        dtype = np.dtype(header.get_data_dtype())
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError) as error:
        raise ReadError(f"{path.name} has an impossible header: {error}.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        msg = f"{path.name} holds values of type {dtype}; one real number per voxel was expected."
        raise ReadError(msg)
    if int(header["bitpix"]) != dtype.itemsize * 8:
        msg = f"{path.name} declares {int(header['bitpix'])} bits per voxel for values of type"
        raise ReadError(f"{msg} {dtype}. The header is damaged.")
    offset = float(header["vox_offset"])
    if not (int(header["sizeof_hdr"]) <= offset <= MAX_OFFSET_BYTES and offset.is_integer()):
        raise ReadError(
            f"{path.name} declares that its voxels start at byte {offset:g}: impossible."
        )
    rescale = Rescale() if slope is None else Rescale(float(slope), float(intercept))
    return Layout(shape, dtype, int(offset), rescale)


def _read_shape(header: Header, path: Path) -> Shape:
    num_axes = int(header["dim"][0])
    sides = tuple(int(n) for n in header["dim"][1 : num_axes + 1]) if 1 <= num_axes <= 7 else ()
    if len(sides) < 3 or min(sides) < 1 or max(sides[:3]) > MAX_SIDE:
        msg = (
            f"{path.name} declares axes of {sides} voxels; three of 1 to {MAX_SIDE} were expected."
        )
        raise ReadError(msg)
    num_frames = int(np.prod(sides[3:], dtype=np.float64))
    if num_frames > 1:
        msg = f"{path.name} holds {num_frames} values per voxel; one 3D scan was expected."
        raise ReadError(f"{msg} Extract the frame to be classified.")
    columns, rows, slices = sides[:3]
    num_voxels = slices * rows * columns
    if num_voxels > MAX_VOXELS:
        msg = f"{path.name} declares {num_voxels} voxels; at most {MAX_VOXELS} are read."
        raise ReadError(f"{msg} {SMALLER}")
    return slices, rows, columns


def read_grid(header: Header, shape: Shape, path: Path) -> tuple[Grid, list[str]]:
    """The grid of the voxels as stored, axes (k, j, i), and warnings on what had to be assumed.

    Raises:
        ReadError: Sheared axes, or an impossible position or voxel size.
    """
    affine, warnings = _read_affine(header, path)
    mm_per_unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7)
    if mm_per_unit is None:
        warnings.append("The file names no length unit: millimetres were assumed.")
    with np.errstate(all="ignore"):
        affine = affine * np.array([[mm_per_unit or 1.0]] * 3 + [[1.0]])
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    _check_sizes(affine, spacing, path)
    axes = (_RAS_TO_LPS[:3, :3] @ affine[:3, :3] / spacing).T[::-1]
    skew = np.abs(axes @ axes.T - np.eye(3)).max()
    if skew > _SHEAR_TOLERANCE:
        degrees = np.degrees(np.arcsin(min(skew, 1.0)))
        msg = f"{path.name} has sheared axes ({degrees:.1f} degrees off a right angle), as a tilted"
        raise ReadError(f"{msg} gantry gives. Resample it first.")
    x, y, z = (_RAS_TO_LPS @ affine)[:3, 3]
    grid = Grid(
        shape=shape,
        spacing_mm=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        origin_mm=(float(x), float(y), float(z)),
        direction=tuple((float(a[0]), float(a[1]), float(a[2])) for a in axes),
    )
    return grid, warnings


def _check_sizes(affine: Matrix4, spacing: np.ndarray, path: Path) -> None:
    lowest, highest = SPACING_RANGE_MM
    if not np.isfinite(affine).all():
        raise ReadError(f"{path.name} has a geometry with values that are NaN or infinite.")
    if spacing.min() < lowest or spacing.max() > highest:
        sizes = " x ".join(f"{size:g}" for size in spacing)
        msg = f"{path.name} has voxels of {sizes} mm; {lowest:g} to {highest:g} mm were expected."
        raise ReadError(f"{msg} Its header, or the length unit in it, is wrong.")
    if np.abs(affine[:3, 3]).max() > MAX_ORIGIN_MM:
        raise ReadError(
            f"{path.name} puts its first voxel at {affine[:3, 3].tolist()} mm: impossible."
        )


def _read_affine(header: Header, path: Path) -> tuple[Matrix4, list[str]]:
    """The matrix from file index (i, j, k) to RAS, in the file's unit: sform, else qform."""
    if int(header["sform_code"]) == 0:
        return _read_qform_or_none(header, path)
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    try:
        qform = _read_qform(header) if int(header["qform_code"]) else sform
    except (HeaderDataError, ValueError):
        return sform, ["The qform is impossible; the sform was taken."]
    last_voxel = np.append(header["dim"][1:4] - 1, 1).astype(np.float64)
    with np.errstate(all="ignore"):
        corners = (sform - qform)[:3] @ np.stack([last_voxel, [0.0, 0.0, 0.0, 1.0]]).T
    distance = np.abs(corners).max()
    if distance <= _SAME_PLACE_MM:
        return sform, []
    return sform, [f"sform and qform disagree by up to {distance:.1f}; the sform was taken."]


def _read_qform_or_none(header: Header, path: Path) -> tuple[Matrix4, list[str]]:
    if int(header["qform_code"]) == 0:
        msg = "The file does not say how the patient lies: columns were taken to run to the left,"
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        return affine, [f"{msg} rows to the front, slices to the head."]
    try:
        return _read_qform(header), []
    except (HeaderDataError, ValueError) as error:
        raise ReadError(f"{path.name} has an impossible qform: {error}.") from error


def _read_qform(header: Header) -> Matrix4:
    if header["pixdim"][0] == 0:  # nifti1.h, method 2: zero stands for a qfac of one
        header = header.copy()
        header["pixdim"][0] = 1.0
    with np.errstate(all="ignore"):
        return np.asarray(header.get_qform(), dtype=np.float64)

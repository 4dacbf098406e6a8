"""Read a NIfTI file (.nii, .nii.gz), MetaImage (.mha) or NRRD (.nrrd); where NIfTI voxels lie.

nibabel hands a scaled NIfTI volume over as float64, four times the size of the scan, and believes
the sizes that a header declares. Here the declared sizes are checked first, and the voxels go slab
by slab from the file into one int16 array. NIfTI's world axes grow to the right, the front and the
head of the patient (RAS); ours, DICOM's, grow to the left, the back and the head (LPS). Field names
and codes are those of nifti1.h. MetaImage and NRRD go through SimpleITK, an extra.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Num
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from chestct.arrays import Matrix4, Shape
from chestct.errors import ReadError
from chestct.extras import import_extra
from chestct.readers.files import MAX_RATIO, UNDOUBTED_BYTES, is_wrapped
from chestct.readers.hounsfield import (
    Gathered,
    Rescale,
    Slab,
    check_windowed,
    gather,
    padding_to_air,
    why_not_hounsfield,
)
from chestct.readers.misfits import mend_misfits
from chestct.volume import (
    AIR_HU,
    MAX_VOXELS,
    SMALLER,
    Grid,
    ScanSource,
    Unit,
    Volume,
    canonical_axes,
)

_MAX_SIDE = 4096
"""Longest axis accepted, in voxels; no CT has a larger matrix."""
_MAX_OFFSET_BYTES = 2**26
"""Most bytes of header extensions skipped before the voxels."""
_SPACING_RANGE_MM = (0.05, 50.0)
"""Voxel sizes accepted; outside it the header's unit or its numbers are wrong."""
_MAX_ORIGIN_MM = 1e5
"""Farthest position of the first voxel accepted."""

_Header: TypeAlias = Any
"""nibabel's NIfTI-1 or NIfTI-2 header, a mapping of the fields; it carries no types."""

_HEADER_TYPES: dict[int, Any] = {348: Nifti1Header, 540: Nifti2Header}
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIFTI_UNITS_METER, _MM, _MICRON
_BETWEEN_RAS_AND_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR_TOLERANCE = 1e-3
_SAME_PLACE_MM = 1.0
_SAME_SIZE = 0.02
"""Voxel sizes that two fields of a header give, in one another."""


def grid_of_affine(affine: Matrix4, shape: Shape) -> Grid:
    """The grid of the voxels in a NIfTI file.

    Args:
        affine: From the file's index (i, j, k) to x right, y front, z head, in mm.
        shape: Voxels along (k, j, i), the grid's axes.

    Raises:
        GridError: It is impossible, or sheared.
    """
    placed = _BETWEEN_RAS_AND_LPS @ affine
    width_mm, height_mm, depth_mm = (float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
    spacing_mm = (depth_mm, height_mm, width_mm)
    axes = (placed[:3, 2::-1] / np.array(spacing_mm)).T
    x, y, z = (float(each) for each in placed[:3, 3])
    directions = tuple((float(a), float(b), float(c)) for a, b, c in axes)
    return Grid(shape, spacing_mm, (x, y, z), directions)


def image_on_grid(
    voxels: Num[np.ndarray, "*channel depth height width"]
    | Bool[np.ndarray, "*channel depth height width"],
    grid: Grid,
) -> Any:
    """A NIfTI-1 image, of nibabel, of voxels where the patient lay: sform and qform say the same.

    NIfTI keeps its fastest axis first: it is stored as (width, height, depth, channel).
    """
    affine = _BETWEEN_RAS_AND_LPS @ grid.index_to_patient[:, [2, 1, 0, 3]]
    # nibabel is typed in parts only.
    image_of: Any = Nifti1Image
    image = image_of(voxels.T, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    # As the header holds it by now, rounded to 32 bits.
    image.set_qform(image.affine, code=1)
    return image


@dataclass(frozen=True)
class _Layout:
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


def _read_header(stream: BufferedIOBase, path: Path) -> _Header:
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


def _read_layout(header: _Header, path: Path) -> _Layout:
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
    if not (int(header["sizeof_hdr"]) <= offset <= _MAX_OFFSET_BYTES and offset.is_integer()):
        raise ReadError(
            f"{path.name} declares that its voxels start at byte {offset:g}: impossible."
        )
    rescale = Rescale() if slope is None else Rescale(float(slope), float(intercept))
    return _Layout(shape, dtype, int(offset), rescale)


def _read_shape(header: _Header, path: Path) -> Shape:
    num_axes = int(header["dim"][0])
    sides = tuple(int(n) for n in header["dim"][1 : num_axes + 1]) if 1 <= num_axes <= 7 else ()
    if len(sides) < 3 or min(sides) < 1 or max(sides[:3]) > _MAX_SIDE:
        msg = (
            f"{path.name} declares axes of {sides} voxels; three of 1 to {_MAX_SIDE} were expected."
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


def _read_grid(header: _Header, shape: Shape, path: Path) -> tuple[Grid, list[str]]:
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
    axes = affine[:3, :3] / spacing
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if skew > _SHEAR_TOLERANCE:
        degrees = np.degrees(np.arcsin(min(skew, 1.0)))
        msg = f"{path.name} has sheared axes ({degrees:.1f} degrees off a right angle), as a tilted"
        raise ReadError(f"{msg} gantry gives. Resample it first.")
    return grid_of_affine(affine, shape), warnings


def _check_sizes(affine: Matrix4, spacing: np.ndarray, path: Path) -> None:
    lowest, highest = _SPACING_RANGE_MM
    if not np.isfinite(affine).all():
        raise ReadError(f"{path.name} has a geometry with values that are NaN or infinite.")
    if spacing.min() < lowest or spacing.max() > highest:
        sizes = " x ".join(f"{size:g}" for size in spacing)
        msg = f"{path.name} has voxels of {sizes} mm; {lowest:g} to {highest:g} mm were expected."
        raise ReadError(f"{msg} Its header, or the length unit in it, is wrong.")
    if np.abs(affine[:3, 3]).max() > _MAX_ORIGIN_MM:
        raise ReadError(
            f"{path.name} puts its first voxel at {affine[:3, 3].tolist()} mm: impossible."
        )


def _read_affine(header: _Header, path: Path) -> tuple[Matrix4, list[str]]:
    """The matrix from file index (i, j, k) to RAS, in the file's unit: sform, else qform."""
    if int(header["sform_code"]) == 0:
        return _read_qform_or_none(header, path)
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    if int(header["qform_code"]) == 0:
        return sform, _contradicting_sizes(header, sform)
    try:
        qform = _read_qform(header)
    except (HeaderDataError, ValueError):
        return sform, ["The qform is impossible; the sform was taken."]
    last_voxel = np.append(header["dim"][1:4] - 1, 1).astype(np.float64)
    with np.errstate(all="ignore"):
        corners = (sform - qform)[:3] @ np.stack([last_voxel, [0.0, 0.0, 0.0, 1.0]]).T
    distance = np.abs(corners).max()
    if distance <= _SAME_PLACE_MM:
        return sform, []
    return sform, [f"sform and qform disagree by up to {distance:.1f}; the sform was taken."]


def _contradicting_sizes(header: _Header, sform: Matrix4) -> list[str]:
    """Say that pixdim, which nothing else is made of then, gives other voxel sizes than the sform.

    A program that resamples and brings one of the two up to date leaves such a file.
    """
    told = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    with np.errstate(all="ignore"):
        sizes = np.linalg.norm(sform[:3, :3], axis=0)
        agrees = np.abs(told - sizes) <= _SAME_SIZE * sizes
    if agrees.all() or not (np.isfinite(told).all() and told.all()):
        return []
    ours, theirs = (" x ".join(f"{size:.3g}" for size in each) for each in (sizes, told))
    msg = f"Voxels have {ours} by the sform and {theirs} by pixdim; the sform was taken:"
    return [f"{msg} sizes may be wrong. Check them."]


def _read_qform_or_none(header: _Header, path: Path) -> tuple[Matrix4, list[str]]:
    if int(header["qform_code"]) == 0:
        msg = "The file does not say how the patient lies: columns were taken to run to the left,"
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        return affine, [f"{msg} rows to the front, slices to the head."]
    try:
        return _read_qform(header), []
    except (HeaderDataError, ValueError) as error:
        raise ReadError(f"{path.name} has an impossible qform: {error}.") from error


def _read_qform(header: _Header) -> Matrix4:
    if header["pixdim"][0] == 0:  # nifti1.h, method 2: zero stands for a qfac of one
        header = header.copy()
        header["pixdim"][0] = 1.0
    with np.errstate(all="ignore"):
        return np.asarray(header.get_qform(), dtype=np.float64)


_CAUSES = "Is it a mask, a normalised scan, or is its intercept (scl_inter) missing?"
_BROKEN_STREAM = (OSError, EOFError, zlib.error)


def read_nifti(path: Path, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT from a NIfTI-1 or NIfTI-2 file, gzipped or not.

    The sform is taken where there is one, else the qform; positions become DICOM's (LPS, mm).
    Axes are only permuted: depth is the file's axis closest to the patient's z, height the one
    closest to front-back, width the remaining one; directions stay as in the file.

    Values are taken for Hounsfield units after scl_slope and scl_inter, unless they cannot be: no
    voxel below -200, more than 5 % above 900, or hardly any soft tissue. Then values within 0 to
    255 are read as "windowed", with a warning, and others are refused. NaN, infinities and padding
    below -1500 become air (the lowest value in windowed scans), with a warning.

    Args:
        path: The file. Its content decides whether it is gzipped, not its name.
        allow: "bad-slices" interpolates slices that do not fit their neighbours; "gap" reads a scan
            that jumps as it lies.

    Returns:
        int16 voxels where all values are whole numbers that fit, else float32; C-contiguous.

    Raises:
        ReadError: Not a single-file NIfTI, cut short or damaged, more or fewer bytes than
            declared, several frames, colour or complex values, a sheared or impossible geometry,
            too many voxels, compressed beyond belief, neither HU nor an 8-bit export. The message
            says which.
    """
    try:
        with _open_stream(path) as stream:
            header = _read_header(stream, path)
            layout = _read_layout(header, path)
            grid, warnings = _read_grid(header, layout.shape, path)
            _check_length(layout, path, is_gzip=isinstance(stream, gzip.GzipFile))
            volume = _volume_of(_slabs(stream, layout, path), grid, path, allow, layout.rescale)
    except _BROKEN_STREAM as error:
        msg = (
            f"{path.name} cannot be read to its end ({type(error).__name__}): cut short or damaged."
        )
        raise ReadError(f"{msg} Copy or download it again.") from error
    source = ScanSource(format="nifti", facts={"stored_type": layout.dtype.name})
    return replace(volume, source=source, warnings=(*warnings, *volume.warnings))


def _open_stream(path: Path) -> BufferedIOBase:
    if not path.is_file():
        raise ReadError(f"{path.name} is not a file; a .nii or .nii.gz file was expected.")
    file = path.open("rb")
    if not is_wrapped(file.read(2)):
        file.seek(0)
        return file
    file.close()
    return gzip.GzipFile(path, "rb")


def _check_length(layout: _Layout, path: Path, *, is_gzip: bool) -> None:
    """Compare declared with possible lengths before anything is allocated."""
    file_bytes = path.stat().st_size
    if not is_gzip:
        _check_equal(file_bytes, layout.offset + layout.num_bytes, path)
        return
    memory_bytes = layout.num_bytes * max(2, layout.dtype.itemsize) // layout.dtype.itemsize
    if memory_bytes > UNDOUBTED_BYTES and layout.num_bytes > MAX_RATIO * file_bytes:
        msg = f"{path.name} declares {layout.num_bytes} bytes of voxels in a file of {file_bytes}:"
        raise ReadError(f"{msg} compressed more than {MAX_RATIO} times, which no scan is.")


def _check_equal(found_bytes: int, declared_bytes: int, path: Path) -> None:
    if found_bytes != declared_bytes:
        what = "is cut short" if found_bytes < declared_bytes else "is longer than it declares"
        msg = f"{path.name} {what}: {found_bytes} bytes, {declared_bytes} by its header."
        raise ReadError(f"{msg} Copy or convert it again.")


def _slabs(stream: BufferedIOBase, layout: _Layout, path: Path) -> Iterator[Slab]:
    """Stored numbers, one index of the slowest axis at a time, all in one buffer."""
    stream.seek(layout.offset)
    _, rows, columns = layout.shape
    buffer = bytearray(rows * columns * layout.dtype.itemsize)
    for index in range(layout.shape[0]):
        num_read = stream.readinto(buffer)
        if num_read < len(buffer):
            found_bytes = layout.offset + index * len(buffer) + num_read
            _check_equal(found_bytes, layout.offset + layout.num_bytes, path)
        yield np.frombuffer(buffer, dtype=layout.dtype).reshape(rows, columns)
    # Reading on makes gzip compare its checksum, and shows voxels that the header hides.
    if stream.read(1):
        msg = f"{path.name} is longer than the {layout.num_bytes} bytes of voxels its header"
        raise ReadError(f"{msg} declares. Convert it again.")


def _volume_of(
    slabs: Iterator[Slab],
    stored: Grid,
    path: Path,
    allow: Collection[str],
    rescale: Rescale | None = None,
) -> Volume:
    """Gather slabs, axes only permuted to the patient's, as Hounsfield units where they are."""
    order, _ = canonical_axes(stored)
    depth, height, width = order
    grid = replace(
        stored,
        shape=(stored.shape[depth], stored.shape[height], stored.shape[width]),
        spacing_mm=(stored.spacing_mm[depth], stored.spacing_mm[height], stored.spacing_mm[width]),
        direction=tuple(stored.direction[axis] for axis in order),
    )
    stored_axes = (order.index(0), order.index(1), order.index(2))
    gathered = gather(slabs, grid.shape, stored_axes, rescale)
    unit, warnings = _settled(gathered, path)
    warnings += mend_misfits(gathered.voxels, unit, allow)
    return Volume(grid, gathered.voxels, unit, warnings=(*_made_up(grid), *warnings))


def _made_up(grid: Grid) -> list[str]:
    """Say that a geometry is none; an axis may run either way, as NIfTI's and DICOM's do."""
    is_unit = grid.spacing_mm == (1.0, 1.0, 1.0) and not any(grid.origin_mm)
    if not (is_unit and np.array_equal(np.abs(grid.direction), np.eye(3)[::-1])):
        return []
    msg = "The geometry is what programs write that know none: voxels of 1 mm from the origin."
    return [f"{msg} It was taken as it is: sizes and sides may be wrong."]


def _settled(gathered: Gathered, path: Path) -> tuple[Unit, list[str]]:
    """Decide whether the values are HU, and mend them in place."""
    voxels, num_broken = gathered.voxels, gathered.num_not_finite
    warnings: list[str] = []
    doubt = why_not_hounsfield(voxels, gathered.lowest)
    filler = gathered.lowest if doubt else AIR_HU
    if num_broken:
        # They stand at air, below any windowed value.
        np.maximum(voxels, voxels.dtype.type(filler), out=voxels, where=voxels == AIR_HU)
        warnings.append(f"{num_broken} voxels were NaN or infinite; they were set to {filler:g}.")
    if doubt:
        check_windowed(gathered.lowest, gathered.highest, doubt, path.name, _CAUSES)
        return "windowed", [
            f"The values are not Hounsfield units: {doubt}. Read as windowed.",
            *warnings,
        ]
    return "HU", [*warnings, *padding_to_air(voxels)]


_HEADER_ENDINGS: Final = (".mhd", ".nhdr")
"""Headers whose voxels lie in another file."""

_HEADER_BYTES: Final = 2**16
_SPACING: Final = re.compile(rb"^(ElementSpacing|ElementSize|spacings|space directions)\b", re.M)
_ELSEWHERE: Final = re.compile(
    rb"^(ElementDataFile[ \t]*=[ \t]*(?![ \t]|LOCAL[ \t\r]*$)|data ?file[ \t]*:)", re.M | re.I
)


def read_itk(path: Path, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT from a MetaImage or NRRD file.

    Positions are DICOM's (LPS, mm); axes are only permuted, as `read_nifti` does. Values are taken
    for Hounsfield units under the same conditions as those of NIfTI.

    Args:
        path: The file.
        allow: "bad-slices" interpolates slices that do not fit their neighbours; "gap" reads a scan
            that jumps as it lies.

    Returns:
        int16 voxels where all values are whole numbers that fit, else float32; C-contiguous.

    Raises:
        ReadError: Damaged, several values per voxel, voxels in another file or of no known size,
            or neither HU nor an 8-bit export.
        GridError: Too many voxels, or an impossible geometry.
        MissingExtraError: SimpleITK is not installed.
    """
    _check_header(path)
    sitk: Any = import_extra("SimpleITK", extra="itk")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_layout(reader, path)
        image = reader.Execute()
    except RuntimeError as error:
        # Its text is of ITK's own source files.
        msg = f"{path.name} is cut short, damaged or not what its name says. Copy it again."
        raise ReadError(msg) from error
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind not in "iuf":
        raise ReadError("Complex values were found; one real number per voxel was expected.")
    source = ScanSource(format="itk", facts={"stored_type": image.GetPixelIDTypeAsString()})
    return replace(_volume_of(iter(array), _stored_grid(image), path, allow), source=source)


def _check_header(path: Path) -> None:
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if path.name.lower().endswith(_HEADER_ENDINGS) or _ELSEWHERE.search(header):
        msg = f"{path.name} keeps its voxels in another file; one file was expected. Convert it to"
        raise ReadError(f"{msg} .mha, .nrrd or .nii.gz.")
    if not _SPACING.search(header):
        msg = f"{path.name} does not say how large its voxels are, or is no MetaImage or NRRD file."
        raise ReadError(f"{msg} Convert the scan again from DICOM.")


def _check_layout(reader: Any, path: Path) -> None:
    size, num_values = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3 or num_values != 1:
        msg = f"{path.name} holds an array of {size} with {num_values} values per voxel; one 3D"
        raise ReadError(f"{msg} scan was expected. Extract it.")
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        msg = f"{path.name} declares {size} voxels; at most {MAX_VOXELS} are read."
        raise ReadError(f"{msg} {SMALLER}")


def _stored_grid(image: Any) -> Grid:
    """The grid of the voxels as stored, axes (k, j, i)."""
    columns = np.asarray(image.GetDirection(), dtype=np.float64).reshape(3, 3).T[::-1]
    x, y, z = image.GetOrigin()
    width, height, depth = image.GetSize()
    width_mm, height_mm, depth_mm = image.GetSpacing()
    return Grid(
        shape=(depth, height, width),
        spacing_mm=(depth_mm, height_mm, width_mm),
        origin_mm=(x, y, z),
        direction=tuple((float(a), float(b), float(c)) for a, b, c in columns),
    )

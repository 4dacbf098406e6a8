"""Masks on a scan: NIfTI or DICOM Segmentation, from another program or drawn by a person.

The readers of scans refuse masks, as they should: a mask given as a scan is a mistake. Here a mask
is read as one, and laid on the very scan it was made for: its geometry must be the scan's.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from jaxtyping import Bool, Num

from chestct.arrays import Mask
from chestct.errors import GridError, ReadError
from chestct.readers.dicom_elements import looks_like_dicom
from chestct.remote import local_copy
from chestct.volume import Grid, Volume, canonical_grid, to_canonical, to_own_axes

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage
    from pydicom import Dataset

_SAME_PLACE: Final = 0.1
"""Distance of a mask's corner from the scan's, in voxels, that rounding in headers explains."""
_LARGEST_LABEL: Final = 1023
_LOBES: Final = 5
"""Masks with no higher label hold the lungs and nothing else: whole, right and left, or lobes."""
_NAMED_LABEL: Final = re.compile(rb'Key="(\d+)"[^>]*>(?:<!\[CDATA\[)?([^<\]]*)')
"""A label and its name, as TotalSegmentator writes them behind the header (Caret's format)."""
_LUNG_NAME: Final = re.compile(r"lung|lobe", re.IGNORECASE)
_NO_LUNG: Final = re.compile(r"vessel|nodule|lesion|tumou?r|cancer|effusion|trachea", re.IGNORECASE)
_SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_REMEDY: Final = "Give one mask of both lungs, made on this very scan."

_Labels = Num[np.ndarray, "depth height width"]


def read_lungs(path: Path, volume: Volume) -> Volume:
    """Read the lungs of a scan from a mask of them.

    Args:
        path: A NIfTI file: a mask, labels up to 5 (right and left, or lobes), or more labels with
            their names, of which those of the lungs are taken. A DICOM Segmentation: its only
            segment, or those named lung. A folder of masks, one per lobe, as TotalSegmentator
            writes: those named lung.
        volume: The scan the mask was made for.

    Returns:
        True in the lungs, on the scan's own grid.

    Raises:
        ReadError: It cannot be read, does not say which of its labels are the lungs, is empty, or
            does not lie on the scan's voxels.
        GridError: It has an impossible grid or too many voxels.
    """
    with local_copy(path) as copy:
        return _read_lungs(copy, volume)


def _read_lungs(path: Path, volume: Volume) -> Volume:
    """As `read_lungs`, of a path of this machine."""
    if not path.exists():
        raise ReadError(f"The mask {path.name} does not exist. {_REMEDY}")
    files = _files_of(path)
    if _is_dicom(files[0]):
        mask = _read_segmentation(files[0], volume.grid)
    else:
        placed = (_on_grid(_lungs_of(file), volume.grid, file.name) for file in files)
        mask = reduce(np.logical_or, placed)
    if not mask.any():
        raise ReadError(f"The mask {path.name} is empty: no voxel of it is lung. {_REMEDY}")
    return volume.with_voxels(mask)


def read_mask(path: Path) -> Volume:
    """Read a mask from a NIfTI file: what is above 0 is inside.

    Raises:
        ReadError: It cannot be read, or does not have three axes.
        GridError: It has an impossible grid or too many voxels.
    """
    labels, _ = _read_nifti(path)
    return labels.with_voxels(labels.voxels > 0)


def same_place(first: Grid, second: Grid) -> bool:
    """Whether two grids have the same voxels, however their axes are ordered and directed."""
    one, other = canonical_grid(first), canonical_grid(second)
    if one.shape != other.shape:
        return False
    ends = np.array(np.meshgrid(*((0.0, n - 1.0) for n in one.shape), indexing="ij"))
    corners = ends.reshape(3, -1).T
    away = np.abs(other.to_index(one.to_patient(corners)) - corners)
    return bool(away.max() <= _SAME_PLACE)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    masks = [file for file in sorted(path.glob("*.nii*")) if _is_lung(file.name)]
    if masks:
        return masks
    found = [file for file in sorted(path.iterdir()) if file.is_file() and _is_dicom(file)]
    if len(found) == 1:
        return found
    msg = f"The folder {path.name} holds no NIfTI mask named lung, and {len(found)} DICOM files"
    raise ReadError(f"{msg} where one Segmentation was expected. {_REMEDY}")


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream.read(132))
    except OSError as error:
        raise ReadError(f"The mask {path.name} cannot be opened: {error.strerror}.") from error


def _is_lung(name: str) -> bool:
    return bool(_LUNG_NAME.search(name)) and not _NO_LUNG.search(name)


def _read_nifti(path: Path) -> tuple[Volume, Mapping[int, str]]:
    """Labels as stored, and their names where the file holds them."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import SpatialImage

    from chestct.readers.nifti import grid_of_affine

    try:
        found = nibabel.load(path)
        if not isinstance(found, SpatialImage):
            raise ImageFileError("no voxels")
        if len(found.shape) != 3:
            msg = f"{path.name} has {len(found.shape)} axes and a mask has three: give one mask."
            raise ReadError(msg)
        width, height, depth = found.shape
        grid = grid_of_affine(found.affine, (depth, height, width))
        values = _values_of(found)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        msg = f"{path.name} cannot be read as NIfTI ({type(error).__name__}): give a mask as one."
        raise ReadError(msg) from error
    stored = np.ascontiguousarray(values.transpose(2, 1, 0))
    return Volume(grid, stored, unit="windowed"), _names_in(found)


def _values_of(found: SpatialImage) -> np.ndarray:
    """Labels in their own type where the header does not rescale them: floats are much larger."""
    header = cast("Mapping[str, float]", found.header)
    slope, inter = (float(np.nan_to_num(header[key])) for key in ("scl_slope", "scl_inter"))
    unscaled = getattr(found.dataobj, "get_unscaled", None)
    if unscaled is not None and slope in (0.0, 1.0) and inter == 0.0:
        return np.asarray(unscaled())
    return np.asanyarray(found.dataobj)


def _names_in(found: SpatialImage) -> dict[int, str]:
    extensions = getattr(found.header, "extensions", ())
    text = b"".join(each.get_content() for each in extensions if _holds_bytes(each))
    return {int(key): name.decode("utf-8", "replace") for key, name in _NAMED_LABEL.findall(text)}


def _holds_bytes(extension: object) -> bool:
    content = getattr(extension, "get_content", bytes)()
    return isinstance(content, bytes)


def _lungs_of(path: Path) -> Volume:
    """The lungs of one NIfTI file."""
    labels, names = _read_nifti(path)
    wanted = _lung_labels(labels.voxels, names, path.name)
    if wanted is None:
        return labels.with_voxels(labels.voxels >= 0.5)
    is_lung = np.zeros(_LARGEST_LABEL + 1, dtype=np.bool_)
    is_lung[wanted] = True
    return labels.with_voxels(np.stack([is_lung[plane.astype(int)] for plane in labels.voxels]))


def _lung_labels(values: _Labels, names: Mapping[int, str], file: str) -> list[int] | None:
    """The labels that are lung; None where the values are shares or mean lung above zero."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= _LARGEST_LABEL):
        msg = f"The mask {file} holds values from {low:g} to {high:g}, which are no labels."
        raise ReadError(f"{msg} {_REMEDY}")
    if values.dtype.kind == "f":
        if high <= 1.0:
            return None
        if any(bool((plane != np.floor(plane)).any()) for plane in values):
            raise ReadError(f"The mask {file} holds fractions above 1: no labels. {_REMEDY}")
    present = np.zeros(_LARGEST_LABEL + 1, dtype=np.bool_)
    for plane in values:
        present[plane.astype(int)] = True
    labels = [int(label) for label in np.flatnonzero(present) if label > 0]
    by_name = [label for label in labels if _is_lung(names.get(label, ""))]
    if by_name or high <= _LOBES or len(labels) == 1:
        return by_name or labels
    msg = f"The mask {file} holds {len(labels)} labels up to {high:g} and does not say which are"
    raise ReadError(f"{msg} the lungs. {_REMEDY}")


def _on_grid(mask: Volume, grid: Grid, file: str) -> Mask:
    """A mask in the axis order of the scan whose voxels it lies on."""
    if not same_place(mask.grid, grid):
        raise ReadError(_elsewhere(mask.grid, grid, file))
    return np.ascontiguousarray(to_own_axes(to_canonical(mask).voxels, grid))


def _elsewhere(found: Grid, wanted: Grid, file: str) -> str:
    one, other = canonical_grid(found), canonical_grid(wanted)
    if one.shape != other.shape:
        why = f"it has {one.shape} voxels and the scan {other.shape} (depth, height, width)"
    else:
        middle = (np.asarray(one.shape) - 1) / 2.0
        away = float(np.linalg.norm(one.to_patient(middle) - other.to_patient(middle)))
        why = (
            f"its middle lies {away:.1f} mm from the scan's, its voxels measure "
            f"{_mm(one.spacing_mm)} mm and the scan's {_mm(other.spacing_mm)}"
        )
    return f"The mask {file} does not lie on the scan's voxels: {why}. {_REMEDY}"


def _mm(spacing_mm: tuple[float, float, float]) -> str:
    return " x ".join(f"{each:.4g}" for each in spacing_mm)


def _read_segmentation(path: Path, grid: Grid) -> Mask:
    """The lungs of a DICOM Segmentation (PS3.3 A.51), frame by frame, on the scan's voxels."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        found = dcmread(path)
        if found.SOPClassUID not in _SEGMENTATIONS:
            msg = f"{path.name} is DICOM but no Segmentation. {_REMEDY}"
            raise ReadError(msg)
        segments = _lung_segments(found, path.name)
        mask = np.zeros(grid.shape, dtype=np.bool_)
        for frame, plane in _frames(found, segments):
            view = _place_of(frame, found, mask, grid)
            if view is None or view.shape != plane.shape:
                raise ReadError(_elsewhere(_grid_of_frame(frame, found), grid, path.name))
            view |= plane
    except (InvalidDicomError, OSError, AttributeError, KeyError, IndexError, ValueError) as error:
        if isinstance(error, ReadError | GridError):
            raise
        msg = f"{path.name} cannot be read as a DICOM Segmentation ({type(error).__name__})."
        raise ReadError(f"{msg} {_REMEDY}") from error
    return mask


def _lung_segments(found: Dataset, file: str) -> set[int]:
    """Numbers of the segments that are lung."""
    labels = {
        int(item.SegmentNumber): _words_of(item)
        for item in found.SegmentSequence
        if "SegmentNumber" in item and int(item.SegmentNumber) > 0
    }
    named = {number for number, words in labels.items() if _is_lung(words)}
    if named or len(labels) == 1:
        return named or set(labels)
    msg = f"{file} holds {len(labels)} segments and none is named lung."
    raise ReadError(f"{msg} {_REMEDY}")


def _words_of(item: Dataset) -> str:
    kinds = item.get("SegmentedPropertyTypeCodeSequence", ())
    return " ".join([str(item.SegmentLabel), *(str(kind.get("CodeMeaning", "")) for kind in kinds)])


def _frames(
    found: Dataset, segments: set[int]
) -> Iterator[tuple[Dataset, Bool[np.ndarray, "rows columns"]]]:
    """The frames of the segments wanted: each frame's own attributes, and where it is true."""
    from pydicom.pixels.utils import pixel_array

    kind = found.get("SegmentationType", "LABELMAP")
    for index, frame in enumerate(found.PerFrameFunctionalGroupsSequence):
        if kind == "LABELMAP":
            yield frame, np.isin(pixel_array(found, index=index), list(segments))
            continue
        shared = found.SharedFunctionalGroupsSequence[0]
        place = frame if "SegmentIdentificationSequence" in frame else shared
        if int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber) in segments:
            half = found.MaximumFractionalValue / 2 if kind == "FRACTIONAL" else 0.5
            yield frame, np.asarray(pixel_array(found, index=index) >= half)


def _grid_of_frame(frame: Dataset, found: Dataset) -> Grid:
    """The frame as a grid of one slice."""
    shared = found.SharedFunctionalGroupsSequence[0]

    def _group(name: str) -> Dataset:
        group: Dataset = (frame if name in frame else shared)[name].value[0]
        return group

    row = np.array(_group("PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
    across, down = row[:3], row[3:]
    height, width = map(float, _group("PixelMeasuresSequence").PixelSpacing)
    x, y, z = map(float, _group("PlanePositionSequence").ImagePositionPatient)
    axes = (np.cross(across, down), down, across)
    thickness = float(_group("PixelMeasuresSequence").get("SliceThickness") or 1.0)
    return Grid(
        shape=(1, int(found.Rows), int(found.Columns)),
        spacing_mm=(thickness, height, width),
        origin_mm=(x, y, z),
        direction=tuple((float(a), float(b), float(c)) for a, b, c in axes),
    )


def _place_of(
    frame: Dataset, found: Dataset, mask: Mask, grid: Grid
) -> Bool[np.ndarray, "rows columns"] | None:
    """The part of a mask on a scan's grid that a frame fills, as rows and columns; None if none."""
    plane = _grid_of_frame(frame, found)
    _, rows, columns = plane.shape
    corners = np.array([(0, 0, 0), (0, rows - 1, 0), (0, 0, columns - 1)], dtype=np.float64)
    places = grid.to_index(plane.to_patient(corners))
    whole = np.rint(places).astype(int)
    if np.abs(places - whole).max() > _SAME_PLACE:
        return None
    first, down, across = whole
    moved = [np.flatnonzero(end - first) for end in (down, across)]
    if any(axes.size != 1 for axes in moved) or (whole < 0).any() or (whole >= mask.shape).any():
        return None
    height, width = int(moved[0][0]), int(moved[1][0])
    depth = ({0, 1, 2} - {height, width}).pop()
    turned = mask.transpose(depth, height, width)
    rows_run, columns_run = (
        _run(int(first[axis]), int(end[axis])) for end, axis in ((down, height), (across, width))
    )
    return turned[int(first[depth]), rows_run, columns_run]


def _run(first: int, last: int) -> slice:
    """Indices from the first to the last one, upwards or downwards."""
    step = 1 if last >= first else -1
    stop = last + step
    return slice(first, stop if stop >= 0 else None, step)

"""Readers: path -> `Volume`. To add one: a file, and a line in `READERS`.

Another package's reader is an entry point of `chestct.readers` whose name is the ending of the
files that it reads, without the dot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.errors import ReadError, UnknownNameError
from chestct.lookup import look_up, plugins_of, unknown_name_message
from chestct.readers.dicom_elements import looks_like_dicom
from chestct.readers.files import folder_files, path_status, refuse_archive
from chestct.remote import local_copy
from chestct.volume import Volume

if TYPE_CHECKING:
    from chestct.readers.pictures import TiffGeometry

ALLOWED: Final[dict[str, str]] = {
    "gap": "interpolate more than one slice missing in a row, and read a scan that jumps",
    "tilt": "resample a stack tilted by more than 1 degree",
    "mixed-orientations": "read the largest group of a series that mixes sizes or orientations",
    "bad-slices": "interpolate slices that do not fit their neighbours",
    "unplaced": "leave out slices that do not say where they lie",
}
"""What a user may permit, and what it does; the command line has --allow-NAME for each."""

_ENDINGS: Final = {
    "nifti": (".nii", ".nii.gz", ".hdr"),
    "itk": (".mha", ".nrrd", ".mhd", ".nhdr"),
}
"""Formats that are known by the names of their files, each a whole scan."""
_MAX_ASPECT: Final = 1.6
"""Longer over shorter side of a pixel that is believed; all real scans at hand had square ones."""
_WORDS: Final = {"nifti": "NIfTI", "itk": "MetaImage or NRRD"}


@dataclass(frozen=True)
class ReadOptions:
    """What a user may say about a scan.

    Attributes:
        series: SeriesInstanceUID to read, for DICOM.
        allow: Names out of `ALLOWED`.
        tiff: Geometry and mapping to HU, for slices that do not say it.
        lungs: Mask of the scan's lungs.
    """

    series: str | None = None
    allow: Collection[str] = ()
    tiff: TiffGeometry | None = None
    lungs: Path | None = None

    def read(self, path: str | Path) -> Volume:
        """The scan at a path, as `read_volume`."""
        return read_volume(path, series=self.series, allow=self.allow, tiff=self.tiff)

    def lungs_of(self, volume: Volume) -> Volume | None:
        """The mask of a scan's lungs, as `chestct.readers.masks.read_lungs`; None without one."""
        from chestct.readers.masks import read_lungs

        return None if self.lungs is None else read_lungs(self.lungs, volume)


def _read_dicom(path: Path, options: ReadOptions) -> Volume:
    """DICOM: a folder, a zip, or a file."""
    from chestct.readers.dicom_series import read_dicom

    return read_dicom(path, series=options.series, allow=options.allow)


def _read_nifti(path: Path, options: ReadOptions) -> Volume:
    """NIfTI: a .nii or .nii.gz file."""
    from chestct.readers.nifti import read_nifti

    return read_nifti(path, options.allow)


def _read_tiff(path: Path, options: ReadOptions) -> Volume:
    """A folder of slices as TIFF, PNG or JPEG."""
    from chestct.readers.pictures import read_tiff_stack

    return read_tiff_stack(path, options.tiff, options.allow)


def _read_itk(path: Path, options: ReadOptions) -> Volume:
    """MetaImage or NRRD: a .mha or .nrrd file (extra "itk")."""
    from chestct.readers.nifti import read_itk

    return read_itk(path, options.allow)


Reader = Callable[[Path, ReadOptions], Volume]

READERS: Final[dict[str, Reader]] = {
    "dicom": _read_dicom,
    "nifti": _read_nifti,
    "itk": _read_itk,
    "tiff": _read_tiff,
}
"""Format name to reader; packages are imported when a reader is first called."""


def read_volume(
    path: str | Path,
    *,
    series: str | None = None,
    allow: Collection[str] = (),
    tiff: TiffGeometry | None = None,
) -> Volume:
    """Read a scan, whatever its format.

    Args:
        path: Folder, zip or file: DICOM (nested folders too), NIfTI, MetaImage, NRRD, or a folder
            of slices. An address of other storage names the same there.
        series: SeriesInstanceUID to read where a folder holds several DICOM series, with the number
            of its part where it stands for several ("1.2.3#2").
        allow: Departures to mend although they are large, names out of `ALLOWED`.
        tiff: Geometry and mapping to HU of a folder of slices, unless a sidecar gives them.

    Returns:
        The scan on its own axes (depth, height, width), spacing in mm, with `source` and
        `warnings` saying where it came from and what was mended.

    Raises:
        ReadError: There is no scan, it is damaged, or it should not be read without permission.
        GridError: It has an impossible grid or too many voxels.
        UnknownNameError: A name in `allow` is unknown.
    """
    for name in allow:
        if name not in ALLOWED:
            raise UnknownNameError(unknown_name_message(name, ALLOWED, kind="permission"))
    with local_copy(path) as place:
        return _read(place, ReadOptions(series, allow, tiff))


def _read(place: Path, options: ReadOptions) -> Volume:
    """Read a scan of this machine, once it is known what it is."""
    series, tiff = options.series, options.tiff
    path_status(place)
    name, found = _recognised(place)
    if series is not None and name != "dicom":
        raise ReadError(
            f"A series was named, and {place.name} is not DICOM but {name}. Leave it out."
        )
    if tiff is not None and name != "tiff":
        raise ReadError(
            f"How slices lie was said ({tiff.as_options()}; tiff= in Python), and {place.name} is"
            f" no folder of TIFF, PNG or JPEG slices: it is read as {name}, which says so itself."
            " Leave it out, or name the folder of the slices."
        )
    reader = look_up(READERS, name, kind="reader")
    volume = reader(found, options)
    _, height_mm, width_mm = volume.grid.spacing_mm
    if max(height_mm, width_mm) <= _MAX_ASPECT * min(height_mm, width_mm):
        return volume
    said = f"Pixels of {height_mm:.3g} x {width_mm:.3g} mm are not square, as those of"
    return replace(volume, warnings=(*volume.warnings, f"{said} CT are. A size may be wrong."))


def format_of(path: str | Path) -> str:
    """Name in `READERS`, or of another package's reader, of what a scan would be read as.

    Raises:
        ReadError: It cannot be looked at, or holds more than one scan.
    """
    place = Path(path)
    path_status(place)
    return _recognised(place)[0]


def _recognised(path: Path) -> tuple[str, Path]:
    """Which reader, and the path it should read: a folder may hold one file that is a scan."""
    if not path.is_dir():
        return _recognised_file(path), path
    files = folder_files(path)
    if any(_starts_as_dicom(file.path) for file in files if not file.problem):
        return "dicom", path
    paths = [file.path for file in files]
    scans = [(name, file) for file in paths if (name := _by_name(file))]
    if not scans:
        from chestct.readers.pictures import is_slice_folder

        if is_slice_folder(path):
            return "tiff", path
        scans = _by_plugin(paths)
    if len(scans) > 1:
        kinds = " or ".join(_WORDS.get(name, name) for name in dict.fromkeys(n for n, _ in scans))
        msg = f"{path.name} holds {len(scans)} {kinds} files and one scan was expected."
        raise ReadError(f"{msg} Name one of the files.")
    return scans[0] if scans else ("dicom", path)


def _recognised_file(path: Path) -> str:
    """Which reader takes a file; DICOM where nothing tells."""
    name = _by_name(path)
    if name is not None:
        return name
    others = [] if _starts_as_dicom(path) else _by_plugin([path])
    if others:
        return others[0][0]
    refuse_archive(path, [ending for endings in _ENDINGS.values() for ending in endings])
    return "dicom"


def _by_name(path: Path) -> str | None:
    """The format that a file's name says; None where DICOM has to be looked for in it."""
    name = path.name.lower()
    return next((known for known, endings in _ENDINGS.items() if name.endswith(endings)), None)


def _by_plugin(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Those files that readers of other packages take by their endings, with the reader's name."""
    endings = sorted(plugins_of("reader", READERS), key=len, reverse=True)
    found = []
    for path in paths:
        name = path.name.lower()
        found += [(known, path) for known in endings if name.endswith(f".{known}")][:1]
    return found


def _starts_as_dicom(path: Path) -> bool:
    """Whether a file's first bytes are those of DICOM; one that cannot be opened counts as such."""
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream.read(132))
    except OSError:
        return True

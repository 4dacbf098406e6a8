"""What can be written about a classified scan: the table of writers.

Each takes the analysis, the folder of this scan and the options, and returns the file or folder
it wrote. Files are written aside and renamed, so a file that is there is whole. The table's order
is the order of writing, as a report comes after what it refers to; only those in `TELLING` come
last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from chestct.errors import WriteError
from chestct.lookup import look_up

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis


class NothingToWriteError(WriteError):
    """This output cannot be made of this scan; the others can."""


@dataclass(frozen=True)
class WriteOptions:
    """What a user may say about the outputs of one call.

    Attributes:
        names: Names in `WRITERS`, in the order of the table: an object may refer to one that was
            written before it.
        skips_impossible: Whether an output that cannot be made of a scan is left out with a
            remark, as it should be when all were asked for, instead of being an error.
        is_deterministic: Whether DICOM objects are the same bytes each time, with the series'
            dates. Otherwise they have the date of writing; identifiers are the same each time in
            either case.
        makes_uids: Whether identifiers that the series lacks are made for DICOM objects.
        is_shared: Whether files and folders get the permissions that the system gives to new ones;
            otherwise nobody else may read them.
        earlier: Folder with the results that these replace, if any.
    """

    names: tuple[str, ...] = ("json", "html", "preview")
    skips_impossible: bool = False
    is_deterministic: bool = False
    makes_uids: bool = False
    is_shared: bool = False
    earlier: Path | None = None


Writer: TypeAlias = "Callable[[ScanAnalysis, Path, WriteOptions], Path]"


def _write_json(analysis: ScanAnalysis, folder: Path, _: WriteOptions) -> Path:
    """result.json: the answer for programs."""
    from chestct.writers.json_report import write_json

    return write_json(analysis, folder)


def _write_html(analysis: ScanAnalysis, folder: Path, _: WriteOptions) -> Path:
    """report.html: the answer for people."""
    from chestct.writers.pages import write_html

    return write_html(analysis, folder)


def _write_preview(analysis: ScanAnalysis, folder: Path, _: WriteOptions) -> Path:
    """preview.png: the answer in one picture."""
    from chestct.writers.preview import write_preview

    return write_preview(analysis, folder)


def _write_nifti(analysis: ScanAnalysis, folder: Path, _: WriteOptions) -> Path:
    """heat-map.nii.gz and lungs.nii.gz on the scan's own grid."""
    from chestct.writers.nifti import write_nifti_maps

    return write_nifti_maps(analysis, folder)


def _write_dicom_seg(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """segmentation.dcm: lungs and strong evidence as a DICOM Segmentation."""
    from chestct.writers.dicom_seg import write_segmentation

    return write_segmentation(analysis, folder, options)


def _write_dicom_parametric_map(
    analysis: ScanAnalysis, folder: Path, options: WriteOptions
) -> Path:
    """heat-map.dcm: the heat-map as a DICOM Parametric Map."""
    from chestct.writers.dicom_maps import write_parametric_map

    return write_parametric_map(analysis, folder, options)


def _write_dicom_sr(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """report.dcm: the answer as a DICOM Structured Report."""
    from chestct.writers.dicom_sr import write_structured_report

    return write_structured_report(analysis, folder, options)


def _write_dicom_sc(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """overlays/: pictures with heat-map; never part of "all", as pixels can hold names."""
    from chestct.writers.dicom_sc import write_overlays

    return write_overlays(analysis, folder, options)


WRITERS: Final[dict[str, Writer]] = {
    "json": _write_json,
    "html": _write_html,
    "preview": _write_preview,
    "nifti": _write_nifti,
    "dicom_seg": _write_dicom_seg,
    "dicom_parametric_map": _write_dicom_parametric_map,
    "dicom_sr": _write_dicom_sr,
    "dicom_sc": _write_dicom_sc,
}
"""Writer name to writer."""

OUTPUTS: Final[dict[str, tuple[str, ...]]] = {
    "json": ("result.json",),
    "html": ("report.html",),
    "preview": ("preview.png",),
    "nifti": ("heat-map.nii.gz", "lungs.nii.gz"),
    "dicom_seg": ("segmentation.dcm",),
    "dicom_parametric_map": ("heat-map.dcm",),
    "dicom_sr": ("report.dcm",),
    "dicom_sc": ("overlays/[0-9][0-9][0-9][0-9].dcm",),
}
"""Writer name to the names of all that it may leave in a folder of results, as `Path.glob` takes
them. Nothing else in such a folder is ever removed."""

OWNER: Final = "json"
"""Writes what says whose results a folder holds, and therefore always runs."""
TELLING: Final = ("html", OWNER)
"""Say which outputs could not be written, and are therefore written after the others."""
DICOM: Final = ("dicom_seg", "dicom_parametric_map", "dicom_sr", "dicom_sc")
"""Writers whose outputs belong to a DICOM series."""
ALL: Final = "all"
"""Stands for every writer that is not in `ONLY_BY_NAME`."""
DEFAULT: Final = WriteOptions().names
"""What is written when nothing else is said."""
ONLY_BY_NAME: Final = ("dicom_sc",)
"""Copies the scan's pixels, in which a scanner may have burned a name."""
NEEDS_HEAT_MAP: Final = ("dicom_parametric_map", "dicom_sc")
"""Writers that have nothing to write without a heat-map."""


def choose_writers(said: Sequence[str]) -> tuple[str, ...]:
    """The writers that were asked for, in the order of the table.

    Args:
        said: Names in `WRITERS`, `ALL` among them for nearly all.

    Raises:
        UnknownNameError: There is no such writer.
    """
    wanted = {name for name in said if name != ALL}
    for name in wanted:
        look_up(WRITERS, name, kind="writer")
    if ALL in said:
        wanted |= set(WRITERS) - set(ONLY_BY_NAME)
    return tuple(name for name in WRITERS if name in wanted)

"""What can be written about a classified scan: the table of writers.

Each takes the analysis, the folder of this scan and the options, and returns the file or folder
it wrote. Files are written aside and renamed, so a file that is there is whole. The table's order
is the order of writing, as a report comes after what it refers to; only those in `TELLING` come
last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestct.errors import WriteError
from chestct.lookup import Entry, look_up


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
        earlier: Folder with the results that these replace, if any.
    """

    names: tuple[str, ...] = ("json", "html", "preview")
    skips_impossible: bool = False
    is_deterministic: bool = False
    makes_uids: bool = False
    earlier: Path | None = None


WRITERS: Final[dict[str, Entry]] = {
    "json": Entry("chestct.writers.json_report:write_json", "result.json: the answer for programs"),
    "html": Entry("chestct.writers.pages:write_html", "report.html: the answer for people"),
    "preview": Entry(
        "chestct.writers.preview:write_preview", "preview.png: the answer in one picture"
    ),
    "nifti": Entry(
        "chestct.writers.nifti:write_nifti_maps",
        "heat-map.nii.gz and lungs.nii.gz on the scan's own grid",
    ),
    "dicom_seg": Entry(
        "chestct.writers.dicom_images:write_segmentation",
        "segmentation.dcm: lungs and strong evidence as a DICOM Segmentation",
    ),
    "dicom_parametric_map": Entry(
        "chestct.writers.dicom_images:write_parametric_map",
        "heat-map.dcm: the heat-map as a DICOM Parametric Map",
    ),
    "dicom_sr": Entry(
        "chestct.writers.dicom_sr:write_structured_report",
        "report.dcm: the answer as a DICOM Structured Report",
    ),
    "dicom_sc": Entry(
        "chestct.writers.dicom_images:write_overlays", "overlays/: pictures with heat-map"
    ),
}
"""Writer name to a function of an analysis, a folder and `WriteOptions`, and what it writes."""

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
them. Nothing else in such a folder is ever removed, but for what another package's writer left in
the folder that `plugin_folder` names."""

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

    Returns:
        Names in `WRITERS`, then those of other packages' writers.

    Raises:
        UnknownNameError: There is no such writer.
        ChestCTError: It is another package's and cannot be imported.
    """
    wanted = {name for name in said if name != ALL}
    for name in wanted:
        look_up(WRITERS, name, kind="writer")
    if ALL in said:
        wanted |= set(WRITERS) - set(ONLY_BY_NAME)
    others = sorted(wanted - set(WRITERS))
    return (*(name for name in WRITERS if name in wanted), *others)

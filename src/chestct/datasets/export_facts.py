"""What an export says of a patient beside the voxels: what the COVID-MAH-CT data set publishes.

Age, sex, centre, period, tube voltage and current, slice thickness. Nothing else of a header is
looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.datasets.manifest import ManifestRow
from chestct.datasets.manifest_csv import parse_age, parse_sex
from chestct.datasets.scans import headers_of
from chestct.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OLDEST_AGE: Final = 90
"""Older patients are few enough to be recognised: they are all given this age."""
PERIODS: Final = {"none": 0, "year": 4, "month": 7}
"""How much of the study's date is told, as the length of YYYY-MM."""

_TAGS: Final = (
    "PatientAge",
    "PatientSex",
    "StudyDate",
    "AcquisitionDate",
    "KVP",
    "XRayTubeCurrent",
    "SliceThickness",
)


def facts_of_copy(volume: Volume, row: ManifestRow, path: Path, period: str) -> dict[str, str]:
    """What is told of a scan; what is not known is left out.

    Args:
        volume: The scan, read.
        row: Its row: age and sex given there win over the header's.
        path: Where it lies.
        period: A name in `PERIODS`.
    """
    facts = {
        "num_slices": str(volume.grid.shape[0]),
        "slice_spacing_mm": f"{volume.grid.spacing_mm[0]:.3f}",
        "pixel_spacing_mm": f"{volume.grid.spacing_mm[1]:.3f}",
        "unit": volume.unit,
    }
    if volume.source.format == "dicom":
        facts |= _header_facts(list(headers_of(path, volume.source.series_uid, _TAGS)), period)
    if row.age is not None:
        facts["age"] = _age(row.age)
    if row.sex:
        facts["sex"] = row.sex
    return {name: value for name, value in facts.items() if value}


def _header_facts(headers: Sequence[Dataset], period: str) -> dict[str, str]:
    if not headers:
        return {}
    first, facts = headers[0], {}
    # A header may hold anything; what is no age, sex or date is not known.
    with suppress(ValueError):
        age = parse_age(str(first.get("PatientAge") or ""))
        facts["age"] = "" if age is None else _age(age)
    with suppress(KeyError):
        facts["sex"] = parse_sex(str(first.get("PatientSex") or ""))
    date = str(first.get("StudyDate") or first.get("AcquisitionDate") or "")
    if len(date) >= 6 and date[:6].isdecimal():
        facts["period"] = f"{date[:4]}-{date[4:6]}"[: PERIODS[period]]
    for name, tag in (
        ("kv", "KVP"),
        ("ma", "XRayTubeCurrent"),
        ("slice_thickness_mm", "SliceThickness"),
    ):
        facts[name] = _mean(headers, tag)
    return facts


def _age(years: float) -> str:
    """Whole years from one year on; the oldest together."""
    if years >= OLDEST_AGE:
        return str(OLDEST_AGE)
    return f"{int(years)}" if years >= 1 else f"{years:.1f}"


def _mean(headers: Sequence[Dataset], tag: str) -> str:
    """Mean over the slices, as the tube current follows the patient; "" where none has it."""
    values = []
    for header in headers:
        with suppress(ValueError, TypeError):
            values.append(float(header.get(tag)))
    return f"{sum(values) / len(values):.6g}" if values else ""

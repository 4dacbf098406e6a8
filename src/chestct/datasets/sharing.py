"""Share a data set: copies without identity, under new names, with a record of how far it came.

A copy holds voxels and geometry and nothing else, and is read back before it counts. A TIFF stack
knows no place in the patient: it is stored on axes to head, back and left, and a scan that lies
obliquely loses its angle. NIfTI keeps position and angle.

Names for patients say nothing of them: drawn at random, or made with a secret key. A keyed name is
the same in every export made with the key, and nobody without the key can find the patient of a
name by trying names. A random one can be linked to nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import math
import os
import random
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import BaseModel

from chestct import __version__
from chestct.arrays import Voxels
from chestct.datasets.manifest import Manifest, ManifestRow, write_manifest
from chestct.datasets.scans import headers_of, patient_facts, read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.preprocess.oblique import degrees_off
from chestct.readers import read_volume
from chestct.readers.hounsfield import PADDING_BELOW_HU, Rescale, padding_to_air
from chestct.readers.misfits import without_blank_ends
from chestct.readers.pictures import SIDECAR
from chestct.remote import local_copy
from chestct.storage import reason_of, working_folder, write_text
from chestct.volume import Volume, to_canonical

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


_NUM_LETTERS: Final = 10
"""Letters of a pseudonym, five bits each."""
_KEY_BYTES: Final = 32
_LEAST_KEY_BYTES: Final = 16
_MOST_KEY_BYTES: Final = 4096
_OWNER_ONLY = 0o600


def read_or_make_key(path: Path) -> bytes:
    """The secret key in a file; where there is no file, one is made that only its owner can read.

    Raises:
        ChestCTError: The file cannot be read or written, or is no key.
    """
    try:
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
        with path.open("rb") as stream:
            key = stream.read(_MOST_KEY_BYTES + 1)
    except OSError as error:
        msg = f"The key file {path} cannot be used: {reason_of(error)}."
        msg += " Name a file in a folder of yours."
        raise ChestCTError(msg) from error
    if not _LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        msg = f"The key file {path} holds {len(key)} bytes, and {_LEAST_KEY_BYTES} to"
        msg += f" {_MOST_KEY_BYTES} were expected. Name a file that is not there yet:"
        raise ChestCTError(f"{msg} a key is then made.")
    return key


def _keyed_pseudonyms(patients: Iterable[str], key: bytes) -> dict[str, str]:
    """Patient to pseudonym by HMAC-SHA-256: the same key and patient give the same one."""
    names = {
        patient: _letters(hmac.digest(key, f"patient\n{patient.strip()}".encode(), "sha256"))
        for patient in dict.fromkeys(patients)
    }
    if len(set(names.values())) < len(names):
        msg = "Two patients get the same pseudonym, or differ in blanks only. Check the column"
        raise ChestCTError(f"{msg} 'patient', or take another key.")
    return names


def _drawn_pseudonyms(patients: Iterable[str], rng: random.Random) -> dict[str, str]:
    """Patient to pseudonym, drawn, each another."""
    different = list(dict.fromkeys(patients))
    drawn: dict[str, None] = {}
    while len(drawn) < len(different):
        drawn[_letters(rng.randbytes(_KEY_BYTES))] = None
    return dict(zip(different, drawn, strict=True))


def _key_check(key: bytes) -> str:
    """What tells two keys apart and says nothing of them."""
    return hashlib.sha256(hmac.digest(key, b"chestct export", "sha256")).hexdigest()[:16]


def _letters(digest: bytes) -> str:
    """Lower-case letters and digits that no file system confuses."""
    return "p" + base64.b32encode(digest).decode("ascii").lower()[: _NUM_LETTERS - 1]


_OLDEST_AGE: Final = 90
"""Older patients are few enough to be recognised: they are all given this age."""
_PERIODS: Final = {"none": 0, "year": 4, "month": 7}
"""How much of the study's date is told, as the length of YYYY-MM."""

_MEANS: Final = {"kv": "KVP", "ma": "XRayTubeCurrent", "slice_thickness_mm": "SliceThickness"}
"""What is told as a mean over the slices, and its element."""
_TAGS: Final = ("PatientAge", "PatientSex", "StudyDate", "AcquisitionDate", *_MEANS.values())


def _facts_of_copy(volume: Volume, row: ManifestRow, path: Path, period: str) -> dict[str, str]:
    """What is told of a scan; what is not known is left out."""
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
    known = patient_facts(headers[0])
    facts = {"sex": known.get("sex", ""), "period": known.get("date", "")[: _PERIODS[period]]}
    if known.get("age"):
        facts["age"] = _age(float(known["age"]))
    for name, tag in _MEANS.items():
        facts[name] = _mean(headers, tag)
    return facts


def _age(years: float) -> str:
    """Whole years from one year on; the oldest together."""
    if years >= _OLDEST_AGE:
        return str(_OLDEST_AGE)
    return f"{int(years)}" if years >= 1 else f"{years:.1f}"


def _mean(headers: Sequence[Dataset], tag: str) -> str:
    """Mean over the slices, as the tube current follows the patient; "" where none has it."""
    values = []
    for header in headers:
        with suppress(ValueError, TypeError):
            values.append(float(header.get(tag)))
    return f"{sum(values) / len(values):.6g}" if values else ""


_AIR_INTERCEPT: Final = -1024
_LOWEST_INT16: Final = -32768
_HIGHEST_UINT16: Final = 65535
_OBLIQUE_DEG = 0.1
_SAME_MM = 1e-3


def _cleaned(volume: Volume) -> tuple[Volume, tuple[str, ...]]:
    """A scan on canonical axes, values that are no measurement set to air, and what was done."""
    turned = to_canonical(volume)
    if turned.unit != "HU" or turned.voxels.min() >= PADDING_BELOW_HU:
        return turned, ()
    voxels = np.array(turned.voxels)
    said = tuple(padding_to_air(voxels))
    return turned.with_voxels(voxels), said


def _write_tiff16(volume: Volume, place: Path) -> tuple[str, ...]:
    """Write slices from the feet up and the sidecar that explains them; what is lost, in words."""
    import tifffile

    scale = _find_scale(volume.voxels) if volume.unit == "HU" else Rescale()
    stored = _as_stored(volume.voxels, scale)
    if stored is None:
        raise ChestCTError("its values do not fit 16 bits. Export it as NIfTI: --to nifti.")
    place.mkdir(parents=True)
    width = max(4, len(str(len(stored))))
    for number, pixels in enumerate(stored, start=1):
        # No software, date or description: tags hold the pixels' layout only.
        tifffile.imwrite(
            place / f"{number:0{width}d}.tif",
            pixels,
            photometric="minisblack",
            compression="zlib",
            predictor=True,
            metadata=None,
            software=False,
        )
    (place / SIDECAR).write_text(json.dumps(_sidecar_of(volume, scale)) + "\n", encoding="utf-8")
    angle = degrees_off(volume.grid)
    if angle <= _OBLIQUE_DEG:
        return ()
    return (f"lies {angle:.1f} degrees off the patient's axes, which a TIFF stack cannot say",)


def _sidecar_of(volume: Volume, scale: Rescale) -> dict[str, Any]:
    """What slices do not say of themselves."""
    sidecar: dict[str, Any] = {
        "spacing_mm": list(volume.grid.spacing_mm),
        "order": "ascending",
        "unit": volume.unit,
    }
    if volume.unit == "HU":
        sidecar |= {"slope": scale.slope, "intercept": scale.intercept}
    return sidecar


def _write_nifti_copy(volume: Volume, place: Path) -> tuple[str, ...]:
    """Write `.nii.gz`, values and geometry kept; the same scan gives the same bytes."""
    from chestct.readers.nifti import image_on_grid

    image = image_on_grid(np.asarray(volume.voxels), volume.grid)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Without time and name, which gzip would keep.
    place.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
    return ()


def _verify_copy(volume: Volume, place: Path) -> None:
    """Read a copy back and compare it with what was to be written."""
    found = read_volume(place, allow=("gap",))
    same_voxels = found.voxels.dtype == volume.voxels.dtype and np.array_equal(
        found.voxels, volume.voxels
    )
    same_grid = np.allclose(found.grid.spacing_mm, volume.grid.spacing_mm, atol=_SAME_MM, rtol=0)
    if not (same_voxels and same_grid and found.unit == volume.unit):
        what = "unit" if found.unit != volume.unit else "values" if same_grid else "spacing"
        raise ChestCTError(f"its copy has other {what} when it is read back.")


_COPY_FORMATS: Final[dict[str, tuple[str, Callable[[Volume, Path], tuple[str, ...]]]]] = {
    "tiff16": ("", _write_tiff16),
    "nifti": (".nii.gz", _write_nifti_copy),
}
"""Format name to what a copy's name ends with (a folder's with nothing), and what writes one and
says what it does not hold."""


def _find_scale(voxels: Voxels) -> Rescale:
    """A scale under which 16 bits hold every value exactly, as our reader computes it.

    Whole HU keep slope 1. Others lie on the steps of a scanner's rescale slope, which is found
    from the smallest distance between two values.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if voxels.dtype.kind == "i":
        fits_air = low >= _AIR_INTERCEPT and high - _AIR_INTERCEPT <= _HIGHEST_UINT16
        return Rescale(1.0, float(_AIR_INTERCEPT if fits_air else _LOWEST_INT16))
    values = np.unique(voxels).astype(np.float64)
    steps = np.diff(values)
    if steps.size and (high - low) / steps.min() <= _HIGHEST_UINT16 + 0.5:
        # The smallest step carries the rounding of float32; the whole range averages it away.
        step = (high - low) / round((high - low) / float(steps.min()))
        for slope in (float(f"{step:.4g}"), float(f"{step:.6g}"), step):
            for intercept in (_on_step(_AIR_INTERCEPT, low, slope), low):
                scale = Rescale(slope, intercept)
                if _is_exact(values, scale):
                    return scale
    msg = "its values lie on no steps that 16 bits can count. Export it as NIfTI: --to nifti."
    raise ChestCTError(msg)


def _on_step(wanted: float, low: float, slope: float) -> float:
    """The usual intercept where the values are whole steps above it, else the lowest value."""
    num_steps = (low - wanted) / slope
    is_whole = num_steps > -0.5 and math.isclose(num_steps, round(num_steps), abs_tol=1e-3)
    return float(wanted) if is_whole else low


def _is_exact(values: np.ndarray, scale: Rescale) -> bool:
    stored = _as_stored(values, scale)
    if stored is None:
        return False
    back = (stored * scale.slope + scale.intercept).astype(np.float32)
    return bool(np.array_equal(back, values.astype(np.float32)))


def _as_stored(voxels: np.ndarray, scale: Rescale) -> np.ndarray | None:
    """The 16-bit numbers that a scale makes the voxels of; None where they do not fit."""
    stored = np.rint((voxels.astype(np.float64) - scale.intercept) / scale.slope)
    fits = stored.min() >= 0 and stored.max() <= _HIGHEST_UINT16
    return stored.astype(np.uint16) if fits else None


_MARKER: Final = "export.json"
_RECORDS: Final = ".records"
_SCANS: Final = "scans"
"""Folder of the copies."""
_SCHEMA: Final = "chestct.export"
_SCHEMA_VERSION: Final = 1
_CopyTask = tuple[ManifestRow, Path, str]
"""A scan's row, where it lies, and where its copy goes, inside the export."""
_EPOCH: Final = 315532800
"""1 January 1980: files say nothing of the order in which they were written."""


class _Marker(BaseModel, frozen=True):
    """What an export folder is.

    Attributes:
        manifest: Digest of the manifest and of the settings that shape the result.
        format: A name in `_COPY_FORMATS`.
        is_keyed: Whether pseudonyms come from a key.
        is_complete: Whether every scan was copied.
        pseudonyms: While copies are missing and names are drawn: those of the patients, in the
            order in which they first occur.
        copies: When complete: digest of each copy, by its place.
    """

    manifest: str
    format: str
    is_keyed: bool
    is_complete: bool = False
    pseudonyms: tuple[str, ...] = ()
    copies: dict[str, str] = {}


class _CopyRecord(BaseModel, frozen=True):
    """A finished copy: its path inside the export, what is told of the scan, what was mended."""

    place: str
    digest: str
    facts: dict[str, str]
    notes: tuple[str, ...] = ()


def _manifest_digest(manifest: Manifest, *settings: str) -> str:
    """What stands for a manifest and for the settings of an export."""
    rows = [asdict(row) | {"others": dict(row.others), "number": 0} for row in manifest.rows]
    text = json.dumps([rows, list(manifest.labels), list(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_marker(folder: Path) -> _Marker | None:
    """What a folder is; None where there is nothing yet."""
    path = folder / _MARKER
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            msg = f"{folder} holds other files. Choose a folder that is not there yet: --out DIR."
            raise ChestCTError(msg)
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["schema"], found["schema_version"]) != (_SCHEMA, _SCHEMA_VERSION):
            raise ValueError("another kind of file")
        return _Marker.model_validate(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged or of another version. Choose a folder that is not there yet."
        raise ChestCTError(msg) from error


def _write_marker(folder: Path, marker: _Marker) -> None:
    """Say what the folder is."""
    document: dict[str, Any] = {
        "schema": _SCHEMA,
        "schema_version": _SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        **marker.model_dump(),
    }
    write_text(folder / _MARKER, json.dumps(document, indent=1) + "\n")


def _read_record(folder: Path, place: str) -> _CopyRecord | None:
    """The record of a copy that is there and whole; None where it has to be made."""
    try:
        record = _CopyRecord.model_validate_json(_record_path(folder, place).read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = record.place == place and _copy_digest(folder / place) == record.digest
    return record if is_whole else None


def _copy_digest(place: Path) -> str:
    """Digest of a copy's files, names included; empty where there is none."""
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def _require_same(folder: Path, found: _Marker | None, wanted: _Marker) -> None:
    """Compare an export that was begun with the one that is wanted."""
    if found is not None and (found.manifest, found.format) != (wanted.manifest, wanted.format):
        msg = f"{folder} holds the export of another manifest, or one with other settings or"
        raise ChestCTError(f"{msg} another key. Choose a folder that is not there yet: --out DIR.")


def _require_whole(folder: Path, copies: Mapping[str, str]) -> None:
    """Compare a finished export with its marker."""
    changed = [place for place, digest in copies.items() if _copy_digest(folder / place) != digest]
    if changed:
        msg = f"{len(changed)} of {len(copies)} copies in {folder} are missing or have changed,"
        raise ChestCTError(f"{msg} the first is {changed[0]}. Export into another folder.")


def _forget_times(places: Sequence[Path]) -> None:
    """Give files and folders one time for all."""
    for place in places:
        os.utime(place, (_EPOCH, _EPOCH))


def _record_path(folder: Path, place: str) -> Path:
    return folder / _RECORDS / f"{place.replace('/', '-')}.json"


_TABLE: Final = "scans.csv"
"""The manifest of an export."""


def _finish_export(
    manifest: Manifest,
    folder: Path,
    records: Sequence[_CopyRecord],
    marker: _Marker,
    *,
    names_sites: bool,
) -> Path:
    """Write the table, then the marker that calls the export complete, and drop the records."""
    sites = _site_names(manifest, names_sites=names_sites)
    rows = [
        _told(row, record, sites[row.site])
        for row, record in zip(manifest.rows, records, strict=True)
    ]
    rows.sort(key=lambda row: row.scan)
    # The order of the pseudonyms, which says nothing of the manifest's.
    told = Manifest(tuple(rows), manifest.labels, folder, _TABLE)
    table = write_manifest(told, folder / _TABLE)
    copies = {record.place: record.digest for record in sorted(records, key=lambda r: r.place)}
    _write_marker(folder, marker.model_copy(update={"is_complete": True, "copies": copies}))
    shutil.rmtree(folder / _RECORDS, ignore_errors=True)
    patients = sorted({(folder / record.place).parent for record in records})
    _forget_times([*patients, folder / _SCANS])
    return table


def _told(row: ManifestRow, record: _CopyRecord, site: str) -> ManifestRow:
    facts = dict(record.facts)
    age = facts.pop("age", "")
    return ManifestRow(
        scan=record.place,
        patient=record.place.split("/")[1],
        label=row.label,
        site=site,
        age=float(age) if age else None,
        sex=facts.pop("sex", ""),
        split=row.split,
        fold=row.fold,
        others=facts,
        findings=row.findings,
    )


def _site_names(manifest: Manifest, *, names_sites: bool) -> dict[str, str]:
    named = sorted({row.site for row in manifest.rows if row.site})
    numbered = {site: f"site {number}" for number, site in enumerate(named, start=1)}
    return {"": "", **({site: site for site in named} if names_sites else numbered)}


@dataclass(frozen=True)
class ExportSettings:
    """How scans are exported: a name in `_COPY_FORMATS`, and in `_PERIODS` how much of the date.

    The key is the secret that pseudonyms are made with; None draws them. Sites are numbered unless
    they keep their names.

    Raises:
        UnknownNameError: There is no such format or period.
    """

    format: str
    key: bytes | None = None
    period: str = "year"
    names_sites: bool = False

    def __post_init__(self) -> None:
        look_up(_COPY_FORMATS, self.format, kind="export format")
        look_up(_PERIODS, self.period, kind="period")


@dataclass(frozen=True)
class ExportResult:
    """What an export did: how many were copied now, how many were there and had their digests.

    By row of the manifest `notes` say what a copy does not hold and what was mended, `failed` why
    there is none. `table` is the export's manifest; None while copies are missing.
    """

    num_made: int
    num_found: int
    notes: dict[int, tuple[str, ...]]
    failed: dict[int, str]
    table: Path | None


@dataclass(frozen=True)
class _CopyOutcome:
    """What became of one scan: its copy, whether that was there before, or why there is none."""

    record: _CopyRecord | None
    was_there: bool = False
    error: str = ""


def export_scans(
    manifest: Manifest,
    folder: Path,
    settings: ExportSettings,
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> ExportResult:
    """Copy every scan that is not excluded into a new folder, or go on with the same export.

    Raises:
        ChestCTError: The folder holds something else or another export, or two patients would get
            the same pseudonym.
        WriteError: It cannot be written.
        ManifestError: A row says something impossible about how its scan is read.
    """
    _require_outside(manifest, folder)
    wanted = _marker_of(manifest, settings)
    found = _read_marker(folder)
    _require_same(folder, found, wanted)
    if found is not None and found.is_complete:
        _require_whole(folder, found.copies)
        return ExportResult(0, len(found.copies), {}, {}, folder / _TABLE)
    names = _pseudonyms(manifest, settings, found)
    if found is None:
        drawn = () if settings.key else tuple(names.values())
        _write_marker(folder, wanted.model_copy(update={"pseudonyms": drawn}))
    copy_scan = partial(_copy_scan, folder, settings.format, settings.period)
    tasks = _tasks(manifest, settings.format, names)
    outcomes = run_all(copy_scan, tasks, processes=processes, progress=progress)
    table = None
    records = [outcome.record for outcome in outcomes if outcome.record]
    if len(records) == len(tasks):
        table = _finish_export(manifest, folder, records, wanted, names_sites=settings.names_sites)
    return _result(manifest, outcomes, table)


def _tasks(manifest: Manifest, kind: str, names: Mapping[str, str]) -> list[_CopyTask]:
    seen: Counter[str] = Counter()
    tasks = []
    ending, _ = _COPY_FORMATS[kind]
    for row in manifest.rows:
        seen[row.patient] += 1
        place = f"{_SCANS}/{names[row.patient]}/scan{seen[row.patient]}{ending}"
        tasks.append((row, manifest.path(row), place))
    return tasks


def _copy_scan(folder: Path, kind: str, period: str, task: _CopyTask) -> _CopyOutcome:
    """Copy one scan, unless it was; the copy is read back before it counts."""
    row, scan, place = task
    record = _read_record(folder, place)
    if record is not None:
        return _CopyOutcome(record, was_there=True)
    try:
        with local_copy(scan) as path, working_folder((folder / place).parent) as working:
            record = _copy((row, path, place), folder, working, kind, period)
    except ChestCTError as error:
        return _CopyOutcome(None, error=str(error))
    except OSError as error:
        return _CopyOutcome(None, error=f"it cannot be copied: {reason_of(error)}")
    return _CopyOutcome(record)


def _copy(task: _CopyTask, folder: Path, working: Path, kind: str, period: str) -> _CopyRecord:
    row, path, place = task
    target = folder / place
    copied, mended = _cleaned(read_options(row, Path()).read(path))
    if kind == "tiff16":
        # As they are by whoever reads the copy.
        copied = without_blank_ends(copied)
    aside = working / target.name
    _, write = _COPY_FORMATS[kind]
    lost = write(copied, aside)
    _verify_copy(copied, aside)
    _forget_times([*(aside.iterdir() if aside.is_dir() else ()), aside])
    _remove(target)
    aside.replace(target)
    facts = _facts_of_copy(copied, row, path, period)
    notes = (*mended, *lost)
    record = _CopyRecord(place=place, digest=_copy_digest(target), facts=facts, notes=notes)
    write_text(_record_path(folder, place), json.dumps(record.model_dump()) + "\n")
    return record


def _result(
    manifest: Manifest, outcomes: Sequence[_CopyOutcome], table: Path | None
) -> ExportResult:
    numbered = {row.number: each for row, each in zip(manifest.rows, outcomes, strict=True)}
    return ExportResult(
        num_made=sum(bool(each.record) and not each.was_there for each in outcomes),
        num_found=sum(each.was_there for each in outcomes),
        notes={n: o.record.notes for n, o in numbered.items() if o.record and o.record.notes},
        failed={n: o.error for n, o in numbered.items() if o.error},
        table=table,
    )


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _require_outside(manifest: Manifest, folder: Path) -> None:
    """Refuse a folder in which a scan lies, or that lies in a scan's."""
    target = folder.resolve()
    for row in manifest.rows:
        scan = manifest.path(row).resolve()
        if target == scan or scan in target.parents or target in scan.parents:
            msg = f"{folder} and the scan of row {row.number} lie in one another. Choose a folder"
            raise ChestCTError(f"{msg} apart from the scans: --out DIR.")


def _marker_of(manifest: Manifest, settings: ExportSettings) -> _Marker:
    digest = _manifest_digest(
        manifest,
        settings.format,
        settings.period,
        str(settings.names_sites),
        _key_check(settings.key) if settings.key else "drawn",
    )
    return _Marker(manifest=digest, format=settings.format, is_keyed=settings.key is not None)


def _pseudonyms(
    manifest: Manifest, settings: ExportSettings, found: _Marker | None
) -> dict[str, str]:
    patients = list(dict.fromkeys(row.patient for row in manifest.rows))
    if settings.key is not None:
        return _keyed_pseudonyms(patients, settings.key)
    if found is None:
        return _drawn_pseudonyms(patients, random.SystemRandom())
    if len(found.pseudonyms) != len(patients):
        raise ChestCTError("The export's marker is damaged. Choose a folder not there yet.")
    return dict(zip(patients, found.pseudonyms, strict=True))

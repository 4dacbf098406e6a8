"""Share a data set: copies without identity, under new names, with a record of what was left out.

Names for patients say nothing of them: drawn at random, or made with a secret key. A keyed name is
the same in every export made with the key, and nobody without the key can find the patient of a
name by trying names. A random one can be linked to nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import random
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chestct import __version__
from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    parse_age,
    parse_sex,
    write_manifest,
)
from chestct.datasets.scan_copies import COPY_FORMATS, ExportError, cleaned, verify_copy
from chestct.datasets.scans import headers_of, read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.readers import read_volume
from chestct.report.tables import as_csv, as_markdown_table
from chestct.storage import reason_of, working_folder, write_text
from chestct.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


NUM_LETTERS: Final = 10
"""Letters of a pseudonym, five bits each."""
KEY_BYTES: Final = 32
LEAST_KEY_BYTES: Final = 16
MOST_KEY_BYTES: Final = 4096
_OWNER_ONLY = 0o600


def read_or_make_key(path: Path) -> bytes:
    """The secret key in a file; where there is no file, one is made that only its owner can read.

    Raises:
        PseudonymError: The file cannot be read or written, or is no key.
    """
    try:
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
        with path.open("rb") as stream:
            key = stream.read(MOST_KEY_BYTES + 1)
    except OSError as error:
        msg = f"The key file {path} cannot be used: {reason_of(error)}."
        msg += " Name a file in a folder of yours."
        raise ExportError(msg) from error
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        msg = f"The key file {path} holds {len(key)} bytes, and {LEAST_KEY_BYTES} to"
        msg += f" {MOST_KEY_BYTES} were expected. Name a file that is not there yet:"
        raise ExportError(f"{msg} a key is then made.")
    return key


def _keyed_pseudonyms(patients: Iterable[str], key: bytes) -> dict[str, str]:
    """Patient to pseudonym by HMAC-SHA-256: the same key and patient give the same one."""

    def name_of(patient: str) -> str:
        """Letters that only the key's owner can make of a patient."""
        return _letters(hmac.digest(key, f"patient\n{patient.strip()}".encode(), "sha256"))

    return _all_different(patients, name_of)


def _drawn_pseudonyms(patients: Iterable[str], rng: random.Random) -> dict[str, str]:
    """Patient to pseudonym, drawn.

    Args:
        patients: Each once or several times.
        rng: `random.SystemRandom()` where names must not be guessed.
    """
    taken: set[str] = set()

    def name_of(patient: str) -> str:
        """Letters that no other patient has."""
        while True:
            name = _letters(rng.randbytes(KEY_BYTES))
            if name not in taken:
                taken.add(name)
                return name

    return _all_different(patients, name_of)


def _key_check(key: bytes) -> str:
    """What tells two keys apart and says nothing of them."""
    return hashlib.sha256(hmac.digest(key, b"chestct export", "sha256")).hexdigest()[:16]


def _all_different(patients: Iterable[str], name_of: Callable[[str], str]) -> dict[str, str]:
    names = {patient: name_of(patient) for patient in dict.fromkeys(patients)}
    if len(set(names.values())) < len(names):
        msg = "Two patients get the same pseudonym, or differ in blanks only. Check the column"
        raise ExportError(f"{msg} 'patient', or take another key.")
    return names


def _letters(digest: bytes) -> str:
    """Lower-case letters and digits that no file system confuses."""
    return "p" + base64.b32encode(digest).decode("ascii").lower()[: NUM_LETTERS - 1]


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


def _facts_of_copy(volume: Volume, row: ManifestRow, path: Path, period: str) -> dict[str, str]:
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


MARKER: Final = "export.json"
RECORDS: Final = ".records"
SCANS: Final = "scans"
"""Folder of the copies."""
_SCHEMA: Final = "chestct.export"
_SCHEMA_VERSION: Final = 1
_EPOCH: Final = 315532800
"""1 January 1980: files say nothing of the order in which they were written."""


@dataclass(frozen=True)
class _Marker:
    """What an export folder is.

    Attributes:
        manifest: Digest of the manifest and of the settings that shape the result.
        format: A name in `COPY_FORMATS`.
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
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _CopyRecord:
    """One finished copy.

    Attributes:
        place: Path inside the export.
        digest: Of its files.
        facts: What is told of the scan.
        notes: What the copy does not hold, and what was mended.
    """

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
    """What a folder is; None where there is nothing yet.

    Raises:
        ExportError: The folder holds something else, or its marker cannot be read.
    """
    path = folder / MARKER
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            msg = f"{folder} holds other files. Choose a folder that is not there yet: --out DIR."
            raise ExportError(msg)
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != _SCHEMA or found["schema_version"] != _SCHEMA_VERSION:
            raise ValueError("another kind of file")
        return _Marker(
            manifest=str(found["manifest"]),
            format=str(found["format"]),
            is_keyed=bool(found["is_keyed"]),
            is_complete=bool(found["is_complete"]),
            pseudonyms=tuple(str(name) for name in found.get("pseudonyms", ())),
            copies={str(k): str(v) for k, v in found.get("copies", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged or of another version. Choose a folder that is not there yet."
        raise ExportError(msg) from error


def _write_marker(folder: Path, marker: _Marker) -> None:
    """Say what the folder is.

    Raises:
        WriteError: It cannot be written.
    """
    document: dict[str, Any] = {
        "schema": _SCHEMA,
        "schema_version": _SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        **asdict(marker),
    }
    write_text(folder / MARKER, json.dumps(document, indent=1) + "\n")


def _read_record(folder: Path, place: str) -> _CopyRecord | None:
    """The record of a copy that is there and whole; None where it has to be made."""
    try:
        found = json.loads(_record_path(folder, place).read_text(encoding="utf-8"))
        record = _CopyRecord(
            place=str(found["place"]),
            digest=str(found["digest"]),
            facts={str(k): str(v) for k, v in found["facts"].items()},
            notes=tuple(str(note) for note in found["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_whole = record.place == place and _copy_digest(folder / place) == record.digest
    return record if is_whole else None


def _write_record(folder: Path, record: _CopyRecord) -> None:
    """Remember a finished copy.

    Raises:
        WriteError: It cannot be written.
    """
    write_text(_record_path(folder, record.place), json.dumps(asdict(record)) + "\n")


def _forget_records(folder: Path) -> None:
    """Take the records away when all copies are there."""
    shutil.rmtree(folder / RECORDS, ignore_errors=True)


def _copy_digest(place: Path) -> str:
    """Digest of a copy's files, names included; empty where there is none."""
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def _require_whole(folder: Path, copies: Mapping[str, str]) -> None:
    """Compare a finished export with its marker.

    Raises:
        ExportError: A copy is missing or has changed.
    """
    changed = [place for place, digest in copies.items() if _copy_digest(folder / place) != digest]
    if changed:
        msg = f"{len(changed)} of {len(copies)} copies in {folder} are missing or have changed,"
        raise ExportError(f"{msg} the first is {changed[0]}. Export into another folder.")


def _forget_times(places: Sequence[Path]) -> None:
    """Give files and folders one time for all."""
    for place in places:
        os.utime(place, (_EPOCH, _EPOCH))


def _record_path(folder: Path, place: str) -> Path:
    return folder / RECORDS / f"{place.replace('/', '-')}.json"


TABLE: Final = "scans.csv"
"""The manifest of an export."""


def _finish_export(
    manifest: Manifest,
    folder: Path,
    records: Sequence[_CopyRecord],
    marker: _Marker,
    *,
    names_sites: bool,
) -> Path:
    """Write the table, then the marker that calls the export complete, and drop the records.

    Args:
        manifest: The scans that were copied.
        folder: The export.
        records: One per row of the manifest.
        marker: What the folder is.
        names_sites: Whether sites keep their names; else they are numbered.
    """
    sites = _site_names(manifest, names_sites=names_sites)
    rows = [
        _told(row, record, sites[row.site])
        for row, record in zip(manifest.rows, records, strict=True)
    ]
    rows.sort(key=lambda row: row.scan)
    # The order of the pseudonyms, which says nothing of the manifest's.
    told = Manifest(tuple(rows), manifest.labels, folder, TABLE)
    table = write_manifest(told, folder / TABLE)
    copies = {record.place: record.digest for record in sorted(records, key=lambda r: r.place)}
    _write_marker(folder, replace(marker, is_complete=True, copies=copies))
    _forget_records(folder)
    patients = sorted({(folder / record.place).parent for record in records})
    _forget_times([*patients, folder / SCANS])
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
    )


def _site_names(manifest: Manifest, *, names_sites: bool) -> dict[str, str]:
    named = sorted({row.site for row in manifest.rows if row.site})
    numbered = {site: f"site {number}" for number, site in enumerate(named, start=1)}
    return {"": "", **({site: site for site in named} if names_sites else numbered)}


@dataclass(frozen=True)
class ExportSettings:
    """How scans are exported.

    Attributes:
        format: A name in `COPY_FORMATS`.
        key: Secret that pseudonyms are made with; None draws them.
        period: How much of the study's date is told, a name in `PERIODS`.
        names_sites: Whether sites keep their names; else they are numbered.

    Raises:
        UnknownNameError: There is no such format or period.
    """

    format: str
    key: bytes | None = None
    period: str = "year"
    names_sites: bool = False

    def __post_init__(self) -> None:
        look_up(COPY_FORMATS, self.format, kind="export format")
        look_up(PERIODS, self.period, kind="period")


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        num_made: Scans copied now.
        num_found: Copies that were there, compared with their digests.
        notes: By row of the manifest, what its copy does not hold and what was mended.
        failed: By row, why there is no copy.
        table: The export's manifest; None while copies are missing.
    """

    num_made: int
    num_found: int
    notes: dict[int, tuple[str, ...]]
    failed: dict[int, str]
    table: Path | None


@dataclass(frozen=True)
class _CopyTask:
    """One scan to be copied.

    Attributes:
        row: Its row.
        path: Where it lies.
        folder: The export.
        place: Where its copy goes, inside the export.
        format: A name in `COPY_FORMATS`.
        period: A name in `PERIODS`.
    """

    row: ManifestRow
    path: Path
    folder: Path
    place: str
    format: str
    period: str


@dataclass(frozen=True)
class _CopyOutcome:
    """What became of one scan.

    Attributes:
        record: The copy; None where there is none.
        was_there: Whether it was made by an earlier run.
        error: Why there is no copy.
    """

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
    """Copy every scan that is not excluded; goes on where an earlier run stopped.

    Args:
        manifest: The scans.
        folder: A new folder, or that of the same export.
        settings: How.
        processes: How many scans at once; None takes all cores.
        progress: Called after each scan.

    Raises:
        ExportError: The folder holds something else or another export.
        WriteError: It cannot be written.
        ManifestError: A row says something impossible about how its scan is read.
        PseudonymError: Two patients would get the same pseudonym.
    """
    _require_outside(manifest, folder)
    wanted = _marker_of(manifest, settings)
    found = _read_marker(folder)
    if found is not None and (found.manifest, found.format) != (wanted.manifest, wanted.format):
        msg = f"{folder} holds the export of another manifest, or one with other settings or"
        raise ExportError(f"{msg} another key. Choose a folder that is not there yet: --out DIR.")
    if found is not None and found.is_complete:
        _require_whole(folder, found.copies)
        return ExportResult(0, len(found.copies), {}, {}, folder / TABLE)
    names = _pseudonyms(manifest, settings, found)
    if found is None:
        drawn = () if settings.key else tuple(names.values())
        _write_marker(folder, replace(wanted, pseudonyms=drawn))
    tasks = _tasks(manifest, folder, settings, names)
    outcomes = run_all(_copy_scan, tasks, processes=processes, progress=progress)
    table = None
    records = [outcome.record for outcome in outcomes if outcome.record]
    if len(records) == len(tasks):
        table = _finish_export(manifest, folder, records, wanted, names_sites=settings.names_sites)
    return _result(tasks, outcomes, table)


def _copy_scan(task: _CopyTask) -> _CopyOutcome:
    """Copy one scan, unless it was; the copy is read back before it counts."""
    record = _read_record(task.folder, task.place)
    if record is not None:
        return _CopyOutcome(record, was_there=True)
    place = task.folder / task.place
    try:
        with working_folder(place.parent) as working:
            record = _copy(task, place, working)
    except ChestCTError as error:
        return _CopyOutcome(None, error=str(error))
    except OSError as error:
        return _CopyOutcome(None, error=f"it cannot be copied: {reason_of(error)}")
    return _CopyOutcome(record)


def _copy(task: _CopyTask, place: Path, working: Path) -> _CopyRecord:
    options = read_options(task.row, Path())
    volume = read_volume(task.path, series=options.series, allow=options.allow, tiff=options.tiff)
    copied, mended = cleaned(volume)
    aside = working / place.name
    lost = COPY_FORMATS[task.format].write(copied, aside)
    verify_copy(copied, aside)
    _forget_times([*(aside.iterdir() if aside.is_dir() else ()), aside])
    _remove(place)
    aside.replace(place)
    facts = _facts_of_copy(copied, task.row, task.path, task.period)
    record = _CopyRecord(task.place, _copy_digest(place), facts, (*mended, *lost))
    _write_record(task.folder, record)
    return record


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
            raise ExportError(f"{msg} apart from the scans: --out DIR.")


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
    if found is not None:
        if len(found.pseudonyms) != len(patients):
            raise ExportError("The export's marker is damaged. Choose a folder not there yet.")
        return dict(zip(patients, found.pseudonyms, strict=True))
    return _drawn_pseudonyms(patients, random.SystemRandom())


def _tasks(
    manifest: Manifest, folder: Path, settings: ExportSettings, names: Mapping[str, str]
) -> list[_CopyTask]:
    seen: Counter[str] = Counter()
    tasks = []
    for row in manifest.rows:
        seen[row.patient] += 1
        ending = COPY_FORMATS[settings.format].ending
        place = f"{SCANS}/{names[row.patient]}/scan{seen[row.patient]}{ending}"
        path = manifest.path(row)
        tasks.append(_CopyTask(row, path, folder, place, settings.format, settings.period))
    return tasks


def _result(
    tasks: Sequence[_CopyTask], outcomes: Sequence[_CopyOutcome], table: Path | None
) -> ExportResult:
    pairs = list(zip(tasks, outcomes, strict=True))
    return ExportResult(
        num_made=sum(bool(done.record) and not done.was_there for _, done in pairs),
        num_found=sum(done.was_there for _, done in pairs),
        notes={t.row.number: d.record.notes for t, d in pairs if d.record and d.record.notes},
        failed={t.row.number: d.error for t, d in pairs if d.error},
        table=table,
    )


LISTED: Final = "listed"
USED: Final = "used"


@dataclass(frozen=True)
class _FlowStep:
    """One line of the flow.

    Attributes:
        step: `LISTED`, "excluded: REASON", or `USED`.
        num_scans: Scans in it.
        num_patients: Patients with a scan in it.
        cases: Scans per label.
    """

    step: str
    num_scans: int
    num_patients: int
    cases: dict[str, int]


def flow_of(manifest: Manifest) -> tuple[_FlowStep, ...]:
    """All scans, those excluded by reason (the most frequent first), and those that are used."""
    everything = (*manifest.rows, *manifest.excluded)
    reasons = Counter(row.excluded for row in manifest.excluded)
    labels = tuple(dict.fromkeys((*manifest.labels, *(row.label for row in manifest.excluded))))
    by_reason = [
        _step(
            f"excluded: {reason}",
            [row for row in manifest.excluded if row.excluded == reason],
            labels,
        )
        for reason, _ in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return (
        _step(LISTED, everything, labels),
        *by_reason,
        _step(USED, manifest.rows, labels),
    )


def exclude(manifest: Manifest, reasons: Mapping[str, str]) -> Manifest:
    """Leave scans out, by their path as the manifest has it.

    Raises:
        ManifestError: A scan is not in the manifest, a reason is empty, or no scan is left.
    """
    known = {row.scan for row in manifest.rows}
    strange = [scan for scan in reasons if scan not in known]
    if strange:
        msg = f"{manifest.name} does not list the scan '{strange[0]}'"
        more = f" ({len(strange)} such scans in all)" if len(strange) > 1 else ""
        raise ManifestError(f"{msg}{more}. Write its path as the column 'scan' has it.")
    empty = [scan for scan, reason in reasons.items() if not reason.strip()]
    if empty:
        raise ManifestError(f"The scan '{empty[0]}' has no reason for leaving it out. Give one.")
    rows = (
        replace(row, excluded=reasons[row.scan].strip()) if row.scan in reasons else row
        for row in manifest.rows
    )
    return manifest.with_rows(rows)


def flow_csv(steps: Sequence[_FlowStep]) -> str:
    """The flow as CSV: step, scans, patients, and a column per label."""
    return as_csv(_columns(steps), map(_cells, steps))


def flow_markdown(steps: Sequence[_FlowStep]) -> str:
    """The flow as a Markdown table."""
    return as_markdown_table(_columns(steps), map(_cells, steps)) + "\n"


def _step(name: str, rows: Sequence[ManifestRow], labels: tuple[str, ...]) -> _FlowStep:
    counts = Counter(row.label for row in rows)
    patients = len({row.patient for row in rows})
    return _FlowStep(name, len(rows), patients, {label: counts[label] for label in labels})


def _columns(steps: Sequence[_FlowStep]) -> list[str]:
    return ["step", "scans", "patients", *(label or "no label" for label in steps[0].cases)]


def _cells(step: _FlowStep) -> list[str]:
    return [step.step, *map(str, (step.num_scans, step.num_patients, *step.cases.values()))]

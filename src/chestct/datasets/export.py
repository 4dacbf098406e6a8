"""Copy the scans of a manifest so that they may be shown to others, as COVID-MAH-CT was made.

A copy holds voxels, spacing and nothing else of the original file; every file is made anew, none
is edited. Patients get pseudonyms; what is told of them stands in one table, which is a manifest.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from chestct.datasets.export_facts import PERIODS, facts_of_copy
from chestct.datasets.export_record import (
    SCANS,
    CopyRecord,
    ExportError,
    Marker,
    copy_digest,
    forget_times,
    manifest_digest,
    read_marker,
    read_record,
    require_whole,
    write_marker,
    write_record,
)
from chestct.datasets.export_table import TABLE, finish_export
from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.pseudonyms import drawn_pseudonyms, key_check, keyed_pseudonyms
from chestct.datasets.scan_copies import COPY_FORMATS, cleaned, verify_copy
from chestct.datasets.scans import read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError
from chestct.lookup import look_up
from chestct.readers import read_volume


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
class CopyTask:
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
class CopyOutcome:
    """What became of one scan.

    Attributes:
        record: The copy; None where there is none.
        was_there: Whether it was made by an earlier run.
        error: Why there is no copy.
    """

    record: CopyRecord | None
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
    found = read_marker(folder)
    if found is not None and (found.manifest, found.format) != (wanted.manifest, wanted.format):
        msg = f"{folder} holds the export of another manifest, or one with other settings or"
        raise ExportError(f"{msg} another key. Choose a folder that is not there yet: --out DIR.")
    if found is not None and found.is_complete:
        require_whole(folder, found.copies)
        return ExportResult(0, len(found.copies), {}, {}, folder / TABLE)
    names = _pseudonyms(manifest, settings, found)
    if found is None:
        drawn = () if settings.key else tuple(names.values())
        write_marker(folder, replace(wanted, pseudonyms=drawn))
    tasks = _tasks(manifest, folder, settings, names)
    outcomes = run_all(copy_scan, tasks, processes=processes, progress=progress)
    table = None
    records = [outcome.record for outcome in outcomes if outcome.record]
    if len(records) == len(tasks):
        table = finish_export(manifest, folder, records, wanted, names_sites=settings.names_sites)
    return _result(tasks, outcomes, table)


def copy_scan(task: CopyTask) -> CopyOutcome:
    """Copy one scan, unless it was; the copy is read back before it counts."""
    record = read_record(task.folder, task.place)
    if record is not None:
        return CopyOutcome(record, was_there=True)
    place = task.folder / task.place
    aside = place.with_name(f".{os.getpid()}.part.{place.name}")
    try:
        record = _copy(task, place, aside)
    except ChestCTError as error:
        return CopyOutcome(None, error=str(error))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        return CopyOutcome(None, error=f"it cannot be copied: {reason}")
    finally:
        # What hinders the copy may hinder this too; the reason is told above.
        with suppress(OSError):
            _remove(aside)
    return CopyOutcome(record)


def _copy(task: CopyTask, place: Path, aside: Path) -> CopyRecord:
    options = read_options(task.row)
    volume = read_volume(task.path, series=options.series, allow=options.allow, tiff=options.tiff)
    copied, mended = cleaned(volume)
    place.parent.mkdir(parents=True, exist_ok=True)
    lost = COPY_FORMATS[task.format].write(copied, aside)
    verify_copy(copied, aside)
    forget_times([*(aside.iterdir() if aside.is_dir() else ()), aside])
    _remove(place)
    aside.replace(place)
    facts = facts_of_copy(copied, task.row, task.path, task.period)
    record = CopyRecord(task.place, copy_digest(place), facts, (*mended, *lost))
    write_record(task.folder, record)
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


def _marker_of(manifest: Manifest, settings: ExportSettings) -> Marker:
    digest = manifest_digest(
        manifest,
        settings.format,
        settings.period,
        str(settings.names_sites),
        key_check(settings.key) if settings.key else "drawn",
    )
    return Marker(manifest=digest, format=settings.format, is_keyed=settings.key is not None)


def _pseudonyms(
    manifest: Manifest, settings: ExportSettings, found: Marker | None
) -> dict[str, str]:
    patients = list(dict.fromkeys(row.patient for row in manifest.rows))
    if settings.key is not None:
        return keyed_pseudonyms(patients, settings.key)
    if found is not None:
        if len(found.pseudonyms) != len(patients):
            raise ExportError("The export's marker is damaged. Choose a folder not there yet.")
        return dict(zip(patients, found.pseudonyms, strict=True))
    return drawn_pseudonyms(patients, random.SystemRandom())


def _tasks(
    manifest: Manifest, folder: Path, settings: ExportSettings, names: Mapping[str, str]
) -> list[CopyTask]:
    seen: Counter[str] = Counter()
    tasks = []
    for row in manifest.rows:
        seen[row.patient] += 1
        ending = COPY_FORMATS[settings.format].ending
        place = f"{SCANS}/{names[row.patient]}/scan{seen[row.patient]}{ending}"
        path = manifest.path(row)
        tasks.append(CopyTask(row, path, folder, place, settings.format, settings.period))
    return tasks


def _result(
    tasks: Sequence[CopyTask], outcomes: Sequence[CopyOutcome], table: Path | None
) -> ExportResult:
    pairs = list(zip(tasks, outcomes, strict=True))
    return ExportResult(
        num_made=sum(bool(done.record) and not done.was_there for _, done in pairs),
        num_found=sum(done.was_there for _, done in pairs),
        notes={t.row.number: d.record.notes for t, d in pairs if d.record and d.record.notes},
        failed={t.row.number: d.error for t, d in pairs if d.error},
        table=table,
    )

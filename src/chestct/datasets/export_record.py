"""What an export remembers of itself: to go on after a stop, and never to write over another.

`export.json` says what the folder is. While scans are being copied each finished one has a record
beside it in `.records`; when all are done the records go, and with them every link between the
order of the manifest and the pseudonyms.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from chestct import __version__
from chestct.datasets.manifest import Manifest
from chestct.errors import ChestCTError
from chestct.files import write_text
from chestct.labels import NOT_FOR_CLINICAL_USE

MARKER: Final = "export.json"
RECORDS: Final = ".records"
SCANS: Final = "scans"
"""Folder of the copies."""
_SCHEMA: Final = "chestct.export"
_SCHEMA_VERSION: Final = 1
_EPOCH: Final = 315532800
"""1 January 1980: files say nothing of the order in which they were written."""


class ExportError(ChestCTError):
    """An export cannot be made here, or is damaged."""


@dataclass(frozen=True)
class Marker:
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
class CopyRecord:
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


def manifest_digest(manifest: Manifest, *settings: str) -> str:
    """What stands for a manifest and for the settings of an export."""
    rows = [asdict(row) | {"others": dict(row.others), "number": 0} for row in manifest.rows]
    text = json.dumps([rows, list(manifest.labels), list(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_marker(folder: Path) -> Marker | None:
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
        return Marker(
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


def write_marker(folder: Path, marker: Marker) -> None:
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


def read_record(folder: Path, place: str) -> CopyRecord | None:
    """The record of a copy that is there and whole; None where it has to be made."""
    try:
        found = json.loads(_record_path(folder, place).read_text(encoding="utf-8"))
        record = CopyRecord(
            place=str(found["place"]),
            digest=str(found["digest"]),
            facts={str(k): str(v) for k, v in found["facts"].items()},
            notes=tuple(str(note) for note in found["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_whole = record.place == place and copy_digest(folder / place) == record.digest
    return record if is_whole else None


def write_record(folder: Path, record: CopyRecord) -> None:
    """Remember a finished copy.

    Raises:
        WriteError: It cannot be written.
    """
    write_text(_record_path(folder, record.place), json.dumps(asdict(record)) + "\n")


def forget_records(folder: Path) -> None:
    """Take the records away when all copies are there."""
    shutil.rmtree(folder / RECORDS, ignore_errors=True)


def copy_digest(place: Path) -> str:
    """Digest of a copy's files, names included; empty where there is none."""
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def require_whole(folder: Path, copies: Mapping[str, str]) -> None:
    """Compare a finished export with its marker.

    Raises:
        ExportError: A copy is missing or has changed.
    """
    changed = [place for place, digest in copies.items() if copy_digest(folder / place) != digest]
    if changed:
        msg = f"{len(changed)} of {len(copies)} copies in {folder} are missing or have changed,"
        raise ExportError(f"{msg} the first is {changed[0]}. Export into another folder.")


def forget_times(places: Sequence[Path]) -> None:
    """Give files and folders one time for all."""
    for place in places:
        os.utime(place, (_EPOCH, _EPOCH))


def _record_path(folder: Path, place: str) -> Path:
    return folder / RECORDS / f"{place.replace('/', '-')}.json"

"""What is known of one scan beside its label: its pixels' fingerprints and how it was acquired.

The fingerprints find the same scan under two names. The acquisition facts find out whether the
label could be told without looking at the lungs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache as kept
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import TypeAdapter

import chestct.readers
from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow, parse_age, parse_sex
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError, ReadError
from chestct.readers import ReadOptions, read_volume
from chestct.readers.files import folder_files, opened_files
from chestct.readers.pictures import geometry_from_dict
from chestct.remote import bring, joined, local_copy, mirror_of, send, stamp_of, whole
from chestct.storage import code_digest, is_address, text_key, write_text
from chestct.volume import Volume, as_stored, place_text, to_canonical

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


_GEOMETRY = ("spacing_mm", "order", "unit", "slope", "intercept")
_NUMBERS = ("slope", "intercept")
_DIGEST_BYTES = 8
_IDENTITY_TAGS: Final = ("PatientID", "IssuerOfPatientID")
_HEADER_TAGS = ("PatientAge", "PatientSex", "StudyDate", "AcquisitionDate", *_IDENTITY_TAGS)
_LARGEST_HEADER_FILE = 2**28

FACTS: Final = {
    "scanner": "manufacturer and model",
    "kernel": "reconstruction kernel",
    "slice_thickness_mm": "slice thickness",
    "slice_spacing_mm": "distance between slices",
    "kvp": "tube voltage",
    "date": "month of the study",
    "age": "age",
    "sex": "sex",
    "format": "file format",
    "unit": "unit of the values",
}
"""What may be known of a scan, in words."""


@dataclass(frozen=True)
class ScanFacts:
    """What one scan is, in technical facts only.

    Attributes:
        pixels: Digest of the voxels in their order and of the grid: what a preparation depends on.
        content: Digest of the slices' voxels in any order, wherever they lie; two series with the
            same slices have the same one, also when one of them runs backwards.
        slices: Digest of every slice that is not one value throughout, sorted.
        acquisition: Facts by the names in `FACTS`; only those that are known.
        warnings: What the reader noticed and mended.
        identity: Digest of the PatientID of a DICOM scan; empty where there is none, or one without
            a digit, as de-identifiers write for everyone.
        error: Why the scan could not be read; all else is then empty.
    """

    pixels: str = ""
    content: str = ""
    slices: tuple[str, ...] = ()
    acquisition: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    identity: str = ""
    error: str = ""

    @classmethod
    def of(cls, volume: Volume, path: Path) -> ScanFacts:
        """What a scan is, once it has been read from `path`."""
        canonical = to_canonical(volume)
        digests = [_slice_digest(voxels) for voxels in canonical.voxels]
        where = place_text(canonical.grid, canonical.unit)
        header = None
        if volume.source.format == "dicom":
            header = next(headers_of(path, volume.source.series_uid, _HEADER_TAGS), None)
        return cls(
            pixels=_digest(where, *(digest for digest, _ in digests)),
            content=_digest(*sorted(digest for digest, _ in digests)),
            slices=tuple(sorted(digest for digest, is_constant in digests if not is_constant)),
            acquisition=_acquisition(volume, header),
            warnings=volume.warnings,
            identity="" if header is None else _identity(header),
        )

    @staticmethod
    def stored(cache: Path, path: Path, options: ReadOptions) -> ScanFacts | None:
        """Facts kept in a cache of a scan whose files have not changed since, or None."""
        with suppress(OSError, ValueError, ChestCTError):
            file = bring(cache, _facts_name(path, options))
            facts = _STORED.validate_json(file.read_bytes())
            return facts if facts.pixels else None
        return None

    def store(self, cache: Path, path: Path, options: ReadOptions) -> None:
        """Keep them in a cache; of a scan that could not be read nothing is kept."""
        if self.error:
            return
        # Facts can be read again: a full disk is noticed where it matters, by the cache.
        with suppress(OSError, ChestCTError):
            name = _facts_name(path, options)
            file = write_text(mirror_of(cache) / name, _STORED.dump_json(self).decode())
            send(cache, name, file)


def read_options(row: ManifestRow, folder: Path) -> ReadOptions:
    """How a row's scan is read: what its columns `series`, `allow`, `spacing_mm`, ... say.

    `spacing_mm` is three numbers, `allow` any number of names, each set apart by blanks, `lungs` a
    mask of the scan's lungs. Relative paths are so to the manifest's folder.

    Raises:
        ManifestError: A column holds something impossible; the message names row and column.
    """
    fields: dict[str, object] = {
        name: row.others[name] for name in _GEOMETRY if row.others.get(name)
    }
    geometry = None
    if fields:
        try:
            for name in _NUMBERS:
                if name in fields:
                    fields[name] = float(str(fields[name]))
            if "spacing_mm" in fields:
                parts = str(fields["spacing_mm"]).replace(",", " ").split()
                fields["spacing_mm"] = [float(part) for part in parts]
            geometry = geometry_from_dict(fields)
        except (ValueError, ReadError) as error:
            msg = f"row {row.number} says how its slices lie, and this does not fit: {error}"
            raise ManifestError(msg) from error
    return ReadOptions(
        series=row.others.get("series") or None,
        allow=tuple(row.others.get("allow", "").split()),
        tiff=geometry,
        lungs=joined(folder, row.others["lungs"]) if row.others.get("lungs") else None,
    )


def _read_facts(path: Path, options: ReadOptions) -> ScanFacts:
    """Read a scan for what it is; one that cannot be read is no error but gives its reason."""
    try:
        with local_copy(path) as place:
            volume = read_volume(
                place, series=options.series, allow=options.allow, tiff=options.tiff
            )
            return ScanFacts.of(volume, place)
    except ChestCTError as error:
        return ScanFacts(error=str(error))


_STORED = TypeAdapter(ScanFacts)


def _slice_digest(voxels: np.ndarray) -> tuple[str, bool]:
    """Digest of a slice, whole numbers taken as 16-bit ones; and whether it is one value only."""
    values = as_stored(voxels)
    if values.dtype != np.int16:
        values = values.astype("<f4")
    digest = hashlib.blake2b(values.data, digest_size=_DIGEST_BYTES)
    digest.update(str(voxels.shape).encode())
    return digest.hexdigest(), bool(voxels.min() == voxels.max())


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _acquisition(volume: Volume, header: Dataset | None) -> dict[str, str]:
    facts = volume.source.facts
    scanner = " ".join(facts[name] for name in ("manufacturer", "model") if facts.get(name))
    known = {
        "scanner": scanner,
        "kernel": facts.get("kernel", ""),
        "slice_thickness_mm": facts.get("slice_thickness_mm", ""),
        "slice_spacing_mm": f"{volume.grid.spacing_mm[0]:.2f}",
        "kvp": facts.get("kvp", ""),
        "format": volume.source.format,
        "unit": volume.unit,
        **({} if header is None else patient_facts(header)),
    }
    return {name: value for name, value in known.items() if value}


def _identity(header: Dataset) -> str:
    """Digest of the PatientID and its issuer, which tells patients apart and names none."""
    said = [str(header.get(name) or "").strip() for name in _IDENTITY_TAGS]
    if not any("1" <= character <= "9" for character in said[0]):
        return ""
    return _digest(*said)


def patient_facts(header: Dataset) -> dict[str, str]:
    """Age, sex and month of the study; never a name or an ID. What is not known is left out.

    The readers leave these out on purpose, as results do not show them.
    """
    found: dict[str, str] = {}
    # A header may hold anything; what is no age, sex or date is not known.
    with suppress(ValueError):
        age = parse_age(str(header.get("PatientAge") or ""))
        found["age"] = "" if age is None else f"{age:g}"
    with suppress(KeyError):
        found["sex"] = parse_sex(str(header.get("PatientSex") or ""))
    date = str(header.get("StudyDate") or header.get("AcquisitionDate") or "")
    if len(date) >= 6 and date[:6].isdecimal():
        found["date"] = f"{date[:4]}-{date[4:6]}"
    return {name: value for name, value in found.items() if value}


def headers_of(path: Path, series_uid: str | None, tags: Sequence[str]) -> Iterator[Dataset]:
    """The elements of such keywords of each file of a DICOM series, or, of None, of each file."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    wanted = list({*tags, "SeriesInstanceUID"})
    with opened_files(path) as files:
        for file in files:
            if file.size > _LARGEST_HEADER_FILE:
                continue
            try:
                with file.open() as stream:
                    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=wanted)
            except (InvalidDicomError, OSError, ValueError, EOFError, AttributeError, KeyError):
                continue
            if series_uid is None or str(header.get("SeriesInstanceUID") or "") == series_uid:
                yield header


_FACTS_FOLDER: Final = "facts"
"""Folder of the facts inside a cache."""


def gather_facts(
    manifest: Manifest,
    cache: Path | None = None,
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[ScanFacts]:
    """The facts of every row's scan, in their order, taken from and kept in a cache's folder.

    Raises:
        ManifestError: A row says something impossible about how its scan is read.
        ChestCTError: A process was killed.
    """
    tasks = [(manifest.path(row), read_options(row, manifest.folder)) for row in manifest.rows]
    find = partial(_known_facts, cache)
    return run_all(find, tasks, processes=processes, progress=progress)


def _known_facts(cache: Path | None, task: tuple[Path, ReadOptions]) -> ScanFacts:
    """Facts of a scan, from disk where its files have not changed, else from the scan."""
    if cache is None:
        return _read_facts(*task)
    facts = ScanFacts.stored(cache, *task)
    if facts is None:
        facts = _read_facts(*task)
        facts.store(cache, *task)
    return facts


def _facts_name(path: Path, options: ReadOptions) -> str:
    return f"{_FACTS_FOLDER}/{_source_key(path, options)}.json"


def _source_key(path: Path, options: ReadOptions) -> str:
    """What stands for a scan's files: their names, sizes and times, and how they are read.

    Of other storage it is what that says of them, asked once: a training reads each scan often.
    """
    if is_address(path):
        return text_key(_reading_code(), whole(path), repr(options), stamp_of(path))
    place = path.resolve()
    files = [file.path for file in folder_files(place)] if place.is_dir() else [place]
    lines = [_reading_code(), str(place), repr(options)]
    for file in files:
        status = file.stat()
        lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:40]


@kept
def _reading_code() -> str:
    """Digest of the code that reads scans and finds their facts."""
    return code_digest(Path(chestct.readers.__file__).parent, Path(__file__))

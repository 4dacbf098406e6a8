"""The table of an export: a manifest of the copies, with what is told of each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from chestct.datasets.export_record import (
    SCANS,
    CopyRecord,
    Marker,
    forget_records,
    forget_times,
    write_marker,
)
from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.manifest_csv import write_manifest

TABLE: Final = "scans.csv"
"""The manifest of an export."""


def finish_export(
    manifest: Manifest,
    folder: Path,
    records: Sequence[CopyRecord],
    marker: Marker,
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
    write_marker(folder, replace(marker, is_complete=True, copies=copies))
    forget_records(folder)
    patients = sorted({(folder / record.place).parent for record in records})
    forget_times([*patients, folder / SCANS])
    return table


def _told(row: ManifestRow, record: CopyRecord, site: str) -> ManifestRow:
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

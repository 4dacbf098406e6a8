"""What `chestct prepare` leaves behind: the network's input, the lungs, and how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from chestct.errors import WriteError
from chestct.preprocess.prepared import PreparedScan
from chestct.storage import make_folder, write_whole
from chestct.volume import Grid
from chestct.writers.folders import OWNER_FILE
from chestct.writers.nifti import write_nifti
from chestct.writers.preview import write_input_preview

_FILE_NAME: Final = "prepared.json"
_SCHEMA_VERSION: Final = "1.0"


def write_prepared(prepared: PreparedScan, scan: str, folder: Path) -> list[Path]:
    """Write a prepared scan for looking at and for use elsewhere.

    Files: `input.nii.gz` and `lungs.nii.gz` (network input and lung mask on the input's grid),
    `scan_lungs.nii.gz` (lung mask on the scan's own grid), `preview.png` and `prepared.json`.

    Args:
        prepared: What to write.
        scan: Name of the scan, for the preview and the record.
        folder: Where to; made where it is missing.

    Raises:
        WriteError: A file cannot be written, or the folder holds a classified scan's results,
            some of which have the same names.
    """
    if (folder / OWNER_FILE).exists():
        msg = f"{folder} holds results of 'chestct classify'. Choose another --out."
        raise WriteError(msg)
    make_folder(folder)
    record = json.dumps(_prepared_record(prepared, scan), indent=2)
    return [
        write_nifti(folder / "input.nii.gz", prepared.input, prepared.grid),
        write_nifti(folder / "lungs.nii.gz", prepared.lungs, prepared.grid),
        write_nifti(folder / "scan_lungs.nii.gz", prepared.scan_lungs.voxels, prepared.scan_grid),
        write_input_preview(prepared, scan, folder),
        write_whole(folder / _FILE_NAME, f"{record}\n".encode()),
    ]


def _prepared_record(prepared: PreparedScan, scan: str) -> dict[str, object]:
    """The contents of `prepared.json`, described in docs/result_schema.md."""
    first, last = prepared.salient
    return {
        "schema_version": _SCHEMA_VERSION,
        "scan": scan,
        "recipe": asdict(prepared.recipe),
        "input_grid": _grid_record(prepared.grid),
        "scan_grid": _grid_record(prepared.scan_grid),
        "salient_slices": {"first": first, "last": last, "total": len(prepared.lung_area)},
        "lung_area": [round(float(share), 5) for share in prepared.lung_area],
        "lung_volume_l": prepared.lung_volume_l,
        "warnings": list(prepared.warnings),
        "unsuitable_reasons": list(prepared.unsuitable_reasons),
    }


def _grid_record(grid: Grid) -> dict[str, object]:
    return {
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "direction": [list(axis) for axis in grid.direction],
    }

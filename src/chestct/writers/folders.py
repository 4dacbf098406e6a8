"""One folder per scan under the folder the user named, and nothing overwritten by accident."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestct.analysis import ScanAnalysis
from chestct.errors import WriteError
from chestct.files import make_folder
from chestct.writers import WRITERS, choose_writers
from chestct.writers.options import NothingToWriteError, WriteOptions

_ENDINGS: Final = (".nii.gz", ".nii", ".zip", ".dcm", ".tiff", ".tif")


def folder_names(scans: Sequence[Path]) -> list[str]:
    """A folder name per scan: its last part without a file ending, numbered where names repeat."""
    names: list[str] = []
    for scan in scans:
        name = _without_ending(scan.name or scan.resolve().name or "scan")
        same, number = name, 1
        while same in names:
            number += 1
            same = f"{name}-{number}"
        names.append(same)
    return names


def check_folder(folder: Path, scan: Path) -> None:
    """Make sure that results can go to `folder` before a long calculation starts.

    Raises:
        WriteError: It would lie inside the scan itself, or nothing can be written beside it.
    """
    if folder.resolve().is_relative_to(scan.resolve()):
        msg = (
            f"Results of {scan} would be written into the scan's own folder. Choose another --out."
        )
        raise WriteError(msg)
    above = make_folder(folder.parent)
    if not os.access(above, os.W_OK | os.X_OK):
        msg = f"{above} may not be written to. Change permissions or choose another --out."
        raise WriteError(msg)


@dataclass(frozen=True)
class Written:
    """What was written about one scan.

    Attributes:
        files: Writer name to the file or folder it wrote.
        skipped: Writer name to the reason why this scan has no such output.
    """

    files: dict[str, Path]
    skipped: dict[str, str]


def write_outputs(
    analysis: ScanAnalysis, folder: Path, options: WriteOptions | None = None
) -> Written:
    """Run the writers that were asked for; results of the same scan are replaced.

    Args:
        analysis: What to write about.
        folder: The scan's own folder of results; made where it is missing.
        options: Which writers, and how; json, html and preview by default.

    Raises:
        WriteError: The folder holds the result of another scan, or a file cannot be written.
        NothingToWriteError: An output was asked for by name and this scan cannot have it.
        UnknownNameError: There is no such writer.
    """
    options = options or WriteOptions()
    chosen = choose_writers(options.names)
    _refuse_other_scan(analysis, folder)
    make_folder(folder)
    written = Written({}, {})
    with _collecting_new_objects_only():
        for name in chosen:
            try:
                written.files[name] = WRITERS[name](analysis, folder, options)
            except NothingToWriteError as reason:
                # Nobody can know beforehand that a scan will be found unsuitable.
                if not options.skips_impossible and analysis.result.is_suitable:
                    raise
                written.skipped[name] = str(reason)
    return written


@contextmanager
def _collecting_new_objects_only() -> Iterator[None]:
    """Keep the garbage collector from walking through all that was loaded before, many times over.

    DICOM objects are hundreds of thousands of small Python objects; beside a loaded PyTorch the
    collector would take more time than the writers.
    """
    was_frozen = gc.get_freeze_count() > 0
    if not was_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()


def _refuse_other_scan(analysis: ScanAnalysis, folder: Path) -> None:
    from chestct.writers.json_report import FILE_NAME

    try:
        there = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        its_hash = there["provenance"]["pixel_sha256"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{folder / FILE_NAME} is there and is not a result of chestct. Choose another --out."
        raise WriteError(msg) from error
    if its_hash != analysis.result.provenance.pixel_sha256:
        msg = f"{folder} holds the result of another scan of this name. Choose another --out."
        raise WriteError(msg)


def _without_ending(name: str) -> str:
    for ending in _ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name

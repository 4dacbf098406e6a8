"""One folder per scan under the folder the user named, and nothing overwritten by accident."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestct.analysis import ScanAnalysis
from chestct.errors import WriteError
from chestct.storage import install, make_folder, reason_of, working_folder
from chestct.writers import OUTPUTS, OWNER, WRITERS, choose_writers
from chestct.writers.options import NothingToWriteError, WriteOptions

(OWNER_FILE,) = OUTPUTS[OWNER]
"""Says by the hash of its voxels which scan the results beside it are of."""

_ENDINGS: Final = (".nii.gz", ".nii", ".zip", ".dcm", ".tiff", ".tif")


def folder_names(scans: Sequence[str]) -> list[str]:
    """A folder name per scan: its name without a file ending, numbered where names repeat."""
    names: list[str] = []
    for scan in scans:
        name = _without_ending(scan)
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
    """Run the writers that were asked for; results of the same scan are replaced, all of them.

    Everything is written aside first, so that older results are lost only to whole new ones. An
    older output that is not among the new ones is removed: it could contradict them. `OWNER`
    always writes.

    Args:
        analysis: What to write about.
        folder: The scan's own folder of results; made where it is missing.
        options: Which writers, and how; json, html and preview by default.

    Raises:
        WriteError: The folder holds results of another scan or of nobody knows which, or a file
            cannot be written.
        NothingToWriteError: An output was asked for by name and this scan cannot have it.
        UnknownNameError: There is no such writer.
    """
    options = options or WriteOptions()
    chosen = choose_writers((OWNER, *options.names))
    _refuse_other_scan(analysis, folder)
    written = Written({}, {})
    with _aside(folder) as aside, _collecting_new_objects_only():
        for name in chosen:
            try:
                path = WRITERS[name](analysis, aside, options)
                written.files[name] = folder / path.relative_to(aside)
            except NothingToWriteError as reason:
                # Nobody can know beforehand that a scan will be found unsuitable.
                if not options.skips_impossible and analysis.result.is_suitable:
                    raise
                written.skipped[name] = str(reason)
        _put_in_place(aside, folder)
    return written


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A working folder inside `folder`, which goes again if it is new and nothing gets into it."""
    is_new = not os.path.lexists(folder)
    make_folder(folder)
    try:
        with working_folder(folder) as aside:
            yield aside
    except OSError as error:
        msg = f"{folder} cannot be written: {reason_of(error)}. Choose another --out."
        raise WriteError(msg) from error
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _put_in_place(aside: Path, folder: Path) -> None:
    """Replace all older results in `folder` by those in `aside`.

    The owner's file comes first: wherever this is cut short, what is there is of one run and has
    an owner.
    """
    old = [path for path in results_in(folder) if path.name != OWNER_FILE]
    install(aside, folder, old=old, first=OWNER_FILE)
    for below in {path.parent for path in old} - {folder}:
        # Stays where it holds new results, or something of somebody else's.
        with suppress(OSError):
            below.rmdir()


def results_in(folder: Path) -> list[Path]:
    """The files in a folder that have the names of `OUTPUTS`, sorted."""
    patterns = [pattern for names in OUTPUTS.values() for pattern in names]
    return sorted(
        path for pattern in patterns for path in folder.glob(pattern) if not path.is_dir()
    )


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
    try:
        there = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        its_hash = there["provenance"]["pixel_sha256"]
    except (FileNotFoundError, NotADirectoryError):
        _refuse_results_of_nobody(folder)
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"{folder / OWNER_FILE} is there and is not a result of chestct. Choose another --out."
        )
        raise WriteError(msg) from error
    if its_hash != analysis.result.provenance.pixel_sha256:
        msg = f"{folder} holds the result of another scan of this name. Choose another --out."
        raise WriteError(msg)


def _refuse_results_of_nobody(folder: Path) -> None:
    found = [path.name for path in results_in(folder)]
    if found:
        msg = (
            f"{folder} holds {found[0]} and no {OWNER_FILE} that says which scan it is of. Move it "
            "away or choose another --out."
        )
        raise WriteError(msg)


def _without_ending(name: str) -> str:
    for ending in _ENDINGS:
        stem = name[: -len(ending)]
        # Dots alone would be no name, but a way out of the folder.
        if name.lower().endswith(ending) and stem.strip("."):
            return stem
    return name

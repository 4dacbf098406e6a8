"""One folder per scan under the folder the user named, and nothing overwritten by accident."""

from __future__ import annotations

import gc
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from chestct.analysis import ScanAnalysis
from chestct.errors import ChestCTError, WriteError
from chestct.lookup import load_entry
from chestct.readers.dicom_source import SourceSeries
from chestct.storage import install, make_folder, reason_of, remove_file, working_folder
from chestct.volume import Volume
from chestct.writers import (
    DICOM,
    OUTPUTS,
    OWNER,
    TELLING,
    WRITERS,
    NothingToWriteError,
    WriteOptions,
    choose_writers,
)
from chestct.writers.dicom_objects import require_source

logger = logging.getLogger(__name__)

(OWNER_FILE,) = OUTPUTS[OWNER]
"""Says by the hash of its voxels which scan the results beside it are of."""

_ENDINGS: Final = (".nii.gz", ".nii", ".zip", ".dcm", ".tiff", ".tif")


def folder_names(scans: Sequence[str]) -> list[str]:
    """A folder name per scan: its name without a file ending.

    With it where only the ending tells two apart; the same name twice is numbered.
    """
    names: dict[str, None] = {}
    full_names: dict[str, set[str]] = {}
    for scan in scans:
        full_names.setdefault(_without_ending(scan), set()).add(scan)
    for scan in scans:
        name = _without_ending(scan)
        name = scan if len(full_names[name]) > 1 else name
        same, number = name, 1
        while same in names:
            number += 1
            same = f"{name}-{number}"
        names[same] = None
    return list(names)


def check_folder(folder: Path, scan: Path) -> None:
    """Make sure that results can go to `folder` before a long calculation starts.

    Folders above it that are missing are made.

    Raises:
        WriteError: It would lie inside the scan itself, or nothing can be written beside it.
    """
    if folder.resolve().is_relative_to(scan.resolve()):
        msg = (
            f"Results of {scan} would be written into the scan's own folder. Choose another --out."
        )
        raise WriteError(msg)
    above = folder.parent
    make_folder(above)
    if not os.access(above, os.W_OK | os.X_OK):
        msg = f"{above} may not be written to. Change permissions or choose another --out."
        raise WriteError(msg)


@dataclass(frozen=True)
class Written:
    """What was written about one scan.

    Attributes:
        files: Writer name to the file or folder it wrote.
        skipped: Writer name to the reason why this scan has no such output, where that is no
            fault: all were asked for, or the scan was found unsuitable.
        failed: Writer name to the reason why an output that was asked for is missing.
        analysis: What was written about, with what only writing showed.
    """

    files: dict[str, Path]
    skipped: dict[str, str]
    failed: dict[str, str]
    analysis: ScanAnalysis


def foresee_missing(volume: Volume, path: Path, options: WriteOptions) -> dict[str, str]:
    """Which outputs of a scan cannot be written, as far as that shows before the long work.

    Args:
        volume: The scan.
        path: What it was read from.
        options: Which writers, and how.

    Returns:
        Writer name to reason.

    Raises:
        WriteError: None of those asked for can be written.
    """
    wanted = [name for name in options.names if name in DICOM]
    try:
        if wanted:
            require_source(volume, path, makes_uids=options.makes_uids)
    except ChestCTError as error:
        if len(wanted) == len(options.names):
            raise WriteError(str(error)) from error
        return dict.fromkeys(wanted, str(error))
    return {}


def write_outputs(
    analysis: ScanAnalysis, folder: Path, options: WriteOptions | None = None
) -> Written:
    """Run the writers that were asked for; results of the same scan are replaced, all of them.

    Everything is written aside first, so that older results are lost only to whole new ones. An
    older output that is not among the new ones is removed: it could contradict them. `OWNER`
    always writes. An output that cannot be written costs no other one: it is named in what this
    returns, and in the outputs in `TELLING`.

    Args:
        analysis: What to write about.
        folder: The scan's own folder of results; made where it is missing.
        options: Which writers, and how; json, html and preview by default.

    Raises:
        WriteError: The folder holds results of another scan or of nobody knows which, what is to
            be in it cannot be put there, or `OWNER` cannot write.
        UnknownNameError: There is no such writer.
    """
    options = replace(options or WriteOptions(), earlier=folder)
    chosen = choose_writers((OWNER, *options.names))
    _refuse_other_scan(analysis, folder)
    with _aside(folder) as aside, _collecting_new_objects_only(), _quiet_about_names():
        written = _run_writers(analysis, aside, chosen, options)
        _put_in_place(aside, folder)
    files = {
        name: folder / written.files[name].relative_to(aside)
        for name in chosen
        if name in written.files
    }
    return replace(written, files=files)


def _run_writers(
    analysis: ScanAnalysis, aside: Path, chosen: Sequence[str], options: WriteOptions
) -> Written:
    """Run writers, those in `TELLING` last and about what became of the others."""
    written = Written({}, {}, {}, analysis)
    telling = [name for name in TELLING if name in chosen]
    for name in (*(name for name in chosen if name not in TELLING), *telling):
        if name in telling:
            written = replace(written, analysis=_with_remarks(analysis, written))
        # An object refers only to what is there.
        known = replace(options, names=(*written.files, name))
        try:
            written.files[name] = _write_one(name, written.analysis, aside, known)
        except Exception as error:
            # Whatever one output does to the program, the others are written.
            if name == OWNER:
                raise
            _remove_half(name, aside)
            is_expected = options.skips_impossible or not analysis.result.is_suitable
            is_expected = is_expected and isinstance(error, NothingToWriteError)
            (written.skipped if is_expected else written.failed)[name] = _reason(error)
            logger.debug("%s could not be written", name, exc_info=error)
    return written


def _write_one(name: str, analysis: ScanAnalysis, aside: Path, options: WriteOptions) -> Path:
    """Run one writer; another package's gets a folder of its own."""
    write = load_entry(WRITERS, name, kind="writer")
    folder = aside if name in WRITERS else make_folder(aside / _plugin_folder(name))
    path: Path = write(analysis, folder, options)
    if not (path.is_relative_to(folder) and path.exists()):
        raise WriteError(f"The writer '{name}' did not write into the folder that it was given.")
    return path


def _with_remarks(analysis: ScanAnalysis, written: Written) -> ScanAnalysis:
    """The analysis with what the outputs in `TELLING` say about the others."""
    remarks = [f"{name} could not be written. {why}" for name, why in written.failed.items()]
    series = analysis.source_series if set(DICOM) & set(written.files) else None
    if series is not None and series.left_out:
        remarks.append(_left_out_words(series))
    result = replace(analysis.result, warnings=(*analysis.result.warnings, *remarks))
    missing = {**written.skipped, **written.failed}
    return replace(analysis, result=result, not_written=missing)


def _left_out_words(series: SourceSeries) -> str:
    """A sentence on what the series says and its objects cannot; empty where there is nothing."""
    names = " and ".join(series.left_out)
    return names and (
        f"The DICOM objects do not repeat the series' {names}: too long or malformed for the DICOM"
        " standard. Where an archive files by it, correct the series and write them again."
    )


def _reason(error: Exception) -> str:
    """Why an output is missing; the text of other errors than ours can hold names."""
    if isinstance(error, ChestCTError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There was not enough memory. Free some, or take a machine with more."
    if isinstance(error, OSError):
        return f"The system refused: {reason_of(error)}."
    return f"Internal error ({type(error).__name__}). Report it; --debug shows details."


def _remove_half(name: str, aside: Path) -> None:
    """Remove what a writer left that did not come to its end."""
    for path in (path for pattern in _outputs_of(name) for path in aside.glob(pattern)):
        remove_file(path)


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
    old = [path for path in _results_in(folder) if path.name != OWNER_FILE]
    install(aside, folder, old=old, first=OWNER_FILE)
    for below in {path.parent for path in old} - {folder}:
        # Stays where it holds new results, or something of somebody else's.
        with suppress(OSError):
            below.rmdir()


def _results_in(folder: Path) -> list[Path]:
    """The files in a folder that have the names of `OUTPUTS`, sorted."""
    patterns = [pattern for name in (*WRITERS, "*") for pattern in _outputs_of(name)]
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


@contextmanager
def _quiet_about_names() -> Iterator[None]:
    """Keep highdicom from repeating a patient's name aloud because it has one part only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)The string .* is unlikely to represent the")
        yield


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
    found = [path.name for path in _results_in(folder)]
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


def _outputs_of(name: str) -> tuple[str, ...]:
    """What a writer may leave in a folder of results; another package's, files in its own folder.

    Args:
        name: A name in `WRITERS` or of another package's writer; "*" for all of these.
    """
    return OUTPUTS.get(name, (f"{_plugin_folder(name)}/*",))


def _plugin_folder(name: str) -> str:
    """The folder among a scan's results that another package's writer gets for its own."""
    return f"plugin-{name}"

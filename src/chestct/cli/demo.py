"""`chestct demo`: simulated patients classified, with reports worth a look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options
from chestct.cli.classify import load
from chestct.cli.terminal import scan_progress, show_notice, show_table, stdout_console
from chestct.errors import WriteError

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis
    from chestct.writers.pages import IndexEntry

_SEED = 7
_ROWS = 320
_SLICE_SPACING_MM = 2.5


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the scans and their reports.")
    ] = Path("chestct-demo"),
    engine: options.EngineName = "auto",
) -> None:
    """Simulate a patient per class, classify each from its DICOM files, write reports."""
    from chestct.explain import AUTO
    from chestct.labels import THREE_CLASSES
    from chestct.pipeline import analyse_scan
    from chestct.writers.pages import INDEX_FILE, write_index

    _require_own_folder(out, INDEX_FILE)
    classifier, running = load(None, options.Running(engine))
    entries: list[IndexEntry] = []
    with scan_progress(is_quiet=False) as progress:
        task = progress.add_task("", total=len(THREE_CLASSES))
        for number, label in enumerate(THREE_CLASSES):
            progress.update(task, description=f"simulated {label}")
            scan = _simulate_scan(out / "scans", label, number)
            analysis = analyse_scan(scan, classifier, engine=running, explain=AUTO)
            entries.append(_write(analysis, label, out))
            progress.advance(task)
    page = write_index(entries, out)
    console = stdout_console()
    show_table(console, [entry.result for entry in entries], list(THREE_CLASSES))
    show_notice(console, entries[0].result)
    console.print(f"Open {page}", markup=False, soft_wrap=True)


def _simulate_scan(folder: Path, label: str, number: int) -> Path:
    """Simulate one patient of a class and write it as a DICOM series into a folder of its own."""
    import numpy as np

    from chestct.simulate import ThoraxSettings, simulate_patient, write_dicom_series
    from chestct.storage import make_folder, write_folder_with

    settings = ThoraxSettings(rows=_ROWS, slice_spacing_mm=_SLICE_SPACING_MM)
    patient = simulate_patient(np.random.default_rng([_SEED, number]), settings, pattern=label)
    make_folder(folder)
    scan = folder / f"simulated-{label.lower()}"
    return write_folder_with(
        scan, lambda aside: write_dicom_series(patient.volume, aside, uid_seed=scan.name)
    )


def _write(analysis: ScanAnalysis, truth: str, out: Path) -> IndexEntry:
    from chestct.writers.folders import write_outputs
    from chestct.writers.pages import IndexEntry

    folder = Path("results") / analysis.result.scan
    write_outputs(analysis, out / folder)
    return IndexEntry(analysis.result, truth, folder.as_posix())


def _require_own_folder(out: Path, page: str) -> None:
    """Refuse a folder that holds something else than an earlier demonstration, whole or not."""
    own = {"scans", "results", page}
    if out.is_dir() and not {path.name for path in out.iterdir()} <= own:
        msg = f"{out} holds other files: the demonstration wants a folder of its own, --out DIR."
        raise WriteError(msg)

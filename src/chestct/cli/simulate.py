"""`chestct simulate` and `demo`: simulated patients as DICOM series, and what is said of some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options
from chestct.cli.classify import load
from chestct.cli.terminal import (
    scan_progress,
    show_notice,
    show_table,
    show_written,
    stdout_console,
)
from chestct.errors import WriteError

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis
    from chestct.result import ScanResult

_SEED = 7
_ROWS = 320
_SLICE_SPACING_MM = 2.5


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder to write to.")],
    patients: Annotated[int, typer.Option("--patients", min=1, metavar="N", help="How many.")],
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The same seed gives the same patients.")
    ] = 0,
) -> None:
    """Simulate patients with COVID-19, another pneumonia or none, in turn."""
    from chestct.report import as_csv
    from chestct.storage import make_folder, write_whole

    if out.is_dir() and any(out.iterdir()):
        raise WriteError(f"{out} is not empty. Choose a new folder.")
    make_folder(out)
    rows = []
    with scan_progress(is_quiet=False) as progress:
        task = progress.add_task("", total=patients)
        for number in range(patients):
            progress.update(task, description=f"patient {number + 1}")
            rows.append(_simulate_one(out, seed, number, len(str(patients))))
            progress.advance(task)
    table = as_csv(list(rows[0]), (list(row.values()) for row in rows))
    labels = write_whole(out / "labels.csv", table.encode())
    show_written([labels], [])


def _simulate_one(out: Path, seed: int, number: int, digits: int) -> dict[str, str]:
    """Write one patient: the series in `patient-N/dicom`, the truth as NIfTI beside it."""
    import numpy as np

    from chestct.labels import THREE_CLASSES
    from chestct.simulate import simulate_patient, write_dicom_series
    from chestct.storage import make_folder, write_folder_with
    from chestct.writers.nifti import write_nifti

    label = THREE_CLASSES[number % len(THREE_CLASSES)]
    # A generator per patient: patient 5 is the same, however many are asked for.
    patient = simulate_patient(np.random.default_rng([seed, number]), pattern=label)
    name = f"patient-{number + 1:0{max(3, digits)}d}"
    folder = make_folder(out / name)
    uid_seed = f"{seed} {number}"
    write_folder_with(
        folder / "dicom",
        lambda aside: write_dicom_series(patient.volume, aside, uid_seed=uid_seed),
    )
    write_nifti(folder / "lungs.nii.gz", patient.lungs, patient.volume.grid)
    write_nifti(folder / "lesions.nii.gz", patient.lesions, patient.volume.grid)
    return {"patient": name, "scan": f"{name}/dicom", "label": label}


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
    from chestct.writers.pages import INDEX_FILE, IndexHead, IndexRow, write_index

    _require_own_folder(out, INDEX_FILE)
    classifier, running = load(None, options.Running(engine))
    results: list[ScanResult] = []
    rows: list[IndexRow] = []
    with scan_progress(is_quiet=False) as progress:
        task = progress.add_task("", total=len(THREE_CLASSES))
        for number, label in enumerate(THREE_CLASSES):
            progress.update(task, description=f"simulated {label}")
            scan = _simulate_scan(out / "scans", label, number)
            analysis = analyse_scan(scan, classifier, engine=running, explain=AUTO)
            results.append(analysis.result)
            rows.append(IndexRow.of(analysis.result, _write(analysis, out), label))
            progress.advance(task)
    first = results[0]
    head = IndexHead(
        len(rows), first.notice, first.provenance.trained_on, True, "simulated patients"
    )
    page = write_index(rows, head, out)
    console = stdout_console()
    show_table(console, results, list(THREE_CLASSES))
    show_notice(console, first)
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


def _write(analysis: ScanAnalysis, out: Path) -> str:
    """Write results; their folder, relative to `out`."""
    from chestct.writers.folders import write_outputs

    folder = Path("results") / analysis.result.scan
    write_outputs(analysis, out / folder)
    return folder.as_posix()


def _require_own_folder(out: Path, page: str) -> None:
    """Refuse a folder that holds something else than an earlier demonstration, whole or not."""
    own = {"scans", "results", page}
    if out.is_dir() and not {path.name for path in out.iterdir()} <= own:
        msg = f"{out} holds other files: the demonstration wants a folder of its own, --out DIR."
        raise WriteError(msg)

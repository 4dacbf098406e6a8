"""`chestct simulate`: simulated patients as DICOM series, with a table of what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli.terminal import scan_progress, show_written
from chestct.errors import WriteError


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder to write to.")],
    patients: Annotated[int, typer.Option("--patients", min=1, metavar="N", help="How many.")],
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The same seed gives the same patients.")
    ] = 0,
) -> None:
    """Simulate patients with COVID-19, another pneumonia or none, in turn."""
    from chestct.report.tables import as_csv
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

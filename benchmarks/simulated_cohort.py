"""Simulated patients for the benchmarks: scans as NIfTI, the truth beside them, one manifest.

    python benchmarks/simulated_cohort.py FOLDER [--patients 240] [--processes N]

Patients are COVID-19, CAP and normal in turn, on 192 x 192 slices 2, 3 or 5 mm apart. Each has a
generator of its own, so patient 5 is the same however many are asked for; what is there is kept.
The disease is simulated.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measuring import run

from chestct.labels import THREE_CLASSES
from chestct.report import as_csv
from chestct.simulate import ThoraxSettings, simulate_patient
from chestct.storage import write_text
from chestct.writers.nifti import write_nifti

SEED = 11
SLICE_SPACINGS_MM = (2.0, 3.0, 5.0)
MANIFEST = "manifest.csv"


def simulate_one(number: int, *, folder: Path) -> dict[str, str]:
    """One patient: scan, lungs and lesions; returns its row of the manifest."""
    name = f"patient-{number + 1:03d}"
    label = THREE_CLASSES[number % len(THREE_CLASSES)]
    row = {"scan": f"{name}.nii", "patient": name, "label": label}
    if (folder / row["scan"]).is_file():
        return row
    spacing_mm = SLICE_SPACINGS_MM[number // len(THREE_CLASSES) % len(SLICE_SPACINGS_MM)]
    settings = ThoraxSettings(rows=192, slice_spacing_mm=spacing_mm)
    patient = simulate_patient(np.random.default_rng([SEED, number]), settings, pattern=label)
    grid = patient.volume.grid
    write_nifti(folder / "truth" / f"{name}-lungs.nii.gz", patient.lungs, grid)
    write_nifti(folder / "truth" / f"{name}-lesions.nii.gz", patient.lesions, grid)
    # Last, as a patient whose scan is there is complete.
    write_nifti(folder / row["scan"], patient.volume.voxels, grid)
    return row


def make_cohort(folder: Path, num_patients: int, processes: int) -> Path:
    """Simulate what is not there yet and write the manifest, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(simulate_one, folder=folder)
    with get_context("spawn").Pool(processes) as pool:
        rows = []
        for done, row in enumerate(pool.imap(make, range(num_patients)), start=1):
            rows.append(row)
            if done % 30 == 0 or done == num_patients:
                print(f"simulated {done} of {num_patients}", flush=True)
    return write_text(folder / MANIFEST, as_csv(list(rows[0]), [list(r.values()) for r in rows]))


def main() -> None:
    """Make the cohort."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    make_cohort(arguments.folder, arguments.patients, arguments.processes)


if __name__ == "__main__":
    run(main)

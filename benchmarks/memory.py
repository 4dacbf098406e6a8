"""Memory that a scan takes from when it was read to the peak, beside what is reckoned beforehand.

    python benchmarks/memory.py [SLICES ...]

A simulated patient is cut into so many slices of 512 x 512, straight and at 20 degrees, and written
as a DICOM series. A fresh process classifies it with the classifier that is shipped, another one
explains it too and writes all outputs. Printed is the growth of each (VmHWM, Linux, reset once the
scan was read) beside `chestct.pipeline.needed_memory`, which has to be larger.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from measuring import forget_peak, memory_bytes, run

from chestct import pipeline
from chestct.explain import AUTO
from chestct.preprocess.oblique import interpolated
from chestct.readers import read_volume
from chestct.simulate import ThoraxSettings, simulate_patient, write_dicom_series
from chestct.volume import AIR_HU, Grid, Volume
from chestct.writers import ALL, WriteOptions, choose_writers
from chestct.writers.folders import write_outputs

SLICES: Final = (150, 300)
DEGREES: Final = (0.0, 20.0)


def scan_at(patient: Volume, num_slices: int, degrees: float) -> Volume:
    """The patient in slices of 512 x 512, turned about the axis from right to left."""
    turn = math.radians(degrees)
    up = (0.0, math.sin(turn), math.cos(turn))
    back = (0.0, math.cos(turn), -math.sin(turn))
    depth_mm, height_mm, width_mm = patient.grid.extent_mm
    spacing_mm = (depth_mm / num_slices, height_mm / 512, width_mm / 512)
    grid = Grid((num_slices, 512, 512), spacing_mm, direction=(up, back, (1.0, 0.0, 0.0)))
    middle = [np.array([(n - 1) / 2 for n in each.shape]) for each in (patient.grid, grid)]
    x, y, z = (patient.grid.to_patient(middle[0]) - grid.to_patient(middle[1])).tolist()
    placed = Grid(grid.shape, spacing_mm, (x, y, z), grid.direction)
    voxels = interpolated(patient, placed, AIR_HU)
    return Volume(placed, np.rint(voxels).astype(np.int16), "HU")


def measure(scan: Path, *, explains: bool) -> str:
    """Classify a scan; how much this process grew after reading it, and what was reckoned."""
    volume = read_volume(scan)
    before = 0

    class AfterReading:
        """Notes the size and resets its peak."""

        def was_read(self, *_: object) -> None:
            nonlocal before
            before = memory_bytes("VmRSS")
            forget_peak()

        def explaining(self, *_: object) -> None:
            """Nothing to do."""

    needed = pipeline.needed_memory(volume, explains=explains)
    del volume
    analysis = pipeline.analyse_scan(
        scan, explain=AUTO if explains else None, watcher=AfterReading()
    )
    if explains:
        options = WriteOptions(names=choose_writers([ALL]), skips_impossible=True)
        write_outputs(analysis, scan.parent / "out", options)
    grown = memory_bytes() - before
    return f"{grown / 1e6:8.0f} MB taken{needed / 1e6:8.0f} MB reckoned  {analysis.result.decision}"


def report(sizes: list[int]) -> None:
    """Print a line per size, angle and kind of work."""
    settings = ThoraxSettings(rows=256, slice_spacing_mm=2.0)
    patient = simulate_patient(np.random.default_rng(7), settings, pattern="COVID-19").volume
    for num_slices in sizes:
        for degrees in DEGREES:
            with TemporaryDirectory() as folder:
                scan = Path(folder) / "scan"
                write_dicom_series(scan_at(patient, num_slices, degrees), scan)
                for kind in ("classified", "explained"):
                    command = [sys.executable, __file__, "--only", kind, str(scan)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    place = f"{num_slices} slices at {degrees:g} degrees"
                    print(f"{place:28}{kind:12}{done.stdout.strip()}", flush=True)


def main(arguments: list[str]) -> None:
    """Measure one scan for `--only KIND SCAN`, else all."""
    if arguments[:1] == ["--only"]:
        print(measure(Path(arguments[2]), explains=arguments[1] == "explained"))
    else:
        report([int(number) for number in arguments] or [*SLICES])


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

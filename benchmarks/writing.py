"""What writing costs: every output of one scan of about 150 slices of 512 x 512, against the goal.

    python benchmarks/writing.py [SCAN]

The scan is classified and explained first, which is not counted. Then all writers run in the same
process, as `chestct classify --explain --write all` runs them: loading highdicom counts. Seconds
are given twice: by the clock, and of the processor. Memory is the largest the whole process took
while it wrote. SCAN is COVID-CT-MD's P001 from CHESTCT_DATA or ../shared/data unless another is
named.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import forget_peak, in_turns, memory_bytes, real_scan, run

from chestct.pipeline import analyse_scan
from chestct.writers import ALL, WriteOptions, choose_writers
from chestct.writers.folders import write_outputs

GOAL_S = 3.0
GOAL_GB = 1.5


def report(scan: Path) -> None:
    """Print seconds per writer and in all, and memory."""
    analysis = analyse_scan(scan, explain="gradcam")
    shape = " x ".join(str(size) for size in analysis.volume.grid.shape)
    before = memory_bytes("VmRSS") / 1e9
    print(f"{scan.name}, {shape}; the process takes {before:.2f} GB before it writes")
    options = WriteOptions(names=choose_writers([ALL]), makes_uids=True)
    with TemporaryDirectory() as folder:
        forget_peak()
        all_of_them = partial(write_outputs, analysis, Path(folder), options)
        cost = in_turns({"": all_of_them}, 1, num_warming=0)[""]
        peak = memory_bytes() / 1e9
        spent = f"{cost.clock_s:.2f} s, {cost.processor_s:.2f} s of processor"
        print(f"  all, the first time: {spent} (goal {GOAL_S:g} s)")
        print(f"  largest in memory while writing: {peak:.2f} GB (goal {GOAL_GB:g} GB)")
        print("each of them again:")
        alone = {name: replace(options, names=(name,)) for name in options.names}
        works = {n: partial(write_outputs, analysis, Path(folder), o) for n, o in alone.items()}
        for name, cost in in_turns(works, 1, num_warming=0).items():
            path = works[name]().files[name]
            spent = f"{cost.clock_s:6.2f} s{cost.processor_s:8.2f} s of processor"
            print(f"  {name:22}{spent}{path.stat().st_size / 1e6:9.1f} MB  {path.name}")


if __name__ == "__main__":
    run(lambda: report(Path(sys.argv[1]) if len(sys.argv) > 1 else real_scan()))

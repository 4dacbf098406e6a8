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
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from real_scans import real_scan, run

from chestct.analysis import ScanAnalysis
from chestct.pipeline import analyse_scan
from chestct.writers import ALL, WriteOptions, choose_writers
from chestct.writers.folders import write_outputs

if TYPE_CHECKING:
    import psutil

HERE = Path(__file__).parent
GOAL_S = 3.0
GOAL_GB = 1.5


class PeakMemory(threading.Thread):
    """Watches how much memory this process takes until it is told to stop."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.peak = 0
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look every few milliseconds."""
        while not self._is_over.wait(0.004):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def stop(self) -> float:
        """End watching; the largest in gigabytes."""
        self._is_over.set()
        self.join()
        return self.peak / 1e9


def report(scan: Path) -> None:
    """Print seconds per writer and in all, and memory."""
    import psutil

    process = psutil.Process()
    analysis = analyse_scan(scan, explain="gradcam")
    shape = " x ".join(str(size) for size in analysis.volume.grid.shape)
    before = process.memory_info().rss / 1e9
    print(f"{scan.name}, {shape}; the process takes {before:.2f} GB before it writes")
    options = WriteOptions(names=choose_writers([ALL]), makes_uids=True)
    with TemporaryDirectory() as folder:
        memory = PeakMemory(process)
        memory.start()
        start, start_cpu = time.perf_counter(), time.process_time()
        write_outputs(analysis, Path(folder), options)
        taken, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        peak = memory.stop()
        print(f"  all, the first time: {taken:.2f} s, {cpu:.2f} s of processor (goal {GOAL_S:g} s)")
        print(f"  largest in memory while writing: {peak:.2f} GB (goal {GOAL_GB:g} GB)")
        print("each of them again:")
        for name in options.names:
            report_writer(analysis, name, Path(folder))


def report_writer(analysis: ScanAnalysis, name: str, folder: Path) -> None:
    """Print what one writer takes once everything it needs is loaded."""
    options = WriteOptions(names=(name,), makes_uids=True)
    start, start_cpu = time.perf_counter(), time.process_time()
    (path,) = write_outputs(analysis, folder, options).files.values()
    taken, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    size = path.stat().st_size / 1e6
    print(f"  {name:22}{taken:6.2f} s{cpu:8.2f} s of processor{size:9.1f} MB  {path.name}")


if __name__ == "__main__":
    run(lambda: report(Path(sys.argv[1]) if len(sys.argv) > 1 else real_scan()))

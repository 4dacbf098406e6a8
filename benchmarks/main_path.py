"""Every figure of the main path, each beside its comparison or its goal.

    python benchmarks/main_path.py [--skip-networks]

Runs the benchmarks of the parts (reading, lungs, preparing, networks), each in one process of its
own, then the commands a user types, as whole processes. Real scans come from CHESTCT_DATA or
../shared/data; `benchmarks/networks.py` alone takes minutes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import in_turns, real_scan, run

HERE = Path(__file__).parent
PARTS = ("reading.py", "lungs.py", "preparing.py", "networks.py")
REPEATS = 5
GIGABYTE = 2**30


@dataclass(frozen=True)
class Command:
    """One command line, how it is called in the table, and its goal in seconds."""

    words: str
    arguments: tuple[str, ...]
    goal_s: float


def report_commands(folder: Path) -> None:
    """Median seconds of each command as a whole process."""
    scan = str(real_scan())
    commands = (
        Command("chestct --help", ("--help",), 0.6),
        Command("chestct info", ("info",), 0.6),
        Command("chestct classify P001", ("classify", scan), 8.0),
        Command("chestct classify P001 --out", ("classify", scan, "--out", str(folder)), 8.0),
    )
    for command in commands:
        line = [sys.executable, "-m", "chestct", *command.arguments]
        work = partial(subprocess.run, line, capture_output=True, check=True)
        taken_s = in_turns({command: work}, REPEATS)[command].clock_s
        print(f"{command.words:32}{taken_s:6.2f} s  (goal {command.goal_s})")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIGABYTE
    print(f"{'largest of them in memory':32}{peak:6.2f} GiB  (goal 2)")


def report_second_scan() -> None:
    """Seconds of a scan in a process that has classified one before."""
    from chestct import classify_scan

    folder = real_scan("covid_ct_md")
    classify_scan(folder / "P001")
    for name in ("normal001", "P001"):
        runs = [classify_scan(folder / name).timings_s for _ in range(REPEATS)]
        total = statistics.median(run.total for run in runs)
        stages = ", ".join(
            f"{stage} {statistics.median(getattr(run, stage) for run in runs):.2f}"
            for stage in ("read", "prepare", "network")
        )
        print(f"{'a further scan, ' + name:32}{total:6.2f} s  (goal 2.5)  {stages}")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--skip-networks", action="store_true", help="leave out the slowest part")
    skips = parser.parse_args().skip_networks
    for part in PARTS[:-1] if skips else PARTS:
        print(f"\n== {part}", flush=True)
        if subprocess.run([sys.executable, str(HERE / part)], check=False).returncode:
            sys.exit(f"{part} came to no end; it said why.")
    print("\n== commands", flush=True)
    with TemporaryDirectory() as folder:
        report_commands(Path(folder) / "out")
    report_second_scan()


if __name__ == "__main__":
    run(main)

"""What benchmarks share: real scans, time, memory, and how they end where something is missing."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DEFAULT_SCAN = "covid_ct_md/P001"


def real_scan(name: str = DEFAULT_SCAN) -> Path:
    """A scan, or a folder of them, below CHESTCT_DATA or `shared/data` beside the repository.

    Ends the program with a sentence where it is not there.
    """
    path = Path(os.environ.get("CHESTCT_DATA", SHARED)) / name
    if not path.exists():
        sys.exit(f"{path} is not there. Name the folder that holds {name}: CHESTCT_DATA=FOLDER.")
    return path


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; a package or a scan that is missing is said in a sentence.

    What only a comparison needs is imported where it is compared, so that it is missed here.
    """
    # What a benchmark started ends with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing, which this compares with: pip install -e '.[dev]'")
    except Exception as error:
        from chestct.errors import ChestCTError

        if not isinstance(error, ChestCTError):
            raise
        sys.exit(str(error))


class Cost(NamedTuple):
    """Seconds of a piece of work: by the clock and of the processor, medians, and the quickest."""

    clock_s: float
    processor_s: float
    best_s: float


def in_turns(
    works: Mapping[Key, Callable[[], object]], repeats: int, *, num_warming: int = 1
) -> dict[Key, Cost]:
    """Cost of each piece of work, run in turns, so that a busy machine disturbs all of them alike.

    The first turns, `num_warming` of them, do not count.
    """
    taken: dict[Key, list[tuple[float, float]]] = {key: [] for key in works}
    for turn in range(repeats + num_warming):
        for key, work in works.items():
            start, processor = time.perf_counter(), time.process_time()
            work()
            if turn >= num_warming:
                spent = time.perf_counter() - start, time.process_time() - processor
                taken[key].append(spent)
    return {
        key: Cost(*map(statistics.median, zip(*times, strict=True)), best_s=min(times)[0])
        for key, times in taken.items()
    }


def seconds_of(work: Callable[[], object], repeats: int = 1) -> float:
    """Median seconds of a piece of work by the clock, the first run counted."""
    return in_turns({"": work}, repeats, num_warming=0)[""].clock_s


def memory_bytes(name: str = "VmHWM") -> int:
    """Most memory that this process ever took, or what it takes now (VmRSS). Linux.

    `ru_maxrss` would count the parent's too.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def forget_peak() -> None:
    """Count the most memory of this process from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

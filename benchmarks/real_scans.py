"""Where benchmarks find real scans, and how they end where something they need is missing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

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

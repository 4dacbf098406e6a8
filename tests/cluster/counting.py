"""A driver of a job whose work is light, for tests that kill it and its workers.

    python counting.py OUT NUM SHARD LEASE_S WORKERS SECONDS [EXECUTOR [KEY=VALUE ...]]

What a scan does stands in its path: "kill" ends the process, "fail" fails, "hang" is never read and
"block" neither, while nothing else of the process gets a turn, "gpu" says which GPU is seen; all
others are counted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chestct.cluster.driver import Executor, only_driver, run_job, write_tables
from chestct.cluster.job import FOLDER, Job, Row, begin_job
from chestct.errors import ChestCTError

COLUMNS = ("scan", "path", "square")


class Count:
    engine = "fingers"

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self.seconds, self.log = float(settings["seconds"]), out / "log"

    def rows(
        self,
        tasks: Sequence[Mapping[str, Any]],
        begin: Callable[[int], None],
        *,
        is_careful: bool,
    ) -> Iterator[Row]:
        for place, task in enumerate(tasks):
            begin(place)
            time.sleep(self.seconds)
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(f"{task['name']}\n")
            if task["path"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if task["path"] == "hang":
                threading.Event().wait()
            if task["path"] == "block":
                sum(range(10**15))
            if task["path"] == "gpu":
                seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
                yield Row((task["name"], task["path"], seen), task["name"])
            elif task["path"] == "fail":
                yield self.failed(task, "it failed")
            else:
                yield Row((task["name"], task["path"], str(int(task["name"]) ** 2)), task["name"])

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        return Row((task["name"], task["path"], ""), task["name"], failure=why)


def tasks(num: int, **odd: str) -> list[dict[str, str]]:
    return [{"name": str(each), "path": odd.get(f"at_{each}", "scan")} for each in range(num)]


def job_in(out: Path, num: int, shard: int, lease_s: float, seconds: float = 0.0) -> Job:
    limit_s = float(os.environ["LIMIT_S"]) if "LIMIT_S" in os.environ else None
    settings = {"seconds": seconds}
    return Job(
        out / FOLDER, "counting:Count", settings, num, shard, lease_s, scan_timeout_s=limit_s
    )


def main(arguments: list[str]) -> None:
    out, (num, shard) = Path(arguments[0]), map(int, arguments[1:3])
    lease_s, workers, seconds = float(arguments[3]), int(arguments[4]), float(arguments[5])
    options = dict(text.split("=") for text in arguments[7:])
    executor = Executor(*arguments[6:7] or ["local"], workers, options)
    odd = (
        {}
        if "ODD" not in os.environ
        else dict(each.split("=") for each in os.environ["ODD"].split(","))
    )
    try:
        with only_driver(out, lease_s):
            job = begin_job(job_in(out, num, shard, lease_s, seconds), tasks(num, **odd))
            run_job(job, executor, say=lambda words: sys.stderr.write(f"{words}\n"))
            write_tables(job, COLUMNS)
    except ChestCTError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])

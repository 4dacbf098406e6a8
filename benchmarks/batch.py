"""Many scans one after the other, and by several workers at once, on the same scans in one run.

    python benchmarks/batch.py [SCAN] [--scans N] [--workers N]

One scan is classified N times under other names, with the classifier that is shipped and without
folders of results. One after the other is what `chestct classify` does with several scans: all
cores take part in each. A batch gives every worker its share of the cores. Loading a classifier is
left out of both: the clock starts when the first scan of a worker begins and the batch's ends with
its last row.

Below stand the stages of one scan on one core, from the batch's own timings: their sum divided by
the number of workers is the floor, below which no batch of so many workers can come.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import real_scan, run

from chestct.classifier import load_classifier
from chestct.cluster.classifying import WORK, ClassifyWork
from chestct.cluster.driver import Executor, run_job
from chestct.cluster.job import FOLDER, Job, begin_job
from chestct.cluster.listing import list_scans
from chestct.datasets.workers import num_cores
from chestct.engines import make_engine
from chestct.pipeline import analyse_scan
from chestct.readers import ReadOptions


def links_to(scan: Path, folder: Path, num: int) -> list[Path]:
    """The scan under so many names."""
    links = [folder / f"scan-{each:03d}" for each in range(num)]
    for link in links:
        link.symlink_to(scan.resolve())
    return links


def one_after_the_other(scans: list[Path]) -> float:
    """Seconds per scan in this process, the first scan left out."""
    classifier = load_classifier()
    engine = make_engine(classifier)
    analyse_scan(scans[0], classifier, engine=engine)
    started = time.perf_counter()
    for scan in scans[1:]:
        analyse_scan(scan, classifier, engine=engine)
    return (time.perf_counter() - started) / (len(scans) - 1)


def as_a_batch(scans: list[Path], out: Path, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds per scan with all workers at work, and the median stages of a scan."""
    writing = {"names": ["json"]}
    settings = ClassifyWork.settings(load_classifier(), None, writing=writing)
    job = Job(out / FOLDER, WORK, settings, len(scans), 1)
    listed = list_scans(scans, [scan.name for scan in scans], ReadOptions())
    run_job(begin_job(job, listed), Executor("local", workers))
    ends = sorted(path.stat().st_mtime for path in (job.folder / "parts").glob("*"))
    # From the moment that each worker has done one: none is loading any more.
    seconds = (ends[-1] - ends[workers - 1]) / (len(ends) - workers)
    stages = [json.loads(file.read_text())["timings_s"] for file in out.glob("*/result.json")]
    names = ("read", "prepare", "network")
    return seconds, {name: statistics.median(each[name] for each in stages) for name in names}


def main(arguments: list[str]) -> None:
    """Print scans a minute of both, the ratio, and the floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scan", nargs="?", type=Path)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--workers", type=int, default=num_cores())
    said = parser.parse_args(arguments)
    scan, num, workers = said.scan or real_scan(), said.scans, said.workers
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "scans").mkdir()
        scans = links_to(scan, folder / "scans", num)
        alone_s = one_after_the_other(scans[: max(3, num // 2)])
        batch_s, stages = as_a_batch(scans, folder / "out", workers)
    floor_s = sum(stages.values()) / workers
    print(f"{scan.name}, {num} times, {workers} workers on {num_cores()} cores")
    print(f"one after the other {60 / alone_s:6.1f} scans a minute")
    print(f"as a batch          {60 / batch_s:6.1f} scans a minute, ratio {alone_s / batch_s:.2f}")
    print("stages on a worker's cores: " + ", ".join(f"{n} {s:.2f} s" for n, s in stages.items()))
    print(f"floor               {60 / floor_s:6.1f} scans a minute, taken {batch_s / floor_s:.2f}x")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

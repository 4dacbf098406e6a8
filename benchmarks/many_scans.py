"""Very many tiny scans by workers that are killed, and what more workers would do.

    python benchmarks/many_scans.py [--scans 20000] [--kills 10] [--shard 50]

So many copies of a small drawn chest (links to 16 NIfTI files with voxels of their own) are
classified with drawn weights by `chestct classify --manifest`. First a tenth of them by one worker
on one core and by two on two, undisturbed, for the throughput. Then all, while a worker or the
driver is killed at random moments and a driver that was killed is called again: at the end every
scan has one row.

The forecast is a model of three terms, each measured here on its own: the seconds that a worker
takes per scan (from the run with one worker), what a shard costs at the shared disk (claim, part
and looking for the next one, one process at a time), and what the driver does per scan when it puts
parts together, which no worker can take from it. Its error is told on the run with two workers.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measuring import run

from chestct.cluster.driver import write_tables
from chestct.cluster.job import FOLDER, Claims, Job, Row, begin_job
from chestct.simulate import simulate_patient

NUM_FILES = 16
FORECAST = (1, 2, 8, 64, 512)
LEASE_S = 60.0


def write_scans(folder: Path, num: int) -> Path:
    """A manifest of so many scans."""
    import nibabel

    patient = simulate_patient(np.random.default_rng(0)).volume
    step = [max(1, size // 32) for size in patient.grid.shape]
    small = np.asarray(patient.voxels)[:: step[0], :: step[1], :: step[2]]
    spacing = [s * n for s, n in zip(patient.grid.spacing_mm, step, strict=True)]
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    folder.mkdir()
    for each in range(NUM_FILES):
        voxels = np.transpose(small + np.int16(each), (2, 1, 0)).astype(np.int16)
        nibabel.Nifti1Image(voxels, affine).to_filename(folder / f"file-{each}.nii")
    for each in range(num):
        (folder / f"s{each:06d}.nii").symlink_to(f"file-{each % NUM_FILES}.nii")
    return write_manifest(folder, num)


def write_manifest(folder: Path, num: int) -> Path:
    """A manifest of the first scans."""
    file = folder / f"first-{num}.csv"
    lines = (f"s{each:06d}.nii,bad-slices gap\n" for each in range(num))
    file.write_text("scan,allow\n" + "".join(lines))
    return file


def write_classifier(folder: Path) -> Path:
    """A classifier of drawn weights that takes rules of thumb for the lungs: as quick as may be."""
    from dataclasses import asdict, replace

    from chestct.card import Card
    from chestct.classifier import save_classifier
    from chestct.labels import THREE_CLASSES
    from chestct.networks import build_network
    from chestct.preprocess.recipes import RECIPES

    recipe = replace(
        RECIPES["roi_resnet_paper"], input_shape=(32, 32, 32), spacing_mm=(12.0, 12.0, 12.0)
    )
    card = Card(
        name="tiny",
        version="0",
        network="roi_resnet18",
        network_settings={"width": 4},
        recipe=asdict(recipe),
        labels=THREE_CLASSES,
        trained_on="nothing: random weights",
        licence="Apache-2.0",
    )
    save_classifier(folder, build_network("roi_resnet18", 1, 3, {"width": 4}), card)
    return folder


def begin(
    manifest: Path, classifier: Path, out: Path, workers: int, shard: int
) -> subprocess.Popen:
    """Start a driver."""
    said = ("--engine", "torch", "--workers", str(workers), "--shard", str(shard))
    named = ("--manifest", str(manifest), "--classifier", str(classifier), "--out", str(out))
    command = [sys.executable, "-m", "chestct", "classify", *named, *said]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def undisturbed(manifest: Path, classifier: Path, out: Path, workers: int, shard: int) -> float:
    """Scans a second, a core each, from the first shard of the last worker to the last shard."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:workers])
    driver = begin(manifest, classifier, out, workers, shard)
    os.sched_setaffinity(0, cores)
    _, said = driver.communicate()
    if driver.returncode:
        sys.exit(f"{said.decode()}\n{(out / 'failures.csv').read_text(encoding='utf-8')[:400]}")
    ends = sorted(path.stat().st_mtime for path in (out / FOLDER / "parts").glob("*"))
    return (len(ends) - workers) * shard / (ends[-1] - ends[workers - 1])


def workers_of(driver: int) -> list[int]:
    """Process ids of a driver's workers. Linux."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == driver and b"spawn_main" in command:
            found.append(int(status.parent.name))
    return found


def disturbed(
    manifest: Path, classifier: Path, out: Path, shard: int, num_shards: int, num_kills: int
) -> list[str]:
    """Kill at random moments, spread over the work, until it is done; who was killed when."""
    rng, parts, log = random.Random(0), out / FOLDER / "parts", []
    moments = sorted(rng.sample(range(num_shards), num_kills))
    driver = begin(manifest, classifier, out, 2, shard)
    while driver.poll() is None:
        time.sleep(rng.uniform(0.0, 0.2))
        done = len(list(parts.glob("*"))) if parts.exists() else 0
        if not moments or done < moments[0]:
            continue
        workers = workers_of(driver.pid)
        if len(log) % 3 == 2:
            driver.kill()
            driver.wait()
            log.append(f"driver at shard {done}")
            driver = begin(manifest, classifier, out, 2, shard)
            moments.pop(0)
        elif workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            log.append(f"worker at shard {done}")
            moments.pop(0)
    if driver.returncode:
        sys.exit(driver.stderr.read().decode())
    return log


def shard_seconds(folder: Path, num: int = 200) -> float:
    """What a shard costs at the disk beside its scans: a claim, a part, a look at all others."""
    job = begin_job(Job(folder / FOLDER, "none:none", {}, num, 1), [{"name": ""}] * num)
    claims = Claims(folder / FOLDER / "claims", LEASE_S)
    started = time.perf_counter()
    for shard in range(num):
        job.done()
        claims.take(f"{shard:05d}")
        job.tasks(shard)
        job.write_part(shard, [Row(("a", "b"), "a")])
    return (time.perf_counter() - started) / num


def driver_seconds(out: Path, num: int) -> float:
    """What the driver does per scan when it puts parts together."""
    from chestct.cluster.job import open_job

    started = time.perf_counter()
    write_tables(open_job(out / FOLDER), ("scan",))
    return (time.perf_counter() - started) / num


def forecast(workers: int, scan_s: float, shard_s: float, driver_s: float, shard: int) -> float:
    """Scans a second: workers share the scans, the disk serves one shard at a time."""
    by_workers = workers / (scan_s + shard_s / shard)
    by_disk = shard / shard_s
    return 1 / (1 / min(by_workers, by_disk) + driver_s)


def main(arguments: list[str]) -> None:
    """Print throughputs, kills, whether all is there, and the forecast."""
    parser = argparse.ArgumentParser()
    for name, usual in (("--scans", 20000), ("--kills", 10), ("--shard", 50)):
        parser.add_argument(name, type=int, default=usual)
    said = parser.parse_args(arguments)
    num, kills, shard = said.scans, said.kills, said.shard
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = write_scans(folder / "scans", num)
        classifier = write_classifier(folder / "classifier")
        few = write_manifest(folder / "scans", max(num // 10, 4 * shard))
        rates = {n: undisturbed(few, classifier, folder / f"by-{n}", n, shard) for n in (1, 2)}
        started = time.perf_counter()
        log = disturbed(manifest, classifier, folder / "out", shard, -(-num // shard), kills)
        seconds = time.perf_counter() - started
        with (folder / "out" / "answers.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        names = [row["scan"] for row in rows]
        answered = sum(bool(row["decision"]) for row in rows)
        shard_s, driver_s = shard_seconds(folder / "disk"), driver_seconds(folder / "out", num)
    print(f"killed: {', '.join(log)}")
    print(f"{num} scans in {seconds:.0f} s: {len(names)} rows, {len(set(names))} names, ", end="")
    print(f"{answered} answers")
    scan_s = 1 / rates[1] - shard_s / shard
    print(f"a scan {scan_s * 1e3:.1f} ms, a shard at the disk {shard_s * 1e3:.1f} ms, ", end="")
    print(f"a scan at the driver {driver_s * 1e6:.0f} us")
    print(f"{'workers':>8}{'measured':>10}{'forecast':>10}   scans a second")
    for workers in FORECAST:
        model = forecast(workers, scan_s, shard_s, driver_s, shard)
        known = rates.get(workers)
        error = "" if known is None else f"   error {model / known - 1:+.0%}"
        print(f"{workers:8}{'' if known is None else f'{known:.1f}':>10}{model:10.1f}{error}")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

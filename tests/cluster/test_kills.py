"""Workers and drivers come and go; every scan has one row at the end, the same as undisturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

NUM, SHARD, LEASE_S, WORKERS, SECONDS = 48, 3, 1.0, 2, 0.03
SAID = (NUM, SHARD, LEASE_S, WORKERS, SECONDS)

Start = Callable[..., "psutil.Popen"]


def rows_of(out: Path) -> list[str]:
    return (out / "answers.csv").read_text(encoding="utf-8").splitlines()[1:]


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes of a driver, its helper for shared resources left out."""
    try:
        children = psutil.Process(pid).children()
        return [each for each in children if "spawn_main" in " ".join(each.cmdline())]
    except psutil.Error:
        return []


@pytest.mark.parametrize("seed", [1, 2])
def test_results_are_complete_and_single_whoever_is_killed_when(
    seed: int, start: Start, tmp_path: Path
) -> None:
    rng, num_kills = random.Random(seed), 0
    driver = start(tmp_path, *SAID)
    while driver.poll() is None:
        time.sleep(rng.uniform(0.2, 1.5))
        if num_kills >= 6:
            continue
        workers = workers_of(driver.pid)
        if workers and rng.random() < 0.6:
            rng.choice(workers).send_signal(signal.SIGKILL)
            num_kills += 1
        elif len(list((tmp_path / ".batch" / "parts").glob("*"))) > 3 * (num_kills + 1):
            driver.kill()
            driver.communicate()
            num_kills += 1
            driver = start(tmp_path, *SAID)
    assert driver.returncode == 0, driver.communicate()
    assert num_kills > 0
    assert rows_of(tmp_path) == [f"{each},scan,{each**2}" for each in range(NUM)]
    assert (tmp_path / "failures.csv").read_text(encoding="utf-8") == "scan,path,reason\n"


def test_a_scan_that_ends_every_worker_fails_alone(start: Start, tmp_path: Path) -> None:
    driver = start(tmp_path, 4, 4, 0.5, 1, 0.0, ODD="at_2=kill")
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert rows_of(tmp_path) == ["0,scan,0", "1,scan,1", "2,kill,", "3,scan,9"]
    assert "ended without a word" in (tmp_path / "failures.csv").read_text(encoding="utf-8")


def test_a_worker_that_is_told_to_stop_gives_its_shard_back_at_once(
    start: Start, tmp_path: Path
) -> None:
    lease_s, claim = 60.0, tmp_path / ".batch" / "claims" / "00000.1"
    driver = start(tmp_path, 6, 6, lease_s, 1, 0.5)
    while driver.poll() is None and not (claim.exists() and claim.read_text(encoding="utf-8")):
        time.sleep(0.05)
    (worker,) = workers_of(driver.pid)
    stopped = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert time.monotonic() - stopped < lease_s / 2
    assert rows_of(tmp_path) == [f"{each},scan,{each**2}" for each in range(6)]
    assert claim.with_suffix(".2").exists()


def test_scans_that_never_end_fail_alone_and_cost_no_lease(start: Start, tmp_path: Path) -> None:
    started = time.monotonic()
    odd = {"ODD": "at_1=hang,at_4=block", "LIMIT_S": "1"}
    driver = start(tmp_path, 6, 6, 60.0, 1, 0.0, **odd)
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert "took too long" in said
    assert rows_of(tmp_path) == [
        "0,scan,0",
        "1,hang,",
        "2,scan,4",
        "3,scan,9",
        "4,block,",
        "5,scan,25",
    ]
    failures = (tmp_path / "failures.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [line.split(",")[0] for line in failures] == ["1", "4"]
    assert all("longer than 1 s, alone too" in line for line in failures)
    assert time.monotonic() - started < 60.0


def test_processes_see_the_gpus_that_are_handed_out(start: Start, tmp_path: Path) -> None:
    driver = start(tmp_path, 1, 1, 60.0, 1, 0.0, "local", "gpus=5,3", ODD="at_0=gpu")
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert rows_of(tmp_path) == ["0,gpu,5"]


def test_a_second_driver_on_the_same_results_is_refused(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path, 40, 1, 2.0, 1, 1.0)
    while not (tmp_path / ".batch" / "job.json").exists():
        time.sleep(0.1)
    second = start(tmp_path, 40, 1, 2.0, 1, 1.0)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "Another chestct works on" in said
    assert first.poll() is None


def test_a_crew_that_refuses_to_work_ends_the_call(start: Start, tmp_path: Path) -> None:
    done = start(tmp_path, 4, 2, 1.0, 1, 0.0)
    done.communicate(timeout=120)
    (tmp_path / ".batch" / "engine").write_text("toes", encoding="utf-8")
    (tmp_path / ".batch" / "parts" / "00000.jsonl").unlink()
    driver = start(tmp_path, 4, 2, 1.0, 1, 0.0)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "No worker is left" in said
    assert "fingers and the first worker with toes" in said


def test_slurm_jobs_do_the_same_with_the_local_executor_of_submitit(
    start: Start, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    options = ("slurm", "cluster=local", "timeout_min=5", "cpus_per_task=1")
    driver = start(tmp_path, 8, 2, 5.0, 2, 0.0, *options)
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert rows_of(tmp_path) == [f"{each},scan,{each**2}" for each in range(8)]

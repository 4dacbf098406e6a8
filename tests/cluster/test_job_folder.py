"""Shards of a job are claimed by one worker at a time, and go to others when it is silent."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import counting
import pytest

from chestct.cluster import driver, job
from chestct.cluster.job import Claims, Job, begin_job, open_job, work_on
from chestct.errors import ChestCTError, WriteError


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "claims", lease_s=30.0)


def make_silent(claim: job._Claim, seconds: float = 60.0) -> None:
    """As if nothing had been heard of a claim's holder for a while."""
    then = time.time() - seconds
    os.utime(claim.file, (then, then))


def begun(out: Path, num: int = 7, shard: int = 3, **odd: str) -> Job:
    return begin_job(counting.job_in(out, num, shard, 30.0), counting.tasks(num, **odd))


def test_a_claim_is_one_processes_until_its_lease_is_over(claims: Claims, tmp_path: Path) -> None:
    other = Claims(tmp_path / "claims", lease_s=30.0)
    mine = claims.take("00001")
    assert mine is not None
    assert other.take("00001") is None
    assert other.take("00002") is not None
    make_silent(mine)
    theirs = other.take("00001")
    assert theirs is not None
    assert (mine.is_lost, theirs.is_lost, theirs.generation) == (True, False, 2)
    assert claims.take("00001") is None


def test_a_claim_that_is_kept_does_not_run_out(tmp_path: Path) -> None:
    claims, other = (Claims(tmp_path, lease_s=0.8) for _ in range(2))
    mine = claims.take("00001")
    assert mine is not None
    with claims.kept(mine):
        time.sleep(1.6)
        assert other.take("00001") is None
    time.sleep(1.2)
    assert other.take("00001") is not None


def test_the_time_is_the_disks_and_not_a_machines(
    claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claims.take("00001") is not None
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert claims.take("00001") is None


def test_a_disk_that_cannot_be_written_is_said_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    begun(tmp_path)
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(WriteError, match=f"{os.uname().nodename}: read-only file system"):
        work_on(tmp_path / job.FOLDER)


def test_a_worker_does_all_shards_and_the_tables_hold_every_scan_once(tmp_path: Path) -> None:
    begun(tmp_path, at_4="fail")
    assert work_on(tmp_path / job.FOLDER) == 3
    found = driver.write_tables(open_job(tmp_path / job.FOLDER), counting.COLUMNS)
    assert (found.answered, found.failed, found.incomplete) == (6, 1, 0)
    assert found.exit_code == 1
    lines = (tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:4] == ["0,scan,0", "1,scan,1", "2,scan,4"]
    assert [line.split(",")[0] for line in lines[1:]] == list("0123456")
    failures = (tmp_path / "failures.csv").read_text(encoding="utf-8")
    assert failures == "scan,path,reason\n4,fail,it failed\n"


def test_what_was_done_is_not_done_again_and_what_failed_is(tmp_path: Path) -> None:
    once = begun(tmp_path, at_4="fail")
    work_on(once.folder)
    (tmp_path / "log").unlink()
    begun(tmp_path, at_4="fail").reopen()
    work_on(once.folder)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "4\n"
    assert len(list(once.rows())) == 7


def test_a_worker_that_was_only_slow_drops_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(tmp_path, num=3)

    def lose(*_: object, **__: object) -> object:
        (claim,) = (made.folder / "claims").glob("00000.1")
        claim.with_suffix(".2").touch()
        made.write_part(0, [job.Row((name, "scan", "theirs"), name) for name in "012"])
        yield job.Row(("0", "scan", "mine"), "0")

    monkeypatch.setattr(counting.Count, "rows", lose)
    assert work_on(made.folder) == 0
    assert {row.cells[2] for row in made.rows()} == {"theirs"}


def ended_at(out: Path, *marks: tuple[list[int], bool]) -> job.Claims:
    """As if workers had ended, one after the other, at these scans of the first shard."""
    claims = Claims(out / job.FOLDER / "claims", 30.0)
    for places, is_alone in marks:
        claim = claims.take("00000")
        assert claim is not None
        claim.mark(places, is_alone=is_alone)
        make_silent(claim)
    return claims


def test_a_scan_at_which_two_workers_ended_alone_is_given_up(tmp_path: Path) -> None:
    made = begun(tmp_path, num=3)
    ended_at(tmp_path, ([0, 1], False), ([1], True), ([1], True))
    work_on(made.folder)
    assert [bool(row.failure) for row in made.rows()] == [False, True, False]
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["0", "2"]


def test_scans_at_which_a_worker_ended_are_tried_alone_first(tmp_path: Path) -> None:
    made = begun(tmp_path, num=3)
    ended_at(tmp_path, ([1, 2], False), ([1], True))
    work_on(made.folder)
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["1", "2", "0"]
    assert not any(row.failure for row in made.rows())


def test_a_worker_that_stops_of_its_own_accord_leaves_its_shard_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise ChestCTError("enough")

    made = begun(tmp_path, num=3)
    monkeypatch.setattr(counting.Count, "rows", refuse)
    with pytest.raises(ChestCTError, match="enough"):
        work_on(made.folder)
    claim = Claims(made.folder / "claims", 30.0).take("00000")
    assert claim is not None
    assert claim.suspects() == job._Suspects([], set(), set())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"settings": {"seconds": 1.0}}, "seconds"),
        ({"num_tasks": 6}, "scans"),
        ({"work": "other"}, "work"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(
    change: dict[str, object], word: str, tmp_path: Path
) -> None:
    begun(tmp_path)
    other = replace(counting.job_in(tmp_path, 7, 3, 30.0), **change)  # type: ignore[arg-type]
    with pytest.raises(ChestCTError, match=word):
        begin_job(other, counting.tasks(other.num_tasks))


def test_a_job_goes_on_with_the_shards_it_was_begun_with(tmp_path: Path) -> None:
    begun(tmp_path, shard=3)
    assert begun(tmp_path, shard=2).shard == 3


def test_a_job_that_is_gone_on_with_takes_the_new_time_for_a_scan(tmp_path: Path) -> None:
    begun(tmp_path)
    wanted = replace(counting.job_in(tmp_path, 7, 3, 30.0), scan_timeout_s=9.0)
    assert begin_job(wanted, counting.tasks(7)).scan_timeout_s == 9.0


def test_another_version_on_a_node_is_refused(tmp_path: Path) -> None:
    made = begun(tmp_path)
    file = made.folder / "job.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "version": "9.9"}), encoding="utf-8")
    with pytest.raises(ChestCTError, match=r"chestct 9\.9's and"):
        work_on(made.folder)


def test_another_engine_than_the_first_workers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(tmp_path)
    work_on(made.folder)
    monkeypatch.setattr(counting.Count, "engine", "toes")
    with pytest.raises(ChestCTError, match="toes and the first worker with fingers"):
        work_on(made.folder)


def test_a_folder_that_a_node_does_not_see_is_said(tmp_path: Path) -> None:
    with pytest.raises(ChestCTError, match="has to see the same --out"):
        work_on(tmp_path / job.FOLDER)

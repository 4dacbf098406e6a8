"""One scan after another, in a process that may be ended or fall."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import serve_workers

from chestct.errors import ChestCTError
from chestct.serve import jobs as jobs_module
from chestct.serve.jobs import Job, Jobs, Order


def order(folder: Path, name: str = "scan") -> Order:
    return Order(folder / name, folder / "results", folder / "viewing")


def run(
    work: Callable[[Connection], None], use: Callable[[Jobs], Awaitable[None]]
) -> list[tuple[str, str]]:
    """Use a queue while it works; which jobs were tidied up after, and how they ended."""
    over: list[tuple[str, str]] = []

    async def all_of_it() -> None:
        jobs = Jobs(work)
        jobs.when_over = lambda job: over.append((job.name, job.state))
        working = asyncio.create_task(jobs.run())
        try:
            await asyncio.wait_for(use(jobs), timeout=120)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(all_of_it())
    return over


async def until(jobs: Jobs, is_so: Callable[[], bool]) -> None:
    async for _ in jobs.versions():
        if is_so():
            return


def state_of(jobs: Jobs, job: Job) -> str:
    found = jobs.find(job.number)
    return found.state if found else ""


def test_scans_are_done_one_after_another_in_their_order(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        added = [await jobs.add(name, order(tmp_path)) for name in ("first", "second", "third")]
        await until(jobs, lambda: all(state_of(jobs, job) == "done" for job in added))

    assert run(serve_workers.answer_at_once, use) == [
        ("first", "done"),
        ("second", "done"),
        ("third", "done"),
    ]


def test_a_scan_in_work_can_be_cancelled_leaves_nothing_and_the_next_one_starts(
    tmp_path: Path,
) -> None:
    half = tmp_path / "results" / "half"

    async def use(jobs: Jobs) -> None:
        first = await jobs.add("first", order(tmp_path))
        second = await jobs.add("second", order(tmp_path))
        await until(jobs, lambda: (found := jobs.find(first.number)) is not None and found.folder)
        assert half.exists()
        await jobs.cancel(first.number)
        await until(jobs, lambda: state_of(jobs, second) == "running")
        assert state_of(jobs, first) == "cancelled"

    over = run(serve_workers.never_come_to_an_end, use)
    assert over[0] == ("first", "cancelled")


def test_a_cancelled_scan_leaves_no_half_written_results(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        job = await jobs.add("first", order(tmp_path))
        await until(jobs, lambda: (found := jobs.find(job.number)) is not None and found.folder)
        await jobs.cancel(job.number)
        while (tmp_path / "results" / "half").exists():
            await asyncio.sleep(0.05)

    run(serve_workers.never_come_to_an_end, use)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_waiting_scan_can_be_cancelled_and_is_never_started(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        first = await jobs.add("first", order(tmp_path))
        second = await jobs.add("second", order(tmp_path))
        await until(jobs, lambda: state_of(jobs, first) == "running")
        await jobs.cancel(second.number)
        assert state_of(jobs, second) == "cancelled"

    assert ("second", "cancelled") in run(serve_workers.never_come_to_an_end, use)


def test_a_worker_that_falls_costs_its_scan_and_no_other(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        bad = await jobs.add("bad", order(tmp_path, "bad"))
        good = await jobs.add("good", order(tmp_path, "good"))
        await until(jobs, lambda: state_of(jobs, good) == "done")
        found = jobs.find(bad.number)
        assert found is not None
        assert found.state == "failed"
        assert "out of memory" in found.stage

    assert run(serve_workers.fall, use) == [("bad", "failed"), ("good", "done")]


def test_a_scan_that_is_refused_says_why(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        job = await jobs.add("first", order(tmp_path))
        await until(jobs, lambda: state_of(jobs, job) == "failed")
        found = jobs.find(job.number)
        assert found is not None
        assert found.stage == "This is no scan."
        # What was read can be put away, for all who look.
        await until(jobs, lambda: not jobs._current)
        await jobs.cancel(job.number)
        assert jobs.all() == []

    run(serve_workers.refuse, use)


def test_a_scan_of_several_series_waits_for_a_choice_while_others_go_on(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        job = await jobs.add("first", order(tmp_path))
        other = await jobs.add("second", replace(order(tmp_path), series="1.2"))
        await until(jobs, lambda: state_of(jobs, other) == "done")
        found = jobs.find(job.number)
        assert found is not None
        assert (found.state, found.stage) == ("undecided", "It holds 2 series.")
        assert found.series == serve_workers.SERIES
        with pytest.raises(ChestCTError, match="no such series"):
            await jobs.choose(job.number, "1.3")
        await jobs.choose(job.number, "1.2")
        await until(jobs, lambda: state_of(jobs, job) == "done")
        found = jobs.find(job.number)
        assert found is not None
        assert (found.order.series, found.series) == ("1.2", {})
        with pytest.raises(ChestCTError, match="no such series"):
            await jobs.choose(job.number, "1.2")

    # What was sent is tidied up after the answer, not before.
    over = run(serve_workers.ask_which, use)
    assert over == [("second", "done"), ("first", "done")]


def test_a_scan_that_waits_for_a_choice_can_be_put_away(tmp_path: Path) -> None:
    async def use(jobs: Jobs) -> None:
        job = await jobs.add("first", order(tmp_path))
        await until(jobs, lambda: state_of(jobs, job) == "undecided")
        await until(jobs, lambda: not jobs._current)
        await jobs.cancel(job.number)
        assert state_of(jobs, job) == "cancelled"

    assert run(serve_workers.ask_which, use) == [("first", "cancelled")]


def test_a_full_queue_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_MOST_WAITING", 2)

    async def add_three() -> None:
        jobs = Jobs(serve_workers.answer_at_once)
        for name in ("first", "second", "third"):
            await jobs.add(name, order(tmp_path))

    with pytest.raises(ChestCTError, match="2 scans are waiting"):
        asyncio.run(add_three())


def test_whoever_listens_is_called_again_though_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_module, "_QUIET_S", 0.01)

    async def listen() -> list[int]:
        jobs = Jobs(serve_workers.answer_at_once)
        seen = []
        async for version in jobs.versions():
            seen.append(version)
            if len(seen) == 3:
                return seen
        return seen

    assert asyncio.run(listen()) == [0, 0, 0]

from __future__ import annotations

import os

import pytest

from chestct.datasets.workers import Progress, WorkerError, num_cores, run_all


def process_of(task: int) -> tuple[int, int]:
    return task, os.getpid()


def die(task: int) -> int:
    os._exit(task)


def test_results_come_in_the_order_of_the_tasks_from_several_processes() -> None:
    seen: list[Progress] = []
    results = run_all(process_of, range(6), processes=2, progress=seen.append)
    assert [task for task, _ in results] == list(range(6))
    assert os.getpid() not in {process for _, process in results}
    assert [each.done for each in seen] == [1, 2, 3, 4, 5, 6]


def test_one_process_is_this_one() -> None:
    assert run_all(process_of, [1, 2], processes=1) == [(1, os.getpid()), (2, os.getpid())]
    assert run_all(process_of, []) == []


def test_a_process_that_is_killed_is_said_with_the_remedy() -> None:
    with pytest.raises(WorkerError, match="fewer than 2 processes"):
        run_all(die, [1, 1], processes=2)


def test_time_left_is_told_from_the_pace() -> None:
    assert Progress(2, 10, 4.0).seconds_left == 16
    assert Progress(0, 10, 0.0).seconds_left == 0
    assert num_cores() >= 1

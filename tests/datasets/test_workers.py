from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from chestct.datasets.workers import Progress, end_with_parent, num_cores, run_all
from chestct.errors import ChestCTError
from chestct.library_warnings import rephrased_libraries


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
    with pytest.raises(ChestCTError, match="fewer than 2 processes"):
        run_all(die, [1, 1], processes=2)


def threads_of(_task: int) -> tuple[bool, int, int]:
    was_loaded = "torch" in sys.modules
    import cv2
    import torch

    return was_loaded, torch.get_num_threads(), cv2.getNumThreads()


def test_processes_use_one_thread_and_load_pytorch_only_for_work_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    assert run_all(threads_of, [1, 2], processes=2) == [(False, 1, 1)] * 2


def warn(name: str) -> None:
    warnings.warn(name, stacklevel=1)
    logging.getLogger("pydicom").warning(name)
    logging.getLogger("chestct.readers").warning("a warning of ours")


def test_what_libraries_warn_of_in_other_processes_is_rephrased_too(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with rephrased_libraries(print, is_debugging=False):
        run_all(warn, ["Secret^Name", "Secret^Name"], processes=2)
    said = capfd.readouterr().err
    assert "Secret" not in said
    assert "chestct: the library test_workers gave a warning (UserWarning)" in said
    assert "chestct: the library pydicom gave a warning (warning)" in said
    assert "chestct: a warning of ours\n" in said


def test_there_is_a_core_to_work_on() -> None:
    assert num_cores() >= 1


PREPARES = """
import signal, time
# As from a terminal: what runs in the background of a shell begins with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from chestct.datasets import workers
from chestct.datasets.workers import run_all
workers._use_one_thread = lambda: None  # importing torch would take most of the time
def wait_long(task):
    Path(task).write_text(str(__import__("os").getpid()))
    time.sleep(60)
if __name__ == "__main__":
    import sys
    from chestct.cli import main
    import chestct.cli as cli
    cli._run = lambda given: run_all(wait_long, given, processes=2)
    sys.exit(main(sys.argv[1:]))
"""


def is_running(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGINT, 130, "interrupted by Ctrl-C"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_however_a_command_is_ended_its_processes_end_with_it_in_one_sentence_at_most(
    tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    script = tmp_path / "prepares.py"
    script.write_text(PREPARES)
    marks = [tmp_path / "1", tmp_path / "2"]
    command = [sys.executable, str(script), *map(str, marks)]
    # As a terminal does: Ctrl-C goes to all processes of the group.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
        workers = [int(mark.read_text()) for mark in marks]
        assert all(map(is_running, workers))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    wait_until(lambda: not any(map(is_running, workers)))
    # After SIGKILL, Python's own tracker of semaphores says that it tidied up.
    assert number == signal.SIGKILL or len(said.splitlines()) == 1
    assert words in said


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_where_the_kernel_does_not_do_it_a_closed_pipe_ends_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    reading, writing = os.pipe()
    parent = SimpleNamespace(sentinel=reading)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("chestct.datasets.workers.parent_process", lambda: parent)
    monkeypatch.setattr("os._exit", ended.append)
    end_with_parent()
    assert ended == []
    os.close(writing)
    wait_until(lambda: ended == [1])
    os.close(reading)


def test_shared_memory_that_may_not_be_written_to_is_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("chestct.datasets.workers.ProcessPoolExecutor", read_only)
    with pytest.raises(ChestCTError, match=r"read-only file system.*--processes 1"):
        run_all(process_of, [1, 2], processes=2)

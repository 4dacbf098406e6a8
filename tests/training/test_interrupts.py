from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from chestct.errors import TrainingError
from chestct.training.loop import _StopRequest
from chestct.training.run import memory_explained

RUN = Path("runs/first")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
    ids=["cpu", "gpu", "python"],
)
def test_memory_that_runs_out_ends_with_a_remedy(error: Exception) -> None:
    with (
        pytest.raises(TrainingError, match=r"first goes on.*smaller training\.batch_size"),
        memory_explained(RUN),
    ):
        raise error


def test_a_reading_process_that_was_ended_is_said_with_its_own_remedy() -> None:
    words = "DataLoader worker (pid(s) 4711) exited unexpectedly"
    with (
        pytest.raises(TrainingError, match=r"fewer training\.workers.*first goes on"),
        memory_explained(RUN),
    ):
        raise RuntimeError(words)


def test_shared_memory_that_may_not_be_written_to_is_said_with_its_own_remedy() -> None:
    words = "unable to open shared memory object </torch_4711> in read-write mode"
    with (
        pytest.raises(TrainingError, match=r"training\.workers=0; first goes on"),
        memory_explained(RUN),
    ):
        raise RuntimeError(words)


def test_a_memory_format_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="memory format"), memory_explained(RUN):
        raise RuntimeError("unsupported memory format option ChannelsLast3d")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), memory_explained(RUN):
        raise RuntimeError("shapes do not match")


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    found = []

    def enter() -> None:
        with _StopRequest() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]

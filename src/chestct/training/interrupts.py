"""Stop between two steps when asked to, and say what to do when memory runs out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

import torch

from chestct.errors import TrainingError

# On the CPU, and for some libraries of a GPU, there is no class of its own for it, only words.
_MEMORY_WORDS: Final = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "alloc_failed",
    "bad_alloc",
)
_SHARED_WORDS: Final = ("shared memory", "/dev/shm", "semlock")
_READER_WORDS: Final = ("dataloader worker", "data loader worker")


class StopRequest:
    """While entered, turns Ctrl-C and SIGTERM into a request that is looked at between steps.

    A second signal acts at once, as it would have without this.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        """Whether a signal came."""
        return self._number != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended; that of SIGTERM by default.

        Another process of the same training may have got the signal.
        """
        return 128 + (self._number or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        """Take the signals over; outside the main thread, Python does not allow that."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def stopped(folder: Path, stop: StopRequest) -> TrainingError:
    """What ends a run that was asked to stop, once its state is written."""
    place = Path(*folder.parts[-2:])
    error = TrainingError(
        f"Training was stopped; its state is in {place}. The same command goes on from there."
    )
    error.exit_code = stop.exit_code
    return error


@contextmanager
def memory_explained(folder: Path) -> Iterator[None]:
    """Turn PyTorch's many ways of running out of memory into one that says what to do.

    Raises:
        TrainingError: Memory ran out inside, of a GPU, the machine or a process that reads scans.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        words = str(error).lower()
        if any(each in words for each in _READER_WORDS):
            remedy = "A process that reads scans was ended, as happens when memory runs out. Set "
            remedy += "fewer training.workers, or none, and start the same command again"
            raise TrainingError(f"{remedy}: {folder.name} goes on from its checkpoint.") from error
        if any(each in words for each in _SHARED_WORDS):
            msg = "Processes that read scans cannot share memory with this one, as where /dev/shm "
            msg += "may not be written to. Make it writable, or set training.workers=0; "
            raise TrainingError(f"{msg}{folder.name} goes on from its checkpoint.") from error
        is_own_class = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (is_own_class or any(each in words for each in _MEMORY_WORDS)):
            raise
        msg = (
            f"Memory ran out while training. {folder.name} goes on with "
            "--set training.checkpoint_activations=true where the network has residual blocks, or "
            "as it is where there is more memory. Else use a new folder and a smaller "
            "training.batch_size, with training.accumulation as many times larger."
        )
        raise TrainingError(msg) from error

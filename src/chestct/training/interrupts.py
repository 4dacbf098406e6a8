"""Stop between two steps when asked to, and say what to do when memory runs out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from chestct.errors import TrainingError


class StopRequest:
    """While entered, turns Ctrl-C and SIGTERM into a request that is looked at between steps.

    A second signal acts at once, as it would have without this.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._before: dict[int, signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        """Whether a signal came."""
        return self._is_requested

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

    def raise_if_requested(self, folder: Path) -> None:
        """End the run, saying how it goes on.

        Raises:
            TrainingError: A signal came.
        """
        if self._is_requested:
            msg = (
                f"Training was stopped; its state is in {folder.name}. "
                "The same command goes on from there."
            )
            raise TrainingError(msg)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@contextmanager
def memory_explained(folder: Path) -> Iterator[None]:
    """Turn PyTorch's many ways of running out of memory into one that says what to do.

    Raises:
        TrainingError: Memory ran out inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On the CPU there is no class of its own for it, only these words.
        words = str(error).lower()
        is_memory = isinstance(error, MemoryError) or "memory" in words
        if not is_memory:
            raise
        msg = (
            "Memory ran out while training. Set a smaller training.batch_size, with "
            f"training.accumulation as many times larger, and a new folder; {folder.name} goes on "
            "as it is where there is more memory."
        )
        raise TrainingError(msg) from error

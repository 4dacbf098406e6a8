"""The errors a user can cause, one family, so that a caller can catch them all at once.

Each message says what happened, where, what was expected and what to do about it. Programming
errors are not in this family: they stay `ValueError`, `TypeError` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_UNPRINTABLE: Final = re.compile(
    # Control characters, line ends and directions of Unicode, bytes that were no UTF-8.
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A text on one line, whatever names, headers and labels of others are in it.

    What would end the line, move a cursor or turn the direction of writing becomes "�".
    """
    return _UNPRINTABLE.sub("�", text)


def printable_message(text: str) -> str:
    """As `printable`, for a message that may have several lines: all but the first are indented.

    So a name with a line end in it cannot pass for a message of its own.
    """
    first, *others = text.split("\n")
    lines = [line if line.startswith("  ") else f"  {line}" for line in others]
    return "\n".join(printable(line) for line in (first, *lines))


def kind_of(error: Exception) -> str:
    """An unexpected error's kind, and for the system's own errors the reason that it gives.

    No more of it: other texts hold names of files, which archives name by patient, or parts of
    headers.
    """
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


class ChestCTError(Exception):
    """Something outside the program was not as it should be; the message says what to do.

    Attributes:
        exit_code: What the command line ends with when nothing else could be done.
    """

    exit_code: int = 2


class ReadError(ChestCTError):
    """A scan could not be read, or should not be read without an explicit permission."""


class SeveralSeriesError(ReadError):
    """A folder holds several series that could be meant.

    Attributes:
        series: What names each series to a reader, to what tells it apart.
    """

    def __init__(self, message: str, series: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.series = dict(series or {})


class GridError(ChestCTError):
    """A voxel grid is impossible: too large, empty, or without a usable geometry."""


class RecipeError(ChestCTError):
    """A recipe is unknown, impossible, or does not accept this kind of scan."""


class ClassifierError(ChestCTError):
    """A classifier folder is incomplete, inconsistent or damaged."""


class EngineError(ChestCTError):
    """An inference engine is not installed or cannot run this network."""


class WriteError(ChestCTError):
    """An output could not be written where the user wanted it."""


class UnknownNameError(ChestCTError):
    """A name is not in the table it was looked up in."""


class NetworkError(ChestCTError):
    """A network's settings or input are impossible, or weights that come with chestct damaged."""


class TrainingError(ChestCTError):
    """A training run cannot start, cannot go on, or was stopped and can go on later."""


class ExplanationError(ChestCTError):
    """An answer cannot be explained this way: no such layer, or a network of another kind."""

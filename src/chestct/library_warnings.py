"""What libraries warn of, in words of ours: theirs can hold what they found, such as a name."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from chestct.errors import printable_message

Say = Callable[[str], None]


@contextmanager
def rephrased_libraries(say: Say, *, is_debugging: bool) -> Iterator[None]:
    """While entered, what libraries warn of is said in words of ours.

    Args:
        say: Shows a message.
        is_debugging: Whether their own words are shown all the same.
    """
    own = logging.getLogger("chestct")
    level = own.level
    with warnings.catch_warnings():
        handler = _rephrase(say, is_debugging=is_debugging)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            own.setLevel(level)


def shows_own_words() -> bool | None:
    """Whether libraries' own words are shown all the same; None where nothing is rephrased."""
    handlers = logging.getLogger().handlers
    return next((one.is_debugging for one in handlers if isinstance(one, _Rephrasing)), None)


def rephrase_from_now_on(*, is_debugging: bool | None) -> None:
    """In a process of its own: rephrase as the process that started it, by `shows_own_words`."""
    if is_debugging is not None:
        _rephrase(_say_plainly, is_debugging=is_debugging)


def _rephrase(say: Say, *, is_debugging: bool) -> _Rephrasing:
    handler = _Rephrasing(say, is_debugging=is_debugging)
    logging.getLogger().addHandler(handler)
    logging.getLogger("chestct").setLevel(logging.DEBUG if is_debugging else logging.WARNING)
    if not is_debugging:
        warnings.showwarning = partial(_show_warning, say)
    return handler


class _Rephrasing(logging.Handler):
    """Says what modules of this program log, and of others only that they did."""

    def __init__(self, say: Say, *, is_debugging: bool) -> None:
        super().__init__(logging.DEBUG if is_debugging else logging.WARNING)
        self.say, self.is_debugging = say, is_debugging

    def emit(self, record: logging.LogRecord) -> None:
        """Say it; a record that cannot be put together is logging's own affair."""
        try:
            self.say(self._words(record))
        except (TypeError, ValueError):
            self.handleError(record)

    def _words(self, record: logging.LogRecord) -> str:
        if self.is_debugging:
            return self.format(record)
        library = record.name.partition(".")[0]
        if library == "chestct":
            return record.getMessage()
        return _words_of(library, record.levelname.lower())


def _show_warning(
    say: Say, message: Warning | str, category: type[Warning], filename: str, *_others: object
) -> None:
    """Instead of `warnings.showwarning`."""
    parts = Path(filename).parts
    place = parts.index("site-packages") + 1 if "site-packages" in parts else len(parts) - 1
    say(_words_of(parts[place].removesuffix(".py"), category.__name__))


def _words_of(library: str, kind: str) -> str:
    return (
        f"the library {library} gave a warning ({kind}). Its words can hold parts of the scan and"
        " are not shown; --debug shows them."
    )


def _say_plainly(message: str) -> None:
    sys.stderr.write(f"{printable_message(f'chestct: {message}')}\n")

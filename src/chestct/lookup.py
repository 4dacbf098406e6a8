"""Look a name up in one of the package's tables, and say what is there when it is not found.

Where an entry needs a heavy package the table holds `Entry`, which says where it is to be found,
so that what there is can be listed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from chestct.errors import UnknownNameError

Value = TypeVar("Value")


class Entry(NamedTuple):
    """What a table says of something that is imported when it is first used.

    Attributes:
        place: Where it is: "chestct.module:name".
        summary: What it is, in one line, for `chestct info`.
    """

    place: str
    summary: str


def load_entry(table: Mapping[str, Entry], name: str, *, kind: str) -> Any:
    """Import what a table's entry stands for.

    Raises:
        UnknownNameError: No such entry; the message offers the nearest name and lists all.
    """
    module, _, attribute = look_up(table, name, kind=kind).place.partition(":")
    return getattr(import_module(module), attribute)


def look_up(table: Mapping[str, Value], name: str, *, kind: str) -> Value:
    """Return `table[name]`.

    Args:
        table: One of the package's tables, such as `RECIPES`.
        name: The wanted entry.
        kind: What the table holds, in the singular, for the message ("recipe").

    Raises:
        UnknownNameError: No such entry; the message offers the nearest name and lists all.
    """
    if name in table:
        return table[name]
    raise UnknownNameError(unknown_name_message(name, table, kind=kind))


def first_of(names: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """The first of many names, and how many more there are: a, b, c and 4 more."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return between.join(every[:most]) + more


def first_lines_of(lines: Iterable[str], most: int = 5) -> str:
    """As `first_of`, each on a line of its own, below what is said before."""
    every = list(lines)
    shown = [*every[:most], *([f"and {len(every) - most} more"] if len(every) > most else [])]
    return "".join(f"\n  {line}" for line in shown)


def unknown_name_message(name: str, known: Iterable[str], *, kind: str) -> str:
    """Say that `name` is unknown, what was probably meant, and what there is."""
    names = list(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"There is no {kind} '{name}'.{hint} Known: {', '.join(names)}."

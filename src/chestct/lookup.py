"""Look a name up in one of the package's tables, and say what is there when it is not found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from chestct.errors import UnknownNameError

Entry = TypeVar("Entry")


def look_up(table: Mapping[str, Entry], name: str, *, kind: str) -> Entry:
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


def unknown_name_message(name: str, known: Iterable[str], *, kind: str) -> str:
    """Say that `name` is unknown, what was probably meant, and what there is."""
    names = list(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"There is no {kind} '{name}'.{hint} Known: {', '.join(names)}."

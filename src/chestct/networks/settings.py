"""Settings of a network as they come from a card or a configuration file, checked one by one.

A network's settings are a frozen dataclass; this turns a mapping into one and says which field
is wrong, so that a bad card never ends in a `TypeError`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar, get_origin, get_type_hints

from chestct.errors import NetworkError, UnknownNameError
from chestct.lookup import unknown_name_message

Settings = TypeVar("Settings")

_WORDS: Final = {
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "three whole numbers",
}


def settings_from(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    """Make the settings dataclass `kind` out of plain values, as JSON or YAML hold them.

    Fields may be whole numbers, numbers, text or three whole numbers (a shape).

    Raises:
        UnknownNameError: A name is not a field of `kind`.
        NetworkError: A value is of another type than its field, or impossible; the latter is found
            by the dataclass itself.
    """
    types = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise UnknownNameError(unknown_name_message(name, types, kind="network setting"))
        expected = get_origin(types[name]) or types[name]
        arguments[name] = _fitted(value, expected)
        if arguments[name] is None:
            msg = f"Network setting '{name}' must be {_WORDS[expected]}, not {value!r}."
            raise NetworkError(msg)
    return kind(**arguments)


def _fitted(value: object, expected: type) -> object | None:
    """`value` as the field's type has it, or None where it is of another type."""
    if expected is tuple:
        is_shape = isinstance(value, list | tuple) and [type(n) for n in value] == [int] * 3
        return tuple(value) if is_shape else None  # type: ignore[arg-type]
    # True is an int to Python; a whole number may stand for a decimal.
    is_right = type(value) is expected or (type(value) is int and expected is float)
    return value if is_right else None


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and NaN."""
    if not low <= value <= high:
        msg = f"Network setting '{name}' must be from {low:g} to {high:g}, not {value!r}."
        raise NetworkError(msg)


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not one of `choices`."""
    if value not in choices:
        raise UnknownNameError(unknown_name_message(value, choices, kind=f"'{name}' setting"))

"""Settings of a network as they come from a card or a configuration file, checked one by one.

A network's settings are a frozen dataclass; this turns a mapping into one and says which field
is wrong, so that a bad card never ends in a `TypeError`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from chestct.errors import NetworkError, UnknownNameError
from chestct.lookup import unknown_name_message

Settings = TypeVar("Settings")

_WORDS: Final = {
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[int, int, int]: "three whole numbers",
    tuple[float, ...]: "numbers",
}


def settings_from(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    """Make the settings dataclass `kind` out of plain values, as JSON or YAML hold them.

    Fields may be whole numbers, numbers, text, three whole numbers (a shape), several numbers, or
    one of two of these.

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
        arguments[name] = _fitted(value, types[name])
        if arguments[name] is None:
            words = " or ".join(_WORDS[each] for each in _choices(types[name]))
            raise NetworkError(f"Network setting '{name}' must be {words}, not {value!r}.")
    return kind(**arguments)


def _choices(expected: Any) -> tuple[Any, ...]:
    """The types of a field, most often one."""
    return get_args(expected) if isinstance(expected, UnionType) else (expected,)


def _fitted(value: object, expected: Any) -> object | None:
    """`value` as the field's type has it, or None where it is of another type."""
    for choice in _choices(expected):
        if get_origin(choice) is tuple:
            found: object = _fitted_numbers(value, get_args(choice))
        else:
            # True is an int to Python; a whole number may stand for a decimal.
            is_right = type(value) is choice or (type(value) is int and choice is float)
            found = value if is_right else None
        if found is not None:
            return found
    return None


def _fitted_numbers(value: object, expected: tuple[Any, ...]) -> tuple[object, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    kinds = [expected[0]] * len(value) if expected[-1] is ... else list(expected)
    if len(kinds) != len(value):
        return None
    fitted = [_fitted(each, kind) for each, kind in zip(value, kinds, strict=True)]
    return None if None in fitted else tuple(fitted)


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and NaN."""
    if not low <= value <= high:
        msg = f"Network setting '{name}' must be from {low:g} to {high:g}, not {value!r}."
        raise NetworkError(msg)


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not one of `choices`."""
    if value not in choices:
        raise UnknownNameError(unknown_name_message(value, choices, kind=f"'{name}' setting"))

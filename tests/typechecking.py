"""The run-time type checker of the tests: beartype, taking an int where a float is expected.

That is what type checkers and users take for granted (PEP 484, the numeric tower). jaxtyping binds
the arguments of every call and makes two checks of every function, to compare the shapes of its
arrays. Where arguments and result are checked by one beartype within one of jaxtyping's scopes,
the same is compared in half of the time; a function without arrays needs no scope either.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
check_types = beartype(conf=_CONF)
_with_shapes = jaxtyping.jaxtyped


def install_checks(package: str) -> None:
    """Check shapes and types of every annotated function of a package that is imported later."""
    jaxtyping.jaxtyped = _checked
    jaxtyping.install_import_hook(package, "typechecking.check_types")


def _checked(thing: Any = None, *, typechecker: Any) -> Any:
    """What the import hook decorates every function and class with."""
    if thing is None:
        return lambda decorated: _checked(decorated, typechecker=typechecker)
    if dataclasses.is_dataclass(thing):
        # One that is inherited is checked already.
        if "__init__" in vars(thing):
            thing.__init__ = _checked(thing.__init__, typechecker=typechecker)
        return thing
    # A generator's annotation is of what it yields, which beartype would take item by item.
    if not inspect.isfunction(thing) or inspect.isgeneratorfunction(thing):
        return _with_shapes(thing, typechecker=typechecker)
    try:
        return _checked_by_hints(thing)
    except NameError:
        return _checked_when_called(thing)


def _checked_by_hints(function: Any) -> Any:
    hints = get_type_hints(function, include_extras=True)
    is_of_arrays = any(map(_holds_array, hints.values()))
    return _with_one_scope(function) if is_of_arrays else check_types(function)


def _checked_when_called(function: Any) -> Callable[..., Any]:
    """Check a function whose annotations name what is defined later on, such as its own class."""
    checked: Any = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal checked
        if checked is None:
            try:
                checked = _checked_by_hints(function)
            except NameError:
                # Names for type checkers alone.
                checked = _with_shapes(function, typechecker=check_types)
        return checked(*args, **kwargs)

    return call


def _with_one_scope(function: Any) -> Callable[..., Any]:
    """Check arguments and result of a call together, so that shapes of both are compared."""
    checked = check_types(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with _with_shapes("context"):
            return checked(*args, **kwargs)

    return call


def _holds_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    inner = hint if isinstance(hint, list) else get_args(hint)
    return any(map(_holds_array, inner))

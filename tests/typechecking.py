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
    hints = _hints(thing) if not inspect.isgeneratorfunction(thing) else None
    if hints is None:
        return _with_shapes(thing, typechecker=typechecker)
    if not any(map(_holds_array, hints.values())):
        return check_types(thing)
    return _with_one_scope(thing)


def _with_one_scope(function: Any) -> Callable[..., Any]:
    """Check arguments and result of a call together, so that shapes of both are compared."""
    checked = check_types(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with _with_shapes("context"):
            return checked(*args, **kwargs)

    return call


def _hints(thing: Any) -> dict[str, Any] | None:
    """Annotations of a function; None of something else, or with names for type checkers alone."""
    if not inspect.isfunction(thing):
        return None
    try:
        return get_type_hints(thing, include_extras=True)
    except NameError:
        return None


def _holds_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    inner = hint if isinstance(hint, list) else get_args(hint)
    return any(map(_holds_array, inner))

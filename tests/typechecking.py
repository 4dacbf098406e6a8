"""The run-time type checker of the tests: beartype, taking an int where a float is expected.

That is what type checkers and users take for granted (PEP 484, the numeric tower). jaxtyping binds
the arguments of every call and makes two checks of every function, to compare the shapes of its
arrays. A function that takes and gives none has the same types checked by beartype alone, in a
twentieth of the time.
"""

from __future__ import annotations

import inspect
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
    # A generator's annotation is of what it yields, which beartype would take item by item.
    is_plain = inspect.isfunction(thing) and not inspect.isgeneratorfunction(thing)
    if is_plain and not _may_have_arrays(thing):
        return check_types(thing)
    return _with_shapes(thing, typechecker=typechecker)


def _may_have_arrays(function: Any) -> bool:
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:
        # Names that only type checkers import; jaxtyping takes them as anything.
        return True
    return any(_holds_array(hint) for hint in hints.values())


def _holds_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    inner = hint if isinstance(hint, list) else get_args(hint)
    return any(map(_holds_array, inner))

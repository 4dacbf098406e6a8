"""Types and shapes of the package's functions are checked in all tests, with arrays and without."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float64, TypeCheckError
from typechecking import check_types

from chestct.errors import printable

Line = Float64[np.ndarray, " point"]


def added(first: Line, second: list[Line]) -> Line:
    return first + second[0]


def halved(number: int) -> int:
    return number // 2 if number % 2 == 0 else number / 2  # type: ignore[return-value]


@jaxtyping.jaxtyped(typechecker=check_types)
def name_of(thing: Later, line: Line) -> str:
    return f"{thing}{len(line)}"


class Later(str): ...


def test_functions_of_the_package_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        printable(3)  # type: ignore[arg-type]


def test_arguments_and_results_without_arrays_are_checked() -> None:
    checked = jaxtyping.jaxtyped(typechecker=check_types)(halved)
    assert checked(4) == 2
    for wrong in (3, "4"):
        with pytest.raises(TypeCheckError):
            checked(wrong)  # type: ignore[arg-type]


def test_shapes_are_compared_with_each_other_within_containers_too() -> None:
    checked = jaxtyping.jaxtyped(typechecker=check_types)(added)
    assert checked(np.ones(2), [np.ones(2)]).tolist() == [2.0, 2.0]
    with pytest.raises(TypeCheckError):
        checked(np.ones(2), [np.ones(1)])


def test_annotations_that_name_what_is_defined_later_are_checked() -> None:
    assert name_of(Later("a"), np.ones(2)) == "a2"
    for wrong in (("a", np.ones(2)), (Later("a"), np.ones(2, np.float32))):
        with pytest.raises(TypeCheckError):
            name_of(*wrong)  # type: ignore[arg-type]

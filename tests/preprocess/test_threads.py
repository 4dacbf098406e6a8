from __future__ import annotations

import threading

import pytest

from chestct.preprocess.threads import _MAX_THREADS, on_threads


def test_results_come_in_order_from_a_few_threads() -> None:
    seen: set[int] = set()

    def square(number: int) -> int:
        seen.add(threading.get_ident())
        return number * number

    assert on_threads(square, range(50)) == [n * n for n in range(50)]
    assert len(seen) <= _MAX_THREADS
    assert threading.get_ident() not in seen


def test_an_error_is_raised_where_the_work_was_asked_for() -> None:
    def fail(number: int) -> int:
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"^0$"):
        on_threads(fail, range(5))

"""Unknown names are refused with the nearest known one and the whole list."""

from __future__ import annotations

import pytest

from chestct.engines import ENGINES
from chestct.errors import ChestCTError, UnknownNameError
from chestct.explain import EXPLANATIONS
from chestct.lookup import (
    Entry,
    first_lines_of,
    first_of,
    load_entry,
    look_up,
    unknown_name_message,
)
from chestct.networks import NETWORKS

TABLE = {"published": 1, "paper": 2, "recommended": 3}


@pytest.mark.parametrize("name", TABLE)
def test_a_known_name_gives_its_entry(name: str) -> None:
    assert look_up(TABLE, name, kind="method") == TABLE[name]


def test_an_entry_that_is_none_or_false_is_found_too() -> None:
    assert look_up({"nothing": None}, "nothing", kind="thing") is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("publishe", "published"), ("Paper", "paper"), ("recommend", "recommended")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as refusal:
        look_up(TABLE, name, kind="method")
    assert str(refusal.value) == (
        f"There is no method '{name}'. Did you mean '{nearest}'?"
        " Known: published, paper, recommended."
    )


@pytest.mark.parametrize("name", ["", "xyz", "0"])
def test_a_name_like_no_other_is_answered_with_the_list_alone(name: str) -> None:
    message = unknown_name_message(name, TABLE, kind="method")
    assert message == f"There is no method '{name}'. Known: published, paper, recommended."


def test_an_empty_table_says_so_without_failing() -> None:
    with pytest.raises(UnknownNameError, match="There is no engine 'torch'"):
        look_up({}, "torch", kind="engine")


def test_the_refusal_is_of_our_own_family() -> None:
    assert issubclass(UnknownNameError, ChestCTError)


@pytest.mark.parametrize("table", [NETWORKS, ENGINES, EXPLANATIONS])
def test_every_entry_is_where_its_table_says(table: dict[str, Entry]) -> None:
    for name, entry in table.items():
        assert callable(load_entry(table, name, kind="entry"))
        assert entry.summary


def test_of_many_names_the_first_are_said_and_the_others_counted() -> None:
    assert first_of([]) == ""
    assert first_of(range(5)) == "0, 1, 2, 3, 4"
    assert first_of(range(6)) == "0, 1, 2, 3, 4 and 1 more"
    assert first_of("abc", 2, "; ") == "a; b and 1 more"
    assert first_lines_of("ab") == "\n  a\n  b"
    assert first_lines_of("abcd", 2) == "\n  a\n  b\n  and 2 more"

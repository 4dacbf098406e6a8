from __future__ import annotations

import pytest

from chestct.explain import EXPLANATIONS
from chestct.writers.pages import _is_trained_on_simulation
from chestct.writers.wording import _METHOD_NAMES, count, percent


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0.0 %"),
        (0.0004, "< 0.1 %"),
        (0.1234, "12.3 %"),
        (0.99951, "> 99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_a_percentage_never_claims_more_certainty_than_there_is(share: float, words: str) -> None:
    assert percent(share) == words


def test_nouns_follow_their_number() -> None:
    assert [count(number, "warning") for number in (0, 1, 2)] == [
        "0 warnings",
        "1 warning",
        "2 warnings",
    ]


def test_every_explanation_has_words() -> None:
    assert set(_METHOD_NAMES) == set(EXPLANATIONS)


def test_simulated_training_is_known_by_the_cards_own_words() -> None:
    assert _is_trained_on_simulation("SIMULATED DISEASE. 450 examples")
    assert not _is_trained_on_simulation("4000 scans of 3 hospitals")

"""The order of the classes is fixed: published prediction files and weights depend on it."""

from __future__ import annotations

import pytest

from chestct import labels


def test_three_classes_stand_in_the_alphabetical_order_of_the_published_files() -> None:
    assert labels.THREE_CLASSES == ("CAP", "COVID-19", "normal")
    assert list(labels.THREE_CLASSES) == sorted(labels.THREE_CLASSES)


def test_two_classes_have_normal_as_class_one() -> None:
    assert labels.TWO_CLASSES == ("COVID-19", "normal")
    assert labels.TWO_CLASSES.index(labels.NORMAL) == 1


def test_unsuitable_is_a_decision_and_no_class() -> None:
    assert labels.UNSUITABLE not in {*labels.THREE_CLASSES, *labels.TWO_CLASSES}


@pytest.mark.parametrize("words", ["Not a medical device", "research only", "not for diagnosis"])
def test_the_notice_says_what_it_must(words: str) -> None:
    assert words.lower() in labels.NOT_FOR_CLINICAL_USE.lower()

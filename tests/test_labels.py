"""The order of the classes is fixed: published prediction files and weights depend on it."""

from __future__ import annotations

import pytest

from chestct import labels
from chestct.labels import ClassLabel, LabelCode, LabelSet


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


def test_the_plain_names_of_the_papers_have_their_words_codes_and_negative_class() -> None:
    known = LabelSet.of_names(labels.THREE_CLASSES)
    assert [known.words(name) for name in (*known.names, labels.UNSUITABLE)] == [
        "Community-acquired pneumonia",
        "COVID-19 pneumonia",
        "No pneumonia",
        "Not classified",
    ]
    assert [one.code and one.code.value for one in known.classes] == [
        "385093006",
        "882784691000119100",
        "17621005",
    ]
    assert known.negative == "normal"
    assert known.assumption == ""


def test_no_pneumonia_is_not_said_where_other_things_are_looked_for() -> None:
    own = LabelSet.of_names(("emphysema", "normal"))
    assert (own.words("normal"), own.words("emphysema")) == ("normal", "emphysema")
    assert own.negative == "normal"


def test_without_a_negative_class_every_class_is_a_finding_and_that_is_said() -> None:
    own = LabelSet.of_names(("mild", "severe"))
    assert own.negative == ""
    assert own.is_finding("mild")
    assert own.is_finding("severe")
    assert "mild, severe" in own.assumption
    assert "negative: true" in own.assumption


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ((ClassLabel("a", negative=True), ClassLabel("b", negative=True)), "not a and b"),
        ((ClassLabel("a", values=("1",)), ClassLabel("b", values=(" 1",))), "two classes"),
    ],
)
def test_an_impossible_set_is_refused(classes: tuple[ClassLabel, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LabelSet(classes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"color": "red"},
        {"color": '#0072B2"><script>'},
        {"code": LabelCode("", "SCT", "Emphysema")},
        {"code": LabelCode("87433001", "S" * 17, "Emphysema")},
        {"code": LabelCode("87433001\\", "SCT", "Emphysema")},
    ],
)
def test_a_colour_or_code_that_no_output_can_hold_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="'emphysema'"):
        ClassLabel("emphysema", **wrong)  # type: ignore[arg-type]

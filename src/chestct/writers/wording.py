"""The words for labels, stages and numbers that every output shares."""

from __future__ import annotations

from typing import Final

from chestct.labels import CAP, COVID19, NORMAL, UNSUITABLE

VERDICTS: Final[dict[str, str]] = {
    CAP: "Community-acquired pneumonia",
    COVID19: "COVID-19 pneumonia",
    NORMAL: "No pneumonia",
    UNSUITABLE: "Not classified",
}
"""Decision to the words a reader sees first; unknown labels stand for themselves."""

PROVENANCE_NAMES: Final[dict[str, str]] = {
    "classifier": "Classifier",
    "classifier_version": "Classifier version",
    "trained_on": "Trained on",
    "recipe": "Recipe",
    "engine": "Engine",
    "chestct_version": "chestct version",
    "series_uid": "Series identifier",
    "pixel_sha256": "Hash of the voxels (SHA-256)",
    "weights_sha256": "Hash of the weights (SHA-256)",
}
"""Fields of a result's provenance, in the order they are shown, and their names in words."""


def verdict_of(decision: str) -> str:
    """The decision in words."""
    return VERDICTS.get(decision, decision)


def percent(share: float) -> str:
    """A share of one as a percentage; never 0 or 100 % for something that is not certain."""
    if 0.0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1.0:
        return "> 99.9 %"
    return f"{share * 100:.1f} %"


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where needed."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""What the objects call a heat-map: it speaks for a class only where its method knows classes."""

from __future__ import annotations

from chestct.explain.explanation import ScanExplanation
from chestct.writers.evidence_section import label_words
from chestct.writers.wording import METHOD_NAMES


def heat_words(explained: ScanExplanation) -> str:
    """What the heat is: "Evidence for ..." a class, or "Network activity (...)" of a method."""
    label = label_words(explained)
    if label:
        return f"Evidence for {label}"
    method = explained.explanation.method
    name = METHOD_NAMES.get(method, method).removeprefix("the ")
    return f"Network activity ({name})"


def heat_sentences(explained: ScanExplanation) -> str:
    """What the measured part of the heat is and is not, for the report."""
    words, threshold = heat_words(explained), explained.summary.threshold
    is_classless = not label_words(explained)
    by = "" if is_classless else f", by {explained.explanation.method}"
    doubt = " It does not say which class it speaks for." if is_classless else ""
    return (
        f"{words}{by}: lung with a heat of {threshold:g} or more. It shows what the classifier"
        f" looked at and is not the outline of a disease.{doubt}"
    )

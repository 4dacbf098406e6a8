"""Another classifier beside the one that is evaluated: on which scans the two are compared.

Each leaves out what it should not judge, and not always the same scans. What either says it left
out is left out of both; any other difference is a mistake, and refused by `align`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from chestct.evaluation.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a classifier said of scans, and which it said nothing of.

    Attributes:
        predictions: Of the scans that it judged.
        excluded: Scans that it gave no decision on, with the reason.
    """

    predictions: Predictions
    excluded: Mapping[str, str] = field(default_factory=dict)


def paired(first: Judgement, second: Judgement) -> tuple[Predictions, Predictions]:
    """The rows of both, without the scans that either says it gave no decision on."""
    left_out = {*first.excluded, *second.excluded}
    return _without(first.predictions, left_out), _without(second.predictions, left_out)


def remark_on_pair(
    names: tuple[str, str], whole: tuple[Predictions, Predictions], num_common: int
) -> str | None:
    """What to say where two classifiers are compared on some of their scans; None for all.

    Args:
        names: What the two are called.
        whole: All that they said.
        num_common: Scans that they are compared on.
    """
    only_first, only_second = (len(each) - num_common for each in whole)
    if not (only_first or only_second):
        return None
    return (
        f"'{names[1]}' is compared on the {num_common} scans that both decided on; decided on by "
        f"'{names[0]}' only: {only_first}, by '{names[1]}' only: {only_second}."
    )


def _without(predictions: Predictions, scans: Collection[str]) -> Predictions:
    """The rows of all other scans."""
    return predictions.choose([i for i, scan in enumerate(predictions.scans) if scan not in scans])

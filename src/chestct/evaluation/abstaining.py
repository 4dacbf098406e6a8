"""What a threshold that was chosen on other scans does on these.

`abstention_threshold` chooses one on the validation part; here it is held against scans that had no
say in it, as every other figure is.
"""

from __future__ import annotations

from dataclasses import dataclass

from chestct.evaluation.calibration import AbstentionThreshold
from chestct.evaluation.intervals import WILSON, Estimate, wilson
from chestct.evaluation.predictions import Predictions


@dataclass(frozen=True)
class AtThreshold:
    """A threshold from elsewhere, on the scans of this evaluation.

    Attributes:
        threshold: The confidence below which nothing is decided.
        wished_error: Error rate it was chosen for.
        coverage: Share of the scans that reach it.
        error: Share of these that are wrong.
    """

    threshold: float
    wished_error: float
    coverage: Estimate
    error: Estimate


def at_threshold(
    predictions: Predictions, promised: AbstentionThreshold | None
) -> AtThreshold | None:
    """Coverage and error rate at a threshold, with Wilson's 95 % intervals.

    Args:
        predictions: Of the classifier, its temperature applied as when the threshold was chosen.
        promised: The threshold, where one is known.

    Returns:
        None where there is no threshold.
    """
    if promised is None or promised.threshold is None:
        return None
    is_decided = predictions.confidences >= promised.threshold
    num_decided = int(is_decided.sum())
    num_wrong = int((is_decided & ~predictions.is_right).sum())
    return AtThreshold(
        threshold=promised.threshold,
        wished_error=promised.wished_error,
        coverage=_share(num_decided, len(predictions), "no scans"),
        error=_share(num_wrong, num_decided, "no scan reaches the threshold"),
    )


def _share(hits: int, total: int, why_not: str) -> Estimate:
    if total == 0:
        return Estimate(None, note=why_not, hits=hits, total=total)
    low, high = wilson(hits, total)
    return Estimate(hits / total, low, high, WILSON, hits=hits, total=total)

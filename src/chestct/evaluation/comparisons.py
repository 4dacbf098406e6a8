"""Two classifiers on the same scans: is one better, and do they agree?

The tests here are paired, as two classifiers judged on the same scans are. They take scans as
independent; the patient bootstrap does not. `maseres_z` is the MASERes paper's test, kept so that
its table can be reproduced, with its defects in every result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64

from chestct.evaluation import intervals, metrics
from chestct.evaluation.intervals import Bootstrap, percentile_interval, why_no_bootstrap
from chestct.evaluation.predictions import Predictions, align
from chestct.lookup import look_up


def _delong_covariance(
    scores: Float[np.ndarray, "classifier case"], is_positive: Bool[np.ndarray, " case"]
) -> tuple[Float64[np.ndarray, " classifier"], Float64[np.ndarray, "classifier classifier"]]:
    """Areas under several classifiers' ROC curves and their covariance; two cases of each kind."""
    from scipy.stats import rankdata

    positives, negatives = scores[:, is_positive], scores[:, ~is_positive]
    num_positive, num_negative = positives.shape[1], negatives.shape[1]
    if min(num_positive, num_negative) < 2:
        msg = f"{num_positive} positive and {num_negative} negative cases: expected 2 of each"
        raise ValueError(msg)
    pooled = rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    # Share of the other group that each case stands above, ties half: the placements of DeLong.
    above_negatives = (pooled[:, :num_positive] - rankdata(positives, axis=1)) / num_negative
    below_positives = 1 - (pooled[:, num_positive:] - rankdata(negatives, axis=1)) / num_positive
    covariance = (
        np.atleast_2d(np.cov(above_negatives)) / num_positive
        + np.atleast_2d(np.cov(below_positives)) / num_negative
    )
    return above_negatives.mean(axis=1), covariance


MASERES_Z_DEFECTS: Final = (
    "the test takes the two samples as independent, but both classifiers saw the same scans",
    "the standard error is not pooled: a classifier without errors adds nothing to it",
    "one-sided, in the direction the figures turned out",
    "the number of all scans is the denominator of every figure, though sensitivity, specificity "
    "and precision have smaller ones",
    "F1 is no proportion: the test does not apply to it",
    "p is set to 0.5 where both figures are equal (0/0)",
    "a normal approximation at 21 scans; ten tests without correction for their number",
)
"""What is wrong with the z-test of the MASERes paper's Table 5."""

_SAME_PATIENT = "scans of one patient are taken as independent: p is too small"


@dataclass(frozen=True)
class Comparison:
    """One figure of two classifiers side by side, with a test of their difference.

    Attributes:
        test: Name of the test.
        figure: What is compared, such as "accuracy" or "AUC of CAP".
        first: Figure of the first classifier; None where there is none.
        second: Figure of the second.
        estimate: First minus second; for "kappa" the agreement itself.
        low: Lower end of the estimate's 95 % interval, where the test gives one.
        high: Upper end.
        statistic: z for z-tests, number of discordant scans for McNemar's.
        p_value: Two-sided unless the note says otherwise; None where the test gives none.
        note: Reasons and reservations.
    """

    test: str
    figure: str
    first: float | None
    second: float | None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    statistic: float | None = None
    p_value: float | None = None
    note: str = ""


def compare(first: Predictions, second: Predictions, test: str) -> tuple[Comparison, ...]:
    """Compare two classifiers by one of `COMPARISONS`.

    Raises:
        UnknownNameError: There is no such test.
        PredictionsError: The two are not about the same scans, labels and truth.
    """
    compare_pair = look_up(COMPARISONS, test, kind="comparison")
    return compare_pair(first, align(first, second))


def _mcnemar(first: Predictions, second: Predictions) -> tuple[Comparison, ...]:
    """McNemar's exact test: of the scans only one classifier gets right, is it half and half?"""
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    right, other = first.is_right, second.is_right
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    if len(first) == 0:
        return (Comparison("mcnemar", "accuracy", None, None, note="no scans"),)
    found = f"only the first right: {only_first}, only the second: {only_second}"
    table = [[int((right & other).sum()), only_first], [only_second, int((~right & ~other).sum())]]
    return (
        Comparison(
            test="mcnemar",
            figure="accuracy",
            first=float(right.mean()),
            second=float(other.mean()),
            estimate=float(right.mean() - other.mean()),
            statistic=float(only_first + only_second),
            p_value=min(1.0, float(exact_test(table, exact=True).pvalue)),
            note="; ".join(filter(None, (found, _dependence(first)))),
        ),
    )


def _delong(first: Predictions, second: Predictions) -> tuple[Comparison, ...]:
    """DeLong's test of the one-vs-rest areas under the ROC curve, one row per class."""
    # With two classes the two rows say the same.
    indices = range(len(first.labels)) if len(first.labels) > 2 else [1]
    return tuple(_delong_class(first, second, index) for index in indices)


def _agreement(first: Predictions, second: Predictions) -> tuple[Comparison, ...]:
    """Cohen's kappa of the two classifiers' decisions, with its asymptotic 95 % interval."""
    from statsmodels.stats.inter_rater import cohens_kappa

    num = len(first.labels)
    value = metrics.kappa(first.decisions, second.decisions, num)
    if value.value is None:
        return (Comparison("kappa", "agreement", None, None, note=value.note),)
    table = metrics.confusion_matrix(first.decisions, second.decisions, num)
    used = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))
    # Its test statistic, not used here, is 0 / 0 where a classifier says one thing only.
    with np.errstate(divide="ignore", invalid="ignore"):
        found = cohens_kappa(table[np.ix_(used, used)])
    spread = float(found.var_kappa)
    is_same = bool((first.decisions == second.decisions).all())
    why_not = "the decisions agree throughout" if is_same else "one says the same of every scan"
    notes = [] if spread > 0 else [f"no interval: {why_not}"]
    notes += ["scans of one patient taken as independent"] if _dependence(first) else []
    return (
        Comparison(
            test="kappa",
            figure="agreement",
            first=None,
            second=None,
            estimate=value.value,
            low=max(-1.0, float(found.kappa_low)) if spread > 0 else None,
            high=min(1.0, float(found.kappa_upp)) if spread > 0 else None,
            note="; ".join(notes),
        ),
    )


def _patient_bootstrap(
    first: Predictions, second: Predictions, bootstrap: Bootstrap | None = None
) -> tuple[Comparison, ...]:
    """Differences of all overall figures, patients drawn together for both classifiers."""
    settings = bootstrap or Bootstrap()
    why_not = why_no_bootstrap(first)
    spreads: dict[str, list[Float64[np.ndarray, " replicate"]]] = {}
    for weights in () if why_not else intervals.draw_patients(first, settings):
        pair = [metrics.weigh(each, weights) for each in (first, second)]
        for name, measure in metrics.OVERALL.items():
            spreads.setdefault(name, []).append(measure(pair[0]) - measure(pair[1]))
    return tuple(
        _bootstrap_row(name, (first, second), spreads.get(name), why_not, settings.level)
        for name in metrics.OVERALL
    )


def _maseres_z(first: Predictions, second: Predictions) -> tuple[Comparison, ...]:
    """The MASERes paper's one-sided z-test, its positive class being the last label.

    Five figures: accuracy, precision, sensitivity, specificity, F1; see `MASERES_Z_DEFECTS`.
    """
    last = len(first.labels) - 1
    values = [
        {"accuracy": metrics.measure(each, "accuracy"), **metrics.per_class(each, last)}
        for each in (first, second)
    ]
    names = {"accuracy": "accuracy", "precision": "ppv"}
    names |= {name: name for name in ("sensitivity", "specificity")} | {"F1": "f1"}
    return tuple(
        _maseres_row(name, values[0][key].value, values[1][key].value, len(first))
        for name, key in names.items()
    )


def maseres_z_test(first: float, second: float, num_scans: int) -> tuple[float | None, float]:
    """The test of the MASERes paper's Table 5: z and one-sided p.

    z = (m1 - m2) / sqrt(m1 (1 - m1) / n + m2 (1 - m2) / n), p = 1 - Phi(z); where m1 = m2 the
    paper prints 0.5, and so does this, with z None. A difference without any spread (1 against 0)
    gives p = 0 or 1.
    """
    from scipy.stats import norm

    if first == second:
        return None, 0.5
    spread = math.sqrt((first * (1 - first) + second * (1 - second)) / num_scans)
    if spread == 0:
        return None, 0.0 if first > second else 1.0
    z = (first - second) / spread
    return z, float(norm.sf(z))


COMPARISONS: Final[dict[str, Callable[[Predictions, Predictions], tuple[Comparison, ...]]]] = {
    "mcnemar": _mcnemar,
    "delong": _delong,
    "kappa": _agreement,
    "patient_bootstrap": _patient_bootstrap,
    "maseres_z": _maseres_z,
}
"""Ways to compare two classifiers; both arguments hold the same scans in the same order."""
SOUND: Final = tuple(name for name in COMPARISONS if name != "maseres_z")
"""Those that may be believed."""


def _delong_class(first: Predictions, second: Predictions, index: int) -> Comparison:
    from scipy.stats import norm

    figure = f"AUC of {first.labels[index]}"
    areas = [metrics.auc(each, index) for each in (first, second)]
    row = Comparison("delong", figure, areas[0].value, areas[1].value, note=areas[0].note)
    if areas[0].value is None or areas[1].value is None:
        return row
    is_class = first.truth == index
    if min(int(is_class.sum()), int((~is_class).sum())) < 2:
        return _fill(row, None, "no test: fewer than two scans in the class or outside it")
    scores = np.stack([each.probabilities[:, index] for each in (first, second)])
    _, covariance = _delong_covariance(scores, is_class)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = areas[0].value - areas[1].value
    # Rounding leaves a variance near 1e-18 where the two rankings are the same.
    if variance < 1e-15:
        p_value = 1.0 if abs(difference) < 1e-12 else None
        return _fill(row, p_value, "the difference has no spread on these scans")
    error = math.sqrt(variance)
    z, margin = difference / error, float(norm.ppf(0.975)) * error
    return replace(
        row,
        estimate=difference,
        low=difference - margin,
        high=difference + margin,
        statistic=z,
        p_value=float(2 * norm.sf(abs(z))),
        note=_dependence(first),
    )


def _fill(row: Comparison, p_value: float | None, note: str) -> Comparison:
    """The row of two known figures whose difference cannot be tested as usual."""
    difference = None if row.first is None or row.second is None else row.first - row.second
    return replace(row, estimate=difference, p_value=p_value, note=note)


def _bootstrap_row(
    name: str,
    pair: tuple[Predictions, Predictions],
    replicates: list[Float64[np.ndarray, " replicate"]] | None,
    why_not: str,
    level: float,
) -> Comparison:
    values = [metrics.measure(each, name) for each in pair]
    row = Comparison("patient_bootstrap", name, values[0].value, values[1].value)
    if replicates is None or row.first is None:
        return _fill(row, None, values[0].note or why_not)
    low, high, note = percentile_interval(np.concatenate(replicates), level)
    return replace(_fill(row, None, note), low=low, high=high)


def _maseres_row(
    name: str, first: float | None, second: float | None, num_scans: int
) -> Comparison:
    if first is None or second is None:
        return Comparison("maseres_z", name, first, second, note="undefined for one of the two")
    z, p_value = maseres_z_test(first, second, num_scans)
    note = "one-sided; defects: " + "; ".join(MASERES_Z_DEFECTS)
    return Comparison(
        "maseres_z", name, first, second, first - second, statistic=z, p_value=p_value, note=note
    )


def _dependence(predictions: Predictions) -> str:
    return _SAME_PATIENT if predictions.num_patients < len(predictions) else ""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a classifier said of scans, and which it said nothing of.

    Attributes:
        predictions: Of the scans that it judged.
        excluded: Scans that it gave no decision on, with the reason.
    """

    predictions: Predictions
    excluded: Mapping[str, str] = field(default_factory=dict)

    def beside(
        self, other: Judgement, names: tuple[str, str]
    ) -> tuple[Predictions, Predictions, str | None]:
        """The rows of two classifiers, of the names given, on the scans that both decided on.

        Also what to say where these are not all that both judged, else None.
        """
        left_out = {*self.excluded, *other.excluded}
        pair = [_without(each.predictions, left_out) for each in (self, other)]
        only_first, only_second = (
            len(each.predictions) - len(kept)
            for each, kept in zip((self, other), pair, strict=True)
        )
        remark = (
            f"'{names[1]}' is compared on the {len(pair[0])} scans that both decided on; decided "
            f"on by '{names[0]}' only: {only_first}, by '{names[1]}' only: {only_second}."
        )
        return pair[0], pair[1], remark if only_first or only_second else None


def _without(predictions: Predictions, scans: Collection[str]) -> Predictions:
    """The rows of all other scans."""
    return predictions.choose([i for i, scan in enumerate(predictions.scans) if scan not in scans])

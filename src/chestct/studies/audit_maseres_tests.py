"""Table 5 and the kappas of the MASERes paper, by the formula that reproduces them and by others.

MASERes is right on all 21 test patients, so the counts alone say on which patients it and another
network differ: paired tests are possible without the decisions of single patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chestct.evaluation.comparisons import Comparison, compare, maseres_z_test
from chestct.evaluation.metrics import ClassCounts
from chestct.evaluation.predictions import Predictions
from chestct.labels import COVID19, NORMAL, TWO_CLASSES
from chestct.studies.audit_scores import as_predictions, score_class
from chestct.studies.published.facts import TestedModel


@dataclass(frozen=True)
class PValueAudit:
    """A p-value of Table 5.

    Attributes:
        other: The network MASERes is compared with.
        figure: accuracy, precision, sensitivity, specificity or F1.
        published: As printed.
        values: The figure of MASERes and of the other.
        z: Of the formula that reproduces the table; None where both are equal.
        reproduced: Its p-value, with 21 as the denominator of every figure.
        total: The other network's own denominator of the figure; None for F1.
        own_total: The same one-sided test with that denominator; None for F1.
    """

    other: str
    figure: str
    published: float
    values: tuple[float, float]
    z: float | None
    reproduced: float
    total: int | None
    own_total: float | None


@dataclass(frozen=True)
class SoundTests:
    """Accuracy of MASERes against another network, by other tests.

    Attributes:
        other: The other network.
        mcnemar: Exact and paired; the test for two classifiers on the same patients.
        fisher: Exact, as if the patients were different ones.
        z_two_sided: The published formula, two-sided.
        z_pooled: Two-sided with the pooled standard error.
    """

    other: str
    mcnemar: Comparison
    fisher: float
    z_two_sided: float
    z_pooled: float


@dataclass(frozen=True)
class KappaAudit:
    """A published kappa.

    Attributes:
        other: The network MASERes is compared with.
        published: As printed.
        recomputed: From the counts, with its asymptotic interval.
        possible_with: Numbers of patients, of 20 and 21, for which some 2 x 2 table has the
            published value to its four digits.
    """

    other: str
    published: float
    recomputed: Comparison
    possible_with: tuple[int, ...]


def audit_p_values(
    main: TestedModel, other: TestedModel, published: dict[str, dict[str, float]]
) -> list[PValueAudit]:
    """Table 5 of MASERes against another network: published, reproduced, own denominators."""
    rows = compare(decisions_of(main.counts), decisions_of(other.counts), "maseres_z")
    return [_audit_p_value(other, row, published[other.name][row.figure]) for row in rows]


def decisions_of(counts: ClassCounts) -> Predictions:
    """Decisions with these counts, COVID-19 cases first, the errors of each class last."""
    truth = [COVID19] * (counts.tn + counts.fp) + [NORMAL] * (counts.tp + counts.fn)
    decided = [COVID19] * counts.tn + [NORMAL] * (counts.fp + counts.tp) + [COVID19] * counts.fn
    return as_predictions(truth, decided, TWO_CLASSES)


def can_be_kappa(value: float, num_scans: int, digits: int = 4) -> bool:
    """Whether any 2 x 2 table of so many scans has this kappa, to its printed digits."""
    n = num_scans
    both, first, second = np.meshgrid(*[np.arange(n + 1)] * 3, indexing="ij")
    neither = n - both - first - second
    kept = neither >= 0
    both, first, second, neither = (each[kept] for each in (both, first, second, neither))
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    is_defined = chance < n * n
    agreed = (both + neither)[is_defined] * n
    kappas = (agreed - chance[is_defined]) / (n * n - chance[is_defined])
    return bool((np.abs(kappas - value) <= 0.5 * 10.0**-digits + 1e-12).any())


def sound_tests(main: TestedModel, other: TestedModel) -> SoundTests:
    """The accuracies of MASERes and another network by other tests."""
    from scipy.stats import fisher_exact
    from statsmodels.stats.proportion import proportions_ztest

    pair = [decisions_of(model.counts) for model in (main, other)]
    (mcnemar,) = compare(pair[0], pair[1], "mcnemar")
    total = len(pair[0])
    hits = [int(each.is_right.sum()) for each in pair]
    _, one_sided = maseres_z_test(hits[0] / total, hits[1] / total, total)
    return SoundTests(
        other=other.name,
        mcnemar=mcnemar,
        fisher=float(fisher_exact([[n, total - n] for n in hits]).pvalue),
        z_two_sided=2 * min(one_sided, 1 - one_sided),
        z_pooled=float(proportions_ztest(hits, [total, total])[1]),
    )


def audit_kappa(main: TestedModel, other: TestedModel, published: float) -> KappaAudit:
    """Kappa of MASERes and another network, and whether the published value is possible."""
    (found,) = compare(decisions_of(main.counts), decisions_of(other.counts), "kappa")
    possible = tuple(n for n in (20, 21) if can_be_kappa(published, n))
    return KappaAudit(other.name, published, found, possible)


def _audit_p_value(other: TestedModel, row: Comparison, published: float) -> PValueAudit:
    if row.first is None or row.second is None or row.p_value is None:
        raise ValueError(f"{row.figure} of {other.name} is undefined")
    total = _own_total(other.counts, row.figure)
    # MASERes has no errors, so its variance is 0 and its own denominator does not matter.
    own = None if total is None else maseres_z_test(row.first, row.second, total)[1]
    return PValueAudit(
        other=other.name,
        figure=row.figure,
        published=published,
        values=(row.first, row.second),
        z=row.statistic,
        reproduced=row.p_value,
        total=total,
        own_total=own,
    )


def _own_total(counts: ClassCounts, figure: str) -> int | None:
    scores = score_class(counts, NORMAL)
    totals = {
        "accuracy": scores.one_vs_rest_accuracy.total,
        "precision": scores.ppv.total,
        "sensitivity": scores.sensitivity.total,
        "specificity": scores.specificity.total,
    }
    return totals.get(figure)

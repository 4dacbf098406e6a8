"""The MASERes paper's results, recomputed from the counts that its notebooks print."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from chestct.evaluation.comparisons import Comparison, compare, maseres_z_test
from chestct.evaluation.intervals import clopper_pearson_upper
from chestct.evaluation.metrics import ClassCounts, Estimate
from chestct.evaluation.predictions import Predictions
from chestct.labels import COVID19, NORMAL, TWO_CLASSES
from chestct.studies.published import (
    ClassScores,
    MaseresFacts,
    Record,
    TestedModel,
    as_predictions,
    maseres_facts,
    percent_of,
    rounded,
)


@dataclass(frozen=True)
class _PValueAudit:
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

    @property
    def is_reproduced(self) -> bool:
        """Whether the formula gives the printed value, to its three digits."""
        return rounded(self.reproduced, 3) == self.published


@dataclass(frozen=True)
class PrintedPair:
    """What the paper prints of MASERes against another network, and what its counts give.

    Attributes:
        kappa: The kappa of the text, as printed and from the counts. `possible_with` are the
            numbers of patients, of 20 and 21, for which some 2 x 2 table has the published value to
            its four digits.
        p_values: Table 5, by figure: published, reproduced, own denominators.
    """

    kappa: Record
    p_values: dict[str, _PValueAudit]


def audit_pair(main: TestedModel, other: TestedModel) -> PrintedPair:
    """Recompute what the paper prints of MASERes and another network."""
    facts = maseres_facts()
    first, second = (_decisions_of(model.counts) for model in (main, other))
    printed = facts.kappa[other.name]
    (kappa,) = compare(first, second, "kappa")
    return PrintedPair(
        kappa={
            "other": other.name,
            "published": printed,
            "recomputed": kappa,
            "possible_with": tuple(n for n in (20, 21) if _can_be_kappa(printed, n)),
        },
        p_values={
            row.figure: _audit_p_value(other, row, facts.table_5[other.name][row.figure])
            for row in compare(first, second, "maseres_z")
        },
    )


def _decisions_of(counts: ClassCounts) -> Predictions:
    """Decisions with these counts, COVID-19 cases first, the errors of each class last."""
    truth = [COVID19] * (counts.tn + counts.fp) + [NORMAL] * (counts.tp + counts.fn)
    decided = [COVID19] * counts.tn + [NORMAL] * (counts.fp + counts.tp) + [COVID19] * counts.fn
    return as_predictions(truth, decided, TWO_CLASSES)


def _can_be_kappa(value: float, num_scans: int) -> bool:
    """Whether any 2 x 2 table of so many scans has this kappa, to its four printed digits."""
    n = num_scans
    both, first, second = np.meshgrid(*[np.arange(n + 1)] * 3, indexing="ij")
    neither = n - both - first - second
    kept = neither >= 0
    both, first, second, neither = (each[kept] for each in (both, first, second, neither))
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    is_defined = chance < n * n
    agreed = (both + neither)[is_defined] * n
    kappas = (agreed - chance[is_defined]) / (n * n - chance[is_defined])
    return bool((np.abs(kappas - value) <= 0.5e-4 + 1e-12).any())


def _sound_tests(main: TestedModel, other: TestedModel) -> Record:
    """The accuracies of MASERes and another network by other tests.

    McNemar's is the one for two classifiers on the same patients; Fisher's takes the patients as
    different ones. The published formula stands two-sided, and pooled.
    """
    from scipy.stats import fisher_exact
    from statsmodels.stats.proportion import proportions_ztest

    pair = [_decisions_of(model.counts) for model in (main, other)]
    (mcnemar,) = compare(pair[0], pair[1], "mcnemar")
    total = len(pair[0])
    hits = [int(each.is_right.sum()) for each in pair]
    _, one_sided = maseres_z_test(hits[0] / total, hits[1] / total, total)
    return {
        "other": other.name,
        "mcnemar": mcnemar,
        "fisher": float(fisher_exact([[n, total - n] for n in hits]).pvalue),
        "z_two_sided": 2 * min(one_sided, 1 - one_sided),
        "z_pooled": float(proportions_ztest(hits, [total, total])[1]),
    }


def _audit_p_value(other: TestedModel, row: Comparison, published: float) -> _PValueAudit:
    if row.first is None or row.second is None or row.p_value is None:
        raise ValueError(f"{row.figure} of {other.name} is undefined")
    total = _own_total(other.counts, row.figure)
    # MASERes has no errors, so its variance is 0 and its own denominator does not matter.
    own = None if total is None else maseres_z_test(row.first, row.second, total)[1]
    return _PValueAudit(
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
    scores = ClassScores.of(counts, NORMAL)
    names = {"accuracy": "one_vs_rest_accuracy", "precision": "ppv"}
    found = getattr(scores, names.get(figure, figure.lower()))
    return found.total if isinstance(found, Estimate) else None


_MOST_PAIRS: Final = 1000
"""With more pairs of cases, four digits of an AUC no longer tell how many are in order."""


@dataclass(frozen=True)
class ModelAudit:
    """A model's test result with intervals; normal is the positive class, as in the paper.

    Attributes:
        name: As in the paper.
        accuracy: All right decisions.
        scores: Normal against COVID-19: sensitivity is the recall of normal cases.
        covid_recall: COVID-19 cases found, the paper's specificity.
        auc: As printed by the notebook; None where none is.
        num_pairs: Pairs of a normal and a COVID-19 case, which an AUC counts.
        pairs_in_order: Pairs in the right order, ties counting half, from the printed AUC; None
            where its four digits leave it open.
    """

    name: str
    accuracy: Estimate
    scores: ClassScores
    covid_recall: Estimate
    auc: float | None
    num_pairs: int
    pairs_in_order: float | None


@dataclass(frozen=True)
class MaseresAudit:
    """Everything recomputed about the MASERes paper.

    Attributes:
        citation: The paper.
        patients: The three 3D networks on 21 patients.
        slices: The six transfer networks on 966 slices.
        damaged: The damaged models on the same 21 patients.
        damaged_as_printed: Whether Table 7 equals the counts, by model.
        p_values: Table 5.
        tests: The same comparisons by other tests.
        kappas: The two kappas of the text.
        no_errors: What 21/21 means.
        patients_needed: Patients without an error after which the exact bound is at most 5 %.
        ctset: Normal and COVID-19 counts that print all five figures of Table 6.
        ctset_scores: Of these counts, when there is one set of them.
        split_as_printed: Whether the shuffle gives the names that the notebooks print, by class.
    """

    citation: str
    patients: tuple[ModelAudit, ...]
    slices: tuple[ModelAudit, ...]
    damaged: tuple[ModelAudit, ...]
    damaged_as_printed: dict[str, bool]
    p_values: tuple[_PValueAudit, ...]
    tests: tuple[Record, ...]
    kappas: tuple[Record, ...]
    no_errors: tuple[Record, ...]
    patients_needed: int
    ctset: tuple[ClassCounts, ...]
    ctset_scores: ModelAudit | None
    split_as_printed: dict[str, bool]


def audit_maseres_paper() -> MaseresAudit:
    """Recompute all that the packaged facts allow."""
    facts = maseres_facts()
    main, *others = facts.patient_models
    pairs = [audit_pair(main, other) for other in others]
    ctset = _ctset_counts(facts)
    damaged = tuple(_audit_model(model) for model in facts.damaged_models)
    is_one = len(ctset) == 1
    return MaseresAudit(
        citation=facts.citation,
        patients=tuple(_audit_model(model) for model in facts.patient_models),
        slices=tuple(_audit_model(model) for model in facts.slice_models),
        damaged=damaged,
        damaged_as_printed={
            each.name: _is_as_printed(each, facts.table_7[each.name]) for each in damaged
        },
        p_values=tuple(row for pair in pairs for row in pair.p_values.values()),
        tests=tuple(_sound_tests(main, other) for other in others),
        kappas=tuple(pair.kappa for pair in pairs),
        no_errors=_no_errors(main),
        patients_needed=next(n for n in range(1, 1000) if clopper_pearson_upper(0, n) <= 0.05),
        ctset=ctset,
        ctset_scores=_audit_model(TestedModel("COVID-CTset", ctset[0], None)) if is_one else None,
        split_as_printed=_split_as_printed(facts),
    )


def _audit_model(model: TestedModel) -> ModelAudit:
    """A model's figures with intervals."""
    counts = model.counts
    num_pairs = (counts.tp + counts.fn) * (counts.tn + counts.fp)
    scores = ClassScores.of(counts, NORMAL)
    is_open = model.auc is None or num_pairs > _MOST_PAIRS
    return ModelAudit(
        name=model.name,
        accuracy=scores.one_vs_rest_accuracy,
        scores=scores,
        covid_recall=scores.specificity,
        auc=model.auc,
        num_pairs=num_pairs,
        pairs_in_order=None if is_open else rounded(2 * (model.auc or 0.0) * num_pairs, 0) / 2,
    )


def _ctset_counts(facts: MaseresFacts) -> tuple[ClassCounts, ...]:
    """Every set of counts that prints all five figures of Table 6."""
    covid, normal = facts.table_6_cases
    found = []
    for tp in range(normal + 1):
        for tn in range(covid + 1):
            counts = ClassCounts(tp=tp, fn=normal - tp, fp=covid - tn, tn=tn)
            if _printed(counts) == facts.table_6:
                found.append(counts)
    return tuple(found)


def _printed(counts: ClassCounts) -> dict[str, float | None]:
    """The five figures in per cent with two digits."""
    scores = ClassScores.of(counts, NORMAL)
    return {
        "accuracy": percent_of(scores.one_vs_rest_accuracy, 2),
        "precision": percent_of(scores.ppv, 2),
        "sensitivity": percent_of(scores.sensitivity, 2),
        "specificity": percent_of(scores.specificity, 2),
        "f1": None if scores.f1 is None else rounded(100 * scores.f1, 2),
    }


def _no_errors(main: TestedModel) -> tuple[Record, ...]:
    """What "n of n right" allows one to say, of all patients and of each class.

    `exact_low` is the lower end of the two-sided Clopper-Pearson interval, `error_bound` the exact
    one-sided 95 % bound of the error rate, 3 / n its quick approximation.
    """
    scores = ClassScores.of(main.counts, NORMAL)
    rates = {
        "all test patients": scores.one_vs_rest_accuracy,
        "COVID-19 patients": scores.specificity,
        "normal patients": scores.sensitivity,
    }
    return tuple(
        {
            "what": what,
            "rate": rate,
            "exact_low": 1 - clopper_pearson_upper(0, rate.total or 0, level=0.975),
            "error_bound": clopper_pearson_upper(0, rate.total or 0),
            "rule_of_three": 3 / (rate.total or 0),
        }
        for what, rate in rates.items()
    )


def _is_as_printed(audited: ModelAudit, printed: dict[str, float]) -> bool:
    found = {
        COVID19: percent_of(audited.covid_recall, 2),
        NORMAL: percent_of(audited.scores.sensitivity, 2),
        "all": percent_of(audited.accuracy, 2),
    }
    return found == printed


def _split_as_printed(facts: MaseresFacts) -> dict[str, bool]:
    """Whether Python's shuffle with seed 1 gives the names that the notebooks print first."""
    names = {
        COVID19: sorted(str(number) for number in range(1, 134)),
        NORMAL: [f"{number:03d}" for number in range(1, 77)],
    }
    found = {}
    for label, shuffled in names.items():
        Random(1).shuffle(shuffled)
        found[label] = tuple(shuffled[:5]) == facts.first_after_shuffle[label]
    return found

"""Everything there is to say of one classifier on one set of scans, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from chestct.evaluation.abstaining import AtThreshold, at_threshold
from chestct.evaluation.calibration import (
    AbstentionThreshold,
    ReliabilityBin,
    RiskPoint,
    abstention_threshold,
    coverage_risk,
    reliability_curve,
)
from chestct.evaluation.comparisons import SOUND, Comparison
from chestct.evaluation.intervals import Figures, estimate_figures
from chestct.evaluation.metrics import Confusion, confusion_matrix
from chestct.evaluation.predictions import Predictions, by_site
from chestct.evaluation.resampling import Bootstrap

FEW_CASES: Final = 10
"""A class with fewer scans than this is pointed out."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is made.

    Attributes:
        name: What the classifier is called in tables.
        bootstrap: How patients are drawn.
        wished_errors: Error rates that an abstention threshold is sought for.
        formats: Endings of the figure files, of "png" and "svg".
        comparisons: Names in `COMPARISONS`, of the tests that other classifiers are compared by.
        promised: Abstention threshold of the classifier, chosen on other scans, or None.
        remarks: Sentences that join the warnings.
    """

    name: str = "classifier"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    wished_errors: tuple[float, ...] = (0.05, 0.1)
    formats: tuple[str, ...] = ("png", "svg")
    comparisons: tuple[str, ...] = SOUND
    promised: AbstentionThreshold | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SiteSummary:
    """The scans of one site: how many, and their figures."""

    num_scans: int
    num_patients: int
    figures: Figures


@dataclass(frozen=True, eq=False)
class Summary:
    """One classifier on one set of scans.

    Attributes:
        labels: Class names in order.
        num_scans: Scans evaluated.
        num_patients: Patients they belong to.
        cases: Scans per true label.
        confusion: Counts, rows true, columns decisions.
        figures: Every figure with its interval.
        sites: The same per site, empty when no sites are given.
        reliability: Accuracy by confidence.
        coverage_risk: Error rate by share of scans decided on.
        abstention: One threshold per wished error rate, chosen on these very scans.
        warnings: What a reader has to know before trusting the figures.
        at_threshold: What the classifier's own threshold does on these scans, or None.
        others: Classifiers that were compared with, by name.
        comparisons: Tests against each of them.
    """

    labels: tuple[str, ...]
    num_scans: int
    num_patients: int
    cases: dict[str, int]
    confusion: Confusion
    figures: Figures
    sites: dict[str, SiteSummary]
    reliability: tuple[ReliabilityBin, ...]
    coverage_risk: tuple[RiskPoint, ...]
    abstention: tuple[AbstentionThreshold, ...]
    warnings: tuple[str, ...]
    at_threshold: AtThreshold | None = None
    others: Mapping[str, Summary] = field(default_factory=dict)
    comparisons: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)


def summarise(
    predictions: Predictions,
    settings: EvaluationSettings | None = None,
    *,
    excluded: Mapping[str, str] | None = None,
) -> Summary:
    """Compute everything.

    Args:
        predictions: Of one classifier.
        settings: How; None takes the default.
        excluded: Scans that got no decision, with the reason; they are counted in a warning.
    """
    chosen = settings or EvaluationSettings()
    cases = dict(zip(predictions.labels, predictions.cases.tolist(), strict=True))
    return Summary(
        labels=predictions.labels,
        num_scans=len(predictions),
        num_patients=predictions.num_patients,
        cases=cases,
        confusion=confusion_matrix(
            predictions.truth, predictions.decisions, len(predictions.labels)
        ),
        figures=estimate_figures(predictions, chosen.bootstrap),
        sites={
            site: SiteSummary(
                len(part), part.num_patients, estimate_figures(part, chosen.bootstrap)
            )
            for site, part in by_site(predictions).items()
        },
        reliability=reliability_curve(predictions),
        coverage_risk=coverage_risk(predictions),
        abstention=tuple(
            abstention_threshold(predictions, wished) for wished in chosen.wished_errors
        ),
        warnings=(*warnings_of(predictions, excluded or {}), *chosen.remarks),
        at_threshold=at_threshold(predictions, chosen.promised),
    )


def warnings_of(predictions: Predictions, excluded: Mapping[str, str]) -> list[str]:
    """What a reader has to know: gaps, small classes, dependence, class and site in one."""
    found = []
    if excluded:
        found.append(f"Scans without a decision, left out of the figures: {len(excluded)}.")
    if len(predictions) == 0:
        return [*found, "There are no scans: every figure is undefined."]
    return [
        *found,
        *_small_classes(predictions),
        *_odd_decisions(predictions),
        *_dependent_scans(predictions),
        *_confounded_site(predictions),
    ]


def _small_classes(predictions: Predictions) -> list[str]:
    found = []
    for label, cases in zip(predictions.labels, predictions.cases.tolist(), strict=True):
        if cases == 0:
            found.append(f"No scan is {label}: most of its figures are undefined.")
        elif cases < FEW_CASES:
            found.append(f"Few scans are {label} ({cases}): its figures say little.")
    return found


def _odd_decisions(predictions: Predictions) -> list[str]:
    """One decision for all, and ties."""
    found = []
    called = set(predictions.decisions.tolist())
    if len(called) == 1:
        found.append(f"Every scan was called {predictions.labels[called.pop()]}.")
    highest = predictions.probabilities == predictions.confidences[:, None]
    ties = int((highest.sum(axis=1) > 1).sum())
    if ties:
        found.append(f"Scans with several most probable labels, the first taken: {ties}.")
    return found


def _dependent_scans(predictions: Predictions) -> list[str]:
    if predictions.num_patients == len(predictions):
        return []
    return [
        f"{len(predictions)} scans belong to {predictions.num_patients} patients: Wilson's "
        "intervals are widened, McNemar's and DeLong's tests are too sure."
    ]


def _confounded_site(predictions: Predictions) -> list[str]:
    """Whether the site alone gives the label away."""
    if predictions.sites is None or len(set(predictions.sites)) < 2:
        return []
    pairs = Counter(zip(predictions.sites, predictions.truth.tolist(), strict=True))
    if len(pairs) > len(set(predictions.sites)) or len(np.unique(predictions.truth)) < 2:
        return []
    return [
        "Every site has scans of one label only: class and site are the same variable, and these "
        "figures cannot tell an illness from a scanner."
    ]

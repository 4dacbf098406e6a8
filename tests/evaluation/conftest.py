from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from chestct.evaluation.predictions import Predictions
from chestct.labels import THREE_CLASSES

MakePredictions = Callable[..., Predictions]


@pytest.fixture
def make_predictions() -> MakePredictions:
    """Classifiers of a given skill on the same simulated cases."""

    def make(
        num: int = 90,
        *,
        seed: int = 1,
        skill: float = 1.5,
        labels: tuple[str, ...] = THREE_CLASSES,
        scans_per_patient: int = 1,
        sites: tuple[str, ...] | None = None,
        decimals: int = 12,
    ) -> Predictions:
        truth = np.arange(num) % len(labels)
        logits = np.random.default_rng(seed).normal(size=(num, len(labels)))
        logits[np.arange(num), truth] += skill
        chances = np.round(np.exp(logits), decimals) + 1e-9
        return Predictions(
            scans=tuple(f"scan{index:04d}" for index in range(num)),
            patients=tuple(f"p{index // scans_per_patient:04d}" for index in range(num)),
            truth=truth,
            probabilities=chances / chances.sum(axis=1, keepdims=True),
            labels=labels,
            sites=None if sites is None else tuple(sites[i % len(sites)] for i in range(num)),
        )

    return make

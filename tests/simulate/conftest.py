"""Small simulated patients, made once."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.labels import THREE_CLASSES
from chestct.simulate import SimulatedPatient, ThoraxSettings, simulate_patient

SMALL = ThoraxSettings(rows=128, slice_spacing_mm=4.0)


def _patient(label: str) -> SimulatedPatient:
    return simulate_patient(np.random.default_rng(11), SMALL, pattern=label)


@pytest.fixture(scope="session")
def healthy() -> SimulatedPatient:
    return _patient("normal")


@pytest.fixture(scope="session")
def patients(healthy: SimulatedPatient) -> dict[str, SimulatedPatient]:
    """One patient per pattern, from the same seed and so with the same body."""
    return {label: _patient(label) for label in THREE_CLASSES if label != "normal"} | {
        "normal": healthy
    }

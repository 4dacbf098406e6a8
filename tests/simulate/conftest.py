"""Small simulated patients, made once."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.labels import THREE_CLASSES
from chestct.simulate import SimulatedPatient, ThoraxSettings, simulate_patient

SMALL = ThoraxSettings(rows=128, slice_spacing_mm=4.0)


@pytest.fixture(scope="session")
def patients() -> dict[str, SimulatedPatient]:
    """One patient per pattern, from the same seed and so with the same body."""
    return {
        label: simulate_patient(np.random.default_rng(11), SMALL, pattern=label)
        for label in THREE_CLASSES
    }


@pytest.fixture(scope="session")
def healthy(patients: dict[str, SimulatedPatient]) -> SimulatedPatient:
    return patients["normal"]

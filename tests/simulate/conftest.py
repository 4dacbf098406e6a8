"""Small simulated patients, made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chestct.labels import THREE_CLASSES
from chestct.simulate import SimulatedPatient, ThoraxSettings, simulate_patient
from chestct.simulate.anatomy import Anatomy
from chestct.simulate.thorax import Model, build_model

SMALL = ThoraxSettings(rows=128, slice_spacing_mm=4.0)

_bodies: dict[str, tuple[Model, Any]] = {}


def _build_once(anatomy: Anatomy, rng: np.random.Generator) -> Model:
    """One body for one state of the generator, which is left as building it leaves it."""
    before = repr((anatomy, rng.bit_generator.state))
    if before not in _bodies:
        _bodies[before] = build_model(anatomy, rng), rng.bit_generator.state
    model, rng.bit_generator.state = _bodies[before]
    return model


def _patient(label: str) -> SimulatedPatient:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestct.simulate.thorax.build_model", _build_once)
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

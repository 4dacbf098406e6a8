"""Simulated patients: chest CT scans with known lungs and known disease, made from a seed.

Names are looked up on first use, so that importing this package does not load scipy and OpenCV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chestct.simulate.dicom_export import write_dicom_series
    from chestct.simulate.lesions import insert_lesions
    from chestct.simulate.thorax import SimulatedPatient, ThoraxSettings, simulate_patient

_HOME = {
    "SimulatedPatient": "thorax",
    "ThoraxSettings": "thorax",
    "insert_lesions": "lesions",
    "simulate_patient": "thorax",
    "write_dicom_series": "dicom_export",
}

__all__ = [
    "SimulatedPatient",
    "ThoraxSettings",
    "insert_lesions",
    "simulate_patient",
    "write_dicom_series",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

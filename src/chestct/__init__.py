"""Classify whole chest CT scans, and show how sure the answer is and where the evidence lies.

The public names are loaded when they are first used: `import chestct` itself loads neither torch
nor scipy, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from chestct.api import classify_slices, evaluate, picture, train, write
    from chestct.classifier import Classifier, load_classifier
    from chestct.explain.run import explain_scan
    from chestct.pipeline import analyse_scan, classify_scan
    from chestct.preprocess.prepare import prepare
    from chestct.preprocess.recipes import RECIPES
    from chestct.readers import read_volume
    from chestct.result import ScanResult
    from chestct.volume import Grid, Volume

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "Classifier",
    "Grid",
    "ScanResult",
    "Volume",
    "__version__",
    "analyse_scan",
    "classify_scan",
    "classify_slices",
    "evaluate",
    "explain_scan",
    "load_classifier",
    "picture",
    "prepare",
    "read_volume",
    "train",
    "write",
]

_HOMES: Final = {
    "RECIPES": "chestct.preprocess.recipes",
    "Classifier": "chestct.classifier",
    "Grid": "chestct.volume",
    "ScanResult": "chestct.result",
    "Volume": "chestct.volume",
    "analyse_scan": "chestct.pipeline",
    "classify_scan": "chestct.pipeline",
    "classify_slices": "chestct.api",
    "evaluate": "chestct.api",
    "explain_scan": "chestct.explain.run",
    "load_classifier": "chestct.classifier",
    "picture": "chestct.api",
    "prepare": "chestct.preprocess.prepare",
    "read_volume": "chestct.readers",
    "train": "chestct.api",
    "write": "chestct.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chestct' has no attribute '{name}'")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)

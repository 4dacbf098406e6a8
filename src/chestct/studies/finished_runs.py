"""What a finished run's folder says of the run: its network, its settings, its figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chestct.errors import ReadError
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.predictions import read_predictions
from chestct.preprocess.recipes import RECIPES
from chestct.training.record import RUN_FILE
from chestct.training.session import PREDICTIONS_FILE

SLICES_FOLDER: Final = "slices"
"""Of a run on slices, where its slices' predictions are."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: Of its folder.
        labels: Its classes.
        network: Name of its network.
        gating: Where the lung mask is applied, for networks that have gates.
        threshold: t of its recipe; None where all slices are used, and of a run on slices.
        num_folds: Of a cross-validation, or None.
        num_scans: Scans, or slices, that it was judged on.
        figures: What was found.
    """

    name: str
    labels: tuple[str, ...]
    network: str
    gating: str
    threshold: float | None
    num_folds: int | None
    num_scans: int
    figures: Figures


def read_run(folder: Path, bootstrap: Bootstrap | None = None) -> Run:
    """Read the folder of a finished run, on scans or on slices.

    Raises:
        ReadError: It is no such folder, or something in it is damaged.
        PredictionsError: Its predictions are damaged.
    """
    record, predictions = folder / RUN_FILE, folder / PREDICTIONS_FILE
    if not predictions.is_file() and (folder / SLICES_FOLDER / PREDICTIONS_FILE).is_file():
        predictions = folder / SLICES_FOLDER / PREDICTIONS_FILE
    if not record.is_file() or not predictions.is_file():
        missing = RUN_FILE if not record.is_file() else PREDICTIONS_FILE
        msg = (
            f"{folder} has no {missing}: it is not the folder of a finished run. Give a folder "
            "that 'chestct train' or 'chestct study roi-ablation' wrote to its end."
        )
        raise ReadError(msg)
    found = read_predictions(predictions)
    try:
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        settings = known["settings"]
        return Run(
            name=folder.name,
            labels=tuple(settings["labels"]),
            network=settings["network"]["name"],
            gating=settings["network"].get("settings", {}).get("gating", "figure"),
            threshold=_threshold(settings),
            num_folds=known["folds"],
            num_scans=len(found),
            figures=estimate_figures(found, bootstrap),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        msg = f"{RUN_FILE} in {folder.name} is damaged ({type(error).__name__})."
        raise ReadError(msg) from error


def _threshold(settings: dict[str, Any]) -> float | None:
    """T of a run on scans; None where all slices are used, and of a run on slices."""
    recipe = settings.get("recipe")
    if recipe is None:
        return None
    usual = RECIPES[recipe["name"]].salient_threshold
    found = recipe.get("overrides", {}).get("salient_threshold", usual)
    return None if found is None else float(found)

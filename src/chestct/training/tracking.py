"""Who is shown a training's figures beside its own log: TensorBoard always, MLflow when asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from chestct.evaluation.figures import read_log
from chestct.evaluation.tables import Summary
from chestct.extras import import_extra, is_installed
from chestct.training.event_file import EventFile
from chestct.training.mlflow_run import MlflowRun, MlflowTarget
from chestct.training.record import flat_settings
from chestct.training.settings import RunSettings, TrackingSection

TENSORBOARD_FOLDER: Final = "tensorboard"
_URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_PRIVATE: Final = ("data.cache", "tracking.mlflow_uri")
"""Settings that name places on this machine."""


class Tracker(Protocol):
    """Who is shown figures."""

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Take all epochs that are finished; those known already are passed over."""

    def finish(self, figures: Mapping[str, float]) -> None:
        """Take the final figures."""


class Trackers:
    """All that one training's figures go to.

    Args:
        settings: Of the run.
        name: Of the training.
        folder: Where the loop writes its `log.jsonl`.
        tags: What MLflow is told of where the training comes from.
        note: Told what a person should read.

    Raises:
        MissingExtraError: The settings name an MLflow server and its package is not installed.
        TrainingError: The server cannot be reached.
    """

    def __init__(
        self,
        settings: RunSettings,
        name: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        note: Callable[[str], None],
    ) -> None:
        self._log = folder / "log.jsonl"
        self._all: list[Tracker] = [EventFile(folder / TENSORBOARD_FOLDER)]
        uri = mlflow_uri(settings.tracking)
        if uri is not None:
            flat = flat_settings(settings.model_dump(mode="json"))
            shown = {key: value for key, value in flat.items() if key not in _PRIVATE}
            target = MlflowTarget(uri, settings.tracking.mlflow_experiment, name, shown, tags)
            self._all.append(MlflowRun(target, folder, note))

    def update(self) -> None:
        """Show what the log has to all of them."""
        epochs = read_log(self._log)
        for tracker in self._all:
            tracker.update(epochs)

    def finish(self, summary: Summary) -> None:
        """Show the final figures."""
        overall = summary.figures.overall
        figures = {
            f"final_{name}": each.value for name, each in overall.items() if each.value is not None
        }
        for tracker in self._all:
            tracker.finish(figures)


def check_tracking(section: TrackingSection, note: Callable[[str], None]) -> None:
    """Look before a run begins whether MLflow is there, where it is wanted.

    Raises:
        MissingExtraError: The settings name its server and the package is not installed.
    """
    if section.mlflow_uri is not None:
        import_extra("mlflow", extra="mlflow")
    elif os.environ.get(_URI_VARIABLE) and not is_installed("mlflow"):
        note(f"{_URI_VARIABLE} is set and MLflow is not installed: pip install 'chestct[mlflow]'")


def mlflow_uri(section: TrackingSection) -> str | None:
    """Where MLflow is to be found: as the settings say, else as the environment does."""
    if section.mlflow_uri is not None:
        return section.mlflow_uri
    named = os.environ.get(_URI_VARIABLE) or None
    return named if is_installed("mlflow") else None

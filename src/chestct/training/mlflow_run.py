"""Settings and figures of a training as a run of MLflow, where somebody wants them there.

A training that goes on goes on in the same run. A server that cannot be reached when a training
starts is an error; one that is lost later is said once, and the training goes on without it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chestct.errors import TrainingError
from chestct.extras import import_extra
from chestct.storage import write_text

RUN_FILE: Final = "mlflow.json"
_FIGURES: Final = (
    "training_loss",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
    "gpu_memory_gib",
)


@dataclass(frozen=True)
class MlflowTarget:
    """Where and as what a training is logged.

    Attributes:
        uri: MLflow's tracking URI.
        experiment: Name of the experiment; made when there is none.
        name: Of the run.
        settings: By their dotted paths; logged as parameters.
        tags: What else is known from the start.
    """

    uri: str
    experiment: str
    name: str
    settings: Mapping[str, object]
    tags: Mapping[str, str]


class MlflowRun:
    """One training in MLflow.

    Args:
        target: Where and as what.
        folder: The training's folder; the run's identifier is kept there.
        note: Told when the server is lost.

    Raises:
        MissingExtraError: The package is not installed.
        TrainingError: The server cannot be reached, or refuses.
    """

    def __init__(self, target: MlflowTarget, folder: Path, note: Callable[[str], None]) -> None:
        # MLflow reports its use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = import_extra("mlflow", extra="mlflow")
        self._errors = (self._mlflow.exceptions.MlflowException, OSError)
        self._file, self._note = folder / RUN_FILE, note
        self._is_lost = False
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=target.uri)
            self._run, self._num_logged = self._find_run(target)
        except self._errors as error:
            msg = f"MLflow cannot be used at its tracking URI: {_first_line(error)}. Start its "
            raise TrainingError(msg + "server, or leave tracking.mlflow_uri out.") from error

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that MLflow does not have yet; `epochs` are all that are finished."""
        metrics = [
            self._metric(name, epoch[name], epoch["epoch"])
            for epoch in epochs[self._num_logged :]
            for name in _FIGURES
            if epoch.get(name) is not None
        ]
        self._try(lambda: self._client.log_batch(self._run, metrics=metrics))
        if not self._is_lost:
            self._num_logged = len(epochs)
            self._keep()

    def finish(self, figures: Mapping[str, float]) -> None:
        """Log the final figures and end the run."""
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        metrics = [self._metric(name, value, self._num_logged) for name, value in finite.items()]
        self._try(lambda: self._client.log_batch(self._run, metrics=metrics))
        self._try(lambda: self._client.set_terminated(self._run, "FINISHED"))

    def _find_run(self, target: MlflowTarget) -> tuple[str, int]:
        """The run that goes on, or a new one, and how many epochs it has."""
        if self._file.is_file():
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            if kept["experiment"] == target.experiment:
                self._client.update_run(kept["run"], status="RUNNING")
                self._experiment = target.experiment
                return kept["run"], kept["epochs"]
        found = self._client.get_experiment_by_name(target.experiment)
        number = found.experiment_id if found else self._client.create_experiment(target.experiment)
        run = self._client.create_run(number, run_name=target.name, tags=dict(target.tags))
        param = self._mlflow.entities.Param
        params = [param(name, str(value)) for name, value in target.settings.items()]
        self._client.log_batch(run.info.run_id, params=params)
        self._run, self._num_logged, self._experiment = run.info.run_id, 0, target.experiment
        self._keep()
        return self._run, 0

    def _keep(self) -> None:
        kept = {"run": self._run, "experiment": self._experiment, "epochs": self._num_logged}
        write_text(self._file, json.dumps(kept) + "\n")

    def _metric(self, name: str, value: float, step: int) -> object:
        return self._mlflow.entities.Metric(name, float(value), int(time.time() * 1000), step)

    def _try(self, call: Callable[[], object]) -> None:
        """Do it unless the server was lost; a training is worth more than its log."""
        if self._is_lost:
            return
        try:
            call()
        except self._errors as error:
            self._is_lost = True
            why = _first_line(error)
            self._note(f"MLflow was lost ({why}); the training goes on, as does its own log.")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

"""Who is shown a training's figures beside its own log: TensorBoard, and MLflow when asked."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chestct.errors import TrainingError, WriteError
from chestct.evaluation.figures import read_log
from chestct.evaluation.report import Summary
from chestct.extras import import_extra, is_installed
from chestct.storage import reason_of, write_text
from chestct.training.settings import RunSettings, TrackingSection, flat_settings

_TAGS: Final = {
    "training_loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "seconds": "epoch/seconds",
    "gpu_memory_gib": "epoch/gpu_memory_gib",
}
"""Field of `run.EpochLog` to what it is called in TensorBoard; MLflow has the field's own name."""

_VERSION: Final = "brain.Event:2"


class _EventFile:
    """The event file of a training, in the place of earlier sessions'; it holds every epoch."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._checksum = Event, masked_crc32c
        self._folder = folder
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.chestct"
        self._num_written = 0

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs, of all that `log.jsonl` has, that are not in it yet.

        Raises:
            WriteError: It cannot be written.
        """
        new = epochs[self._num_written :]
        try:
            if self._num_written == 0:
                self._begin()
            with self._path.open("ab") as file:
                file.write(b"".join(map(self._epoch, new)))
        except OSError as error:
            msg = f"{self._path.name} cannot be written in {self._folder.name}: {reason_of(error)}."
            raise WriteError(f"{msg} Free some space and start the same command again.") from error
        self._num_written = len(epochs)

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._path.write_bytes(self._record(file_version=_VERSION))

    def _epoch(self, figures: Mapping[str, Any]) -> bytes:
        """One event with a value for each figure that there is."""
        values = [
            {"tag": tag, "simple_value": figures[name]}
            for name, tag in _TAGS.items()
            if figures.get(name) is not None
        ]
        return self._record(step=figures["epoch"], summary={"value": values})

    def _record(self, **fields: Any) -> bytes:
        """A TFRecord of an event: length, its checksum, content, its checksum."""
        content: bytes = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        parts = (each + struct.pack("<I", self._checksum(each)) for each in (length, content))
        return b"".join(parts)


class _MlflowRun:
    """One training in MLflow, its settings logged as parameters.

    The experiment is made when there is none; the run's identifier is kept in the training's
    folder. `note` is told when the server is lost.

    Raises:
        MissingExtraError: The package is not installed.
        TrainingError: The server cannot be reached, or refuses.
    """

    def __init__(
        self,
        uri: str,
        settings: RunSettings,
        name: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        note: Callable[[str], None],
    ) -> None:
        # MLflow reports its use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = import_extra("mlflow", extra="mlflow")
        self._errors = (self._mlflow.exceptions.MlflowException, OSError)
        self._file, self._note = folder / "mlflow.json", note
        self._experiment = settings.tracking.mlflow_experiment
        self._is_lost = False
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
            self._run, self._num_logged = self._kept_run() or self._new_run(settings, name, tags)
        except self._errors as error:
            msg = f"MLflow cannot be used at its tracking URI: {_first_line(error)}. Start its "
            raise TrainingError(msg + "server, or leave tracking.mlflow_uri out.") from error

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that MLflow does not have yet; `epochs` are all that are finished."""
        metrics = [
            self._metric(name, epoch[name], epoch["epoch"])
            for epoch in epochs[self._num_logged :]
            for name in _TAGS
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

    def _kept_run(self) -> tuple[str, int] | None:
        """The run that goes on and how many epochs it has; None where there is none."""
        if not self._file.is_file():
            return None
        kept = json.loads(self._file.read_text(encoding="utf-8"))
        if kept["experiment"] != self._experiment:
            return None
        self._client.update_run(kept["run"], status="RUNNING")
        return kept["run"], kept["epochs"]

    def _new_run(
        self, settings: RunSettings, name: str, tags: Mapping[str, str]
    ) -> tuple[str, int]:
        """A new run, without epochs, that knows all settings but places on this machine."""
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=name, tags=dict(tags))
        param, flat = self._mlflow.entities.Param, flat_settings(settings.model_dump(mode="json"))
        params = [param(key, str(value)) for key, value in flat.items() if key not in _PRIVATE]
        self._client.log_batch(run.info.run_id, params=params)
        self._run, self._num_logged = run.info.run_id, 0
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


_URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_PRIVATE: Final = ("data.cache", "tracking.mlflow_uri", "training.start_from")
"""Settings that name places on this machine."""


class Trackers:
    """All that one training's figures, of its folder's `log.jsonl`, go to.

    `tags` tell MLflow where the training comes from.

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
        has_package = is_installed("tensorboardX")
        self._events = _EventFile(folder / "tensorboard") if has_package else None
        uri = _mlflow_uri(settings.tracking)
        self._mlflow = (
            None if uri is None else _MlflowRun(uri, settings, name, folder, tags=tags, note=note)
        )

    def update(self) -> None:
        """Show the epochs that the log has to all of them."""
        epochs = read_log(self._log)
        if self._events:
            self._events.update(epochs)
        if self._mlflow:
            self._mlflow.update(epochs)

    def finish(self, summary: Summary) -> None:
        """Show the final figures to MLflow; beside TensorBoard's they stand in the run folder."""
        overall = summary.figures.overall
        figures = {
            f"final_{name}": each.value for name, each in overall.items() if each.value is not None
        }
        if self._mlflow:
            self._mlflow.finish(figures)


def check_tracking(section: TrackingSection, note: Callable[[str], None]) -> None:
    """Look before a run begins whether MLflow is there, where it is wanted.

    Raises:
        MissingExtraError: The settings name its server and the package is not installed.
    """
    if section.mlflow_uri is not None:
        import_extra("mlflow", extra="mlflow")
    elif os.environ.get(_URI_VARIABLE) and not is_installed("mlflow"):
        note(f"{_URI_VARIABLE} is set and MLflow is not installed: pip install 'chestct[mlflow]'")


def _mlflow_uri(section: TrackingSection) -> str | None:
    """Where MLflow is to be found: as the settings say, else as the environment does."""
    if section.mlflow_uri is not None:
        return section.mlflow_uri
    named = os.environ.get(_URI_VARIABLE) or None
    return named if is_installed("mlflow") else None

"""MLflow is not installed for the tests: a stand-in has the part of its client that is used.

It refuses what the real one (3.17.2) was seen to refuse; against that one the same calls were
tried by hand, see docs/training.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from chestct.errors import TrainingError
from chestct.evaluation.intervals import Figures
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.report import Summary
from chestct.extras import MissingExtraError
from chestct.training.session import _check_tracking, _mlflow_uri, _Trackers
from chestct.training.settings import RunSettings, TrackingSection, read_settings

URI = "http://tracking.example"


class MlflowException(Exception):  # noqa: N818 - the real one's name
    pass


@dataclass
class Server:
    """What a tracking server would hold."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, SimpleNamespace] = field(default_factory=dict)
    is_down: bool = False


@dataclass
class Client:
    server: Server
    uri: str

    def _answer(self) -> None:
        if self.server.is_down or self.uri != URI:
            raise MlflowException("API request failed.\nDetails nobody wants.")

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        self._answer()
        found = self.server.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        self.server.experiments[name] = "7"
        return "7"

    def create_run(self, number: str, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        assert number == "7"
        key = f"run{len(self.server.runs)}"
        kept = SimpleNamespace(name=run_name, tags=tags, params={}, metrics=[], status="RUNNING")
        self.server.runs[key] = kept
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def update_run(self, run: str, status: str) -> None:
        self._answer()
        self.server.runs[run].status = status

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        self._answer()
        self.server.runs[run].metrics += [(m.key, m.value, m.step) for m in metrics]
        for param in params:
            assert isinstance(param.value, str)
            assert param.key not in self.server.runs[run].params
            self.server.runs[run].params[param.key] = param.value

    def set_terminated(self, run: str, status: str) -> None:
        self.update_run(run, status)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A stand-in for MLflow, installed."""
    found = Server()
    module = ModuleType("mlflow")
    module.__spec__ = ModuleSpec("mlflow", None)
    module.MlflowClient = lambda tracking_uri: Client(found, tracking_uri)  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(MlflowException=MlflowException)  # type: ignore[attr-defined]
    module.entities = SimpleNamespace(  # type: ignore[attr-defined]
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return found


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def settings(**tracking: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "labels": ["a", "b"],
            "network": {"name": "voxcnn", "settings": {"dropout": 0.1}},
            "recipe": {"name": "maseres_paper"},
            "data": {"cache": "prepared"},
            "training": {"start_from": "given.pth"},
            "tracking": tracking,
        }
    )


def trackers(folder: Path, notes: list[str], **tracking: object) -> _Trackers:
    given = settings(**({"mlflow_uri": URI} | tracking))
    return _Trackers(given, "fold 1", folder, tags={"chestct": "1"}, note=notes.append)


def log(folder: Path, num: int) -> None:
    folder.mkdir(exist_ok=True)
    figures = {"training_loss": 0.5, "learning_rate": 0.1, "gpu_memory_gib": None}
    lines = [json.dumps({"epoch": number, **figures}) for number in range(num)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def summary() -> Summary:
    overall = {"accuracy": Estimate(0.75), "kappa": Estimate(None), "odd": Estimate(float("nan"))}
    found = Summary.__new__(Summary)
    object.__setattr__(found, "figures", Figures(overall=overall, per_class={}))
    return found


@pytest.mark.parametrize("is_there", [True, False])
def test_without_its_package_tensorboard_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr("chestct.training.session.is_installed", lambda _name: is_there)
    log(tmp_path, 1)
    trackers(tmp_path, [], mlflow_uri=None).update()
    assert (tmp_path / "tensorboard").is_dir() == is_there


def test_settings_epochs_and_final_figures_arrive_in_one_run(
    tmp_path: Path, server: Server
) -> None:
    notes: list[str] = []
    log(tmp_path, 1)
    shown = trackers(tmp_path, notes)
    shown.update()
    log(tmp_path, 2)
    shown.update()
    shown.finish(summary())
    (run,) = server.runs.values()
    assert (run.name, run.tags) == ("fold 1", {"chestct": "1"})
    assert run.params["training.learning_rate"] == "0.001"
    assert run.metrics == [
        ("training_loss", 0.5, 0),
        ("learning_rate", 0.1, 0),
        ("training_loss", 0.5, 1),
        ("learning_rate", 0.1, 1),
        ("final_accuracy", 0.75, 2),
    ]
    assert run.status == "FINISHED"
    assert notes == []


def test_places_on_this_machine_are_not_sent(tmp_path: Path, server: Server) -> None:
    trackers(tmp_path, [])
    (run,) = server.runs.values()
    assert "/home" not in str(run.params)
    assert "given.pth" not in str(run.params)
    assert URI not in str(run.params)


def test_a_training_that_goes_on_goes_on_in_its_run(tmp_path: Path, server: Server) -> None:
    log(tmp_path, 2)
    trackers(tmp_path, []).update()
    log(tmp_path, 3)
    again = trackers(tmp_path, [])
    again.update()
    (run,) = server.runs.values()
    assert [step for name, _, step in run.metrics if name == "training_loss"] == [0, 1, 2]
    trackers(tmp_path, [], mlflow_experiment="other")
    assert len(server.runs) == 2


def test_a_server_that_is_not_there_at_the_start_is_an_error(
    tmp_path: Path, server: Server
) -> None:
    server.is_down = True
    with pytest.raises(TrainingError, match=r"API request failed\. Start its server") as caught:
        trackers(tmp_path, [])
    assert "nobody wants" not in str(caught.value)


def test_a_server_that_is_lost_later_is_said_once_and_training_goes_on(
    tmp_path: Path, server: Server
) -> None:
    notes: list[str] = []
    log(tmp_path, 1)
    shown = trackers(tmp_path, notes)
    server.is_down = True
    shown.update()
    shown.update()
    assert len(notes) == 1
    assert "training goes on" in notes[0]
    server.is_down = False
    trackers(tmp_path, []).update()
    assert len(next(iter(server.runs.values())).metrics) == 2


def test_where_mlflow_is_found_is_said_by_the_settings_then_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    assert _mlflow_uri(TrackingSection()) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other.example")
    assert _mlflow_uri(TrackingSection()) == "http://other.example"
    assert _mlflow_uri(TrackingSection(mlflow_uri=URI)) == URI


def test_without_the_package_settings_are_refused_and_the_environment_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.extras.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"chestct\[mlflow\]"):
        _check_tracking(TrackingSection(mlflow_uri=URI), lambda _note: None)
    notes: list[str] = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    _check_tracking(TrackingSection(), notes.append)
    assert "pip install 'chestct[mlflow]'" in notes[0]
    assert _mlflow_uri(TrackingSection()) is None


def test_a_password_in_the_address_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("labels: [a, b]\nnetwork: {name: voxcnn}\nrecipe: {name: maseres_paper}\n")
    with pytest.raises(TrainingError, match="MLFLOW_TRACKING_USERNAME"):
        read_settings(config, ["tracking.mlflow_uri=http://me:word@host:5000"])
    assert read_settings(config, [f"tracking.mlflow_uri={URI}"]).tracking.mlflow_uri == URI

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from here import work_here
from torch.optim.optimizer import register_optimizer_step_post_hook

from chestct.cli import main
from chestct.cli.workers import Workers, trainer
from chestct.cluster.driver import _WorkerEnd, only_driver
from chestct.cluster.job import work_on
from chestct.errors import ChestCTError, TrainingError, UnknownNameError
from chestct.evaluation.intervals import Bootstrap
from chestct.studies.roi_ablation import (
    GATINGS,
    NETWORKS,
    ROI_LAYERS,
    THRESHOLDS,
    _row_settings,
    run_ablation,
    table_rows,
    write_ablation,
)
from chestct.studies.study_rows import Progress, Row
from chestct.training.data import make_cache
from chestct.training.plan import Listener, Plan, find_parts
from chestct.training.run import DivergedError
from chestct.training.settings import read_settings

Output = pytest.CaptureFixture[str]
ROWS = table_rows(("roi_resnet18",), ("none", "figure"), (0.6, 0.8))


def run_command(workshop: Any, out: Path, *more: str, manifest: Path | None = None) -> int:
    command = ["study", "roi-ablation", str(workshop.config), "--out", str(out)]
    scans = str(manifest or workshop.manifest)
    return main([*command, "--data", scans, "--processes", "1", *more])


def make_plan(workshop: Any, folder: Path) -> Plan:
    settings = read_settings(workshop.config)
    return Plan(settings, workshop.manifest, folder, listener=Listener(processes=1))


def test_the_eighteen_rows_stand_in_the_order_of_the_paper() -> None:
    rows = table_rows()
    assert len(rows) == 18
    assert rows[0] == Row("roi_resnet18", "none", 0.6)
    assert rows[5] == Row("roi_resnet18", "figure", 0.8)
    assert rows[17] == Row("roi_resnet101", "figure", 0.8)
    assert [row.name for row in rows[:2]] == ["roi_resnet18-none-t60", "roi_resnet18-none-t70"]
    assert (len(NETWORKS), len(GATINGS), len(THRESHOLDS)) == (3, 2, 3)


def test_the_gates_can_be_placed_in_four_ways_beside_the_plain_network() -> None:
    rows = table_rows(("roi_resnet18",), ROI_LAYERS, (0.8,))
    assert [row.gating for row in rows] == ["none", "text", "figure", "all", "every"]


def test_a_row_changes_network_gating_and_t_and_nothing_else(workshop: Any) -> None:
    base = read_settings(workshop.config)
    settings = _row_settings(base, Row("roi_resnet50", "text", 0.7))
    assert settings.network.name == "roi_resnet50"
    assert settings.network.settings == {**base.network.settings, "gating": "text"}
    assert settings.recipe.overrides == {**base.recipe.overrides, "salient_threshold": 0.7}
    assert settings.training == base.training
    assert "gating" not in base.network.settings


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((("maseres",), GATINGS, THRESHOLDS), UnknownNameError, "network of this study 'maseres'"),
        ((NETWORKS, ("figures",), THRESHOLDS), UnknownNameError, "Did you mean 'figure'"),
        ((NETWORKS, GATINGS, (0.8, 1.2)), ChestCTError, r"t = 1\.2 is impossible"),
        ((NETWORKS, GATINGS, (0.8, 0.8)), ChestCTError, "none of them twice"),
        ((NETWORKS, (), THRESHOLDS), ChestCTError, "at least one network"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_are_refused(
    arguments: tuple[Any, Any, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        table_rows(*arguments)


def test_a_study_trains_its_rows_once_and_writes_one_table(
    workshop: Any, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "study"
    subset = ("--networks", "roi_resnet18", "--gatings", "none,figure", "--thresholds", "80")
    assert run_command(workshop, out, *subset) == 0
    printed = capsys.readouterr().out
    assert printed.count("Row roi_resnet18-") == 2
    assert "roi_resnet18-figure-t80  epoch 1/1" in printed
    assert "Not a medical device" in printed
    accuracies = [r for r in workshop.rows(out / "table.csv") if r["figure"] == "accuracy"]
    assert [(row["gating"], row["t"], row["total"]) for row in accuracies] == [
        ("none", "0.8", "4"),
        ("figure", "0.8", "4"),
    ]
    assert all(row["method"] == "Wilson" for row in accuracies)
    (test,) = workshop.rows(out / "tests.csv")
    assert (test["differ_in"], test["scans"]) == ("gating", "4")
    assert {path.name for path in out.glob("*.png")} == {"accuracy.png", "sensitivity.png"}
    weights = out / "rows" / "roi_resnet18-none-t80" / "classifier" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_command(workshop, out, *subset) == 0
    assert "Row roi_resnet18-" not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written


def test_rows_of_one_t_share_their_prepared_inputs(workshop: Any) -> None:
    base = read_settings(workshop.config)
    caches = []
    for row in ROWS:
        settings = _row_settings(base, row)
        caches.append(make_cache(settings.data, find_parts(settings).recipe))
    plain_60, plain_80, gated_60, gated_80 = (cache.entry_path("0" * 64) for cache in caches)
    assert plain_60 == gated_60
    assert plain_80 == gated_80
    assert plain_60 != plain_80


def test_rows_that_workers_train_are_those_of_one_after_the_other(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    # Trainings in processes of their own are tested with folds.
    work_here(monkeypatch)
    subset = ("--networks", "roi_resnet18", "--thresholds", "80")
    here, there = tmp_path / "here", tmp_path / "there"
    assert run_command(workshop, here, *subset) == 0
    assert run_command(workshop, there, *subset, "--workers", "2") == 0
    rows = files_of(here / "rows")
    assert "roi_resnet18-figure-t80/classifier/weights.safetensors" in rows
    assert files_of(there / "rows") == rows
    assert files_of(there) == files_of(here)


class _Killed:
    """Workers of which the system kills the first amid its second row; the next one works here."""

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        self._folder = folder
        self._lost: list[_WorkerEnd] = []

    def start(self, num: int) -> None:
        if len(list(self._folder.glob("parts/*.jsonl"))) == 1:
            work_on(self._folder)
            return
        worker = get_context("fork").Process(target=_work_until_killed, args=(self._folder,))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        self._lost.append(_WorkerEnd(is_lost=True))
        # As if nothing had been heard of it for a minute.
        for claim in self._folder.glob("claims/0*"):
            os.utime(claim, (0, 0))

    def ended(self) -> list[_WorkerEnd]:
        ends, self._lost = self._lost, []
        return ends

    def stop(self) -> None:
        pass


def _work_until_killed(folder: Path) -> None:
    def end(*_: object) -> None:
        if list(folder.glob("parts/*.jsonl")):
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(end)
    work_on(folder)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_row_goes_on_after_its_worker_was_killed_and_others_stay(
    workshop: Any, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    rows = table_rows(("roi_resnet18",), thresholds=(0.8,))
    here, there = tmp_path / "here", tmp_path / "there"
    run_ablation(make_plan(workshop, here), rows)
    monkeypatch.setattr("chestct.cluster.driver.LocalCrew", _Killed)
    train = trainer(Workers(workers=1), there, "cpu", "Row")
    run_ablation(make_plan(workshop, there), rows, train=train)
    assert capsys.readouterr().err.count("ended without a word; its shard goes to another") == 1
    assert files_of(there) == files_of(here)


TIMED = ("run.json", "log.jsonl", "checkpoint.safetensors")


def files_of(folder: Path) -> dict[str, bytes]:
    """Files by their name; times stand in the names of TensorBoard's, and in some others."""
    return {
        path.relative_to(folder).as_posix(): b"" if path.name in TIMED else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "tensorboard"
    }


def test_a_second_command_on_one_study_is_refused(
    workshop: Any, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.cluster.job.LEASE_S", 1.0)
    out, subset = tmp_path / "study", ("--networks", "roi_resnet18", "--thresholds", "60")
    run_ablation(make_plan(workshop, out), ROWS[:1], train=train_none)
    for more in ((), ("--workers", "1")):
        with only_driver(out, 1.0):
            assert run_command(workshop, out, *subset, *more) == 2
        assert "Another chestct works on" in capsys.readouterr().err
    assert not (out / "rows").exists()


def train_none(plans: Sequence[Any], *, are_trials: bool = False) -> dict[str, str]:
    """As if all had diverged."""
    return {plan.folder.name: "no number" for plan in plans}


def test_a_study_without_rows_has_no_table(workshop: Any, tmp_path: Path) -> None:
    plan = make_plan(workshop, tmp_path / "study")
    progress = run_ablation(plan, ROWS[:1], train=train_none)
    assert progress == Progress({}, ROWS[:1])
    assert write_ablation(progress, plan.folder) == ()
    assert not (plan.folder / "table.md").exists()


def test_a_row_whose_loss_is_no_number_does_not_stop_the_others(
    workshop: Any, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chestct.training import session

    train = session.run_training

    def diverge_without_gates(plan: Plan) -> object:
        if plan.settings.network.settings["gating"] == "none":
            raise DivergedError("The loss is no longer a number.")
        return train(plan)

    monkeypatch.setattr(session, "run_training", diverge_without_gates)
    rows = (ROWS[1], ROWS[3])
    progress = run_ablation(make_plan(workshop, tmp_path / "study"), rows)
    assert progress.diverged == rows[:1]
    assert list(progress.results) == [rows[1]]
    write_ablation(progress, tmp_path / "study", bootstrap=Bootstrap(50))
    table = (tmp_path / "study" / "table.md").read_text(encoding="utf-8")
    assert "no longer a number: roi_resnet18-none-t80" in table


def test_another_study_or_another_folder_is_not_gone_on_with(
    workshop: Any, tmp_path: Path, capsys: Output, quick: None
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    assert run_command(workshop, tmp_path / "thesis") == 2
    assert "is not empty and holds no study" in capsys.readouterr().err
    plan = make_plan(workshop, tmp_path / "study")
    run_ablation(plan, ROWS[:1], train=train_none)
    training = plan.settings.training.model_copy(update={"epochs": 7})
    longer = replace(plan, settings=plan.settings.model_copy(update={"training": training}))
    with pytest.raises(TrainingError, match=r"training\.epochs was 1, is 7"):
        run_ablation(longer, ROWS[:1])


def test_every_row_is_checked_before_the_first_is_trained(
    workshop: Any, tmp_path: Path, capsys: Output
) -> None:
    small = ("--set", "recipe.overrides={input_shape: [16, 16, 16]}")
    assert run_command(workshop, tmp_path / "study", *small) == 2
    assert "at least 32 voxels along each axis" in capsys.readouterr().err
    assert not (tmp_path / "study" / "rows").exists()


def test_a_t_that_is_no_number_is_refused(workshop: Any, tmp_path: Path, capsys: Output) -> None:
    assert run_command(workshop, tmp_path / "study", "--thresholds", "eighty") == 2
    assert "'eighty' is no value of t" in capsys.readouterr().err


def test_several_processes_on_one_row_are_refused(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=r"Start it without torchrun, with --workers"):
        run_ablation(make_plan(workshop, tmp_path / "study"), ROWS)

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from drawn_scans import SETTINGS, read_rows, write_rows, write_scans
from here import work_here

from chestct.cli import main
from chestct.errors import TrainingError
from chestct.evaluation.intervals import Figures
from chestct.evaluation.metrics import Estimate
from chestct.training.plan import Listener, Plan
from chestct.training.run import DivergedError
from chestct.training.search import (
    BATCHES,
    OPTIMIZERS,
    RATES,
    Candidate,
    Search,
    Trial,
    _sort_key,
    _tune_csv,
    _tune_markdown,
    run_search,
)
from chestct.training.settings import read_settings

Output = pytest.CaptureFixture[str]
PARTS = ("training", "training", "training", "validation", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans with a split, and settings."""
    folder = tmp_path_factory.mktemp("tune")
    rows = read_rows(write_scans(folder / "scans", 6))
    for number, row in enumerate(rows):
        row["split"] = PARTS[number // 2]
    write_rows(folder / "scans" / "split.csv", rows)
    cache = json.dumps(str(folder / "cache"))
    (folder / "settings.yaml").write_text(f"{SETTINGS}data: {{cache: {cache}}}\n")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures of the candidates."""
    monkeypatch.setattr("chestct.evaluation.report.draw_evaluation", lambda *_arguments: {})


def tune(folder: Path, out: Path, *more: str) -> int:
    command = ["train", str(folder / "settings.yaml"), "--out", str(out), "--processes", "1"]
    return main([*command, "--data", str(folder / "scans" / "split.csv"), "--tune", *more])


def trial(candidate: Candidate, loss: float, accuracy: float) -> Trial:
    overall = {name: Estimate(0.5) for name in ("balanced_accuracy", "macro_auc")}
    overall |= {"log_loss": Estimate(loss), "accuracy": Estimate(accuracy, 0.1, 0.9)}
    return Trial(candidate, Figures(overall, {}))


def test_the_grid_holds_what_the_papers_tried() -> None:
    search = Search()
    assert len(search.candidates) == len(OPTIMIZERS) * len(RATES) * len(BATCHES) == 36
    assert BATCHES == (2, 4, 8)
    assert set(OPTIMIZERS) == {"adam", "rmsprop", "sgd"}
    assert Candidate("adam", 1e-6, 2) in search.candidates  # MASERes
    assert Candidate("adam", 1e-4, 2) in search.candidates  # RoI-aware 3D ResNet


def test_more_trials_only_add_to_those_drawn_before() -> None:
    few, more = (Search(trials=number, seed=4).candidates for number in (3, 9))
    assert len(few) == 3
    assert set(few) < set(more)
    assert Search(trials=3, seed=4).candidates == few != Search(trials=3, seed=5).candidates
    assert len(Search(trials=99).candidates) == 36


def test_the_lowest_validation_loss_wins_and_a_lost_one_comes_last() -> None:
    first, second, third = (Candidate("adam", rate, 2) for rate in (1e-3, 1e-4, 1e-5))
    lost = Trial(Candidate("sgd", 1.0, 2), None, "the loss is no longer a number")
    trials = [lost, trial(first, 0.7, 0.9), trial(second, 0.4, 0.6), trial(third, 0.4, 0.8)]
    ranked = sorted(trials, key=_sort_key)
    assert [each.candidate for each in ranked] == [third, second, first, lost.candidate]
    lines = list(csv.DictReader(_tune_csv(ranked).splitlines()))
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4"]
    assert (lines[0]["log_loss"], lines[0]["accuracy_low"]) == ("0.4", "0.1")
    assert (lines[3]["log_loss"], lines[3]["note"]) == ("", lost.note)
    assert "| 4 | sgd | 1 | 2 | the loss is no longer a number |" in _tune_markdown(ranked, 3)


def test_a_search_ranks_by_the_validation_part_and_its_settings_can_be_trained(
    folder: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "search"
    grid = ("--tune-rates", "0.003,0.01", "--tune-batches", "3", "--tune-optimizers", "adam")
    assert tune(folder, out, *grid, "--tune-epochs", "1") == 0
    printed = capsys.readouterr().out
    assert printed.count("Candidate adam-rate") == 2
    assert "epoch 1/1" in printed
    table = read_rows(out / "tune.csv")
    assert {row["learning_rate"] for row in table} == {"0.003", "0.01"}
    assert float(table[0]["log_loss"]) <= float(table[1]["log_loss"])
    judged = read_rows(out / "adam-rate0.003-batch3" / "predictions.csv")
    split = {row["scan"]: row["split"] for row in read_rows(folder / "scans" / "split.csv")}
    assert [split[Path(row["scan"]).name] for row in judged] == ["validation"] * 4
    assert "test" not in {row["split"] for row in read_rows(out / "manifest.csv")}
    best = yaml.safe_load((out / "settings.yaml").read_text())
    assert best["training"]["learning_rate"] == float(table[0]["learning_rate"])
    assert best["training"]["epochs"] == 2
    assert read_settings(out / "settings.yaml").training.batch_size == 3
    assert not list(out.glob("*/training/*.safetensors"))
    weights = out / "adam-rate0.01-batch3" / "classifier" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert tune(folder, out, *grid, "--tune-epochs", "1") == 0
    assert "Candidate" not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    assert read_rows(out / "tune.csv") == table


def test_candidates_that_workers_train_are_those_of_one_after_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("--tune-rates", "0.003,0.01", "--tune-batches", "3", "--tune-optimizers", "adam")
    work_here(monkeypatch)
    here, there = tmp_path / "here", tmp_path / "there"
    for out, more in ((here, ()), (there, ("--workers", "1"))):
        assert tune(folder, out, *grid, "--tune-epochs", "1", *more) == 0
    # The names of TensorBoard's files hold times.
    first, second = (
        {path.relative_to(out) for path in out.rglob("*") if "events." not in path.name}
        for out in (here, there)
    )
    assert first == second
    names = ("tune.csv", "tune.md", "adam-rate0.01-batch3/classifier/weights.safetensors")
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()
    shutil.rmtree(there / "adam-rate0.01-batch3")
    assert tune(folder, there, *grid, "--tune-epochs", "1", "--workers", "1") == 0
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_a_candidate_that_diverges_is_kept_in_the_table_and_not_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chestct.training import session as module

    tried: list[str] = []

    def diverge(plan: Plan) -> None:
        tried.append(plan.folder.name)
        raise DivergedError("The loss is no longer a number.")

    monkeypatch.setattr(module, "run_training", diverge)
    settings = read_settings(folder / "settings.yaml")
    manifest = folder / "scans" / "split.csv"
    plan = Plan(settings, manifest, tmp_path / "search", listener=Listener(processes=1))
    search = Search(rates=(1.0,), batches=(2,), optimizers=("sgd",))
    for _ in range(2):
        with pytest.raises(TrainingError, match="Every candidate's loss ceased to be a number"):
            run_search(plan, search)
    assert tried == ["sgd-rate1-batch2"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--folds", "2"), "A search has no folds"),
        (("--tune-rates", "fast"), "'fast' is no number"),
        (("--tune-batches", "2.5"), "'2.5' is no batch size"),
        (("--tune-optimizers", "adma"), "adma-rate1e-06-batch2 is impossible"),
        (("--tune-batches", "0"), "batch0 is impossible"),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_refused_before_it_starts(
    folder: Path, tmp_path: Path, more: tuple[str, ...], words: str, capsys: Output
) -> None:
    assert tune(folder, tmp_path / "search", *more) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "search").exists()


def test_a_search_needs_a_candidate_a_trial_and_an_epoch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least one candidate"):
        Search(rates=())
    with pytest.raises(TrainingError, match="at least one trial"):
        Search(trials=0)
    settings = read_settings(folder / "settings.yaml")
    plan = Plan(settings, folder / "scans" / "split.csv", tmp_path / "search")
    with pytest.raises(TrainingError, match="for 0 epochs"):
        run_search(plan, Search(epochs=0))


def test_without_a_test_part_the_search_says_what_that_costs(
    folder: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["train", str(folder / "settings.yaml"), "--out", str(tmp_path / "search"), "--tune"]
    plain = ["--data", str(folder / "scans" / "manifest.csv"), "--processes", "1"]
    grid = ["--tune-rates", "0.003", "--tune-batches", "3", "--tune-optimizers", "adam"]
    assert main([*command, *plain, *grid, "--tune-epochs", "1"]) == 0
    assert "No scan is set aside as test" in capsys.readouterr().out


def test_a_search_by_several_processes_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(folder / "settings.yaml")
    plan = Plan(settings, folder / "scans" / "split.csv", tmp_path / "search")
    with pytest.raises(TrainingError, match="Start it without torchrun"):
        run_search(plan, Search())


def test_what_is_said_of_a_search_without_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "voxcnn_paper", "--data", str(tmp_path / "none.csv"), "--out"]
    command += [str(tmp_path / "run"), "--tune-trials", "3", "--tune-rates", "1e-3"]
    assert main(command) == 2
    assert "--tune-trials, --tune-rates: only for a search" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""`chestct train`, `chestct evaluate` and `chestct lr-range` on drawn scans, in process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from drawn_scans import LABELS, SETTINGS, read_rows, write_empty_chest, write_rows, write_scans
from here import work_here
from safetensors.numpy import load_file

from chestct.card import Card
from chestct.cli import main
from chestct.cli.terminal import EpochLines, _in_words
from chestct.cluster.job import LEASE_S
from chestct.datasets.manifest import read_manifest
from chestct.evaluation.comparisons import COMPARISONS, MASERES_Z_DEFECTS, SOUND
from chestct.evaluation.predictions import read_predictions
from chestct.training.judging import _seen_before
from chestct.training.run import EpochLog

Output = pytest.CaptureFixture[str]
PARTS = ("training", "training", "training", "validation", "test", "test")


class Workshop:
    """Scans, settings and a cache that the tests of this file share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plain = write_scans(folder / "scans", 6)
        rows = read_rows(self.plain)
        for number, row in enumerate(rows):
            row["split"] = PARTS[number // 2]
            row["sex"] = "F" if number % 3 else "M"
        self.split = write_rows(folder / "scans" / "split.csv", rows)
        self.config = folder / "settings.yaml"
        cache = json.dumps(str(folder / "cache"))
        self.config.write_text(f"{SETTINGS}data: {{cache: {cache}, validation_share: 0.3}}\n")

    def train(self, out: Path, *more: str, manifest: Path | None = None) -> int:
        return self.run("train", out, *more, manifest=manifest)

    def run(self, command: str, out: Path, *more: str, manifest: Path | None = None) -> int:
        scans = manifest or self.split
        given = [command, str(self.config), "--data", str(scans), "--out", str(out)]
        return main([*given, "--processes", "1", *more])

    def variant(self, name: str, rows: list[dict[str, str]]) -> Path:
        return write_rows(self.folder / "scans" / name, rows)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Path:
    folder = workshop.folder / "run"
    assert workshop.train(folder) == 0
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, where a test does not look at them."""
    monkeypatch.setattr("chestct.evaluation.report.draw_evaluation", lambda *_arguments: {})


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "classifier" / "weights.safetensors")


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_training_leaves_all_that_a_reader_needs(run: Path) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["seed"] == 3
    assert len(record["manifest"]["sha256"]) == 64
    assert record["settings"]["training"]["epochs"] == 2
    assert {"chestct", "torch", "python"} <= record["sessions"][0]["versions"].keys()
    assert "git" in record["sessions"][0]
    assert record["sessions"][0]["place"] == "cpu"
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_scans"] == 4
    assert metrics["cases"] == {"COVID-19": 2, "normal": 2}
    assert (run / "evaluation" / "learning_curves.png").stat().st_size > 1000
    assert json.loads((run / "check.json").read_text(encoding="utf-8"))["may_be_trained_on"]
    assert len((run / "training" / "log.jsonl").read_text().splitlines()) == 2
    assert len(list((run / "training" / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_the_card_says_what_it_was_trained_on_and_what_was_measured(run: Path) -> None:
    card = Card.read(run / "classifier")
    assert card.labels == LABELS
    assert card.trained_on.startswith("6 scans of 6 patients (3 COVID-19, 3 normal)")
    results = {result.measure: result for result in card.results}
    assert results["accuracy"].num_scans == 4
    assert "the test part" in results["accuracy"].scans
    assert {"sensitivity for COVID-19", "specificity for normal"} <= results.keys()
    assert 0.01 <= card.temperature <= 100


def test_what_age_sex_and_scanner_say_stands_in_the_same_table(run: Path) -> None:
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["others"].keys() == {"age, sex, scanner"}
    assert metrics["others"]["age, sex, scanner"]["num_scans"] == 4


def test_the_settings_of_a_run_can_be_trained_again(
    workshop: Workshop, run: Path, tmp_path: Path, quick: None
) -> None:
    again = tmp_path / "again"
    command = ["train", str(run / "settings.yaml"), "--data", str(workshop.split)]
    assert main([*command, "--out", str(again), "--processes", "1"]) == 0
    assert same(weights(run), weights(again))


def test_a_stopped_training_goes_on_to_the_same_weights(
    workshop: Workshop,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
    quick: None,
) -> None:
    show, seen = EpochLines.show, []

    def stop_after_the_first(lines: EpochLines, name: str, entry: EpochLog) -> None:
        show(lines, name, entry)
        seen.append(entry.epoch)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpochLines, "show", stop_after_the_first)
    out = tmp_path / "run"
    assert workshop.train(out) == 143
    assert "The same command goes on from there" in capsys.readouterr().err
    assert not (out / "classifier").exists()
    assert workshop.train(out) == 0
    assert seen == [0, 1]
    assert same(weights(run), weights(out))
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 2


def test_every_epoch_is_one_line_and_a_finished_run_is_left_alone(
    workshop: Workshop, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "run"
    assert workshop.train(out, "--set", "training.epochs=3") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  epoch " in line]
    assert len(lines) == 3
    assert all(word in lines[0] for word in ("epoch 1/3", "loss", "validation", "accuracy", "left"))
    written = (out / "classifier" / "weights.safetensors").stat().st_mtime_ns
    assert workshop.train(out, "--set", "training.epochs=3", "--set", "training.workers=1") == 0
    assert "finished before" in capsys.readouterr().out
    assert (out / "classifier" / "weights.safetensors").stat().st_mtime_ns == written
    assert workshop.train(out) == 2
    assert "training.epochs was 3, is 2" in capsys.readouterr().err
    assert workshop.train(out, "--set", "training.epochs=3", manifest=workshop.plain) == 2
    assert "on another manifest" in capsys.readouterr().err


def test_a_log_file_gets_plain_lines_as_they_come_and_nothing_else(
    workshop: Workshop, tmp_path: Path, capsys: Output, quick: None
) -> None:
    assert workshop.train(tmp_path / "run", "--set", "training.epochs=2") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert not {"\x1b", "\r", "\b"} & set(printed.out)
    lines = printed.out.splitlines()
    epochs = [number for number, line in enumerate(lines) if "  epoch " in line]
    assert [lines[number].split()[2] for number in epochs] == ["1/2", "2/2"]
    assert all(line.startswith(("! ", "run  epoch ")) for line in lines[: epochs[-1] + 1])


def test_a_run_begins_with_another_s_weights_and_only_its_head_learns(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "begun"
    frozen = ("--set", "training.freeze=[backbone]", "--set", "augmentation.name=none")
    assert workshop.train(out, "--start-from", str(run), *frozen) == 0
    said = f"Begun with the classifier '{run.name}', SHA-256 "
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert "learned from this very manifest" in printed
    card, given = Card.read(out / "classifier"), Card.read(run / "classifier")
    assert f"{said}{given.weights_sha256}" in card.trained_on
    assert "weights that it began with: Not stated" in card.licence
    before, after = weights(run), weights(out)
    learned = {name for name in before if not np.array_equal(before[name], after[name])}
    assert learned == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["pretrained_tensors"]["has_head"] is True
    assert record["settings"]["training"]["freeze"] == ["backbone"]


def test_weights_that_are_not_there_are_said_before_anything_is_done(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    gone = tmp_path / "gone: x.pth"
    assert workshop.train(tmp_path / "run", "--start-from", str(gone)) == 2
    assert f"'training.start_from': There is no weights file '{gone}'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "words"), [("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:99", "number 99")]
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_done(
    workshop: Workshop, tmp_path: Path, capsys: Output, device: str, words: str
) -> None:
    assert workshop.train(tmp_path / "run", "--device", device) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folds_are_pooled_side_by_side_and_resumed_one_by_one(
    workshop: Workshop, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "folds"
    folds = ("--folds", "2", "--set", "training.epochs=1")
    assert workshop.train(out, *folds, manifest=workshop.plain) == 0
    everyone = [row["scan"] for row in read_rows(workshop.plain)]
    pooled = read_rows(out / "predictions.csv")
    assert sorted(row["scan"] for row in pooled) == sorted(everyone)
    table = read_rows(out / "folds.csv")
    assert [row["fold"] for row in table] == ["fold 1", "fold 2", "mean", "standard deviation"]
    accuracies = [float(row["accuracy"]) for row in table]
    assert accuracies[2] == pytest.approx((accuracies[0] + accuracies[1]) / 2)
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert metrics["num_scans"] == 12
    assert set(metrics["sites"]) == {"east", "west"}
    first = (out / "fold-1" / "classifier" / "weights.safetensors").stat().st_mtime_ns
    (out / "fold-2" / "classifier" / "card.json").unlink()
    (out / "fold-2" / "classifier" / "weights.safetensors").unlink()
    capsys.readouterr()
    assert workshop.train(out, *folds, manifest=workshop.plain) == 0
    assert "fold 1 was finished before" in capsys.readouterr().out
    assert (out / "fold-1" / "classifier" / "weights.safetensors").stat().st_mtime_ns == first
    assert read_rows(out / "predictions.csv") == pooled


def test_folds_that_workers_train_are_those_of_one_after_the_other(
    workshop: Workshop,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    folds = ("--folds", "2", "--set", "training.epochs=1")
    for name, more in (("here", ()), ("there", ("--workers", "2"))):
        assert workshop.train(tmp_path / name, *folds, *more, manifest=workshop.plain) == 0
    here, there = tmp_path / "here", tmp_path / "there"
    pairs = zip(*(read_rows(each / "predictions.csv") for each in (here, there)), strict=True)
    for first_row, second_row in pairs:
        assert first_row["scan"] == second_row["scan"]
        for name in (f"probability_{label}" for label in LABELS):
            # Of as many threads as a worker has cores, sums are rounded otherwise.
            assert float(first_row[name]) == pytest.approx(float(second_row[name]), abs=1e-3)
    assert not (there / ".batch").exists()
    # As if one had been stopped: the other one stays, and this one is trained again.
    first = (there / "fold-1" / "classifier" / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(there / "fold-2" / "classifier")
    capsys.readouterr()
    more = ("--workers", "1")
    work_here(monkeypatch)
    assert workshop.train(there, *folds, *more, manifest=workshop.plain) == 0
    assert "fold 1 was finished before" in capsys.readouterr().out
    assert (there / "fold-1" / "classifier" / "weights.safetensors").stat().st_mtime_ns == first


def test_folds_that_are_interrupted_keep_their_state_and_go_on_at_once(
    workshop: Workshop, tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "run"
    said = ["train", str(workshop.config), "--data", str(workshop.plain), "--out", str(out)]
    said += ["--folds", "2", "--workers", "1", "--processes", "1"]
    # The state is written every few minutes, and where a run is stopped.
    said += ["--set", "training.epochs=6"]
    driver = subprocess.Popen([sys.executable, "-m", "chestct", *said])
    while driver.poll() is None and not list(out.glob("fold-*/training/log.jsonl")):
        time.sleep(0.1)
    # Not Ctrl-C's signal, which is switched off in whatever a script runs in the background.
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=100) == 143
    (begun,) = (log.parent for log in out.glob("fold-*/training/log.jsonl"))
    first = (begun / "log.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert (begun / "checkpoint.safetensors").is_file()
    started = time.monotonic()
    assert main(said) == 0
    assert time.monotonic() - started < LEASE_S
    assert (begun / "log.jsonl").read_text(encoding="utf-8").startswith(first)
    assert len((begun / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--workers", "2"), "Workers train folds or candidates, one each"),
        (("--folds", "2", "--executor", "slrum"), "Did you mean 'slurm'?"),
    ],
)
def test_workers_that_cannot_be_used_are_said_before_training(
    more: tuple[str, ...], words: str, workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    assert workshop.train(tmp_path / "run", *more, manifest=workshop.plain) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_scan_without_lungs_is_left_out_and_said(
    workshop: Workshop, tmp_path: Path, capsys: Output, quick: None
) -> None:
    write_empty_chest(workshop.folder / "scans" / "empty.nii.gz")
    rows = read_rows(workshop.split)
    empty = {**rows[0], "scan": "empty.nii.gz", "patient": "p99", "split": "test"}
    manifest = workshop.variant("with_empty.csv", [*rows, empty])
    out = tmp_path / "run"
    assert workshop.train(out, "--set", "training.epochs=1", manifest=manifest) == 0
    assert "Left out as unsuitable: row 14" in capsys.readouterr().out
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert metrics["excluded"].keys() == {"empty.nii.gz"}
    assert metrics["num_scans"] == 4


def test_a_patient_or_a_scan_on_two_sides_is_refused_before_training(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    rows = read_rows(workshop.split)
    shared = [{**row, "patient": "p00"} if row["patient"] == "p10" else row for row in rows]
    assert workshop.train(tmp_path / "a", manifest=workshop.variant("shared.csv", shared)) == 2
    assert "one patient" in capsys.readouterr().err
    source = workshop.folder / "scans" / rows[0]["scan"]
    (workshop.folder / "scans" / "copy.nii.gz").write_bytes(source.read_bytes())
    copied = [*rows, {**rows[0], "scan": "copy.nii.gz", "patient": "p77", "split": "test"}]
    assert workshop.train(tmp_path / "b", manifest=workshop.variant("copied.csv", copied)) == 2
    assert "hold the same pixels" in capsys.readouterr().err
    assert not (tmp_path / "b" / "training").exists()


def test_the_same_pixels_under_two_patients_are_refused_with_folds_too(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    rows = read_rows(workshop.plain)
    source = workshop.folder / "scans" / rows[0]["scan"]
    (workshop.folder / "scans" / "twin.nii.gz").write_bytes(source.read_bytes())
    twins = [*rows, {**rows[0], "scan": "twin.nii.gz", "patient": "p77"}]
    twins = [{**row, "fold": str(1 + number // 2 % 2)} for number, row in enumerate(twins)]
    twins[-1]["fold"] = twins[0]["fold"]
    manifest = workshop.variant("twins.csv", twins)
    more = ("--set", "data.validation_share=0.4", "--set", "data.split_seed=5")
    assert workshop.train(tmp_path / "run", "--folds", "2", *more, manifest=manifest) == 2
    assert "hold the same pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "COVID19"}, "row 2: There is no label 'COVID19'. Did you mean 'COVID-19'"),
        ({"scan": "gone.nii.gz"}, "row 2: gone.nii.gz"),
        ({"patient": ""}, "row 2: the column 'patient' is empty"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"split": ""}, "row 2 have neither split nor fold"),
    ],
    ids=str,
)
def test_a_wrong_row_is_named_before_anything_starts(
    workshop: Workshop, tmp_path: Path, change: dict[str, str], words: str, capsys: Output
) -> None:
    rows = read_rows(workshop.split)
    manifest = workshop.variant("wrong.csv", [{**rows[0], **change}, *rows[1:]])
    assert workshop.train(tmp_path / "run", manifest=manifest) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_class_too_many_folds_and_other_folders_are_refused(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    rows = read_rows(workshop.plain)
    single = workshop.variant("single.csv", [row for row in rows if row["label"] == "normal"])
    assert workshop.train(tmp_path / "run", manifest=single) == 2
    assert "needs at least two classes" in capsys.readouterr().err
    assert workshop.train(tmp_path / "run", "--folds", "7", manifest=workshop.plain) == 2
    assert "7 folds need at least 7" in capsys.readouterr().err
    given = workshop.variant(
        "folds.csv", [{**row, "fold": str(1 + n // 2 % 3)} for n, row in enumerate(rows)]
    )
    assert workshop.train(tmp_path / "run", "--folds", "2", manifest=given) == 2
    assert "has 3 folds and 2 were asked for" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("chapter one")
    assert workshop.train(tmp_path) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err


def test_a_wrong_setting_is_named_with_the_nearest_right_one(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    assert workshop.train(tmp_path / "run", "--set", "training.epoch=5") == 2
    assert "Did you mean 'training.epochs'" in capsys.readouterr().err


def test_evaluating_gives_the_probabilities_that_training_gave(
    workshop: Workshop, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "evaluation"
    command = ["evaluate", str(run / "classifier"), str(workshop.split), "--out", str(out)]
    more = ["--split", "test", "--engine", "torch", "--processes", "1"]
    assert main([*command, *more]) == 0
    found, expected = read_rows(out / "predictions.csv"), read_rows(run / "predictions.csv")
    assert [row["scan"] for row in found] == [row["scan"] for row in expected]
    for name in (f"probability_{label}" for label in LABELS):
        np.testing.assert_allclose(
            [float(row[name]) for row in found], [float(row[name]) for row in expected], atol=1e-6
        )
    assert json.loads((out / "metrics.json").read_text())["num_scans"] == 4


def test_scans_shared_out_among_workers_give_the_files_of_one_process(
    workshop: Workshop,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
    quick: None,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work_here(monkeypatch)
    classifier = str(run / "classifier")
    other = shutil.copytree(run / "classifier", tmp_path / "other")
    command = ["evaluate", classifier, str(workshop.split), "--split", "test", "--processes", "1"]
    command += ["--engine", "torch", "--also", f"B={other}", "--also", f"C={other}"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main([*command, "--out", str(here)]) == 0
    assert main([*command, "--out", str(there), "--workers", "1"]) == 0
    first, second = (
        {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.[cjm]*")}
        for out in (here, there)
    )
    assert "others/B/predictions.csv" in first
    assert second == first
    assert not list(there.rglob(".batch"))
    compared = json.loads(first["metrics.json"])["comparisons"]
    assert {"B", "C"} <= set(compared)
    assert main([*command, "--also", f"a/b={other}", "--out", str(here)]) == 2
    assert "--also 'a/b'" in capsys.readouterr().err


def test_scans_without_an_answer_are_listed_and_none_at_all_is_an_error(
    workshop: Workshop,
    run: Path,
    tmp_path: Path,
    capsys: Output,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work_here(monkeypatch)
    (workshop.folder / "scans" / "torn.nii.gz").write_bytes(b"torn")
    write_empty_chest(workshop.folder / "scans" / "lungless.nii.gz")
    rows = read_rows(workshop.split)[:2]
    bad = [
        {**rows[0], "scan": "torn.nii.gz", "patient": "p70"},
        {**rows[0], "scan": "lungless.nii.gz", "patient": "p71"},
    ]
    manifest = workshop.variant("some_bad.csv", [*rows, *bad])
    command = ["evaluate", str(run / "classifier"), "--engine", "torch", "--processes", "1"]
    out = tmp_path / "evaluation"
    assert main([*command, str(manifest), "--out", str(out)]) == 0
    excluded = json.loads((out / "metrics.json").read_text())["excluded"]
    assert excluded.keys() == {"torn.nii.gz", "lungless.nii.gz"}
    assert excluded["lungless.nii.gz"].startswith("unsuitable")
    assert "No decision on torn.nii.gz" in capsys.readouterr().out
    shared = tmp_path / "shared"
    assert main([*command, str(manifest), "--out", str(shared), "--workers", "1"]) == 0
    assert (shared / "metrics.json").read_text() == (out / "metrics.json").read_text()
    only_bad = workshop.variant("only_bad.csv", bad)
    assert main([*command, str(only_bad), "--out", str(tmp_path / "none")]) == 2
    assert "None of the 2 scans" in capsys.readouterr().err


def test_an_unknown_split_is_refused(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["evaluate", str(run / "classifier"), str(workshop.split), "--out", str(tmp_path)]
    assert main([*command, "--split", "tests", "--engine", "torch"]) == 2
    assert "Did you mean 'test'" in capsys.readouterr().err


def test_a_range_test_writes_a_curve_and_suggests_a_rate(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "range"
    settings = {
        "training.batch_norm_warm_up": "true",
        # Batches of other scans each make a curve of chance.
        "training.batch_size": 6,
        "augmentation.name": "none",
        "network.settings": "{width: 4, head_units: 16, dropout: 0.0}",
    }
    more = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert workshop.run("lr-range", out, "--steps", "12", *more) == 0
    printed = capsys.readouterr().out
    assert "The quick range test leaves out training.batch_norm_warm_up" in printed
    assert "Suggested learning rate" in printed
    assert "Rule: 1/10 of the rate at which the smoothed loss is lowest, or" in printed
    rows = read_rows(out / "lr_range.csv")
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-8)
    assert (out / "lr_range.png").is_file()


def test_the_paper_s_range_test_rises_tenfold_in_twenty_epochs(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "range"
    assert workshop.run("lr-range", out, "--epochs", "3") == 0
    rates = [float(row["learning_rate"]) for row in read_rows(out / "lr_range.csv")]
    assert rates == pytest.approx([1e-8 * 10 ** (epoch / 20) for epoch in range(3)])
    assert capsys.readouterr().out.count("range  epoch") == 3


def test_steps_of_one_range_test_and_epochs_of_the_other_are_refused_together(
    workshop: Workshop, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "range"
    assert workshop.run("lr-range", out, "--steps", "12", "--epochs", "3") == 2
    assert "--steps 12 is for the quick range test and --epochs 3" in capsys.readouterr().err
    assert not out.exists()


def test_variants_of_the_papers_recipe_are_made_for_training_scans_only(
    workshop: Workshop, tmp_path: Path, capsys: Output, quick: None
) -> None:
    settings = {
        "training.epochs": 1,
        "data.variants": 2,
        "recipe.name": "roi_resnet_published",
        "recipe.overrides": "{input_shape: [32, 32, 32]}",
        "augmentation.name": "roi_resnet_published",
    }
    more = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert workshop.train(tmp_path / "run", *more) == 0
    printed = capsys.readouterr().out
    assert "Prepared 12 inputs" in printed
    assert "Prepared 6 variants" in printed


def test_durations_are_said_as_a_person_would() -> None:
    assert [_in_words(s) for s in (4.21, 720, 11160)] == ["4.2 s", "12 min", "3.1 h"]


def test_a_training_learns_what_there_is_to_learn(
    workshop: Workshop, tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "run"
    settings = {
        "training.epochs": 30,
        "training.batch_size": 3,
        "training.learning_rate": 0.01,
        "augmentation.name": "none",
        "network.settings": "{width: 4, head_units: 16, dropout: 0.0}",
    }
    more = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert workshop.train(out, *more) == 0
    rows = read_rows(out / "predictions.csv")
    assert [float(row[f"probability_{row['label']}"]) > 0.5 for row in rows] == [True] * 4


def evaluated(run: Path, manifest: Path, out: Path, *more: str) -> int:
    command = ["evaluate", str(run / "classifier"), str(manifest), "--out", str(out)]
    return main([*command, "--engine", "torch", "--processes", "1", *more])


def metrics_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return record


def test_evaluating_puts_age_sex_and_scanner_beside_and_says_how(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "evaluation"
    assert evaluated(run, workshop.split, out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    record = metrics_of(out)
    assert record["others"]["age, sex, scanner"]["num_scans"] == 12
    assert {row["test"] for row in record["comparisons"]["age, sex, scanner"]} == {*SOUND}
    assert any("cross-validated on these very scans" in each for each in record["warnings"])
    assert "cross-validated on these very scans (5 folds by patient)" in printed
    assert len(read_rows(out / "baseline.csv")) == 12


def test_scans_that_a_classifier_has_seen_are_named(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    # The run's own record says so, whatever the manifest calls its scans or leaves out.
    assert evaluated(run, workshop.plain, tmp_path / "all") == 0
    learned, watched = metrics_of(tmp_path / "all")["warnings"][-3:-1]
    assert "has seen 6 of these 12 scans (rows 2, 3, 4, 5, 6 and 1 more)" in learned
    assert "scans.csv, it learned from them, and the figures are too good" in learned
    assert "has seen 2 of these 12 scans" in watched
    assert "likely too good" in watched
    assert " ".join(capsys.readouterr().out.split()).count("it learned from them") == 2
    assert evaluated(run, workshop.plain, tmp_path / "test", "--split", "test") == 0
    assert metrics_of(tmp_path / "test")["num_scans"] == 4
    assert "has seen" not in " ".join(metrics_of(tmp_path / "test")["warnings"])


def test_without_a_record_the_manifest_says_what_was_learned_from(
    workshop: Workshop, run: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "classifier"
    shutil.copytree(run / "classifier", alone)
    (said, _) = _seen_before(alone, read_manifest(workshop.split))
    assert "has seen 6 of these 12 scans" in said
    assert "by the manifest's column 'split' it learned from them" in said
    assert _seen_before(alone, read_manifest(workshop.plain)) == ()


def test_an_evaluation_never_replaces_what_a_training_wrote(
    workshop: Workshop, run: Path, capsys: Output
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for place in (run, run / "evaluation", run / "classifier", run / "training"):
        assert evaluated(run, workshop.split, place) == 2
        assert "Choose another folder" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_groups_reports_and_checklists_stand_in_an_evaluation(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    rows = read_rows(workshop.split)
    for number, row in enumerate(rows):
        row |= {"age": str(30 + 5 * number), "ward": "A" if number % 2 else "B"}
        report = tmp_path / "answers" / row["scan"].removesuffix(".nii.gz") / "report.html"
        report.parent.mkdir(parents=True)
        report.write_text("")
    manifest = workshop.variant("wards.csv", rows)
    more = ["--by", "ward", "--reports", str(tmp_path / "answers")]
    more += ["--checklist", "claim", "--checklist", "tripod-ai"]
    assert evaluated(run, manifest, tmp_path / "e", *more) == 0
    groups = metrics_of(tmp_path / "e")["groups"]
    assert groups.keys() == {"age", "sex", "ward"}
    assert {name: each["num_scans"] for name, each in groups["age"].items()} == {
        "18 to 40": 2, "40 to 65": 5, "65 and over": 5,
    }  # fmt: skip
    wrong = read_predictions(tmp_path / "e" / "predictions.csv")
    scan = wrong.scans[wrong.wrong_rows[0]].removesuffix(".nii.gz")
    page = (tmp_path / "e" / "evaluation.html").read_text(encoding="utf-8")
    assert f'<a href="../answers/{scan}/report.html">' in page
    claim = (tmp_path / "e" / "checklist_claim.md").read_text(encoding="utf-8")
    items = [line.split(" | ")[0] for line in claim.splitlines() if line.startswith("| ")][2:]
    assert items == [f"| {number}" for number in range(1, 45)]
    assert "epochs 2; batch_size 4" in claim
    assert "6 training, 2 validation, 4 test" in claim
    assert "**for the author**" in claim
    tripod = (tmp_path / "e" / "checklist_tripod-ai.md").read_text(encoding="utf-8")
    assert "| 27c | Usability of the model in the context of current care |" in tripod
    assert len(tripod.splitlines()) == len(claim.splitlines()) + 52 - 44
    capsys.readouterr()
    for wrong_option in (["--by", "wards"], ["--checklist", "clam"]):
        assert evaluated(run, manifest, tmp_path / "none", *wrong_option) == 2
        assert "Did you mean" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_training_keeps_what_tells_how_familiar_a_scan_is(run: Path) -> None:
    card = Card.read(run / "classifier")
    assert card.familiarity is not None
    assert card.familiarity.num_scans == 2
    assert (run / "classifier" / "familiarity.safetensors").is_file()


def test_scans_of_another_kind_are_told_by_their_distance(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(-300, 400, (24, 40, 40)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(noise, np.diag([6, 6, 6, 1])), others / f"{number}.nii.gz")
    (others / "broken.nii.gz").write_bytes(b"no scan")
    assert evaluated(run, workshop.split, tmp_path / "e", "--unlike", str(others)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"AUROC of the distance [01]\.\d{3}; caught at .* [0-2] of 2", printed)
    assert re.search(r"of the manifest's scans \d+ of 12 lie beyond it", printed)
    assert "broken.nii.gz was left out" in printed


def test_a_classifier_without_distances_cannot_be_asked_about_unlike_scans(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    old = tmp_path / "run" / "classifier"
    shutil.copytree(run / "classifier", old)
    card = json.loads((old / "card.json").read_text(encoding="utf-8"))
    (old / "card.json").write_text(json.dumps({**card, "familiarity": None}), encoding="utf-8")
    (old / "familiarity.safetensors").unlink()
    unlike = ("--unlike", str(workshop.folder / "scans"))
    assert evaluated(old.parent, workshop.split, tmp_path / "e", *unlike) == 2
    assert "cannot tell unlike scans" in " ".join(capsys.readouterr().err.split())


def test_evaluating_scans_of_which_nothing_is_known_says_so_in_one_line(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    assert evaluated(run, workshop.plain, tmp_path / "e") == 0
    printed = capsys.readouterr().out
    assert printed.count("No baseline of age, sex, scanner stands beside the classifier") == 1
    assert metrics_of(tmp_path / "e")["others"] == {}
    assert not (tmp_path / "e" / "baseline.csv").exists()


def test_another_classifier_is_compared_with_by_every_test(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    other = workshop.folder / "other.csv"
    rows = read_rows(workshop.split)
    shares = [("0.7", "0.3") if number % 3 else ("0.2", "0.8") for number in range(len(rows))]
    write_rows(
        other,
        [
            {
                **{name: row[name] for name in ("scan", "patient", "label")},
                **dict(zip((f"probability_{label}" for label in LABELS), share, strict=True)),
            }
            for row, share in zip(rows, shares, strict=True)
        ],
    )
    beside = ("--beside", f"guess={other}")
    assert evaluated(run, workshop.split, tmp_path / "sound", *beside) == 0
    assert "maseres_z" not in capsys.readouterr().out
    tests = metrics_of(tmp_path / "sound")["comparisons"]["guess"]
    assert {row["test"] for row in tests} == {*SOUND}
    assert evaluated(run, workshop.split, tmp_path / "e", *beside, "--maseres-z") == 0
    printed = " ".join(capsys.readouterr().out.split())
    record = metrics_of(tmp_path / "e")
    assert {row["test"] for row in record["comparisons"]["guess"]} == {*COMPARISONS}
    assert record["others"]["guess"]["num_scans"] == 12
    assert "| guess | mcnemar |" in (tmp_path / "e" / "tables.md").read_text(encoding="utf-8")
    assert all(f"guess {test}" in printed for test in COMPARISONS if test != "patient_bootstrap")
    assert all(defect in printed for defect in MASERES_Z_DEFECTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scan": "elsewhere.nii.gz"}, "'elsewhere.nii.gz' (1 in all) was judged by one"),
        ({"label": "normal"}, "is COVID-19 in one file and normal in the other"),
    ],
    ids=["scan", "label"],
)
def test_predictions_that_do_not_fit_are_refused_before_anything_is_classified(
    workshop: Workshop,
    run: Path,
    tmp_path: Path,
    change: dict[str, str],
    words: str,
    capsys: Output,
) -> None:
    rows = read_rows(run / "predictions.csv")
    wrong = write_rows(tmp_path / "wrong.csv", [{**rows[0], **change}, *rows[1:]])
    beside = ("--split", "test", "--beside", f"other={wrong}")
    assert evaluated(run, workshop.split, tmp_path / "e", *beside) == 2
    said = capsys.readouterr().err
    assert "wrong.csv ('other') cannot stand beside split.csv" in said
    assert words in " ".join(said.split())
    assert "valuate both on one manifest" in " ".join(said.split())
    assert not (tmp_path / "e").exists()


def test_predictions_of_too_few_scans_and_taken_names_are_refused_before_classifying(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output
) -> None:
    few = run / "predictions.csv"
    assert evaluated(run, workshop.split, tmp_path / "e", "--beside", f"other={few}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "predictions.csv ('other') cannot stand beside split.csv" in said
    assert "no prediction of 8 of the 12 scans: 'scan00.nii.gz', 'scan01.nii.gz', " in said
    assert "and 5 more. Evaluate both on one manifest, name the --split" in said
    taken = ("--split", "test", "--beside", f"age, sex, scanner={few}")
    assert evaluated(run, workshop.split, tmp_path / "e", *taken) == 2
    assert "Another classifier has this name" in capsys.readouterr().err
    twice = ("--beside", f"a={few}", "--beside", f"a={few}")
    assert evaluated(run, workshop.split, tmp_path / "e", *twice) == 2
    assert "--beside names 'a' twice" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def guessed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Predictions of a classifier that says the same of every scan."""
    shares = dict(zip((f"probability_{label}" for label in LABELS), ("0.7", "0.3"), strict=True))
    return [{name: row[name] for name in ("scan", "patient", "label")} | shares for row in rows]


def test_two_classifiers_with_different_exclusions_are_compared_on_the_scans_of_both(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    write_empty_chest(workshop.folder / "scans" / "lungless.nii.gz")
    rows = read_rows(workshop.split)[:6]
    rows.append({**rows[0], "scan": "lungless.nii.gz", "patient": "p71"})
    manifest = workshop.variant("one_bad.csv", rows)
    other = write_rows(tmp_path / "predictions.csv", guessed([*rows[:3], *rows[4:]]))
    beside = ("--beside", f"guess={other}")
    assert evaluated(run, manifest, tmp_path / "e", *beside) == 2
    assert "no prediction of 1 of the 7 scans: 'scan03.nii.gz'" in capsys.readouterr().err
    record = {"schema": "chestct.evaluation", "num_scans": 6, "excluded": {"scan03.nii.gz": "?"}}
    other.with_name("metrics.json").write_text(json.dumps(record))
    assert evaluated(run, manifest, tmp_path / "e", *beside) == 0
    said = "'guess' is compared on the 5 scans that both decided on; decided on by 'run' only: 1"
    assert said in " ".join(capsys.readouterr().out.split())
    found = metrics_of(tmp_path / "e")
    assert found["num_scans"] == 6
    assert found["others"]["guess"]["num_scans"] == 5
    assert {row["test"] for row in found["comparisons"]["guess"]} == {*SOUND}


def test_too_small_a_validation_part_stores_no_threshold_and_is_said(run: Path) -> None:
    assert Card.read(run / "classifier").abstention is None
    warnings = metrics_of(run / "evaluation")["warnings"]
    assert any("2 scans promise nothing" in warning for warning in warnings)


def test_a_stored_threshold_is_reported_by_the_training_and_by_evaluating(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: Output, quick: None
) -> None:
    out = tmp_path / "run"
    assert workshop.train(out, "--set", "abstention.wished_error=0.999") == 0
    kept = Card.read(out / "classifier").abstention
    assert kept is not None
    assert (kept.num_scans, kept.wished_error) == (2, 0.999)
    by_training = metrics_of(out / "evaluation")["at_threshold"]
    assert by_training["threshold"] == kept.abstain_below
    capsys.readouterr()
    assert evaluated(out, workshop.split, tmp_path / "e", "--split", "test") == 0
    found = metrics_of(tmp_path / "e")["at_threshold"]
    assert found["coverage"]["hits"] == by_training["coverage"]["hits"]
    assert "At the classifier's own threshold" in capsys.readouterr().out

"""Several processes train as one would: two of them on the CPU, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_scans import SETTINGS, read_rows, write_rows, write_scans
from safetensors.torch import load_file
from together import CASES, main

from chestct.errors import TrainingError
from chestct.training.distributed import Ranks, launched_ranks

PARTS = ("training", "training", "validation", "test")
PROGRAM = Path(__file__).with_name("together.py")


def commands(folder: Path) -> dict[str, list[str]]:
    """A training from manifest to classifier, and one with a setting that does not exist."""
    manifest = write_scans(folder / "scans", 4)
    rows = [row | {"split": PARTS[i // 2]} for i, row in enumerate(read_rows(manifest))]
    write_rows(manifest, rows)
    config = folder / "settings.yaml"
    cache = json.dumps(str(folder / "cache"))
    config.write_text(f"{SETTINGS}data: {{cache: {cache}}}\n")
    given = ["train", str(config), "--data", str(manifest), "--processes", "1", "--device", "cpu"]
    given += ["--set", "training.epochs=1", "--out"]
    return {
        "command": [*given, str(folder / "run")],
        "wrong command": [*given, str(folder / "wrong"), "--set", "training.epoch=1"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes have done all of `together.py` here, and one process beside them."""
    made = tmp_path_factory.mktemp("together")
    (made / "alone").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(PROGRAM), str(made), json.dumps(commands(made))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        main(made / "alone", {})
    return made


def seen(folder: Path, who: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"seen-{who}.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_are_those_of_one(folder: Path, case: str) -> None:
    first, second = (load_file(folder / f"{case}-{rank}.safetensors") for rank in (0, 1))
    alone = load_file(folder / "alone" / f"{case}-alone.safetensors")
    assert first.keys() == alone.keys()
    assert len(alone) == 4 * 2 * (3 if case == "plain" else 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=0)
    assert max(float(value.abs().max()) for value in alone.values()) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_losses_and_metrics_are_those_of_one_process_and_the_same_in_both(
    folder: Path, case: str
) -> None:
    first, second = (seen(folder, who)[case] for who in ("0", "1"))
    alone = seen(folder / "alone", "alone")[case]
    assert first == second
    for together, one in zip(first, alone, strict=True):
        for name in ("training_loss", "validation_loss", "validation_accuracy"):
            assert together[name] == pytest.approx(one[name], abs=1e-5)


def test_outputs_of_all_examples_come_back_in_their_order_in_every_process(folder: Path) -> None:
    alone = seen(folder / "alone", "alone")
    for who in ("0", "1"):
        logits, labels = seen(folder, who)["outputs"]
        assert labels == alone["outputs"][1] == [0, 1, 0, 1, 0]
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(alone["outputs"][0]))
        assert seen(folder, who)["one example"] == alone["one example"]


def test_a_signal_to_one_process_stops_both_at_a_step_that_the_run_goes_on_from(
    folder: Path,
) -> None:
    (first,), (second,) = (seen(folder, who)["said when stopped"] for who in ("0", "1"))
    assert first.startswith("TrainingError: Training was stopped")
    assert second.startswith("OtherProcessError")
    stopped, whole = (
        load_file(folder / name / "checkpoint.safetensors") for name in ("stopped", "whole")
    )
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_only_the_first_process_tells_what_is_wrong(folder: Path) -> None:
    assert seen(folder, "0")["told"] == "ChestCTError: as it should"
    assert seen(folder, "1")["told"].startswith("OtherProcessError")
    first, second = (seen(folder, who)["wrong command"] for who in ("0", "1"))
    assert (first["status"], second["status"]) == (2, 2)
    assert "no setting 'training.epoch'" in first["err"]
    assert second["err"] == ""


def test_what_the_first_process_has_reaches_the_others(folder: Path) -> None:
    assert [seen(folder, who)["shared"] for who in "01"] == [{"näme": [0, 0.1, None]}] * 2
    assert [seen(folder, who)["on main"] for who in "01"] == ["here", None]


def test_the_command_trains_to_a_classifier_and_only_the_first_process_prints(
    folder: Path,
) -> None:
    first, second = (seen(folder, who)["command"] for who in ("0", "1"))
    assert (first["status"], second["status"]) == (0, 0)
    assert "epoch 1/1" in first["out"]
    assert (second["out"], second["err"]) == ("", "")
    assert (folder / "run" / "classifier" / "card.json").is_file()
    assert len(read_rows(folder / "run" / "predictions.csv")) == 2
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["sessions"][0]["place"] == "cpu, 2 processes"


def test_a_process_whose_partner_is_gone_says_so(folder: Path) -> None:
    assert (folder / "lost.txt").read_text() == (
        "OtherProcessError: Another process of this training ended."
    )


def test_without_torchrun_a_process_is_alone() -> None:
    assert launched_ranks({}) == Ranks()
    assert launched_ranks({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Ranks(3, 8, 1, 8)
    with pytest.raises(TrainingError, match=r"RANK=x.*torchrun"):
        launched_ranks({"RANK": "x", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})

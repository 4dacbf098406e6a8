from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import chestct
from chestct.evaluation.figures import read_log
from chestct.evaluation.predictions import PredictionsError


def test_epochs_are_read_in_order_and_a_line_cut_short_at_the_end_is_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"epoch": epoch}) + "\n" for epoch in range(3)) + '{"epo')
    assert read_log(path) == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]


def test_the_training_loop_logs_the_fields_that_are_drawn() -> None:
    # Read, not imported: the loop brings torch, and these tests need nothing else of it.
    sources = (Path(chestct.__file__).parent / "training").glob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    (epoch_log,) = [each for each in classes if each.name == "EpochLog"]
    fields = {
        each.target.id
        for each in epoch_log.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    assert {"epoch", "training_loss", "validation_loss", "validation_accuracy"} <= fields


@pytest.mark.parametrize("text", ['{"epo\n{"epoch": 1}\n', "[1]\n", '{"loss": 1}\n'])
def test_a_damaged_log_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(PredictionsError, match=r"Line 1 of log.jsonl is not an epoch"):
        read_log(path)


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=r"log.jsonl could not be read"):
        read_log(tmp_path / "log.jsonl")

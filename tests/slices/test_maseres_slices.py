"""The table of slice networks; three of them stand in for the six."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from here import work_here

from chestct.cli import main
from chestct.evaluation.intervals import Bootstrap, estimate_figures
from chestct.studies.compare_with_paper import compare_with_paper

Output = pytest.CaptureFixture[str]
SETTINGS = """
labels: [COVID-19, normal]
network:
  name: {network}
  weights: imagenet
  settings: {{head: published, size: 64, scaling: published}}
pictures: {{interpolation: nearest, keeps_shape: false}}
data: {{test_share: 0.2, validation_share: 0.2, cache: {cache}}}
augmentation: {{name: none}}
training: {{epochs: 1, batch_size: 16, learning_rate: 0.01, schedule: constant, seed: 2}}
"""
RunTable = Callable[..., int]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    cache = json.dumps(str(folder / "cache"))
    for network in ("vgg19", "mobilenet_v2", "densenet169"):
        text = SETTINGS.format(network=network, cache=cache)
        (folder / f"{network}_published.yaml").write_text(text)
    return folder


@pytest.fixture
def run_table(configs: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> RunTable:
    monkeypatch.setattr(
        "chestct.studies.study_rows.estimate_figures",
        lambda predictions, _bootstrap: estimate_figures(predictions, Bootstrap(20)),
    )

    def run(out: Path, *more: str) -> int:
        command = ["study", "maseres-slices", str(table), "--out", str(out), "--device", "cpu"]
        return main([*command, "--configs", str(configs), "--processes", "1", *more])

    return run


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_table_of_slices_is_trained_once_and_has_its_patients_beside(
    run_table: RunTable, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "table"
    given = ("--only", "densenet169,mobilenet_v2", "--weights", "none", "--edge", "32")
    given = (*given, "--set", "data.split=slice_random_leaky")
    assert run_table(out, *given) == 0
    shown = capsys.readouterr().out
    assert shown.index("Row mobilenet_v2") < shown.index("Row densenet169")
    assert "densenet169  epoch 1/1" in shown
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "Every row judged 6 slices of" in page
    assert "patients are shared between training and test" in page
    assert "Backbones with random weights" in page
    assert "inputs of 32 along each side, data.split=slice_random_leaky" in page
    assert "## By patient: the mean of a patient's slices" in page
    accuracies = [
        (line["network"], line["source"], line["total"])
        for line in read(out / "table.csv") if line["figure"] == "accuracy"
    ]  # fmt: skip
    assert accuracies == [
        ("mobilenet_v2", "printed", ""), ("mobilenet_v2", "recomputed", "966"),
        ("mobilenet_v2", "this run", "6"),
        ("densenet169", "printed", ""), ("densenet169", "recomputed", "966"),
        ("densenet169", "this run", "6"),
    ]  # fmt: skip
    tests = [line for line in read(out / "tests.csv") if line["test"] == "mcnemar"]
    assert [line["level"] for line in tests] == ["", "patients"]
    weights = out / "rows" / "densenet169" / "classifier" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_table(out, *given) == 0
    assert "Row " not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    found = compare_with_paper(out, Bootstrap(20))
    assert {each.place for each in found} == {
        "slice level, DenseNet169 on 966 slices",
        "slice level, MobileNetV2 on 966 slices",
    }


def test_weights_come_from_a_folder_with_a_file_per_network_for_workers_too(
    run_table: RunTable,
    tmp_path: Path,
    weights: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(weights, folder / "mobilenet_v2.safetensors")
    out = tmp_path / "table"
    given = ("--weights", str(folder))
    assert run_table(out, "--only", "mobilenet_v2,densenet169", *given) == 2
    assert "densenet169.safetensors" in capsys.readouterr().err
    assert not out.exists()
    work_here(monkeypatch)
    assert run_table(out, "--only", "mobilenet_v2", *given, "--workers", "1") == 0
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "random weights" not in page
    assert "Divided by patient." in page
    card = json.loads((out / "rows/mobilenet_v2/classifier/slice_card.json").read_text())
    assert "SHA-256" in card["backbone_weights"]

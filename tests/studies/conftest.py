"""Drawn scans, settings and a cache that the tests of studies share."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from drawn_scans import read_rows, write_rows, write_scans

from chestct.evaluation.intervals import Bootstrap, estimate_figures
from chestct.evaluation.report import EvaluationSettings

PARTS = ("training", "training", "training", "validation", "test", "test")
SETTINGS = """
labels: [COVID-19, normal]
network: {name: roi_resnet18, settings: {width: 2, head_units: 4}}
recipe:
  name: roi_resnet_recommended
  overrides: {input_shape: [32, 32, 32], spacing_mm: [12.0, 12.0, 12.0], lungs: published}
augmentation: {name: none}
training: {epochs: 1, batch_size: 3, learning_rate: 0.003, seed: 3}
"""


@dataclass(frozen=True)
class Workshop:
    folder: Path
    manifest: Path
    config: Path

    def rows(self, path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8") as stream:
            return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("studies")
    plain = write_scans(folder / "scans", 6)
    rows = read_rows(plain)
    for number, row in enumerate(rows):
        row["split"] = PARTS[number // 2]
    split = write_rows(folder / "scans" / "split.csv", rows)
    config = folder / "settings.yaml"
    cache = json.dumps(str(folder / "cache"))
    config.write_text(f"{SETTINGS}data: {{cache: {cache}, validation_share: 0.3}}\n")
    return Workshop(folder, split, config)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws, and no figures of single evaluations, which the tests here do not look at."""
    few = Bootstrap(20)
    monkeypatch.setattr("chestct.evaluation.report.draw_evaluation", lambda *_arguments: {})
    settings = partial(EvaluationSettings, bootstrap=few)
    monkeypatch.setattr("chestct.training.session.EvaluationSettings", settings)
    monkeypatch.setattr(
        "chestct.studies.study_rows.estimate_figures",
        lambda predictions, bootstrap: estimate_figures(predictions, bootstrap or few),
    )

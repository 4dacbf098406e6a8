from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn_scans import read_rows, write_rows, write_scans

from chestct.cli import main
from chestct.datasets.manifest import read_manifest
from chestct.datasets.splits import maseres_paper
from chestct.errors import ChestCTError
from chestct.evaluation.intervals import Bootstrap
from chestct.studies.compare_with_paper import compare_with_paper
from chestct.studies.maseres import (
    Chosen,
    run_patients,
    split_in_words,
)
from chestct.studies.study_rows import SPLIT_FILE, Row
from chestct.training.plan import Plan, in_precision
from chestct.training.session import TrainAll

Output = pytest.CaptureFixture[str]
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"maseres": (14, "{}"), "alexnet3d": (35, "{dense_units: 4}")}
SETTINGS = """
labels: [COVID-19, normal]
network: {{name: {network}, settings: {settings}}}
recipe:
  name: maseres_{form}
  overrides: {{input_shape: [{edge}, {edge}, {edge}], lungs: published}}
data: {{cache: {cache}, validation_share: 0.3}}
augmentation: {{name: none}}
training: {{epochs: 1, batch_size: 3, learning_rate: 0.001, seed: 3}}
"""
RunTable = Callable[..., int]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of two of the three networks, small enough for a test, in both forms."""
    folder = tmp_path_factory.mktemp("configs")
    for form in ("published", "paper"):
        for network, (edge, settings) in SMALL.items():
            text = SETTINGS.format(
                network=network, settings=settings, form=form, edge=edge,
                cache=json.dumps(str(folder / "cache")),
            )  # fmt: skip
            (folder / f"{network}_{form}.yaml").write_text(text)
    return folder


@pytest.fixture
def run_table(workshop: Any, configs: Path) -> RunTable:
    def run(out: Path, *more: str, manifest: Path | None = None) -> int:
        scans = str(manifest or workshop.manifest)
        command = ["study", "maseres-patients", scans, "--out", str(out), "--device", "cpu"]
        command += ["--configs", str(configs), "--only", "alexnet3d,maseres", "--processes", "1"]
        return main([*command, *more])

    return run


def test_the_table_is_trained_once_and_written_beside_the_papers_figures(
    run_table: RunTable, tmp_path: Path, workshop: Any, capsys: Output, quick: None
) -> None:
    out = tmp_path / "table"
    assert run_table(out) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("Row ")] == [
        "Row maseres",
        "Row alexnet3d",
    ]
    assert "alexnet3d  epoch 1/1" in printed
    assert "Not a medical device" in printed
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "Every row judged 4 scans of 4 patients: 2 COVID-19, 2 normal." in page
    assert "Divided by the manifest's own column 'split'.\n" in page
    assert "Settings: the form 'published'." in page
    assert "Not as in the settings files" not in page
    lines = workshop.rows(out / "table.csv")
    accuracies = [
        (line["network"], line["source"], line["total"])
        for line in lines if line["figure"] == "accuracy"
    ]  # fmt: skip
    assert accuracies == [
        ("maseres", "printed", ""), ("maseres", "recomputed", "21"), ("maseres", "this run", "4"),
        ("alexnet3d", "printed", ""), ("alexnet3d", "recomputed", "21"),
        ("alexnet3d", "this run", "4"),
    ]  # fmt: skip
    mcnemar = [t for t in workshop.rows(out / "tests.csv") if t["test"] == "mcnemar"]
    assert [(t["first"], t["second"]) for t in mcnemar] == [("maseres", "alexnet3d")]
    weights = out / "rows" / "maseres" / "classifier" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_table(out) == 0
    assert "Row " not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    assert [each.run for each in compare_with_paper(out, Bootstrap(20))] == ["alexnet3d", "maseres"]
    assert run_table(out, "--set", "training.epochs=2") == 2
    assert "training.epochs was 1, is 2" in capsys.readouterr().err
    assert run_table(out, "--form", "paper") == 2
    assert "maseres_published" in capsys.readouterr().err


def test_folds_judge_every_patient_and_changes_stand_above_the_table(
    run_table: RunTable, tmp_path: Path, workshop: Any, quick: None
) -> None:
    plain = write_rows(
        workshop.manifest.with_name("plain.csv"),
        [{k: v for k, v in row.items() if k != "split"} for row in read_rows(workshop.manifest)],
    )
    out = tmp_path / "table"
    given = ("--only", "maseres", "--folds", "2", "--edge", "8", "--set", "training.batch_size=4")
    assert run_table(out, *given, manifest=plain) == 0
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "2 folds, pooled: every patient is judged once" in page
    assert (
        "Not as in the settings files: inputs of 8 along each side, training.batch_size=4" in page
    )
    assert "Every row judged 12 scans of 12 patients" in page
    assert "McNemar" not in page
    record = json.loads((out / "rows" / "maseres" / "run.json").read_text())
    assert record["settings"]["recipe"]["overrides"]["input_shape"] == [8, 8, 8]
    assert (out / "rows" / "maseres" / "fold-2" / "classifier" / "card.json").is_file()


def make_plan(manifest: Path, folder: Path, configs: Path) -> Plan:
    return Plan(Chosen(configs).patient_settings("maseres"), manifest, folder)


def write_many(folder: Path) -> Path:
    """A manifest of 24 patients whose scans are empty files."""
    rows = []
    for number in range(24):
        (folder / f"{number:02d}.nii.gz").touch()
        label = ("COVID-19", "normal")[number % 2]
        rows.append({"scan": f"{number:02d}.nii.gz", "patient": f"p{number:02d}", "label": label})
    return write_rows(folder / "many.csv", rows)


def noting(seen: list[Plan]) -> TrainAll:
    """Notes what is to be trained, and says of all that they diverged."""

    def train(plans: Sequence[Any], *, are_trials: bool = False) -> dict[str, str]:
        seen.extend(plans)
        return {plan.folder.name: "no number" for plan in plans}

    return train


def test_without_a_split_the_papers_own_is_drawn_and_kept(tmp_path: Path, configs: Path) -> None:
    manifest = write_many(tmp_path)
    seen: list[Plan] = []
    plan = make_plan(manifest, tmp_path / "table", configs)
    settings = {Row("maseres"): plan.settings}
    progress = run_patients(plan, settings, train=noting(seen))
    assert [row.name for row in progress.diverged] == ["maseres"]
    (row,) = seen
    drawn = plan.folder / "study" / SPLIT_FILE
    assert row.manifest == drawn
    expected = {each.patient: each.split for each in maseres_paper(read_manifest(manifest)).rows}
    assert {each.patient: each.split for each in read_manifest(drawn).rows} == expected
    assert "Divided as in the paper" in split_in_words(plan)
    written = drawn.stat().st_mtime_ns
    run_patients(plan, settings, train=noting(seen))
    assert drawn.stat().st_mtime_ns == written


def test_too_few_patients_for_the_papers_split_are_told_of_folds(
    tmp_path: Path, configs: Path
) -> None:
    manifest = write_scans(tmp_path / "scans", 1)
    plan = make_plan(manifest, tmp_path / "table", configs)
    with pytest.raises(ChestCTError, match=r"need at least 10.*--folds N"):
        run_patients(plan, {Row("maseres"): plan.settings})
    assert not plan.folder.exists()


def test_figures_of_a_validation_part_are_called_too_good(workshop: Any, configs: Path) -> None:
    rows = [
        {**row, "split": row["split"].replace("test", "validation")}
        for row in read_rows(workshop.manifest)
    ]
    manifest = write_rows(workshop.manifest.with_name("untested.csv"), rows)
    plan = make_plan(manifest, workshop.folder / "untested", configs)
    assert "no test part" in split_in_words(plan)
    assert "too good" in split_in_words(plan)


def test_precision_is_settled_once_for_all_rows(
    workshop: Any, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chestct.studies import study_rows

    chosen = Chosen(configs, overrides=("training.precision=auto",))
    settings = {Row(name): chosen.patient_settings(name) for name in SMALL}
    seen: list[Plan] = []
    plan = Plan(settings[Row("maseres")], workshop.manifest, tmp_path / "table")
    for wanted in ("float32", "bf16"):
        monkeypatch.setattr(study_rows, "settled", lambda plan, p=wanted: in_precision(plan, p))
        run_patients(replace(plan, folder=tmp_path / wanted), settings, train=noting(seen))
    assert [each.settings.training.precision for each in seen] == 2 * ["float32"] + 2 * ["bf16"]


@pytest.mark.parametrize("form", ["paper", "published"])
def test_the_committed_files_hold_all_three_networks_in_both_forms(form: str) -> None:
    chosen = Chosen(REPOSITORY / "configs", form, edge=100)
    for network in ("maseres", "alexnet3d", "voxcnn"):
        settings = chosen.patient_settings(network)
        assert settings.network.name == network
        assert settings.recipe.name == f"maseres_{form}"
        assert settings.recipe.overrides["input_shape"] == [100, 100, 100]
        is_small = form == "paper" or network == "maseres"
        assert settings.training.batch_size == (2 if is_small else 4)


def test_a_table_tells_of_what_was_changed_but_for_where_inputs_are_kept(configs: Path) -> None:
    overrides = ("data.cache=kept/somewhere", "training.epochs=2", "tracking.mlflow_uri=x")
    (form, changed) = Chosen(configs, overrides=overrides, edge=14).remarks
    assert form == "Settings: the form 'published'."
    assert changed == (
        "Not as in the settings files: inputs of 14 along each side, training.epochs=2."
    )


def test_what_is_set_wins_over_the_edge(configs: Path) -> None:
    shape = "recipe.overrides.input_shape=[9, 8, 7]"
    chosen = Chosen(configs, overrides=(shape,), edge=14)
    assert chosen.patient_settings("maseres").recipe.overrides["input_shape"] == [9, 8, 7]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--only", "maseris"), "Did you mean 'maseres'"),
        (("--configs", "/nowhere/configs"), "or leave --configs out"),
        (("--only", "voxcnn"), "voxcnn_published.yaml"),
        (("--set", "training.epoch=3"), "Did you mean 'training.epochs'"),
        (("--edge", "5"), "at least 7 voxels"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    run_table: RunTable, tmp_path: Path, capsys: Output, given: tuple[str, ...], said: str
) -> None:
    assert run_table(tmp_path / "table", *given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_a_manifest_without_a_folder_is_told_of_out(workshop: Any, capsys: Output) -> None:
    assert main(["study", "maseres-patients", str(workshop.manifest)]) == 2
    assert "give --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "only", "words"),
    [
        ("maseres-patients", "alexnet3d", "85.7 (65.4 to 95.0, 18/21)"),
        ("maseres-slices", "vgg19", "98.6 (97.6 to 99.1, 952/966)"),
    ],
)
def test_without_data_the_papers_figures_are_shown_and_nothing_is_trained(
    capsys: Output, command: str, only: str, words: str
) -> None:
    assert main(["study", command, "--only", only]) == 0
    shown = capsys.readouterr().out
    assert words in shown
    assert "Nothing was trained" in shown
    assert "chestct study audit-papers" in shown

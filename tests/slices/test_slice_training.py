from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_slices import draw_slice, mark, write_config
from PIL import Image
from safetensors.torch import load_file

from chestct.classifier import load_slice_classifier
from chestct.cli import main
from chestct.datasets.manifest import TRAINING, VALIDATION, read_manifest
from chestct.evaluation.predictions import VOTES, Predictions, read_predictions, write_predictions
from chestct.extras import is_installed
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.networks.slices import build_slice_network
from chestct.writers.preview import _PANEL_PX


@pytest.fixture(scope="module")
def run(table: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on drawn slices, its backbone out of a file."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, tuned=1)
    out = folder / "run"
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(out)]
    assert main([*command, "--weights", str(weights), "--processes", "1"]) == 0
    return out


def test_a_run_leaves_predictions_evaluations_and_a_classifier(run: Path) -> None:
    slices = read_predictions(run / "slices" / "predictions.csv")
    assert (len(slices), slices.num_patients) == (6, 2)
    for name in VOTES:
        patients = read_predictions(run / "patients" / f"predictions_{name}.csv")
        assert len(patients) == 2
    table = (run / "patients" / "evaluation" / "tables.md").read_text(encoding="utf-8")
    assert all(f"run, {name}" in table for name in VOTES)
    assert (run / "slices" / "evaluation" / "metrics.json").is_file()
    assert len((run / "training" / "log.jsonl").read_text().splitlines()) == 2


def test_the_card_says_where_the_weights_come_from_and_how_slices_were_divided(run: Path) -> None:
    card = json.loads((run / "classifier" / "slice_card.json").read_text(encoding="utf-8"))
    assert card["notice"] == NOT_FOR_CLINICAL_USE
    assert card["split"] == "by patient"
    assert "SHA-256" in card["backbone_weights"]
    assert {"torch", "chestct"} <= card["versions"].keys()
    assert ("timm" in card["versions"]) == is_installed("timm")
    assert card["pictures"]["size"] == 64


def test_a_finished_run_goes_on_to_the_same_end(
    run: Path, table: Path, weights: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    config = write_config(run.parent, tuned=1)
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(again)]
    assert main([*command, "--weights", str(weights), "--processes", "1"]) == 0
    name = Path("slices") / "predictions.csv"
    assert (again / name).read_bytes() == (run / name).read_bytes()


def test_members_are_watched_on_what_they_alone_do_not_learn_from_and_answer_as_one(
    table: Path, weights: Path, tmp_path: Path
) -> None:
    config, out = write_config(tmp_path, tuned=1), tmp_path / "run"
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(out)]
    command += ["--weights", str(weights), "--processes", "1"]
    command += ["--set", "network.settings.members=2", "--set", "training.freeze=[backbone.bn1]"]
    assert main(command) == 0
    watched, learned = [], set()
    for number in (1, 2):
        rows = read_manifest(out / f"member-{number}" / "scans.csv", needs_files=False).rows
        sides = {
            side: {r.patient for r in rows if r.split == side} for side in (TRAINING, VALIDATION)
        }
        assert not sides[TRAINING] & sides[VALIDATION]
        watched.append(sides[VALIDATION])
        learned |= sides[TRAINING]
    tested = read_predictions(out / "slices" / "predictions.csv")
    assert not watched[0] & watched[1]
    assert watched[0] | watched[1] == learned
    assert not learned & set(tested.patients)

    found = load_slice_classifier(out / "classifier")
    assert found.card.network_settings["members"] == 2
    assert found.card.trained_on.startswith(f"{len(rows)} slices of ")
    one = build_slice_network(found.card.network, 2, {**found.card.network_settings, "members": 1})
    batch = torch.rand(2, 1, 1, 64, 64)
    logits = []
    for number in (1, 2):
        best = out / f"member-{number}" / "training" / "best.safetensors"
        one.load_state_dict(load_file(best))
        with torch.no_grad():
            logits.append(one.eval()(batch))
    assert not torch.equal(*logits)
    with torch.no_grad():
        torch.testing.assert_close(found.network(batch), torch.stack(logits).mean(0))

    shutil.rmtree(out / "classifier")
    before = (out / "slices" / "predictions.csv").read_bytes()
    assert main(command) == 0
    assert (out / "slices" / "predictions.csv").read_bytes() == before


def test_slices_that_a_run_was_watched_on_are_said_to_be_so(
    table: Path, weights: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.csv"
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    places = [str(table.parent / line) for line in lines]
    parts = ["validation" if line.split(",")[1].endswith("00") else "training" for line in lines]
    rows = [f"{line},{part}" for line, part in zip(places, parts, strict=True)]
    split.write_text("\n".join([f"{header},split", *rows]), encoding="utf-8")
    config, out = write_config(tmp_path, tuned=1), tmp_path / "run"
    command = ["slices", "train", str(config), "--data", str(split), "--out", str(out)]
    command += ["--weights", str(weights), "--processes", "1"]
    assert main([*command, "--set", "network.settings.members=2"]) == 0
    for judged in ("slices", "patients"):
        page = (out / judged / "evaluation" / "tables.md").read_text(encoding="utf-8")
        assert "Judged were all slices, each answered by the member that did not learn" in page


def whole_scans(table: Path) -> Predictions:
    """What a classifier of whole scans might say of the slices' patients."""
    truth = [row.split(",") for row in table.read_text().splitlines()[1:]]
    patients = {cells[1]: cells[2] for cells in truth}
    return Predictions(
        scans=tuple(f"scans/{number}" for number in range(len(patients))),
        patients=tuple(patients),
        truth=np.array([["COVID-19", "normal"].index(label) for label in patients.values()]),
        probabilities=np.tile([0.6, 0.4], (len(patients), 1)),
        labels=("COVID-19", "normal"),
    )


def test_evaluating_the_same_slices_again_gives_the_same_figures_beside_others(
    run: Path, table: Path, tmp_path: Path
) -> None:
    scan_level = whole_scans(table)
    beside = write_predictions(scan_level, tmp_path / "whole.csv")
    out = tmp_path / "evaluation"
    command = ["slices", "evaluate", str(run / "classifier"), str(table), "--out", str(out)]
    more = ["--beside", f"whole scans={beside}", "--maseres-z", "--processes", "1"]
    assert main([*command, *more]) == 0
    table_text = (out / "patients" / "evaluation" / "tables.md").read_text(encoding="utf-8")
    assert "| whole scans | maseres_z | accuracy |" in table_text
    everywhere = read_predictions(out / "slices" / "predictions.csv")
    tested = read_predictions(run / "slices" / "predictions.csv")
    places = {Path(scan).parts[-3:]: row for row, scan in enumerate(everywhere.scans)}
    rows = [places[Path(scan).parts[-3:]] for scan in tested.scans]
    np.testing.assert_allclose(everywhere.probabilities[rows], tested.probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "left_out", "words"),
    [
        ("whole scans", 2, "no prediction of 2 of the 10 patients: those whose slices begin"),
        ("run, max", 0, "Another classifier has this name"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_before_a_slice_is_read(
    run: Path,
    table: Path,
    tmp_path: Path,
    name: str,
    left_out: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(*_arguments: object, **_named: object) -> None:
        raise AssertionError("slices were read")

    monkeypatch.setattr("chestct.training.judging.read_slices", read)
    found = whole_scans(table)
    beside = write_predictions(found.choose(range(left_out, len(found))), tmp_path / "whole.csv")
    out = tmp_path / "evaluation"
    command = ["slices", "evaluate", str(run / "classifier"), str(table), "--out", str(out)]
    assert main([*command, "--beside", f"{name}={beside}", "--processes", "1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"whole.csv ('{name}') cannot stand beside slices.csv" in said
    assert words in said
    assert not out.exists()


def test_a_slice_is_explained_as_a_picture(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = table.parent / "COVID-19" / "00" / "0.png"
    out = tmp_path / "heat.png"
    command = ["slices", "explain", str(run / "classifier"), str(picture), "--out", str(out)]
    assert main([*command, "--label", "COVID-19"]) == 0
    said = capsys.readouterr().out
    assert "COVID-19  " in said
    assert NOT_FOR_CLINICAL_USE in said
    with Image.open(out) as painted:
        assert painted.width == 2 * _PANEL_PX
        assert painted.height > _PANEL_PX
    assert main([*command, "--label", "covid"]) == 2
    assert "There is no label 'covid'" in capsys.readouterr().err


def test_a_mark_and_a_wrong_name_are_said_when_a_slice_is_explained(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["slices", "explain", str(run / "classifier")]
    out = ["--out", str(tmp_path / "heat.png")]
    plain, marked, misnamed = (tmp_path / f"{name}.png" for name in ("plain", "marked", "misnamed"))
    slice_of_ill = Image.fromarray(draw_slice(5, is_ill=True))
    for picture, kind in ((plain, "PNG"), (marked, "PNG"), (misnamed, "JPEG")):
        slice_of_ill.save(picture, format=kind)
    mark(marked)
    said = []
    for picture in (plain, marked, misnamed):
        assert main([*command, str(picture), *out]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if line[0] == "!"])
    assert said[0] == []
    (about_marks,) = said[1]
    assert "of it is coloured: the answer may be about marks" in about_marks
    assert said[2] == ["! it is a JPEG file by another name"]


@pytest.mark.parametrize("change", ["weights", "field", "gone"])
def test_a_damaged_classifier_is_refused_by_file(
    run: Path, table: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "classifier"
    shutil.copytree(run / "classifier", broken)
    card = broken / "slice_card.json"
    if change == "weights":
        with (broken / "weights.safetensors").open("ab") as stream:
            stream.write(b"x")
    elif change == "field":
        card.write_text(card.read_text().replace('"temperature":', '"temprature":'))
    else:
        card.unlink()
    out = tmp_path / "evaluation"
    assert main(["slices", "evaluate", str(broken), str(table), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert ("weights.safetensors" if change == "weights" else "slice_card.json") in said
    assert "get the classifier's folder again" in said.lower()


def test_both_range_tests_suggest_a_rate(table: Path, weights: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    common = ["slices", "lr-range", str(config), "--data", str(table), "--processes", "1"]
    given = ["--weights", str(weights)]
    assert main([*common, "--out", str(tmp_path / "x"), "--steps", "4", "--epochs", "2"]) == 2
    assert main([*common, *given, "--out", str(tmp_path / "steps"), "--steps", "4"]) == 0
    assert main([*common, *given, "--out", str(tmp_path / "epochs"), "--epochs", "2"]) == 0
    for name in ("steps", "epochs"):
        assert (tmp_path / name / "lr_range.csv").is_file()


def test_the_papers_split_trains_by_its_name_and_its_leak_is_on_the_card(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, head="published")
    out = tmp_path / "run"
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(out)]
    wanted = ["--set", "data.split=slice_random_leaky", "--set", "training.epochs=1"]
    assert main([*command, *wanted, "--set", "augmentation.name=maseres_slices_published"]) == 0
    assert "have slices on several sides" in capsys.readouterr().out
    card = json.loads((out / "classifier" / "slice_card.json").read_text(encoding="utf-8"))
    assert "patients are shared" in card["split"]
    assert "random weights" in card["backbone_weights"]


def test_all_of_a_network_by_timms_name_learns_from_a_plain_state_dict(
    table: Path, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    backbone = build_slice_network("resnet18", 2).backbone.state_dict()
    stored = {**backbone, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(stored, tmp_path / "resnet.pth")
    config = write_config(tmp_path)
    out = tmp_path / "run"
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(out)]
    wanted = ["network.name=resnet18", "network.settings.tuned_blocks=all", "training.epochs=1"]
    wanted += ["network.settings.batch_norm_statistics=learned", "training.start_licence=MIT"]
    wanted += ["network.settings.std=[0.5, 0.5, 0.5]"]
    command += [part for each in wanted for part in ("--set", each)]
    assert main([*command, "--weights", str(tmp_path / "resnet.pth"), "--processes", "1"]) == 0
    card = json.loads((out / "classifier" / "slice_card.json").read_text(encoding="utf-8"))
    assert card["backbone_weights"].startswith("resnet.pth, SHA-256")
    assert card["licence"] == "MIT"
    chosen = card["network_settings"]
    assert (chosen["size"], chosen["std"]) == (64, [0.5, 0.5, 0.5])
    assert chosen["mean"] == [0.485, 0.456, 0.406]
    learned = load_slice_classifier(out / "classifier").network.state_dict()
    for name, before in backbone.items():
        assert not torch.equal(learned[f"backbone.{name}"], before), name


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("network.name=vgg18", "Did you mean 'vgg19'"),
        ("network.weights=/nowhere/model.safetensors", "/nowhere/model.safetensors"),
        ("network.settings.head=mine", "recommended"),
        ("data.split=random", "slice_random_leaky"),
        ("augmentation.name=maseres", "maseres_slices_p"),
        ("pictures.size=3", "there is no setting 'pictures.size'"),
        ("network.settings.tuned_blocks=some", "a whole number from 0 to 3 or 'all'"),
        ("labels=[normal, normal]", "names a class twice"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_read(
    setting: str, said: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    out = tmp_path / "run"
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(out)]
    assert main([*command, "--set", setting]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_several_processes_are_refused_with_what_to_do(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path)
    command = ["slices", "train", str(config), "--data", str(table), "--out", str(tmp_path / "r")]
    assert main(command) == 2
    assert "without torchrun" in capsys.readouterr().err

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from chestct.datasets.augment import _Augmentation
from chestct.errors import ReadError, TrainingError, WriteError
from chestct.networks import build_network
from chestct.storage import write_text
from chestct.training.plan import (
    Parts,
    Plan,
    _git_state,
    begin_record,
    find_parts,
    program_versions,
)
from chestct.training.settings import RunSettings

SMALL = {"input_shape": [40, 40, 40]}


def settings(**changes: object) -> RunSettings:
    fields: dict[str, object] = {
        "labels": ["COVID-19", "normal"],
        "network": {"name": "maseres"},
        "recipe": {"name": "maseres_paper", "overrides": SMALL},
    }
    return RunSettings.model_validate(fields | changes)


def test_a_network_that_needs_its_input_s_size_is_told_the_recipe_s() -> None:
    parts = find_parts(settings())
    assert parts.network_settings["input_shape"] == [40, 40, 40]
    assert parts.recipe.input_shape == (40, 40, 40)
    assert parts.augmentation == _Augmentation()


def test_the_same_seed_draws_the_same_weights_and_leaves_torch_s_generator_alone() -> None:
    parts = find_parts(settings())
    before = torch.random.get_rng_state()
    first, second, other = (parts.build_network(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_3d_resnet_begins_with_the_weights_of_a_file_and_says_which(tmp_path: Path) -> None:
    drawn = build_network("roi_resnet18", 1, 2, {"width": 4}).state_dict()
    kept = {f"module.{n}": value for n, value in drawn.items() if not n.startswith("fc")}
    torch.save({"state_dict": kept}, tmp_path / "resnet_18.pth")
    wanted = {"name": "roi_resnet18", "settings": {"width": 4}}
    recipe = {"name": "roi_resnet_recommended", "overrides": SMALL}

    def begun(file: str) -> Parts:
        return find_parts(settings(network=wanted, recipe=recipe, training={"start_from": file}))

    parts = begun(str(tmp_path / "resnet_18.pth"))
    first, other = (parts.build_network(seed).state_dict() for seed in (1, 2))
    for name, value in kept.items():
        assert torch.equal(first[name.removeprefix("module.")], value), name
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    assert str(parts.beginning).startswith("Begun with the weights of resnet_18.pth, SHA-256 ")
    assert str(tmp_path) not in str(parts.beginning)
    with pytest.raises(TrainingError, match=r"'training.start_from': There is no weights file"):
        begun("gone.pth")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["a", "a"]}, "'labels' names a class twice"),
        ({"network": {"name": "masere"}}, "'network': There is no network 'masere'. Did you mean"),
        ({"network": {"name": "maseres", "settings": {"drop": 1}}}, "'network': There is no"),
        ({"network": {"name": "maseres", "settings": {"input_shape": [64] * 3}}}, "'network': "),
        (
            {"training": {"freeze": ["blok1"]}},
            "'training.freeze': This network has no part 'blok1'. Did you mean 'block1' or",
        ),
        (
            {"training": {"rates": {"layer1": 0.1}}},
            "Known: backbone, head, stem, block1, block2, block3, pool, attention, fc1, fc2",
        ),
        ({"training": {"freeze": ["backbone", "head"]}}, "'training.freeze': Nothing is left"),
        ({"recipe": {"name": "maseres"}}, "'recipe.name': There is no recipe 'maseres'"),
        (
            {"recipe": {"name": "maseres_paper", "overrides": {"shape": 1}}},
            "'recipe.overrides': There is no recipe field 'shape'. Did you mean 'input_shape'",
        ),
        ({"augmentation": {"name": "all"}}, "'augmentation': There is no augmentation 'all'"),
        (
            {"augmentation": {"overrides": {"noice": 0}}},
            "'augmentation': There is no field 'noice'. Did you mean 'noise'",
        ),
    ],
    ids=str,
)
def test_what_does_not_exist_or_fit_is_named_by_its_setting(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(TrainingError) as error:
        find_parts(settings(**changes))
    assert words in str(error.value)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "scans.csv"
    path.write_text("scan,patient,label\n")
    return path


def voxcnn(**training: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "labels": ["a", "b"],
            "network": {"name": "voxcnn"},
            "recipe": {"name": "maseres_paper"},
            "training": training,
        }
    )


def test_a_record_grows_by_one_session_each_time(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(voxcnn(), manifest, run))
    begin_record(Plan(voxcnn(workers=4, checkpoint_every_s=1), manifest, run))
    record = json.loads((run / "run.json").read_text())
    assert len(record["sessions"]) == 2
    assert record["sessions"][0]["versions"] == program_versions()


@pytest.mark.parametrize(
    ("change", "folds", "words"),
    [
        ({"learning_rate": 0.5}, None, r"training\.learning_rate was 0\.001, is 0\.5"),
        ({}, 5, "folds was None, is 5"),
    ],
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    tmp_path: Path, manifest: Path, change: dict[str, object], folds: int | None, words: str
) -> None:
    run = tmp_path / "run"
    begin_record(Plan(voxcnn(), manifest, run))
    with pytest.raises(TrainingError, match=words):
        begin_record(Plan(voxcnn(**change), manifest, run, folds))


def test_a_run_begun_with_weights_that_were_replaced_is_not_gone_on_with(
    tmp_path: Path, manifest: Path
) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights.pth"
    begun = voxcnn(start_from=str(weights))
    weights.write_bytes(b"first")
    begin_record(Plan(begun, manifest, run))
    begin_record(Plan(begun, manifest, run))
    weights.write_bytes(b"second")
    with pytest.raises(TrainingError, match=r"the file of training\.start_from was"):
        begin_record(Plan(begun, manifest, run))


def test_a_run_goes_on_with_its_weights_wherever_they_lie_now(
    tmp_path: Path, manifest: Path
) -> None:
    def begun(file: Path | None) -> Plan:
        return Plan(voxcnn(start_from=file and str(file)), manifest, run)

    run, weights = tmp_path / "run", tmp_path / "weights.pth"
    weights.write_bytes(b"first")
    begin_record(begun(weights))
    begin_record(begun(weights.rename(tmp_path / "moved.pth")))
    with pytest.raises(TrainingError, match=r"the file of training\.start_from was"):
        begin_record(begun(None))


def test_the_old_name_of_start_from_is_still_read(tmp_path: Path, manifest: Path) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights.pth"
    weights.write_bytes(b"first")
    begin_record(Plan(voxcnn(start_from=str(weights)), manifest, run))
    record = json.loads((run / "run.json").read_text())
    kept = record["settings"]
    # As a version wrote it that knew the old name alone.
    kept["network"]["pretrained"] = kept["training"].pop("start_from")
    del kept["training"]["freeze"], kept["training"]["rates"], record["pretrained_tensors"]
    (run / "run.json").write_text(json.dumps(record))
    begin_record(Plan(RunSettings.model_validate(kept), manifest, run))
    with pytest.raises(TrainingError, match=r"the file of training\.start_from was"):
        begin_record(Plan(voxcnn(), manifest, run))


def test_the_old_and_the_new_name_with_two_files_are_refused() -> None:
    network = {"name": "maseres", "pretrained": "a.pth"}
    with pytest.raises(TrainingError, match=r"'network.pretrained' is the old name"):
        settings(network=network, training={"start_from": "b.pth"})
    for training in ({}, {"start_from": None}, {"start_from": "a.pth"}):
        assert settings(network=network, training=training).training.start_from == "a.pth"
    assert settings(network={**network, "pretrained": None}).training.start_from is None


def without(run: Path, name: str) -> None:
    """Take a setting out of a record, as a version wrote it that did not know it yet."""
    record = json.loads((run / "run.json").read_text())
    del record["settings"]["training"][name]
    (run / "run.json").write_text(json.dumps(record))


def test_a_setting_that_came_later_had_its_default_before(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(voxcnn(), manifest, run))
    without(run, "batch_norm_warm_up")
    with pytest.raises(TrainingError, match="batch_norm_warm_up was False, is True"):
        begin_record(Plan(voxcnn(batch_norm_warm_up=True), manifest, run))
    begin_record(Plan(voxcnn(), manifest, run))


def test_a_setting_that_is_no_longer_known_is_said(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(voxcnn(), manifest, run))
    record = json.loads((run / "run.json").read_text())
    record["settings"]["training"]["of_old"] = 3
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"another version.*of_old.*new folder"):
        begin_record(Plan(voxcnn(), manifest, run))


def test_a_run_on_other_scans_is_not_gone_on_with(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(voxcnn(), manifest, run))
    manifest.write_text("scan,patient,label\nx,y,a\n")
    with pytest.raises(TrainingError, match="another manifest"):
        begin_record(Plan(voxcnn(), manifest, run))


@pytest.mark.parametrize("content", ["{", "[]", '{"folds": 3}'])
def test_a_damaged_record_is_said(tmp_path: Path, manifest: Path, content: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(content)
    with pytest.raises(ReadError, match=r"run\.json in run is damaged"):
        begin_record(Plan(voxcnn(), manifest, run))


def test_the_git_state_names_the_commit_and_says_whether_files_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True)

    assert _git_state(tmp_path) is None
    (tmp_path / "__init__.py").write_text("")
    git("init", "-q")
    assert _git_state(tmp_path) is None
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = _git_state(tmp_path)
    assert clean is not None
    assert len(str(clean["commit"])) == 40
    assert clean["is_changed"] is False
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert _git_state(tmp_path) == {**clean, "is_changed": True}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"run\.json cannot be written"):
        write_text(tmp_path / "file" / "run.json", "{}")

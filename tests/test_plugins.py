"""Other packages add to the tables by entry points; the template in docs/ is one of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_scans import write_scans
from tiny import save_tiny_classifier
from torch import nn

import chestct
from chestct.card import Card
from chestct.classifier import load_classifier
from chestct.cli import main
from chestct.contracts import PROMISES, ReaderCase, WriterCase, broken
from chestct.errors import (
    ChestCTError,
    ClassifierError,
    NetworkError,
    ReadError,
    RecipeError,
    UnknownNameError,
)
from chestct.explain import EXPLANATIONS
from chestct.lookup import find_plugin, load_entry, look_up, plugins_of
from chestct.networks import NETWORKS, build_network
from chestct.preprocess.recipes import RECIPES, find_recipe
from chestct.readers import format_of, read_volume
from chestct.training.plan import Listener
from chestct.training.settings import RunSettings

TEMPLATE = Path(__file__).resolve().parents[1] / "docs" / "plugin_template"

MODULE = """
import json
from pathlib import Path

import numpy as np
from tiny import save_tiny_classifier
from torch import nn

from chestct.errors import ReadError
from chestct.volume import Grid, ScanSource, Volume


class Encoder(nn.Module):
    out_channels = 6

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, 6, 3, stride=2, padding=1)

    def forward(self, batch):
        return self.conv(batch).relu()


def build_encoder(in_channels, settings):
    from chestct.networks import settings_from
    from dataclasses import make_dataclass

    settings_from(make_dataclass("Settings", []), settings)
    return Encoder(in_channels)


def build_shapeless(in_channels, settings):
    return nn.Conv3d(in_channels, 6, 3) if settings is None else nn.Identity()


def read_box(path, options):
    try:
        head, _, body = path.read_bytes().partition(b"|")
        shape = json.loads(head)
        voxels = np.frombuffer(body, dtype="<i2").reshape(shape)
    except ValueError as error:
        raise ReadError(f"{path.name} is no box. Name another file.") from error
    return Volume(Grid(tuple(shape), (5.0, 5.0, 5.0)), voxels, source=ScanSource(format="box"))


def read_anything(path, options):
    return Volume(Grid((2, 2, 2), (5.0, 5.0, 5.0)), np.zeros((2, 2, 2), np.int16))


def write_words(analysis, folder, options):
    path = folder / "words.txt"
    path.write_text(analysis.result.decision)
    return path


def write_elsewhere(analysis, folder, options):
    path = folder.parent / "words.txt"
    path.write_text(analysis.result.decision)
    return path


def first_half(question):
    from chestct.explain.question import CellMap

    heat = np.zeros(question.input_shape, np.float32)
    heat[: heat.shape[0] // 2] = 1.0
    return CellMap(heat, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), question.target or 0)
"""

POINTS = """
[chestct.networks]
maseres = other_package:build_encoder
broken = other_package:no_such_name
absent = no_such_module:build

[chestct.encoders]
small_encoder = other_package:build_encoder
shapeless = other_package:build_shapeless

[chestct.recipes]
no_recipe = other_package:MODULE

[chestct.readers]
box = other_package:read_box
any = other_package:read_anything

[chestct.writers]
words = other_package:write_words
astray = other_package:write_elsewhere

[chestct.explanations]
first_half = other_package:first_half
"""


def install_by_hand(folder: Path, package: str, points: str) -> None:
    """What pip leaves of a package: what it is called, and its entry points."""
    info = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package of another author, with good entries and bad ones."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "other_package.py").write_text(MODULE + "\nMODULE = 1\n")
    install_by_hand(folder, "other-package", POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The template, installed as its author would."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "template"
    shutil.copytree(TEMPLATE, source)
    if find_spec("setuptools") is not None and find_spec("pip") is not None:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
        install = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
        subprocess.run([*install, str(source)], check=True, capture_output=True, timeout=300)
    else:
        shutil.copy(source / "chestct_example.py", folder)
        text = (source / "pyproject.toml").read_text()
        lines = text[text.index("[project.entry-points") : text.index("[tool.")]
        points = lines.replace('project.entry-points."', "").replace('"', "")
        install_by_hand(folder, "chestct-example", points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def write_box(path: Path) -> Path:
    shape = (12, 14, 16)
    voxels = np.arange(np.prod(shape), dtype="<i2") - 1024
    path.write_bytes(json.dumps(shape).encode() + b"|" + voxels.tobytes())
    return path


def test_the_template_is_listed_and_trained_for_two_steps(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.evaluation.report.draw_evaluation", lambda *_arguments: {})
    assert find_plugin(NETWORKS, "example_cnn", kind="network") is not None
    settings = RunSettings.model_validate(
        {
            "labels": ["COVID-19", "normal"],
            "network": {"name": "example_cnn", "settings": {"width": 2}},
            "recipe": {
                "name": "example_lungs_5mm",
                "overrides": {"input_shape": [32, 28, 36], "lungs": "published"},
            },
            "data": {"cache": str(tmp_path / "cache"), "validation_share": 0.3},
            "training": {"epochs": 1, "batch_size": 2},
        }
    )
    manifest = write_scans(tmp_path / "scans", 3)
    told = Listener(processes=1)
    assert chestct.train(settings, manifest, tmp_path / "run", listener=told) is not None
    log = (tmp_path / "run" / "training" / "log.jsonl").read_text().splitlines()
    assert len(log) == 1
    card = Card.read(tmp_path / "run" / "classifier")
    assert card.versions["chestct-example"] == "0.1.0"
    # The last layer whose cells, of 5 mm voxels, are at most 25 mm: two strides of 2.
    assert card.explanation == "gradcam++:blocks.1"
    result = chestct.classify_scan(
        tmp_path / "scans" / "scan00.nii.gz",
        load_classifier(tmp_path / "run" / "classifier"),
        engine="torch",
    )
    assert result.label_set.names == ("COVID-19", "normal")


def test_the_template_keeps_every_promise(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check-plugin", "chestct-example", "--shape", "17", "18", "20"]
    assert main([*command, "--settings", '{"width": 2}']) == 0
    said = capsys.readouterr().out
    assert "network 'example_cnn' from chestct-example 0.1.0" in said
    assert "recipe 'example_lungs_5mm'" in said
    assert "broken" not in said


def test_info_lists_what_others_add_and_what_is_refused(
    others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert found["encoder small_encoder"] == "from other-package 0.1.0"
    assert found["network maseres"].startswith("refused: other-package 0.1.0 brings the network")
    assert "no_such_module" not in sys.modules


def test_a_name_of_ours_stays_ours(others: Path) -> None:
    assert load_entry(NETWORKS, "maseres", kind="network").__module__ == "chestct.networks.maseres"
    assert find_plugin(NETWORKS, "maseres", kind="network") is None
    with pytest.raises(ChestCTError, match=r"chestct has one of that name.*uninstall"):
        plugins_of("network", NETWORKS)["maseres"].load()


def test_the_same_name_of_two_packages_is_refused(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[chestct.recipes]\nno_recipe = third_package:RECIPE\n"
    install_by_hand(tmp_path, "third-package", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ChestCTError, match="has one of that name"):
        find_recipe("no_recipe")


@pytest.mark.parametrize(("name", "reason"), [("broken", "no_such_name"), ("absent", "No module")])
def test_what_cannot_be_imported_is_told_before_work_begins(
    others: Path, name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans.csv").write_text("scan,patient,label\na,a,CAP\n")
    command = ["train", "roi_resnet18_recommended", "--data", str(tmp_path / "scans.csv")]
    assert main([*command, "--out", str(tmp_path / "run"), "--set", f"network.name={name}"]) == 2
    said = capsys.readouterr().err
    for part in ("other-package 0.1.0", f"'{name}'", reason, "uninstall", "chestct.networks"):
        assert part in said
    assert not (tmp_path / "run").exists()


def test_entry_points_are_looked_at_only_where_a_name_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.lookup.plugins_of", lambda *_arguments: pytest.fail("looked"))
    look_up(RECIPES, "maseres_paper", kind="recipe")
    load_entry(NETWORKS, "maseres", kind="network")
    look_up(EXPLANATIONS, "gradcam", kind="explanation")
    with pytest.raises(UnknownNameError):
        look_up(RECIPES, "maseres", kind="recipe of this study")


def test_a_name_that_is_nearly_that_of_a_plug_in_is_answered_with_it(others: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'small_encoder'"):
        build_network("small_encode", 1, 3)


def test_an_encoder_gets_the_head_that_looks_at_the_lungs(others: Path) -> None:
    network = build_network("small_encoder", 1, 3, {"cells": 2}).eval()
    batch, lungs = torch.rand(1, 1, 12, 12, 12), torch.zeros(1, 1, 12, 12, 12)
    lungs[..., :6] = 1
    with torch.no_grad():
        left, right = network(batch, lungs), network(batch, lungs.flip(-1))
    assert left.shape == (1, 3)
    assert not torch.equal(left, right)
    assert isinstance(network.get_submodule("encoder"), nn.Module)
    with pytest.raises(UnknownNameError, match="depthh"):
        build_network("small_encoder", 1, 3, {"depthh": 1})
    with pytest.raises(NetworkError, match="out_channels"):
        build_network("shapeless", 1, 3)


def test_what_is_no_recipe_is_refused(others: Path) -> None:
    with pytest.raises(RecipeError, match="not a int"):
        find_recipe("no_recipe")


def test_a_reader_takes_the_files_of_its_ending(others: Path, tmp_path: Path) -> None:
    path = write_box(tmp_path / "scan.BOX")
    assert format_of(path) == format_of(tmp_path) == "box"
    assert read_volume(tmp_path).voxels.shape == (12, 14, 16)
    case = ReaderCase("box", path)
    assert [why for _, why in broken(PROMISES["reader"], case)] == ["", "", ""]
    write_box(tmp_path / "second.box")
    with pytest.raises(ReadError, match="holds 2 box files"):
        read_volume(tmp_path)


def test_a_reader_that_takes_anything_breaks_its_promises(
    others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.any").write_bytes(b"12345")
    assert main(["check-plugin", "any", "--example", str(tmp_path / "scan.any")]) == 1
    assert "3 of these promises are broken" in capsys.readouterr().out
    assert main(["check-plugin", "box"]) == 2
    assert "--example is missing" in capsys.readouterr().err


def test_a_writer_gets_a_folder_of_its_own(others: Path, tiny: str, scan: Path) -> None:
    analysis = chestct.analyse_scan(
        scan, load_classifier(tiny), engine="torch", explain="first_half"
    )
    assert analysis.explanation is not None
    assert analysis.explanation.explanation.method == "first_half"
    kept = list(broken(PROMISES["writer"], WriterCase("words", analysis)))
    assert [why for _, why in kept] == ["", ""]
    found = list(broken(PROMISES["writer"], WriterCase("astray", analysis)))
    assert all("folder that it was given" in why for _, why in found)


def test_a_classifier_whose_package_is_gone_says_so(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "classifier")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "network": "their_network"}))
    with pytest.raises(ClassifierError, match=r"'their_network'.*Another package may bring it"):
        load_classifier(folder)

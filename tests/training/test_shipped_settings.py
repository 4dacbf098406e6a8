"""The settings that come with chestct: all of the repository's, found by name from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestct.cli.info import _describe_installation
from chestct.errors import TrainingError
from chestct.training import settings
from chestct.training.settings import _find_settings, read_settings, shipped_folder, shipped_names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_all_of_the_repositorys_come_along_unchanged() -> None:
    files = [file.relative_to(CONFIGS) for file in CONFIGS.rglob("*.yaml")]
    assert len(files) > 10
    assert shipped_names() == sorted(file.with_suffix("").as_posix() for file in files)
    for file in files:
        assert (shipped_folder() / file).read_bytes() == (CONFIGS / file).read_bytes()


def test_an_installed_package_brings_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ours.yaml").write_text("labels: [a, b]\n")
    monkeypatch.setattr(settings, "_PACKAGE", tmp_path)
    assert shipped_names() == ["ours"]


def test_a_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings("maseres_paper", ["training.epochs=3"]).network.name == "maseres"
    assert _find_settings(Path("slices/vgg19_published")).is_file()


def test_a_file_that_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("maseres_paper")
    own.write_text((CONFIGS / "voxcnn_paper.yaml").read_text())
    assert read_settings(own).network.name == "voxcnn"


def test_what_is_neither_file_nor_name_is_refused_with_the_names() -> None:
    with pytest.raises(TrainingError, match="settings that come with chestct: alexnet3d_paper, "):
        read_settings("maseres_papr")


def test_info_says_what_each_is() -> None:
    words = _describe_installation()["settings"]
    assert [*words] == shipped_names()
    assert words["maseres_paper"] == "MASERes as the text has it"
    assert all(15 < len(text) < 90 for text in words.values())

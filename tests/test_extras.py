"""Optional packages: found without importing, and named when missing."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from chestct import extras
from chestct.errors import ChestCTError
from chestct.extras import MissingExtraError, import_extra, is_installed

ABSENT = "chestct_package_that_does_not_exist"


def test_an_installed_package_is_imported() -> None:
    assert import_extra("json", extra="all") is sys.modules["json"]


def test_a_missing_package_is_answered_with_the_command_that_installs_it() -> None:
    assert not is_installed(ABSENT)
    with pytest.raises(MissingExtraError) as refusal:
        import_extra(ABSENT, extra="openvino")
    assert ABSENT in str(refusal.value)
    assert "pip install 'chestct[openvino]'" in str(refusal.value)
    assert isinstance(refusal.value, ChestCTError)


def test_asking_whether_a_package_is_installed_does_not_import_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert is_installed("this")
    assert "this" not in sys.modules


def test_a_package_that_fails_while_it_is_imported_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "broken_extra.py").write_text("raise RuntimeError('inside')")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(RuntimeError, match="inside"):
        extras.import_extra("broken_extra", extra="all")


def test_no_version_of_a_reader_of_files_with_a_known_hole_may_be_installed() -> None:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    lowest = dict(line.split(",")[0].split(">=") for line in wanted if ">=" in line)
    assert tuple(map(int, lowest["pydicom"].split("."))) >= (3, 0, 2)
    assert tuple(map(int, lowest["pillow"].split("."))) >= (12, 1)

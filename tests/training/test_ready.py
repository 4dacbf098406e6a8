from __future__ import annotations

from pathlib import Path

import pytest

from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.store import Cache, CacheError, Preparation
from chestct.errors import TrainingError
from chestct.preprocess.recipes import RECIPES
from chestct.training import data
from chestct.training.data import Division
from chestct.training.plan import Listener, find_parts
from chestct.training.settings import DataSection, RunSettings


def test_scans_that_cannot_be_prepared_are_listed_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(ManifestRow(f"{n}", f"p{n}", ("COVID-19", "normal")[n % 2]) for n in range(8))
    manifest = Manifest(rows, folder=tmp_path, name="scans.csv")
    failed = {row.number: "its grid is too large" for row in manifest.rows[:7]}

    def fail(*arguments: object, **named: object) -> Preparation:
        return Preparation(1, 0, failed, {}, max_error=0.0, seconds=0.1)

    monkeypatch.setattr(data, "prepare_all", fail)
    settings = RunSettings.model_validate(
        {
            "labels": ["COVID-19", "normal"],
            "network": {"name": "maseres"},
            "recipe": {"name": "maseres_paper", "overrides": {"input_shape": [40, 40, 40]}},
        }
    )
    cache = Cache(tmp_path / "cache", find_parts(settings).recipe)
    halves = [manifest.choose(lambda row, half=half: row.number // 6 == half) for half in (0, 1)]
    division = Division(*halves)
    section = DataSection.model_validate({})
    with pytest.raises(TrainingError) as error:
        data.prepare_scans(division, section, cache, Listener())
    assert "7 scans could not be prepared" in str(error.value)
    assert "row 2: its grid is too large" in str(error.value)
    assert "and 2 more" in str(error.value)


@pytest.mark.parametrize("num_validation", [2, 30])
def test_room_for_scans_and_variants_together_is_asked_before_the_first_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_validation: int
) -> None:
    asked: list[int] = []

    def prepare(cache: Cache, manifest: Manifest, **named: object) -> Preparation:
        asked.append(len(manifest))
        return Preparation(1, 0, {}, {}, max_error=0.0, seconds=0.1)

    monkeypatch.setattr(data, "prepare_all", prepare)
    num = 12 + num_validation
    rows = tuple(ManifestRow(f"{n}", f"p{n}", ("COVID-19", "normal")[n % 2]) for n in range(num))
    manifest = Manifest(rows, folder=tmp_path, name="scans.csv")
    training = manifest.choose(lambda row: int(row.scan) < 12)
    division = Division(training, manifest.choose(lambda row: int(row.scan) >= 12))
    section = DataSection(variants=3)
    needed = 12 * 3 + num_validation
    recipe = RECIPES["maseres_recommended"]
    size = Cache(tmp_path, recipe).entry_bytes
    small = Cache(tmp_path, recipe, max_bytes=needed * size - 1)
    with pytest.raises(CacheError, match=f"^{needed} inputs of maseres_recommended take"):
        data.prepare_scans(division, section, small, Listener())
    assert asked == []
    data.prepare_scans(
        division, section, Cache(tmp_path, recipe, max_bytes=needed * size), Listener()
    )
    assert asked == [num, 12]


def test_the_cache_is_the_user_s_unless_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = find_parts(
        RunSettings.model_validate(
            {
                "labels": ["COVID-19", "normal"],
                "network": {"name": "maseres"},
                "recipe": {"name": "maseres_paper", "overrides": {"input_shape": [40, 40, 40]}},
            }
        )
    ).recipe
    usual = data.make_cache(DataSection.model_validate({}), recipe)
    assert usual.folder == tmp_path / "chestct" / "prepared"
    named = {"cache": "elsewhere", "cache_gib": 2, "storage": "uint8"}
    chosen = data.make_cache(DataSection.model_validate(named), recipe)
    assert (chosen.folder, chosen.max_bytes, chosen.storage) == (Path("elsewhere"), 2**31, "uint8")

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.store import Cache, CacheError, Preparation
from chestct.errors import TrainingError
from chestct.preprocess.recipes import RECIPES
from chestct.training import data
from chestct.training.data import Division, _divide_fold, _with_folds, divide
from chestct.training.plan import Listener, find_parts
from chestct.training.settings import DataSection, RunSettings

SECTION = DataSection.model_validate({"validation_share": 0.25})


def manifest(num: int = 12, **columns: object) -> Manifest:
    """Patients with two scans each, two classes in turn."""
    rows = [
        ManifestRow(f"{p}-{scan}", f"p{p:02d}", ("COVID-19", "normal")[p % 2])
        for p in range(num)
        for scan in range(2)
    ]
    return Manifest(tuple(replace(row, **columns) for row in rows))  # type: ignore[arg-type]


def with_splits(splits: dict[str, str], rest: str) -> Manifest:
    plain = manifest()
    return plain.with_rows(replace(r, split=splits.get(r.patient, rest)) for r in plain.rows)


def patients(part: Manifest | None) -> set[str]:
    return set() if part is None else {row.patient for row in part.rows}


def assert_apart(division: Division) -> None:
    sides = [patients(part) for part in division.parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))


def test_without_a_split_a_validation_part_is_drawn_by_patient_and_class() -> None:
    division = divide(manifest(), SECTION)
    assert_apart(division)
    assert division.test is None
    assert division.validation.cases == {"COVID-19": 4, "normal": 4}
    assert division.training.cases == {"COVID-19": 8, "normal": 8}


def test_a_given_split_is_kept() -> None:
    given = with_splits({"p00": "validation", "p01": "validation", "p02": "test"}, "training")
    division = divide(given, SECTION)
    assert patients(division.validation) == {"p00", "p01"}
    assert patients(division.test) == {"p02"}


def test_a_split_without_validation_gets_one_out_of_training_only() -> None:
    division = divide(with_splits({"p02": "test", "p03": "test"}, "training"), SECTION)
    assert_apart(division)
    assert patients(division.test) == {"p02", "p03"}
    assert not patients(division.validation) & {"p02", "p03"}


def test_a_patient_on_two_sides_is_refused() -> None:
    plain = manifest()
    rows = [replace(r, split=("training", "test")[n % 2]) for n, r in enumerate(plain.rows)]
    with pytest.raises(ManifestError, match="one patient"):
        divide(plain.with_rows(rows), SECTION)


def test_every_fold_is_the_test_part_once_and_chooses_nothing() -> None:
    dealt = _with_folds(manifest(), 3, SECTION)
    held = []
    for fold in dealt.folds:
        division = _divide_fold(dealt, fold, SECTION)
        assert_apart(division)
        assert division.validation.cases["COVID-19"] > 0
        held += [row.scan for row in division.test.rows]  # type: ignore[union-attr]
    assert sorted(held) == sorted(row.scan for row in manifest().rows)


def test_the_manifest_s_own_folds_are_taken_and_another_number_is_refused() -> None:
    plain = manifest()
    own = plain.with_rows(replace(r, fold=1 + int(r.patient[1:]) // 2 % 2) for r in plain.rows)
    assert _with_folds(own, 2, SECTION) == own
    with pytest.raises(TrainingError, match="has 2 folds and 3 were asked for"):
        _with_folds(own, 3, SECTION)


def test_joined_names_the_part_of_every_scan_in_the_manifest_s_order() -> None:
    division = divide(manifest(), SECTION)
    joined = division.joined
    assert [row.number for row in joined.rows] == list(range(2, 26))
    assert {row.split for row in joined.rows} == {"training", "validation"}


def test_rows_can_be_left_out_but_not_a_whole_class() -> None:
    division = divide(manifest(), SECTION)
    first = division.training.rows[0].number
    assert first not in {row.number for row in division.without([first]).training.rows}
    assert division.without([]) is division
    normal = [row.number for row in division.training.rows if row.label == "normal"]
    with pytest.raises(ManifestError, match="are COVID-19"):
        division.without(normal)


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

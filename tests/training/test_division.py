from __future__ import annotations

from dataclasses import replace

import pytest

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.errors import TrainingError
from chestct.training.data import Division, _divide_fold, _with_folds, divide
from chestct.training.settings import DataSection

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

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelled_scans import make_manifest, make_rows

from chestct.datasets.confounders import (
    _UNKNOWN,
    Confounder,
    _categories,
    baseline_probabilities,
    find_confounders,
)
from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.scans import ScanFacts

QUICK = 19
"""Random labellings that a figure is held against."""


def ask(manifest: Manifest, variable: str, facts: list[ScanFacts] | None = None) -> Confounder:
    found = {each.variable: each for each in find_confounders(manifest, facts, QUICK)}
    return found[variable]


def manifest_with(column: str, values: dict[str, list[object]]) -> Manifest:
    """As many patients per class as values are given."""
    rows = make_rows({label: len(each) for label, each in values.items()})
    flat = [value for each in values.values() for value in each]
    return make_manifest(
        [replace(row, **{column: value}) for row, value in zip(rows, flat, strict=True)]
    )


def test_a_site_that_is_the_class_is_called_so() -> None:
    manifest = manifest_with("site", {"COVID-19": ["A"] * 20, "normal": ["B"] * 12})
    found = ask(manifest, "site")
    assert found.is_same_as_class
    assert found.auc == pytest.approx(1.0)
    assert found.p_value == pytest.approx(1 / 20)
    assert found.values == {"A": {"COVID-19": 20}, "B": {"normal": 12}}


def test_a_site_that_is_mixed_is_chance() -> None:
    manifest = manifest_with("site", {"COVID-19": ["A", "B"] * 15, "normal": ["A", "B"] * 15})
    found = ask(manifest, "site")
    assert not found.is_same_as_class
    assert found.auc is not None
    assert abs(found.auc - 0.5) < 0.15
    assert found.p_value is None


def test_one_value_for_all_is_exactly_chance() -> None:
    found = ask(manifest_with("site", {"CAP": ["A"] * 9, "normal": ["A"] * 9}), "site")
    assert found.auc == 0.5
    assert found.note == "the same for all"


def test_age_tells_children_from_adults_whatever_way_round() -> None:
    rng = np.random.default_rng(0)
    young, old = rng.normal(10, 3, 40).clip(0), rng.normal(60, 10, 40)
    values: dict[str, list[object]] = {
        "COVID-19": [float(age) for age in old], "normal": [float(age) for age in young],
    }  # fmt: skip
    found = ask(manifest_with("age", values), "age")
    assert found.auc is not None
    assert found.auc > 0.9
    assert found.chance_auc is not None
    assert found.chance_auc < 0.8
    assert len(found.values) == 5


def test_the_middle_against_both_ends_is_seen_too() -> None:
    ages: dict[str, list[object]] = {
        "CAP": [float(age) for age in (*range(10, 30), *range(70, 90))],
        "normal": [float(age) for age in range(35, 65)],
    }
    found = ask(manifest_with("age", ages), "age")
    assert found.auc is not None
    assert found.auc > 0.85


def test_that_a_value_is_missing_can_tell_the_class() -> None:
    values: dict[str, list[object]] = {"CAP": ["F", "M"] * 8, "normal": [""] * 16}
    found = ask(manifest_with("sex", values), "sex")
    assert found.auc == pytest.approx(1.0)
    assert found.num_unknown == 16
    assert _UNKNOWN in found.values


def test_a_value_of_ones_own_tells_nothing_about_others() -> None:
    values: dict[str, list[object]] = {
        "CAP": [f"a{i}" for i in range(20)], "normal": [f"b{i}" for i in range(20)],
    }  # fmt: skip
    found = ask(manifest_with("site", values), "site")
    assert not found.is_same_as_class
    assert found.auc == pytest.approx(0.5)


def test_what_is_not_known_or_too_few_is_said() -> None:
    few = manifest_with("site", {"CAP": ["A"], "normal": ["A", "B", "B"]})
    assert ask(few, "site").note == "a class has fewer than two patients"
    assert ask(few, "age").note == "not known for any scan"
    assert ask(few, "age").auc is None


def test_scans_of_one_patient_are_one_witness() -> None:
    rows = [replace(row, site="A") for row in make_rows({"CAP": 3, "normal": 3}, 10)]
    assert ask(make_manifest(rows), "site").num_patients == 6


def test_three_classes_are_asked_each_against_the_rest() -> None:
    values: dict[str, list[object]] = {
        "CAP": ["A"] * 10, "COVID-19": ["A"] * 10, "normal": ["B"] * 10,
    }  # fmt: skip
    found = ask(manifest_with("site", values), "site")
    assert found.auc == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert not found.is_same_as_class


def test_the_manifest_goes_before_the_file_and_the_strongest_comes_first() -> None:
    rows = make_rows({"CAP": 6, "normal": 6})
    rows[0] = replace(rows[0], sex="M")
    manifest = make_manifest(rows)
    facts = [
        ScanFacts(acquisition={"sex": "F", "kernel": "sharp" if i < 6 else "soft"})
        for i in range(12)
    ]
    found = find_confounders(manifest, facts, QUICK)
    assert found[0].variable == "kernel"
    assert found[-1].auc is None
    assert ask(manifest, "sex", facts).values == {"F": {"CAP": 5, "normal": 6}, "M": {"CAP": 1}}


def test_columns_of_ones_own_name_are_taken() -> None:
    rows = [
        replace(row, others={"dataset": row.label, "kernel": "k"})
        for row in make_rows({"CAP": 5, "normal": 5})
    ]
    manifest = make_manifest(rows)
    assert ask(manifest, "dataset").is_same_as_class
    assert ask(manifest, "kernel").note == "the same for all"


def test_numbers_become_few_categories() -> None:
    assert _categories("slice_thickness_mm", ["5.0", "5", "", "thin"]) == [
        "5",
        "5",
        _UNKNOWN,
        "thin",
    ]
    ages = _categories("age", [str(age) for age in range(51)])
    assert len(set(ages)) == 5
    assert (ages[0], ages[25], ages[50]) == ("under 10", "20 to 30", "40 and over")
    assert len(set(_categories("age", [str(age) for age in range(100)]))) == 10
    dates = _categories("date", [f"2020-{month:02d}" for month in range(1, 13)] + ["", "soon"])
    assert dates[0].startswith("under 2020-0")
    assert dates[-2:] == [_UNKNOWN, _UNKNOWN]
    assert _categories("age", ["63", ""]) == ["63", _UNKNOWN]


def test_the_baseline_knows_age_sex_and_scanner_only() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(60):
        label = "COVID-19" if number % 2 else "normal"
        age = float(rng.normal(70 if number % 2 else 30, 8))
        rows.append(ManifestRow(str(number), str(number), label, age=age, sex="F"))
    manifest = Manifest(tuple(rows), ("CAP", "COVID-19", "normal"))
    training, test = list(range(40)), list(range(40, 60))
    probabilities = baseline_probabilities(manifest, None, training, test)
    assert probabilities.shape == (20, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[:, 0] == 0).all()
    truth = np.array(manifest.label_indices)[test]
    assert (probabilities.argmax(axis=1) == truth).mean() > 0.9
    without = baseline_probabilities(manifest, None, training, test, ("sex", "scanner"))
    assert (without.argmax(axis=1) == truth).mean() < 0.7
    unknown = baseline_probabilities(
        make_manifest(make_rows({"CAP": 9, "normal": 9})), None, training[:18], [0]
    )
    np.testing.assert_allclose(unknown, 0.5, atol=1e-6)

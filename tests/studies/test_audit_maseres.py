"""The MASERes paper's p-values, kappas and counts, against the reference and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from chestct.evaluation.metrics import ClassCounts
from chestct.studies import published
from chestct.studies.audit_maseres import (
    MaseresAudit,
    _audit_model,
    _can_be_kappa,
    _decisions_of,
    audit_maseres_paper,
)
from chestct.studies.published import percent_of, rounded

EXPECTED = json.loads(Path(__file__).with_name("papers_expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def audit() -> MaseresAudit:
    return audit_maseres_paper()


def test_table_5_is_reproduced_to_the_digits_of_the_reference(audit: MaseresAudit) -> None:
    for place, other in enumerate(("3D-AlexNet", "VoxCNN")):
        for figure, columns in EXPECTED["table_5"].items():
            second, z, p_value, published = columns[place]
            (row,) = [r for r in audit.p_values if (r.other, r.figure) == (other, figure)]
            assert f"{row.values[1]:.4f}" == second
            assert ("0/0" if row.z is None else f"{row.z:.4f}") == z
            assert rounded(row.reproduced, 4) == float(p_value)
            assert row.published == float(published) == rounded(row.reproduced, 3)


def test_with_their_own_numbers_of_cases_most_p_values_grow(audit: MaseresAudit) -> None:
    own = {(row.other, row.figure): row.own_total for row in audit.p_values}
    expected = {"precision": 0.1400, "sensitivity": 0.0512, "specificity": 0.1490}
    for figure, value in expected.items():
        assert round(own["3D-AlexNet", figure] or 0, 4) == value
    assert round(own["VoxCNN", "sensitivity"] or 0, 4) == 0.1425
    assert own["VoxCNN", "F1"] is None


def test_other_tests_of_the_accuracy_are_those_of_the_reference(audit: MaseresAudit) -> None:
    alexnet, voxcnn = audit.tests
    assert [each["mcnemar"].p_value for each in audit.tests] == [0.25, 1.0]
    assert [round(each["fisher"], 3) for each in audit.tests] == [0.232, 1.0]
    assert [rounded(each["z_two_sided"], 4) for each in audit.tests] == [0.0614, 0.3055]
    assert [rounded(each["z_pooled"], 4) for each in audit.tests] == [0.0723, 0.3115]
    assert (alexnet["mcnemar"].statistic, voxcnn["mcnemar"].statistic) == (3, 1)


def test_one_kappa_is_reproduced_and_the_other_is_impossible(audit: MaseresAudit) -> None:
    alexnet, voxcnn = audit.kappas
    assert round(voxcnn["recomputed"].estimate, 4) == voxcnn["published"] == 0.8966
    assert round(alexnet["recomputed"].estimate, 4) == 0.6897
    assert alexnet["possible_with"] == ()
    assert voxcnn["possible_with"] == (21,)


@pytest.mark.parametrize("table", [(9, 2, 1, 9), (20, 0, 0, 1), (0, 10, 11, 0), (3, 7, 4, 7)])
def test_the_search_finds_the_kappa_of_a_table_that_exists(table: tuple[int, ...]) -> None:
    first = np.repeat([1, 1, 0, 0], table)
    second = np.repeat([1, 0, 1, 0], table)
    kappa = round(float(cohen_kappa_score(first, second)), 4)
    assert _can_be_kappa(kappa, sum(table))


def test_what_21_of_21_means_is_computed_by_hand(audit: MaseresAudit) -> None:
    everyone, covid, normal = audit.no_errors
    assert everyone["exact_low"] == pytest.approx(0.025 ** (1 / 21))
    assert everyone["error_bound"] == pytest.approx(1 - 0.05 ** (1 / 21))
    assert everyone["rule_of_three"] == 3 / 21
    lows = [round(100 * each["rate"].low, 1) for each in audit.no_errors]
    assert lows == [84.5, 77.2, 67.6]
    assert (covid["rate"].total, normal["rate"].total) == (13, 8)
    assert audit.patients_needed == math.ceil(math.log(0.05) / math.log(0.95)) == 59


def test_ctset_figures_belong_to_one_set_of_counts(audit: MaseresAudit) -> None:
    assert audit.ctset == (ClassCounts(tp=57, fn=0, fp=3, tn=16),)
    assert audit.ctset_scores is not None
    recall = audit.ctset_scores.covid_recall
    assert (percent_of(recall, 2), round(100 * (recall.low or 0), 1)) == (84.21, 62.4)
    assert audit.ctset_scores.auc is None


def test_damaged_models_slices_and_split_agree_with_what_is_printed(audit: MaseresAudit) -> None:
    assert audit.damaged_as_printed == dict.fromkeys(["I", "II", "III", "IV", "V"], True)
    assert audit.split_as_printed == {"COVID-19": True, "normal": True}
    accuracy = {each.name: percent_of(each.accuracy, 2) for each in audit.slices}
    assert accuracy["VGG19"] == 98.55
    assert [name for name, value in accuracy.items() if (value or 0) < 99] == ["VGG19"]


def test_an_auc_of_few_pairs_tells_how_many_are_in_order(audit: MaseresAudit) -> None:
    pairs = {each.name: each.pairs_in_order for each in (*audit.patients, *audit.slices)}
    assert pairs["3D-AlexNet"] == 101
    assert pairs["VGG19"] is None


def test_decisions_have_the_counts_they_were_made_from() -> None:
    counts = ClassCounts(tp=6, fn=2, fp=1, tn=12)
    made = _decisions_of(counts)
    model = _audit_model(published.TestedModel("any", counts, None))
    assert len(made) == 21
    assert int(made.is_right.sum()) == model.accuracy.hits == 18
    assert model.pairs_in_order is None

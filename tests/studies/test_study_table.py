from __future__ import annotations

import csv

import numpy as np
import pytest

from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions
from chestct.labels import THREE_CLASSES
from chestct.studies.roi_ablation import (
    _as_markdown,
    _compare_pairs,
    _differing_columns,
    _draw_accuracies,
    _draw_sensitivities,
    _pairs_csv,
    _rows_csv,
)
from chestct.studies.study_rows import Row, TableRow, holm, make_rows

NUM_SCANS = 30
BOOTSTRAP = Bootstrap(50)


def predictions(wrong: set[int], num_scans: int = NUM_SCANS) -> Predictions:
    truth = np.arange(num_scans) % 3
    decided = np.array([(t + 1) % 3 if i in wrong else t for i, t in enumerate(truth)])
    names = tuple(f"scan-{number:02d}" for number in range(num_scans))
    return Predictions(names, names, truth, 0.7 * np.eye(3)[decided] + 0.1, THREE_CLASSES)


def table(*results: tuple[Row, set[int]]) -> tuple[TableRow, ...]:
    return make_rows({row: predictions(wrong) for row, wrong in results}, BOOTSTRAP)


PLAIN, GATED = (Row("roi_resnet18", gating, 0.8) for gating in ("none", "figure"))
OTHER = Row("roi_resnet50", "none", 0.7)


@pytest.fixture(scope="module")
def rows() -> tuple[TableRow, ...]:
    return table(
        (PLAIN, set(range(9))), (GATED, {0, 29}), (Row("roi_resnet18", "none", 0.7), {1}),
        (OTHER, {1}),
    )  # fmt: skip


def test_only_rows_that_differ_in_one_thing_are_compared(rows: tuple[TableRow, ...]) -> None:
    assert _differing_columns(PLAIN, GATED) == ["gating"]
    assert _differing_columns(PLAIN, OTHER) == ["network", "threshold"]
    pairs = {(t.first.name, t.second.name): t.column for t in _compare_pairs(rows)}
    assert pairs == {
        ("roi_resnet18-none-t80", "roi_resnet18-figure-t80"): "gating",
        ("roi_resnet18-none-t80", "roi_resnet18-none-t70"): "threshold",
        ("roi_resnet18-none-t70", "roi_resnet50-none-t70"): "network",
    }


def test_the_discordant_scans_and_the_exact_p_are_those_counted_by_hand(
    rows: tuple[TableRow, ...],
) -> None:
    gating, threshold, network = _compare_pairs(rows)
    assert (gating.only_first, gating.only_second) == (1, 8)
    # Two-sided binomial: 2 (C(9,0) + C(9,1)) / 2^9.
    assert gating.p_value == pytest.approx(2 * 10 / 512)
    assert (threshold.only_first, threshold.only_second) == (0, 8)
    assert threshold.p_value == pytest.approx(2 / 256)
    assert (network.only_first, network.only_second, network.p_value) == (0, 0, 1.0)
    assert threshold.holm == pytest.approx(3 * threshold.p_value)
    assert gating.holm == pytest.approx(2 * gating.p_value)
    assert network.holm == 1


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_rows_that_judged_other_scans_are_compared_on_those_they_share() -> None:
    pair = make_rows(
        {PLAIN: predictions({0, 1}), GATED: predictions({1}).choose(range(24))}, BOOTSTRAP
    )
    (test,) = _compare_pairs(pair)
    assert (test.num_scans, test.only_first, test.only_second) == (24, 0, 1)
    assert "different numbers of scans" in _as_markdown(pair, [test], [])


def test_the_table_tells_ppv_from_specificity_and_says_how_intervals_are_made(
    rows: tuple[TableRow, ...],
) -> None:
    tests = _compare_pairs(rows)
    text = _as_markdown(rows, tests, ["Simulated disease."])
    assert "- Simulated disease." in text
    assert "Every row judged 30 scans of 30 patients: 10 CAP, 10 COVID-19, 10 normal." in text
    assert "## PPV per class" in text
    assert "## specificity per class" in text
    assert "head SPE holds PPV" in text
    assert "Holm's correction over all 3 tests" in text
    assert "| 1 | roi_resnet18 | none | 0.8 | 0.700 (0.521 to 0.833) |" in text
    lines = list(csv.DictReader(_rows_csv(rows).splitlines()))
    (accuracy,) = [
        line for line in lines
        if (line["gating"], line["figure"]) == ("figure", "accuracy")
    ]  # fmt: skip
    assert (accuracy["hits"], accuracy["total"], accuracy["method"]) == ("28", "30", "Wilson")
    written = list(csv.DictReader(_pairs_csv(tests).splitlines()))
    assert float(written[0]["p_value"]) == tests[0].p_value


def test_rows_that_learned_nothing_are_named(rows: tuple[TableRow, ...]) -> None:
    assert "most frequent class" not in _as_markdown(rows, (), [])
    guessing = table((PLAIN, set(range(19))), (GATED, set()))
    text = _as_markdown(guessing, (), [])
    assert "1 of 2 rows are not surely better" in text
    assert "or above: roi_resnet18-none-t80." in text


def test_the_figures_show_a_panel_per_network_and_a_tick_per_row(
    rows: tuple[TableRow, ...],
) -> None:
    accuracies = _draw_accuracies(rows)
    assert [axes.get_title() for axes in accuracies.axes] == ["roi_resnet18", "roi_resnet50"]
    sensitivities = _draw_sensitivities(rows)
    ticks = [label.get_text() for label in sensitivities.axes[0].get_xticklabels()]
    assert ticks[1] == "roi_resnet18 figure t=0.8"
    assert len(ticks) == len(rows)
    names = [text.get_text() for text in sensitivities.legends[0].get_texts()]
    assert names == list(THREE_CLASSES)


def test_a_figure_without_an_interval_is_left_out_of_the_plot() -> None:
    single = make_rows({PLAIN: predictions(set(), 2)}, BOOTSTRAP)
    assert len(_draw_sensitivities(single).axes[0].containers) == 2

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from chestct.errors import WriteError
from chestct.evaluation import figures
from chestct.evaluation.calibration import coverage_risk, reliability_curve
from chestct.evaluation.intervals import Bootstrap, estimate_figures
from chestct.evaluation.metrics import confusion_matrix
from chestct.evaluation.predictions import Predictions
from chestct.labels import THREE_CLASSES

MakePredictions = Callable[..., Predictions]
FEW = Bootstrap(replicates=100)


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def epochs(num: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "training_loss": 1 / (1 + epoch),
            "validation_loss": 1.1 / (1 + epoch),
            "validation_accuracy": epoch / num,
        }
        for epoch in range(num)
    ]


def test_the_confusion_figure_holds_counts_and_shares_of_rows() -> None:
    drawn = figures._draw_confusion(np.array([[3, 1], [0, 0]]), ("COVID-19", "normal"))
    assert texts_of(drawn) == ["3\n75%", "1\n25%", "0", "0"]
    assert drawn.axes[0].get_title() == "3 of 4 right"


def test_a_figure_that_is_laid_out_has_its_places_and_is_saved_without_another_layout(
    tmp_path: Path,
) -> None:
    plain, settled = (figures._draw_learning_curves({"fold": epochs(3)}) for _ in range(2))
    figures._lay_out(settled)
    assert settled.get_layout_engine() is None
    places = [axes.get_position().bounds for axes in settled.axes]
    for name in ("a.svg", "a.pdf", "a.png"):
        figures.save_figure(plain, tmp_path / name)
        figures.save_figure(settled, tmp_path / name)
        assert [axes.get_position().bounds for axes in settled.axes] == places
        found = [axes.get_position().bounds for axes in plain.axes]
        np.testing.assert_allclose(found, places, atol=0.01)


def test_the_roc_legend_holds_areas_with_intervals(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(60)
    estimates = estimate_figures(predictions, FEW)
    drawn = figures._draw_roc(predictions, estimates, FEW)
    area = estimates.per_class["CAP"]["auc"]
    assert legend_of(drawn)[0] == f"CAP: {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
    assert len(drawn.axes[0].collections) == 3
    assert legend_of(figures._draw_roc(predictions, bootstrap=FEW))[0] == f"CAP: {area.value:.3f}"


def test_curves_differ_in_dash_as_well_as_in_colour(make_predictions: MakePredictions) -> None:
    lines = figures._draw_roc(make_predictions(60), bootstrap=FEW).axes[0].lines[1:]
    assert len({line.get_linestyle() for line in lines}) == 3
    assert len({line.get_color() for line in lines}) == 3


def test_roc_bands_lie_around_the_curve(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(150)
    bands = figures._roc_bands(predictions, Bootstrap(replicates=400))
    assert list(bands) == list(THREE_CLASSES)
    grid = np.linspace(0, 1, 201)
    false_rate, true_rate = figures._roc_curve(predictions, 0)
    low, high = bands["CAP"]
    curve = np.interp(grid, false_rate, true_rate)
    assert np.mean((low - 1e-9 <= curve) & (curve <= high + 1e-9)) > 0.97
    assert (np.diff(low) >= -1e-9).all()
    assert high[-1] == low[-1] == 1


def test_the_area_under_the_mean_replicate_is_the_area(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(150)
    once = np.ones((1, 150))
    rates = figures._weighted_roc(predictions, 2, once)[0]
    area = estimate_figures(predictions, FEW).per_class["normal"]["auc"].value
    assert np.trapezoid(rates, dx=1 / 200) == pytest.approx(area, abs=0.01)


def test_classes_without_an_area_say_why_in_the_legend(make_predictions: MakePredictions) -> None:
    whole = make_predictions(60)
    without = whole.choose(np.flatnonzero(whole.truth != 0))
    drawn = figures._draw_roc(without, bootstrap=FEW)
    assert legend_of(drawn)[0] == "CAP: no scan is CAP"
    assert len(drawn.axes[0].collections) == 2


def test_reliability_shows_accuracies_and_scans(make_predictions: MakePredictions) -> None:
    curve = reliability_curve(make_predictions(60))
    alone = figures._draw_reliability(curve, 0.123)
    assert legend_of(alone) == ["accuracy, 95 % interval"]
    assert alone.axes[0].get_title() == "calibration error 0.123"
    assert sum(bar.get_height() for bar in alone.axes[1].patches) == 60


def test_learning_curves_draw_what_the_log_has() -> None:
    older = [{"epoch": 0, "training_loss": 1.0}, {"epoch": 1, "training_loss": 0.5}]
    drawn = figures._draw_learning_curves({"fold 0": epochs(5), "fold 1": older})
    upper, lower = drawn.axes
    assert [line.get_ydata()[-1] for line in upper.lines[:2]] == pytest.approx([1 / 5, 1.1 / 5])
    assert upper.lines[2].get_xdata().tolist() == [0, 1]
    assert lower.lines[0].get_ydata()[-1] == 0.8
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names == ["fold 0", "fold 1", "training", "validation"]


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_scans_are_drawn_without_a_warning(
    make_predictions: MakePredictions, tmp_path: Path, num: int
) -> None:
    predictions = make_predictions(num)
    confusion = confusion_matrix(predictions.truth, predictions.decisions, 3)
    drawn = [
        figures._draw_confusion(confusion, predictions.labels),
        figures._draw_roc(predictions, bootstrap=FEW),
        figures._draw_reliability(reliability_curve(predictions), None),
        figures._draw_coverage_risk(coverage_risk(predictions)),
        figures._draw_learning_curves({"run": epochs(num)}),
    ]
    for number, figure in enumerate(drawn):
        path = figures.save_figure(figure, tmp_path / f"{number}.png")
        with Image.open(path) as picture:
            assert picture.size[0] > 300


def test_the_same_figure_gives_the_same_bytes(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    points = coverage_risk(make_predictions(30))
    for ending in ("svg", "png"):
        written = [
            figures.save_figure(figures._draw_coverage_risk(points), tmp_path / f"{n}.{ending}")
            for n in range(2)
        ]
        assert written[0].read_bytes() == written[1].read_bytes()
    assert (tmp_path / "0.svg").read_text().startswith("<?xml")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    drawn = figures._draw_coverage_risk(())
    with pytest.raises(WriteError, match=r"a.png could not be written"):
        figures.save_figure(drawn, tmp_path / "none" / "a.png")


def test_neither_import_nor_drawing_touches_pyplot_or_loads_much() -> None:
    script = (
        "import sys, numpy as np\n"
        "import chestct.evaluation.report, chestct.evaluation.predictions\n"
        "heavy = {'torch', 'scipy', 'sklearn', 'statsmodels', 'matplotlib', 'pandas'}\n"
        "early = sorted(heavy & set(sys.modules))\n"
        "from chestct.evaluation.figures import _draw_confusion\n"
        "_draw_confusion(np.eye(2, dtype=np.int64), ('a', 'b'))\n"
        "sys.exit(f'{early}' if early or 'matplotlib.pyplot' in sys.modules else 0)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr

"""Plots of an evaluation, in colours that every kind of colour vision tells apart.

Each function returns a matplotlib `Figure` made without pyplot, so nothing global is kept and
threads do not meet. Curves differ in dash as well as in colour (palette of Okabe and Ito).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float64

from chestct.errors import WriteError
from chestct.evaluation import metrics
from chestct.evaluation.calibration import ReliabilityBin, RiskPoint
from chestct.evaluation.intervals import Bootstrap, Figures, draw_patients, why_no_bootstrap
from chestct.evaluation.metrics import Confusion, Estimate, Weights
from chestct.evaluation.predictions import AnyPredictions, Predictions, PredictionsError
from chestct.storage import reason_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestct.evaluation.report import Summary


COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Blue, vermilion, green, purple, orange, sky blue, black."""
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
"""One per colour, for print without colour."""
PAGE_COLORS: Final = {
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
    "#666666": "var(--muted)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#009e73": "var(--green)",
}
"""Drawn colour to a page's own, light or dark; the others can be told in both."""
_DOTS_PER_INCH: Final = 150

_DATES = {".svg": "Date", ".pdf": "CreationDate"}
_DARKEST = 0.55
_GRID = np.linspace(0, 1, 201)
_GREY = "#666666"
_Curve = tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, " point"]]


def draw_evaluation(
    predictions: AnyPredictions,
    summary: Summary,
    bootstrap: Bootstrap,
    logs: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Figure]:
    """The figures of an evaluation by file name without ending; of findings the curves alone."""
    drawn = {"learning_curves": _draw_learning_curves(logs)} if logs else {}
    if isinstance(predictions, Predictions):
        error = summary.figures.overall["expected_calibration_error"].value
        drawn = {
            "confusion": _draw_confusion(summary.confusion, summary.labels),
            "roc": _draw_roc(predictions, summary.figures, bootstrap),
            "reliability": _draw_reliability(summary.reliability, error),
            "coverage_risk": _draw_coverage_risk(summary.coverage_risk),
            **drawn,
        }
    for figure in drawn.values():
        _lay_out(figure)
    return drawn


def _draw_confusion(confusion: Confusion, labels: tuple[str, ...]) -> Figure:
    """Confusion matrix: counts and the share of each row, rows the true labels."""
    from matplotlib.patches import Rectangle

    figure, axes = _new_figure((1.2 + 1.1 * len(labels), 1.0 + 0.95 * len(labels)))
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), aspect="equal")
    for row, column in np.ndindex(*confusion.shape):
        share = f"\n{shares[row, column]:.0%}" if totals[row, 0] else ""
        # Never so dark that the letters need another colour, which a dark page would turn round.
        corner, shade = (column - 0.5, row - 0.5), _DARKEST * shares[row, column]
        axes.add_patch(Rectangle(corner, 1, 1, color=COLORS[0], alpha=shade, linewidth=0))
        text = f"{confusion[row, column]}{share}"
        axes.text(column, row, text, ha="center", va="center")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="decision", ylabel="true label")
    axes.set_title(f"{int(np.trace(confusion))} of {int(confusion.sum())} right", fontsize=10)
    return figure


def _draw_roc(
    predictions: Predictions, figures: Figures | None = None, bootstrap: Bootstrap | None = None
) -> Figure:
    """ROC curve of each class against the rest, with pointwise bootstrap bands over patients.

    `figures` give the areas in the legend their intervals; without, the areas stand alone.
    """
    figure, axes = _new_figure((5.2, 5.0))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    bands = _roc_bands(predictions, bootstrap or Bootstrap())
    for index, label in enumerate(predictions.labels):
        area = metrics.auc(predictions, index)
        if area.value is None:
            axes.plot([], [], " ", label=f"{label}: {area.note}")
            continue
        estimate = figures.per_class[label]["auc"] if figures else Estimate(area.value)
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        false_rate, true_rate = _roc_curve(predictions, index)
        name = f"{label}: {estimate.words}"
        axes.plot(false_rate, true_rate, color=color, linestyle=dash, label=name)
        if label in bands:
            axes.fill_between(_GRID, *bands[label], color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right", fontsize=9, title="area under the curve", title_fontsize=9)
    return figure


def _draw_reliability(curve: tuple[ReliabilityBin, ...], error: float | None) -> Figure:
    """Accuracy against confidence, with Wilson intervals, and the number of scans below.

    The title has the expected calibration error.
    """
    figure, axes, below = _stacked_axes((4.8, 5.6))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    _draw_accuracies(axes, curve)
    widths = [each.high - each.low for each in curve]
    counts = [each.num_scans for each in curve]
    below.bar(
        [each.low for each in curve], counts, widths, align="edge", color=COLORS[5], ec="white"
    )
    axes.set_title("no scans" if error is None else f"calibration error {error:.3f}", fontsize=10)
    axes.set(ylabel="share right", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize=9)
    below.set(xlabel="confidence of the decision", ylabel="scans")
    return figure


def _draw_coverage_risk(points: tuple[RiskPoint, ...]) -> Figure:
    """Error rate among the scans decided on against their share, with its upper bound."""
    figure, axes = _new_figure((5.2, 3.8))
    coverage = [point.coverage for point in points]
    bound = [point.risk_bound for point in points]
    risk = [point.risk for point in points]
    dot = "o" if len(points) < 10 else None
    axes.step(coverage, risk, color=COLORS[0], marker=dot, label="on these scans")
    axes.step(coverage, bound, "--", color=COLORS[1], marker=dot, label="95 % upper bound")
    axes.set(xlabel="share of the scans decided on", ylabel="share of them wrong", xlim=(0, 1.01))
    axes.set_ylim(-0.01, 1.01 if not points else max(0.1, min(1.01, 1.5 * bound[-1] + 0.1)))
    axes.legend(fontsize=9)
    return figure


def _draw_learning_curves(logs: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Loss and accuracy per epoch, one colour per run (a fold, a setting), training dashed."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, upper, lower = _stacked_axes((6.0, 5.6), ratios=(1, 1))
    for color, epochs in zip(cycle(COLORS), logs.values(), strict=False):
        _draw_field(upper, epochs, "training_loss", color, "--")
        _draw_field(upper, epochs, "validation_loss", color, "-")
        _draw_field(lower, epochs, "validation_accuracy", color, "-")
    entries = [
        *(Line2D([], [], color=c, label=n) for c, n in zip(cycle(COLORS), logs, strict=False)),
        Line2D([], [], color=_GREY, linestyle="--", label="training"),
        Line2D([], [], color=_GREY, label="validation"),
    ]
    figure.legend(handles=entries, loc="outside upper center", fontsize=8, ncols=4)
    # One epoch with unsettled BatchNorm statistics can be a hundred times above all others.
    upper.set(yscale="log", ylabel="loss (nats)")
    lower.set(xlabel="epoch", ylabel="validation accuracy", ylim=(-0.02, 1.02))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _lay_out(figure: Figure) -> None:
    """Settle where everything stands in a figure that is complete, once for all its files.

    Otherwise each saving computes the layout anew, which takes longer than the drawing.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine(None)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG, PDF or PNG, by the name's ending; the same one gives the same bytes.

    Raises:
        WriteError: The file could not be written.
    """
    import matplotlib

    try:
        # Type 42: letters that journals and editors take as such.
        with matplotlib.rc_context({"svg.hashsalt": "chestct", "pdf.fonttype": 42}):
            metadata = {_DATES[path.suffix]: None} if path.suffix in _DATES else {}
            figure.savefig(path, dpi=_DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise WriteError(f"{path.name} could not be written: {reason_of(error)}.") from error
    return path


def _roc_curve(predictions: Predictions, index: int) -> _Curve:
    """False and true positive rates of one class against the rest, from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve

    is_class = predictions.truth == index
    scores = predictions.probabilities[:, index]
    false_rate, true_rate, _ = roc_curve(is_class, scores, drop_intermediate=False)
    return false_rate.astype(np.float64), true_rate.astype(np.float64)


def _roc_bands(predictions: Predictions, bootstrap: Bootstrap) -> dict[str, _Curve]:
    """Pointwise band of the sensitivity at 201 rates of false positives, by label.

    Classes without an area have none, and no class has one where patients cannot be drawn.
    """
    if why_no_bootstrap(predictions):
        return {}
    rates: dict[str, list[Float64[np.ndarray, "replicate point"]]] = {}
    for weights in draw_patients(predictions, bootstrap):
        for index, label in enumerate(predictions.labels):
            if metrics.auc(predictions, index).value is not None:
                rates.setdefault(label, []).append(_weighted_roc(predictions, index, weights))
    tail = (1 - bootstrap.level) / 2
    bands = {}
    for label, parts in rates.items():
        low, high = np.nanquantile(np.concatenate(parts), [tail, 1 - tail], axis=0)
        bands[label] = (low, high)
    return bands


def _weighted_roc(
    predictions: Predictions, index: int, weights: Weights
) -> Float64[np.ndarray, "replicate point"]:
    """Sensitivity at the grid's rates of false positives, per replicate."""
    scores = predictions.probabilities[:, index]
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    is_class = (predictions.truth == index)[order]
    ranked = weights[:, order]
    true = np.cumsum(ranked * is_class, axis=1)[:, ends]
    false = np.cumsum(ranked * ~is_class, axis=1)[:, ends]
    rows = np.full((len(weights), _GRID.size), np.nan)
    for row in np.flatnonzero((true[:, -1] > 0) & (false[:, -1] > 0)):
        across = np.concatenate([[0.0], false[row] / false[row, -1]])
        rows[row] = np.interp(_GRID, across, np.concatenate([[0.0], true[row] / true[row, -1]]))
    return rows


def _new_figure(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.add_subplot()


def _stacked_axes(
    inches: tuple[float, float], ratios: tuple[int, int] = (3, 1)
) -> tuple[Figure, Axes, Axes]:
    """Two axes above each other that share their horizontal axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=ratios)
    return figure, upper, lower


def _draw_accuracies(axes: Axes, curve: tuple[ReliabilityBin, ...]) -> None:
    """Accuracy of the bins that have scans, with Wilson's intervals as bars."""
    rows = [
        (each.confidence, each.accuracy, each.accuracy_low, each.accuracy_high)
        for each in curve
        if each.num_scans
    ]
    confidence, accuracy, low, high = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    bars, label = np.stack([accuracy - low, high - accuracy]), "accuracy, 95 % interval"
    axes.errorbar(
        confidence, accuracy, bars, fmt="o-", color=COLORS[0], capsize=3, markersize=4, label=label
    )


def _draw_field(
    axes: Axes, epochs: list[dict[str, Any]], field: str, color: str, dash: str
) -> None:
    """One curve over the epochs that have the field; dots keep a single epoch visible."""
    rows = [(row["epoch"], row[field]) for row in epochs if row.get(field) is not None]
    marker = "o" if len(rows) < 30 else None
    across, up = [row[0] for row in rows], [row[1] for row in rows]
    axes.plot(across, up, dash, color=color, marker=marker, markersize=3)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl` of a run folder: one object per epoch, the last line possibly cut short.

    Raises:
        PredictionsError: The file is missing, or a line other than the last is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PredictionsError(f"{path.name} could not be read: {error}.") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            epoch = None
        if not isinstance(epoch, dict) or "epoch" not in epoch:
            msg = f"Line {number} of {path.name} is not an epoch. Expected an object with 'epoch'."
            raise PredictionsError(msg)
        epochs.append(epoch)
    return epochs

"""Learning-rate range test (Smith 2017): train while the rate rises, and see where loss breaks.

The MASERes paper's form is here, with an epoch for each rate; the quick one is in `quick_range`.
The rule behind every suggestion, whichever form was run, is `RULE`. For their three 3D networks the
MASERes authors chose by eye, 25 to 89 times below the rate with the lowest loss.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import nn

from chestct.datasets.augment import AnyAugmentation
from chestct.evaluation.figures import read_log, save_figure
from chestct.storage import write_text
from chestct.training.loop import train
from chestct.training.objective import DivergedError
from chestct.training.run import EpochLog, LabelledSets
from chestct.training.settings import TrainingSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST_RATE: Final = 1e-8
SMOOTHING: Final = 0.8
"""Share of the running mean that stays when a loss is added."""
CLEAR_FALL: Final = 0.9
"""A smoothed loss that never falls below this share of its start says little."""
SAFETY: Final = 10.0
RULE: Final = (
    f"1/{SAFETY:g} of the rate at which the smoothed loss is lowest, or the rate at which it has "
    "fallen half of the way there, whichever is lower"
)

_PER_EPOCH: Final = {
    "schedule": "range",
    "learning_rate": LOWEST_RATE,
    "drop_every_epochs": 20,
    "warmup_epochs": 0.0,
    "early_stopping_epochs": None,
    "keep": "last",
}


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: Learning rates tried, ascending.
        losses: The loss at each: validation loss per epoch, or training loss per step.
        smoothed: The same, smoothed.
        is_per_epoch: Whether it is the paper's form.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    is_per_epoch: bool

    @classmethod
    def of(
        cls, rates: Sequence[float], losses: Sequence[float], *, is_per_epoch: bool
    ) -> RangeTest:
        """A test's rates and losses, with the losses smoothed."""
        return cls(tuple(rates), tuple(losses), tuple(smooth(losses)), is_per_epoch)

    @property
    def suggestion(self) -> float:
        """A learning rate to train with, by `RULE`."""
        lowest = min(range(len(self.rates)), key=lambda i: self.smoothed[i])
        half = (self.smoothed[0] + self.smoothed[lowest]) / 2
        halfway = next(i for i, value in enumerate(self.smoothed) if value <= half)
        return min(self.rates[lowest] / SAFETY, self.rates[halfway])

    @property
    def is_clear(self) -> bool:
        """Whether the smoothed loss fell enough for the suggestion to mean something."""
        return min(self.smoothed) < CLEAR_FALL * self.smoothed[0]


def range_per_epoch(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    folder: Path,
    *,
    augmentation: AnyAugmentation | None = None,
    after_epoch: Callable[[EpochLog], object] | None = None,
) -> RangeTest:
    """The MASERes paper's form: one run, the rate of epoch e being 1e-8 x 10^(e / 20).

    Its 100 epochs end at a rate of 8.9e-4.

    Args:
        network: Freshly drawn; changed in place.
        sets: What it learns from; the validation loss is read.
        settings: Epochs, batch, optimiser and the like; the schedule is the test's own.
        folder: Run folder of the test, which can be stopped and go on.
        augmentation: As in the training to come.
        after_epoch: Called after each epoch.

    Raises:
        TrainingError: It was asked to stop, or broke down in its first epoch.
    """
    own = settings.model_copy(update=_PER_EPOCH)
    try:
        train(network, sets, own, folder, augmentation=augmentation, after_epoch=after_epoch)
    except DivergedError:
        # Where the loss breaks is what the test looks for; before the first epoch nothing is known.
        if not (folder / "log.jsonl").is_file():
            raise
    seen = read_log(folder / "log.jsonl")
    return RangeTest.of(
        [float(epoch["learning_rate"]) for epoch in seen],
        [float(epoch["validation_loss"]) for epoch in seen],
        is_per_epoch=True,
    )


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential running mean, corrected for its start."""
    mean, smoothed = 0.0, []
    for number, value in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smoothed.append(mean / (1 - SMOOTHING**number))
    return smoothed


def write_range_test(found: RangeTest, folder: Path) -> list[Path]:
    """Write `lr_range.csv` and the plot as PNG and SVG; returns what was written.

    Raises:
        WriteError: The folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["learning_rate", "loss", "smoothed_loss"])
    writer.writerows(zip(found.rates, found.losses, found.smoothed, strict=True))
    table = folder / "lr_range.csv"
    write_text(table, text.getvalue())
    figure = draw_range_test(found)
    return [table, *(save_figure(figure, folder / f"lr_range.{end}") for end in ("png", "svg"))]


def draw_range_test(found: RangeTest) -> Figure:
    """Loss against learning rate, with the suggestion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="0.7", linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, color="#0072B2", label="smoothed")
    label = f"suggestion {found.suggestion:.1e}"
    axes.axvline(found.suggestion, color="#D55E00", linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"{'validation' if found.is_per_epoch else 'training'} loss (nats)")
    figure.legend(loc="outside upper center", fontsize=8, ncols=3)
    return figure

"""Learning-rate range test (Smith 2017): train while the rate rises, and see where loss breaks.

The rule behind every suggestion, whichever form was run, is `RULE`. For their three 3D networks the
MASERes authors chose by eye, 25 to 89 times below the rate with the lowest loss.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from chestct.datasets.augmentations import AnyAugmentation, vary_batch
from chestct.evaluation.figures import save_figure
from chestct.evaluation.learning_log import read_log
from chestct.files import write_text
from chestct.training.devices import device_of
from chestct.training.loading import Batch, batches_on, make_loader
from chestct.training.loop import train
from chestct.training.objective import DivergedError, loss, soft_targets
from chestct.training.run import EpochLog, LabelledSets, make_optimizer
from chestct.training.sampling import Steps, step_seed
from chestct.training.settings import TrainingSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST_RATE: Final = 1e-8
HIGHEST_RATE: Final = 1.0
BREAKS_AT: Final = 4.0
"""The quick form stops when the smoothed loss is this many times its lowest."""
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
    return _range_test(
        [float(epoch["learning_rate"]) for epoch in seen],
        [float(epoch["validation_loss"]) for epoch in seen],
        is_per_epoch=True,
    )


def range_per_step(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    *,
    augmentation: AnyAugmentation | None = None,
    steps: int = 200,
) -> RangeTest:
    """The quick form: the rate rises with every step by the same factor, from 1e-8 to 1.

    It ends early where the smoothed training loss is four times its lowest, or no number.

    Args:
        network: Freshly drawn; changed in place.
        sets: What it learns from.
        settings: Batch, optimiser and the like.
        augmentation: As in the training to come.
        steps: How many at most.

    Raises:
        DivergedError: The very first loss is no number.
    """
    optimizer = make_optimizer(network, settings)
    rates: list[float] = []
    losses: list[float] = []
    for number, batch in enumerate(itertools.islice(_batches(network, sets, settings), steps)):
        rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (number / max(steps - 1, 1))
        value = _step(network, batch, settings, augmentation, number)
        if not torch.isfinite(value):
            break
        rates.append(rate)
        losses.append(float(value.detach()))
        if _is_broken(losses):
            break
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not rates:
        raise DivergedError("The first loss is no number: look at the scans and the settings.")
    return _range_test(rates, losses, is_per_epoch=False)


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


def _is_broken(losses: Sequence[float]) -> bool:
    smoothed = smooth(losses)
    return smoothed[-1] > BREAKS_AT * min(smoothed)


def _range_test(rates: list[float], losses: list[float], *, is_per_epoch: bool) -> RangeTest:
    return RangeTest(tuple(rates), tuple(losses), tuple(smooth(losses)), is_per_epoch)


def _batches(network: nn.Module, sets: LabelledSets, settings: TrainingSettings) -> Iterator[Batch]:
    """Batches without end, epoch after epoch, where the network's weights lie."""
    device = device_of(network)
    steps = Steps(torch.as_tensor(sets.training.labels), settings)  # type: ignore[attr-defined]
    loader = make_loader(sets.training, steps, workers=settings.workers, device=device)
    return batches_on(device, loader)


def _step(
    network: nn.Module,
    batch: Batch,
    settings: TrainingSettings,
    augmentation: AnyAugmentation | None,
    number: int,
) -> torch.Tensor:
    """The loss of one batch, its randomness that of the step's number."""
    scans, lungs, labels = batch
    generator = torch.Generator().manual_seed(step_seed(settings.seed, number))
    torch.manual_seed(step_seed(settings.seed, number))
    if augmentation is not None:
        scans, lungs = vary_batch(scans, lungs, augmentation, generator)
    network.train()
    logits = network(scans, lungs)
    return loss(logits, soft_targets(labels, logits.shape[1]), settings)

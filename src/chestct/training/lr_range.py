"""Learning-rate range test (Smith 2017): train while the rate rises, and see where loss breaks.

Two forms: the MASERes paper's with an epoch for each rate, and the quick one with a step for each.
The rule behind every suggestion, whichever form was run, is `RULE`. For their three 3D networks the
MASERes authors chose by eye, 25 to 89 times below the rate with the lowest loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from torch import nn

from chestct.datasets.augment import AnyAugmentation
from chestct.evaluation.figures import read_log, save_figure
from chestct.report.tables import as_csv
from chestct.storage import write_text
from chestct.training.components import Parts, SliceParts
from chestct.training.data import TRAINING_FOLDER, Plan, Ready, SlicePlan
from chestct.training.distributed import (
    device_of,
    require_one_process,
    settle_precision,
    tuned_for,
)
from chestct.training.interrupts import memory_explained
from chestct.training.loading import Batch
from chestct.training.loop import optimizer_step, pass_loss, train, training_batches
from chestct.training.run import EpochLog, LabelledSets, Run, make_run
from chestct.training.settings import TrainingSettings
from chestct.training.steps import (
    DivergedError,
    recomputing,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LOWEST_RATE: Final = 1e-8
_SMOOTHING: Final = 0.8
"""Share of the running mean that stays when a loss is added."""
_CLEAR_FALL: Final = 0.9
"""A smoothed loss that never falls below this share of its start says little."""
_SAFETY: Final = 10.0
RULE: Final = (
    f"1/{_SAFETY:g} of the rate at which the smoothed loss is lowest, or the rate at which it has "
    "fallen half of the way there, whichever is lower"
)

_PER_EPOCH: Final = {
    "schedule": "range",
    "learning_rate": _LOWEST_RATE,
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
        return min(self.rates[lowest] / _SAFETY, self.rates[halfway])

    @property
    def is_clear(self) -> bool:
        """Whether the smoothed loss fell enough for the suggestion to mean something."""
        return min(self.smoothed) < _CLEAR_FALL * self.smoothed[0]


def _range_per_epoch(
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
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        smoothed.append(mean / (1 - _SMOOTHING**number))
    return smoothed


def write_range_test(found: RangeTest, folder: Path) -> list[Path]:
    """Write `lr_range.csv` and the plot as PNG and SVG; returns what was written.

    Raises:
        WriteError: The folder cannot be written.
    """
    lines = zip(found.rates, found.losses, found.smoothed, strict=True)
    table = folder / "lr_range.csv"
    write_text(table, as_csv(["learning_rate", "loss", "smoothed_loss"], lines))
    figure = _draw_range_test(found)
    return [table, *(save_figure(figure, folder / f"lr_range.{end}") for end in ("png", "svg"))]


def _draw_range_test(found: RangeTest) -> Figure:
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


QUICK_STEPS: Final = 200
"""Where nothing is said."""
_HIGHEST_RATE: Final = 1.0
BREAKS_AT: Final = 4.0
"""The test stops when the smoothed loss is this many times its lowest."""

OWN: Final = (
    "epochs",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "drop_every_epochs",
    "drop_factor",
    "early_stopping_epochs",
    "keep",
    "checkpoint_every_s",
    "sync_batch_norm",
)
"""Settings of a training that have no meaning here: rates, an end, what is kept, processes."""
LEFT_OUT: Final = {
    "compile": "in so few steps compiling takes longer than it saves",
    "batch_norm_warm_up": "it changes what a network that is judged normalises with, and here only "
    "the training loss is looked at",
}
"""Settings that are not honoured, and why; all that stand in neither table are."""


def _range_per_step(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    *,
    augmentation: AnyAugmentation | None = None,
    steps: int = QUICK_STEPS,
) -> RangeTest:
    """Train while the rate rises with every step by the same factor, from 1e-8 to 1.

    It ends early where the smoothed training loss is four times its lowest, or no number.

    Args:
        network: Freshly drawn; changed in place.
        sets: What it learns from.
        settings: Batch, optimiser and the like, but for those in `OWN` and `LEFT_OUT`.
        augmentation: As in the training to come.
        steps: How many at most.

    Raises:
        DivergedError: The very first loss is no number.
        TrainingError: Blocks are to be computed again and the network has none.
    """
    device = device_of(network)
    precision = settle_precision(settings.precision, None, device)
    own = settings.model_copy(update={"precision": precision, "batch_norm_warm_up": False})
    run = make_run(network, sets, own, augmentation)
    rates: list[float] = []
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(tuned_for(device))
        stack.enter_context(recomputing(network, is_wanted=settings.checkpoint_activations))
        batches = stack.enter_context(closing(training_batches(run)))
        for number in range(steps):
            rate = _LOWEST_RATE * (_HIGHEST_RATE / _LOWEST_RATE) ** (number / max(steps - 1, 1))
            value = _gather_gradients(run, batches)
            if not math.isfinite(value):
                break
            rates.append(rate)
            losses.append(value)
            if _is_broken(losses):
                break
            optimizer_step(run, rate)
    if not rates:
        raise DivergedError("The first loss is no number: look at the scans and the settings.")
    return RangeTest.of(rates, losses, is_per_epoch=False)


def _note_left_out(settings: TrainingSettings, note: Callable[[str], None]) -> None:
    """Say which of the chosen settings have no effect here; nothing where all have."""
    usual = TrainingSettings()
    chosen = [name for name in LEFT_OUT if getattr(settings, name) != getattr(usual, name)]
    if chosen:
        listed = "; ".join(f"training.{name} ({LEFT_OUT[name]})" for name in chosen)
        note(f"The quick range test leaves out {listed}. With --epochs it is honoured.")


def _gather_gradients(run: Run, batches: Iterator[Batch]) -> float:
    """Gradients of all passes of a step; returns their mean loss, which may be no number."""
    num = run.settings.accumulation
    total = 0.0
    for batch in islice(batches, num):
        value = pass_loss(run, *batch)
        run.progress.step_in_epoch += 1
        total += float(value.detach())
        if not math.isfinite(total):
            break
        (value / num).backward()  # type: ignore[no-untyped-call]
    return total / num


def _is_broken(losses: Sequence[float]) -> bool:
    smoothed = smooth(losses)
    return smoothed[-1] > BREAKS_AT * min(smoothed)


AnyPlanT = TypeVar("AnyPlanT", Plan, SlicePlan)


def run_range_test(
    plan: AnyPlanT,
    make_ready: Callable[[AnyPlanT], Ready[Parts] | Ready[SliceParts]],
    *,
    steps: int = QUICK_STEPS,
    epochs: int | None = None,
) -> RangeTest:
    """Check and prepare scans or slices as for a training, then test.

    Args:
        plan: As for a training; schedule, rate and number of epochs are the test's own.
        make_ready: `session.ready_scans`, or `session.ready_slices`.
        steps: Of the quick form.
        epochs: Of the paper's form, 100 there; None for the quick one.

    Raises:
        TrainingError: Several processes were started.
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    require_one_process("A range test runs in one process.")
    ready = make_ready(plan)
    network = ready.parts.build_network(ready.training.seed).to(plan.device)
    with memory_explained(plan.folder):
        if epochs is None:
            _note_left_out(ready.training, plan.listener.note)
            return _range_per_step(
                network,
                ready.sets,
                ready.training,
                augmentation=ready.parts.augmentation,
                steps=steps,
            )
        return _range_per_epoch(
            network,
            ready.sets,
            ready.training.model_copy(update={"epochs": epochs}),
            plan.folder / TRAINING_FOLDER,
            augmentation=ready.parts.augmentation,
            after_epoch=lambda entry: plan.after_epoch("range", entry),
        )

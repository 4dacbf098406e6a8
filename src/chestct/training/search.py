"""Which settings to train with: a search over a grid, and a learning-rate range test.

The MASERes paper chose among Adam, RMSProp and SGD (momentum 0.9), among batches of 2, 4 and 8 and
among rates between 1e-8 and 1e-3; the RoI-aware 3D ResNet paper names the outcome only (Adam, 2,
1e-4). Candidates are ranked on the validation part: test scans are not even in the manifest that
they are trained with. Each is a run folder of its own, so a stopped search goes on.

A range test (Smith 2017) trains while the rate rises, to see where the loss breaks. Two forms: the
MASERes paper's with an epoch for each rate, and the quick one with a step for each. The rule behind
every suggestion, whichever form was run, is `RULE`. For their three 3D networks the MASERes authors
chose by eye, 25 to 89 times below the rate with the lowest loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import nn

from chestct.datasets.augment import AnyAugmentation
from chestct.datasets.manifest import write_manifest
from chestct.datasets.workers import Progress
from chestct.errors import TrainingError
from chestct.evaluation.figures import read_log, save_figure
from chestct.evaluation.intervals import Figures, estimate_figures
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.predictions import read_predictions
from chestct.evaluation.report import format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report import as_csv, as_markdown_table
from chestct.storage import write_text
from chestct.training.data import Division
from chestct.training.distributed import (
    device_of,
    require_one_process,
    settle_precision,
    tuned_for,
)
from chestct.training.loop import step, train, training_batches
from chestct.training.plan import (
    PREDICTIONS_FILE,
    TRAINING_FOLDER,
    Plan,
    SlicePlan,
    settled,
)
from chestct.training.run import (
    Batch,
    DivergedError,
    EpochLog,
    LabelledSets,
    Run,
    make_run,
    memory_explained,
    recomputing,
)
from chestct.training.session import (
    SETTINGS_FILE,
    TrainAll,
    checked_scans,
    make_ready,
    train_all,
)
from chestct.training.settings import RunSettings, TrainingSettings, settings_as_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES: Final = (1e-6, 1e-5, 1e-4, 1e-3)
BATCHES: Final = (2, 4, 8)
OPTIMIZERS: Final = ("adam", "rmsprop", "sgd")

_SHOWN: Final = ("log_loss", "accuracy", "balanced_accuracy", "macro_auc")
_NAMES: Final = ("optimizer", "learning_rate", "batch_size")


@dataclass(frozen=True)
class Candidate:
    """What one run of the search is trained with."""

    optimizer: str
    learning_rate: float
    batch_size: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.optimizer}-rate{self.learning_rate:g}-batch{self.batch_size}"

    def settings(self, base: RunSettings) -> RunSettings:
        """The other settings with this candidate's.

        Raises:
            TrainingError: A value is impossible.
        """
        values = {name: getattr(self, name) for name in _NAMES}
        training = base.training.model_dump() | values
        try:
            return RunSettings.model_validate({**base.model_dump(), "training": training})
        except ValueError as error:
            raise TrainingError(f"The candidate {self.name} is impossible: {error}") from error


@dataclass(frozen=True)
class Search:
    """Which candidates are tried.

    Attributes:
        rates: Learning rates.
        batches: Batch sizes.
        optimizers: Names that `training.optimizer` takes.
        trials: So many of the grid, drawn at random; None takes all of it.
        epochs: Of each candidate; None takes those of the settings.
        seed: Of the draw.

    Raises:
        TrainingError: There is nothing to choose from, or no trial is wanted.
    """

    rates: tuple[float, ...] = RATES
    batches: tuple[int, ...] = BATCHES
    optimizers: tuple[str, ...] = OPTIMIZERS
    trials: int | None = None
    epochs: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.grid or (self.trials is not None and self.trials < 1):
            raise TrainingError("A search needs at least one candidate, and at least one trial.")

    @property
    def grid(self) -> tuple[Candidate, ...]:
        """Every combination, each once."""
        every = (Candidate(*each) for each in product(self.optimizers, self.rates, self.batches))
        return tuple(dict.fromkeys(every))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Those that are tried, in the order of the grid."""
        grid = self.grid
        if self.trials is None or self.trials >= len(grid):
            return grid
        # The first of one shuffled list, so that more trials only add to those made before.
        order = np.random.default_rng(self.seed).permutation(len(grid))
        return tuple(grid[index] for index in sorted(order[: self.trials].tolist()))


@dataclass(frozen=True)
class Trial:
    """A candidate and what its network said of the validation part.

    Attributes:
        candidate: What it was trained with.
        figures: On the validation part; None where the loss was no longer a number.
        note: Why there are none.
    """

    candidate: Candidate
    figures: Figures | None
    note: str = ""


def _require_searchable(plan: Plan) -> None:
    """Refuse what no search can be made of.

    Raises:
        TrainingError: Folds or several processes were asked for, or the labels are findings.
    """
    require_one_process("A search runs in one process.")
    if plan.settings.kind == "findings":
        msg = "A search ranks classifiers of classes, and these labels are findings: leave --tune"
        raise TrainingError(f"{msg} out, and compare trainings by their macro AUC.")
    if plan.num_folds is not None:
        msg = "A search has no folds: every fold's test scans would have chosen the settings. "
        raise TrainingError(msg + "Search on a manifest with a test part, or within one fold.")


def run_search(plan: Plan, search: Search, *, train: TrainAll = train_all) -> tuple[Trial, ...]:
    """Train every candidate, or go on; write the table and the best candidate's settings.

    Args:
        plan: As for a training; its folder becomes that of the search.
        search: What is tried.
        train: Has the candidates trained.

    Returns:
        Trials, the best one first.

    Raises:
        TrainingError: Folds or several processes were asked for, or no candidate came to an end.
        ChestCTError: Settings, manifest, scans or folder are not as they should be, or the search
            was stopped; the same call goes on.
    """
    _require_searchable(plan)
    shared = settled(replace(plan, settings=_with_epochs(plan.settings, search.epochs)))
    tried = {each: each.settings(shared.settings) for each in search.candidates}
    manifest = _manifest_without_test(shared)
    folders = {each: plan.folder / each.name for each in tried}
    diverged = train(
        [
            replace(plan, settings=settings, manifest=manifest, folder=folders[each])
            for each, settings in tried.items()
        ],
        are_trials=True,
    )
    ranked = _ranked(folders, diverged)
    if ranked[0].figures is None:
        msg = "Every candidate's loss ceased to be a number. Search lower learning rates."
        raise TrainingError(msg)
    best = ranked[0].candidate.settings(plan.settings)
    write_text(plan.folder / SETTINGS_FILE, settings_as_yaml(best))
    write_text(plan.folder / "tune.csv", _tune_csv(ranked))
    write_text(plan.folder / "tune.md", _tune_markdown(ranked, shared.settings.training.epochs))
    return ranked


def _ranked(folders: Mapping[Candidate, Path], diverged: Collection[str]) -> tuple[Trial, ...]:
    """The lowest validation loss first; of equal ones the higher accuracy, then the first tried."""
    trials = [
        Trial(each, None, "the loss is no longer a number")
        if each.name in diverged
        else Trial(each, estimate_figures(read_predictions(folder / PREDICTIONS_FILE)))
        for each, folder in folders.items()
    ]
    return tuple(sorted(trials, key=_sort_key))


def _tune_csv(trials: Sequence[Trial]) -> str:
    """One line per candidate, the best first."""
    figures = [f"{name}{end}" for name in _SHOWN for end in ("", "_low", "_high")]
    lines: list[list[object]] = []
    for number, trial in enumerate(trials, start=1):
        chosen = trial.candidate
        cells: list[object] = [chosen.optimizer, f"{chosen.learning_rate:g}", chosen.batch_size]
        for estimate in _estimates(trial):
            cells += [estimate.value, estimate.low, estimate.high]
        lines.append([number, *cells, trial.note])
    return as_csv(["rank", *_NAMES, *figures, "note"], lines)


def _tune_markdown(trials: Sequence[Trial], epochs: int) -> str:
    """The same for people, with what the figures are worth."""
    header = ["rank", "optimiser", "learning rate", "batch", *_SHOWN]
    rows = []
    for number, trial in enumerate(trials, start=1):
        chosen = trial.candidate
        cells = [str(number), chosen.optimizer, f"{chosen.learning_rate:g}", str(chosen.batch_size)]
        figures = [format_estimate(each) for each in _estimates(trial)]
        rows.append([*cells, *(figures if trial.figures else [trial.note, "", "", ""])])
    table = as_markdown_table(header, rows)
    return (
        f"# Search over {len(trials)} candidates\n\n{NOT_FOR_CLINICAL_USE}\n\n{table}\n\n"
        f"Trained for {epochs} epochs each and ranked by the log loss (nats) on the validation "
        "part; no test scan was looked at. The best of many looks better than it is: judge it on "
        f"other scans. Its settings are in {SETTINGS_FILE}.\n"
    )


def _with_epochs(settings: RunSettings, epochs: int | None) -> RunSettings:
    if epochs is None:
        return settings
    if epochs < 1:
        raise TrainingError(f"A candidate cannot be trained for {epochs} epochs.")
    training = settings.training.model_copy(update={"epochs": epochs})
    return settings.model_copy(update={"training": training})


def _manifest_without_test(plan: Plan) -> Path:
    """Check all scans, then write those of training and validation to a manifest of their own."""
    _, division, _ = checked_scans(plan)
    if division.test is None:
        plan.listener.note(
            "No scan is set aside as test: a network trained with the settings found will look "
            "better on these scans than on others."
        )
    kept = Division(division.training, division.validation).joined
    return write_manifest(kept, plan.folder / "manifest.csv")


def _estimates(trial: Trial) -> list[Estimate]:
    if trial.figures is None:
        return [Estimate(None, note=trial.note)] * len(_SHOWN)
    return [trial.figures.overall[name] for name in _SHOWN]


def _sort_key(trial: Trial) -> tuple[float, float]:
    loss, accuracy, *_ = (each.value for each in _estimates(trial))
    return (
        float("inf") if loss is None else loss,
        0.0 if accuracy is None else -accuracy,
    )


_LOWEST_RATE: Final = 1e-8
_SMOOTHING: Final = 0.8
"""Share of the running mean that stays when a loss is added."""
_FIRST: Final = 5
"""Losses whose median a running mean begins with."""
_CLEAR_FALL: Final = 0.9
"""A smoothed loss that never falls below this share of its start is flat, and suggests nothing."""
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
    "average_weights": 0.0,
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
        return cls(tuple(rates), tuple(losses), tuple(_smooth(losses)), is_per_epoch)

    @property
    def suggestion(self) -> float | None:
        """A learning rate to train with, by `RULE`; None where the loss hardly fell."""
        if min(self.smoothed) >= _CLEAR_FALL * self.smoothed[0]:
            return None
        lowest = min(range(len(self.rates)), key=lambda i: self.smoothed[i])
        half = (self.smoothed[0] + self.smoothed[lowest]) / 2
        halfway = next(i for i, value in enumerate(self.smoothed) if value <= half)
        return min(self.rates[lowest] / _SAFETY, self.rates[halfway])


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

    The network, freshly drawn, is changed in place. Schedule and rate are the test's own; in its
    folder it can be stopped and go on.

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


def _smooth(losses: Sequence[float]) -> list[float]:
    """Exponential running mean; a median stands for the first loss, which alone sets no start."""
    smoothed = [float(np.median(losses[:_FIRST]))]
    for value in losses[1:]:
        smoothed.append(_SMOOTHING * smoothed[-1] + (1 - _SMOOTHING) * value)
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
    """Loss against learning rate, with the suggestion where there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="0.7", linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, color="#0072B2", label="smoothed")
    if found.suggestion is not None:
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
_BREAKS_AT: Final = 4.0
"""The test stops when the smoothed loss is this many times its lowest."""

_OWN: Final = (
    "epochs",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "drop_every_epochs",
    "drop_factor",
    "early_stopping_epochs",
    "keep",
    "average_weights",
    "checkpoint_every_s",
    "sync_batch_norm",
    "start_licence",
)
"""Settings of a training that have no meaning here: rates, an end, what is kept, processes."""
_LEFT_OUT: Final = {
    "compile": "in so few steps compiling takes longer than it saves",
    "batch_norm_warm_up": "it changes what a network that is judged normalises with, and here only "
    "the training loss is looked at",
}
"""Settings that are not honoured, and why; all that stand in neither table are."""
_OFF: Final = {"batch_norm_warm_up": False, "average_weights": 0.0}


def _range_per_step(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    *,
    augmentation: AnyAugmentation | None = None,
    steps: int = QUICK_STEPS,
    after_step: Callable[[Progress], object] = lambda _progress: None,
) -> RangeTest:
    """Train while the rate rises with every step by the same factor, from 1e-8 to 1.

    It ends early where the smoothed training loss is four times its lowest, or no number. The
    network, freshly drawn, is changed in place; settings in `_OWN` and `_LEFT_OUT` do not count.

    Raises:
        DivergedError: The very first loss is no number.
        TrainingError: Blocks are to be computed again and the network has none.
    """
    device = device_of(network)
    precision = settle_precision(settings.precision, None, device)
    own = settings.model_copy(update={**_OFF, "precision": precision})
    run = make_run(network, sets, own, augmentation)
    rates: list[float] = []
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(tuned_for(device))
        stack.enter_context(recomputing(network, is_wanted=settings.checkpoint_activations))
        batches = stack.enter_context(closing(training_batches(run)))
        for number, rate in enumerate(_rising(steps)):
            value = _optimiser_step(run, batches, rate)
            if not math.isfinite(value):
                break
            rates.append(rate)
            losses.append(value)
            after_step(Progress(number + 1, steps, 0.0))
            if _is_broken(losses):
                break
    if not rates:
        raise DivergedError("The first loss is no number: look at the scans and the settings.")
    return RangeTest.of(rates, losses, is_per_epoch=False)


def _rising(steps: int) -> Iterator[float]:
    """So many rates from the lowest to the highest, by the same factor."""
    for number in range(steps):
        yield _LOWEST_RATE * (_HIGHEST_RATE / _LOWEST_RATE) ** (number / max(steps - 1, 1))


def _note_left_out(settings: TrainingSettings, note: Callable[[str], None]) -> None:
    """Say which of the chosen settings have no effect here; nothing where all have."""
    usual = TrainingSettings()
    chosen = [name for name in _LEFT_OUT if getattr(settings, name) != getattr(usual, name)]
    if chosen:
        listed = "; ".join(f"training.{name} ({_LEFT_OUT[name]})" for name in chosen)
        note(f"The quick range test leaves out {listed}. With --epochs it is honoured.")


def _optimiser_step(run: Run, batches: Iterator[Batch], rate: float) -> float:
    """All passes of one step at a rate; returns their mean loss, which may be no number."""
    total = 0.0
    for left in reversed(range(run.settings.accumulation)):
        _, value = step(run, next(batches), None if left else rate)
        run.progress.step_in_epoch += 1
        total += float(value.detach())
    return total / run.settings.accumulation


def _is_broken(losses: Sequence[float]) -> bool:
    smoothed = _smooth(losses)
    return smoothed[-1] > _BREAKS_AT * min(smoothed)


def run_range_test(
    plan: Plan | SlicePlan, *, steps: int = QUICK_STEPS, epochs: int | None = None
) -> RangeTest:
    """Check and prepare scans or slices as for a training, then test.

    Args:
        plan: As for a training; schedule, rate and number of epochs are the test's own.
        steps: Of the quick form.
        epochs: Of the paper's form, 100 there; None for the quick one.

    Raises:
        TrainingError: Several processes were started.
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    require_one_process("A range test runs in one process.")
    found = make_ready(plan)
    parts, sets, settings = found.parts, found.sets, found.training
    network = parts.build_network(settings.seed).to(plan.device)
    with memory_explained(plan.folder):
        if epochs is None:
            _note_left_out(settings, plan.listener.note)
            return _range_per_step(
                network,
                sets,
                settings,
                augmentation=parts.augmentation,
                steps=steps,
                after_step=plan.listener.watch("raising the learning rate"),
            )
        return _range_per_epoch(
            network,
            sets,
            settings.model_copy(update={"epochs": epochs}),
            plan.folder / TRAINING_FOLDER,
            augmentation=parts.augmentation,
            after_epoch=lambda entry: plan.listener.epoch("range", entry),
        )

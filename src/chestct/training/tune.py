"""A small search over learning rate, batch size and optimiser, as the papers made theirs.

The MASERes paper chose among Adam, RMSProp and SGD (momentum 0.9), among batches of 2, 4 and 8 and
among rates between 1e-8 and 1e-3; the RoI-aware 3D ResNet paper names the outcome only (Adam, 2,
1e-4). Candidates are ranked on the validation part: test scans are not even in the manifest that
they are trained with. Each is a run folder of its own, so a stopped search goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from chestct.datasets.manifest import Manifest, read_manifest, require_classes, write_manifest
from chestct.errors import TrainingError
from chestct.evaluation.intervals import Estimate, Figures, estimate_figures
from chestct.evaluation.predictions import read_predictions
from chestct.evaluation.tables import format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report.tables import as_csv, as_markdown_table
from chestct.storage import write_text
from chestct.training.components import find_parts
from chestct.training.data import Division, check_scans, divide, make_cache
from chestct.training.distributed import require_one_process
from chestct.training.results import begin_record, settled
from chestct.training.session import (
    PREDICTIONS_FILE,
    TRAINING_FOLDER,
    Plan,
    is_finished,
    run_training,
)
from chestct.training.settings import RunSettings, settings_as_yaml
from chestct.training.steps import DivergedError

RATES: Final = (1e-6, 1e-5, 1e-4, 1e-3)
BATCHES: Final = (2, 4, 8)
OPTIMIZERS: Final = ("adam", "rmsprop", "sgd")

SETTINGS_FILE: Final = "settings.yaml"
TABLE_FILE: Final = "tune"
RANKED_BY: Final = "log_loss"
_SHOWN: Final = (RANKED_BY, "accuracy", "balanced_accuracy", "macro_auc")
_DIVERGED_FILE: Final = "diverged.json"
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


def run_search(
    plan: Plan, search: Search, *, before: Callable[[Candidate], object] = lambda _candidate: None
) -> tuple[Trial, ...]:
    """Train every candidate, or go on; write the table and the best candidate's settings.

    Args:
        plan: As for a training; its folder becomes that of the search.
        search: What is tried.
        before: Told of each candidate that is begun or gone on with.

    Returns:
        Trials, the best one first.

    Raises:
        TrainingError: Folds or several processes were asked for, or no candidate came to an end.
        ChestCTError: Settings, manifest, scans or folder are not as they should be, or the search
            was stopped; the same call goes on.
    """
    require_one_process("A search runs in one process.")
    if plan.num_folds is not None:
        msg = "A search has no folds: every fold's test scans would have chosen the settings. "
        raise TrainingError(msg + "Search on a manifest with a test part, or within one fold.")
    shared = settled(_with_epochs(plan.settings, search.epochs), plan.folder, plan.device)
    tried = {each: each.settings(shared) for each in search.candidates}
    manifest = _manifest_without_test(plan, shared)
    trials = [
        _try(replace(plan, settings=settings, manifest=manifest), each, before)
        for each, settings in tried.items()
    ]
    ranked = rank(trials)
    if ranked[0].figures is None:
        msg = "Every candidate's loss ceased to be a number. Search lower learning rates."
        raise TrainingError(msg)
    best = ranked[0].candidate.settings(plan.settings)
    write_text(plan.folder / SETTINGS_FILE, settings_as_yaml(best))
    write_text(plan.folder / f"{TABLE_FILE}.csv", _tune_csv(ranked))
    write_text(plan.folder / f"{TABLE_FILE}.md", _tune_markdown(ranked, shared.training.epochs))
    return ranked


def rank(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The lowest validation loss first; of equal ones the higher accuracy, then the first tried."""
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


def _manifest_without_test(plan: Plan, shared: RunSettings) -> Path:
    """Check all scans, then write those of training and validation to a manifest of their own."""
    parts = find_parts(shared)
    manifest = read_manifest(plan.manifest, shared.labels)
    require_classes(manifest)
    division = divide(manifest, shared.data)
    begin_record(plan.folder, shared, plan.manifest, place=plan.place)
    cache = make_cache(shared.data, parts.recipe)
    check_scans(manifest, [division], cache, plan.folder / "check.json", plan.listener)
    if division.test is None:
        plan.listener.note(
            "No scan is set aside as test: a network trained with the settings found will look "
            "better on these scans than on others."
        )
    kept: Manifest = Division(division.training, division.validation).joined
    return write_manifest(kept, plan.folder / "manifest.csv")


def _try(plan: Plan, candidate: Candidate, before: Callable[[Candidate], object]) -> Trial:
    """Train a candidate unless that was done before, and read what it said."""
    folder = plan.folder / candidate.name
    diverged = folder / _DIVERGED_FILE
    if not is_finished(folder) and not diverged.is_file():
        before(candidate)
        try:
            run_training(replace(plan, folder=folder, after_epoch=_named(plan, candidate)))
        except DivergedError as error:
            write_text(diverged, json.dumps({"reason": str(error)}) + "\n")
    if diverged.is_file():
        return Trial(candidate, None, "the loss is no longer a number")
    # They are there to go on with, and three times the size of the classifier.
    for name in ("checkpoint.safetensors", "best.safetensors"):
        (folder / TRAINING_FOLDER / name).unlink(missing_ok=True)
    return Trial(candidate, estimate_figures(read_predictions(folder / PREDICTIONS_FILE)))


def _named(plan: Plan, candidate: Candidate) -> Callable[..., None]:
    return lambda _name, entry: plan.after_epoch(candidate.name, entry)


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

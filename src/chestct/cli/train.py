"""`chestct train`, `lr-range` and `export`: from a manifest to a classifier for use elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import training_options as options
from chestct.cli.options import grouped, names_in
from chestct.cli.terminal import (
    EpochLines,
    listening,
    print_table,
    show_line,
    show_remark,
    show_summary,
    show_words,
)
from chestct.cli.workers import Workers, have_trained, trainer
from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.training.plan import Plan, SlicePlan
    from chestct.training.search import RangeTest, Search, Trial
    from chestct.training.session import TrainAll


_SEARCH = "Search for settings"


@dataclass(frozen=True)
class _SearchOptions:
    """Whether settings are searched for, and among which, as typed."""

    is_asked: Annotated[
        bool,
        typer.Option(
            "--tune",
            rich_help_panel=_SEARCH,
            help="Try learning rates, batches and optimisers instead, ranked on the validation "
            "part.",
        ),
    ] = False
    trials: Annotated[
        int | None,
        typer.Option(
            "--tune-trials",
            min=1,
            metavar="N",
            rich_help_panel=_SEARCH,
            help="So many of the grid, drawn at random. Default: all.",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(
            "--tune-epochs",
            min=1,
            metavar="N",
            rich_help_panel=_SEARCH,
            help="Of each candidate. Default: those of the settings.",
        ),
    ] = None
    rates: Annotated[
        str | None,
        typer.Option(
            "--tune-rates",
            metavar="R,R",
            rich_help_panel=_SEARCH,
            help="With commas. Default: 1e-6,1e-5,1e-4,1e-3.",
        ),
    ] = None
    batches: Annotated[
        str | None,
        typer.Option(
            "--tune-batches", metavar="N,N", rich_help_panel=_SEARCH, help="Default: 2,4,8."
        ),
    ] = None
    optimizers: Annotated[
        str | None,
        typer.Option(
            "--tune-optimizers",
            metavar="NAMES",
            rich_help_panel=_SEARCH,
            help="Default: adam,rmsprop,sgd.",
        ),
    ] = None

    def require_use(self) -> None:
        """Refuse what was said of a search that was not asked for.

        Raises:
            TrainingError: Something was.
        """
        if self.is_asked:
            return
        said = [
            f"--tune-{name}" for name, value in vars(self).items() if value not in (None, False)
        ]
        if said:
            msg = f"{', '.join(said)}: only for a search for settings. Add --tune, or leave it out."
            raise TrainingError(msg)

    def search(self, seed: int) -> Search:
        """The search they stand for.

        Raises:
            TrainingError: A value is no number.
        """
        from chestct.training.search import BATCHES, OPTIMIZERS, RATES, Search

        return Search(
            rates=tuple(_number(each) for each in names_in(self.rates)) or RATES,
            batches=tuple(_whole(each) for each in names_in(self.batches)) or BATCHES,
            optimizers=names_in(self.optimizers) or OPTIMIZERS,
            trials=self.trials,
            epochs=self.epochs,
            seed=seed,
        )


def _run_tuning(plan: Plan, said: _SearchOptions, train: TrainAll) -> None:
    """Search and show what was found."""
    from chestct.training.search import run_search

    search = said.search(plan.settings.training.seed)
    lines = EpochLines(search.epochs or plan.settings.training.epochs, len(search.candidates))
    plan = replace(plan, listener=replace(plan.listener, epoch=lines.show))
    _show(run_search(plan, search, train=train), plan.folder)


def _show(trials: tuple[Trial, ...], folder: Path) -> None:
    from chestct.evaluation.report import format_estimate
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.training.session import SETTINGS_FILE

    lines = []
    for trial in trials:
        chosen = trial.candidate
        cells = [chosen.optimizer, f"{chosen.learning_rate:g}", str(chosen.batch_size)]
        if trial.figures is None:
            cells += [trial.note, ""]
        else:
            overall = trial.figures.overall
            cells += [format_estimate(overall[name]) for name in ("log_loss", "accuracy")]
        lines.append(cells)
    print_table(("optimiser", "rate", "batch", "validation loss", "validation accuracy"), lines)
    show_line(NOT_FOR_CLINICAL_USE)
    show_line(f"Best settings, for 'chestct train': {folder / SETTINGS_FILE}")


@dataclass(frozen=True)
class _Course:
    """Where a training begins, and in how many folds."""

    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from",
            metavar="PLACE",
            help="Begin with given weights: a classifier's folder, a run's, or a file.",
        ),
    ] = None
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Cross-validate instead, by patient."),
    ] = None

    @property
    def overrides(self) -> list[str]:
        """What it says of settings."""
        # Quoted, so that YAML takes the place as it is.
        place = json.dumps(str(self.start_from))
        return [] if self.start_from is None else [f"training.start_from={place}"]

    def require_folds(self) -> None:
        """Refuse workers for what cannot be shared out among them.

        Raises:
            TrainingError: There are no folds, or several processes were started for each.
        """
        from chestct.training.distributed import require_one_process

        if self.folds is None:
            msg = "Workers train folds or candidates, one each: name --folds K, or --tune. One"
            raise TrainingError(f"{msg} training takes several GPUs with torchrun.")
        require_one_process("Folds are shared out among workers by one process.")


def _by_workers(plan: Plan, workers: Workers, device: str) -> Callable[[list[str]], object] | None:
    """What has folds trained by workers; None where none were asked for."""
    if not workers.is_asked_for:
        return None
    executor = workers.who()

    def train_folds(names: list[str]) -> None:
        """Have them trained that are not yet."""
        have_trained(executor, plan.folder, dict.fromkeys(names, plan), device, are_folds=True)

    return train_folds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise TrainingError(f"'{text}' is no number. Give some with commas: 1e-4,1e-3.") from error


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise TrainingError(f"'{text}' is no batch size. Give whole numbers with commas: 2,4,8.")
    return int(text)


@grouped
def train(
    training: options.Training,
    manifest: options.ManifestFile,
    out: options.RunFolder,
    search: _SearchOptions,
    workers: Workers,
    course: _Course,
) -> None:
    """Train a classifier; stopped at any moment, the same command goes on.

    With several GPUs or machines: torchrun --nproc-per-node N --no-python chestct train ...
    Folds or candidates may be trained at once, one by each of several workers: --workers N.
    """
    from chestct.training.distributed import (
        OtherProcessError,
        choose_device,
        joined,
        launched_ranks,
        main_first,
    )
    from chestct.training.plan import Plan
    from chestct.training.session import run_training
    from chestct.training.settings import RunSettings

    search.require_use()
    if workers.is_asked_for and not search.is_asked:
        course.require_folds()
    ranks = launched_ranks()
    place = choose_device(training.device, local_rank=ranks.local_rank, num_local=ranks.local_size)
    try:
        with (
            joined(ranks, place),
            listening(training.processes, is_quiet=not ranks.is_main) as listener,
        ):
            settings = main_first(lambda: training.read_settings(RunSettings, course.overrides))
            lines = EpochLines(settings.training.epochs, course.folds or 1)
            listener = replace(listener, epoch=lines.show)
            plan = Plan(settings, manifest, out, course.folds, listener, place)
            if search.is_asked:
                _run_tuning(plan, search, trainer(workers, out, training.device, "Candidate"))
                return
            elsewhere = _by_workers(plan, workers, training.device)
            summary = run_training(plan, elsewhere=elsewhere)
    except OtherProcessError:
        if ranks.is_main:
            raise
        # What is wrong has been said by the process where it is.
        raise typer.Exit(2) from None
    if summary is not None:
        show_summary(summary, out)


@grouped
def lr_range(
    training: options.Training,
    manifest: options.ManifestFile,
    out: options.RangeFolder,
    test: options.RangeTest,
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    from chestct.training.distributed import choose_device
    from chestct.training.plan import Plan
    from chestct.training.settings import RunSettings

    test.require_one_form()
    settings = training.read_settings(RunSettings)
    plan = Plan(settings, manifest, out, device=choose_device(training.device))
    suggest_rate(plan, test, training.processes)


def suggest_rate(plan: Plan | SlicePlan, test: options.RangeTest, processes: int | None) -> None:
    """Run a range test on scans or slices, show and write what it found."""
    from chestct.training.search import QUICK_STEPS, run_range_test, write_range_test

    lines = EpochLines(test.epochs or 1)
    with listening(processes, lines) as listener:
        plan = replace(plan, listener=listener)
        found = run_range_test(plan, steps=test.steps or QUICK_STEPS, epochs=test.epochs)
    _show_range_test(found, write_range_test(found, plan.folder))


def export(
    classifier: Annotated[
        Path, typer.Argument(metavar="CLASSIFIER", help="Classifier folder, or hf:NAME.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="onnx, openvino or hf.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write to.")],
) -> None:
    """Export a classifier to ONNX, OpenVINO or a folder for Hugging Face, with how to use it."""
    from chestct.classifier import load_classifier
    from chestct.export.formats import export_classifier

    folder = export_classifier(load_classifier(classifier), to, out)
    show_line(f"Written to {folder}: README.md says what it is and how it is used.")


def _show_range_test(found: RangeTest, written: Sequence[Path]) -> None:
    """Show the suggested rate and the rule behind it, or why there is none; where the curve is."""
    from chestct.training.search import RULE

    if found.suggestion is None:
        start, lowest = found.smoothed[0], min(found.smoothed)
        show_remark(
            f"No learning rate is suggested: the curve is flat (smoothed loss {start:.4g} at the "
            f"start, {lowest:.4g} at the lowest). Take more --steps or --epochs."
        )
    else:
        show_words(f"Suggested learning rate: {found.suggestion:.1e}", "bold")
        show_words(f"Rule: {RULE}.")
    for path in written:
        show_words(str(path))

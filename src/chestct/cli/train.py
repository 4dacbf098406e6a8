"""`chestct train`: a classifier, or one per fold, from a settings file and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli import training_options as options
from chestct.cli import tuning


def train(
    config: options.Config,
    manifest: options.ManifestFile,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Run folder: a new one, or one to go on.")
    ],
    overrides: options.Overrides = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Cross-validate instead, by patient."),
    ] = None,
    processes: options.Processes = None,
    device: options.Device = "auto",
    is_tuning: tuning.Tune = False,
    trials: tuning.Trials = None,
    tune_epochs: tuning.Epochs = None,
    rates: tuning.Rates = None,
    batches: tuning.Batches = None,
    optimizers: tuning.Optimizers = None,
) -> None:
    """Train a classifier; stopped at any moment, the same command goes on.

    With several GPUs or machines: torchrun --nproc-per-node N --no-python chestct train ...
    """
    from chestct.cli.training_lines import EpochLines, listening, show_summary
    from chestct.training.devices import choose_device
    from chestct.training.ranks import OtherProcessError, joined, launched_ranks, main_first
    from chestct.training.session import Plan, run_training
    from chestct.training.settings_file import read_settings

    said = tuning.SearchOptions(trials, tune_epochs, rates, batches, optimizers)
    if not is_tuning:
        said.refuse()
    ranks = launched_ranks()
    place = choose_device(device, local_rank=ranks.local_rank, num_local=ranks.local_size)
    try:
        with joined(ranks, place), listening(processes, is_quiet=not ranks.is_main) as listener:
            settings = main_first(lambda: read_settings(config, overrides or ()))
            lines = EpochLines(settings.training.epochs, folds or 1)
            plan = Plan(settings, manifest, out, folds, listener, lines.show, place)
            if is_tuning:
                tuning.run_tuning(plan, said)
                return
            summary = run_training(plan)
    except OtherProcessError:
        if ranks.is_main:
            raise
        # What is wrong has been said by the process where it is.
        raise typer.Exit(2) from None
    if summary is not None:
        show_summary(summary, out)

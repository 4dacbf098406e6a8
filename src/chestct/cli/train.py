"""`chestct train`: a classifier, or one per fold, from a settings file and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli import training_options as options


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
) -> None:
    """Train a classifier; stopped at any moment, the same command goes on."""
    from chestct.cli.training_lines import EpochLines, listening, show_summary
    from chestct.training.session import Plan, run_training
    from chestct.training.settings_file import read_settings

    settings = read_settings(config, overrides or ())
    lines = EpochLines(settings.training.epochs, folds or 1)
    with listening(processes) as listener:
        plan = Plan(settings, manifest, out, folds, listener=listener, after_epoch=lines.show)
        summary = run_training(plan)
    show_summary(summary, out)

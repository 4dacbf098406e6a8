"""`chestct evaluate`: a finished classifier on labelled scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli import options
from chestct.cli.training_options import Beside, EvaluationFolder, Processes, named_files


@options.grouped
def evaluate(
    classifier: Annotated[
        Path, typer.Argument(metavar="CLASSIFIER", help="Classifier folder, as train writes it.")
    ],
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="CSV file: one row per labelled scan.")
    ],
    out: EvaluationFolder,
    running: options.Running,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Only these rows: training, validation, test"),
    ] = None,
    beside: Beside = None,
    unlike: Annotated[
        Path | None,
        typer.Option(
            "--unlike",
            metavar="FOLDER",
            help="Scans of another kind, one per file or folder: can it tell them by distance?",
        ),
    ] = None,
    processes: Processes = None,
) -> None:
    """Classify labelled scans and write figures with intervals."""
    from chestct.cli.classify import load
    from chestct.cli.training_lines import listening, show_summary, show_unlike
    from chestct.training.judging import (
        evaluate_manifest,
        judge_unlike,
        read_beside,
        read_rows,
    )

    files = named_files(beside)
    if unlike is not None:
        options.require_exists(unlike)
    loaded, engine = load(classifier, running)
    rows = read_rows(manifest, loaded, split)
    others = read_beside(files, loaded, rows)
    with listening(processes) as listener:
        summary = evaluate_manifest(loaded, engine, rows, out, listener, others)
        found = judge_unlike(loaded, engine, rows, unlike, listener) if unlike else None
    show_summary(summary, out)
    if found is not None:
        show_unlike(found)

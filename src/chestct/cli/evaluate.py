"""`chestct evaluate`: a finished classifier on labelled scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli import options
from chestct.cli.training_options import (
    Beside,
    EvaluationFolder,
    MaseresZ,
    Processes,
    named_files,
)


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
        typer.Option(
            "--split",
            metavar="NAME",
            help="Only these rows: training, validation, test; of the manifest, or where it has "
            "no splits of the classifier's own run.",
        ),
    ] = None,
    beside: Beside = None,
    maseres_z: MaseresZ = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="A table by the values of this column too; may be said often. age, sex, scanner "
            "and slice_thickness_mm have one where they are known.",
        ),
    ] = None,
    reports: Annotated[
        Path | None,
        typer.Option(
            "--reports",
            metavar="DIR",
            help="What 'classify --out' wrote for these scans: wrong answers are linked to it.",
        ),
    ] = None,
    checklist: Annotated[
        list[str] | None,
        typer.Option(
            "--checklist",
            metavar="NAME",
            help="claim or tripod-ai, filled in as far as is known; may be said often.",
        ),
    ] = None,
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
    from chestct.training.checklists import require_checklists
    from chestct.training.judging import (
        Wishes,
        evaluate_manifest,
        judge_unlike,
        read_beside,
        read_rows,
    )

    files = named_files(beside)
    require_checklists(checklist or ())
    for place in (unlike, reports):
        if place is not None:
            options.require_exists(place)
    loaded, engine = load(classifier, running)
    rows = read_rows(manifest, loaded, split)
    wishes = Wishes(
        read_beside(files, loaded, rows),
        tuple(by or ()),
        reports,
        tuple(checklist or ()),
        maseres_z,
    )
    with listening(processes) as listener:
        summary = evaluate_manifest(loaded, engine, rows, out, listener, wishes)
        found = judge_unlike(loaded, engine, rows, unlike, listener) if unlike else None
    show_summary(summary, out)
    if found is not None:
        show_unlike(found)

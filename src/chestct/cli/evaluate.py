"""`chestct evaluate`: a finished classifier on labelled scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options
from chestct.cli.training_options import (
    Beside,
    EvaluationFolder,
    Judge,
    Judged,
    MaseresZ,
    named_files,
)

if TYPE_CHECKING:
    from chestct.classifier import Classifier
    from chestct.datasets.manifest import Manifest
    from chestct.training.judging import Wishes


@dataclass(frozen=True)
class _Beside:
    """What an evaluation holds beside its usual tables."""

    beside: Beside = None
    maseres_z: MaseresZ = False
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="A table by the values of this column too; may be said often. age, sex, scanner "
            "and slice_thickness_mm have one where they are known.",
        ),
    ] = None
    reports: Annotated[
        Path | None,
        typer.Option(
            "--reports",
            metavar="DIR",
            help="What 'classify --out' wrote for these scans: wrong answers are linked to it.",
        ),
    ] = None
    checklist: Annotated[
        list[str] | None,
        typer.Option(
            "--checklist",
            metavar="NAME",
            help="claim or tripod-ai, filled in as far as is known; may be said often.",
        ),
    ] = None

    def require_known(self) -> None:
        """Refuse what cannot be had, before anything heavy is loaded.

        Raises:
            TrainingError: What stands beside has no name or no file.
            UnknownNameError: There is no such checklist.
            ReadError: There is no such folder of reports.
        """
        from chestct.training.checklists import require_checklists

        named_files(self.beside)
        require_checklists(self.checklist or ())
        if self.reports is not None:
            options.require_exists(self.reports)

    def wishes(self, classifier: Classifier, manifest: Manifest) -> Wishes:
        """The same as an evaluation takes it.

        Raises:
            PredictionsError: What is to stand beside misfits the scans.
        """
        from chestct.training.judging import Wishes, read_beside

        return Wishes(
            read_beside(named_files(self.beside), classifier, manifest),
            tuple(self.by or ()),
            self.reports,
            tuple(self.checklist or ()),
            self.maseres_z,
        )


@options.grouped
def evaluate(
    classifier: Judge,
    scans: Judged,
    out: EvaluationFolder,
    running: options.Running,
    tables: _Beside,
    unlike: Annotated[
        Path | None,
        typer.Option(
            "--unlike",
            metavar="FOLDER",
            help="Scans of another kind, one per file or folder: can it tell them by distance?",
        ),
    ] = None,
) -> None:
    """Classify labelled scans and write figures with intervals."""
    from chestct.cli.classify import load
    from chestct.cli.training_lines import listening, show_summary, show_unlike
    from chestct.training.judging import evaluate_manifest, judge_unlike

    tables.require_known()
    if unlike is not None:
        options.require_exists(unlike)
    loaded, engine = load(classifier, running)
    rows = scans.read(loaded)
    wishes = tables.wishes(loaded, rows)
    with listening(scans.processes) as listener:
        summary = evaluate_manifest(loaded, engine, rows, out, listener, wishes)
        found = judge_unlike(loaded, engine, rows, unlike, listener) if unlike else None
    show_summary(summary, out)
    if found is not None:
        show_unlike(found)

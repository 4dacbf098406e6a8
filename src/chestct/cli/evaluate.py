"""`chestct evaluate`: a finished classifier on labelled scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chestct.cli import options
from chestct.cli.terminal import listening, show_summary, show_words
from chestct.cli.training_options import (
    Beside,
    EvaluationFolder,
    Judge,
    Judged,
    MaseresZ,
    named_files,
)
from chestct.cli.workers import Workers, current_umask, worked_on
from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.classifier import Classifier
    from chestct.cluster.driver import Executor
    from chestct.datasets.manifest import Manifest
    from chestct.engines import Engine
    from chestct.training.judging import Judging, ScanSaid, Unlike, Wishes


@dataclass(frozen=True)
class _Beside:
    """What an evaluation holds beside its usual tables."""

    beside: Beside = None
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="NAME=CLASSIFIER",
            help="Another classifier, evaluated into DIR/others/NAME and compared with; may be "
            "said often.",
        ),
    ] = None
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
        from chestct.training.judging import require_checklists

        self.others()
        require_checklists(self.checklist or ())
        if self.reports is not None:
            options.require_exists(self.reports)

    def others(self) -> dict[str, Path]:
        """The folders of the classifiers that are evaluated as well, by name.

        Raises:
            TrainingError: One has no name that a folder can have, or two have one.
        """
        named = named_files(self.also, "--also", "classifier. Write NAME=CLASSIFIER")
        for name in named:
            if Path(name).name != name or name in self._beside:
                msg = f"--also '{name}': a name of its own that a folder can have was expected."
                raise TrainingError(msg)
        return named

    @property
    def _beside(self) -> dict[str, Path]:
        return named_files(self.beside)

    def wishes(self, classifier: Classifier, manifest: Manifest) -> Wishes:
        """The same as an evaluation takes it, but for other classifiers that are yet to be judged.

        Raises:
            PredictionsError: What is to stand beside misfits the scans.
        """
        from chestct.training.judging import Wishes, read_beside

        return Wishes(
            read_beside(self._beside, classifier, manifest),
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
    workers: Workers,
    unlike: Annotated[
        Path | None,
        typer.Option(
            "--unlike",
            metavar="FOLDER",
            help="Scans of another kind, one per file or folder: can it tell them by distance?",
        ),
    ] = None,
) -> None:
    """Classify labelled scans and write figures with intervals.

    Several workers may share out the scans: --workers N.
    """
    from chestct.cli.classify import load
    from chestct.training.judging import (
        evaluate_manifest,
        judge_here,
        judge_unlike,
        read_beside,
        require_own_folder,
    )
    from chestct.training.plan import PREDICTIONS_FILE

    tables.require_known()
    executor = workers.who() if workers.is_asked_for else None
    others = {name: (folder, out / "others" / name) for name, folder in tables.others().items()}
    if unlike is not None:
        options.require_exists(unlike)
    require_own_folder(out)
    loaded, engine = load(classifier, running)
    rows = scans.read(loaded)
    wishes = tables.wishes(loaded, rows)

    def judging(asked: Classifier, by: Engine, into: Path) -> Judging:
        """Ask a classifier here, or have workers ask it."""
        if executor is None:
            return partial(judge_here, asked, by)
        return partial(_judge_elsewhere, executor, asked, {**asdict(running), **scans.said}, into)

    with listening(scans.processes) as listener:
        for folder, into in others.values():
            other, own = load(folder, running)
            evaluate_manifest(other, judging(other, own, into), scans.read(other), into, listener)
        # Tests against others are of classes.
        compared = {} if loaded.are_findings else others
        judged = {name: into / PREDICTIONS_FILE for name, (_, into) in compared.items()}
        wishes = replace(wishes, beside={**wishes.beside, **read_beside(judged, loaded, rows)})
        how = judging(loaded, engine, out)
        summary = evaluate_manifest(loaded, how, rows, out, listener, wishes)
        found = judge_unlike(loaded, engine, rows, unlike, listener) if unlike else None
    show_summary(summary, out)
    if found is not None:
        _show_unlike(found)


def _judge_elsewhere(
    executor: Executor,
    classifier: Classifier,
    settings: dict[str, Any],
    out: Path,
    manifest: Manifest,
    *_: object,
) -> Mapping[int, ScanSaid]:
    """Have workers ask a classifier about all scans."""
    from chestct.cluster.driver import conclude
    from chestct.cluster.judging import EvaluateWork

    shard = partial(Workers.usual_shard, workers=executor.workers)
    job, tasks = EvaluateWork.job(
        out, classifier, manifest, settings, shard=shard, umask=current_umask()
    )
    with worked_on(job, tasks, executor, "Judging") as done:
        return EvaluateWork.answers(conclude(done, "scans", holds_results=True))


def _show_unlike(found: Unlike) -> None:
    """Show how well scans of another kind were told from those of the manifest."""
    refused = f", {found.num_refused} of them refused as unsuitable" if found.num_refused else ""
    show_words(
        f"Unlike scans: AUROC of the distance {found.auroc:.3f}; caught at the card's threshold "
        f"{found.num_caught} of {found.num_scans}{refused}; of the manifest's scans "
        f"{found.num_false} of {found.num_familiar} lie beyond it."
    )

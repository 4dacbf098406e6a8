"""`chestct classify` of many scans: by several workers, resumed where it was stopped."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chestct.cli.terminal import scan_progress, show_error, show_line
from chestct.errors import ReadError, WriteError

if TYPE_CHECKING:
    from chestct.cli.options import Outputs, Running
    from chestct.cluster.driver import Executor
    from chestct.datasets.workers import Progress
    from chestct.readers import ReadOptions
    from chestct.writers import WriteOptions

_MANY = "Many scans"
_MOST_PER_SHARD = 50
_SHARDS_PER_WORKER = 4


@dataclass(frozen=True)
class Many:
    """Many scans, and who works on them."""

    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="CSV",
            help="Classify the scans that a table lists in its column 'scan', by several workers. "
            "--out gets answers.csv and failures.csv, and a folder per scan only with --write.",
            rich_help_panel=_MANY,
        ),
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            metavar="NAME",
            help="Who works: local (processes), slurm or ray. Default: local.",
            rich_help_panel=_MANY,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="How many workers. Default: one per core of this machine.",
            rich_help_panel=_MANY,
        ),
    ] = None
    shard: Annotated[
        int | None,
        typer.Option(
            "--shard",
            min=1,
            help="Scans that a worker takes at once, and that are lost with it. Default: 50 or "
            "fewer.",
            rich_help_panel=_MANY,
        ),
    ] = None
    executor_option: Annotated[
        list[str] | None,
        typer.Option(
            "--executor-option",
            metavar="KEY=VALUE",
            help="What the executor alone knows, such as address=HOST:PORT or slurm_partition=gpu.",
            rich_help_panel=_MANY,
        ),
    ] = None

    @property
    def is_asked_for(self) -> bool:
        """Whether the scans are a batch, however few they are."""
        return any(asdict(self).values())

    def require_scans(self, scans: list[Path] | None, *, is_json: bool) -> list[Path]:
        """The scans that were named.

        Raises:
            ReadError: None were, and no manifest.
            WriteError: Answers of a batch were to be printed.
        """
        if not scans and self.manifest is None:
            raise ReadError("Name a SCAN, or a table of scans: --manifest CSV.")
        if self.is_asked_for and is_json:
            raise WriteError("--json prints single answers. Those of a batch are in answers.csv.")
        return scans or []

    def who(self) -> Executor:
        """Who works.

        Raises:
            UnknownNameError: There is no such executor.
            ReadError: An option is no KEY=VALUE.
        """
        from chestct.cluster import EXECUTORS
        from chestct.cluster.driver import Executor
        from chestct.lookup import look_up

        name = self.executor or "local"
        look_up(EXECUTORS, name, kind="executor")
        pairs = [text.partition("=") for text in self.executor_option or []]
        for key, sign, _ in pairs:
            if not sign:
                raise ReadError(f"--executor-option is KEY=VALUE, not '{key}'.")
        return Executor(name, self.workers, {key: value for key, _, value in pairs})

    def shard_of(self, num_scans: int) -> int:
        """Scans per shard: few enough that every worker gets several."""
        from chestct.datasets.workers import num_cores

        workers = self.workers or num_cores()
        return self.shard or max(
            1, min(_MOST_PER_SHARD, num_scans // (_SHARDS_PER_WORKER * workers))
        )


@dataclass(frozen=True)
class BatchWork:
    """How the scans of a batch are classified and written about."""

    classifier: Path | None
    running: Running
    writing: WriteOptions
    explain: str | None
    finding: str | None


def list_batch(
    said: Many, scans: list[Path], names: list[str], reading: ReadOptions
) -> list[dict[str, Any]]:
    """The scans of a batch, as plain values.

    Raises:
        ReadError: Scans were named beside a manifest, or a mask of lungs for all of them.
        ManifestError: The manifest cannot be used.
    """
    from chestct.cluster.listing import list_manifest, list_scans

    if reading.lungs is not None:
        msg = "--lungs is the mask of one scan. Name masks in the manifest's column 'lungs'."
        raise ReadError(msg)
    if said.manifest is None:
        return list_scans(scans, names, reading)
    if scans:
        raise ReadError("Name scans or a --manifest, not both.")
    return list_manifest(said.manifest, reading)


def classify_batch(
    said: Many, listed: list[dict[str, Any]], outputs: Outputs, work: BatchWork
) -> int:
    """Classify listed scans, or go on with it; what the command ends with.

    Raises:
        WriteError: No folder for results was named, or it cannot be written.
        ClusterError: They cannot be worked on so.
    """
    from chestct.classifier import load_classifier
    from chestct.cluster.classifying import WORK, classify_settings, columns_of
    from chestct.cluster.driver import (
        ANSWERS_FILE,
        FAILURES_FILE,
        only_driver,
        run_job,
        write_tables,
    )
    from chestct.cluster.job import FOLDER, LEASE_S, Job, begin_job

    out = outputs.out
    if out is None:
        raise WriteError("Answers of many scans are written into a folder. Name one: --out DIR.")
    executor = said.who()
    classifier = load_classifier(work.classifier)
    classifier.require_finding(work.finding)
    # Folders are made only where something was said about what is in them.
    has_folders = outputs.write is not None or work.explain is not None
    settings = classify_settings(
        classifier,
        work.classifier,
        **asdict(work.running),
        explain=work.explain,
        finding=work.finding,
        writing=asdict(work.writing) if has_folders else None,
    )
    folder = out.absolute() / FOLDER
    job = Job(folder, WORK, settings, len(listed), said.shard_of(len(listed)), umask=_umask())
    with only_driver(out, LEASE_S, show_error), scan_progress(is_quiet=False) as bar:
        job = begin_job(job, listed)
        task = bar.add_task("Classifying", total=len(listed))

        def show(progress: Progress) -> None:
            """Move the bar; the time left is reckoned from this call's own pace."""
            bar.update(task, completed=progress.done, total=progress.total)

        run_job(job, executor, progress=show, say=show_error)
        counts = write_tables(job, columns_of(job.settings))
    show_line(f"{counts.answered} answers: {out / ANSWERS_FILE}")
    if counts.failed:
        show_line(f"{counts.failed} scans have none: {out / FAILURES_FILE}")
    show_line(classifier.card.notice)
    return counts.exit_code


def _umask() -> int:
    """Who may not read what this command writes; workers elsewhere do the same."""
    current = os.umask(0o077)
    os.umask(current)
    return current

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
    from chestct.cli.classify import EngineChoice
    from chestct.cluster.driver import Executor
    from chestct.datasets.workers import Progress
    from chestct.readers import ReadOptions
    from chestct.writers import WriteOptions

_MANY = "Many scans"
_MOST_PER_SHARD = 50
_SHARDS_PER_WORKER = 4

Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="CSV",
        help="Classify the scans that a table lists in its column 'scan', by several workers. "
        "--out gets answers.csv and failures.csv, and a folder per scan only with --write.",
        rich_help_panel=_MANY,
    ),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Who works: local (processes), slurm or ray. Default: local.",
        rich_help_panel=_MANY,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="How many workers. Default: one per core of this machine.",
        rich_help_panel=_MANY,
    ),
]
Shard = Annotated[
    int | None,
    typer.Option(
        "--shard",
        min=1,
        help="Scans that a worker takes at once, and that are lost with it. Default: 50 or fewer.",
        rich_help_panel=_MANY,
    ),
]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option",
        metavar="KEY=VALUE",
        help="What the executor alone knows, such as address=HOST:PORT or slurm_partition=gpu.",
        rich_help_panel=_MANY,
    ),
]


@dataclass(frozen=True)
class BatchOptions:
    """What was said on the command line about many scans."""

    manifest: Path | None
    executor: str | None
    workers: int | None
    shard: int | None
    options: list[str] | None

    @property
    def is_asked_for(self) -> bool:
        """Whether the scans are a batch, however few they are."""
        return any(each is not None for each in asdict(self).values())

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
        pairs = [text.partition("=") for text in self.options or []]
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
    """How the scans of a batch are read, classified and written about."""

    classifier: Path | None
    engine: EngineChoice
    reading: ReadOptions
    writing: WriteOptions | None
    explain: str | None


def list_batch(
    said: BatchOptions, scans: list[Path], names: list[str], reading: ReadOptions
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
    said: BatchOptions, listed: list[dict[str, Any]], out: Path | None, work: BatchWork
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

    if out is None:
        raise WriteError("Answers of many scans are written into a folder. Name one: --out DIR.")
    executor = said.who()
    classifier = load_classifier(work.classifier)
    writing = None if work.writing is None else asdict(work.writing)
    settings = classify_settings(
        classifier,
        work.classifier,
        engine=work.engine.name,
        precision=work.engine.precision,
        device=work.engine.device,
        explain=work.explain,
        writing=writing,
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

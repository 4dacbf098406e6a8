"""`chestct classify` of many scans: by several workers, resumed where it was stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chestct.cli.terminal import show_line
from chestct.cli.workers import MANY, TIMEOUT_S, Shards, current_umask, worked_on
from chestct.errors import ReadError, WriteError

if TYPE_CHECKING:
    from chestct.cli.options import Outputs, Running
    from chestct.readers import ReadOptions
    from chestct.writers import WriteOptions

_TIMEOUT_EXPLAINED_S = 3600.0


@dataclass(frozen=True)
class Many(Shards):
    """Many scans, and who works on them."""

    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="CSV",
            help="Classify the scans that a table lists in its column 'scan', by several workers. "
            "--out gets answers.csv, failures.csv and index.html, and a folder per scan only with "
            "--write.",
            rich_help_panel=MANY,
        ),
    ] = None

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
    from chestct.cluster.classifying import (
        WORK,
        classify_settings,
        write_batch_index,
    )
    from chestct.cluster.driver import ANSWERS_FILE, FAILURES_FILE, write_tables
    from chestct.cluster.job import FOLDER, Job
    from chestct.writers.pages import answer_columns

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
    usual_s = TIMEOUT_S if work.explain is None else _TIMEOUT_EXPLAINED_S
    job = Job(
        out.absolute() / FOLDER,
        WORK,
        settings,
        len(listed),
        said.shard_of(len(listed), said.workers),
        umask=current_umask(),
        scan_timeout_s=said.scan_timeout or usual_s,
    )
    with worked_on(job, listed, executor, "Classifying") as done:
        counts = write_tables(done, answer_columns(classifier.card.label_set.names))
        page = write_batch_index(done, classifier)
    show_line(f"{counts.answered} answers: {out / ANSWERS_FILE}, as a page: {page.name}")
    if counts.failed:
        show_line(f"{counts.failed} scans have none: {out / FAILURES_FILE}")
    show_line(classifier.card.notice)
    return counts.exit_code

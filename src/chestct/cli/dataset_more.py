"""`chestct dataset export`, `readers` and `flow`: making a data set that others can use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from chestct.cli import dataset_options as shared
from chestct.cli.terminal import show_written, stdout_console
from chestct.cli.training_options import Processes
from chestct.errors import ChestCTError

if TYPE_CHECKING:
    from chestct.datasets.sharing import ExportResult


class SharingError(ChestCTError):
    """Options of these commands contradict each other."""


def export(
    manifest: shared.ManifestFile,
    kind: Annotated[str, typer.Option("--to", metavar="FORMAT", help="tiff16 or nifti.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder of its own.")],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Secret that makes the pseudonyms; made if not there. Default: drawn at random.",
        ),
    ] = None,
    period: Annotated[
        str,
        typer.Option("--period", metavar="NAME", help="Date told: none, year or month."),
    ] = "year",
    names_sites: Annotated[
        bool, typer.Option("--name-sites", help="Keep the names of sites; else they are numbered.")
    ] = False,
    processes: Processes = None,
    labels: shared.Labels = None,
) -> None:
    """Copy the scans for sharing, without names or identifiers; goes on where it stopped."""
    from chestct.cli.dataset import progress_bar
    from chestct.datasets.sharing import ExportSettings, export_scans, read_or_make_key

    if key is not None and out.resolve() in key.resolve().parents:
        raise SharingError(f"The key {key} must not lie in {out}: whoever gets the export gets it.")
    scans = shared.read_scans(manifest, labels)
    ExportSettings(kind, period=period)
    settings = ExportSettings(kind, read_or_make_key(key) if key else None, period, names_sites)
    with progress_bar(len(scans), "copying") as report_progress:
        done = export_scans(scans, out, settings, processes=processes, progress=report_progress)
    show_export(done)
    raise typer.Exit(1 if done.failed else 0)


def show_export(done: ExportResult) -> None:
    """Say what was copied, what was noticed, and where the table is."""
    console = stdout_console()
    words = f"{done.num_made} copied, {done.num_found} were there, {len(done.failed)} failed"
    console.print(Text(words))
    for row, notes in done.notes.items():
        console.print(Text(f"! row {row}: {'; '.join(notes)}", style="yellow"), soft_wrap=True)
    for row, reason in done.failed.items():
        console.print(Text(f"✗ row {row}: {reason}", style="bold red"), soft_wrap=True)
    if done.table is not None:
        show_written([done.table], [])


def readers(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="CSV file: scan, patient, reader, label; or a column reader_NAME per reader.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")],
    rule: Annotated[
        str, typer.Option("--rule", metavar="NAME", help="majority, unanimous or adjudicator.")
    ] = "majority",
    adjudicator: Annotated[
        str,
        typer.Option(
            "--adjudicator", metavar="NAME", help="Reader who decides where the others differ."
        ),
    ] = "",
    least: Annotated[
        int, typer.Option("--least", min=1, metavar="N", help="Readers that a scan must have.")
    ] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 1,
) -> None:
    """Make one label per scan out of several readers', and say how far they agree."""
    import numpy as np

    from chestct.datasets.manifest import write_manifest
    from chestct.datasets.reader_labels import (
        Rule,
        agree_on,
        agreement_json,
        agreement_markdown,
        disputes_csv,
        judge_agreement,
        read_readings,
    )
    from chestct.datasets.sharing import flow_markdown, flow_of
    from chestct.storage import write_whole

    readings = read_readings(labels)
    chosen = Rule(rule, adjudicator, least)
    decided = agree_on(readings, chosen)
    report = judge_agreement(readings, np.random.default_rng(seed), without=adjudicator)
    words = agreement_markdown(report)
    facts = {"name": rule, "adjudicator": adjudicator, "least_readers": least, "seed": seed}
    written = [
        write_manifest(decided, out / "consensus.csv"),
        write_whole(out / "disputed.csv", disputes_csv(readings, decided).encode()),
        write_whole(out / "agreement.json", agreement_json(report, facts).encode()),
        write_whole(out / "agreement.md", words.encode()),
    ]
    console = stdout_console()
    for text in (words, flow_markdown(flow_of(decided))):
        console.print(Text(text), soft_wrap=True)
    show_written(written, [])


def flow(
    manifest: shared.ManifestFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it: .csv, or .md for Markdown."),
    ] = None,
    labels: shared.Labels = None,
) -> None:
    """Count the scans that were left out, by the reason in the column 'excluded'."""
    from chestct.datasets.sharing import flow_csv, flow_markdown, flow_of
    from chestct.storage import write_whole

    if out is not None and out.suffix not in (".csv", ".md"):
        raise SharingError(f"{out.name} is neither .csv nor .md. Name the file by what it holds.")
    steps = flow_of(shared.read_scans(manifest, labels, needs_files=False))
    stdout_console().print(Text(flow_markdown(steps)), soft_wrap=True)
    if out is not None:
        words = flow_csv(steps) if out.suffix == ".csv" else flow_markdown(steps)
        show_written([write_whole(out, words.encode())], [])

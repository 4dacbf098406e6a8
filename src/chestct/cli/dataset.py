"""`chestct dataset`: list, check, divide and prepare labelled scans."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.text import Text

from chestct.cli import options
from chestct.cli.terminal import (
    print_table,
    scan_progress,
    show_remark,
    show_words,
    show_written,
    stdout_console,
)
from chestct.cli.training_options import Labels, Overrides, Processes, named_labels
from chestct.cli.workers import TIMEOUT_S, Shards, current_umask, worked_on
from chestct.errors import ChestCTError

if TYPE_CHECKING:
    from chestct.datasets.checks import CheckReport
    from chestct.datasets.manifest import Manifest
    from chestct.datasets.sharing import ExportResult, ExportSettings
    from chestct.datasets.store import Cache
    from chestct.datasets.workers import ProgressCallback


ManifestFile = Annotated[
    Path,
    typer.Argument(metavar="MANIFEST", help="CSV file: scan, patient, label, and more."),
]


def _read_scans(
    file: Path, labels: str | None, names: tuple[str, ...] = (), *, needs_files: bool = True
) -> Manifest:
    """Read a manifest of the classes of `--labels`, or of `names`; empty: those that occur.

    Raises:
        TrainingError: What `--labels` said does not fit.
        ManifestError: The manifest does not fit. Where its labels are unknown and none were named,
            the message names the option.
    """
    from chestct.datasets.manifest import UnknownLabelError, read_manifest

    chosen = named_labels(labels)
    named = names if chosen is None else chosen.names
    are_findings = True if chosen is not None and chosen.are_findings else None
    try:
        return read_manifest(file, named, needs_files=needs_files, are_findings=are_findings)
    except UnknownLabelError as error:
        if named:
            raise
        msg = f"{error} If the manifest has other classes, name all its classes: --labels A,B."
        raise UnknownLabelError(msg) from error


app = typer.Typer(
    help="List, check, divide and prepare labelled scans.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TABLE = "Labels from a spreadsheet"
_MARKS = {"refuse": ("✗", "bold red"), "warning": ("!", "yellow"), "note": ("·", "dim")}


@dataclass(frozen=True)
class _LabelTable:
    """A table that says what the scans of a folder show."""

    file: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="TABLE",
            help="The scans' labels: CSV or Excel, a row per scan or patient.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    label_column: Annotated[
        str,
        typer.Option(
            "--label-column", metavar="NAME", help="Default: label.", rich_help_panel=_TABLE
        ),
    ] = ""
    scan_column: Annotated[
        str,
        typer.Option(
            "--scan-column",
            metavar="NAME",
            help="Paths or names of scans in FOLDER. Default: scan, if there.",
            rich_help_panel=_TABLE,
        ),
    ] = ""
    patient_column: Annotated[
        str,
        typer.Option(
            "--patient-column",
            metavar="NAME",
            help="Patients; without a column of scans, names of folders or files. Default: "
            "patient, if there.",
            rich_help_panel=_TABLE,
        ),
    ] = ""
    sheet: Annotated[
        str,
        typer.Option(
            "--sheet", metavar="NAME", help="Of an Excel workbook.", rich_help_panel=_TABLE
        ),
    ] = ""
    is_matched_only: Annotated[
        bool,
        typer.Option(
            "--matched-only",
            help="Leave out scans without a label and rows without a scan.",
            rich_help_panel=_TABLE,
        ),
    ] = False

    def require_file(self) -> None:
        """Refuse what was said of a table where none was named.

        Raises:
            ChestCTError: Something was.
        """
        said: dict[str, object] = {
            "--sheet": self.sheet,
            "--matched-only": self.is_matched_only,
            "--label-column": self.label_column,
            "--scan-column": self.scan_column,
            "--patient-column": self.patient_column,
        }
        first = next((name for name, value in said.items() if value), None)
        if self.file is None and first is not None:
            raise ChestCTError(f"{first} is about a table of labels. Name it: --labels TABLE.")


@app.command("scan")
@options.grouped
def _scan(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A data set, unpacked.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Manifest to write.")],
    table: _LabelTable,
    tiff: options.Tiff,
    layout: Annotated[
        str,
        typer.Option("--layout", metavar="NAME", help="How the folder is laid out."),
    ] = "auto",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="A,B|YAML",
            help="The classes: names, or a YAML file with 'labels:', which says what stands for "
            "each. Default: what the column holds, or those of public data sets.",
        ),
    ] = None,
) -> None:
    """List the labelled scans of a folder in a manifest; labels may come from a spreadsheet."""
    from chestct.datasets.manifest import write_manifest
    from chestct.datasets.public import scan_folder, with_reading
    from chestct.datasets.spreadsheets import Columns, join_labels, read_spreadsheet

    reading = _reading_cells(tiff)
    named = named_labels(classes)
    table.require_file()
    if table.file is None:
        manifest, name, notes = scan_folder(folder, layout, reading, named)
        found = f"layout {name}"
    else:
        manifest, notes = join_labels(
            folder,
            read_spreadsheet(table.file, table.sheet),
            Columns(table.label_column, table.scan_column, table.patient_column),
            named,
            takes_matched_only=table.is_matched_only,
        )
        manifest = manifest.with_rows(with_reading(row, reading) for row in manifest.rows)
        found = f"labels of {table.file.name}"
    written = write_manifest(manifest, out)
    show_words(f"{folder}: {_describe(manifest)} ({found})")
    show_written([written], notes)


def _reading_cells(tiff: options.Tiff) -> dict[str, str]:
    """What a manifest's columns say of how to read TIFF slices; empty where nothing was said."""
    geometry = tiff.geometry()
    if geometry is None:
        return {}
    known = {
        "spacing_mm": " ".join(f"{size:g}" for size in geometry.spacing_mm),
        "order": geometry.order,
        "unit": geometry.unit,
        "slope": geometry.slope,
        "intercept": geometry.intercept,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


@app.command("check")
def _check(
    manifest: ManifestFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Remember here what was read of each scan."),
    ] = None,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the scans; pixels are not compared.")
    ] = False,
    processes: Processes = None,
    labels: Labels = None,
) -> None:
    """Look for leaks, wrong labels, unreadable scans and confounders; exit 1 when refused."""
    scans = _read_scans(manifest, labels)

    from chestct.datasets.checks import check_manifest
    from chestct.datasets.scans import gather_facts
    from chestct.storage import write_whole

    facts = None
    if not is_quick:
        with _progress_bar("reading", len(scans)) as report_progress:
            facts = gather_facts(scans, cache, processes=processes, progress=report_progress)
    report = check_manifest(scans, facts)
    _show_report(scans, report)
    if out is not None:
        show_written([write_whole(out, report.as_json().encode())], [])
    raise typer.Exit(1 if report.refusals else 0)


@dataclass(frozen=True)
class _Division:
    """Into what the patients are divided."""

    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="N", help="Deal the patients out to N folds."),
    ] = None
    share: Annotated[
        float | None,
        typer.Option("--hold-out", metavar="SHARE", help="Keep a share of patients for testing."),
    ] = None
    is_maseres: Annotated[
        bool, typer.Option("--maseres-paper", help="The MASERes paper's own split.")
    ] = False
    validation: Annotated[
        float, typer.Option("--validation", metavar="SHARE", help="With --hold-out: also these.")
    ] = 0.0
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the shuffling.")] = 1

    def require_one(self) -> None:
        """Refuse none, and more than one, of the ways to divide.

        Raises:
            ChestCTError: It is so.
        """
        if (self.folds is not None) + (self.share is not None) + self.is_maseres != 1:
            raise ChestCTError("Give one of --folds N, --hold-out SHARE and --maseres-paper.")
        if self.validation and self.share is None:
            raise ChestCTError("--validation goes with --hold-out SHARE.")

    def divided(self, manifest: Manifest) -> Manifest:
        """The scans divided."""
        from chestct.datasets.splits import SplitSettings, hold_out, k_fold, maseres_paper

        if self.folds is not None:
            return k_fold(manifest, SplitSettings(folds=self.folds, seed=self.seed))
        if self.share is None:
            return maseres_paper(manifest)
        wanted = SplitSettings(
            test_share=self.share, validation_share=self.validation, seed=self.seed
        )
        return hold_out(manifest, wanted)


@app.command("split")
@options.grouped
def _split(
    manifest: ManifestFile,
    division: _Division,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: MANIFEST itself.")
    ] = None,
    labels: Labels = None,
) -> None:
    """Divide the scans by patient, every class alike."""
    from chestct.datasets.manifest import write_manifest
    from chestct.remote import shown
    from chestct.storage import is_address

    if out is None and is_address(manifest):
        raise ChestCTError(f"{shown(manifest)} is not written to. Name a file: --out FILE.")
    division.require_one()
    divided = division.divided(_read_scans(manifest, labels, needs_files=False))
    _show_sides(divided)
    show_written([write_manifest(divided, out or manifest)], [])


_Inputs: TypeAlias = "tuple[Cache, int, tuple[str, ...]]"
"""Where inputs are kept, how many of each scan, and the classes where they are said."""


@dataclass(frozen=True)
class _Wanted:
    """Which inputs are prepared: those of a training's settings, or of a recipe."""

    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            metavar="CONFIG",
            help="Prepare what 'chestct train CONFIG' will use: settings by file or name.",
        ),
    ] = None
    overrides: Overrides = None
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="Recipe instead; see 'chestct info'."),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder, or address, of the inputs. Default: where --settings keeps them.",
        ),
    ] = None
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="NAME", help="float16 (default) or uint8.")
    ] = None
    max_gib: Annotated[
        float | None,
        typer.Option("--max-gib", min=0.001, help="Most that the folder may hold. Default: 100."),
    ] = None
    variants: Annotated[
        int | None,
        typer.Option(
            "--variants", min=1, metavar="N", help="Inputs per scan; see the guide. Default: 1."
        ),
    ] = None

    def inputs(self) -> _Inputs:
        """Where the inputs are kept, how many of each scan, and the classes.

        Raises:
            ChestCTError: Neither settings nor a recipe with a folder were named, or both.
        """
        said = {
            "storage": self.storage,
            "cache_gib": self.max_gib,
            "variants": self.variants,
            "cache": None if self.cache is None else str(self.cache),
        }
        section = {name: value for name, value in said.items() if value is not None}
        return self._of_recipe(section) if self.settings is None else self._of_settings(section)

    def _of_recipe(self, section: Mapping[str, object]) -> _Inputs:
        """What inputs are wanted, as the command line says."""
        from chestct.preprocess.recipes import find_recipe

        if self.recipe is None or self.cache is None or self.overrides:
            msg = "Give --settings CONFIG, with any --set NAME=VALUE, or --recipe NAME and --cache"
            raise ChestCTError(f"{msg} DIR.")
        chosen = find_recipe(self.recipe)

        from chestct.training.data import make_cache
        from chestct.training.settings import DataSection

        data = DataSection().model_copy(update=dict(section))
        return make_cache(data, chosen), data.variants, ()

    def _of_settings(self, section: Mapping[str, object]) -> _Inputs:
        """The same as the settings of a training say."""
        from chestct.training.data import make_cache
        from chestct.training.plan import find_parts
        from chestct.training.settings import read_settings

        if self.recipe is not None:
            msg = f"--settings {self.settings} names the recipe. Leave --recipe out, or --set"
            raise ChestCTError(f"{msg} recipe.name={self.recipe}.")
        chosen = read_settings(self.settings or "", self.overrides or ())
        data = chosen.data.model_copy(update=dict(section))
        return make_cache(data, find_parts(chosen).recipe), data.variants, chosen.labels


@app.command("prepare")
@options.grouped
def _prepare(
    manifest: ManifestFile,
    wanted: _Wanted,
    many: Shards,
    processes: Processes = None,
    labels: Labels = None,
) -> None:
    """Prepare all scans for a network, with all cores or machines; goes on where it stopped."""
    executor = many.who(processes)
    cache, variants, names = wanted.inputs()
    scans = _read_scans(manifest, labels, names)

    from chestct.cluster.preparing import PrepareWork

    started = time.perf_counter()
    job, tasks = PrepareWork.job(
        cache,
        scans,
        variants,
        shard=lambda num: many.shard_of(num, executor.workers),
        umask=current_umask(),
        scan_timeout_s=many.scan_timeout or TIMEOUT_S,
    )
    with worked_on(job, tasks, executor, "Preparing") as work:
        done, table = PrepareWork.conclude(work, scans, time.perf_counter() - started)
    show_words(
        f"{done.num_made} prepared, {done.num_found} were there, {len(done.failed)} failed, "
        f"{done.seconds:.0f} s; stored values differ by at most {done.max_error:.2g}"
    )
    console = stdout_console()
    for row, reasons in done.unsuitable.items():
        console.print(Text(f"! row {row} is unsuitable: {'; '.join(reasons)}", style="yellow"))
    for row, reason in done.failed.items():
        show_words(f"✗ row {row}: {reason}", "bold red")
    if done.failed:
        show_written([table], [])
    raise typer.Exit(1 if done.failed else 0)


def _describe(manifest: Manifest) -> str:
    """The scans in numbers: "6 scans of 6 patients: 2 CAP, 4 normal"."""
    cases = ", ".join(f"{count} {label}" for label, count in manifest.cases.items())
    return f"{len(manifest)} scans of {manifest.num_patients} patients: {cases}"


def _show_report(manifest: Manifest, report: CheckReport) -> None:
    """Show what a check found: findings first, then every variable that was asked."""
    from chestct.datasets.confounders import VARIABLES

    console = stdout_console()
    console.print(Text(f"{report.manifest}: {_describe(manifest)}", style="bold"))
    if report.sides:
        _show_sides(manifest)
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        console.print(Text(f"{mark} {finding.sentence}", style=style))
    if not report.refusals and not report.warnings:
        console.print(Text("No leaks and no confounders were found."))
    lines = [
        (
            VARIABLES[each.variable],
            "" if each.auc is None else f"{each.auc:.2f}",
            "" if each.chance_auc is None else f"under {each.chance_auc:.2f}",
            str(each.num_patients - each.num_unknown),
            "the class itself" if each.is_same_as_class else each.note,
        )
        for each in report.confounders
    ]
    print_table(("Alone, without the pictures", "AUC", "By chance", "Patients", ""), lines)


def _show_sides(manifest: Manifest) -> None:
    """Show how many scans of each class stand on each side of the split."""
    sides = sorted({row.side for row in manifest.rows})
    lines = []
    for side in sides:
        rows = [row for row in manifest.rows if row.side == side]
        counts = [str(sum(label in row.present for row in rows)) for label in manifest.labels]
        lines.append([side or "nowhere", *counts, str(len({row.patient for row in rows}))])
    print_table(("", *manifest.labels, "Patients"), lines)


@dataclass(frozen=True)
class _Sharing:
    """In what form scans are shared, and what is told of whom."""

    kind: Annotated[str, typer.Option("--to", metavar="FORMAT", help="tiff16 or nifti.")]
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Secret that makes the pseudonyms; made if not there. Default: drawn at random.",
        ),
    ] = None
    period: Annotated[
        str,
        typer.Option("--period", metavar="NAME", help="Date told: none, year or month."),
    ] = "year"
    names_sites: Annotated[
        bool, typer.Option("--name-sites", help="Keep the names of sites; else they are numbered.")
    ] = False

    def require_key_outside(self, out: Path) -> None:
        """Refuse a key that would be given away with the export.

        Raises:
            ChestCTError: It lies in its folder.
        """
        if self.key is not None and out.resolve() in self.key.resolve().parents:
            raise ChestCTError(
                f"The key {self.key} must not lie in {out}: whoever gets the export gets it."
            )

    def settings(self) -> ExportSettings:
        """The same as the export takes it; a key that is not there is made."""
        from chestct.datasets.sharing import ExportSettings, read_or_make_key

        # What is wrong is said before a key is made.
        ExportSettings(self.kind, period=self.period)
        key = read_or_make_key(self.key) if self.key else None
        return ExportSettings(self.kind, key, self.period, self.names_sites)


@app.command("export")
@options.grouped
def _export(
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder of its own.")],
    sharing: _Sharing,
    processes: Processes = None,
    labels: Labels = None,
) -> None:
    """Copy the scans for sharing, without names or identifiers; goes on where it stopped."""
    from chestct.datasets.sharing import export_scans

    sharing.require_key_outside(out)
    scans = _read_scans(manifest, labels)
    settings = sharing.settings()
    with _progress_bar("copying", len(scans)) as report_progress:
        done = export_scans(scans, out, settings, processes=processes, progress=report_progress)
    _show_export(done)
    raise typer.Exit(1 if done.failed else 0)


def _show_export(done: ExportResult) -> None:
    """Say what was copied, what was noticed, and where the table is."""
    words = f"{done.num_made} copied, {done.num_found} were there, {len(done.failed)} failed"
    stdout_console().print(Text(words))
    for row, notes in done.notes.items():
        show_remark(f"row {row}: {'; '.join(notes)}")
    for row, reason in done.failed.items():
        show_words(f"✗ row {row}: {reason}", "bold red")
    if done.table is not None:
        show_written([done.table], [])


@dataclass(frozen=True)
class _Consensus:
    """How several readers' labels become one."""

    rule: Annotated[
        str, typer.Option("--rule", metavar="NAME", help="majority, unanimous or adjudicator.")
    ] = "majority"
    adjudicator: Annotated[
        str,
        typer.Option(
            "--adjudicator", metavar="NAME", help="Reader who decides where the others differ."
        ),
    ] = ""
    least: Annotated[
        int, typer.Option("--least", min=1, metavar="N", help="Readers that a scan must have.")
    ] = 2
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 1

    @property
    def facts(self) -> dict[str, object]:
        """What stands in the report of it."""
        return {
            "name": self.rule,
            "adjudicator": self.adjudicator,
            "least_readers": self.least,
            "seed": self.seed,
        }


@app.command("readers")
@options.grouped
def _readers(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="CSV file: scan, patient, reader, label; or a column reader_NAME per reader.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")],
    said: _Consensus,
    classes: Labels = None,
) -> None:
    """Make one label per scan out of several readers', and say how far they agree."""
    import numpy as np

    from chestct.datasets.manifest import write_manifest
    from chestct.datasets.reader_labels import Readings
    from chestct.storage import write_text

    named = named_labels(classes)
    readings = Readings.read(labels, () if named is None else named.names)
    decided = readings.agree_on(said.rule, adjudicator=said.adjudicator, least_readers=said.least)
    drawn = np.random.default_rng(said.seed)
    report = readings.judge(drawn, without=said.adjudicator)
    texts = readings.files(decided, report, said.facts)
    written = [write_manifest(decided, out / "consensus.csv")]
    written += [write_text(out / name, text) for name, text in texts.items()]
    for text in (texts["agreement.md"], decided.flow().as_markdown() + "\n"):
        show_words(text)
    show_written(written, [])


@app.command("flow")
def _flow(
    manifest: ManifestFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it: .csv, or .md for Markdown."),
    ] = None,
    labels: Labels = None,
) -> None:
    """Count the scans that were left out, by the reason in the column 'excluded'."""
    from chestct.report import as_csv
    from chestct.storage import write_whole

    if out is not None and out.suffix not in (".csv", ".md"):
        raise ChestCTError(f"{out.name} is neither .csv nor .md. Name the file by what it holds.")
    counts = _read_scans(manifest, labels, needs_files=False).flow()
    words = counts.as_markdown() + "\n"
    show_words(words)
    if out is not None:
        words = as_csv(counts.columns, counts.rows) if out.suffix == ".csv" else words
        show_written([write_whole(out, words.encode())], [])


@contextmanager
def _progress_bar(what: str, total: int) -> Iterator[ProgressCallback]:
    """A bar of one work, on stderr; gives what is to be told how far it is."""
    with scan_progress(is_quiet=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda progress: bar.update(task, completed=progress.done)

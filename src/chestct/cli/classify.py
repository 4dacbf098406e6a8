"""`chestct classify`: one scan or many."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options
from chestct.cli.terminal import (
    scan_progress,
    show_error,
    show_notice,
    show_result,
    show_table,
    stdout_console,
)
from chestct.errors import ChestCTError

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis
    from chestct.classifier import Classifier
    from chestct.engines import Engine
    from chestct.readers import ReadOptions
    from chestct.result import ScanResult


@dataclass(frozen=True)
class EngineChoice:
    """What was said on the command line about where the network runs."""

    name: str = "auto"
    precision: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Work:
    """What is done with every scan of one call."""

    classifier: Classifier
    engine: Engine
    reading: ReadOptions
    is_json: bool

    def run(self, scan: Path, folder: Path | None) -> ScanResult:
        """Classify one scan, write its outputs, print its JSON line."""
        from chestct.pipeline import analyse_scan
        from chestct.writers.folders import check_folder, write_outputs

        options.require_exists(scan)
        if folder is not None:
            check_folder(folder, scan)
        analysis = analyse_scan(
            scan,
            self.classifier,
            engine=self.engine,
            series=self.reading.series,
            allow=self.reading.allow,
            tiff=self.reading.tiff,
        )
        if folder is not None:
            write_outputs(analysis, folder)
        if self.is_json:
            _print_json(analysis)
        return analysis.result


@dataclass
class Outcome:
    """How far the scans of one call have come."""

    results: list[ScanResult] = field(default_factory=list)
    reports: list[Path | None] = field(default_factory=list)
    num_failed: int = 0

    @property
    def exit_code(self) -> int:
        """0 when all was done, 1 when some scans failed, 2 when all did."""
        if self.num_failed == 0:
            return 0
        return 1 if self.results else 2


def classify(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN", help="Folders, DICOM or NIfTI files, or zips; one chest CT each."
        ),
    ],
    classifier: options.ClassifierFolder = None,
    out: options.Out = None,
    engine: options.EngineName = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per scan and nothing else.")
    ] = False,
    series: options.Series = None,
    allow_gap: options.AllowGap = False,
    allow_tilt: options.AllowTilt = False,
    allow_mixed: options.AllowMixed = False,
    spacing_mm: options.SpacingMm = None,
    order: options.Order = None,
    slope: options.Slope = None,
    intercept: options.Intercept = None,
    is_windowed: options.Windowed = False,
) -> None:
    """Classify chest CT scans, each as a whole."""
    tiff = options.TiffOptions(spacing_mm, order, slope, intercept, is_windowed)
    permissions = options.Permissions(allow_gap, allow_tilt, allow_mixed)
    reading = options.read_options(series, permissions, tiff)
    if len(scans) == 1:
        options.require_exists(scans[0])
    loaded, running = load(classifier, EngineChoice(engine, precision, device))
    outcome = classify_all(scans, out, Work(loaded, running, reading, is_json))
    if not is_json:
        _show(outcome)
    raise typer.Exit(outcome.exit_code)


def load(folder: Path | None, choice: EngineChoice) -> tuple[Classifier, Engine]:
    """Load a classifier and make its engine, once for all scans."""
    from chestct.classifier import load_classifier
    from chestct.engines import ENGINES, make_engine
    from chestct.lookup import look_up

    if choice.name != "auto":
        look_up(ENGINES, choice.name, kind="engine")
    classifier = load_classifier(folder)
    return classifier, make_engine(
        classifier, choice.name, precision=choice.precision, device=choice.device
    )


def classify_all(scans: list[Path], out: Path | None, work: Work) -> Outcome:
    """Classify every scan; one that fails is said at once and does not stop the others."""
    from chestct.writers.folders import folder_names

    outcome = Outcome()
    folders = [None if out is None else out / name for name in folder_names(scans)]
    with scan_progress(is_quiet=work.is_json) as progress:
        task = progress.add_task("", total=len(scans))
        for scan, folder in zip(scans, folders, strict=True):
            progress.update(task, description=scan.name)
            try:
                outcome.results.append(work.run(scan, folder))
                outcome.reports.append(folder and folder / "report.html")
            except ChestCTError as error:
                show_error(error if scan.name in str(error) else f"{scan}: {error}")
                outcome.num_failed += 1
            progress.advance(task)
    return outcome


def _show(outcome: Outcome) -> None:
    console = stdout_console()
    if len(outcome.results) == 1:
        show_result(console, outcome.results[0], outcome.reports[0])
    elif outcome.results:
        show_table(console, outcome.results)
        if outcome.reports[0] is not None:
            console.print(
                f"Reports: one folder per scan in {outcome.reports[0].parents[1]}", markup=False
            )
    if outcome.results:
        show_notice(console, outcome.results[0])


def _print_json(analysis: ScanAnalysis) -> None:
    from chestct.writers.json_report import result_document

    typer.echo(result_document(analysis).model_dump_json())

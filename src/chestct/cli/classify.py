"""`chestct classify` and `prepare`: what a network says of a scan, and what it would see of it.

Many scans are classified by several workers, and resumed where they were stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chestct.cli import options
from chestct.cli.terminal import (
    scan_progress,
    show_error,
    show_line,
    show_notice,
    show_result,
    show_table,
    show_written,
    stdout_console,
)
from chestct.cli.workers import MANY, TIMEOUT_S, Shards, current_umask, worked_on
from chestct.errors import ChestCTError, ReadError, WriteError

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis
    from chestct.classifier import Classifier
    from chestct.engines import Engine
    from chestct.explain.question import Listener
    from chestct.readers import ReadOptions
    from chestct.result import ScanResult
    from chestct.volume import Volume
    from chestct.writers import WriteOptions


_TIMEOUT_EXPLAINED_S = 3600.0


@dataclass(frozen=True)
class _Work:
    """What is done with every scan of one call."""

    classifier: Classifier
    engine: Engine
    reading: ReadOptions
    writing: WriteOptions
    explain: str | None
    is_json: bool
    finding: str | None = None

    def run(self, scan: Path, name: str, folder: Path | None, show_steps: Listener) -> _Done:
        """Classify one scan, which is called `name`, and write its outputs."""
        from chestct.pipeline import analyse_scan
        from chestct.remote import local_copy
        from chestct.writers.folders import check_folder, write_outputs

        options.require_scan(scan)
        watcher = _Foreseeing(name, show_steps, None if folder is None else self.writing)
        # A copy of an address stays until all is written: DICOM outputs read its headers.
        with local_copy(scan) as place:
            if folder is not None:
                check_folder(folder, place)
            analysis = analyse_scan(
                place,
                self.classifier,
                engine=self.engine,
                reading=self.reading,
                explain=self.explain,
                finding=self.finding,
                watcher=watcher,
            )
            analysis = replace(analysis, result=replace(analysis.result, scan=name))
            is_complete = True
            if folder is not None:
                written = write_outputs(analysis, folder, self.writing)
                analysis, is_complete = written.analysis, not written.failed
                watcher.say({**written.skipped, **written.failed})
        line = _json_line(analysis) if self.is_json else _slices_words(analysis)
        report = "report.html" if "html" in self.writing.names else ""
        return _Done(analysis.result, line, is_complete, folder, folder and folder / report)


class _Foreseeing:
    """A `Watcher` that says which outputs a scan cannot have, as soon as that is known and once."""

    def __init__(
        self, scan: str, show_steps: Listener, writing: WriteOptions | None = None
    ) -> None:
        self.scan, self.show_steps, self.writing = scan, show_steps, writing
        self.said: set[str] = set()

    def was_read(self, volume: Volume, path: Path) -> None:
        """Say what shows in the headers."""
        from chestct.writers.folders import foresee_missing

        if self.writing is not None:
            self.say(foresee_missing(volume, path, self.writing))

    def explaining(self, done: int, num: int) -> None:
        """Pass it on."""
        self.show_steps(done, num)

    def say(self, missing: Mapping[str, str]) -> None:
        """Say what is missing and why, a line for each reason; nothing twice."""
        new = {name: why for name, why in missing.items() if name not in self.said}
        self.said |= set(new)
        for reason in dict.fromkeys(new.values()):
            names = ", ".join(name for name, why in new.items() if why == reason)
            show_error(f"{self.scan}: left out: {names}. {reason}")


@dataclass(frozen=True)
class _Done:
    """What is kept of one scan; not the analysis, which would stay in memory beside the next one.

    `line` is the answer as JSON, or words about its slices where that was not asked for;
    `is_complete` whether every output that was asked for is there, in `folder` if anywhere;
    `report` the file, or the folder, that a user is pointed at.
    """

    result: ScanResult
    line: str
    is_complete: bool
    folder: Path | None
    report: Path | None


@dataclass
class _Outcome:
    """How far the scans of one call have come."""

    done: list[_Done] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    num_failed: int = 0

    @property
    def results(self) -> list[ScanResult]:
        """The answers."""
        return [each.result for each in self.done]

    @property
    def exit_code(self) -> int:
        """0 when all was done, 1 when some scans failed or lack an output, 2 when all failed."""
        if self.num_failed and not self.done:
            return 2
        return 0 if not self.num_failed and all(each.is_complete for each in self.done) else 1


@dataclass(frozen=True)
class _Asked:
    """What answers, about what, and how scans are found and answers are shown."""

    classifier: options.ClassifierFolder = None
    finding: options.Finding = None
    is_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per scan and nothing else.")
    ] = False
    is_recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            help="Classify every scan in and below the folders; --out gets answers.csv and "
            "index.html too.",
        ),
    ] = False

    def named(self, scans: list[Path]) -> tuple[list[Path], list[str]]:
        """The scans that are meant, and what each is called.

        Raises:
            ReadError: Scans were to be looked for and there are none.
        """
        from chestct.pipeline import scan_names

        return _scans_below(scans) if self.is_recursive else (scans, scan_names(scans))


@dataclass(frozen=True)
class _Many(Shards):
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


@options.grouped
def classify(
    scans: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SCAN",
            help="Folders, DICOM or NIfTI files, or zips, here or at an address (https, s3); one "
            "chest CT each.",
        ),
    ] = None,
    *,
    reading: options.Reading,
    outputs: options.Outputs,
    running: options.Running,
    many: _Many,
    asked: _Asked,
) -> None:
    """Classify chest CT scans, each as a whole."""
    read_options = reading.read_options()
    outputs.require_use(is_json=asked.is_json)
    writing = outputs.write_options()
    method = outputs.explanation_for(writing.names)
    scans, names = asked.named(many.require_scans(scans, is_json=asked.is_json))
    if many.is_asked_for:
        listed = _list_batch(many, scans, names, read_options)
        raise typer.Exit(_classify_batch(many, listed, outputs, running, asked))
    _require_one_mask(scans, reading)
    loaded, engine = load(asked.classifier, running)
    loaded.require_finding(asked.finding)
    work = _Work(loaded, engine, read_options, writing, method, asked.is_json, asked.finding)
    outcome = _classify_all(scans, outputs.out, work, names)
    if asked.is_recursive and outputs.out is not None:
        _write_batch(dict(zip(names, scans, strict=True)), outcome, outputs.out)
    if not asked.is_json:
        _show(outcome, outputs.out)
    raise typer.Exit(outcome.exit_code)


def _require_one_mask(scans: list[Path], reading: options.Reading) -> None:
    """Refuse a scan that is not there, and one mask of lungs for several.

    Raises:
        ReadError: It is so.
    """
    if len(scans) == 1:
        options.require_scan(scans[0])
    elif reading.lungs is not None:
        msg = f"--lungs is the mask of one scan, and {len(scans)} were given: one at a time."
        raise ReadError(msg)


def load(folder: Path | None, running: options.Running) -> tuple[Classifier, Engine]:
    """Load a classifier and make its engine, once for all scans."""
    from chestct.classifier import load_classifier
    from chestct.engines import ENGINES, make_engine
    from chestct.lookup import look_up

    if running.engine != "auto":
        look_up(ENGINES, running.engine, kind="engine")
    classifier = load_classifier(folder)
    return classifier, make_engine(
        classifier, running.engine, precision=running.precision, device=running.device
    )


def _scans_below(given: list[Path]) -> tuple[list[Path], list[str]]:
    """Every scan in and below some folders, and what each is called: its path from there.

    Raises:
        ReadError: There is no such folder, or no scan.
    """
    from chestct.datasets.public import scans_below
    from chestct.pipeline import readable, scan_name
    from chestct.remote import shown

    scans: dict[Path, str] = {}
    for folder in given:
        if not folder.is_dir():
            raise ReadError(
                f"{shown(folder)} is no folder. --recursive takes folders; name only those."
            )
        found, masks = scans_below(folder)
        if masks:
            show_error(f"{folder}: {len(masks)} NIfTI files of 8 bits are masks and left out.")
        for scan in found:
            first = (scan_name(folder),) if len(given) > 1 or scan == folder else ()
            scans[scan] = readable("-".join((*first, *scan.relative_to(folder).parts)))
    if not scans:
        raise ReadError(f"No scan lies in {', '.join(map(str, given))} or below. Name another one.")
    return list(scans), list(scans.values())


def _write_batch(scans: Mapping[str, Path], outcome: _Outcome, out: Path) -> None:
    """Write all answers of a call as one table, and a page that leads to the reports."""
    from chestct.pipeline import readable
    from chestct.storage import write_whole
    from chestct.writers.pages import IndexHead, IndexRow, answers_csv, write_index

    paths = {name: readable(path) for name, path in scans.items()}
    table = answers_csv(outcome.results, paths, outcome.errors)
    write_whole(out / _ANSWERS_FILE, table.encode())
    rows = [IndexRow.of(each.result, each.folder.name) for each in outcome.done if each.folder]
    if rows:
        first = outcome.results[0]
        write_index(rows, IndexHead(len(rows), first.notice, first.provenance.trained_on), out)


_ANSWERS_FILE = "answers.csv"


def _classify_all(scans: list[Path], out: Path | None, work: _Work, names: list[str]) -> _Outcome:
    """Classify every scan; one that fails is said at once and does not stop the others."""
    from chestct.cluster.classifying import failure_words
    from chestct.writers.folders import folder_names

    outcome = _Outcome()
    folders = [None if out is None else out / name for name in folder_names(names)]
    with scan_progress(is_quiet=work.is_json) as progress:
        task = progress.add_task("", total=len(scans))
        for scan, name, folder in zip(scans, names, folders, strict=True):
            progress.update(task, description=name)

            def show_steps(step: int, num: int, name: str = name) -> None:
                """Say how far the explanation of this scan is."""
                progress.update(task, description=f"{name}: explaining, {step} of {num}")

            try:
                done = work.run(scan, name, folder, show_steps)
            except Exception as error:
                # Whatever one scan does to the program, the others get their results.
                if len(scans) == 1 and not isinstance(error, ChestCTError | MemoryError):
                    # Nothing else is lost, and `main` can show where it arose.
                    raise
                outcome.errors[name] = failure_words(scan, name, error)
                show_error(outcome.errors[name])
                outcome.num_failed += 1
            else:
                outcome.done.append(done)
                # Outside: a closed pipe or a full disk would fail every scan, and ends the call.
                if work.is_json:
                    show_line(done.line)
            progress.advance(task)
    return outcome


def _show(outcome: _Outcome, out: Path | None) -> None:
    from chestct.pipeline import readable

    if not outcome.done:
        return
    console, first = stdout_console(), outcome.done[0]
    if len(outcome.done) == 1:
        place = first.report and Path(readable(first.report))
        show_result(console, first.result, place, first.line)
    else:
        show_table(console, outcome.results)
        if out is not None:
            console.print(f"Reports: one folder per scan in {readable(out)}", markup=False)
    show_notice(console, first.result)


def _slices_words(analysis: ScanAnalysis) -> str:
    """Which slices were analysed and which one is hottest, counted as in the report."""
    from chestct.writers.evidence import hottest_slice

    first, last = analysis.analysed_slices
    words = f"Slices {first + 1} to {last + 1} of {len(analysis.prepared.lung_area)} from the feet"
    found = hottest_slice(analysis)
    return words if found is None else f"{words}, the hottest place of the lungs in {found + 1}"


def _json_line(analysis: ScanAnalysis) -> str:
    from chestct.writers.json_report import result_document

    return result_document(analysis).model_dump_json()


def _list_batch(
    said: _Many, scans: list[Path], names: list[str], reading: ReadOptions
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


def _classify_batch(
    said: _Many,
    listed: list[dict[str, Any]],
    outputs: options.Outputs,
    running: options.Running,
    asked: _Asked,
) -> int:
    """Classify listed scans, or go on with it; what the command ends with.

    Raises:
        ChestCTError: No folder for results was named, or they cannot be worked on so.
    """
    from chestct.cluster.classifying import WORK, write_batch_index
    from chestct.cluster.driver import ANSWERS_FILE, FAILURES_FILE, write_tables
    from chestct.cluster.job import FOLDER, Job
    from chestct.writers.pages import answer_columns

    out = outputs.out
    if out is None:
        raise WriteError("Answers of many scans are written into a folder. Name one: --out DIR.")
    executor = said.who()
    classifier, settings = _batch_settings(outputs, running, asked)
    usual_s = TIMEOUT_S if settings["explain"] is None else _TIMEOUT_EXPLAINED_S
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


def _batch_settings(
    outputs: options.Outputs, running: options.Running, asked: _Asked
) -> tuple[Classifier, dict[str, Any]]:
    """What classifies the scans of a batch, and how, as plain values."""
    from chestct.classifier import load_classifier
    from chestct.cluster.classifying import ClassifyWork

    classifier = load_classifier(asked.classifier)
    classifier.require_finding(asked.finding)
    writing = outputs.write_options()
    explain = outputs.explanation_for(writing.names)
    # Folders are made only where something was said about what is in them.
    has_folders = outputs.write is not None or explain is not None
    settings = ClassifyWork.settings(
        classifier,
        asked.classifier,
        **asdict(running),
        explain=explain,
        finding=asked.finding,
        writing=asdict(writing) if has_folders else None,
    )
    return classifier, settings


@options.grouped
def prepare(
    scan: Annotated[
        Path, typer.Argument(metavar="SCAN", help="Folder, file or zip of one chest CT.")
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="Recipe; see 'chestct info'.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    reading: options.Reading,
) -> None:
    """Prepare a scan and write network input and lungs as NIfTI, with a preview."""
    from chestct.preprocess.recipes import find_recipe

    chosen = find_recipe(recipe)
    options.require_scan(scan)
    said = reading.read_options()

    from chestct.pipeline import scan_name
    from chestct.preprocess.prepare import prepare as prepare_volume
    from chestct.remote import local_copy
    from chestct.writers.folders import check_folder
    from chestct.writers.preview import write_prepared

    with local_copy(scan) as place:
        check_folder(out, place)
        volume = said.read(place)
    prepared = prepare_volume(volume, chosen, lungs=said.lungs_of(volume))
    written = write_prepared(prepared, scan_name(scan), out)
    show_written(written, (*volume.warnings, *prepared.warnings, *prepared.unsuitable_reasons))

"""Everything that is done with the scans before a network sees them: checked, then prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chestct.datasets.checks import (
    BASELINE,
    CheckReport,
    check_manifest,
    find_patient_leaks,
    find_pixel_leaks,
    refuse_leaks,
    report_json,
)
from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import ScanFacts, gather_facts
from chestct.datasets.store import GIB, Cache, Preparation, prepare_all
from chestct.datasets.workers import Progress
from chestct.errors import TrainingError
from chestct.preprocess.recipe import Recipe
from chestct.storage import cache_folder, write_text
from chestct.training.division import Division
from chestct.training.settings import DataSection

_MOST_NAMED = 5


@dataclass(frozen=True)
class Listener:
    """Who is told how far things have come; the functions may do nothing.

    Attributes:
        note: Told what a person should read.
        progress: Told what is being done and how far it is.
        processes: How many scans are read at once; None takes all cores.
    """

    note: Callable[[str], None] = lambda _text: None
    progress: Callable[[str, Progress], None] = lambda _what, _progress: None
    processes: int | None = None

    def watch(self, what: str) -> Callable[[Progress], None]:
        """The progress of one thing, by its name."""
        return lambda how_far: self.progress(what, how_far)


def make_cache(section: DataSection, recipe: Recipe) -> Cache:
    """The cache of prepared inputs that the settings name.

    Raises:
        CacheError: Not even one input would fit.
    """
    folder = Path(section.cache) if section.cache else cache_folder() / "prepared"
    return Cache(folder, recipe, section.storage, int(section.cache_gib * GIB))


@dataclass(frozen=True, eq=False)
class CheckedScans:
    """Scans that may be trained on.

    Attributes:
        report: What was found.
        facts: What is known of each scan, by the row's number.
    """

    report: CheckReport
    facts: Mapping[int, ScanFacts]

    @property
    def has_baseline(self) -> bool:
        """Whether any of what the baseline asks is known."""
        asked = [each for each in self.report.confounders if each.variable in BASELINE]
        return any(each.auc is not None for each in asked)


def check_scans(
    manifest: Manifest,
    divisions: Sequence[Division],
    cache: Cache,
    report_file: Path,
    listener: Listener,
) -> CheckedScans:
    """Read every scan once, refuse leaks, say what the results will be worth.

    Args:
        manifest: All scans, with the folds where there are any.
        divisions: What is trained on and tested on, one per training run.
        cache: Facts of scans are kept beside its inputs.
        report_file: Where the report is written as JSON, leaks or none.
        listener: Told of warnings.

    Raises:
        LeakError: A patient or a scan's pixels would be on two sides, or a scan cannot be read.
    """
    facts = gather_facts(
        manifest,
        cache.folder,
        processes=listener.processes,
        progress=listener.watch("reading"),
    )
    by_row = {row.number: each for row, each in zip(manifest.rows, facts, strict=True)}
    # One run is judged as it is divided; of several each is judged, and all of them together.
    whole = divisions[0].joined if len(divisions) == 1 else manifest
    report = check_manifest(whole, [by_row[row.number] for row in whole.rows])
    for division in divisions if len(divisions) > 1 else ():
        report = _with_leaks(report, division, by_row)
    write_text(report_file, report_json(report))
    for finding in report.warnings:
        listener.note(finding.sentence)
    refuse_leaks(report)
    return CheckedScans(report, by_row)


def prepare_scans(
    division: Division, section: DataSection, cache: Cache, listener: Listener
) -> dict[int, str]:
    """Prepare all inputs of a run that are not in the cache yet, once it is sure to hold all.

    Returns:
        Row number to the reason, of scans that should not be classified.

    Raises:
        TrainingError: A scan could not be prepared; the message names rows and reasons.
        CacheError: The cache cannot hold all of them at once, which is found before the first is
            prepared, or cannot be written.
    """
    # The first variant of a training scan is the scan as it is, which all parts have.
    cache.require_room(len(division.joined) + len(division.training) * (section.variants - 1))
    wanted = [("inputs", division.joined, 1)]
    if section.variants > 1:
        wanted.append(("variants", division.training, section.variants))
    unsuitable: dict[int, str] = {}
    for what, manifest, variants in wanted:
        prepared = prepare_all(
            cache,
            manifest,
            variants=variants,
            processes=listener.processes,
            progress=listener.watch(f"preparing {what}"),
        )
        _refuse_failed(manifest, prepared)
        unsuitable |= {row: " ".join(reasons) for row, reasons in prepared.unsuitable.items()}
        if prepared.num_made:
            listener.note(
                f"Prepared {prepared.num_made} {what} in {prepared.seconds:.0f} s; kept as "
                f"{section.storage}, largest error {prepared.max_error:.1e}."
            )
    return unsuitable


def _with_leaks(
    report: CheckReport, division: Division, by_row: Mapping[int, ScanFacts]
) -> CheckReport:
    """The report with what would leak in one of several divisions."""
    joined = division.joined
    facts = [by_row[row.number] for row in joined.rows]
    found = [*find_patient_leaks(joined), *find_pixel_leaks(joined, facts)]
    known = {(finding.kind, finding.rows) for finding in report.refusals}
    new = [f for f in found if f.severity == "refuse" and (f.kind, f.rows) not in known]
    return replace(report, findings=(*new, *report.findings))


def _refuse_failed(manifest: Manifest, prepared: Preparation) -> None:
    if not prepared.failed:
        return
    listed = "".join(
        f"\n  row {row}: {reason}" for row, reason in sorted(prepared.failed.items())[:_MOST_NAMED]
    )
    more = len(prepared.failed) - _MOST_NAMED
    msg = (
        f"{manifest.name}: {len(prepared.failed)} scans could not be prepared:{listed}"
        f"{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
        "  Take these rows out or mend the scans; what is prepared so far is kept."
    )
    raise TrainingError(msg)

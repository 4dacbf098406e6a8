"""What one calls from Python beside `classify_scan`: what the commands call, with their defaults.

`analyse_scan` with `explain="auto"` explains; `chestct.explain` is the package that holds the maps.
Answers on single pictures of slices and on their patients are written as tables and as a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.analysis import ScanAnalysis
from chestct.card import SliceCard
from chestct.classifier import Classifier, load_classifier, load_slice_classifier
from chestct.datasets.public import find_pictures
from chestct.engines import Engine, make_engine
from chestct.errors import WriteError
from chestct.evaluation.predictions import VOTES, answers_on_patients
from chestct.evaluation.report import Summary
from chestct.lookup import look_up
from chestct.pipeline import readable
from chestct.report import as_csv, read_csv
from chestct.result import PatientAnswer, SliceAnswer, likeliest, verdict_of
from chestct.storage import install, working_folder
from chestct.training.distributed import choose_device, joined, launched_ranks, main_first
from chestct.training.judging import (
    MAIN_VOTE,
    Wishes,
    evaluate_manifest,
    judge_here,
    judge_pictures,
    read_beside,
    read_rows,
)
from chestct.training.plan import Listener, Plan
from chestct.training.session import run_training
from chestct.training.settings import RunSettings, read_settings
from chestct.writers import WriteOptions, choose_writers
from chestct.writers.folders import Written, check_folder, write_outputs
from chestct.writers.pages import (
    INDEX_FILE,
    IndexHead,
    IndexRow,
    share_words,
    write_index,
)
from chestct.writers.preview import draw_preview
from chestct.writers.wording import count

if TYPE_CHECKING:
    from PIL.Image import Image


def train(  # noqa: PLR0913 - what a command has as options
    settings: RunSettings | str | Path,
    manifest: str | Path,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    folds: int | None = None,
    device: str = "auto",
    listener: Listener | None = None,
) -> Summary | None:
    """Train a classifier, or one per fold; a run that was stopped goes on.

    Args:
        settings: All of them, a YAML file, or the name of settings that come with chestct.
        manifest: CSV file, one row per labelled scan.
        folder: The run folder; the classifier is in `classifier/` below it.
        overrides: Of a file's settings, such as "training.epochs=5".
        folds: Cross-validate instead, by patient.
        device: "auto", "cpu", "cuda" or "cuda:N".
        listener: Told how far things are.

    Returns:
        What was found on the test part, on the validation part where there is none, or on all
        folds; None in all but the first process where torchrun started several.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    ranks = launched_ranks()
    place = choose_device(device, local_rank=ranks.local_rank, num_local=ranks.local_size)
    with joined(ranks, place):
        chosen = main_first(
            lambda: (
                settings
                if isinstance(settings, RunSettings)
                else read_settings(settings, overrides)
            )
        )
        told = listener or Listener()
        return run_training(Plan(chosen, Path(manifest), Path(folder), folds, told, place))


def evaluate(  # noqa: PLR0913 - what a command has as options
    classifier: Classifier | str | Path,
    manifest: str | Path,
    folder: str | Path,
    *,
    split: str | None = None,
    beside: Mapping[str, Path] | None = None,
    engine: str | Engine = "auto",
    listener: Listener | None = None,
) -> Summary:
    """Classify labelled scans, and write figures with intervals, tables and plots.

    Args:
        classifier: It, or its folder.
        manifest: CSV file, one row per labelled scan.
        folder: Where to write to.
        split: Only these rows: "training", "validation" or "test".
        beside: Name to the `predictions.csv` of another classifier, to be compared with.
        engine: Name in `ENGINES`, "auto", or an engine made for this classifier.
        listener: Told how far things are.

    Raises:
        ChestCTError: Classifier, manifest, scans or folder are not as they should be.
    """
    loaded = classifier if isinstance(classifier, Classifier) else load_classifier(classifier)
    running = make_engine(loaded, engine) if isinstance(engine, str) else engine
    rows = read_rows(Path(manifest), loaded, split)
    others = read_beside(beside or {}, loaded, rows)
    told = listener or Listener()
    judging = partial(judge_here, loaded, running)
    return evaluate_manifest(loaded, judging, rows, Path(folder), told, Wishes(others))


@dataclass(frozen=True)
class ClassifiedSlices:
    """What a classifier of single slices says of pictures.

    Attributes:
        slices: An answer or a failure for each picture.
        patients: What they say of their patients, of those who are known.
    """

    slices: tuple[SliceAnswer, ...]
    patients: tuple[PatientAnswer, ...]


def classify_slices(
    classifier: str | Path,
    pictures: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    vote: str = MAIN_VOTE,
    patient_pattern: str | None = None,
    listener: Listener | None = None,
) -> ClassifiedSlices:
    """Classify pictures of slices that nobody has labelled, and write tables and a page of them.

    Args:
        classifier: Folder of a classifier of slices.
        pictures: Pictures, folders of them, or tables with a column `scan`.
        folder: Where to write to; answers of an earlier call in it are replaced.
        vote: How slices say what their patient has: "mean", "max", "share" or "attention".
        patient_pattern: Its group is the patient in a picture's path.
        listener: Told how far things are.

    Raises:
        ChestCTError: Classifier, pictures or folder are not as they should be. A picture that
            cannot be read is no error: its answer says why it has none.
    """
    target = Path(folder)
    look_up(VOTES, vote, kind="vote")
    _require_answers_folder(target)
    loaded = load_slice_classifier(Path(classifier))
    given = [pictures] if isinstance(pictures, str | Path) else pictures
    found = find_pictures([Path(each) for each in given], patient_pattern=patient_pattern)
    with working_folder(target) as cache:
        judged = judge_pictures(loaded, found, cache, listener or Listener())
    slices = tuple(replace(each, picture=readable(each.picture)) for each in judged)
    patients = tuple(answers_on_patients(slices, vote, loaded.card))
    _write_slice_answers(slices, patients, vote, loaded.card, target)
    return ClassifiedSlices(slices, patients)


def write(
    analysis: ScanAnalysis,
    folder: str | Path,
    names: Sequence[str] = WriteOptions().names,
    *,
    makes_uids: bool = False,
) -> Written:
    """Write results of a scan: "json", "html", "preview", "nifti", "dicom_sr" and others.

    Args:
        analysis: What `analyse_scan` gave.
        folder: The scan's own folder of results; those of the same scan are replaced.
        names: Names in `WRITERS`, or "all".
        makes_uids: Whether identifiers that a DICOM series lacks are made.

    Returns:
        What was written, and what could not be and why.

    Raises:
        WriteError: The folder holds results of another scan, or cannot be written.
        UnknownNameError: There is no such writer.
    """
    if analysis.path is not None:
        check_folder(Path(folder), analysis.path)
    options = WriteOptions(
        choose_writers(names), skips_impossible="all" in names, makes_uids=makes_uids
    )
    return write_outputs(analysis, Path(folder), options)


def picture(analysis: ScanAnalysis) -> Image:
    """The verdict and telling slices, under the heat-map where there is one, as one picture."""
    from PIL.Image import fromarray

    return fromarray(draw_preview(analysis))


_ANSWERS_FILE: Final = "answers.csv"
_PATIENTS_FILE: Final = "patients.csv"
_FAILURES_FILE: Final = "failures.csv"
_FILES: Final = (_ANSWERS_FILE, _PATIENTS_FILE, _FAILURES_FILE, INDEX_FILE)
_BEGIN: Final = ("picture", "patient", "decision")


def _require_answers_folder(folder: Path) -> None:
    """Refuse a folder in which another file's place would be taken.

    Raises:
        WriteError: It holds files of these names and not the answers of an earlier call.
    """
    there = [folder / name for name in _FILES if (folder / name).exists()]
    if not there or _is_ours(folder / _ANSWERS_FILE):
        return
    msg = f"{there[0]} is there already and is not about pictures of slices, which would replace it"
    raise WriteError(f"{msg}. Choose another folder.")


def _is_ours(table: Path) -> bool:
    """Whether a file is a table of answers that was written here."""
    try:
        return tuple(read_csv(table)[0][:3]) == _BEGIN
    except (OSError, ValueError, IndexError):
        return False


def _write_slice_answers(
    slices: Sequence[SliceAnswer],
    patients: Sequence[PatientAnswer],
    method: str,
    card: SliceCard,
    folder: Path,
) -> list[Path]:
    """Write `answers.csv`, `patients.csv` where any are known, `failures.csv` and `index.html`.

    All are written aside first and replace those of an earlier call, the answers last.

    Args:
        slices: Answers and failures, in the order of the rows.
        patients: What they say of their patients.
        method: Name of the vote that did.
        card: The classifier's.
        folder: Where to; made where it is missing.

    Raises:
        WriteError: It cannot be written, or holds files of others.
    """
    _require_answers_folder(folder)
    head = IndexHead(len(slices), card.notice, card.trained_on, what="slices")
    with working_folder(folder) as aside:
        for name, table in _tables(slices, patients, method, card.labels).items():
            (aside / name).write_text(table, encoding="utf-8")
        write_index(_index_rows(slices, patients, method, card), head, aside)
        return install(aside, folder, old=[folder / name for name in _FILES], last=_ANSWERS_FILE)


def _tables(
    slices: Sequence[SliceAnswer],
    patients: Sequence[PatientAnswer],
    method: str,
    labels: Sequence[str],
) -> dict[str, str]:
    """The tables by the names of their files."""
    shares = [f"probability_{label}" for label in labels]
    answers = (
        (each.picture, each.patient, *_cells(each), "; ".join(each.warnings))
        for each in slices
        if not each.failure
    )
    failures = ((each.picture, each.patient, each.failure) for each in slices if each.failure)
    tables = {
        _ANSWERS_FILE: as_csv((*_BEGIN, *shares, "warnings"), answers),
        _FAILURES_FILE: as_csv(("picture", "patient", "reason"), failures),
    }
    if patients:
        columns = ("patient", "slices", "failed", "vote", "decision", *shares)
        lines = (
            (each.patient, each.num_slices, each.num_failed, method, *_cells(each))
            for each in patients
        )
        tables[_PATIENTS_FILE] = as_csv(columns, lines)
    return tables


def _cells(answer: SliceAnswer | PatientAnswer) -> tuple[str, ...]:
    """The decision and its probabilities."""
    shares = answer.probabilities
    return likeliest(shares), *(f"{share:.6f}" for share in shares.values())


def _index_rows(
    slices: Sequence[SliceAnswer],
    patients: Sequence[PatientAnswer],
    method: str,
    card: SliceCard,
) -> Iterator[IndexRow]:
    """What the page says, of patients first."""

    def row(name: str, answer: SliceAnswer | PatientAnswer, remark: str) -> IndexRow:
        """An answer in words."""
        decision = likeliest(answer.probabilities)
        share = share_words(decision, answer.probabilities)
        return IndexRow(name, verdict_of(decision, card.label_set), share, remark)

    for patient in patients:
        failed = f", {patient.num_failed} without an answer" if patient.num_failed else ""
        remark = f"{method} of {count(patient.num_slices, 'slice')}{failed}"
        yield row(f"Patient {patient.patient}", patient, remark)
    for each in slices:
        if each.failure:
            yield IndexRow(each.picture, f"No answer. {each.failure}")
        else:
            yield row(each.picture, each, "; ".join(each.warnings))

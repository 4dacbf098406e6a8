"""The answers on single pictures of slices and on their patients, as tables and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from chestct.card import SliceCard
from chestct.errors import WriteError
from chestct.report.tables import as_csv, read_csv
from chestct.result import PatientAnswer, SliceAnswer, likeliest, verdict_of
from chestct.storage import install, working_folder
from chestct.writers.pages import (
    INDEX_FILE,
    IndexHead,
    IndexRow,
    share_words,
    write_index,
)
from chestct.writers.wording import count

_ANSWERS_FILE: Final = "answers.csv"
_PATIENTS_FILE: Final = "patients.csv"
_FAILURES_FILE: Final = "failures.csv"
_FILES: Final = (_ANSWERS_FILE, _PATIENTS_FILE, _FAILURES_FILE, INDEX_FILE)
_BEGIN: Final = ("picture", "patient", "decision")


def require_answers_folder(folder: Path) -> None:
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


def write_slice_answers(
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
    require_answers_folder(folder)
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

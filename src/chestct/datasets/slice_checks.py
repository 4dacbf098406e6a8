"""What has to be known of slices before anything is trained on them.

Refused: files that cannot be read, the same picture on two sides of the split or under two labels,
a patient on two sides. Said: coloured marks, very small pictures, pictures that occur twice, and a
way of storing pictures that gives the class away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from chestct.datasets.checks import (
    CheckReport,
    Finding,
    Severity,
    find_patient_leaks,
    report_on,
)
from chestct.datasets.manifest import Manifest, ManifestRow, describe_rows
from chestct.datasets.slice_store import SliceFacts

_MOST_NAMED: Final = 5
"""Files that a sentence names."""
_ENLARGED: Final = 2.0
"""A picture enlarged more than so often is pointed out."""


def check_slices(
    manifest: Manifest,
    facts: Mapping[int, SliceFacts],
    *,
    size: int,
    shares_patients: bool = False,
) -> CheckReport:
    """Look for what spoils a result on slices.

    Args:
        manifest: The slices as they are divided.
        facts: Row number to what is known of its file.
        size: Rows and columns of the network's input.
        shares_patients: Whether the split was asked for by a name that says it shares patients
            between its parts; leaks are then warnings.
    """
    found = [*find_unreadable_slices(manifest, facts)]
    found += _with_leaks_said(find_patient_leaks(manifest), manifest, shares_patients)
    found += _find_same_pictures(manifest, facts, shares_patients=shares_patients)
    found += find_marks(manifest, facts)
    found += find_small(manifest, facts, size)
    found += _find_telling_formats(manifest, facts)
    return report_on(manifest, found)


def find_unreadable_slices(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[Finding]:
    """Files that are no readable slices, in one sentence that names the first of them."""
    rows = [row for row in manifest.rows if facts[row.number].error]
    if not rows:
        return []
    listed = " ".join(
        f"{describe_rows([row]).capitalize()}: {facts[row.number].error}"
        for row in rows[:_MOST_NAMED]
    )
    sentence = f"{len(rows)} slices cannot be read. {listed} Take these rows out."
    return [Finding("unreadable", "refuse", sentence, _numbers(rows))]


def _find_same_pictures(
    manifest: Manifest, facts: Mapping[int, SliceFacts], *, shares_patients: bool = False
) -> list[Finding]:
    """Pictures that stand in several rows: on two sides, with two labels, or simply twice."""
    by_digest: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        if facts[row.number].digest:
            by_digest[facts[row.number].digest].append(row)
    same = [rows for rows in by_digest.values() if len(rows) > 1]
    labels = [rows for rows in same if len({row.label for row in rows}) > 1]
    sides = [rows for rows in same if len({row.side for row in rows} - {""}) > 1]
    twice = [rows for rows in same if rows not in labels and rows not in sides]
    found = []
    if labels:
        what = "the same picture under two labels; one of them is wrong"
        found.append(_same("label", "refuse", labels, what))
    if sides:
        what = "the same picture on two sides of the split; the network would be tested on it"
        grave: Severity = "warning" if shares_patients else "refuse"
        found.append(_same("leak", grave, sides, what))
    if twice:
        found.append(_same("duplicate", "warning", twice, "the same picture; it counts twice"))
    return found


def find_marks(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[Finding]:
    """Slices on which something coloured is drawn, by class."""
    rows = [row for row in manifest.rows if facts[row.number].coloured_share > 0]
    if not rows:
        return []
    by_class = {label: sum(row.label == label for row in rows) for label in manifest.labels}
    counts = ", ".join(f"{count} {label}" for label, count in by_class.items())
    sentence = (
        f"{len(rows)} slices have coloured pixels ({counts}), such as {_names(rows)}: arrows, "
        "circles or colour maps that people drew where they saw something. They are read as grey, "
        "and a network can learn the marks instead of the disease. Take these rows out, or replace "
        "the files by unmarked ones."
    )
    return [Finding("confounder", "warning", sentence, _numbers(rows))]


def find_small(manifest: Manifest, facts: Mapping[int, SliceFacts], size: int) -> list[Finding]:
    """Slices that have to be enlarged a lot."""

    def side(row: ManifestRow) -> int:
        """Pixels along a slice's shorter side."""
        return min(facts[row.number].rows, facts[row.number].columns)

    rows = [r for r in manifest.rows if not facts[r.number].error and side(r) * _ENLARGED < size]
    if not rows:
        return []
    smallest = min(rows, key=side)
    known = facts[smallest.number]
    sentence = (
        f"{len(rows)} slices have less than half the {size} rows or columns that the network sees; "
        f"the smallest, {_names([smallest])}, has {known.rows} x {known.columns} pixels. They are "
        "enlarged, and what they show is coarse. Take them out if whole slices are at hand."
    )
    return [Finding("confounder", "warning", sentence, _numbers(rows))]


def _find_telling_formats(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[Finding]:
    """Whether size, bits and kind of file alone say which class a slice is of."""
    classes: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for row in manifest.rows:
        known = facts[row.number]
        ending = manifest.path(row).suffix.lower()
        classes[ending, known.bits, known.rows, known.columns].add(row.label)
    is_telling = len({row.label for row in manifest.rows}) > 1 and all(
        len(labels) == 1 for labels in classes.values()
    )
    # With a size per file every size is of one class, and that says nothing.
    if not is_telling or len(classes) > len(manifest) / 2:
        return []
    listed = "; ".join(
        f"{ending} of {bits} bits, {rows} x {columns}: {next(iter(labels))}"
        for (ending, bits, rows, columns), labels in list(classes.items())[:_MOST_NAMED]
    )
    sentence = (
        f"Class and kind of file are the same variable ({listed}). The classes come from different "
        "sources, and a network can be right by recognising the source and nothing of the disease. "
        "Add slices of both classes from one source."
    )
    return [Finding("confounder", "warning", sentence)]


def _with_leaks_said(
    leaks: Sequence[Finding], manifest: Manifest, shares_patients: bool
) -> list[Finding]:
    """Refusals as they are; one warning for all of them where sharing patients was asked for."""
    if not shares_patients or not leaks:
        return [*leaks]
    sentence = (
        f"{len(leaks)} of {manifest.num_patients} patients have slices on several sides of this "
        "split, as in the paper: neighbouring slices of one patient are nearly the same picture, "
        "so the network is tested on what it has seen. The figures say how well it remembers, not "
        "how well it would do on new patients. Split by patient for that (data.split: patient)."
    )
    rows = tuple(number for leak in leaks for number in leak.rows)
    return [replace(leaks[0], severity="warning", sentence=sentence, rows=rows)]


def _same(kind: str, severity: Severity, groups: Sequence[list[ManifestRow]], what: str) -> Finding:
    rows = [row for group in groups for row in group]
    sentence = (
        f"{describe_rows(groups[0]).capitalize()} ({_names(groups[0])}) hold {what}. "
        f"{len(groups)} such picture(s) in all: keep one row of each."
    )
    return Finding(kind, severity, sentence, _numbers(rows))


def _names(rows: Sequence[ManifestRow]) -> str:
    named = [row.scan.replace("\\", "/").rsplit("/", 1)[-1] for row in rows[:_MOST_NAMED]]
    more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
    return ", ".join(named) + more


def _numbers(rows: Sequence[ManifestRow]) -> tuple[int, ...]:
    return tuple(row.number for row in rows)

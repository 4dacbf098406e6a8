"""Scans that are the same, or of the same patient, on two sides of a split.

Data sets are built from each other, so one scan comes under several names ("Frankenstein" sets,
Roberts et al., Nature Machine Intelligence 2021). Names and files are therefore not believed: the
decoded slices are compared, in any order, so that a copy that was reversed, renamed, converted
without loss or shortened is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from chestct.datasets.class_names import class_in_path
from chestct.datasets.findings import Finding
from chestct.datasets.manifest import Manifest, ManifestRow, describe_rows
from chestct.datasets.scans import ScanFacts
from chestct.datasets.splits import patients_on_two_sides


@dataclass(frozen=True)
class SharedSlices:
    """Two scans with slices in common.

    Attributes:
        first: One row.
        second: The other.
        num_shared: Slices with the same pixels, those of one value throughout not counted.
        num_slices: Such slices of the shorter of the two.
    """

    first: ManifestRow
    second: ManifestRow
    num_shared: int
    num_slices: int


def find_patient_leaks(manifest: Manifest) -> list[Finding]:
    """Patients on two sides of the split."""
    return [
        Finding(
            kind="leak",
            severity="refuse",
            sentence=(
                f"{describe_rows(rows).capitalize()} are scans of one patient on two sides of the "
                f"split ({' and '.join(sorted({row.side for row in rows if row.side}))}). The "
                "classifier would be tested on a patient it has seen, and the result would be too "
                "good. Keep every patient on one side."
            ),
            rows=tuple(row.number for row in rows),
        )
        for rows in patients_on_two_sides(manifest)
    ]


def find_shared_slices(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[SharedSlices]:
    """All pairs of scans with at least one slice in common, by row."""
    holders: dict[str, set[int]] = defaultdict(set)
    for index, each in enumerate(facts):
        for digest in each.slices:
            holders[digest].add(index)
    counts = Counter(
        pair for indices in holders.values() for pair in combinations(sorted(indices), 2)
    )
    return [
        SharedSlices(
            first=manifest.rows[i],
            second=manifest.rows[j],
            num_shared=counts[i, j],
            num_slices=min(len(set(facts[i].slices)), len(set(facts[j].slices))),
        )
        for i, j in sorted(counts)
    ]


def find_pixel_leaks(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans with the same pixels: with two labels, on two sides, of two patients, or twice."""
    return [_judge(shared) for shared in find_shared_slices(manifest, facts)]


def find_unreadable(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans that could not be read, each with its reason."""
    return [
        Finding(
            kind="unreadable",
            severity="refuse",
            sentence=f"Row {row.number} cannot be read: {each.error}",
            rows=(row.number,),
        )
        for row, each in zip(manifest.rows, facts, strict=True)
        if each.error
    ]


def find_label_conflicts(manifest: Manifest) -> list[Finding]:
    """Scans whose label is not what their path says, and patients with several labels."""
    findings = [
        Finding(
            kind="label",
            severity="warning",
            sentence=(
                f"Row {row.number} is labelled {row.label}, but its path says {said} "
                f"({row.scan}). Find out which of them is right."
            ),
            rows=(row.number,),
        )
        for row in manifest.rows
        if (said := class_in_path(row.scan)) not in (None, row.label)
    ]
    by_patient: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_patient[row.patient].append(row)
    for rows in by_patient.values():
        labels = sorted({row.label for row in rows})
        if len(labels) > 1:
            sentence = (
                f"{describe_rows(rows).capitalize()} are scans of one patient with the labels "
                f"{' and '.join(labels)}. That is possible at two times; make sure that it is no "
                "mistake."
            )
            numbers = tuple(row.number for row in rows)
            findings.append(Finding("label", "warning", sentence, numbers))
    return findings


def _judge(shared: SharedSlices) -> Finding:
    """What it means that two scans share slices: the gravest thing that holds."""
    first, second = shared.first, shared.second
    rows = describe_rows((first, second)).capitalize()
    numbers = (first.number, second.number)
    what = f"{rows} hold the same pixels ({shared.num_shared} of {shared.num_slices} slices)"
    if first.label != second.label:
        sentence = (
            f"{what} and are labelled {first.label} and {second.label}. One of the labels is "
            "wrong: find out which, and keep one row."
        )
        return Finding("label", "refuse", sentence, numbers)
    if first.side and second.side and first.side != second.side:
        sentence = (
            f"{what} on two sides of the split ({first.side} and {second.side}). The classifier "
            "would be tested on a scan it has seen. Keep one of the rows, or give both the same "
            "patient and divide the scans anew."
        )
        return Finding("leak", "refuse", sentence, numbers)
    if first.patient != second.patient:
        sentence = (
            f"{what} under two patients. A split by patient can put them on two sides, and on one "
            "side they count as two patients. Keep one of the rows, or give both the same patient."
        )
        return Finding("leak", "refuse", sentence, numbers)
    sentence = f"{what}. They count twice: keep one of the rows."
    return Finding("duplicate", "warning", sentence, numbers)

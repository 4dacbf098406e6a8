"""Check labelled scans or slices before anything is trained on them.

Leaks are refused: what is trained and tested on the same patient or pixels means nothing; so are
contradicting labels and what cannot be read. Confounders are said, in words: they are in most
public data and cannot be mended by a program.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

from chestct.datasets.confounders import VARIABLES, Confounder, find_confounders
from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow, describe_rows
from chestct.datasets.scans import ScanFacts
from chestct.labels import class_of
from chestct.lookup import first_of

if TYPE_CHECKING:
    from chestct.datasets.pictures import SliceFacts

_ORDER: Final = {"refuse": 0, "warning": 1, "note": 2}
_ONE_FOR_ALL: Final = 3
_FEW_PATIENTS: Final = 30
_BOTH: Final = {True, False}
_MOST_NAMED: Final = 5
"""Files that a sentence names."""

_RARE_CHANCE: Final = 0.01
"""A kind of file that one class alone has is pointed out where chance does so more rarely."""

_Severity = Literal["refuse", "warning", "note"]


@dataclass(frozen=True)
class _Finding:
    """One thing that was found.

    Attributes:
        kind: "leak", "duplicate", "label", "unreadable", "confounder", "classes", "format".
        severity: "refuse": nothing should be trained on this. "warning": results need this beside
            them. "note": good to know.
        sentence: What it is, what it means and what to do.
        rows: Rows of the manifest it is about, the header being row 1; empty for all of them.
    """

    kind: str
    severity: _Severity
    sentence: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """Everything a check found: the gravest findings first, and the strongest confounders.

    `sides` are scans per side of the split and class, empty without a split. `has_pixels` tells
    whether the scans themselves were read.
    """

    manifest: str
    num_scans: int
    num_patients: int
    cases: Mapping[str, int]
    sides: Mapping[str, Mapping[str, int]]
    has_pixels: bool
    findings: tuple[_Finding, ...]
    confounders: tuple[Confounder, ...]

    @property
    def refusals(self) -> tuple[_Finding, ...]:
        """Why nothing should be trained on these scans as they are divided."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    @property
    def warnings(self) -> tuple[_Finding, ...]:
        """What has to stand beside every result on these scans."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def refuse_leaks(self) -> None:
        """Refuse scans that cannot be trained on as they are divided.

        Raises:
            ManifestError: There are leaks, contradicting labels or unreadable scans, all listed.
        """
        if self.refusals:
            listed = "".join(f"\n  - {finding.sentence}" for finding in self.refusals)
            msg = f"{self.manifest} cannot be trained on as it is ({len(self.refusals)} reasons):"
            raise ManifestError(msg + listed)

    def as_json(self) -> str:
        """The report as JSON, for programs; `schema` changes when a field does."""
        document = {"schema": 1, **asdict(self), "may_be_trained_on": not self.refusals}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def check_manifest(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None = None,
    permutations: int = 99,
) -> CheckReport:
    """Look for leaks, wrong labels, unreadable scans and confounders.

    `facts` are of every row's scan, from `gather_facts`; without them pixels are not compared and
    only what the manifest says is asked. A variable's figure is held against so many random
    labellings, `permutations`.

    Raises:
        ValueError: There are not as many facts as rows.
    """
    if facts is not None and len(facts) != len(manifest):
        raise ValueError(f"{len(facts)} facts do not belong to {len(manifest)} rows")
    findings = [*find_patient_leaks(manifest), *_find_label_conflicts(manifest)]
    if facts is not None:
        findings += [*_find_unreadable(manifest, facts), *find_pixel_leaks(manifest, facts)]
        findings += _find_identity_leaks(manifest, facts)
    else:
        sentence = "The scans were not read: pixels were not compared."
        findings.append(_Finding("leak", "note", sentence))
    confounders = find_confounders(manifest, facts, permutations)
    findings += [*_find_small_classes(manifest), *_describe_confounders(confounders)]
    return _report_on(manifest, findings, confounders, has_pixels=facts is not None)


def check_slices(
    manifest: Manifest,
    facts: Mapping[int, SliceFacts],
    *,
    size: int,
    shares_patients: bool = False,
) -> CheckReport:
    """Look for what spoils a result on slices.

    `facts` is row number to what is known of its file, `size` the rows and columns of the network's
    input. `shares_patients` tells whether the split was asked for by a name that says so; leaks are
    then warnings.
    """
    found = [*find_unreadable_slices(manifest, facts)]
    found += _with_leaks_said(find_patient_leaks(manifest), manifest, shares_patients)
    found += _find_same_pictures(manifest, facts, shares_patients=shares_patients)
    found += find_oddities(manifest, facts, size)
    found += _find_telling_formats(manifest, facts) or _find_own_kinds(manifest, facts)
    return _report_on(manifest, found)


def _report_on(
    manifest: Manifest,
    findings: Sequence[_Finding],
    confounders: Sequence[Confounder] = (),
    *,
    has_pixels: bool = True,
) -> CheckReport:
    """What was found on scans or slices, the gravest first."""
    return CheckReport(
        manifest=manifest.name,
        num_scans=len(manifest),
        num_patients=manifest.num_patients,
        cases=manifest.cases,
        sides=_count_sides(manifest),
        has_pixels=has_pixels,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])),
        confounders=tuple(confounders),
    )


def _count_sides(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((row.side, label) for row in manifest.rows for label in row.present)
    sides = sorted({row.side for row in manifest.rows if row.side})
    return {side: {label: counts[side, label] for label in manifest.labels} for side in sides}


def _of_rows(
    kind: str, severity: _Severity, sentence: str, rows: Sequence[ManifestRow]
) -> _Finding:
    return _Finding(kind, severity, sentence, tuple(row.number for row in rows))


def find_patient_leaks(manifest: Manifest) -> list[_Finding]:
    """Patients on two sides of the split."""
    return [
        _of_rows(
            "leak",
            "refuse",
            f"{describe_rows(rows).capitalize()} are scans of one patient on two sides of the "
            f"split ({' and '.join(sorted({row.side for row in rows if row.side}))}). The "
            "classifier would be tested on a patient it has seen, and the result would be too "
            "good. Keep every patient on one side.",
            rows,
        )
        for rows in manifest.patients_on_two_sides
    ]


def find_pixel_leaks(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[_Finding]:
    """Scans with the same pixels: with two labels, on two sides, of two patients, or twice.

    Slices of one value throughout are not counted.
    """
    holders: dict[str, set[int]] = defaultdict(set)
    for index, each in enumerate(facts):
        for digest in each.slices:
            holders[digest].add(index)
    shared = Counter(
        pair for indices in holders.values() for pair in combinations(sorted(indices), 2)
    )
    found = []
    for i, j in sorted(shared):
        num_slices = min(len(set(facts[i].slices)), len(set(facts[j].slices)))
        share = f"{shared[i, j]} of {num_slices} slices"
        found.append(_judge_shared(manifest.rows[i], manifest.rows[j], share))
    return found


def _judge_shared(first: ManifestRow, second: ManifestRow, share: str) -> _Finding:
    """What it means that two scans share slices: the gravest thing that holds."""
    rows = (first, second)
    what = f"{describe_rows(rows).capitalize()} hold the same pixels ({share})"
    if first.label != second.label:
        sentence = (
            f"{what} and are labelled {first.label} and {second.label}. One of the labels is "
            "wrong: find out which, and keep one row."
        )
        return _of_rows("label", "refuse", sentence, rows)
    differing = [n for n, known in first.findings.items() if {known, second.findings[n]} == _BOTH]
    if differing:
        sentence = (
            f"{what}, and one of them has '{differing[0]}' while the other has not. One of the "
            "two is wrong: find out which, and keep one row."
        )
        return _of_rows("label", "refuse", sentence, rows)
    if first.side and second.side and first.side != second.side:
        sentence = (
            f"{what} on two sides of the split ({first.side} and {second.side}). The classifier "
            "would be tested on a scan it has seen. Keep one of the rows, or give both the same "
            "patient and divide the scans anew."
        )
        return _of_rows("leak", "refuse", sentence, rows)
    if first.patient != second.patient:
        sentence = (
            f"{what} under two patients. A split by patient can put them on two sides, and on one "
            "side they count as two patients. Keep one of the rows, or give both the same patient."
        )
        return _of_rows("leak", "refuse", sentence, rows)
    sentence = f"{what}. They count twice: keep one of the rows."
    return _of_rows("duplicate", "warning", sentence, rows)


def _find_identity_leaks(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[_Finding]:
    """Scans of one PatientID that the manifest gives to several patients.

    Where all scans have one PatientID, a de-identifier wrote it, and it says nothing.
    """
    by_identity: dict[str, list[ManifestRow]] = defaultdict(list)
    for row, each in zip(manifest.rows, facts, strict=True):
        if each.identity:
            by_identity[each.identity].append(row)
    groups = [rows for rows in by_identity.values() if len({row.patient for row in rows}) > 1]
    if len(by_identity) == 1 and manifest.num_patients >= _ONE_FOR_ALL:
        return []
    return [
        _of_rows(
            "leak",
            "refuse",
            f"{describe_rows(rows).capitalize()} have the same PatientID in their DICOM headers"
            f" and are {len({row.patient for row in rows})} patients in the manifest. A split"
            " by patient can put them on two sides. Give them the same patient.",
            rows,
        )
        for rows in groups
    ]


def _find_unreadable(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[_Finding]:
    """Scans that could not be read, each with its reason."""
    return [
        _of_rows("unreadable", "refuse", f"Row {row.number} cannot be read: {each.error}", [row])
        for row, each in zip(manifest.rows, facts, strict=True)
        if each.error
    ]


def _find_label_conflicts(manifest: Manifest) -> list[_Finding]:
    """Scans whose label is not what their path says, and patients with several labels."""
    says_class = not manifest.are_findings and all(map(class_of, manifest.labels))
    findings = [
        _of_rows(
            "label",
            "warning",
            f"Row {row.number} is labelled {row.label}, but its path says {said} "
            f"({row.scan}). Find out which of them is right.",
            [row],
        )
        for row in manifest.rows
        if says_class and (said := _class_in_path(row.scan)) not in (None, row.label)
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
            findings.append(_of_rows("label", "warning", sentence, rows))
    return findings


def _find_rare_findings(manifest: Manifest) -> list[_Finding]:
    """Findings that no scan has, or all have, or few; and how often it is not known."""
    found, unknown = [], []
    for name in manifest.labels:
        known = Counter(row.findings[name] for row in manifest.rows)
        if not (known[True] and known[False]):
            has = "has" if not known[True] else "is known not to have"
            sentence = f"No scan {has} '{name}'. Add some, or leave the finding out of the labels."
            found.append(_Finding("classes", "refuse", sentence))
        elif min(known[True], known[False]) < _FEW_PATIENTS:
            sentence = (
                f"Of '{name}' there are only {known[True]} scan(s) with it and {known[False]} "
                "without. Whatever is measured on so few has a wide interval; report it."
            )
            found.append(_Finding("classes", "warning", sentence))
        unknown += [f"{known[None]} {name}"] if known[None] else []
    if unknown:
        sentence = (
            f"Not known, of {len(manifest)} scans: {', '.join(unknown)}. Nothing is learned from "
            "these, and no figure counts them."
        )
        found.append(_Finding("classes", "note", sentence))
    return found


def _find_small_classes(manifest: Manifest) -> list[_Finding]:
    """Classes without a scan, or with few."""
    if manifest.are_findings:
        return _find_rare_findings(manifest)
    cases = manifest.cases
    empty = [label for label, count in cases.items() if not count]
    if len(cases) - len(empty) < 2:
        sentence = f"There are scans of {len(cases) - len(empty)} class(es)."
        return [_Finding("classes", "refuse", f"{sentence} A classifier needs at least two.")]
    if empty:
        sentence = f"No scan is {' or '.join(empty)}. Add some, or leave the class out of the"
        return [_Finding("classes", "refuse", f"{sentence} labels.")]
    smallest = min(cases, key=lambda label: cases[label])
    if cases[smallest] >= _FEW_PATIENTS:
        return []
    # Wilson's lower end when all of n are right: n / (n + z^2).
    low = cases[smallest] / (cases[smallest] + 1.96**2)
    sentence = (
        f"Only {cases[smallest]} scan(s) are {smallest}. Whatever is measured on them has a wide "
        f"interval (all of them right: {low:.0%} to 100 %); report it."
    )
    return [_Finding("classes", "warning", sentence)]


def _describe_confounders(confounders: Sequence[Confounder]) -> list[_Finding]:
    """What the variables' figures mean, and which of them could not be asked."""
    sentences = [said for each in confounders if (said := each.meaning) is not None]
    found = [_Finding("confounder", "warning", sentence) for sentence in sentences]
    unknown = [VARIABLES[each.variable] for each in confounders if each.auc is None]
    if unknown:
        sentence = (
            f"Could not be asked: {', '.join(unknown)}. Confounding by them cannot be excluded; "
            "fill in the columns where it is known."
        )
        found.append(_Finding("confounder", "note", sentence))
    return found


def find_unreadable_slices(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[_Finding]:
    """Files that are no readable slices, in one sentence that names the first of them."""
    rows = [row for row in manifest.rows if facts[row.number].error]
    if not rows:
        return []
    listed = " ".join(
        f"{describe_rows([row]).capitalize()}: {facts[row.number].error}"
        for row in rows[:_MOST_NAMED]
    )
    sentence = f"{len(rows)} slices cannot be read. {listed} Take these rows out."
    return [_of_rows("unreadable", "refuse", sentence, rows)]


def _find_same_pictures(
    manifest: Manifest, facts: Mapping[int, SliceFacts], *, shares_patients: bool = False
) -> list[_Finding]:
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
        grave: _Severity = "warning" if shares_patients else "refuse"
        found.append(_same("leak", grave, sides, what))
    if twice:
        found.append(_same("duplicate", "warning", twice, "the same picture; it counts twice"))
    return found


def find_oddities(manifest: Manifest, facts: Mapping[int, SliceFacts], size: int) -> list[_Finding]:
    """What has to be said of slices whether they are trained on or only judged.

    `facts` is row number to what is known of its file, `size` the rows and columns of the network's
    input.
    """
    marked, small = _find_marks(manifest, facts), _find_small(manifest, facts, size)
    return [*marked, *small, *_find_misnamed(manifest, facts)]


def _find_misnamed(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[_Finding]:
    """Slices whose names say another kind of file than they are, by class."""
    rows = [row for row in manifest.rows if facts[row.number].is_misnamed]
    if not rows:
        return []
    kinds = dict.fromkeys(
        f"{facts[row.number].kind} files named {manifest.path(row).suffix.lower()}" for row in rows
    )
    sentence = (
        f"{len(rows)} slices are not what their names say: {', '.join(kinds)} "
        f"({_by_class(manifest, rows)}), such as {_names(rows)}. They are read as what they are; "
        "other programs may refuse them. Rename them."
    )
    return [_of_rows("format", "warning", sentence, rows)]


def _by_class(manifest: Manifest, rows: Sequence[ManifestRow]) -> str:
    """How many of some rows are of each class, in words."""
    counts = Counter(row.label for row in rows)
    return ", ".join(f"{counts[label]} {label}" for label in manifest.labels)


def _find_marks(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[_Finding]:
    """Slices on which something coloured is drawn, by class."""
    rows = [row for row in manifest.rows if facts[row.number].coloured_share > 0]
    if not rows:
        return []
    sentence = (
        f"{len(rows)} slices have coloured pixels ({_by_class(manifest, rows)}), such as "
        f"{_names(rows)}: arrows, circles or colour maps that people drew where they saw "
        "something. They are read as grey, and a network can learn the marks instead of the "
        "disease. Take these rows out, or replace the files by unmarked ones."
    )
    return [_of_rows("confounder", "warning", sentence, rows)]


def _find_small(manifest: Manifest, facts: Mapping[int, SliceFacts], size: int) -> list[_Finding]:
    """Slices that have to be enlarged a lot."""

    def side(row: ManifestRow) -> int:
        """Pixels along a slice's shorter side."""
        return min(facts[row.number].rows, facts[row.number].columns)

    rows = [
        row
        for row in manifest.rows
        if not facts[row.number].error and facts[row.number].is_small(size)
    ]
    if not rows:
        return []
    smallest = min(rows, key=side)
    known = facts[smallest.number]
    sentence = (
        f"{len(rows)} slices have less than half the {size} rows or columns that the network sees; "
        f"the smallest, {_names([smallest])}, has {known.rows} x {known.columns} pixels. They are "
        "enlarged, and what they show is coarse. Take them out if whole slices are at hand."
    )
    return [_of_rows("confounder", "warning", sentence, rows)]


def _find_telling_formats(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[_Finding]:
    """Whether size, bits and kind of file alone say which class a slice is of."""
    classes: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for row in manifest.rows:
        known = facts[row.number]
        classes[known.kind, known.bits, known.rows, known.columns].add(row.label)
    is_telling = len({row.label for row in manifest.rows}) > 1 and all(
        len(labels) == 1 for labels in classes.values()
    )
    # With a size per file every size is of one class, and that says nothing.
    if not is_telling or len(classes) > len(manifest) / 2:
        return []
    listed = "; ".join(
        f"{kind} of {bits} bits, {rows} x {columns}: {next(iter(labels))}"
        for (kind, bits, rows, columns), labels in list(classes.items())[:_MOST_NAMED]
    )
    sentence = (
        f"Class and kind of file are the same variable ({listed}). The classes come from different "
        "sources, and a network can be right by recognising the source and nothing of the disease. "
        "Add slices of both classes from one source."
    )
    return [_Finding("confounder", "warning", sentence)]


def _find_own_kinds(manifest: Manifest, facts: Mapping[int, SliceFacts]) -> list[_Finding]:
    """Kinds of file that one class alone has, where chance would hardly have made it so."""
    by_kind: dict[tuple[str, int], list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        if known := facts[row.number].kind:
            by_kind[known, facts[row.number].bits].append(row)
    found = []
    for (kind, bits), rows in by_kind.items():
        label = rows[0].label
        by_chance = (manifest.cases[label] / len(manifest)) ** len(rows)
        if any(row.label != label for row in rows) or by_chance > _RARE_CHANCE:
            continue
        sentence = (
            f"{kind} files of {bits} bits are of one class alone: {len(rows)} slices, all {label}. "
            "The kind of file gives the class away: a network can learn what its compression and "
            "its source leave in a picture instead of the disease. Judge the other slices by "
            "themselves, or add such files of other classes."
        )
        found.append(_of_rows("confounder", "warning", sentence, rows))
    return found


def _with_leaks_said(
    leaks: Sequence[_Finding], manifest: Manifest, shares_patients: bool
) -> list[_Finding]:
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


def _same(
    kind: str, severity: _Severity, groups: Sequence[list[ManifestRow]], what: str
) -> _Finding:
    rows = [row for group in groups for row in group]
    sentence = (
        f"{describe_rows(groups[0]).capitalize()} ({_names(groups[0])}) hold {what}. "
        f"{len(groups)} such picture(s) in all: keep one row of each."
    )
    return _of_rows(kind, severity, sentence, rows)


def _names(rows: Sequence[ManifestRow]) -> str:
    return first_of(row.scan.replace("\\", "/").rsplit("/", 1)[-1] for row in rows)


def _class_in_path(scan: str) -> str | None:
    """The class that the last part of a path stands for that stands for any."""
    for part in reversed(re.split(r"[/\\]", scan)):
        found = class_of(part.split(".")[0])
        if found is not None:
            return found
    return None

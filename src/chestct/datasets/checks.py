"""Check labelled scans before anything is trained on them.

Leaks are refused: what is trained and tested on the same patient or pixels means nothing.
Confounders are said, in words: they are in most public data and cannot be mended by a program.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np
from jaxtyping import Float64, Int64

from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    class_in_path,
    class_of,
    describe_rows,
)
from chestct.datasets.scans import FACTS, ScanFacts
from chestct.datasets.splits import patients_on_two_sides

Severity = Literal["refuse", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: "leak", "duplicate", "label", "unreadable", "confounder", "classes".
        severity: "refuse": nothing should be trained on this. "warning": results need this beside
            them. "note": good to know.
        sentence: What it is, what it means and what to do.
        rows: Rows of the manifest it is about, the header being row 1; empty for all of them.
    """

    kind: str
    severity: Severity
    sentence: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Confounder:
    """How well one variable alone tells the classes apart; the pictures are not looked at.

    Attributes:
        variable: Its name.
        auc: Cross-validated area under the ROC curve, mean over classes against the rest and over
            folds; 0.5 is chance. None where it could not be computed.
        chance_auc: What 95 % of random labellings stay below; None where `auc` is too low to
            matter.
        p_value: Share of random labellings that reach `auc`; None likewise.
        is_same_as_class: Every value occurs with one class only.
        num_patients: Patients it was computed on.
        num_unknown: Of these, patients for which it is not known.
        values: Patients per value and class.
        note: Why there is no figure, or what has to be known to read it.
    """

    variable: str
    auc: float | None
    chance_auc: float | None
    p_value: float | None
    is_same_as_class: bool
    num_patients: int
    num_unknown: int
    values: Mapping[str, Mapping[str, int]]
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Everything a check found.

    Attributes:
        manifest: Name of the manifest.
        num_scans: Its scans.
        num_patients: Its patients.
        cases: Scans per class.
        sides: Scans per side of the split and class; empty without a split.
        has_pixels: Whether the scans themselves were read.
        findings: What was found, the gravest first.
        confounders: Every variable that was looked at, the strongest first.
    """

    manifest: str
    num_scans: int
    num_patients: int
    cases: Mapping[str, int]
    sides: Mapping[str, Mapping[str, int]]
    has_pixels: bool
    findings: tuple[Finding, ...]
    confounders: tuple[_Confounder, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Why nothing should be trained on these scans as they are divided."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What has to stand beside every result on these scans."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")


@dataclass(frozen=True)
class _SharedSlices:
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


def _find_shared_slices(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[_SharedSlices]:
    """All pairs of scans with at least one slice in common, by row."""
    holders: dict[str, set[int]] = defaultdict(set)
    for index, each in enumerate(facts):
        for digest in each.slices:
            holders[digest].add(index)
    counts = Counter(
        pair for indices in holders.values() for pair in combinations(sorted(indices), 2)
    )
    return [
        _SharedSlices(
            first=manifest.rows[i],
            second=manifest.rows[j],
            num_shared=counts[i, j],
            num_slices=min(len(set(facts[i].slices)), len(set(facts[j].slices))),
        )
        for i, j in sorted(counts)
    ]


def find_pixel_leaks(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans with the same pixels: with two labels, on two sides, of two patients, or twice."""
    return [_judge(shared) for shared in _find_shared_slices(manifest, facts)]


def _find_identity_leaks(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[Finding]:
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
        Finding(
            kind="leak",
            severity="refuse",
            sentence=(
                f"{describe_rows(rows).capitalize()} have the same PatientID in their DICOM headers"
                f" and are {len({row.patient for row in rows})} patients in the manifest. A split"
                " by patient can put them on two sides. Give them the same patient."
            ),
            rows=tuple(row.number for row in rows),
        )
        for rows in groups
    ]


def _find_unreadable(manifest: Manifest, facts: Sequence[ScanFacts]) -> list[Finding]:
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


def _find_label_conflicts(manifest: Manifest) -> list[Finding]:
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
        if all(map(class_of, manifest.labels))
        and (said := class_in_path(row.scan)) not in (None, row.label)
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


def _judge(shared: _SharedSlices) -> Finding:
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


VARIABLES: Final = {"site": "site", "dataset": "data set", **FACTS}
"""What is asked, in words."""
BASELINE: Final = ("age", "sex", "scanner")
"""What the baseline beside every classifier knows."""
UNKNOWN: Final = "not known"
"""Stands for a missing value; that it is missing may tell the class too."""

_NUMERIC = ("age", "slice_spacing_mm", "date")
_ROUNDED = ("slice_thickness_mm", "kvp")
_MOST_VALUES = 5
_ONE_FOR_ALL = 3
_MANY = 100
_WORTH_TESTING_AUC = 0.6

Labels = Int64[np.ndarray, " patient"]


@dataclass(frozen=True)
class _ConfounderSettings:
    """How variables are asked.

    Attributes:
        folds: Of the cross-validation, fewer where a class has fewer patients.
        permutations: Random labellings that a figure is held against.
        seed: Of both.
    """

    folds: int = 5
    permutations: int = 99
    seed: int = 1


def _find_confounders(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None = None,
    settings: _ConfounderSettings | None = None,
) -> list[_Confounder]:
    """Ask every variable alone; the strongest first, those without a figure last.

    Args:
        manifest: The labels, and the columns `site`, `age`, `sex`, which go before a file's own.
        facts: Of every row's scan, or None to ask only what the manifest says.
        settings: How to ask; None takes the default.
    """
    rows = _one_row_per_patient(manifest)
    labels = np.array([manifest.label_index(manifest.rows[i]) for i in rows], dtype=np.int64)
    asked = settings or _ConfounderSettings()
    found = []
    for variable in VARIABLES:
        values = _categories(variable, [_value(manifest, facts, i, variable) for i in rows])
        found.append(_ask(variable, values, labels, manifest.labels, asked))
    return sorted(found, key=lambda each: -1.0 if each.auc is None else each.auc, reverse=True)


def baseline_probabilities(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None,
    training: Sequence[int],
    test: Sequence[int],
    variables: Sequence[str] = BASELINE,
) -> Float64[np.ndarray, "test class"]:
    """Class probabilities of a classifier that knows only age, sex and scanner.

    It stands beside every trained classifier: what does not beat it has not shown that it looks at
    the lungs. Logistic regression on the values' categories, and on the numbers themselves.

    Args:
        manifest: The scans; the columns are those of its labels.
        facts: Of every row's scan, or None.
        training: Indices of the rows to learn from.
        test: Indices of the rows to judge.
        variables: Names out of `VARIABLES`.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    values = {name: _values(manifest, facts, name) for name in variables}
    named = [_categories(name, each) for name, each in values.items()]
    numeric = [
        [np.nan if (x := _number(name, value)) is None else x for value in each]
        for name, each in values.items()
        if name in _NUMERIC
    ]
    table = np.array([*named, *numeric], dtype=object).T
    num_named = len(named)
    scaled = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    model = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), list(range(num_named))),
            (scaled, list(range(num_named, table.shape[1]))),
        ),
        LogisticRegression(max_iter=1000),
    )
    learned = list(training)
    model.fit(table[learned], np.array(manifest.label_indices)[learned])
    probabilities = np.zeros((len(test), len(manifest.labels)))
    probabilities[:, model.classes_] = model.predict_proba(table[list(test)])
    return probabilities


def classes_with_facts(
    manifest: Manifest, facts: Sequence[ScanFacts] | None, variables: Sequence[str] = BASELINE
) -> set[str]:
    """Labels of which at least one scan has a known value of at least one variable."""
    return {
        row.label
        for index, row in enumerate(manifest.rows)
        if any(_value(manifest, facts, index, variable) for variable in variables)
    }


def _categories(variable: str, values: Sequence[str]) -> list[str]:
    """Values as few categories: numbers in fifths, or in tenths where a hundred are known."""
    if variable in _ROUNDED:
        return [_rounded(value) for value in values]
    if variable not in _NUMERIC:
        return [value or UNKNOWN for value in values]
    numbers = [_number(variable, value) for value in values]
    known = np.array([number for number in numbers if number is not None])
    if len(np.unique(known)) <= _MOST_VALUES:
        return [value or UNKNOWN for value in values]
    num_parts = 10 if known.size >= _MANY else 5
    edges = np.unique(np.quantile(known, np.arange(1, num_parts) / num_parts))
    names = [_range_name(variable, edges, place) for place in range(len(edges) + 1)]
    return [
        UNKNOWN if number is None else names[int(np.searchsorted(edges, number, side="right"))]
        for number in numbers
    ]


def _one_row_per_patient(manifest: Manifest) -> list[int]:
    """Index of the first row of each patient and label: scans of a patient are one witness."""
    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(manifest.rows):
        first.setdefault((row.patient, row.label), index)
    return list(first.values())


def _values(manifest: Manifest, facts: Sequence[ScanFacts] | None, variable: str) -> list[str]:
    """What is known of every row's scan."""
    return [_value(manifest, facts, index, variable) for index in range(len(manifest))]


def _value(manifest: Manifest, facts: Sequence[ScanFacts] | None, index: int, variable: str) -> str:
    """What is known of a scan, as text; the manifest goes before the file."""
    row = manifest.rows[index]
    said = _said(row, variable)
    if said or facts is None:
        return said
    return facts[index].acquisition.get(variable, "")


def _said(row: ManifestRow, variable: str) -> str:
    if variable == "age":
        return "" if row.age is None else f"{row.age:g}"
    if variable in ("site", "sex"):
        return str(getattr(row, variable))
    return row.others.get(variable, "")


def _rounded(value: str) -> str:
    """The same number in the same words: "5.0" and "5" are one thickness."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or UNKNOWN


def _number(variable: str, value: str) -> float | None:
    try:
        if variable == "date":
            year, month = value.split("-")[:2]
            return int(year) * 12.0 + int(month) - 1
        return float(value)
    except ValueError:
        return None


def _range_name(variable: str, edges: Float64[np.ndarray, " edge"], place: int) -> str:
    texts = [_edge_text(variable, float(edge)) for edge in edges]
    if place == 0:
        return f"under {texts[0]}"
    if place == len(texts):
        return f"{texts[-1]} and over"
    return f"{texts[place - 1]} to {texts[place]}"


def _edge_text(variable: str, edge: float) -> str:
    if variable == "date":
        return f"{int(edge // 12)}-{int(edge % 12) + 1:02d}"
    return f"{edge:.3g}"


def _ask(
    variable: str,
    values: list[str],
    labels: Labels,
    names: tuple[str, ...],
    settings: _ConfounderSettings,
) -> _Confounder:
    """One variable's figure, or why there is none."""
    table = _count(values, labels, names)
    num_unknown = values.count(UNKNOWN)
    sizes = np.bincount(labels, minlength=len(names))
    note, auc, chance, p_value = "", None, None, None
    if num_unknown == len(values):
        note = "not known for any scan"
    elif len(table) == 1:
        note, auc = "the same for all", 0.5
    elif np.count_nonzero(sizes) < 2 or sizes[sizes > 0].min() < 2:
        note = "a class has fewer than two patients"
    else:
        codes = np.unique(np.array(values, dtype=str), return_inverse=True)[1].astype(np.int64)
        auc, chance, p_value = _cross_validated(codes, labels, settings)
    is_same = auc is not None and len(table) > 1 and all(len(row) == 1 for row in table.values())
    return _Confounder(
        variable=variable,
        auc=auc,
        chance_auc=chance,
        p_value=p_value,
        # One value per patient tells nothing about the next one: the figure must agree.
        is_same_as_class=is_same and auc is not None and auc > 0.95,
        num_patients=len(values),
        num_unknown=num_unknown,
        values=table,
        note=note,
    )


def _count(
    values: list[str], labels: Labels, names: tuple[str, ...]
) -> Mapping[str, Mapping[str, int]]:
    counts = Counter(zip(values, labels.tolist(), strict=True))
    return {
        value: {
            name: counts[value, index] for index, name in enumerate(names) if counts[value, index]
        }
        for value in sorted(set(values))
    }


def _cross_validated(
    codes: Labels, labels: Labels, settings: _ConfounderSettings
) -> tuple[float, float | None, float | None]:
    """The area, what chance gives, and how often chance gives as much."""
    auc = _mean_auc(codes, labels, settings)
    if auc < _WORTH_TESTING_AUC or settings.permutations < 1:
        return auc, None, None
    rng = np.random.default_rng(settings.seed)
    shuffled = np.array(
        [_mean_auc(codes, rng.permutation(labels), settings) for _ in range(settings.permutations)]
    )
    reached = int(np.count_nonzero(shuffled >= auc))
    return auc, float(np.quantile(shuffled, 0.95)), (reached + 1) / (settings.permutations + 1)


def _mean_auc(codes: Labels, labels: Labels, settings: _ConfounderSettings) -> float:
    """Mean over folds of the macro one-vs-rest area; scores of different folds are not pooled."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.naive_bayes import CategoricalNB

    present, truth = np.unique(labels, return_inverse=True)
    num_folds = min(settings.folds, int(np.bincount(truth).min()))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=settings.seed)
    column, num_codes = codes[:, None], int(codes.max()) + 1
    areas = []
    for training, test in folds.split(column, truth):
        model = CategoricalNB(min_categories=num_codes).fit(column[training], truth[training])
        scores = model.predict_proba(column[test])
        scores = scores[:, 1] if len(present) == 2 else scores
        areas.append(roc_auc_score(truth[test], scores, multi_class="ovr"))
    return float(np.mean(areas))


_ORDER = {"refuse": 0, "warning": 1, "note": 2}
_STRONG_AUC = 0.65
_MAX_P = 0.05
_FEW_PATIENTS = 30
_MOST_VALUES_NAMED = 4


class LeakError(ManifestError):
    """The scans are divided so that no result on them would mean anything."""


def check_manifest(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None = None,
    settings: _ConfounderSettings | None = None,
) -> CheckReport:
    """Look for leaks, wrong labels, unreadable scans and confounders.

    Args:
        manifest: The scans, divided or not.
        facts: Of every row's scan, from `gather_facts`; without them pixels are not compared and
            only what the manifest says is asked.
        settings: How variables are asked.

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
        findings.append(Finding("leak", "note", sentence))
    confounders = _find_confounders(manifest, facts, settings)
    findings += _class_findings(manifest)
    findings += [
        finding for each in confounders if (finding := _describe_confounder(each)) is not None
    ]
    findings += _unknown_findings(confounders)
    return report_on(manifest, findings, confounders, has_pixels=facts is not None)


def report_on(
    manifest: Manifest,
    findings: Sequence[Finding],
    confounders: Sequence[_Confounder] = (),
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


def refuse_leaks(report: CheckReport) -> None:
    """Refuse scans that cannot be trained on as they are divided.

    Raises:
        LeakError: There are leaks, contradicting labels or unreadable scans; all are listed.
    """
    if report.refusals:
        listed = "".join(f"\n  - {finding.sentence}" for finding in report.refusals)
        msg = f"{report.manifest} cannot be trained on as it is ({len(report.refusals)} reasons):"
        raise LeakError(msg + listed)


def report_json(report: CheckReport) -> str:
    """The report as JSON, for programs; `schema` changes when a field does."""
    document = {"schema": 1, **asdict(report), "may_be_trained_on": not report.refusals}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _describe_confounder(found: _Confounder) -> Finding | None:
    """What a variable's figure means; None where it means nothing."""
    word = VARIABLES[found.variable]
    if found.is_same_as_class:
        sentence = (
            f"Class and {word} are the same variable: every value occurs with one class only "
            f"({_list_values(found)}). A classifier can be right here by recognising the {word} "
            "and nothing of the disease, and no split of these scans, cross-validation included, "
            f"can show the difference. Add scans so that the classes mix within each {word}, or "
            "test on scans from elsewhere in which they do; until then a result on these scans is "
            "no evidence that the disease is recognised."
        )
        return Finding("confounder", "warning", sentence)
    if found.auc is None or found.p_value is None or found.chance_auc is None:
        return None
    if found.auc < _STRONG_AUC or found.p_value > _MAX_P:
        return None
    unknown = f"; {found.num_unknown} of them not known" if found.num_unknown else ""
    sentence = (
        f"The {word} alone tells the classes apart with a cross-validated AUC of {found.auc:.2f} "
        f"({found.num_patients} patients{unknown}; 95 % of random labellings stay below "
        f"{found.chance_auc:.2f}). No picture was looked at. Put this figure beside the "
        f"classifier's: what the classifier reaches may be due to the {word} up to there. Match "
        f"the classes by {word}, report results within its values, or test where it does not "
        "predict the class."
    )
    return Finding("confounder", "warning", sentence)


def _class_findings(manifest: Manifest) -> list[Finding]:
    cases = manifest.cases
    empty = [label for label, count in cases.items() if not count]
    if len(cases) - len(empty) < 2:
        sentence = f"There are scans of {len(cases) - len(empty)} class(es)."
        return [Finding("classes", "refuse", f"{sentence} A classifier needs at least two.")]
    if empty:
        sentence = f"No scan is {' or '.join(empty)}. Add some, or leave the class out of the"
        return [Finding("classes", "refuse", f"{sentence} labels.")]
    smallest = min(cases, key=lambda label: cases[label])
    if cases[smallest] >= _FEW_PATIENTS:
        return []
    # Wilson's lower end when all of n are right: n / (n + z^2).
    low = cases[smallest] / (cases[smallest] + 1.96**2)
    sentence = (
        f"Only {cases[smallest]} scan(s) are {smallest}. Whatever is measured on them has a wide "
        f"interval (all of them right: {low:.0%} to 100 %); report it."
    )
    return [Finding("classes", "warning", sentence)]


def _unknown_findings(confounders: Sequence[_Confounder]) -> list[Finding]:
    unknown = [VARIABLES[each.variable] for each in confounders if each.auc is None]
    if not unknown:
        return []
    sentence = (
        f"Could not be asked: {', '.join(unknown)}. Confounding by them cannot be excluded; fill "
        "in the columns where it is known."
    )
    return [Finding("confounder", "note", sentence)]


def _count_sides(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((row.side, row.label) for row in manifest.rows)
    sides = sorted({row.side for row in manifest.rows if row.side})
    return {side: {label: counts[side, label] for label in manifest.labels} for side in sides}


def _list_values(found: _Confounder) -> str:
    parts = [
        f"{value}: {', '.join(f'{count} {label}' for label, count in row.items())}"
        for value, row in found.values.items()
    ]
    more = len(parts) - _MOST_VALUES_NAMED
    return "; ".join(parts[:_MOST_VALUES_NAMED]) + (f"; {more} more values" if more > 0 else "")

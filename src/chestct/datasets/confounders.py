"""What can be told of the class without looking at a picture: by site, scanner, age, ...

Each variable is asked alone, and three of them together make the baseline that stands beside every
trained classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float64, Int64

from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.scans import FACTS, ScanFacts

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class Confounder:
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

    @property
    def meaning(self) -> str | None:
        """What the figure means, in a sentence; None where it means nothing."""
        word = VARIABLES[self.variable]
        if self.is_same_as_class:
            return (
                f"Class and {word} are the same variable: every value occurs with one class only "
                f"({_list_values(self)}). A classifier can be right here by recognising the {word} "
                "and nothing of the disease, and no split of these scans, cross-validation "
                "included, can show the difference. Add scans so that the classes mix within each "
                f"{word}, or test on scans from elsewhere in which they do; until then a result on "
                "these scans is no evidence that the disease is recognised."
            )
        if self.auc is None or self.p_value is None or self.chance_auc is None:
            return None
        if self.auc < _STRONG_AUC or self.p_value > _MAX_P:
            return None
        unknown = f"; {self.num_unknown} of them not known" if self.num_unknown else ""
        best = f" All this is said {self.note}, the finding that it tells best."
        return (
            f"The {word} alone tells the classes apart with a cross-validated AUC of "
            f"{self.auc:.2f} ({self.num_patients} patients{unknown}; 95 % of random labellings "
            f"stay below {self.chance_auc:.2f}). No picture was looked at. Put this figure beside "
            f"the classifier's: what the classifier reaches may be due to the {word} up to there. "
            f"Match the classes by {word}, report results within its values, or test where it does "
            f"not predict the class.{best if self.note else ''}"
        )


VARIABLES: Final = {"site": "site", "dataset": "data set", **FACTS}
"""What is asked, in words."""
BASELINE: Final = ("age", "sex", "scanner")
"""What the baseline beside every classifier knows."""
_UNKNOWN: Final = "not known"
"""Stands for a missing value; that it is missing may tell the class too."""

_BANDS: Final = {"age": (18.0, 40.0, 65.0), "slice_thickness_mm": (1.5, 3.0, 5.0)}
"""Numbers whose groups begin at round values, so that those of two sets of scans are the same."""
_MOST_GROUPS: Final = 12
_OTHERS = "others"

_NUMERIC = ("age", "slice_spacing_mm", "date")
_ROUNDED = ("slice_thickness_mm", "kvp")
_MOST_VALUES = 5
_MANY = 100
_WORTH_TESTING_AUC = 0.6
_FOLDS = 5
_SEED = 1
_STRONG_AUC = 0.65
_MAX_P = 0.05
_MOST_VALUES_NAMED = 4

_Labels = Int64[np.ndarray, " patient"]


def find_confounders(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None = None,
    permutations: int = 99,
) -> list[Confounder]:
    """Ask every variable alone; the strongest first, those without a figure last.

    Of findings each is asked for, and told is the one that a variable alone tells best. The
    manifest's columns `site`, `age` and `sex` go before a file's own; without facts it alone is
    asked. A figure is held against so many random labellings, `permutations`.
    """
    if manifest.are_findings:
        return _strongest_of_findings(manifest, facts, permutations)
    rows = _one_row_per_patient(manifest)
    labels = np.array([manifest.label_index(manifest.rows[i]) for i in rows], dtype=np.int64)
    found = []
    for variable in VARIABLES:
        values = _categories(variable, [_value(manifest, facts, i, variable) for i in rows])
        found.append(_ask(variable, values, labels, manifest.labels, permutations))
    return sorted(found, key=lambda each: -1.0 if each.auc is None else each.auc, reverse=True)


def facts_of_finding(
    manifest: Manifest, facts: Sequence[ScanFacts] | None, name: str
) -> list[ScanFacts] | None:
    """The facts of the rows that `manifest.of_finding(name)` has; None where there are none."""
    if facts is None:
        return None
    pairs = zip(manifest.rows, facts, strict=True)
    return [each for row, each in pairs if row.findings[name] is not None]


def _strongest_of_findings(
    manifest: Manifest, facts: Sequence[ScanFacts] | None, permutations: int
) -> list[Confounder]:
    """Of each variable the finding that it tells best, which its note names."""
    best: dict[str, Confounder] = {}
    for name in manifest.labels:
        if all(row.findings[name] is None for row in manifest.rows):
            continue
        view = manifest.of_finding(name)
        for each in find_confounders(view, facts_of_finding(manifest, facts, name), permutations):
            told = replace(each, note=f"of '{name}'{'; ' if each.note else ''}{each.note}")
            before = best.get(each.variable)
            if before is None or (each.auc or 0) > (before.auc or 0):
                best[each.variable] = told
    return sorted(best.values(), key=lambda each: each.auc or -1.0, reverse=True)


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

    `training` and `test` are indices of rows; columns are the manifest's labels. Without facts only
    the manifest says what is known.
    """
    values = {name: _values(manifest, facts, name) for name in variables}
    named = [_categories(name, each) for name, each in values.items()]
    numeric = [
        [np.nan if (x := _number(name, value)) is None else x for value in each]
        for name, each in values.items()
        if name in _NUMERIC
    ]
    table = np.array([*named, *numeric], dtype=object).T
    model = _make_model(len(named), len(numeric))
    learned = list(training)
    model.fit(table[learned], np.array(manifest.label_indices)[learned])
    probabilities = np.zeros((len(test), len(manifest.labels)))
    probabilities[:, model.classes_] = model.predict_proba(table[list(test)])
    return probabilities


def _make_model(num_named: int, num_numeric: int) -> Pipeline:
    """Logistic regression on columns of categories, and on columns of numbers behind them."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    scaled = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    return make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), list(range(num_named))),
            (scaled, list(range(num_named, num_named + num_numeric))),
        ),
        LogisticRegression(max_iter=1000),
    )


def groups_by(manifest: Manifest, facts: Sequence[ScanFacts], variable: str) -> list[str]:
    """Every scan's group: a band of ages or thicknesses, or what a column or the scan itself says.

    `variable` is a name in `VARIABLES`, or a column of the manifest. Of many values the rarest are
    one group.
    """
    values = _values(manifest, facts, variable)
    if variable in _BANDS:
        return _in_bands(variable, values, np.array(_BANDS[variable]))
    named = [value or _UNKNOWN for value in values]
    common = {value for value, _ in Counter(named).most_common(_MOST_GROUPS - 1)}
    is_few = len(set(named)) <= _MOST_GROUPS
    return [value if is_few or value in common else _OTHERS for value in named]


def classes_with_facts(manifest: Manifest, facts: Sequence[ScanFacts] | None) -> set[str]:
    """Labels of which at least one scan has a known value of a variable of the baseline."""
    return {
        row.label
        for index, row in enumerate(manifest.rows)
        if any(_value(manifest, facts, index, variable) for variable in BASELINE)
    }


def _categories(variable: str, values: Sequence[str]) -> list[str]:
    """Values as few categories: numbers in fifths, or in tenths where a hundred are known."""
    if variable in _ROUNDED:
        return [_rounded(value) for value in values]
    if variable not in _NUMERIC:
        return [value or _UNKNOWN for value in values]
    numbers = [_number(variable, value) for value in values]
    known = np.array([number for number in numbers if number is not None])
    if len(np.unique(known)) <= _MOST_VALUES:
        return [value or _UNKNOWN for value in values]
    num_parts = 10 if known.size >= _MANY else 5
    return _in_bands(
        variable, values, np.unique(np.quantile(known, np.arange(1, num_parts) / num_parts))
    )


def _in_bands(
    variable: str, values: Sequence[str], edges: Float64[np.ndarray, " edge"]
) -> list[str]:
    """The range between two edges that each number lies in, the lower end belonging to it."""
    names = [_range_name(variable, edges, place) for place in range(len(edges) + 1)]
    return [
        _UNKNOWN if number is None else names[int(np.searchsorted(edges, number, side="right"))]
        for number in (_number(variable, value) for value in values)
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
    if variable in ("site", "sex", "split", "fold"):
        return str(getattr(row, variable) or "")
    return row.others.get(variable, "")


def _rounded(value: str) -> str:
    """The same number in the same words: "5.0" and "5" are one thickness."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or _UNKNOWN


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
    labels: _Labels,
    names: tuple[str, ...],
    permutations: int,
) -> Confounder:
    """One variable's figure, or why there is none."""
    table = _count(values, labels, names)
    num_unknown = values.count(_UNKNOWN)
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
        auc, chance, p_value = _cross_validated(codes, labels, permutations)
    is_same = auc is not None and len(table) > 1 and all(len(row) == 1 for row in table.values())
    return Confounder(
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
    values: list[str], labels: _Labels, names: tuple[str, ...]
) -> Mapping[str, Mapping[str, int]]:
    counts = Counter(zip(values, labels.tolist(), strict=True))
    return {
        value: {
            name: counts[value, index] for index, name in enumerate(names) if counts[value, index]
        }
        for value in sorted(set(values))
    }


def _cross_validated(
    codes: _Labels, labels: _Labels, permutations: int
) -> tuple[float, float | None, float | None]:
    """The area, what chance gives, and how often chance gives as much."""
    auc = _mean_auc(codes, labels)
    if auc < _WORTH_TESTING_AUC or permutations < 1:
        return auc, None, None
    rng = np.random.default_rng(_SEED)
    shuffled = np.array([_mean_auc(codes, rng.permutation(labels)) for _ in range(permutations)])
    reached = int(np.count_nonzero(shuffled >= auc))
    return auc, float(np.quantile(shuffled, 0.95)), (reached + 1) / (permutations + 1)


def _mean_auc(codes: _Labels, labels: _Labels) -> float:
    """Mean over folds of the macro one-vs-rest area; scores of different folds are not pooled."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.naive_bayes import CategoricalNB

    present, truth = np.unique(labels, return_inverse=True)
    num_folds = min(_FOLDS, int(np.bincount(truth).min()))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=_SEED)
    column, num_codes = codes[:, None], int(codes.max()) + 1
    areas = []
    for training, test in folds.split(column, truth):
        model = CategoricalNB(min_categories=num_codes).fit(column[training], truth[training])
        scores = model.predict_proba(column[test])
        scores = scores[:, 1] if len(present) == 2 else scores
        areas.append(roc_auc_score(truth[test], scores, multi_class="ovr"))
    return float(np.mean(areas))


def _list_values(found: Confounder) -> str:
    parts = [
        f"{value}: {', '.join(f'{count} {label}' for label, count in row.items())}"
        for value, row in found.values.items()
    ]
    more = len(parts) - _MOST_VALUES_NAMED
    return "; ".join(parts[:_MOST_VALUES_NAMED]) + (f"; {more} more values" if more > 0 else "")

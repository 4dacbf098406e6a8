"""Divide scans or slices: by patient, in every class alike, the same for the same seed.

Only the patients' names, their classes and the seed decide; neither the order of the rows nor the
version of a library does. One split of slices shares patients, as a paper did, and says so.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from chestct.datasets.manifest import (
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestError,
    ManifestRow,
    describe_rows,
)
from chestct.labels import TWO_CLASSES


@dataclass(frozen=True)
class SplitSettings:
    """How scans are divided.

    Attributes:
        folds: Number of folds of `k_fold`.
        test_share: Share of the patients of each class that `hold_out` keeps for testing.
        validation_share: The same for validation.
        seed: Of the shuffling.

    Raises:
        ManifestError: A number is impossible.
    """

    folds: int = 5
    test_share: float = 0.2
    validation_share: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ManifestError(f"There must be at least 2 folds, not {self.folds}.")
        shares = (self.test_share, self.validation_share)
        if not (min(shares) >= 0 and 0 < sum(shares) < 1):
            raise ManifestError(
                f"The shares to hold out ({self.test_share:g} for testing, "
                f"{self.validation_share:g} for validation) must not be negative and must leave "
                "something for training."
            )


def k_fold(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """Give every scan the fold in which it is held out, from 1.

    Patients are dealt out class by class, so folds differ by at most one patient per class; of
    findings as `_deal_findings` does, which is as near to it as findings allow. A
    patient with a test scan stays out of all folds, and all their scans become test scans.

    Raises:
        ManifestError: A class has fewer patients than there are folds.
    """
    kept_apart = {row.patient for row in manifest.rows if row.split == TEST}
    divided = manifest.choose(lambda row: row.patient not in kept_apart)
    divided.require_classes()
    if manifest.are_findings:
        shares = dict.fromkeys(range(1, settings.folds + 1), 1 / settings.folds)
        return _with_folds(manifest, _deal_findings(divided, shares, settings.seed), kept_apart)
    patients = divided.patients_by_label
    for label, names in patients.items():
        if len(names) < settings.folds:
            raise ManifestError(
                f"{manifest.name} has {len(names)} patient(s) of {label}, and {settings.folds} "
                f"folds need at least {settings.folds}: a fold would hold none. Use fewer folds "
                "or add patients."
            )
    dealt: dict[str, int] = {}
    for names in patients.values():
        # Going on where the last class stopped keeps the folds' sizes alike too.
        start = len(dealt)
        for place, patient in enumerate(_shuffled(names, settings.seed), start=start):
            dealt[patient] = place % settings.folds + 1
    return _with_folds(manifest, dealt, kept_apart)


def _with_folds(manifest: Manifest, dealt: dict[str, int], kept_apart: set[str]) -> Manifest:
    return manifest.with_rows(
        replace(row, split=TEST if row.patient in kept_apart else "", fold=dealt.get(row.patient))
        for row in manifest.rows
    )


_Part = TypeVar("_Part", str, int)


def _deal_findings(
    manifest: Manifest, shares: Mapping[_Part, float], seed: int
) -> dict[str, _Part]:
    """Deal the patients out so that each part gets its share of every finding and its absence.

    What fewest of the patients left have goes first, each of its patients to the part that lacks
    most of them, which is the iterative stratification of Sechidis et al. (2011).
    """
    has: dict[str, set[str]] = defaultdict(set)
    for row in manifest.rows:
        known = {n: is_there for n, is_there in row.findings.items() if n in manifest.labels}
        has[row.patient] |= {f"{n}: {it}" for n, it in known.items() if it is not None}
    counts = Counter(each for said in has.values() for each in said)
    lacking = {
        (p, each): max(1.0, share * counts[each]) for p, share in shares.items() for each in counts
    }
    room = {part: share * len(has) for part, share in shares.items()}
    dealt: dict[str, _Part] = {}
    left = _shuffled([*has], seed)
    while left:
        counts = Counter(each for patient in left for each in has[patient])
        rarest = min(counts, key=lambda each: (counts[each], each))
        for patient in [each for each in left if rarest in has[each]]:
            part = max(shares, key=lambda p: (lacking[p, rarest], room[p]))
            dealt[patient] = part
            room[part] -= 1
            for each in has[patient]:
                lacking[part, each] -= 1
        left = [patient for patient in left if patient not in dealt]
    return dealt


def hold_out(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """Put a share of the patients of each class aside for testing, and one for validation.

    Each wanted part gets at least one patient of each class; of findings as far as they allow.

    Raises:
        ManifestError: A class has too few patients.
    """
    manifest.require_classes()
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    shares = {part: share for part, share in shares.items() if share > 0}
    if manifest.are_findings:
        wanted = {TRAINING: 1 - sum(shares.values()), **shares}
        return _with_splits(manifest, _deal_findings(manifest, wanted, settings.seed))
    splits: dict[str, str] = {}
    for label, names in manifest.patients_by_label.items():
        counts = {part: max(1, round(share * len(names))) for part, share in shares.items()}
        if sum(counts.values()) >= len(names):
            raise ManifestError(
                f"{manifest.name} has {len(names)} patient(s) of {label}, too few to be divided "
                f"into {TRAINING}, {' and '.join(shares)}. Add patients or hold out less."
            )
        left = _shuffled(names, settings.seed)
        for part, count in counts.items():
            splits |= dict.fromkeys(left[:count], part)
            left = left[count:]
        splits |= dict.fromkeys(left, TRAINING)
    return _with_splits(manifest, splits)


def given(manifest: Manifest) -> Manifest:
    """Take the manifest's own split, after checking that it is one.

    Raises:
        ManifestError: A row stands nowhere, a fold or part is empty, or a patient is on two sides.
    """
    stray = [row for row in manifest.rows if not row.side]
    if stray:
        raise ManifestError(
            f"{manifest.name}: {describe_rows(stray)} have neither split nor fold. Fill in the "
            "column, or divide the scans with 'chestct dataset split'."
        )
    _require_separate_patients(manifest)
    _require_full_folds(manifest)
    return manifest


def maseres_paper(manifest: Manifest) -> Manifest:
    """The patient-level split of the MASERes paper (Sadeghi et al., Scientific Reports 2024).

    As its notebooks do it: in each class the names, sorted as text, are shuffled with Python's
    `random.Random(1)` and cut after 80 % (rounded up) and the next 10 % (rounded down): 107, 13 and
    13 of 133 COVID-19 patients, 61, 7 and 8 of 76 normal ones.

    Raises:
        ManifestError: There are other classes than COVID-19 and normal, or too few patients.
    """
    if manifest.labels != TWO_CLASSES:
        raise ManifestError(
            f"The MASERes paper's split divides {' and '.join(TWO_CLASSES)}, and {manifest.name} "
            f"has {', '.join(manifest.labels)}. Leave the other rows out or choose another split."
        )
    splits: dict[str, str] = {}
    for label, names in manifest.patients_by_label.items():
        first, second = -(-8 * len(names) // 10), len(names) // 10
        if second == 0 or first + second == len(names):
            msg = f"{manifest.name} has {len(names)} patient(s) of {label}; 80, 10 and 10 % of"
            raise ManifestError(f"{msg} them need at least 10. Choose another split.")
        shuffled = _shuffled(names, 1)
        splits |= dict.fromkeys(shuffled[:first], TRAINING)
        splits |= dict.fromkeys(shuffled[first : first + second], VALIDATION)
        splits |= dict.fromkeys(shuffled[first + second :], TEST)
    return _with_splits(manifest, splits)


SHARES_PATIENTS: Final = "slice_random_leaky"
"""The paper's split: patients are shared between its parts."""


def _slice_random(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """The paper's split: the slices of each class are shuffled and cut, whoever's they are.

    A split that the manifest has is not looked at.
    """
    by_label: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_label[row.label].append(row)
    sides: dict[int, str] = {}
    for rows in by_label.values():
        shuffled = sorted(rows, key=lambda row: row.scan)
        random.Random(settings.seed).shuffle(shuffled)
        num_test = round(settings.test_share * len(rows))
        num_validation = round(settings.validation_share * len(rows))
        cuts = [TEST] * num_test + [VALIDATION] * num_validation
        for place, row in enumerate(shuffled):
            sides[row.number] = cuts[place] if place < len(cuts) else TRAINING
    return manifest.with_rows(
        replace(row, split=sides[row.number], fold=None) for row in manifest.rows
    )


SLICE_SPLITS: Final[dict[str, Callable[[Manifest, SplitSettings], Manifest]]] = {
    "patient": hold_out,
    SHARES_PATIENTS: _slice_random,
}
"""Split name to a function that fills in `split`, where the table has none of its own."""


def part(manifest: Manifest, split: str) -> Manifest:
    """The scans of a split.

    Raises:
        ManifestError: There are none.
    """
    _require_some(manifest, [row for row in manifest.rows if row.split == split], f"split {split}")
    return manifest.choose(lambda row: row.split == split)


def fold_parts(manifest: Manifest, fold: int) -> tuple[Manifest, Manifest]:
    """What is trained on when a fold is held out, and the fold itself; test scans in neither.

    Raises:
        ManifestError: The fold is empty, or what is left lacks a class.
    """
    held = [row for row in manifest.rows if row.fold == fold and row.split != TEST]
    _require_some(manifest, held, f"fold {fold}")
    training = manifest.choose(
        lambda row: row.fold not in (None, fold) and row.split in ("", TRAINING)
    )
    training.require_classes(f"all folds but {fold}")
    return training, manifest.with_rows(held)


def _require_separate_patients(manifest: Manifest) -> None:
    """Refuse a manifest in which scans of a patient are on two sides of its split."""
    shared = manifest.patients_on_two_sides
    if shared:
        rows = shared[0]
        sides = " and ".join(sorted({row.side for row in rows}))
        raise ManifestError(
            f"{manifest.name}: {describe_rows(rows)} are scans of one patient and stand in {sides} "
            f"({len(shared)} patient(s) in all). A classifier tested on patients it was trained on "
            "looks better than it is: keep each patient on one side, or divide the scans with "
            "'chestct dataset split'."
        )


def _require_full_folds(manifest: Manifest) -> None:
    folds = manifest.folds
    gaps = sorted(set(range(1, max(folds, default=0) + 1)) - set(folds))
    if gaps or len(folds) == 1:
        missing = gaps[0] if gaps else 2
        raise ManifestError(
            f"{manifest.name}: no row has fold {missing}, and "
            f"{describe_rows([row for row in manifest.rows if row.fold == folds[-1]])} have fold "
            f"{folds[-1]}. Number the folds from 1 without a gap, at least two, or divide the "
            "scans with 'chestct dataset split --folds N'."
        )


def _require_some(manifest: Manifest, rows: list[ManifestRow], what: str) -> None:
    if not rows:
        sides = ", ".join(sorted({row.side or "none" for row in manifest.rows}))
        raise ManifestError(
            f"{manifest.name} has no scan in {what}; its rows stand in: {sides}. Fill in the "
            "column, or divide the scans with 'chestct dataset split'."
        )


def _with_splits(manifest: Manifest, splits: dict[str, str]) -> Manifest:
    return manifest.with_rows(
        replace(row, split=splits[row.patient], fold=None) for row in manifest.rows
    )


def _shuffled(names: list[str], seed: int) -> list[str]:
    """The names, sorted as text, in an order that depends on the seed alone."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    return shuffled

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given as given_cases
from hypothesis import settings
from hypothesis import strategies as st
from labelled_scans import make_manifest, make_rows

from chestct.datasets.manifest import (
    TRAINING,
    Manifest,
    ManifestError,
    ManifestRow,
)
from chestct.datasets.splits import (
    SHARES_PATIENTS,
    SLICE_SPLITS,
    SplitSettings,
    fold_parts,
    given,
    hold_out,
    k_fold,
    maseres_paper,
    part,
)
from chestct.labels import COVID19, NORMAL

VALIDATION_COVID = "62 99 30 6 1 68 67 49 29 23 75 82 101"
TEST_COVID = "35 11 122 7 22 54 33 83 93 126 38 113 13"
VALIDATION_NORMAL = "054 070 004 063 013 027 049"
TEST_NORMAL = "061 058 064 016 033 009 073 018"


def require_trainable(manifest: Manifest) -> None:
    """All that trainings ask of a manifest and its split or folds."""
    manifest.require_classes()
    given(manifest)
    for fold in manifest.folds:
        fold_parts(manifest, fold)
    if not manifest.folds:
        part(manifest, TRAINING).require_classes(TRAINING)


def maseres_manifest() -> Manifest:
    """133 COVID-19 patients "1" to "133", 76 normal ones "001" to "076", in any order."""
    rows = [ManifestRow(f"covid/{i}", f"{i}", "COVID-19") for i in range(1, 134)]
    rows += [ManifestRow(f"normal/{i:03d}", f"{i:03d}", "normal") for i in range(1, 77)]
    random.Random(5).shuffle(rows)
    return make_manifest(rows)


def patients_of(manifest: Manifest, split: str, label: str) -> set[str]:
    return {row.patient for row in manifest.rows if (row.split, row.label) == (split, label)}


def sides_by_patient(manifest: Manifest) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = defaultdict(set)
    for row in manifest.rows:
        sides[row.patient].add(row.side)
    return sides


def test_the_maseres_split_is_the_one_of_the_notebooks() -> None:
    divided = maseres_paper(maseres_manifest())
    assert patients_of(divided, "validation", "COVID-19") == set(VALIDATION_COVID.split())
    assert patients_of(divided, "test", "COVID-19") == set(TEST_COVID.split())
    assert patients_of(divided, "validation", "normal") == set(VALIDATION_NORMAL.split())
    assert patients_of(divided, "test", "normal") == set(TEST_NORMAL.split())
    assert len(patients_of(divided, "training", "COVID-19")) == 107
    assert len(patients_of(divided, "training", "normal")) == 61


def test_the_maseres_split_agrees_with_the_audit_of_the_paper(data_folder: Path) -> None:
    published = data_folder.parent / "reference" / "published_results.json"
    if not published.is_file():
        pytest.skip("no audit of the paper beside the real scans")
    audit = json.loads(published.read_text())["maseres_paper"]["patient_split_reproduced"]
    divided = maseres_paper(maseres_manifest())
    for name, label in (("covid", "COVID-19"), ("normal", "normal")):
        for split in ("train", "validation", "test"):
            found = patients_of(divided, "training" if split == "train" else split, label)
            assert found == set(audit[name][split])


def test_the_maseres_split_needs_its_two_classes_and_ten_patients() -> None:
    with pytest.raises(ManifestError, match="divides COVID-19 and normal"):
        maseres_paper(make_manifest(make_rows({"CAP": 20, "normal": 20})))
    with pytest.raises(ManifestError, match="need at least 10"):
        maseres_paper(make_manifest(make_rows({"COVID-19": 20, "normal": 9})))


@settings(max_examples=25, deadline=None)
@given_cases(
    counts=st.tuples(st.integers(5, 23), st.integers(5, 23), st.integers(5, 23)),
    folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_folds_hold_every_class_alike_and_every_patient_once(
    counts: tuple[int, int, int], folds: int, seed: int
) -> None:
    labels = ("CAP", "COVID-19", "normal")
    manifest = make_manifest(make_rows(dict(zip(labels, counts, strict=True)), 2))
    divided = k_fold(manifest, SplitSettings(folds=folds, seed=seed))
    assert divided.folds == tuple(range(1, folds + 1))
    assert all(len(sides) == 1 for sides in sides_by_patient(divided).values())
    for label, count in zip(labels, counts, strict=True):
        sizes = Counter(row.fold for row in divided.rows if row.label == label)
        assert sum(sizes.values()) == 2 * count
        assert max(sizes.values()) - min(sizes.values()) <= 2
    sizes = Counter(row.fold for row in divided.rows)
    assert max(sizes.values()) - min(sizes.values()) <= 2
    require_trainable(divided)


def test_only_names_and_seed_decide_not_the_order_of_the_rows() -> None:
    rows = make_rows({"CAP": 9, "normal": 12}, 2)
    settings_ = SplitSettings(folds=3, seed=4)

    def folds(ordered: list[ManifestRow], with_settings: SplitSettings) -> dict[str, int | None]:
        divided = k_fold(make_manifest(ordered), with_settings)
        return {row.patient: row.fold for row in divided.rows}

    assert folds(rows, settings_) == folds(rows[::-1], settings_)
    assert folds(rows, settings_) != folds(rows, replace(settings_, seed=5))


def test_test_patients_stay_out_of_the_folds_with_all_their_scans() -> None:
    rows = make_rows({"CAP": 6, "normal": 6}, 2)
    rows[0] = replace(rows[0], split="test")
    divided = k_fold(make_manifest(rows), SplitSettings(folds=2))
    assert [(row.split, row.fold) for row in divided.rows[:2]] == [("test", None)] * 2
    assert all(row.fold for row in divided.rows[2:])
    training, held = fold_parts(divided, 1)
    assert {row.patient for row in training.rows} | {row.patient for row in held.rows} == {
        row.patient for row in divided.rows[2:]
    }


def test_too_few_patients_for_the_folds_are_refused() -> None:
    manifest = make_manifest(make_rows({"CAP": 4, "normal": 12}))
    with pytest.raises(ManifestError, match=r"4 patient\(s\) of CAP, and 5 folds"):
        k_fold(manifest, SplitSettings(folds=5))


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_hold_out_keeps_the_share_of_patients_of_every_class(validation: float) -> None:
    manifest = make_manifest(make_rows({"CAP": 10, "COVID-19": 30}, 2))
    divided = hold_out(manifest, SplitSettings(test_share=0.2, validation_share=validation))
    for label, count in (("CAP", 10), ("COVID-19", 30)):
        assert len(patients_of(divided, "test", label)) == count // 5
        assert len(patients_of(divided, "validation", label)) == round(count * validation)
    assert all(len(sides) == 1 for sides in sides_by_patient(divided).values())
    require_trainable(divided)


def test_hold_out_refuses_a_class_that_cannot_be_divided() -> None:
    with pytest.raises(ManifestError, match=r"1 patient\(s\) of CAP, too few"):
        hold_out(make_manifest(make_rows({"CAP": 1, "normal": 9}, 3)), SplitSettings())


@pytest.mark.parametrize(
    "impossible",
    [{"folds": 1}, {"test_share": 0.0}, {"test_share": 0.7, "validation_share": 0.3}],
)
def test_impossible_settings_are_refused(impossible: dict[str, float]) -> None:
    with pytest.raises(ManifestError, match="must"):
        SplitSettings(**impossible)  # type: ignore[arg-type]


def with_sides(sides: list[tuple[str, int | None]], *, same_patient: bool = False) -> Manifest:
    rows = make_rows({"CAP": len(sides), "normal": len(sides)})
    placed = [
        replace(row, split=split, fold=fold)
        for row, (split, fold) in zip(rows, sides * 2, strict=True)
    ]
    if same_patient:
        placed[1] = replace(placed[1], patient=placed[0].patient)
    return make_manifest(placed)


def test_a_patient_on_two_sides_is_refused_with_rows_and_without_the_name() -> None:
    for sides in ([("training", None), ("test", None)], [("", 1), ("", 2)]):
        manifest = with_sides(sides, same_patient=True)
        with pytest.raises(ManifestError, match="rows 2 and 3 are scans of one patient") as caught:
            require_trainable(manifest)
        assert manifest.rows[0].patient not in str(caught.value)


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ([("training", None), ("", None)], "rows 3 and 5 have neither split nor fold"),
        ([("", 1), ("", 3)], "no row has fold 2"),
        ([("", 1)], "no row has fold 2"),
        ([("test", None), ("validation", None)], "no scan in split training"),
    ],
)
def test_a_split_that_is_none_is_refused(sides: list[tuple[str, int | None]], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        require_trainable(with_sides(sides))


def test_a_training_part_without_a_class_is_refused() -> None:
    rows = [
        replace(row, split="training" if row.label == "CAP" else "test")
        for row in make_rows({"CAP": 3, "normal": 3})
    ]
    with pytest.raises(ManifestError, match="All 3 scans of the part 'training'"):
        require_trainable(make_manifest(rows))


def test_a_class_that_is_in_one_fold_only_is_refused() -> None:
    rows = make_rows({"CAP": 2, "normal": 2})
    rows = [replace(row, fold=1 if row.label == "CAP" else 2) for row in rows]
    with pytest.raises(ManifestError, match="all folds but 1"):
        require_trainable(make_manifest(rows))


def test_an_empty_part_or_fold_is_said() -> None:
    manifest = with_sides([("training", None), ("test", None)])
    assert len(part(manifest, "test")) == 2
    with pytest.raises(ManifestError, match="no scan in split validation"):
        part(manifest, "validation")
    with pytest.raises(ManifestError, match="no scan in fold 3"):
        fold_parts(manifest, 3)


def test_a_given_split_is_taken_as_it_is() -> None:
    manifest = with_sides([("training", None), ("test", None)])
    assert given(manifest) is manifest


@pytest.mark.parametrize(
    "divide",
    [
        lambda manifest: k_fold(manifest, SplitSettings()),
        lambda manifest: hold_out(manifest, SplitSettings()),
        maseres_paper,
        lambda manifest: given(maseres_paper(manifest)),
    ],
)
def test_no_splitter_changes_its_argument(divide: Callable[[Manifest], Manifest]) -> None:
    manifest = maseres_manifest()
    before = manifest.rows
    divided = divide(manifest)
    assert manifest.rows == before
    assert {row.scan for row in divided.rows} == {row.scan for row in before}
    assert all(row.side for row in divided.rows)


TENTHS = SplitSettings(test_share=0.1, validation_share=0.1)


def slices(counts: dict[str, int], per_patient: int) -> Manifest:
    rows = [
        ManifestRow(f"{label}-{number}.png", f"{label} {number // per_patient}", label)
        for label, count in counts.items()
        for number in range(count)
    ]
    return Manifest(tuple(rows), (COVID19, NORMAL))


def test_by_patient_no_patient_is_on_two_sides() -> None:
    divided = SLICE_SPLITS["patient"](slices({COVID19: 330, NORMAL: 520}, 10), TENTHS)
    sides = {row.patient: set() for row in divided.rows}
    for row in divided.rows:
        sides[row.patient].add(row.split)
    assert all(len(each) == 1 for each in sides.values())
    assert Counter(row.split for row in divided.rows)["test"] == 80


def test_the_papers_split_has_its_counts_and_shares_patients() -> None:
    """4,442 and 5,216 slices: 444 and 522 in validation and in test."""
    manifest = slices({COVID19: 4442, NORMAL: 5216}, 40)
    divided = SLICE_SPLITS[SHARES_PATIENTS](manifest, TENTHS)
    counts = Counter((row.label, row.split) for row in divided.rows)
    assert counts[COVID19, "training"] == 3554
    assert counts[NORMAL, "training"] == 4172
    for side in ("validation", "test"):
        assert (counts[COVID19, side], counts[NORMAL, side]) == (444, 522)
    tested = {row.patient for row in divided.rows if row.split == "test"}
    learned = {row.patient for row in divided.rows if row.split == "training"}
    assert len(tested & learned) / len(tested) > 0.9


def test_the_same_seed_divides_alike_whatever_the_order_of_rows() -> None:
    manifest = slices({COVID19: 50, NORMAL: 50}, 5)
    turned = replace(manifest, rows=tuple(replace(row, number=0) for row in manifest.rows[::-1]))
    for split in SLICE_SPLITS.values():
        first = {row.scan: row.split for row in split(manifest, TENTHS).rows}
        assert first == {row.scan: row.split for row in split(turned, TENTHS).rows}

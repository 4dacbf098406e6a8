from __future__ import annotations

from collections import Counter
from dataclasses import replace

from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.slice_lists import SHARES_PATIENTS, SLICE_SPLITS
from chestct.datasets.splits import SplitSettings
from chestct.labels import COVID19, NORMAL

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
    for part in ("validation", "test"):
        assert (counts[COVID19, part], counts[NORMAL, part]) == (444, 522)
    tested = {row.patient for row in divided.rows if row.split == "test"}
    learned = {row.patient for row in divided.rows if row.split == "training"}
    assert len(tested & learned) / len(tested) > 0.9


def test_the_same_seed_divides_alike_whatever_the_order_of_rows() -> None:
    manifest = slices({COVID19: 50, NORMAL: 50}, 5)
    turned = replace(manifest, rows=tuple(replace(row, number=0) for row in manifest.rows[::-1]))
    for split in SLICE_SPLITS.values():
        first = {row.scan: row.split for row in split(manifest, TENTHS).rows}
        assert first == {row.scan: row.split for row in split(turned, TENTHS).rows}

from __future__ import annotations

from dataclasses import replace

import numpy as np
from labelled_scans import make_manifest, make_rows

from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import ScanFacts
from chestct.evaluation.predictions import Predictions
from chestct.labels import TWO_CLASSES
from chestct.training.results import cross_validated_baseline


def judged(manifest: Manifest) -> Predictions:
    """A classifier that says nothing of a manifest's scans."""
    num, labels = len(manifest), manifest.labels
    return Predictions(
        scans=tuple(row.scan for row in manifest.rows),
        patients=tuple(row.patient for row in manifest.rows),
        truth=np.array(manifest.label_indices),
        probabilities=np.full((num, len(labels)), 1 / len(labels)),
        labels=labels,
    )


def scanners(names: list[str]) -> list[ScanFacts]:
    return [ScanFacts(acquisition={"scanner": name} if name else {}) for name in names]


def test_a_scanner_per_class_is_found_out_and_the_making_is_said() -> None:
    manifest = make_manifest(make_rows({"COVID-19": 8, "normal": 8}))
    facts = scanners([f"of {row.label}" for row in manifest.rows])
    found, remark = cross_validated_baseline(judged(manifest), manifest, facts)
    assert found is not None
    assert found.is_right.all()
    assert "cross-validated on these very scans (5 folds by patient)" in remark


def test_no_patient_is_told_from_his_own_other_scans() -> None:
    manifest = make_manifest(make_rows({"COVID-19": 6, "normal": 6}, scans_per_patient=2))
    # A scanner of one's own gives the label away to whoever saw the patient's other scan.
    facts = scanners([row.patient for row in manifest.rows])
    found, _ = cross_validated_baseline(judged(manifest), manifest, facts)
    assert found is not None
    assert found.confidences.max() < 0.6


def test_a_given_split_does_not_keep_scans_out_of_the_folds() -> None:
    rows = make_rows({"COVID-19": 3, "normal": 4})
    manifest = make_manifest(rows)
    facts = scanners([f"of {row.label}" for row in manifest.rows])
    plain, remark = cross_validated_baseline(judged(manifest), manifest, facts)
    assert "3 folds" in remark
    split = make_manifest([replace(row, split="test") for row in rows])
    again, _ = cross_validated_baseline(judged(split), split, facts)
    assert plain is not None
    assert again is not None
    np.testing.assert_array_equal(plain.probabilities, again.probabilities)


def test_a_class_without_scans_keeps_its_column_and_gets_nothing() -> None:
    rows = make_rows({"COVID-19": 4, "normal": 4})
    manifest = Manifest(tuple(rows), labels=("CAP", *TWO_CLASSES))
    facts = scanners([f"of {row.label}" for row in manifest.rows])
    found, _ = cross_validated_baseline(judged(manifest), manifest, facts)
    assert found is not None
    assert found.probabilities.shape == (8, 3)
    assert not found.probabilities[:, 0].any()


def test_where_nothing_is_known_one_line_says_so() -> None:
    manifest = make_manifest(make_rows({"COVID-19": 4, "normal": 4}))
    known_for_one = scanners(["A" if row.label == "normal" else "" for row in manifest.rows])
    for facts in (scanners([""] * 8), known_for_one):
        found, remark = cross_validated_baseline(judged(manifest), manifest, facts)
        assert found is None
        assert remark == (
            "No baseline of age, sex, scanner stands beside the classifier: none of them is known "
            "for two classes or more."
        )


def test_a_class_of_one_patient_has_no_baseline() -> None:
    manifest = make_manifest(make_rows({"COVID-19": 1, "normal": 4}))
    facts = scanners(["A"] * 5)
    found, remark = cross_validated_baseline(judged(manifest), manifest, facts)
    assert found is None
    assert "a class has fewer than two patients" in remark

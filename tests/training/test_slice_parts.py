"""How slices are divided for a run, and what a slice classifier's card refuses; no network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chestct.card import SLICE_CARD_FILE, SliceCard
from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.errors import ClassifierError
from chestct.training.data import divide_slices, patient_labels_of
from chestct.training.settings import SliceDataSection

CARD = {
    "name": "drawn",
    "network": "mobilenet_v2",
    "network_settings": {},
    "pictures": {
        "size": 64,
        "interpolation": "linear",
        "keeps_shape": True,
        "sixteen_bit": "own_range",
    },
    "labels": ["COVID-19", "normal"],
    "backbone_weights": "random weights",
    "split": "by patient",
    "trained_on": "drawn slices",
    "results": [],
    "votes": {"slice_threshold": 0.5, "share_cut": 0.1, "sharpness": 5.0},
    "temperature": 1.0,
    "versions": {},
    "licence": "none",
    "weights_sha256": "0" * 64,
}


def slices(num_patients: int = 10, per_patient: int = 3) -> Manifest:
    rows = [
        ManifestRow(f"{label}-{patient}-{number}.png", f"{label} {patient}", label)
        for label in ("COVID-19", "normal")
        for patient in range(num_patients)
        for number in range(per_patient)
    ]
    return Manifest(tuple(rows), ("COVID-19", "normal"))


def test_a_tables_own_test_part_is_kept_and_validation_drawn_by_patient() -> None:
    manifest = slices()
    rows = [
        replace(row, split="test" if row.patient.endswith(" 0") else "training")
        for row in manifest.rows
    ]
    division = divide_slices(manifest.with_rows(rows), SliceDataSection())
    assert division.test is not None
    assert {row.patient for row in division.test.rows} == {"COVID-19 0", "normal 0"}
    assert division.validation.num_patients == 2
    watched = {row.patient for row in division.validation.rows}
    assert not watched & {row.patient for row in division.training.rows}


def test_a_patient_on_two_sides_of_a_tables_own_split_is_refused_by_row() -> None:
    manifest = slices()
    rows = [
        replace(row, split="test" if place % 3 == 0 else "training")
        for place, row in enumerate(manifest.rows)
    ]
    with pytest.raises(ManifestError, match="row"):
        divide_slices(manifest.with_rows(rows), SliceDataSection())


def test_patients_own_classes_are_taken_where_the_table_has_them() -> None:
    manifest = slices(2, 1)
    assert patient_labels_of(manifest) is None
    rows = [replace(row, others={"patient_label": "COVID-19"}) for row in manifest.rows[:1]]
    assert patient_labels_of(manifest.with_rows(rows)) == {"COVID-19 0": "COVID-19"}


def test_a_sound_card_is_read(tmp_path: Path) -> None:
    (tmp_path / SLICE_CARD_FILE).write_text(json.dumps(CARD))
    card = SliceCard.read(tmp_path)
    assert card.pictures.size == 64
    assert card.votes.sharpness == 5.0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "votes",
            {"slice_threshold": 0.5, "share_cut": 2.0, "sharpness": 5.0},
            "field 'votes.share_cut'",
        ),
        ("votes", {"slice_threshold": 0.5, "share_cut": 0.1}, "it lacks 'sharpness'"),
        ("temperature", 0.0, "field 'temperature'"),
        ("labels", ["normal"], "field 'labels'"),
        ("pictures", {**CARD["pictures"], "size": 5}, "field 'pictures.size'"),
    ],
)
def test_a_card_with_an_impossible_field_is_refused_by_its_name(
    field: str, value: object, said: str, tmp_path: Path
) -> None:
    (tmp_path / SLICE_CARD_FILE).write_text(json.dumps({**CARD, field: value}))
    with pytest.raises(ClassifierError, match=said):
        SliceCard.read(tmp_path)

"""From a spreadsheet with a column per finding to a classifier of findings, its report and its SR.

Two findings that have nothing to do with each other: thin lungs and a dense ball in them. Scans
have both, one or none of them, and of some it is not known.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import LUNG_HU, chest, chest_grid
from quick_figures import one_of_each

from chestct.card import Card
from chestct.cli import main
from chestct.datasets.manifest import read_manifest
from chestct.simulate import write_dicom_series

NUM_SCANS = 16
LOOKED_AT = (1, 4)
"""Patients with both findings and with none."""
LABELS = """
kind: findings
labels:
  - name: emphysema
    wording: Emphysema of the lung
    code: {value: 87433001, scheme: SCT, meaning: Pulmonary emphysema}
  - name: nodule
    values: [Lung nodule]
"""
SETTINGS = """
labels: [to, be said]
network: {name: roi_resnet18, settings: {width: 4, gating: all, head_units: 8}}
recipe:
  name: roi_resnet_recommended
  overrides: {input_shape: [32, 32, 32], spacing_mm: [12.0, 12.0, 12.0], lungs: published}
augmentation: {name: none}
training: {epochs: 40, batch_size: 4, learning_rate: 0.003, class_weights: balanced, seed: 3}
"""


def truth_of(number: int) -> tuple[bool, bool]:
    """Whether a scan has thin lungs, and a ball."""
    return number % 2 == 0, number % 4 < 2


def cells_of(number: int) -> tuple[str, str]:
    """What the spreadsheet says of it; nothing of some."""
    thin, ball = truth_of(number)
    return "" if number == 5 else "01"[thin], "" if number == 6 else ("no", "yes")[ball]


def write_scans(folder: Path) -> None:
    rng = np.random.default_rng(0)
    plain = chest(chest_grid((36, 36, 42), (10.0, 9.0, 9.0)))
    z, y, x = np.indices(plain.voxels.shape)
    lungs = plain.voxels == LUNG_HU
    middle = [int(np.median(np.nonzero(lungs & (x < x.shape[2] // 2))[axis])) for axis in range(3)]
    spacing = plain.grid.spacing_mm
    far = sum(((i - m) * s) ** 2 for i, m, s in zip((z, y, x), middle, spacing, strict=True))
    for number in range(NUM_SCANS):
        thin, ball = truth_of(number)
        voxels = np.where(lungs, -950 if thin else -750, plain.voxels)
        voxels = np.where((far < 45.0**2) & lungs & ball, 0, voxels)
        voxels = np.clip(voxels + rng.normal(0, 20, voxels.shape), -1024, 3000)
        scan = plain.with_voxels(voxels.round().astype(np.int16))
        write_dicom_series(scan, folder / f"P{number + 1}" / "CT", uid_seed=number)


class Study:
    def __init__(self, folder: Path) -> None:
        self.folder, self.scans = folder, folder / "scans"
        self.manifest, self.run = folder / "manifest.csv", folder / "run"
        self.classifier, self.labels = self.run / "classifier", folder / "labels.yaml"
        self.results, self.audit = folder / "results", folder / "audit"
        self.judged = folder / "judged"

    def do(self, *arguments: object) -> None:
        said = [str(argument) for argument in arguments]
        assert main(said) == 0, said

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
        """What is said on stderr of a command that does not fit."""
        assert main([str(argument) for argument in arguments]) == 2
        return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with one_of_each():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Everything, in the order in which a user would do it."""
    study = Study(tmp_path_factory.mktemp("findings"))
    folder, scans = study.folder, study.scans
    write_scans(scans)
    table, config = folder / "findings.csv", folder / "settings.yaml"
    lines = [",".join((f"P{n + 1}", *cells_of(n), "47")) for n in range(NUM_SCANS)]
    table.write_text("\n".join(("patient,Emphysema,Lung nodule,Age", *lines)))
    study.labels.write_text(LABELS)
    config.write_text(f"{SETTINGS}data: {{cache: {json.dumps(str(folder / 'cache'))}}}\n")
    wanted = ("--labels", table, "--classes", study.labels, "--out", study.manifest)
    study.do("dataset", "scan", scans, *wanted)
    study.do("dataset", "check", study.manifest, "--out", folder / "check.json", "--processes", 1)
    study.do("dataset", "split", study.manifest, "--hold-out", 0.2, "--validation", 0.2)
    data = ("--data", study.manifest, "--out", study.run)
    study.do("train", config, *data, "--labels", study.labels, "--processes", "1")
    torch = ("--engine", "torch")
    alone = ("--out", study.judged, "--processes", "1")
    study.do("evaluate", study.classifier, study.manifest, *alone, *torch)
    chosen = ("--classifier", study.classifier, *torch)
    some = [scans / f"P{number}" for number in LOOKED_AT]
    study.do("classify", *some, *chosen, "--write", "all", "--explain", "--out", study.results)
    study.do(
        "audit-model", scans / "P1" / "CT", "--finding", "nodule", "--out", study.audit, *chosen
    )
    return study


def test_the_manifest_has_a_column_per_finding_and_nothing_where_it_is_not_known(
    study: Study,
) -> None:
    manifest = read_manifest(study.manifest)
    assert manifest.labels == ("emphysema", "nodule")
    by_patient = {row.patient: row for row in manifest.rows}
    for number in range(NUM_SCANS):
        said = {"0": False, "1": True, "no": False, "yes": True, "": None}
        thin, ball = cells_of(number)
        expected = {"emphysema": said[thin], "nodule": said[ball]}
        assert by_patient[f"P{number + 1}"].findings == expected
        assert by_patient[f"P{number + 1}"].age == 47


def test_every_part_of_the_split_has_scans_with_and_without_each_finding(study: Study) -> None:
    manifest = read_manifest(study.manifest)
    for split in ("training", "validation", "test"):
        rows = [row for row in manifest.rows if row.split == split]
        for name in manifest.labels:
            assert {row.findings[name] for row in rows} >= {True, False}


def test_the_card_has_a_threshold_and_its_rule_per_finding(study: Study) -> None:
    card = Card.read(study.classifier)
    assert card.findings is not None
    assert [each.rule.split(":")[0] for each in card.findings] == ["Youden's index"] * 2
    assert card.label_set.are_findings
    assert card.label_set.of("emphysema").words == "Emphysema of the lung"
    assert card.abstention is None


def test_both_findings_are_learned_although_they_are_independent(study: Study) -> None:
    metrics = json.loads((study.judged / "metrics.json").read_text())
    for name in ("emphysema", "nodule"):
        assert metrics["per_class"][name]["auc"]["value"] > 0.8
    assert metrics["overall"]["macro_auc"]["low"] is not None
    assert "Not known of nodule: 1 scans, left out of its figures." in metrics["warnings"]
    assert metrics["per_class"]["nodule"]["sensitivity"]["total"] == NUM_SCANS // 2
    assert metrics["per_class"]["nodule"]["specificity"]["total"] == NUM_SCANS // 2 - 1
    assert not (study.judged / "confusion.csv").exists()


def test_a_result_says_of_each_finding_whether_it_is_there(study: Study) -> None:
    card = Card.read(study.classifier)
    for number in LOOKED_AT:
        document = json.loads((study.results / f"P{number}" / "result.json").read_text())
        assert document["schema_version"] == "2.3"
        found = document["findings"]
        assert list(found) == ["emphysema", "nodule"]
        for name, each in found.items():
            assert each["threshold"] == card.thresholds[name]
            assert each["probability"] == document["probabilities"][name]
            assert each["is_present"] is (each["probability"] >= each["threshold"])
        present = [name for name, each in found.items() if each["is_present"]]
        assert document["decision"] == ("; ".join(present) or "no finding")


def test_the_structured_report_codes_present_findings_and_measures_absent_ones(
    study: Study,
) -> None:
    from highdicom.sr import Comprehensive3DSR

    for number in LOOKED_AT:
        folder = study.results / f"P{number}"
        found = json.loads((folder / "result.json").read_text())["findings"]
        made = Comprehensive3DSR.from_dataset(pydicom.dcmread(folder / "report.dcm"))
        groups = made.content.get_image_measurement_groups()
        codes = {"emphysema": "87433001", "nodule": "nodule"}
        for name, each in found.items():
            own = [g for g in groups if g.finding_type and g.finding_type.value == codes[name]]
            assert bool(own) is each["is_present"]
            if own:
                assert own[0].get_measurements()[0].value == pytest.approx(
                    each["probability"], abs=1e-6
                )
            else:
                (others,) = [g for g in groups if g.tracking_identifier == "not called present"]
                names = [m.name.meaning for m in others.get_measurements()]
                words = {"emphysema": "Emphysema of the lung", "nodule": "nodule"}
                assert f"Probability of {words[name]}" in names


def test_the_report_says_that_findings_stand_by_themselves(study: Study) -> None:
    page = (study.results / "P1" / "report.html").read_text()
    assert "Each finding has a probability of its own" in page
    assert "Emphysema of the lung (present from" in page


def test_the_audit_asks_about_one_finding(study: Study) -> None:
    (file,) = study.audit.glob("*.json")
    audit = json.loads(file.read_text())
    assert audit["assumption"].startswith("Asked about one finding: nodule, present from")
    assert audit["scans"][0]["decision"] in ("nodule", "no nodule")


def test_a_finding_that_there_is_not_is_named_before_anything_is_done(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("classify", study.scans / "P1", "--classifier", study.classifier)
    said = study.refused(capsys, *ask, "--finding", "nodul", "--explain", "--out", study.results)
    assert "There is no finding 'nodul'. Did you mean 'nodule'?" in said
    audit = ("audit-model", study.scans / "P1", "--classifier", study.classifier)
    assert "Name it with --finding: emphysema, nodule." in study.refused(capsys, *audit)
    other = study.folder / "other.yaml"
    other.write_text("kind: findings\nlabels: [emphysema, effusion]\n")
    said = study.refused(capsys, "dataset", "check", study.manifest, "--labels", other)
    assert "manifest.csv has no column 'finding_effusion'" in said


def test_findings_and_classes_are_not_taken_for_each_other(
    study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    classes = tmp_path / "classes.csv"
    with study.manifest.open() as file:
        rows = [
            {"scan": study.scans / "P1" / "CT", "patient": r["patient"], "label": "emphysema"}
            for r in list(csv.DictReader(file))[:1]
        ]
    with classes.open("w") as file:
        writer = csv.DictWriter(file, ["scan", "patient", "label"])
        writer.writeheader()
        writer.writerows(rows)
    said = study.refused(capsys, "evaluate", study.classifier, classes, "--out", tmp_path / "out")
    assert "emphysema, nodule are findings" in said
    assert "Expected a column 'finding_NAME' per finding" in said

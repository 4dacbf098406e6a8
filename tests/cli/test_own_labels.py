"""From a spreadsheet with a column "Emphysema" to a classifier, its report and its SR.

What a stranger does with scans and labels of his own, command by command; nothing that comes out
may speak of the diseases that the shipped classifier knows.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from here import work_here
from phantoms import LUNG_HU, chest, chest_grid
from quick_figures import one_of_each

from chestct.card import Card
from chestct.cli import main
from chestct.datasets.manifest import read_manifest
from chestct.simulate import write_dicom_series

NUM_SCANS = 8
LOOKED_AT = ("P1", "P2", "P3")
"""Patients of both classes, whose scans are classified."""
LUNGS_HU = (-950, -800)
LABELS = """
labels:
  - name: no emphysema
    wording: No emphysema
    negative: true
    values: [no, 0]
  - name: emphysema
    wording: Emphysema of the lung
    code: {value: 87433001, scheme: SCT, meaning: Pulmonary emphysema}
    color: "#0072B2"
    values: [yes, 1]
"""
SETTINGS = """
labels: [to, be said]
network: {name: roi_resnet18, settings: {width: 2, gating: all, head_units: 4}}
recipe:
  name: roi_resnet_recommended
  overrides: {input_shape: [40, 36, 44], spacing_mm: [10.0, 10.0, 10.0], lungs: published}
training: {epochs: 1, batch_size: 4, learning_rate: 0.003, seed: 3}
"""
FOREIGN = re.compile(r"covid|pneumonia|\bcap\b", re.IGNORECASE)
PICTURE = re.compile(r"(?<=;base64,)[A-Za-z0-9+/=]+")


class Study:
    """The scans, the spreadsheet and all that the commands made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scans = folder, folder / "scans"
        self.manifest, self.run = folder / "manifest.csv", folder / "run"
        self.classifier = self.run / "fold-1" / "classifier"
        self.results, self.audit = folder / "results", folder / "audit"

    def do(self, *arguments: object) -> None:
        said = [str(argument) for argument in arguments]
        assert main(said) == 0, said


def write_scans(folder: Path) -> None:
    """Chests as DICOM, every second one with lungs as thin as in emphysema."""
    rng = np.random.default_rng(0)
    plain = chest(chest_grid((36, 36, 42), (10.0, 9.0, 9.0)))
    for number in range(NUM_SCANS):
        lungs_hu = LUNGS_HU[number % 2 == 0]
        voxels = np.where(plain.voxels == LUNG_HU, lungs_hu, plain.voxels)
        voxels = np.clip(voxels + rng.normal(0, 20, voxels.shape), -1024, 3000)
        scan = plain.with_voxels(voxels.round().astype(np.int16))
        write_dicom_series(scan, folder / f"P{number + 1}" / "CT", uid_seed=number)


def write_spreadsheet(file: Path) -> Path:
    """As Excel saves a table in Germany: semicolons, a byte-order mark, columns in any order."""
    answers = ("Yes", "no")
    rows = [f"{40 + n};P{n + 1};{answers[n % 2]};Ward {n}" for n in range(NUM_SCANS)]
    text = "\r\n".join(("Age;Patient ID;Emphysema;Ward", *rows))
    file.write_text(text, encoding="utf-8-sig")
    return file


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with one_of_each(), pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Everything, in the order in which a user would do it."""
    study = Study(tmp_path_factory.mktemp("emphysema"))
    folder, scans = study.folder, study.scans
    write_scans(scans)
    table = write_spreadsheet(folder / "emphysema.csv")
    labels, config = folder / "labels.yaml", folder / "settings.yaml"
    labels.write_text(LABELS)
    config.write_text(f"{SETTINGS}data: {{cache: {json.dumps(str(folder / 'cache'))}}}\n")
    columns = ("--label-column", "emphysema", "--patient-column", "patient id")
    wanted = ("--labels", table, *columns, "--classes", labels, "--out", study.manifest)
    study.do("dataset", "scan", scans, *wanted)
    own = ("--labels", labels, "--processes", "1")
    study.do("dataset", "check", study.manifest, *own)
    study.do("dataset", "prepare", study.manifest, "--settings", config, *own)
    data = ("--data", study.manifest, "--out", study.run)
    study.do("train", config, *data, "--folds", "2", *own)
    judged = folder / "judged"
    torch = ("--engine", "torch")
    alone = ("--out", judged, "--processes", "1")
    study.do("evaluate", study.classifier, study.manifest, *alone, *torch)
    chosen = ("--classifier", study.classifier, *torch)
    outputs = ("--explain", "--write", "all", "--out", study.results)
    some = [scans / patient for patient in LOOKED_AT]
    study.do("classify", *some, "--recursive", *chosen, *outputs)
    study.do("audit-model", scans / "P1" / "CT", "--out", study.audit, *chosen)
    return study


def test_the_manifest_has_the_classes_and_the_spreadsheets_other_columns(study: Study) -> None:
    manifest = read_manifest(study.manifest, ("no emphysema", "emphysema"))
    first = manifest.rows[0]
    assert (first.scan, first.patient, first.label) == ("scans/P1/CT", "P1", "emphysema")
    assert (first.age, dict(first.others)) == (40.0, {"Ward": "Ward 0"})
    assert manifest.cases == {"no emphysema": 4, "emphysema": 4}


def test_scans_were_prepared_as_the_training_wanted_them(study: Study) -> None:
    log = (study.folder / "run" / "settings.yaml").read_text()
    assert "name: emphysema" in log
    inputs = [path for path in (study.folder / "cache").rglob("*") if path.is_file()]
    assert len([path for path in inputs if "facts" not in path.parts]) >= NUM_SCANS


def test_the_card_keeps_all_that_was_said_of_the_classes(study: Study) -> None:
    card = Card.read(study.classifier)
    assert card.labels == ("no emphysema", "emphysema")
    assert card.label_set.negative == "no emphysema"
    assert card.label_set.words("emphysema") == "Emphysema of the lung"
    assert card.label_set.of("emphysema").code == ("87433001", "SCT", "Pulmonary emphysema")


def test_reports_result_and_answers_speak_of_emphysema(study: Study) -> None:
    with (study.results / "answers.csv").open(encoding="utf-8") as stream:
        answers = list(csv.DictReader(stream))
    assert [answer["scan"] for answer in answers] == [f"{patient}-CT" for patient in LOOKED_AT]
    assert {"probability_no emphysema", "probability_emphysema"} <= answers[0].keys()
    words = {"emphysema": "Emphysema of the lung", "no emphysema": "No emphysema"}
    for answer in answers:
        place = study.results / answer["scan"]
        report = (place / "report.html").read_text(encoding="utf-8")
        assert f"<h1>{words[answer['decision']]}</h1>" in report
        assert "background:#0072B2" in report
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
        assert result["decision"] == answer["decision"]
        assert set(result["probabilities"]) == set(words)
        has_involved = result["explanation"]["involved_ml"] is not None
        assert has_involved == (answer["decision"] == "emphysema")
    index = (study.results / "index.html").read_text(encoding="utf-8")
    assert f"{len(LOOKED_AT)} scans" in index
    assert 'href="P1-CT/report.html"' in index


def test_the_structured_report_codes_the_finding(study: Study) -> None:
    codes = {"emphysema": ("87433001", "SCT"), "no emphysema": ("no emphysema", "99CHESTCT")}
    reports = sorted(study.results.rglob("*report.dcm"))
    assert len(reports) == len(LOOKED_AT)
    for file in reports:
        result = json.loads((file.parent / "result.json").read_text(encoding="utf-8"))
        text = str(pydicom.dcmread(file))
        value, scheme = codes[result["decision"]]
        assert f"'{value}'" in text
        assert f"'{scheme}'" in text


def test_the_audit_knows_the_negative_class(study: Study) -> None:
    audit = json.loads((study.audit / "model-audit.json").read_text(encoding="utf-8"))
    (scan,) = audit["scans"]
    assert scan["decision"] in ("emphysema", "no emphysema")
    assert scan["is_finding"] == (scan["decision"] == "emphysema")
    assert audit["assumption"] == ""


def test_nothing_speaks_of_the_diseases_of_the_shipped_classifier(study: Study) -> None:
    texts = {".html", ".json", ".md", ".csv", ".yaml", ".jsonl"}
    files = [path for path in study.folder.rglob("*") if path.is_file()]
    named = [path for path in files if path.suffix in texts]
    assert {".html", ".json", ".md", ".csv"} <= {path.suffix for path in named}
    # Pictures within a page are letters by chance.
    words = {path: PICTURE.sub("", path.read_text(encoding="utf-8")) for path in named}
    spoken = {path: FOREIGN.search(text) for path, text in words.items()}
    spoken |= {
        path: FOREIGN.search(str(pydicom.dcmread(path, stop_before_pixels=True)))
        for path in study.results.rglob("*.dcm")
    }
    assert {path.name: found[0] for path, found in spoken.items() if found} == {}

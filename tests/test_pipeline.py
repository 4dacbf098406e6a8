from __future__ import annotations

import gzip
import html
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain, repeat
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import LUNG_HU, chest
from tiny import RECIPE, save_tiny_classifier

from chestct import pipeline
from chestct.analysis import SCAN_FACTS
from chestct.classifier import Classifier, load_classifier, save_classifier
from chestct.cli import main, simulate
from chestct.engines import make_engine
from chestct.errors import ReadError, UnknownNameError
from chestct.familiarity import fit_familiarity
from chestct.labels import THREE_CLASSES, UNSUITABLE
from chestct.pipeline import (
    _describe_scan,
    analyse_scan,
    classify_scan,
    needed_memory,
    scan_name,
    scan_names,
)
from chestct.result import UNLIKE
from chestct.simulate import write_dicom_series
from chestct.studies.model_audit import CHANGES
from chestct.volume import Grid, ScanSource, Volume
from chestct.writers.nifti import write_nifti


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "classifier")


@pytest.fixture(scope="module")
def classifier(tiny_folder: Path) -> Classifier:
    return load_classifier(tiny_folder)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "p07"
    write_dicom_series(whole_hu(chest()), folder)
    return folder


def whole_hu(volume: Volume) -> Volume:
    return volume.with_voxels(volume.voxels.round().astype(np.int16))


def test_a_dicom_folder_goes_in_and_an_answer_comes_out(scan: Path, classifier: Classifier) -> None:
    result = classify_scan(scan, classifier, engine="torch")
    assert result.scan == "p07"
    assert tuple(result.probabilities) == THREE_CLASSES
    assert sum(result.probabilities.values()) == pytest.approx(1.0)
    assert result.decision == max(result.probabilities, key=result.probabilities.__getitem__)
    assert result.is_suitable
    assert result.notice == classifier.card.notice
    assert result.lung_volume_l > 1.0


def test_the_answer_is_that_of_the_parts(scan: Path, classifier: Classifier) -> None:
    engine = make_engine(classifier, "torch")
    analysis = analyse_scan(scan, classifier, engine=engine)
    expected = classifier.probabilities(analysis.prepared, engine)
    assert analysis.result.probabilities == expected
    assert analysis.prepared.recipe == RECIPE


def test_without_a_classifier_the_shipped_one_is_loaded_once(
    scan: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load() -> Classifier:
        loaded.append(classifier)
        return classifier

    monkeypatch.setattr("chestct.pipeline.load_classifier", load)
    pipeline._default_classifier.cache_clear()
    results = [classify_scan(scan, engine="torch") for _ in range(2)]
    pipeline._default_classifier.cache_clear()
    assert len(loaded) == 1
    assert results[0].probabilities == results[1].probabilities
    assert results[0].provenance.classifier == "tiny"


def test_provenance_says_what_made_the_answer(scan: Path, classifier: Classifier) -> None:
    provenance = classify_scan(scan, classifier, engine="torch").provenance
    first = pydicom.dcmread(next(scan.iterdir()), stop_before_pixels=True)
    assert provenance.series_uid == first.SeriesInstanceUID
    assert provenance.classifier == "tiny"
    assert provenance.weights_sha256 == classifier.weights_sha256
    assert provenance.recipe == RECIPE.name
    assert provenance.engine == "torch float32"
    assert provenance.trained_on == classifier.card.trained_on


def test_timings_add_up(scan: Path, classifier: Classifier) -> None:
    seconds = classify_scan(scan, classifier, engine="torch").timings_s
    stages = (seconds.read, seconds.prepare, seconds.network)
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(seconds.total)


@pytest.fixture(scope="module")
def smaller_lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's mask of the phantom's lungs: their lower halves are missing."""
    volume = chest()
    lungs = np.asarray(volume.voxels == LUNG_HU)
    lungs[:30] = False
    return write_nifti(tmp_path_factory.mktemp("masks") / "mask.nii.gz", lungs, volume.grid)


def test_lungs_that_are_given_are_used_and_said(
    scan: Path, smaller_lungs: Path, classifier: Classifier
) -> None:
    found = classify_scan(scan, classifier, engine="torch")
    given = classify_scan(scan, classifier, engine="torch", lungs=smaller_lungs)
    assert 0 < given.lung_volume_l < 0.8 * found.lung_volume_l
    assert any("mask that was given" in warning for warning in given.warnings)
    assert not any("mask that was given" in warning for warning in found.warnings)


def test_the_command_line_takes_a_mask_for_one_scan(
    scan: Path, smaller_lungs: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [str(scan), "--classifier", str(tiny_folder), "--lungs", str(smaller_lungs)]
    assert main(["classify", *said, "--engine", "torch", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("mask that was given" in warning for warning in warnings)
    assert main(["classify", str(scan), *said, "--engine", "torch"]) == 2
    assert "one at a time" in capsys.readouterr().err


def test_prepare_takes_a_mask_too(scan: Path, smaller_lungs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = ["--recipe", "maseres_published", "--lungs", str(smaller_lungs)]
    assert main(["prepare", str(scan), "--out", str(out), *said]) == 0
    kept = np.asarray(nibabel.load(out / "scan_lungs.nii.gz").dataobj) > 0
    assert kept.sum() == (np.asarray(nibabel.load(smaller_lungs).dataobj) > 0).sum()


def test_a_scan_without_lungs_is_unsuitable_with_a_reason(
    tmp_path: Path, classifier: Classifier
) -> None:
    write_dicom_series(whole_hu(chest(has_lungs=False)), tmp_path / "head")
    result = classify_scan(tmp_path / "head", classifier, engine="torch")
    assert result.decision == UNSUITABLE
    assert result.probabilities == {}
    assert result.unsuitable_reasons
    assert result.timings_s.network == 0.0


def test_only_listed_facts_leave_the_program() -> None:
    source = ScanSource(
        "dicom", facts={"kernel": "B60", "patient_name": "Doe^Jane"}, left_out={"localizer": 2}
    )
    facts = _describe_scan(replace(chest(), source=source))
    assert set(facts) <= set(SCAN_FACTS)
    assert facts["kernel"] == "B60"
    assert facts["left_out"] == "2 localizer"
    assert "Doe" not in json.dumps(facts)


SECRETS = {
    "PatientName": "Quibbleton^Zebedee",
    "PatientID": "MRN-8675309-X",
    "PatientBirthDate": "19470313",
    "AccessionNumber": "ACC-555-777",
    "InstitutionName": "Saint Nowhere Infirmary",
    "ReferringPhysicianName": "Snodgrass^Ermintrude",
    "StudyDescription": "Thorax of Quibbleton",
    "SeriesDescription": "Lung Quibbleton",
}
SECRET_WORDS = ("Quibbleton", "Zebedee", "8675309", "19470313", "ACC-555", "Nowhere", "Snodgrass")


@pytest.fixture(scope="module")
def identified_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series full of what identifies a patient, in files named after one."""
    folder = tmp_path_factory.mktemp("identified") / "scan"
    for path in write_dicom_series(whole_hu(chest()), folder):
        dataset = pydicom.dcmread(path)
        for keyword, value in SECRETS.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path.with_name(f"Quibbleton_{path.name}"))
        path.unlink()
    return folder


def words_found(content: bytes) -> list[str]:
    """Secret words in a file, packed or not, in the encodings that text is stored in."""
    unpacked = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return [
        word
        for word in SECRET_WORDS
        for encoding in ("utf-8", "utf-16-le", "utf-16-be")
        if word.encode(encoding) in unpacked or word.encode(encoding) in content
    ]


def test_no_identity_of_the_patient_reaches_any_output(
    identified_scan: Path,
    tmp_path: Path,
    tiny_folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    command = ["classify", str(identified_scan), "--classifier", str(tiny_folder)]
    command += ["--engine", "torch", "--explain", "--write", "all", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(["classify", str(identified_scan), "--classifier", str(tiny_folder), "--json"]) == 0
    printed = capfd.readouterr()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    plain = [path for path in files if path.suffix != ".dcm"]
    assert sorted(path.name for path in plain) == [
        "heat-map.nii.gz",
        "lungs.nii.gz",
        "preview.png",
        "report.html",
        "result.json",
    ]
    for path in plain:
        assert words_found(path.read_bytes()) == [], path.name
    assert words_found(" ".join(str(path) for path in files).encode()) == []
    assert words_found((printed.out + printed.err + caplog.text).encode()) == []
    # DICOM objects say whose they are, by design; so the search does find what is there.
    objects = [path for path in files if path.suffix == ".dcm"]
    assert len(objects) == 3
    for path in objects:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert header.PatientName == SECRETS["PatientName"]
        assert "InstitutionName" not in header
        assert "Quibbleton" in words_found(path.read_bytes()[:4096])


def test_no_identity_of_the_patient_reaches_an_audit_of_the_model(
    identified_scan: Path,
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {"thick": CHANGES["thick"]})
    command = ["audit-model", str(identified_scan), "--classifier", str(tiny_folder)]
    assert main([*command, "--engine", "torch", "--out", str(tmp_path / "audit")]) == 0
    printed = capfd.readouterr()
    files = [path for path in (tmp_path / "audit").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["model-audit.json", "model-audit.md"]
    for path in files:
        assert words_found(path.read_bytes()) == [], path.name
    assert words_found((printed.out + printed.err + caplog.text).encode()) == []


def test_no_identity_of_the_patient_reaches_the_index_page(
    identified_scan: Path,
    classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The demonstration with a scan full of names where it would simulate one.
    monkeypatch.setattr(simulate, "_simulate_scan", lambda *_: identified_scan)
    monkeypatch.setattr(simulate, "load", lambda *_: (classifier, make_engine(classifier, "torch")))
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capfd.readouterr()
    page = (tmp_path / "demo" / "index.html").read_bytes()
    assert page.count(b"report.html") >= 3
    assert words_found(page) == []
    assert words_found((printed.out + printed.err).encode()) == []


def test_no_identity_of_the_patient_is_in_the_result_or_its_analysis(
    identified_scan: Path, classifier: Classifier
) -> None:
    analysis = analyse_scan(identified_scan, classifier, engine="torch")
    shown = json.dumps(asdict(analysis.result)) + repr(analysis.volume.source) + repr(analysis.path)
    assert words_found(shown.encode()) == []
    assert words_found(repr(analysis).encode()) == []


def test_an_explanation_is_made_when_asked_for(scan: Path, classifier: Classifier) -> None:
    plain = analyse_scan(scan, classifier, engine="torch")
    assert plain.explanation is None
    explained = analyse_scan(scan, classifier, engine="torch", explain="gradcam")
    assert explained.explanation is not None
    assert explained.explanation.explanation.label == explained.result.decision
    assert explained.explanation.heat.grid == explained.volume.grid
    assert explained.result.probabilities == plain.result.probabilities


class _Counting:
    """A `Watcher` that keeps what it is told."""

    def __init__(self) -> None:
        self.read: list[Path] = []
        self.steps: list[tuple[int, int]] = []

    def was_read(self, volume: Volume, path: Path) -> None:
        self.read.append(path)

    def explaining(self, done: int, num: int) -> None:
        self.steps.append((done, num))


def test_auto_explains_as_the_card_says_and_slow_methods_tell_how_far_they_are(
    scan: Path, classifier: Classifier
) -> None:
    card = classifier.card.model_copy(update={"explanation": "layercam:layer2"})
    named = replace(classifier, card=card)
    analysis = analyse_scan(scan, named, engine="torch", explain="auto")
    assert analysis.explanation is not None
    explanation = analysis.explanation.explanation
    assert (explanation.method, explanation.layer) == ("layercam", "layer2")
    watcher = _Counting()
    analyse_scan(scan, classifier, engine="torch", explain="occlusion", watcher=watcher)
    assert watcher.steps[-1][0] == watcher.steps[-1][1] > 1
    assert watcher.read == [scan]


def test_an_unknown_explanation_is_said_before_anything_is_read(
    tmp_path: Path, classifier: Classifier
) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        analyse_scan(tmp_path / "nothing", classifier, engine="torch", explain="gradcan")


def test_an_unsuitable_scan_has_no_explanation(tmp_path: Path, classifier: Classifier) -> None:
    write_dicom_series(whole_hu(chest(has_lungs=False)), tmp_path / "head")
    analysis = analyse_scan(tmp_path / "head", classifier, engine="torch", explain="gradcam")
    assert analysis.explanation is None
    assert analysis.result.decision == UNSUITABLE


def test_a_path_that_is_not_there_is_a_read_error(tmp_path: Path, classifier: Classifier) -> None:
    with pytest.raises(ReadError):
        classify_scan(tmp_path / "nothing", classifier, engine="torch")


@pytest.mark.parametrize(
    ("path", "name"), [("a/P001", "P001"), ("a/P001/", "P001"), ("x.nii.gz", "x.nii.gz")]
)
def test_a_scan_is_named_after_the_last_part_of_its_path(path: str, name: str) -> None:
    assert scan_name(path) == name


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert scan_name(".") == tmp_path.name


def test_a_path_that_ends_in_dots_has_the_name_of_the_folder_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p07" / "dicom").mkdir(parents=True)
    assert scan_name(tmp_path / "p07" / "dicom" / "..") == "p07"
    monkeypatch.chdir(tmp_path / "p07" / "dicom")
    assert scan_name("..") == "p07"
    assert scan_name("../..") == tmp_path.name
    (tmp_path / "loop").symlink_to("loop")
    for nowhere in ("/", "/..", tmp_path / "loop" / ".."):
        assert scan_name(nowhere) not in ("", "..")


def test_a_name_that_is_not_text_is_made_one() -> None:
    assert scan_name(os.fsdecode(b"scans/M\xfcller")).encode() == "M\ufffdller".encode()
    assert scan_name("scans/Müller") == "Müller"


def promising(folder: Path, abstain_below: float) -> Classifier:
    """The tiny classifier with an abstention threshold in its card."""
    save_tiny_classifier(folder)
    card = json.loads((folder / "card.json").read_text())
    assert card["abstention"] is None
    card["abstention"] = {
        "abstain_below": abstain_below,
        "wished_error": 0.05,
        "level": 0.95,
        "coverage": 0.8,
        "risk": 0.01,
        "risk_bound": 0.04,
        "num_scans": 120,
    }
    (folder / "card.json").write_text(json.dumps(card))
    return load_classifier(folder)


def test_an_answer_below_the_card_s_threshold_is_called_uncertain(
    scan: Path, tmp_path: Path
) -> None:
    result = classify_scan(scan, promising(tmp_path / "strict", 0.999), engine="torch")
    assert result.is_uncertain
    assert result.decision in THREE_CLASSES
    largest = max(result.probabilities.values())
    assert result.warnings[0].startswith(
        f"Uncertain: the largest probability is {largest:.3f}. Below 0.999"
    )
    assert (
        "of the 120 scans that this threshold was chosen on, 80 % lie above it"
        in result.warnings[0]
    )


def test_an_answer_above_the_threshold_is_not_and_one_without_a_threshold_never_is(
    scan: Path, classifier: Classifier, tmp_path: Path
) -> None:
    for certain in (promising(tmp_path / "lax", 0.01), classifier):
        result = classify_scan(scan, certain, engine="torch")
        assert not result.is_uncertain
        assert not any("Uncertain" in warning for warning in result.warnings)


def test_an_unsuitable_scan_is_not_called_uncertain(tmp_path: Path) -> None:
    write_dicom_series(whole_hu(chest(has_lungs=False)), tmp_path / "head")
    result = classify_scan(tmp_path / "head", promising(tmp_path / "strict", 0.999), engine="torch")
    assert result.decision == UNSUITABLE
    assert not result.is_uncertain


def test_result_json_and_report_show_that_an_answer_is_uncertain(
    scan: Path, tmp_path: Path
) -> None:
    promising(tmp_path / "strict", 0.999)
    command = ["classify", str(scan), "--classifier", str(tmp_path / "strict"), "--engine", "torch"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    (found,) = (tmp_path / "out").rglob("result.json")
    document = json.loads(found.read_text())
    assert document["is_uncertain"] is True
    assert document["warnings"][0].startswith("Uncertain")
    assert document["warnings"][0] in html.unescape((found.parent / "report.html").read_text())


def test_equal_scan_names_get_their_parents_name_the_same_in_any_order() -> None:
    paths = ["a/p01/ct/dicom", "a/p02/ct/dicom", "b/dicom", "b/other", "b/dicom"]
    names = ["p01-ct-dicom", "p02-ct-dicom", "b-dicom", "other", "b-dicom"]
    assert scan_names(paths) == names
    assert scan_names(paths[::-1]) == names[::-1]
    assert scan_names(["b/dicom", "other"]) == ["dicom", "other"]
    assert scan_names([]) == []


def estranged(folder: Path) -> Classifier:
    """The tiny classifier, which learned from scans that no scan is like."""
    known = load_classifier(save_tiny_classifier(folder))
    rng = np.random.default_rng(0)
    features = rng.normal(50, 1, (20, known.network.fc1.in_features))
    measure = fit_familiarity(features[:12], np.arange(12) % 3, features[12:])
    save_classifier(folder, known.network, known.card, measure)
    return load_classifier(folder)


def test_an_answer_on_a_scan_unlike_those_learned_from_is_never_certain(
    scan: Path, tmp_path: Path
) -> None:
    result = classify_scan(scan, estranged(tmp_path / "c"), engine="torch")
    assert result.is_unlike
    assert result.is_uncertain
    assert result.doubt == UNLIKE
    assert result.distance_percentile == 100.0
    assert result.distance is not None
    assert f"Its distance from them is {result.distance:.2f}" in result.warnings[0]


def test_result_json_report_and_terminal_say_that_a_scan_is_unlike(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    estranged(tmp_path / "c")
    command = ["classify", str(scan), "--classifier", str(tmp_path / "c"), "--engine", "torch"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert UNLIKE in " ".join(capsys.readouterr().out.replace("│", " ").split())
    (found,) = (tmp_path / "out").rglob("result.json")
    document = json.loads(found.read_text())
    assert (document["is_unlike"], document["is_uncertain"]) == (True, True)
    assert document["distance"] > 0
    assert document["distance_percentile"] == 100.0
    assert f"; {UNLIKE}" in html.unescape((found.parent / "report.html").read_text())


def test_a_classifier_that_cannot_tell_gives_no_distance(
    scan: Path, classifier: Classifier
) -> None:
    result = classify_scan(scan, classifier, engine="torch")
    assert (result.distance, result.distance_percentile) == (None, None)
    assert not result.is_unlike


def test_a_batch_survives_a_scan_that_memory_is_too_small_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits, large = chest(), chest()
    folder = tmp_path / "tiny"
    save_tiny_classifier(folder)
    write_nifti(tmp_path / "fits.nii.gz", fits.voxels, fits.grid)
    write_nifti(tmp_path / "large.nii.gz", large.voxels, large.grid)
    available = chain([2**40, 0], repeat(2**40))  # read, classified, and the rest
    monkeypatch.setattr("chestct.memory._available_bytes", lambda root: next(available))
    scans = [str(tmp_path / name) for name in ("large.nii.gz", "fits.nii.gz")]
    assert main(["classify", *scans, "--classifier", str(folder), "--json"]) == 1
    said = capsys.readouterr()
    assert "GB of memory more, and 0.0 GB are free here" in said.err
    assert json.loads(said.out)["scan"] == "fits.nii.gz"


TAKEN_MB = {
    (150, 0, False): 224,
    (300, 0, False): 237,
    (600, 0, False): 375,
    (150, 20, False): 392,
    (300, 20, False): 609,
    (150, 0, True): 673,
    (300, 0, True): 721,
    (600, 0, True): 959,
    (150, 20, True): 1495,
    (300, 20, True): 2412,
}
"""Slices of 512 x 512, degrees off the body's axes, with a heat-map and all outputs: megabytes that
`benchmarks/memory.py` measured."""


@pytest.mark.parametrize("measured", TAKEN_MB)
def test_what_a_scan_takes_was_measured_to_be_less_than_reckoned_and_not_by_far(
    measured: tuple[int, float, bool],
) -> None:
    num_slices, degrees, explains = measured
    turn = math.radians(degrees)
    up, back = (0.0, math.sin(turn), math.cos(turn)), (0.0, math.cos(turn), -math.sin(turn))
    shape = (num_slices, 512, 512)
    grid = Grid(shape, (300 / num_slices, 0.7, 0.7), direction=(up, back, (1.0, 0.0, 0.0)))
    volume = Volume(grid, np.broadcast_to(np.int16(0), shape))
    reckoned_mb = needed_memory(volume, explains=explains) / 1e6
    assert TAKEN_MB[measured] < reckoned_mb < 1.6 * TAKEN_MB[measured]

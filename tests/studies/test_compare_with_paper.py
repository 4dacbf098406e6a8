from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chestct.cli import main
from chestct.errors import ChestCTError, ReadError
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions, write_predictions
from chestct.labels import THREE_CLASSES, TWO_CLASSES
from chestct.studies.compare_with_paper import compare_with_paper
from chestct.studies.published import maseres_facts, roi_facts

Output = pytest.CaptureFixture[str]
BOOTSTRAP = Bootstrap(50)


def write_run(
    folder: Path,
    network: str,
    decided: tuple[str, ...],
    truth: tuple[str, ...],
    labels: tuple[str, ...] = THREE_CLASSES,
    **more: object,
) -> Path:
    """A run folder that holds these decisions; `more` is gating, t and number of folds."""
    folder.mkdir(parents=True)
    recipe = "maseres_paper" if labels == TWO_CLASSES else "roi_resnet_paper"
    overrides = {"salient_threshold": more["t"]} if "t" in more else {}
    settings = {
        "labels": list(labels),
        "network": {"name": network, "settings": {"gating": more["gating"]} if more else {}},
        "recipe": {"name": recipe, "overrides": overrides},
    }
    record = {"settings": settings, "folds": more.get("folds")}
    (folder / "run.json").write_text(json.dumps(record))
    names = tuple(f"scan{number}" for number in range(len(truth)))
    probabilities = np.eye(len(labels))[[labels.index(label) for label in decided]]
    indices = np.array([labels.index(label) for label in truth])
    found = Predictions(names, names, indices, probabilities, labels)
    write_predictions(found, folder / "predictions.csv")
    return folder


def test_the_published_predictions_of_row_18_agree_with_their_recomputed_figures(
    tmp_path: Path,
) -> None:
    facts = roi_facts()
    run = write_run(
        tmp_path / "run", "roi_resnet101", facts.predicted[18], facts.official,
        gating="figure", t=0.8,
    )  # fmt: skip
    (found,) = compare_with_paper(run, BOOTSTRAP)
    assert found.place == "Table 7, row 18: ResNet-101, RoI-aware, t = 80 %"
    for each in found.figures:
        assert each.recomputed is not None
        assert (each.ours.hits, each.ours.total) == (each.recomputed.hits, each.recomputed.total)
    by_name = {each.figure: each for each in found.figures}
    accuracy = by_name["accuracy (AC)"]
    assert (accuracy.published, accuracy.ours.hits, accuracy.ours.total) == (0.9, 115, 130)
    assert accuracy.is_inside
    assert by_name["PPV CAP (SPE)"].published == 0.8
    assert by_name["specificity CAP"].published is None
    assert by_name["specificity CAP"].is_inside is None
    assert len(found.figures) == 10


def test_a_cross_validation_stands_beside_table_6_which_cannot_be_recomputed(
    tmp_path: Path,
) -> None:
    facts = roi_facts()
    run = write_run(
        tmp_path / "run", "roi_resnet18", facts.predicted[1], facts.official,
        gating="none", t=0.6, folds=5,
    )  # fmt: skip
    (found,) = compare_with_paper(run, BOOTSTRAP)
    assert found.place == "Table 6, row 1: ResNet-18, plain, t = 60 %"
    assert all(each.recomputed is None for each in found.figures)
    assert any("no predictions of Table 6" in remark for remark in found.remarks)
    assert any("5 folds pooled" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("gating", "t", "row", "words"),
    [
        ("published", 0.7, 2, "confine nothing to the lungs"),
        ("all", 0.7, 5, "placed as 'all'"),
        ("figure", 0.5, 4, "uses t = 50 %: the nearest row"),
        ("none", None, 1, "uses all slices: the nearest row"),
    ],
)
def test_a_run_that_the_paper_has_no_row_for_stands_beside_the_nearest(
    tmp_path: Path, gating: str, t: float | None, row: int, words: str
) -> None:
    facts = roi_facts()
    run = write_run(
        tmp_path / "run", "roi_resnet18", facts.predicted[1], facts.official, gating=gating, t=t
    )
    (found,) = compare_with_paper(run, BOOTSTRAP)
    assert f"row {row}:" in found.place
    assert any(words in remark for remark in found.remarks)


def test_a_maseres_run_has_normal_as_the_positive_class(tmp_path: Path) -> None:
    counts = {model.name: model.counts for model in maseres_facts().patient_models}["3D-AlexNet"]
    covid, normal = TWO_CLASSES
    truth = (covid,) * (counts.tn + counts.fp) + (normal,) * (counts.tp + counts.fn)
    decided = (
        *(covid,) * counts.tn, *(normal,) * counts.fp,
        *(normal,) * counts.tp, *(covid,) * counts.fn,
    )  # fmt: skip
    run = write_run(tmp_path / "run", "alexnet3d", decided, truth, TWO_CLASSES)
    (found,) = compare_with_paper(run, BOOTSTRAP)
    assert found.place == "patient level, 3D-AlexNet on 21 patients"
    by_name = {each.figure: each for each in found.figures}
    for name, published in {
        "accuracy": 0.8571,
        "recall of normal (sensitivity)": 0.75,
        "recall of COVID-19 (specificity)": 0.9231,
        "PPV of normal (precision)": 0.8571,
        "F1 of normal": 0.80,
    }.items():
        assert by_name[name].published == pytest.approx(published)
        assert by_name[name].ours.value == pytest.approx(published, abs=1e-4)
    assert by_name["AUC"].published == 0.9712


def test_a_run_on_slices_stands_beside_the_slice_level(tmp_path: Path) -> None:
    counts = {model.name: model.counts for model in maseres_facts().slice_models}["VGG19"]
    covid, normal = TWO_CLASSES
    truth = (covid,) * counts.tn + (normal,) * (counts.tp + counts.fn)
    decided = (covid,) * counts.tn + (normal,) * counts.tp + (covid,) * counts.fn
    run = write_run(tmp_path / "run", "vgg19", decided, truth, TWO_CLASSES)
    record = json.loads((run / "run.json").read_text())
    del record["settings"]["recipe"]
    (run / "run.json").write_text(json.dumps(record))
    (run / "slices").mkdir()
    (run / "predictions.csv").rename(run / "slices" / "predictions.csv")
    (found,) = compare_with_paper(run, BOOTSTRAP)
    assert found.place == "slice level, VGG19 on 966 slices"
    accuracy = found.figures[0]
    assert accuracy.published == pytest.approx(0.9855)
    assert (accuracy.ours.hits, accuracy.ours.total) == (952, 966)
    assert any("split slices, not patients" in remark for remark in found.remarks)


def test_the_command_shows_all_rows_of_a_study_in_the_paper_s_order(
    tmp_path: Path, capsys: Output
) -> None:
    facts = roi_facts()
    for gating, t, row in (("figure", 0.8, 6), ("none", 0.6, 1)):
        write_run(
            tmp_path / "study" / "rows" / f"r18-{gating}", "roi_resnet18",
            facts.predicted[row], facts.official, gating=gating, t=t,
        )  # fmt: skip
    assert main(["study", "compare-with-paper", str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Table 7, row 1:") < printed.index("Table 7, row 6:")
    text = (tmp_path / "study" / "with_paper.md").read_text(encoding="utf-8")
    assert "| accuracy (AC) | 79.2 | 79.2 (71.5 to 85.3, 103/130) |" in text
    lines = list(csv.DictReader((tmp_path / "study" / "with_paper.csv").read_text().splitlines()))
    assert len(lines) == 20
    assert float(lines[0]["published"]) == pytest.approx(0.746)
    assert float(lines[0]["ours"]) == float(lines[0]["recomputed"]) == pytest.approx(103 / 130)


def test_runs_without_a_paper_and_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "voxcnn", THREE_CLASSES, THREE_CLASSES, t=0.8, gating="none")
    with pytest.raises(ChestCTError, match="no paper has figures of that"):
        compare_with_paper(run)
    with pytest.raises(ReadError, match=r"has no run\.json"):
        compare_with_paper(tmp_path)
    (run / "run.json").write_text("{}")
    with pytest.raises(ReadError, match=r"run\.json in run is damaged"):
        compare_with_paper(run)
    (run / "predictions.csv").unlink()
    with pytest.raises(ReadError, match=r"has no predictions\.csv"):
        compare_with_paper(run)

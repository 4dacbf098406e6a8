from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions
from chestct.studies.audit_maseres import _decisions_of
from chestct.studies.compare_with_paper import MASERES_NETWORKS, SLICE_NETWORKS, maseres_model
from chestct.studies.maseres import (
    PATIENT_LEVEL,
    SLICE_LEVEL,
    PaperTable,
    _as_markdown,
    _printed_pair,
    make_table,
    write_table,
)
from chestct.studies.published import maseres_facts
from chestct.studies.study_rows import Row

BOOTSTRAP = Bootstrap(30)


def published(*networks: str) -> PaperTable:
    """The table of networks that decide as the paper's did."""
    results = {Row(name): _decisions_of(maseres_model(name).counts) for name in networks}
    return make_table(results, BOOTSTRAP)


@pytest.fixture(scope="module")
def patients() -> PaperTable:
    return published(*MASERES_NETWORKS)


@pytest.fixture(scope="module")
def slices() -> PaperTable:
    return published("vgg19", "densenet169")


def of_few_patients(predictions: Predictions, num_patients: int) -> Predictions:
    """The same inputs, each patient of one class and with several."""
    names = [f"{t}-{i % num_patients}" for i, t in enumerate(predictions.truth.tolist())]
    return Predictions(
        predictions.scans,
        tuple(names),
        predictions.truth,
        predictions.probabilities,
        predictions.labels,
    )


def test_the_papers_decisions_give_the_papers_p_values_and_kappas(patients: PaperTable) -> None:
    alexnet, voxcnn, others = patients.pairs
    for pair, name in ((alexnet, "3D-AlexNet"), (voxcnn, "VoxCNN")):
        assert pair.printed is not None
        for row in pair.z:
            printed = maseres_facts().table_5[name][row.figure]
            assert pair.printed.p_values[row.figure].published == printed
            assert row.p_value == pytest.approx(printed, abs=6e-4)
    assert (alexnet.test.p_value, voxcnn.test.p_value) == (0.25, 1.0)
    assert alexnet.kappa.estimate == pytest.approx(0.6897, abs=5e-5)
    assert voxcnn.kappa.estimate == pytest.approx(0.8966, abs=5e-5)
    assert alexnet.printed is not None
    assert alexnet.printed.kappa["published"] == 0.557
    assert others.printed is None


def test_only_maseres_against_another_is_printed() -> None:
    assert _printed_pair("maseres", "voxcnn") is not None
    for pair in (("voxcnn", "maseres"), ("maseres", "maseres"), ("vgg19", "densenet169")):
        assert _printed_pair(*pair) is None


@pytest.mark.parametrize("network", [*MASERES_NETWORKS, *SLICE_NETWORKS])
def test_a_row_of_the_papers_decisions_has_its_recomputed_figures(network: str) -> None:
    table = published(network)
    figures = table.beside(table.rows[0])
    assert [each.figure for each in figures][-1] == "AUC"
    for each in figures[:4]:
        assert each.recomputed is not None
        assert (each.ours.hits, each.ours.total) == (each.recomputed.hits, each.recomputed.total)
        assert each.is_inside
    assert table.pairs == ()


def test_the_page_shows_printed_recomputed_and_own_figures_and_what_z_is_worth(
    patients: PaperTable,
) -> None:
    text = _as_markdown(PATIENT_LEVEL, patients, ["Simulated disease."])
    assert "- Simulated disease." in text
    assert "Every row judged 21 scans of 21 patients: 13 COVID-19, 8 normal." in text
    assert "| alexnet3d, printed | 85.71 | 75 | 92.31 |" in text
    assert "| alexnet3d, recomputed | 85.7 (65.4 to 95.0, 18/21) |" in text
    assert "| **alexnet3d, this run** | 85.7 (65.4 to 95.0, 18/21) |" in text
    assert "| maseres | alexnet3d | 21 | 3 | 0 | 0.2500 | 0.7500 |" in text
    assert "| maseres | alexnet3d | accuracy | 100.0 | 85.7 | 1.871 | 0.0307 | 0.031 |" in text
    assert "both classifiers saw the same scans" in text
    assert "not to be relied on" in text
    assert "too small" not in text
    assert "mean of a patient's slices" not in text


def test_slices_of_one_patient_are_said_to_make_p_too_small(slices: PaperTable) -> None:
    shared = make_table(
        {each.row: of_few_patients(each.predictions, 20) for each in slices.rows}, BOOTSTRAP
    )
    text = _as_markdown(SLICE_LEVEL, shared, [], slices)
    assert "these p are too small" in text
    assert "Every row judged 966 slices of 40 patients" in text
    votes = text[text.index("## By patient") :]
    assert "Not in the paper" in votes
    assert "| vgg19 | densenet169 | 966 | 0 | 14 | 0.0001 |" in votes


def test_csv_and_json_hold_what_the_page_says(patients: PaperTable, tmp_path: Path) -> None:
    files = write_table(tmp_path, PATIENT_LEVEL, patients, remarks=["Ours."], patients=patients)
    assert [file.name for file in files] == ["table.md", "table.csv", "tests.csv", "table.json"]
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    (ours,) = [
        line for line in lines
        if (line["network"], line["source"], line["figure"]) == ("voxcnn", "this run", "accuracy")
    ]  # fmt: skip
    assert (ours["hits"], ours["total"], ours["method"]) == ("20", "21", "Wilson")
    assert {line["source"] for line in lines} == {"printed", "recomputed", "this run"}
    tests = list(csv.DictReader((tmp_path / "tests.csv").read_text().splitlines()))
    # Three pairs, each with McNemar's test, kappa and five z-tests, for each of the two levels.
    assert len(tests) == 2 * 3 * 7
    first = tests[0]
    assert (first["test"], first["p_value"], first["p_holm"]) == ("mcnemar", "0.25", "0.75")
    (kappa,) = [t for t in tests if (t["level"], t["test"], t["second"], t["first"])
                == ("", "kappa", "alexnet3d", "maseres")]  # fmt: skip
    assert kappa["printed"] == "0.557"
    record = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert record["remarks"] == ["Ours."]
    assert [row["paper_name"] for row in record["scans"]["rows"]] == [*MASERES_NETWORKS.values()]
    assert record["scans"]["pairs"][0]["test"]["p_value"] == 0.25
    assert record["patients"] == record["scans"]
    assert len(record["maseres_z_defects"]) > 1


def test_what_is_undefined_is_said_so(slices: PaperTable) -> None:
    always = _decisions_of(maseres_model("maseres").counts)
    constant = always.with_probabilities(always.probabilities * 0 + (1.0, 0.0))
    rows = {Row(name): constant for name in ("maseres", "voxcnn")}
    text = _as_markdown(PATIENT_LEVEL, make_table(rows, BOOTSTRAP), [])
    assert "| maseres | voxcnn | precision | undefined | undefined |" in text
    assert "2 of 2 rows are not surely better" in text
    kappas = text[text.index("Cohen's kappa") : text.index("maseres_z")]
    assert "| maseres | voxcnn | - (" in kappas

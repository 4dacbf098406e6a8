from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_scans import read_rows, write_empty_chest, write_rows, write_scans
from tiny_classifiers import saved_classifier, tiny_card, tiny_recipe

from chestct.classifier import Classifier
from chestct.cli import main
from chestct.datasets.manifest import read_manifest
from chestct.engines import make_engine
from chestct.errors import ChestCTError
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions
from chestct.studies.damage import (
    DamagePlan,
    _choose_parts,
    _damage,
    _mean_accuracy,
    _published_choice,
    run_damage,
    write_damage,
)
from chestct.studies.model_audit import with_network
from chestct.training.plan import Listener
from chestct.training.settings import DataSection

Output = pytest.CaptureFixture[str]
LABELS = ("COVID-19", "normal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    write_scans(folder / "scans", 3)
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    spacing_mm, lungs = (12.0, 12.0, 12.0), "published"
    recipe = replace(tiny_recipe(shape=(32, 32, 32)), spacing_mm=spacing_mm, lungs=lungs)
    card = tiny_card(
        recipe=recipe.__dict__, labels=LABELS, network_settings={"width": 4, "head_units": 8}
    )
    return saved_classifier(folder / "classifier", card, seed=3)


@pytest.fixture
def plan(folder: Path, classifier: Classifier, tmp_path: Path) -> DamagePlan:
    manifest = read_manifest(folder / "scans" / "manifest.csv", LABELS)
    return DamagePlan(
        classifier,
        manifest,
        tmp_path / "study",
        parts=("conv1", "fc1"),
        repeats=3,
        data=DataSection(cache=str(folder / "cache")),
        listener=Listener(processes=1),
    )


def test_a_damaged_network_computes_something_else_and_leaves_the_classifier_alone(
    classifier: Classifier,
) -> None:
    network = classifier.load_network()
    parts = _choose_parts(network, ["conv1"])["conv1"]
    _damage(network, parts, _published_choice(network, parts))
    damaged = with_network(classifier, network)
    assert damaged.input_size == classifier.input_size
    scan = torch.rand(1, *classifier.input_size)
    with torch.no_grad():
        whole, less = (each.load_network()(scan, None) for each in (classifier, damaged))
        again = classifier.load_network()(scan, None)
    assert not torch.equal(whole, less)
    assert torch.equal(whole, again)
    values = scan[0].numpy()
    lungs = np.ones(values.shape[1:], bool)
    np.testing.assert_allclose(
        make_engine(damaged, "torch", precision="float32").logits(values, lungs),
        damaged.load_network()(scan, torch.ones_like(scan))[0].detach().numpy(),
        atol=1e-5,
    )


def test_every_part_is_judged_by_the_published_choice_and_by_random_ones(
    plan: DamagePlan,
) -> None:
    result = run_damage(plan)
    assert [part.name for part in result.parts] == ["conv1", "fc1"]
    conv1, fc1 = result.parts
    assert (conv1.zeroed, fc1.zeroed) == (7**3, 2 * 32 + 2)
    assert len(result.undamaged) == 6
    assert all(len(part.repeats) == 3 for part in result.parts)
    for part in result.parts:
        assert part.published.scans == result.undamaged.scans
        assert not np.array_equal(part.published.probabilities, result.undamaged.probabilities)
    rows = write_damage(result, plan.folder, remarks=["Drawn scans."], bootstrap=Bootstrap(50))
    assert [row.name for row in rows] == ["undamaged", "conv1", "fc1"]
    text = (plan.folder / "table.md").read_text(encoding="utf-8")
    assert "- Drawn scans." in text
    assert "| conv1 | 1 | 343 |" in text
    assert "## Random choices of as many units" in text
    lines = list(csv.DictReader((plan.folder / "table.csv").read_text().splitlines()))
    figures = {line["figure"] for line in lines if line["part"] == "fc1"}
    assert {"accuracy", "mcnemar p", "mcnemar p (Holm)", "mean accuracy over choices"} <= figures


def test_a_study_goes_on_where_it_was_and_may_ask_for_more(
    plan: DamagePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_damage(replace(plan, repeats=1))
    lost = plan.folder / "part-fc1" / "random-001.csv"
    before = lost.read_bytes()
    lost.unlink()
    from chestct.studies import damage as study

    made: list[object] = []
    judge = study._judge
    monkeypatch.setattr(study, "_judge", lambda *args: made.append(args) or judge(*args))
    again = run_damage(replace(plan, repeats=1))
    assert len(made) == 1
    assert lost.read_bytes() == before
    np.testing.assert_array_equal(
        first.parts[1].published.probabilities, again.parts[1].published.probabilities
    )
    run_damage(replace(plan, repeats=2))
    assert len(made) == 3


def test_another_study_and_impossible_numbers_are_refused(plan: DamagePlan) -> None:
    run_damage(replace(plan, parts=("fc1",), repeats=0))
    with pytest.raises(ChestCTError, match="a study with another share"):
        run_damage(replace(plan, share=0.5))
    with pytest.raises(ChestCTError, match=r"A share of 1\.5 with 3 repeats is impossible"):
        run_damage(replace(plan, share=1.5))
    (plan.folder / "damage.json").write_text("{")
    with pytest.raises(Exception, match=r"damage\.json in study is damaged"):
        run_damage(plan)
    (plan.folder / "damage.json").unlink()
    with pytest.raises(ChestCTError, match="holds no study"):
        run_damage(plan)


def test_the_command_shows_and_writes_the_table(
    folder: Path, classifier: Classifier, tmp_path: Path, capsys: Output
) -> None:
    write_empty_chest(folder / "scans" / "empty.nii.gz")
    rows = read_rows(folder / "scans" / "manifest.csv")[:2]
    empty = {**rows[0], "scan": "empty.nii.gz", "patient": "p99"}
    manifest = write_rows(folder / "scans" / "with_empty.csv", [*rows, empty])
    out = tmp_path / "study"
    command = ["study", "damage", str(classifier.folder), str(manifest), "--out", str(out)]
    assert main([*command, "--parts", "fc1", "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "No decision on empty.nii.gz" in printed
    assert "undamaged" in printed
    assert "Not a medical device" in printed
    assert json.loads((out / "excluded.json").read_text()).keys() == {"empty.nii.gz"}
    assert "left out: 1." in (out / "table.md").read_text(encoding="utf-8")
    assert "Random choices" not in (out / "table.md").read_text(encoding="utf-8")
    assert main([*command, "--parts", "fc9", "--processes", "1"]) == 2
    assert "There is no part 'fc9'. Did you mean 'fc1'" in capsys.readouterr().err


def test_networks_that_workers_judge_are_those_of_one_after_the_other(
    folder: Path, classifier: Classifier, tmp_path: Path
) -> None:
    manifest = folder / "scans" / "manifest.csv"
    command = ["study", "damage", str(classifier.folder), str(manifest), "--processes", "1"]
    command += ["--parts", "fc1", "--repeats", "2"]
    here, there = tmp_path / "here", tmp_path / "there"
    before = torch.get_num_threads()
    # As a worker has one core here: of more threads, sums are rounded otherwise.
    torch.set_num_threads(1)
    assert main([*command, "--out", str(here)]) == 0
    torch.set_num_threads(before)
    assert main([*command, "--out", str(there), "--workers", "2"]) == 0
    files = contents_of(here)
    assert "part-fc1/random-002.csv" in files
    assert contents_of(there) == files
    # As if it had been killed: what is there stays, and the rest is judged.
    kept = (there / "part-fc1" / "published.csv").stat().st_mtime_ns
    (there / "part-fc1" / "random-001.csv").unlink()
    assert main([*command, "--out", str(there), "--workers", "1", "--executor", "local"]) == 0
    assert (there / "part-fc1" / "published.csv").stat().st_mtime_ns == kept
    assert contents_of(there).keys() == files.keys()


def contents_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def repeated(right: list[list[int]]) -> list[Predictions]:
    truth = np.arange(len(right[0])) % 2
    names = tuple(map(str, range(len(truth))))
    return [
        Predictions(names, names, truth, np.eye(2)[np.where(np.array(r), truth, 1 - truth)], LABELS)
        for r in right
    ]


def test_the_mean_over_choices_varies_with_patients_and_choices() -> None:
    same = _mean_accuracy(repeated([[1, 0, 1, 1, 1, 1, 1, 0]] * 4), Bootstrap(500))
    differing = _mean_accuracy(repeated([[1] * 8, [1] * 8, [0] * 8, [1] * 8]), Bootstrap(500))
    assert same is not None
    assert differing is not None
    assert same.value == differing.value == 0.75
    # The same decisions in each choice: only patients vary. All or nothing: only choices do.
    assert 0.3 < float(same.low or 0) < 0.75 < float(same.high or 0) <= 1
    assert (differing.low, differing.high) == (0.25, 1.0)
    single = _mean_accuracy(repeated([[1] * 8]), Bootstrap(50))
    assert single is not None
    assert "a single choice shows no spread" in single.note
    assert _mean_accuracy([], Bootstrap(50)) is None

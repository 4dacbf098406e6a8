"""`chestct slices classify`: pictures that nobody has labelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from drawn_slices import draw_folder, mark
from object_server import served
from PIL import Image

import chestct
from chestct.card import PictureForm, SliceCard, VoteSettings
from chestct.classifier import load_slice_classifier, save_classifier
from chestct.cli import main
from chestct.datasets.pictures import fitted, read_picture
from chestct.errors import ReadError
from chestct.evaluation.predictions import read_predictions
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.networks.slices import build_slice_network
from chestct.report import read_csv

LABELS = ("COVID-19", "normal")
SETTINGS = {"head": "recommended", "size": 64, "scaling": "weights"}


@pytest.fixture(scope="module")
def classifier(_stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of slices with drawn weights, whose answers depend on the picture."""
    del _stand_in
    torch.manual_seed(5)
    network = build_slice_network("mobilenet_v2", 2, SETTINGS)
    card = SliceCard(
        name="drawn",
        network="mobilenet_v2",
        network_settings=SETTINGS,
        labels=LABELS,
        trained_on="nothing",
        licence="none",
        temperature=0.5,
        pictures=PictureForm(
            size=64, interpolation="linear", keeps_shape=True, sixteen_bit="own_range"
        ),
        backbone_weights="random weights",
        split="by patient",
        votes=VoteSettings(slice_threshold=0.5, share_cut=0.1, sharpness=5.0),
    )
    folder = tmp_path_factory.mktemp("classifier") / "classifier"
    save_classifier(folder, network, card)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of two patients, in a folder each."""
    return draw_folder(tmp_path / "drawn", patients=2, slices=3) / "normal"


def rows_of(table: Path) -> list[dict[str, str]]:
    header, *lines = read_csv(table)
    return [dict(zip(header, cells, strict=True)) for cells in lines]


def shares_of(classifier: Path, picture: Path) -> np.ndarray:
    """What the network says of one picture by itself, in the 16 bits that slices are kept in."""
    loaded = load_slice_classifier(classifier)
    values = fitted(read_picture(picture).values, loaded.card.pictures)
    values = values.astype(np.float16).astype(np.float32)
    with torch.inference_mode():
        logits = loaded.network(torch.from_numpy(values)[None, None, None])[0].double()
    return torch.softmax(logits / loaded.card.temperature, dim=0).numpy()


def test_every_picture_and_every_patient_gets_an_answer(
    classifier: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"
    assert main(["slices", "classify", str(classifier), str(pictures), "--out", str(out)]) == 0
    answers = rows_of(out / "answers.csv")
    assert [row["picture"] for row in answers] == [str(p) for p in sorted(pictures.rglob("*.png"))]
    assert [row["patient"] for row in answers] == ["00"] * 3 + ["01"] * 3
    found = np.array([[float(row[f"probability_{label}"]) for label in LABELS] for row in answers])
    expected = np.array([shares_of(classifier, Path(row["picture"])) for row in answers])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(found[:, 0])) == 6
    for row, shares in zip(answers, found, strict=True):
        assert float(row[f"probability_{row['decision']}"]) == shares.max()
    patients = rows_of(out / "patients.csv")
    assert [(row["patient"], row["slices"], row["vote"]) for row in patients] == [
        ("00", "3", "mean"),
        ("01", "3", "mean"),
    ]
    means = [float(row["probability_COVID-19"]) for row in patients]
    np.testing.assert_allclose(means, [found[:3, 0].mean(), found[3:, 0].mean()], atol=1e-5)
    assert read_csv(out / "failures.csv") == [["picture", "patient", "reason"]]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "6 slices" in page
    assert "Patient 01" in page
    assert answers[0]["picture"] in page
    said = capsys.readouterr().out
    assert "6 slices: " in said
    assert "2 patients: " in said
    assert NOT_FOR_CLINICAL_USE in said
    assert sorted(path.name for path in out.iterdir()) == [
        "answers.csv",
        "failures.csv",
        "index.html",
        "patients.csv",
    ]


def test_answers_and_votes_are_those_that_evaluate_gives(
    classifier: Path, tmp_path: Path, table: Path
) -> None:
    evaluated = tmp_path / "evaluation"
    command = ["slices", "evaluate", str(classifier), str(table), "--processes", "1"]
    assert main([*command, "--out", str(evaluated)]) == 0
    slices = read_predictions(evaluated / "slices" / "predictions.csv")
    for vote in ("mean", "max", "share", "attention"):
        found = chestct.classify_slices(classifier, table, tmp_path / vote, vote=vote)
        shares = [[*each.probabilities.values()] for each in found.slices]
        np.testing.assert_allclose(shares, slices.probabilities, atol=1e-6)
        voted = read_predictions(evaluated / "patients" / f"predictions_{vote}.csv")
        assert tuple(each.patient for each in found.patients) == voted.patients
        shares = [[*each.probabilities.values()] for each in found.patients]
        np.testing.assert_allclose(shares, voted.probabilities, atol=1e-6)


def test_bad_pictures_stand_in_a_table_and_lose_no_other(
    classifier: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "00" / "1.png").write_bytes(b"broken")
    Image.new("L", (8, 8)).save(pictures / "01" / "2.png")
    gone = tmp_path / "gone.png"
    out = tmp_path / "answers"
    command = ["slices", "classify", str(classifier), str(pictures), str(gone), "--out", str(out)]
    assert main(command) == 1
    failures = rows_of(out / "failures.csv")
    assert [(Path(row["picture"]).name, row["patient"]) for row in failures] == [
        ("1.png", "00"),
        ("2.png", "01"),
        ("gone.png", ""),
    ]
    assert "1.png is not a readable PNG slice" in failures[0]["reason"]
    assert "8 x 8 pixels" in failures[1]["reason"]
    assert "There is no picture" in failures[2]["reason"]
    assert len(rows_of(out / "answers.csv")) == 4
    counts = [(row["slices"], row["failed"]) for row in rows_of(out / "patients.csv")]
    assert counts == [("2", "1"), ("2", "1")]
    assert "gone.png" in capsys.readouterr().err
    assert "No answer." in (out / "index.html").read_text(encoding="utf-8")


def test_where_no_picture_can_be_read_the_reasons_are_written_and_the_command_fails(
    classifier: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    out = tmp_path / "answers"
    assert main(["slices", "classify", str(classifier), str(bad), "--out", str(out)]) == 2
    assert len(rows_of(out / "failures.csv")) == 1
    assert rows_of(out / "answers.csv") == []


def test_a_new_call_replaces_the_answers_and_what_is_of_others_is_left_alone(
    classifier: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"
    command = ["slices", "classify", str(classifier), "--out", str(out)]
    assert main([*command, str(pictures)]) == 0
    assert main([*command, str(pictures / "00" / "0.png")]) == 0
    (answer,) = rows_of(out / "answers.csv")
    assert answer["patient"] == ""
    assert not (out / "patients.csv").exists()
    (out / "answers.csv").write_text("scan,path,decision\n")
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())
    assert main([*command, str(pictures)]) == 2
    assert "Choose another folder" in capsys.readouterr().err
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before


def test_patients_come_from_a_pattern_or_a_table_and_a_picture_counts_once(
    classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers"
    found = chestct.classify_slices(
        classifier, [pictures, pictures / "00"], out, patient_pattern="^(?:0[0-9]/)?([0-9])"
    )
    assert [each.patient for each in found.slices] == ["0", "1", "2"] * 2
    assert [each.num_slices for each in found.patients] == [2, 2, 2]
    listed = tmp_path / "listed.csv"
    listed.write_text(
        "scan,patient,excluded\ndrawn/normal/00/0.png,a,\ndrawn/normal/00/1.png,,\n"
        "drawn/normal/00/2.png,a,marked\n"
    )
    found = chestct.classify_slices(classifier, listed, out)
    assert [each.patient for each in found.slices] == ["a", ""]
    (pictures / "patients.csv").write_text("file,patient\n0.png,b\n")
    found = chestct.classify_slices(classifier, pictures, out)
    assert [each.patient for each in found.slices] == ["b", "00", "00", "b", "01", "01"]


def test_what_an_answer_has_to_be_read_with_stands_beside_it(
    classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    mark(pictures / "00" / "0.png")
    picture = pictures / "00" / "1.png"
    Image.open(picture).resize((31, 40)).resize((40, 36)).save(picture, format="JPEG")
    out = tmp_path / "answers"
    chestct.classify_slices(classifier, pictures, out)
    first, second, third, *_ = (row["warnings"] for row in rows_of(out / "answers.csv"))
    assert first == "5.2% of it is coloured: the answer may be about marks"
    assert second == "it is a JPEG file by another name"
    assert third == ""


def test_pictures_at_addresses_get_the_answers_of_those_on_a_disk(
    classifier: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    Image.open(pictures / names[1]).save(pictures / names[1], format="JPEG")
    (pictures / names[2]).write_bytes(b"broken")
    (pictures / "listed.csv").write_text("\n".join(["scan", *names, ""]))
    on_disk = chestct.classify_slices(classifier, pictures / "listed.csv", tmp_path / "disk").slices
    with served(pictures) as web:
        system.put(str(pictures), "/slices", recursive=True)
        for place, out in (("memory://slices", tmp_path / "memory"), (web, tmp_path / "web")):
            listed = f"{place}/listed.csv"
            found = chestct.classify_slices(classifier, listed, out).slices
            assert [each.picture for each in found] == [f"{place}/{name}" for name in names]
            for ours, theirs in zip(found, on_disk, strict=True):
                assert ours == replace(theirs, picture=ours.picture)
    system.rm("/slices", recursive=True)
    assert on_disk[1].warnings == ("it is a JPEG file by another name",)
    assert on_disk[2].failure
    (tmp_path / "signed.csv").write_text("scan\nhttps://host/a.png?X-Signature=aVerySecretThing\n")
    with pytest.raises(ReadError, match=r"signed\.csv: https://host/a\.png is named") as refused:
        chestct.classify_slices(classifier, tmp_path / "signed.csv", tmp_path / "signed")
    assert "aVerySecretThing" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ("empty", (), "There is no picture (.tif, .tiff, .png, .jpg, .jpeg) in"),
        ("drawn", ("--vote", "most"), "There is no vote 'most'"),
        ("drawn", ("--patient-pattern", "(q"), "The patient pattern '(q' is wrong"),
        ("labels.csv", (), "labels.csv has no column scan"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    classifier: Path,
    pictures: Path,
    tmp_path: Path,
    given: str,
    more: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("picture\na.png\n")
    out = tmp_path / "answers"
    command = ["slices", "classify", str(classifier), str(tmp_path / given), "--out", str(out)]
    assert main([*command, *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()

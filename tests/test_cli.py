from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import typer
from phantoms import LUNG_HU, chest, lungs_of

import chestct
from chestct.card import CARD_FILE
from chestct.classifier import DEFAULT_FOLDER
from chestct.cli import main
from chestct.cli.info import _DEFAULT_CARD, _describe_installation
from chestct.engines import ENGINES
from chestct.networks import NETWORKS
from chestct.preprocess.recipes import RECIPES
from chestct.readers import ALLOWED, READERS
from chestct.writers.json_report import ResultDocument
from chestct.writers.nifti import write_nifti

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def quick_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ellipsoid patients with noise, as these tests look at the commands and not at the anatomy."""

    def draw_patient(
        rng: np.random.Generator, settings: object = None, *, pattern: str
    ) -> SimpleNamespace:
        volume = chest()
        noisy = (
            (volume.voxels + rng.normal(0, 5, volume.voxels.shape))
            .round()
            .clip(-1024)
            .astype(np.int16)
        )
        lungs = np.asarray(volume.voxels == LUNG_HU)
        return SimpleNamespace(
            volume=volume.with_voxels(noisy), lungs=lungs, lesions=lungs, label=pattern
        )

    monkeypatch.setattr("chestct.simulate.thorax.simulate_patient", draw_patient)


def classify(*arguments: str | Path, tiny: str) -> int:
    return main(["classify", *map(str, arguments), "--classifier", tiny, "--engine", "torch"])


def test_a_scan_is_classified_and_its_outputs_are_written(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    assert classify(scan, "--out", tmp_path / "out", tiny=tiny) == 0
    printed = capsys.readouterr()
    document = ResultDocument.model_validate_json(
        (tmp_path / "out" / "p07" / "result.json").read_text(encoding="utf-8")
    )
    for words in ("p07", "No pneumonia", "Not a medical device", "random weights", "report.html"):
        assert words in printed.out
    assert f"{document.probabilities[document.decision] * 100:.1f} %" in printed.out
    assert printed.err == ""
    assert sorted(path.name for path in (tmp_path / "out" / "p07").iterdir()) == [
        "preview.png",
        "report.html",
        "result.json",
    ]


def test_json_is_one_line_per_scan_and_nothing_else(scan: Path, tiny: str, capsys: Output) -> None:
    assert classify(scan, scan, "--json", tiny=tiny) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [ResultDocument.model_validate_json(line).scan for line in lines] == ["p07", "p07"]


def test_a_failing_scan_does_not_stop_the_others(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert classify(tmp_path / "empty", scan, scan, "--out", out, tiny=tiny) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("chestct: ")
    assert printed.err.count("chestct: ") == 1
    assert "empty" in printed.err
    assert printed.out.count("p07") >= 2
    assert sorted(path.name for path in out.iterdir()) == ["p07", "p07-2"]


@pytest.mark.parametrize("kind", ["empty folder", "text file", "nothing", "random bytes"])
def test_what_cannot_be_read_is_said_once_without_a_traceback(
    kind: str, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "p09"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text file":
        path.write_text("Dear colleague, the scan follows by post.")
    elif kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert classify(path, tiny=tiny) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("chestct: ") == 1
    assert "p09" in printed.err
    assert "Traceback" not in printed.err


def test_a_classifier_that_is_none_is_said(scan: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["classify", str(scan), "--classifier", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("chestct: ")


def test_an_unknown_engine_is_refused_with_the_known_ones(
    scan: Path, tiny: str, capsys: Output
) -> None:
    assert main(["classify", str(scan), "--classifier", tiny, "--engine", "torchh"]) == 2
    assert "Did you mean 'torch'?" in capsys.readouterr().err


def test_results_are_never_written_into_the_scan(scan: Path, tiny: str, capsys: Output) -> None:
    before = sorted(path.name for path in scan.iterdir())
    assert classify(scan, "--out", scan.parent, tiny=tiny) == 2
    assert "Choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in scan.iterdir()) == before


def test_out_that_is_a_file_is_refused(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "out").write_text("a file")
    assert classify(scan, "--out", tmp_path / "out", tiny=tiny) == 2
    assert capsys.readouterr().err.count("chestct: ") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify"], "SCAN"),
        (["classify", "x", "--no-such-option"], "--no-such-option"),
        (["classifi", "x"], "classifi"),
        (["prepare", "x", "--recipe", "roi_resnet_papr", "--out", "y"], "roi_resnet_paper"),
        (["prepare", "x", "--recipe", "roi_resnet_paper", "--out", "y"], "does not exist"),
        (["classify", "x", "--spacing-mm", "1,2", "--order", "ascending"], "three numbers"),
        (["classify", "x", "--slope", "1"], "--spacing-mm"),
        (["classify", "x", "--spacing-mm", "1,1,1", "--order", "up"], "ascending"),
    ],
)
def test_wrong_use_is_said_once_with_exit_2(
    arguments: list[str], words: str, capsys: Output
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("chestct: ")
    assert printed.err.count("chestct: ") == 1
    assert words in printed.err


def test_no_command_shows_the_help_as_wrong_use(capsys: Output) -> None:
    assert main([]) == 2
    assert "classify" in capsys.readouterr().out


def test_the_version_is_shown(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"chestct {chestct.__version__}"


def test_debug_adds_the_traceback_wherever_it_stands(tmp_path: Path, capsys: Output) -> None:
    missing = str(tmp_path / "missing")
    assert main(["classify", missing]) == 2
    assert "Traceback" not in capsys.readouterr().err
    for arguments in (["--debug", "classify", missing], ["classify", missing, "--debug"]):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("chestct: ")
        assert "ReadError" in printed


def test_an_error_of_the_program_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def fail() -> None:
        raise RuntimeError("Secret^Name")

    monkeypatch.setattr("chestct.cli.info._describe_installation", fail)
    assert main(["info"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("chestct: internal error (RuntimeError). ")
    assert "Secret" not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_has_its_own_exit_code(
    interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise interruption

    monkeypatch.setattr("chestct.cli.info._describe_installation", interrupt)
    assert main(["info"]) == 130


def test_info_lists_every_table(capsys: Output) -> None:
    assert main(["info", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known == _describe_installation()
    for heading, table in {
        "readers": READERS,
        "recipes": RECIPES,
        "networks": NETWORKS,
        "engines": ENGINES,
    }.items():
        assert list(known[heading]) == list(table)
        assert all(known[heading].values())
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "roi_resnet_recommended" in printed


def test_info_knows_the_shipped_classifier(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _DEFAULT_CARD == DEFAULT_FOLDER / CARD_FILE
    monkeypatch.setattr("chestct.cli.info._DEFAULT_CARD", Path(tiny) / CARD_FILE)
    known = _describe_installation()["classifiers"]
    assert known == {"default": "tiny 0; trained on nothing: random weights"}
    monkeypatch.setattr("chestct.cli.info._DEFAULT_CARD", Path(tiny) / "none.json")
    assert _describe_installation()["classifiers"] == {}


def test_a_package_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestct.cli.info._PACKAGES", ("numpy", "a-package-that-is-not-there"))
    versions = _describe_installation()["versions"]
    assert versions["a-package-that-is-not-there"] == "not installed"
    assert versions["numpy"] == np.__version__


def test_every_permission_of_the_readers_has_its_option(capsys: Output) -> None:
    assert main(["classify", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ALLOWED:
        assert f"--allow-{name}" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["classify", "--help"]])
def test_help_and_info_load_no_heavy_package(arguments: list[str]) -> None:
    code = (
        "import sys; from chestct.cli import main; "
        f"main({arguments!r}); "
        "heavy = {'torch', 'scipy', 'openvino', 'cv2', 'pydicom', 'nibabel', 'PIL', 'jinja2'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_runs_as_a_module() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "chestct", "--version"], capture_output=True, text=True, check=True
    )
    assert chestct.__version__ in ended.stdout


def test_prepare_writes_nothing_among_the_results_of_classify(
    scan: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "preview.png").write_bytes(b"of classify")
    (tmp_path / "result.json").write_text("{}")
    arguments = ["prepare", str(scan), "--recipe", "maseres_recommended", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "holds results of 'chestct classify'" in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "preview.png").read_bytes() == b"of classify"


def test_prepare_writes_what_a_network_sees(scan: Path, tmp_path: Path, capsys: Output) -> None:
    out, lungs = tmp_path / "out", lungs_of()
    mask = tmp_path / "lungs.nii.gz"
    write_nifti(mask, lungs.voxels.astype(np.uint8), lungs.grid)
    arguments = ["prepare", str(scan), "--recipe", "maseres_recommended", "--out", str(out)]
    assert main([*arguments, "--lungs", str(mask)]) == 0
    record = json.loads((out / "prepared.json").read_text(encoding="utf-8"))
    assert record["recipe"]["name"] == "maseres_recommended"
    stored = nibabel.load(out / "input.nii.gz")
    assert stored.shape == (128, 128, 128)
    np.testing.assert_allclose(stored.header.get_zooms(), (2.7, 2.7, 2.7), rtol=1e-4)
    assert str(out / "prepared.json") in capsys.readouterr().out.replace("\n", "")


def test_a_tiff_stack_is_read_with_the_geometry_that_was_said(
    tiny: str, tmp_path: Path, capsys: Output
) -> None:
    import tifffile

    volume = chest()
    folder = tmp_path / "stack"
    folder.mkdir()
    for number, row in enumerate(volume.voxels.round().astype(np.int32)):
        tifffile.imwrite(folder / f"{number:03d}.tif", (row + 1024).clip(0).astype(np.uint16))
    spacing = ",".join(str(size) for size in volume.grid.spacing_mm)
    said = ("--spacing-mm", spacing, "--order", "ascending", "--slope", "1", "--intercept", "-1024")
    assert classify(folder, *said, "--json", tiny=tiny) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["scan_facts"]["format"] == "tiff"
    assert document["decision"] != "unsuitable"


@pytest.mark.usefixtures("quick_patients")
def test_the_demonstration_classifies_a_patient_per_class(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("chestct.classifier.DEFAULT_FOLDER", Path(tiny))
    out = tmp_path / "demo"
    # An earlier demonstration was interrupted in the middle of a scan.
    (out / "scans" / "simulated-cap").mkdir(parents=True)
    (out / "scans" / "simulated-cap" / "half.dcm").write_bytes(b"half")
    assert main(["demo", "--out", str(out), "--engine", "torch"]) == 0
    printed = capsys.readouterr().out
    assert "index.html" in printed
    assert "Not a medical device" in printed
    page = (out / "index.html").read_text(encoding="utf-8")
    for name in ("simulated-cap", "simulated-covid-19", "simulated-normal"):
        assert f"results/{name}/report.html" in page
        result = json.loads((out / "results" / name / "result.json").read_text(encoding="utf-8"))
        assert result["scan_facts"]["format"] == "dicom"
        assert any((out / "scans" / name).iterdir())
    assert not (out / "scans" / "simulated-cap" / "half.dcm").exists()


def test_the_demonstration_leaves_other_folders_alone(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "folder of its own" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("quick_patients")
def test_simulated_patients_come_with_their_truth_and_can_be_made_again(
    tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "sims"
    assert main(["simulate", str(out), "--patients", "2", "--seed", "5"]) == 0
    with (out / "labels.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["CAP", "COVID-19"]
    first = out / rows[0]["scan"]
    read = chestct.read_volume(first)
    lungs = nibabel.load(out / "patient-001" / "lungs.nii.gz")
    assert lungs.shape == read.grid.shape[::-1]
    assert np.asarray(nibabel.load(out / "patient-001" / "lesions.nii.gz").dataobj).any()
    capsys.readouterr()

    again = tmp_path / "again"
    assert main(["simulate", str(again), "--patients", "1", "--seed", "5"]) == 0
    for path in first.iterdir():
        assert (again / "patient-001" / "dicom" / path.name).read_bytes() == path.read_bytes()

    assert main(["simulate", str(out), "--patients", "1"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    for name in chestct.__all__:
        assert getattr(chestct, name) is not None
    assert set(chestct.__all__) <= set(dir(chestct))
    with pytest.raises(AttributeError, match="no attribute 'classify'"):
        _ = chestct.classify


def test_the_real_scans_are_classified(
    data_folder: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    scan = data_folder / "covid_ct_md" / "normal001"
    assert classify(scan, "--out", tmp_path, "--json", tiny=tiny) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["scan_facts"]["size_voxels"] == "154 × 512 × 512"
    assert document["unsuitable_reasons"] == []
    assert (tmp_path / "normal001" / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("name", "words"),
    [("dicom_gantry_tilt", "18.5 degrees"), ("dicom_not_a_scan", "localizer")],
)
def test_awkward_real_folders_are_refused_with_reason_and_remedy(
    data_folder: Path, tiny: str, name: str, words: str, capsys: Output
) -> None:
    assert classify(data_folder / name, tiny=tiny) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("chestct: ") == 1


def test_a_truncated_file_among_good_ones_does_not_crash(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(scan, damaged)
    victim = sorted(damaged.iterdir())[20]
    victim.write_bytes(victim.read_bytes()[:-3000])
    assert classify(damaged, tiny=tiny) == 2
    printed = capsys.readouterr().err
    assert printed.count("chestct: ") == 1
    assert "Traceback" not in printed

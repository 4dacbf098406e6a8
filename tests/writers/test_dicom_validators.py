"""What others say of our DICOM objects: validators, dumpers and a second reader.

The tools are Debian's dicom3tools and dcmtk and the package dcmqi; `.ci/run` installs all of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_scans import WANTED, analysed, small_scan
from explained import THRESHOLD, scan_heat

from chestct.analysis import ScanAnalysis
from chestct.writers import WriteOptions
from chestct.writers.dicom_sr import _REGIONS
from chestct.writers.folders import write_outputs

OBJECTS = (*WANTED, "dicom_sc")


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("validators") / "scan"))


@pytest.fixture(scope="module")
def objects(analysis: ScanAnalysis, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Writer name to an object it wrote."""
    folder = tmp_path_factory.mktemp("objects")
    files = dict(write_outputs(analysis, folder, WriteOptions(names=OBJECTS)).files)
    files["dicom_sc"] = sorted(files["dicom_sc"].iterdir())[0]
    return files


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a tool, beside the interpreter or on the path; skip where it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; .ci/run installs it")
    command = [found, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", OBJECTS)
def test_dciodvfy_finds_no_error(name: str, objects: dict[str, Path]) -> None:
    finished = run_tool("dciodvfy", objects[name])
    said = (finished.stdout + finished.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []
    kinds = {
        "dicom_seg": "Segmentation",
        "dicom_parametric_map": "ParametricMap",
        "dicom_sr": "Comprehensive3DSR",
        "dicom_sc": "SCImage",
    }
    assert kinds[name] in said


def test_dciodvfy_would_find_an_error(objects: dict[str, Path], tmp_path: Path) -> None:
    damaged = pydicom.dcmread(objects["dicom_seg"])
    del damaged.SegmentSequence
    damaged.save_as(tmp_path / "damaged.dcm")
    finished = run_tool("dciodvfy", tmp_path / "damaged.dcm")
    assert "Error" in finished.stdout + finished.stderr


@pytest.mark.parametrize("name", OBJECTS)
def test_dcmtk_turns_it_into_json(name: str, objects: dict[str, Path]) -> None:
    finished = run_tool("dcm2json", objects[name])
    assert finished.returncode == 0
    document = json.loads(finished.stdout)
    assert document["00080018"]["Value"] == [pydicom.dcmread(objects[name]).SOPInstanceUID]


def test_dcmtk_reads_the_report(objects: dict[str, Path]) -> None:
    finished = run_tool("dsrdump", "+Pl", objects["dicom_sr"])
    assert finished.returncode == 0
    assert not [line for line in finished.stderr.splitlines() if line.startswith(("E:", "F:"))]
    for words in ("Comprehensive 3D SR Document", "Pneumonia caused by SARS-CoV-2", "UNVERIFIED"):
        assert words in finished.stdout
    assert "Not a medical device" in finished.stdout


def test_dcmqi_reads_the_same_segments_back(
    analysis: ScanAnalysis, objects: dict[str, Path], tmp_path: Path
) -> None:
    finished = run_tool(
        "segimage2itkimage",
        *("--inputDICOM", objects["dicom_seg"]),
        *("--outputDirectory", tmp_path),
        *("--outputType", "nii"),
    )
    assert finished.returncode == 0, finished.stderr
    masks = (
        analysis.prepared.scan_lungs.voxels,
        np.nan_to_num(scan_heat()) >= THRESHOLD,
    )
    for number, mask in enumerate(masks, 1):
        image = SimpleITK.ReadImage(str(tmp_path / f"{number}.nii.gz"))
        assert_same_on_grid(SimpleITK.GetArrayFromImage(image).astype(bool), image, mask, analysis)


def test_dcmqi_reads_the_same_heat_map_back(
    analysis: ScanAnalysis, objects: dict[str, Path], tmp_path: Path
) -> None:
    finished = run_tool(
        "paramap2itkimage",
        *("--inputDICOM", objects["dicom_parametric_map"]),
        *("--outputDirectory", tmp_path),
    )
    assert finished.returncode == 0, finished.stderr
    image = SimpleITK.ReadImage(str(tmp_path / "pmap.nrrd"))
    heat = np.nan_to_num(scan_heat(), nan=-1.0)
    assert_same_on_grid(SimpleITK.GetArrayFromImage(image), image, heat, analysis)


@pytest.fixture(scope="module")
def read_by_dcmqi(
    objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """Tracking identifier of each group of the report to what dcmqi gives back of it."""
    document = tmp_path_factory.mktemp("dcmqi") / "sr.json"
    finished = run_tool(
        "tid1500reader", "--inputDICOM", objects["dicom_sr"], "--outputMetadata", document
    )
    assert finished.returncode == 0, finished.stderr
    assert "modifier is interpreted only" not in finished.stderr
    groups = json.loads(document.read_text())["Measurements"]
    return {group["TrackingIdentifier"]: group for group in groups}


def test_dcmqi_gives_the_answer_back_as_the_one_finding(read_by_dcmqi: dict[str, dict]) -> None:
    answer = read_by_dcmqi["answer"]
    assert answer["Finding"]["CodeValue"] == "882784691000119100"
    measured = {
        item["quantity"]["CodeMeaning"]: float(item["value"]) for item in answer["measurementItems"]
    }
    assert measured == {
        "Probability": 0.9,
        "Probability of Community-acquired pneumonia": 0.07,
        "Probability of No pneumonia": 0.03,
    }


def test_dcmqi_gives_sides_and_zones_back(
    analysis: ScanAnalysis, read_by_dcmqi: dict[str, dict]
) -> None:
    explained = analysis.explanation
    assert explained is not None
    for region, share in explained.summary.shares.items():
        if region == "lungs":
            continue
        group = read_by_dcmqi[f"evidence in {region}"]
        (item,) = group["measurementItems"]
        assert float(item["value"]) == round(100 * share, 2)
        site, laterality = _REGIONS[region]
        assert group["FindingSite"]["CodeValue"] == site[0]
        assert group.get("Laterality", {}).get("CodeValue") == (laterality and laterality[0])


def assert_same_on_grid(
    stored: np.ndarray, image: SimpleITK.Image, expected: np.ndarray, analysis: ScanAnalysis
) -> None:
    """Every voxel equals the one at its place on the volume's grid, and none is missing."""
    grid = analysis.volume.grid
    sizes = [n - 1 for n in image.GetSize()]
    corners = np.array(
        [image.TransformIndexToPhysicalPoint(corner) for corner in ((0, 0, 0), tuple(sizes))]
    )
    first, last = np.rint(grid.to_index(corners)).astype(int)
    steps = [1 if a <= b else -1 for a, b in zip(first, last, strict=True)]
    cut = expected
    for axis, step in enumerate(steps):
        low, high = sorted((int(first[axis]), int(last[axis])))
        cut = np.take(cut, range(low, high + 1), axis=axis)
        cut = cut if step == 1 else np.flip(cut, axis)
    np.testing.assert_array_equal(stored, cut)
    assert np.count_nonzero(cut > 0) == np.count_nonzero(expected > 0)

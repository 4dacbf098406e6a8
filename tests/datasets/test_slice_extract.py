from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_scans import write_scan
from PIL import Image

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.slice_extract import Extraction, extract_slices, windowed
from chestct.labels import CAP, COVID19, NORMAL
from chestct.readers import read_volume
from chestct.volume import to_canonical

MARKS = np.isin(np.arange(40), (5, 6, 7))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three patients of 24 slices: P001 upside down in its file, cap001, normal001."""
    folder = tmp_path_factory.mktemp("scans")
    rows = []
    for seed, (name, label) in enumerate(
        {"P001": COVID19, "cap001": CAP, "normal001": NORMAL}.items()
    ):
        write_scan(folder / f"{name}.nii.gz", seed, is_reversed=name == "P001")
        rows.append(ManifestRow(f"{name}.nii.gz", name, label, split="training"))
    return Manifest(tuple(rows), folder=folder, name="scans.csv")


def test_infected_slices_of_the_ill_and_all_of_the_normal_are_taken(
    scans: Manifest, tmp_path: Path
) -> None:
    told: list[str] = []
    found = extract_slices(scans, Extraction({"p001": MARKS}), tmp_path, told=told.append)
    assert found.cases == {CAP: 0, COVID19: 3, NORMAL: 24}
    assert [row.others["slice"] for row in found.rows[:3]] == ["5", "6", "7"]
    assert found.rows[0].others["patient_label"] == COVID19
    assert found.rows[0].split == "training"
    assert told == ["Row 3 is CAP and has no slice labels: left out."]


def test_a_picture_is_the_windowed_slice_counted_from_the_feet(
    scans: Manifest, tmp_path: Path
) -> None:
    found = extract_slices(scans, Extraction({"P001": MARKS}), tmp_path)
    volume = to_canonical(read_volume(scans.path(scans.rows[0])))
    picture = np.asarray(Image.open(found.path(found.rows[1])))
    assert np.array_equal(picture, windowed(volume.voxels[6], "lung"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert not any("P001" in name for name in names)


def test_slices_without_infection_can_count_as_normal(scans: Manifest, tmp_path: Path) -> None:
    wanted = Extraction({"P001": MARKS}, uninfected="negative", every=2)
    found = extract_slices(scans, wanted, tmp_path)
    of_ill = [row for row in found.rows if row.patient == "P001"]
    assert [row.label for row in of_ill].count(COVID19) == 1
    assert [row.label for row in of_ill].count(NORMAL) == 11
    assert {row.others["patient_label"] for row in of_ill} == {COVID19}


def test_all_slices_of_scans_nobody_looked_at_are_taken_when_asked_for(
    scans: Manifest, tmp_path: Path
) -> None:
    found = extract_slices(scans, Extraction(without_labels="all", every=8), tmp_path)
    assert found.cases == {CAP: 3, COVID19: 3, NORMAL: 3}


def test_labels_of_another_scan_are_refused_with_both_numbers(
    scans: Manifest, tmp_path: Path
) -> None:
    beyond = MARKS.copy()
    beyond[30] = True
    with pytest.raises(ManifestError, match=r"24 slices.*up to slice 31"):
        extract_slices(scans, Extraction({"P001": beyond}), tmp_path)


def test_nothing_left_is_refused_with_the_remedy(scans: Manifest, tmp_path: Path) -> None:
    ill = scans.choose(lambda row: row.label != NORMAL)
    with pytest.raises(ManifestError, match="--without-labels all"):
        extract_slices(ill, Extraction(), tmp_path)


def test_the_real_patients_slices_are_taken_with_the_radiologists_marks(
    data_folder: Path, tmp_path: Path
) -> None:
    place = data_folder / "covid_ct_md"
    table = np.loadtxt(place / "P001_slice_labels.csv", int, delimiter=",", skiprows=1)
    marks = table[:, 1].astype(bool)
    assert (len(marks), marks.sum()) == (148, 80)
    rows = (ManifestRow(str(place / "P001"), "P001", COVID19),)
    manifest = Manifest(rows, (COVID19, NORMAL), name="one.csv")
    wanted = Extraction({"P001": marks}, uninfected="negative", every=10)
    found = extract_slices(manifest, wanted, tmp_path)
    assert len(found) == 15
    assert found.cases[COVID19] == int(marks[::10].sum())
    picture = np.asarray(Image.open(found.path(found.rows[7])))
    assert picture.shape == (512, 512)
    assert picture.max() == 255
    assert found.rows[7].others["slice"] == "70"

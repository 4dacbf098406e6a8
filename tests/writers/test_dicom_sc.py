from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from analyses import SALIENT
from dicom_scans import analysed, small_scan
from explained import HOT_SLICE

from chestct.analysis import ScanAnalysis
from chestct.volume import ScanSource
from chestct.writers import ONLY_BY_NAME, WRITERS, NothingToWriteError, WriteOptions, choose_writers
from chestct.writers.dicom_images import write_overlays


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("sc") / "scan"))


def test_every_analysed_slice_becomes_a_picture_that_names_it(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    folder = write_overlays(analysis, tmp_path, WriteOptions())
    made = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    first, last = SALIENT
    assert len(made) == last - first + 1
    uids = [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in made]
    assert tuple(uids) == analysis.volume.source.slice_uids[first : last + 1]
    assert len({one.SeriesInstanceUID for one in made}) == 1
    assert len({one.SOPInstanceUID for one in made}) == len(made)
    assert {one.BurnedInAnnotation for one in made} == {"NO"}
    assert [one.InstanceNumber for one in made] == list(range(1, len(made) + 1))


def test_the_hot_spot_is_colored_where_it_lies(analysis: ScanAnalysis, tmp_path: Path) -> None:
    folder = write_overlays(analysis, tmp_path, WriteOptions())
    picture = pydicom.dcmread(folder / f"{HOT_SLICE - SALIENT[0] + 1:04d}.dcm").pixel_array
    saturation = np.ptp(picture.astype(int), axis=2)
    rows, columns = saturation.shape
    left_lung = saturation[rows // 3 : 2 * rows // 3, columns // 2 :]
    right_lung = saturation[rows // 3 : 2 * rows // 3, : columns // 2]
    assert left_lung.max() > 150
    assert (left_lung > 60).mean() > 5 * (right_lung > 60).mean()


def test_a_method_that_knows_no_class_gives_the_same_pictures_whatever_the_class(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    explained = analysis.explanation
    assert explained is not None
    pictures = {}
    for method in ("gradcam", "strongest_channel", "attention"):
        for label in ("CAP", "COVID-19"):
            explanation = replace(explained.explanation, method=method, label=label)
            other = replace(analysis, explanation=replace(explained, explanation=explanation))
            folder = write_overlays(other, tmp_path, WriteOptions())
            pictures[method, label] = pydicom.dcmread(folder / "0001.dcm").PixelData
    assert pictures["gradcam", "CAP"] != pictures["gradcam", "COVID-19"]
    for method in ("strongest_channel", "attention"):
        assert pictures[method, "CAP"] == pictures[method, "COVID-19"]
    assert len(set(pictures.values())) == 4


def test_it_is_written_by_name_only() -> None:
    assert set(choose_writers(["all"])) == set(WRITERS) - set(ONLY_BY_NAME)
    assert "dicom_sc" in choose_writers(["all", "dicom_sc"])
    assert choose_writers(["dicom_sc", "json"]) == ("json", "dicom_sc")


def test_without_dicom_or_a_heat_map_there_is_nothing_to_draw(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    with pytest.raises(NothingToWriteError, match="no explanation"):
        write_overlays(replace(analysis, explanation=None), tmp_path, WriteOptions())
    volume = replace(analysis.volume, source=ScanSource("tiff"))
    with pytest.raises(NothingToWriteError, match="tiff"):
        write_overlays(replace(analysis, volume=volume), tmp_path, WriteOptions())
    assert list(tmp_path.iterdir()) == []

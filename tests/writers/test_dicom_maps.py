from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_scans import analysed, small_scan
from highdicom.pm import ParametricMap

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import HeatMap
from chestct.labels import UNSUITABLE
from chestct.writers import NothingToWriteError, WriteOptions
from chestct.writers.dicom_images import write_parametric_map
from chestct.writers.nifti import NOT_ANALYSED


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("map") / "scan"))


def test_heat_comes_back_exactly_by_highdicoms_own_defaults_and_what_was_not_analysed_is_minus_one(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    made = ParametricMap.from_file(write_parametric_map(analysis, tmp_path, WriteOptions()))
    explained = analysis.explanation
    assert explained is not None
    heat = explained.heat.voxels
    known = ~np.isnan(heat)
    stored = made.get_frames()
    np.testing.assert_array_equal(stored[known], heat[known])
    assert np.all(stored[~known] == NOT_ANALYSED)
    assert made.FloatPixelPaddingValue == NOT_ANALYSED
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == NOT_ANALYSED
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == 1.0


def test_it_lies_where_the_scan_lies(analysis: ScanAnalysis, tmp_path: Path) -> None:
    made = ParametricMap.from_file(write_parametric_map(analysis, tmp_path, WriteOptions()))
    grid = analysis.volume.grid
    geometry = made.get_volume_geometry()
    assert geometry is not None
    last = grid.shape[0] - 1
    for index in ((0, 0, 0), (last, 5, 7), (3, 50, 70)):
        turned = np.array([last - index[0], *index[1:]])
        np.testing.assert_allclose(
            geometry.map_indices_to_reference(turned[None])[0],
            grid.to_patient(np.array(index, dtype=np.float64)),
            atol=1e-6,
        )


def test_frames_are_stored_in_the_order_of_the_slices_and_name_them(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    # 3D Slicer's reader goes by the order of frames and not by their positions.
    made = pydicom.dcmread(write_parametric_map(analysis, tmp_path, WriteOptions()))
    grid, uids = analysis.volume.grid, analysis.volume.source.slice_uids
    for number, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        position = [float(x) for x in groups.PlanePositionSequence[0].ImagePositionPatient]
        assert grid.to_index(np.array(position))[0] == pytest.approx(number, abs=1e-6)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == uids[number]
        assert groups.FrameContentSequence[0].DimensionIndexValues == number + 1
    assert number + 1 == len(uids)


def test_the_quantity_is_coded(analysis: ScanAnalysis, tmp_path: Path) -> None:
    made = pydicom.dcmread(write_parametric_map(analysis, tmp_path, WriteOptions()))
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert quantity.CodeValue == "130403"
    assert quantity.CodeMeaning == "Gradient-weighted class activation"
    assert made.ContentQualification == "RESEARCH"
    assert "COVID-19" in made.SeriesDescription


@pytest.mark.parametrize(
    ("method", "label", "words"),
    [
        ("gradcam", "CAP", "Evidence for Community-acquired pneumonia"),
        ("gradcam", "a class of ones own with a long name", "Evidence for a class of ones own"),
        ("strongest_channel", "COVID-19", "Network activity (strongest channel)"),
        ("attention", "COVID-19", "Network activity (attention)"),
    ],
)
def test_the_series_names_a_class_only_where_the_method_knows_one_and_ends_in_the_notice(
    analysis: ScanAnalysis, tmp_path: Path, method: str, label: str, words: str
) -> None:
    explained = analysis.explanation
    assert explained is not None
    explanation = replace(explained.explanation, method=method, label=label)
    other = replace(analysis, explanation=replace(explained, explanation=explanation))
    made = pydicom.dcmread(write_parametric_map(other, tmp_path, WriteOptions()))
    assert made.SeriesDescription.startswith(words)
    assert made.SeriesDescription.endswith(", not for clinical use")
    assert len(made.SeriesDescription) <= 64


def test_a_map_of_zeros_is_a_map(analysis: ScanAnalysis, tmp_path: Path) -> None:
    explained = analysis.explanation
    assert explained is not None
    grid = explained.heat.grid
    cold = HeatMap.of(grid, np.zeros(grid.shape, dtype=np.float32))
    zero = replace(analysis, explanation=replace(explained, heat=cold))
    made = pydicom.dcmread(write_parametric_map(zero, tmp_path, WriteOptions()))
    assert not np.frombuffer(made.FloatPixelData, dtype="<f4").any()


def test_without_a_heat_map_it_is_said_how_to_get_one(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    plain = replace(analysis, explanation=None)
    with pytest.raises(NothingToWriteError, match="--explain"):
        write_parametric_map(plain, tmp_path, WriteOptions())
    result = replace(analysis.result, decision=UNSUITABLE, probabilities={})
    with pytest.raises(NothingToWriteError, match="not classified"):
        write_parametric_map(replace(plain, result=result), tmp_path, WriteOptions())

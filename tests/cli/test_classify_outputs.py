from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import chest

from chestct.cli import main
from chestct.cli.options import Outputs
from chestct.errors import UnknownNameError, WriteError
from chestct.readers.dicom_pixels import _decode_frame
from chestct.writers import WRITERS
from chestct.writers.nifti import write_nifti

Output = pytest.CaptureFixture[str]


def classify(*arguments: str | Path, tiny: str) -> int:
    return main(["classify", *map(str, arguments), "--classifier", tiny, "--engine", "torch"])


def said(
    write: str | None = None, *, explain: bool = False, explanation: str | None = None
) -> Outputs:
    return Outputs(write=write, explain=explain, explanation=explanation)


def test_explain_and_write_all_leave_every_output(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "out"
    assert classify(scan, "--explain", "--write", "all", "--out", out, tiny=tiny) == 0
    assert capsys.readouterr().err == ""
    assert {path.name for path in (out / "p07").iterdir()} == {
        "heat-map.dcm",
        "heat-map.nii.gz",
        "lungs.nii.gz",
        "preview.png",
        "report.dcm",
        "report.html",
        "result.json",
        "segmentation.dcm",
    }


def test_every_slice_is_decoded_once_for_all_outputs_together(
    scan: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def counting(content: bytes, *more: object) -> object:
        decoded.append(content)
        return _decode_frame(content, *more)  # type: ignore[arg-type]

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("pydicom decoded pixels beside the reader")

    monkeypatch.setattr("chestct.readers.dicom_pixels._decode_frame", counting)
    monkeypatch.setattr(pydicom.Dataset, "convert_pixel_data", refused)
    assert classify(scan, "--explain", "--write", "all", "--out", tmp_path, tiny=tiny) == 0
    assert len(decoded) == len(list(scan.iterdir()))
    assert len(set(decoded)) > len(decoded) / 2  # slices of air are alike, others are not
    assert len(list((tmp_path / "p07").glob("*.dcm"))) == 3


def test_openvino_gives_the_answer_and_torch_its_gradients_for_the_same_map(
    scan: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {}
    for engine in ("openvino", "torch"):
        out = tmp_path / engine
        command = ["classify", str(scan), "--classifier", tiny, "--engine", engine]
        assert main([*command, "--explain", "--write", "json,nifti", "--out", str(out)]) == 0
        result = json.loads((out / "p07" / "result.json").read_text())
        heat = np.asarray(nibabel.load(out / "p07" / "heat-map.nii.gz").dataobj)
        found[engine] = (result, heat)
    (result, heat), (by_torch, same_heat) = found["openvino"], found["torch"]
    assert "openvino" in result["provenance"]["engine"]
    assert "openvino" not in by_torch["provenance"]["engine"]
    assert result["decision"] == by_torch["decision"]
    assert heat.max() == 1.0
    np.testing.assert_array_equal(heat, same_heat)


def test_a_writer_that_needs_a_heat_map_gets_one_unasked(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    assert classify(scan, "--write", "dicom_parametric_map", "--out", tmp_path, tiny=tiny) == 0
    assert (tmp_path / "p07" / "heat-map.dcm").is_file()
    assert str(tmp_path / "p07") in capsys.readouterr().out.replace("\n", "")


def test_what_a_nifti_file_cannot_have_is_left_out_of_all_with_a_reason(
    tiny: str, tmp_path: Path, capsys: Output
) -> None:
    volume = chest()
    scan = write_nifti(tmp_path / "p08.nii.gz", volume.voxels, volume.grid)
    assert classify(scan, "--write", "all", "--out", tmp_path / "out", tiny=tiny) == 0
    errors = capsys.readouterr().err
    assert errors.count("left out: dicom_seg, dicom_parametric_map, dicom_sr.") == 1
    assert (tmp_path / "out" / "p08" / "heat-map.nii.gz").is_file()
    assert classify(scan, "--write", "dicom_sr", "--out", tmp_path / "out", tiny=tiny) == 2
    assert "read from nifti" in capsys.readouterr().err


def test_missing_identifiers_are_refused_and_made_on_request(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    for path in scan.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = ""
        del dataset.StudyInstanceUID
        (tmp_path / "p09").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "p09" / path.name)
    out = tmp_path / "out"
    command = (tmp_path / "p09", "--write", "json,html,dicom_sr", "--out", out)
    assert classify(*command, tiny=tiny) == 1
    said = capsys.readouterr()
    assert said.err.count("StudyInstanceUID and SOPInstanceUID") == 1
    assert "--make-uids" in said.err
    assert "Traceback" not in said.err
    for told in (
        " ".join(said.out.replace("│", "").split()),
        (out / "p09" / "result.json").read_text(),
        (out / "p09" / "report.html").read_text(),
    ):
        assert "dicom_sr could not be written" in told
    assert classify(tmp_path / "p09", "--write", "dicom_sr", "--out", out, tiny=tiny) == 2
    assert classify(*command, "--make-uids", "--deterministic", tiny=tiny) == 0
    report = tmp_path / "out" / "p09" / "report.dcm"
    first = report.read_bytes()
    assert classify(*command, "--make-uids", "--deterministic", tiny=tiny) == 0
    assert report.read_bytes() == first


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--write", "json"], "--write is about what is written"),
        (["--explain"], "--explain is about what is written"),
        (["--make-uids"], "Name a folder: --out DIR"),
    ],
)
def test_options_about_outputs_want_a_folder(
    option: list[str], words: str, scan: Path, tiny: str, capsys: Output
) -> None:
    assert classify(scan, *option, tiny=tiny) == 2
    assert words in capsys.readouterr().err


def test_an_explanation_may_be_asked_for_json_alone() -> None:
    said(explain=True).require_use(is_json=True)
    with pytest.raises(WriteError):
        said("json").require_use(is_json=True)


def test_names_are_checked_before_anything_is_loaded(scan: Path, capsys: Output) -> None:
    for option in (["--write", "dicom_sag"], ["--explanation", "gradcan"], ["--write", ","]):
        assert main(["classify", str(scan), "--out", "somewhere", *option]) == 2
        assert capsys.readouterr().err.count("chestct: ") == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        said(explanation="gradcan").explanation_for(())


def test_the_default_is_what_it_was() -> None:
    assert said().write_options().names == ("json", "html", "preview")
    assert said().explanation_for(("json", "html", "preview")) is None


def test_names_are_sorted_as_they_are_written() -> None:
    options = said(" dicom_sr, json,dicom_seg ").write_options()
    assert options.names == ("json", "dicom_seg", "dicom_sr")
    assert not options.skips_impossible
    everything = said("all").write_options()
    assert everything.skips_impossible
    assert set(WRITERS) - set(everything.names) == {"dicom_sc"}


def test_explanations_are_chosen_as_they_are_asked_for() -> None:
    assert said(explain=True).explanation_for(()) == "auto"
    assert said(explanation="layercam").explanation_for(()) == "layercam"
    assert said(explanation="layercam:layer2").explanation_for(()) == "layercam:layer2"
    assert said("dicom_sc").explanation_for(("dicom_sc",)) == "auto"
    assert said("nifti").explanation_for(("nifti",)) is None

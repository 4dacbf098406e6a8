from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from analyses import SALIENT, SHAPE, make_analysis

from chestct.preprocess.recipes import recipe_from_dict
from chestct.writers.preview import _prepared_record, write_prepared


def test_input_lungs_and_record_are_written(tmp_path: Path) -> None:
    prepared = make_analysis().prepared
    written = write_prepared(prepared, "p07", tmp_path / "out")
    assert [path.name for path in written] == [
        "input.nii.gz",
        "lungs.nii.gz",
        "scan_lungs.nii.gz",
        "preview.png",
        "prepared.json",
    ]
    stored = np.asarray(nibabel.load(written[0]).dataobj)
    np.testing.assert_array_equal(stored.T, prepared.input[0])
    assert np.asarray(nibabel.load(written[2]).dataobj).sum() == prepared.scan_lungs.voxels.sum()


def test_input_and_scan_lungs_overlap_in_the_patient(tmp_path: Path) -> None:
    written = write_prepared(make_analysis().prepared, "p07", tmp_path)
    centres = []
    for path in (written[1], written[2]):
        made = nibabel.load(path)
        mask = np.asarray(made.dataobj) > 0
        if path == written[2]:
            mask[:, :, : SALIENT[0]] = False
            mask[:, :, SALIENT[1] + 1 :] = False
        centre = np.argwhere(mask).mean(axis=0)
        centres.append((made.affine @ [*centre, 1])[:3])
    np.testing.assert_allclose(centres[0], centres[1], atol=2.0)


def test_the_record_gives_the_recipe_back() -> None:
    prepared = make_analysis().prepared
    record = json.loads(json.dumps(_prepared_record(prepared, "p07")))
    assert recipe_from_dict(record["recipe"]) == prepared.recipe
    assert record["salient_slices"] == {"first": SALIENT[0], "last": SALIENT[1], "total": SHAPE[0]}
    assert len(record["lung_area"]) == SHAPE[0]
    assert record["input_grid"]["spacing_mm"] == list(prepared.grid.spacing_mm)

"""Four scans on disk for the tests of data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_scans import make_manifest, write_scan

from chestct.datasets.manifest import Manifest, ManifestRow


@pytest.fixture
def scans(tmp_path: Path) -> Manifest:
    """Four coarse chests of four patients, two of each class."""
    rows = []
    for number, label in enumerate(("COVID-19", "normal", "COVID-19", "normal")):
        write_scan(tmp_path / f"scan{number}.nii.gz", seed=number)
        rows.append(ManifestRow(f"scan{number}.nii.gz", f"patient {number}", label))
    return make_manifest(rows, tmp_path)

"""What every test may use: run-time type checks, the real scans where there are some."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typechecking import install_checks

# Where the environment forbids to keep bytecode, each of the many processes that tests start would
# compile chestct anew, and each pytest worker the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Shapes and types of every annotated function are checked while the tests run, and only then.
install_checks("chestct")

# Two pytest workers with two threads each would only get in each other's way, and so would the
# processes that their tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


LONG = (
    "test_training_commands.py",
    "test_overfit.py",
    "test_notebooks.py",
    "test_page.py",
    "test_every_network.py",
    "test_every_recipe.py",
    "test_classify_many.py",
    "test_kills.py",
    "test_lungs_recommended.py",
    "test_roi_ablation.py",
    "test_loop.py",
    "test_together.py",
    "test_tune.py",
)
"""Files that take long, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: at the end of a run the other workers would wait for one."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def find_data_folder() -> Path | None:
    """The folder of real scans: CHESTCT_DATA, or `shared/data` beside the repository."""
    named = os.environ.get("CHESTCT_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return folder if (folder / "covid_ct_md").is_dir() else None


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that the user's is neither read nor written.

    All workers of a run share it: each would convert the shipped networks for OpenVINO otherwise.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real scans, read only; nothing of them is in the repository."""
    folder = find_data_folder()
    if folder is None:
        pytest.skip("no real scans: set CHESTCT_DATA or put them at ../shared/data")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a classifier with drawn weights, small enough to run in no time."""
    from tiny import save_tiny_classifier

    return str(save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "classifier"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM series of a chest of ellipsoids."""
    from phantoms import chest

    from chestct.simulate import write_dicom_series

    folder = tmp_path_factory.mktemp("scans") / "p07"
    volume = chest()
    write_dicom_series(volume.with_voxels(volume.voxels.round().astype(np.int16)), folder)
    return folder

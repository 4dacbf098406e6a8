"""Importing the package costs nothing until something is simulated."""

from __future__ import annotations

import subprocess
import sys

import pytest

import chestct.simulate


def test_importing_simulate_loads_neither_scipy_nor_opencv() -> None:
    heavy = "{'scipy', 'cv2', 'pydicom', 'torch'}"
    code = f"import sys, chestct.simulate; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", chestct.simulate.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(chestct.simulate, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="cure_patient"):
        chestct.simulate.cure_patient  # noqa: B018

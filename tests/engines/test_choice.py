"""What "auto" stands for."""

from __future__ import annotations

import pytest
import torch

from chestct import engines
from chestct.engines import _choose_engine, _has_cuda_gpu, _has_library


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, openvino: bool) -> None:
    monkeypatch.setattr(engines, "_has_cuda_gpu", lambda: gpu)
    monkeypatch.setattr(engines, "is_installed", lambda package: openvino)


@pytest.mark.parametrize(
    ("gpu", "openvino", "device", "expected"),
    [
        (False, True, None, ("openvino", None)),
        (False, False, None, ("torch", None)),
        (True, True, None, ("torch", "cuda")),
        (True, True, "cpu", ("openvino", None)),
        (True, False, "cpu", ("torch", "cpu")),
        (False, True, "cuda:1", ("torch", "cuda:1")),
        (True, True, "GPU", ("openvino", "GPU")),
    ],
)
def test_auto_takes_the_gpu_then_openvino_then_torch(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    openvino: bool,
    device: str | None,
    expected: tuple[str, str | None],
) -> None:
    pretend(monkeypatch, gpu=gpu, openvino=openvino)
    assert _choose_engine(device) == expected


@pytest.mark.parametrize(
    ("driver", "usable"), [(None, True), ("libcuda.so.1", False), ("libcuda.so.1", True)]
)
def test_a_gpu_needs_a_driver_and_a_torch_that_can_use_it(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, usable: bool
) -> None:
    monkeypatch.setattr(engines, "_has_library", lambda name: name == driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert _has_cuda_gpu() == (driver is not None and usable)


def test_a_library_that_is_not_there_is_not_found() -> None:
    assert not _has_library("libnosuchdriver.so.1")

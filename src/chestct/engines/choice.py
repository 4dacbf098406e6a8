"""Which engine "auto" takes on this machine, found out without loading PyTorch where possible."""

from __future__ import annotations

from ctypes import CDLL
from typing import Final

from chestct.extras import is_installed

_DRIVERS: Final = ("libcuda.so.1", "nvcuda.dll", "libamdhip64.so")


def choose_engine(device: str | None) -> tuple[str, str | None]:
    """Name and device of the engine that "auto" stands for.

    A named PyTorch device is obeyed. Otherwise a CUDA GPU (or ROCm, which PyTorch calls the same)
    where there is one, then OpenVINO where it is installed, then PyTorch on the CPU. Intel's GPUs
    are not taken unasked: their precision has not been tested here.
    """
    if device is not None and device.startswith(("cuda", "cpu", "mps")):
        takes_openvino = device == "cpu" and is_installed("openvino")
        return ("openvino", None) if takes_openvino else ("torch", device)
    if device is not None:
        return "openvino", device
    if has_cuda_gpu():
        return "torch", "cuda"
    return ("openvino" if is_installed("openvino") else "torch"), None


def has_cuda_gpu() -> bool:
    """Whether PyTorch can use a GPU; PyTorch is loaded only where a driver is installed."""
    if not any(has_library(name) for name in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def has_library(name: str) -> bool:
    """Whether the system finds a shared library of that file name."""
    try:
        CDLL(name)
    except OSError:
        return False
    return True

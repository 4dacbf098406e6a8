"""Where a network runs: PyTorch, which is always there, or OpenVINO, which is faster on a CPU.

An engine is made once per classifier and then asked for logits, scan by scan. The table imports
neither package; OpenVINO runs without PyTorch being loaded once it has converted a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CDLL
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32

from chestct.arrays import Heat, Mask, NetworkInput
from chestct.errors import EngineError
from chestct.extras import is_installed
from chestct.lookup import Entry, load_entry, look_up

if TYPE_CHECKING:
    from torch import nn

AUTO: Final = "auto"
"""Engine name that stands for the best choice on this machine: see `make_engine`."""

ENGINES: Final[dict[str, Entry]] = {
    "torch": Entry("chestct.engines.torch_engine:TorchEngine", "PyTorch on the CPU or on a GPU"),
    "openvino": Entry(
        "chestct.engines.openvino_engine:OpenVinoEngine",
        "OpenVINO, on the CPU unless told otherwise",
    ),
}
"""Engine name to its class, called as `engine(model, precision=..., device=...)`, or as
`engine.voxels(model)` by `voxel_runner`."""


PRECISIONS: Final[dict[str, str]] = {
    "float32": "32-bit floating point, the reference",
    "bf16": "16-bit brain floating point: probabilities within 0.01 of the reference",
}
"""Precision name to what it means."""


def make_engine(
    model: RunnableNetwork,
    name: str = AUTO,
    *,
    precision: str | None = None,
    device: str | None = None,
) -> Engine:
    """Get a network ready to run.

    Args:
        model: A classifier, or anything that tells what `RunnableNetwork` asks.
        name: A name in `ENGINES`, or "auto".
        precision: "float32", "bf16", or None for bf16 where the processor computes in it and
            float32 elsewhere (PyTorch on a CPU: always float32, the reference).
        device: The engine's own name of a device, such as "cuda:1" or "GPU"; None for the usual
            one: the CPU, or with "auto" a CUDA GPU where there is one.

    Raises:
        UnknownNameError: There is no such engine or precision.
        EngineError: The device is not there, or the engine cannot run this network.
        MissingExtraError: The engine's package is not installed.
        ClassifierError: The classifier's weights do not fit its network.
    """
    if precision is not None:
        look_up(PRECISIONS, precision, kind="precision")
    if name == AUTO:
        name, device = _choose_engine(device)
    make = load_entry(ENGINES, name, kind="engine")
    engine: Engine = make(model, precision=precision, device=device)
    return engine


def voxel_engine(name: str = AUTO) -> str:
    """Which engine `voxel_runner` takes for a name: "torch" or "openvino"."""
    if name == "openvino" or (name != "torch" and is_installed("openvino")):
        return "openvino"
    return "torch"


def voxel_runner(model: StoredNetwork, name: str = AUTO) -> RunVoxels:
    """Get a network that gives logits of every voxel ready to run, on the CPU in float32.

    Args:
        model: A small network of one channel that takes volumes of any size.
        name: "torch" or "openvino"; any other name, "auto" among them, stands for OpenVINO where
            it is installed and PyTorch elsewhere.

    Raises:
        MissingExtraError: The engine's package is not installed.
        EngineError: The engine cannot run this network.
    """
    run: RunVoxels = load_entry(ENGINES, voxel_engine(name), kind="engine").voxels(model)
    return run


@runtime_checkable
class StoredNetwork(Protocol):
    """A network with its weights, described so that it need not be loaded to be recognised."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file."""

    @property
    def identity(self) -> str:
        """Everything else that decides what the network computes, as text."""

    def load_network(self) -> nn.Module:
        """A new network with its weights, in eval mode, on the CPU, float32."""


class Outputs(NamedTuple):
    """What a network says of one scan: logits, and the pooled features it decided on, if any."""

    logits: Float32[np.ndarray, " class"]
    features: Float32[np.ndarray, " feature"]


@runtime_checkable
class RunnableNetwork(StoredNetwork, Protocol):
    """A network that gives the logits of a whole scan of one size."""

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """What one scan looks like, (channel, depth, height, width)."""


VoxelLogits: TypeAlias = Float32[np.ndarray, "class depth height width"]
"""Logits of every voxel."""

RunVoxels: TypeAlias = Callable[[Heat], VoxelLogits]
"""Runs a network of one channel that gives logits of every voxel, on any size it accepts."""


@runtime_checkable
class Engine(Protocol):
    """Something that runs one network.

    Attributes:
        name: Engine, precision and device in words, such as "openvino bf16".
    """

    name: str

    def outputs(self, input: NetworkInput, lungs: Mask) -> Outputs:  # noqa: A002
        """Logits and pooled features of one prepared scan.

        Args:
            input: Network input, (channel, depth, height, width).
            lungs: Lung mask on the same grid.

        Raises:
            EngineError: The input has another size than the network was made ready for, or the
                network could not be run or did not give numbers.
        """

    def logits(self, input: NetworkInput, lungs: Mask) -> Float32[np.ndarray, " class"]:  # noqa: A002
        """The logits of `outputs` alone."""
        return self.outputs(input, lungs).logits


def check_input(scan: np.ndarray, lungs: np.ndarray, expected: tuple[int, int, int, int]) -> None:
    """Refuse an input that the engine was not made ready for.

    Values that are not finite are looked for here, as a rectifier can hide them: OpenVINO's turns
    NaN into 0, and the answer would look like any other.

    Raises:
        EngineError: The input or the lung mask has another size, or a value is not finite.
    """
    if scan.shape != expected or lungs.shape != expected[1:]:
        msg = (
            f"The network takes an input of {expected} and lungs of {expected[1:]}, not "
            f"{scan.shape} and {lungs.shape}: prepare the scan with the classifier's own recipe."
        )
        raise EngineError(msg)
    if not np.isfinite(scan).all():
        raise EngineError("The prepared scan holds values that are not finite (nan or inf).")


@contextmanager
def engine_errors(engine: str, *, line: int = 0) -> Iterator[None]:
    """Around what a package does with a network: its errors become ours.

    `line` is which line of the package's message is passed on: 0 for the first, -1 for the last.

    Raises:
        EngineError: The package raised a `RuntimeError`, such as one about a full GPU.
    """
    try:
        yield
    except RuntimeError as error:
        msg = (
            f"The network cannot be run with {engine}: {reason_of(error, line=line)}. Free memory, "
            "or take another engine, device or precision."
        )
        raise EngineError(msg) from error


def reason_of(error: Exception, *, line: int = 0) -> str:
    """One line of what a package said of an error, or what kind of error it is."""
    said = [text.strip() for text in str(error).splitlines() if text.strip()]
    return said[line].rstrip(".") if said else type(error).__name__


def checked_outputs(logits: np.ndarray, features: np.ndarray, engine: str) -> Outputs:
    """Logits and features of one scan as float32 vectors.

    Raises:
        EngineError: Some are not finite.
    """
    outputs = Outputs(
        np.array(logits, dtype=np.float32).reshape(-1),
        np.array(features, dtype=np.float32).reshape(-1),
    )
    if not all(np.isfinite(vector).all() for vector in outputs):
        given = outputs.logits.tolist()
        msg = f"The network gave {given} with {engine}: try another engine or float32."
        raise EngineError(msg)
    return outputs


_DRIVERS: Final = ("libcuda.so.1", "nvcuda.dll", "libamdhip64.so")


def _choose_engine(device: str | None) -> tuple[str, str | None]:
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
    if _has_cuda_gpu():
        return "torch", "cuda"
    return ("openvino" if is_installed("openvino") else "torch"), None


def _has_cuda_gpu() -> bool:
    """Whether PyTorch can use a GPU; PyTorch is loaded only where a driver is installed."""
    if not any(_has_library(name) for name in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def _has_library(name: str) -> bool:
    """Whether the system finds a shared library of that file name."""
    try:
        CDLL(name)
    except OSError:
        return False
    return True

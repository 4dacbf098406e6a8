"""Where a network runs: PyTorch, which is always there, or OpenVINO, which is faster on a CPU.

An engine is made once per classifier and then asked for logits, scan by scan. The table imports
neither package; OpenVINO runs without PyTorch being loaded once it has converted a network.
"""

from __future__ import annotations

from typing import Final

from chestct.engines.interface import (
    PRECISIONS,
    Engine,
    RunnableNetwork,
    RunVoxels,
    StoredNetwork,
    choose_engine,
)
from chestct.extras import is_installed
from chestct.lookup import Entry, load_entry, look_up

__all__ = [
    "AUTO",
    "ENGINES",
    "PRECISIONS",
    "Engine",
    "RunVoxels",
    "RunnableNetwork",
    "StoredNetwork",
    "make_engine",
    "voxel_engine",
    "voxel_runner",
]

AUTO: Final = "auto"
"""Engine name that stands for the best choice on this machine: see `interface.choose_engine`."""


ENGINES: Final[dict[str, Entry]] = {
    "torch": Entry("chestct.engines.torch_engine:TorchEngine", "PyTorch on the CPU or on a GPU"),
    "openvino": Entry(
        "chestct.engines.openvino_engine:OpenVinoEngine",
        "OpenVINO, on the CPU unless told otherwise",
    ),
}
"""Engine name to its class, called as `engine(model, precision=..., device=...)`."""


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
        name, device = choose_engine(device)
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
    if voxel_engine(name) == "openvino":
        from chestct.engines.openvino_engine import openvino_voxels

        return openvino_voxels(model)
    from chestct.engines.torch_engine import torch_voxels

    return torch_voxels(model)

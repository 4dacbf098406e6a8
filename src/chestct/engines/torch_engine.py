"""Run a network with PyTorch: the reference, on the CPU or on a GPU."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from chestct.arrays import Heat, Mask, NetworkInput
from chestct.engines import (
    Engine,
    Outputs,
    RunnableNetwork,
    RunVoxels,
    StoredNetwork,
    VoxelLogits,
    check_input,
    checked_outputs,
    engine_errors,
    reason_of,
)
from chestct.errors import EngineError
from chestct.networks.blocks import LogitsAndFeatures

_TYPES: Final = {"float32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine(Engine):
    """PyTorch in float32, or in bfloat16 by autocast.

    The network is laid out channels-last, which oneDNN and cuDNN run faster.

    Args:
        model: The network to run; this engine loads a copy of its own.
        precision: "float32", "bf16", or None: bf16 on a GPU that computes in it, else float32.
        device: PyTorch's name of the device, None for the CPU.

    Raises:
        EngineError: There is no such device, or the network does not fit on it.
    """

    def __init__(
        self, model: RunnableNetwork, *, precision: str | None = None, device: str | None = None
    ) -> None:
        self._device = _device(device)
        self._input_size = model.input_size
        self.precision = precision or _usual_precision(self._device)
        self.name = f"torch {self.precision}"
        if self._device.type != "cpu":
            self.name += f" {self._device}"
        network = LogitsAndFeatures(model.load_network()).eval()
        with engine_errors(self.name):
            self._network = network.to(self._device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def outputs(self, input: NetworkInput, lungs: Mask) -> Outputs:  # noqa: A002
        """Logits and pooled features of one prepared scan; see `Engine.outputs`."""
        check_input(input, lungs, self._input_size)
        batch = torch.from_numpy(np.require(input, requirements=("C", "W")))[None]
        mask = torch.from_numpy(np.ascontiguousarray(lungs))[None, None]
        autocast = torch.autocast(
            self._device.type,
            dtype=_TYPES[self.precision],
            enabled=self.precision != "float32",
        )
        with engine_errors(self.name), torch.inference_mode(), autocast:
            given = self._network(batch.to(self._device), mask.to(self._device).to(batch.dtype))
            # A GPU may say of a failure only when the result is fetched.
            logits, features = (part[0].float().cpu().numpy() for part in given)
        return checked_outputs(logits, features, self.name)

    @staticmethod
    def voxels(model: StoredNetwork) -> RunVoxels:
        """As `voxel_runner`."""
        network = model.load_network().eval()

        def run(values: Heat) -> VoxelLogits:
            """Run it."""
            batch = torch.from_numpy(np.require(values, requirements=("C", "W")))[None, None]
            with engine_errors("torch float32"), torch.inference_mode():
                logits: VoxelLogits = network(batch)[0].numpy()
            return logits

        return run


def _device(name: str | None) -> torch.device:
    """The device of that name, tried out."""
    try:
        device = torch.device(name or "cpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # PyTorch built without CUDA says so by an AssertionError.
        msg = (
            f"PyTorch cannot use the device '{name}': {reason_of(error)}. Leave it out to use the "
            "CPU."
        )
        raise EngineError(msg) from error
    return device


def _usual_precision(device: torch.device) -> str:
    is_bf16_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_bf16_fast else "float32"

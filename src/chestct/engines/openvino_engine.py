"""Run a network with OpenVINO, several times faster than PyTorch on a CPU.

The network is converted once, by way of PyTorch, and the converted model is cached; from then on
PyTorch is not loaded at all.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

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
from chestct.extras import import_extra
from chestct.storage import find_entry, store_entry, text_key

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHE_KIND: Final = "openvino"
_CONVERSION: Final = "3"
"""Part of the cache's key: to be raised when the conversion below changes."""

_MODEL_FILE: Final = "model.xml"
_HINTS: Final = {"float32": "f32", "bf16": "bf16"}
_REASON_LINE: Final = -1
"""OpenVINO's messages begin with places in its own source."""


class OpenVinoEngine(Engine):
    """OpenVINO in float32 or bfloat16.

    Args:
        model: The network to run; loaded only when it has not been converted before.
        precision: "float32", "bf16", or None: bf16 where the device says that it computes in it.
        device: OpenVINO's name of the device, None for "CPU".

    Raises:
        MissingExtraError: OpenVINO is not installed.
        EngineError: There is no such device, or it does not compute in bf16 as asked, or OpenVINO
            cannot run the network.
    """

    def __init__(
        self, model: RunnableNetwork, *, precision: str | None = None, device: str | None = None
    ) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        self._input_size = model.input_size
        device = _checked_device(core, device or "CPU")
        self.precision = precision or ("bf16" if computes_in_bf16(core, device) else "float32")
        if self.precision == "bf16" and not computes_in_bf16(core, device):
            msg = f"OpenVINO's device '{device}' does not compute in bf16: use float32."
            raise EngineError(msg)
        self.name = f"openvino {self.precision}" + ("" if device == "CPU" else f" {device}")
        hint = {"INFERENCE_PRECISION_HINT": _HINTS[self.precision]}
        try:
            self._compiled = core.compile_model(_converted_model(model, core), device, hint)
        except RuntimeError as error:
            reason = reason_of(error, line=_REASON_LINE)
            raise EngineError(f"OpenVINO cannot run this network: {reason}. Use torch.") from error

    def outputs(self, input: NetworkInput, lungs: Mask) -> Outputs:  # noqa: A002
        """Logits and pooled features of one prepared scan; see `Engine.outputs`."""
        check_input(input, lungs, self._input_size)
        batch = np.ascontiguousarray(input)[None]
        mask = lungs.astype(np.float32)[None, None]
        # A network that ignores the lungs is converted to a model with one input.
        tensors = [batch, mask][: len(self._compiled.inputs)]
        with engine_errors(self.name, line=_REASON_LINE):
            given = self._compiled(tensors)
            logits, features = given[0], given[1]
        return checked_outputs(logits, features, self.name)

    @staticmethod
    def voxels(model: StoredNetwork) -> RunVoxels:
        """As `voxel_runner`; the network must take a volume of 64 voxels along each axis."""
        core = import_openvino().Core()
        name = "openvino float32"
        with engine_errors(name, line=_REASON_LINE):
            converted = _cached_conversion(model, core, "any", lambda: _convert_voxels(model))
            hint = {"INFERENCE_PRECISION_HINT": _HINTS["float32"]}
            compiled = core.compile_model(converted, "CPU", hint)

        def run(values: Heat) -> VoxelLogits:
            """Run it; a request of its own for each call, so that threads do not share one."""
            with engine_errors(name, line=_REASON_LINE):
                found = compiled.create_infer_request().infer(
                    [np.ascontiguousarray(values)[None, None]]
                )
                return np.array(found[0][0])

        return run


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Importing it sends a message over the network when the package `openvino_telemetry` is there,
    which comes with it. Without that package OpenVINO uses a stub of its own, so it is hidden.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_extra("openvino", extra="openvino")


def computes_in_bf16(core: Any, device: str) -> bool:
    """Whether a device says of itself that it computes in bfloat16."""
    return "BF16" in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def _converted_model(model: RunnableNetwork, core: Any) -> Any:
    """The network as an OpenVINO model, from the cache or converted and put there.

    The file is the same for every precision, which is chosen when it is compiled for a device.
    """
    return _cached_conversion(model, core, repr(model.input_size), lambda: convert(model))


def _cached_conversion(
    model: StoredNetwork, core: Any, size: str, convert: Callable[[], Any]
) -> Any:
    openvino = import_openvino()
    key = text_key(_CONVERSION, openvino.get_version(), model.weights_sha256, model.identity, size)
    entry = find_entry(CACHE_KIND, key)
    if entry is not None:
        return core.read_model(entry / _MODEL_FILE)
    converted = convert()

    def _write(folder: Path) -> None:
        openvino.save_model(converted, folder / _MODEL_FILE, compress_to_fp16=False)

    store_entry(CACHE_KIND, key, _write)
    return converted


def convert(model: RunnableNetwork) -> Any:
    """Convert a network for one scan of the classifier's size; loads PyTorch."""
    import torch

    from chestct.networks.blocks import LogitsAndFeatures, pair_columns

    size = model.input_size
    network = model.load_network().eval()
    pair_columns(network, width=size[-1])
    both = LogitsAndFeatures(network)
    converted = _exported(both, torch.zeros(1, *size), torch.ones(1, 1, *size[1:]))
    shapes = [[1, *size], [1, 1, *size[1:]]]
    converted.reshape(dict(zip(converted.inputs, shapes, strict=False)))
    return converted


def _exported(network: nn.Module, *example: Tensor) -> Any:
    """A network as an OpenVINO model of the example's size."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch's exporter warns of PyTorch's own deprecations.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.export.export(network, example)
        return import_openvino().convert_model(exported)


def _convert_voxels(model: StoredNetwork) -> Any:
    """Convert a network of one channel for volumes of any size; loads PyTorch."""
    import torch

    converted = _exported(model.load_network().eval(), torch.zeros(1, 1, 64, 64, 64))
    converted.reshape([1, 1, -1, -1, -1])
    return converted


def _checked_device(core: Any, device: str) -> str:
    known = core.available_devices
    if device.split(".")[0] not in {name.split(".")[0] for name in known}:
        msg = f"OpenVINO finds no device '{device}' here. It finds: {', '.join(known)}."
        raise EngineError(msg)
    return device

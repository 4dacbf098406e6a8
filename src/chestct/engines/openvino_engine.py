"""Run a network with OpenVINO, several times faster than PyTorch on a CPU.

The network is converted once, by way of PyTorch, and the converted model is cached; from then on
PyTorch is not loaded at all.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from chestct.arrays import Mask, NetworkInput
from chestct.engines.interface import (
    RunnableNetwork,
    check_input,
    checked_logits,
    engine_errors,
    reason_of,
)
from chestct.errors import EngineError
from chestct.extras import import_extra
from chestct.storage import find_entry, store_entry, text_key

CACHE_KIND: Final = "openvino"
CONVERSION: Final = "2"
"""Part of the cache's key: to be raised when the conversion below changes."""

_MODEL_FILE: Final = "model.xml"
_HINTS: Final = {"float32": "f32", "bf16": "bf16"}
_REASON_LINE: Final = -1
"""OpenVINO's messages begin with places in its own source."""


class OpenVinoEngine:
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
            self._compiled = core.compile_model(converted_model(model, core), device, hint)
        except RuntimeError as error:
            reason = reason_of(error, line=_REASON_LINE)
            raise EngineError(f"OpenVINO cannot run this network: {reason}. Use torch.") from error

    def logits(self, input: NetworkInput, lungs: Mask) -> Float32[np.ndarray, " class"]:  # noqa: A002
        """Logits of one prepared scan; see `Engine.logits`."""
        check_input(input, lungs, self._input_size)
        batch = np.ascontiguousarray(input)[None]
        mask = lungs.astype(np.float32)[None, None]
        # A network that ignores the lungs is converted to a model with one input.
        tensors = [batch, mask][: len(self._compiled.inputs)]
        with engine_errors(self.name, line=_REASON_LINE):
            found = self._compiled(tensors)[0]
        return checked_logits(found, self.name)


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


def converted_model(model: RunnableNetwork, core: Any) -> Any:
    """The network as an OpenVINO model, from the cache or converted and put there.

    The file is the same for every precision, which is chosen when it is compiled for a device.
    """
    openvino = import_openvino()
    key = text_key(
        CONVERSION,
        openvino.get_version(),
        model.weights_sha256,
        model.identity,
        repr(model.input_size),
    )
    entry = find_entry(CACHE_KIND, key)
    if entry is not None:
        return core.read_model(entry / _MODEL_FILE)
    converted = convert(model)

    def _write(folder: Path) -> None:
        openvino.save_model(converted, folder / _MODEL_FILE, compress_to_fp16=False)

    store_entry(CACHE_KIND, key, _write)
    return converted


def convert(model: RunnableNetwork) -> Any:
    """Convert a network for one scan of the classifier's size; loads PyTorch."""
    import torch

    from chestct.engines.column_pairs import pair_columns

    openvino = import_openvino()
    size = model.input_size
    example = (torch.zeros(1, *size), torch.ones(1, 1, *size[1:]))
    network = model.load_network().eval()
    pair_columns(network, width=size[-1])
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch's exporter warns of PyTorch's own deprecations.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.export.export(network, example)
        converted = openvino.convert_model(exported)
    shapes = [[1, *size], [1, 1, *size[1:]]]
    converted.reshape(dict(zip(converted.inputs, shapes, strict=False)))
    return converted


def _checked_device(core: Any, device: str) -> str:
    known = core.available_devices
    if device.split(".")[0] not in {name.split(".")[0] for name in known}:
        msg = f"OpenVINO finds no device '{device}' here. It finds: {', '.join(known)}."
        raise EngineError(msg)
    return device

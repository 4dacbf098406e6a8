"""Load MedicalNet's pretrained weights into the backbone of a 3D ResNet.

MedicalNet (Chen et al., "Med3D", 2019) trained 3D ResNets on segmentation of many organs. Kernel
sizes, channels and names are ours, so the tensors fit. Three things differ there and are not
carried over, as they are not part of the weights: stages 3 and 4 dilate (2 and 4) where ours
stride, so features meet another field of view than the one they were trained on; ResNet-18 and
-34 use parameter-free shortcuts (type A), so our projections of ResNet-18 keep their initial
values and are reported as missing; and `conv_seg`, its segmentation head, has no place here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Final
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chestct.errors import NetworkError

MAX_FILE_BYTES: Final = 2 * 2**30
"""Largest weights file read; MedicalNet's ResNet-200 has 0.5 GiB."""

_HEAD: Final = ("fc1.", "fc2.")
_PARALLEL_PREFIX: Final = "module."
_UNREADABLE: Final = (
    SafetensorError,
    UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    BadZipFile,
)


@dataclass(frozen=True)
class _WeightsReport:
    """What became of the tensors of a weights file.

    Attributes:
        loaded: Tensors of the network that now hold the file's values.
        missing: Backbone tensors the file does not have; they keep their initial values.
        unexpected: Tensors of the file that have no place in the network.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded."]
        if self.missing:
            lines.append(f"Not in the file, left as they were: {', '.join(self.missing)}.")
        if self.unexpected:
            lines.append(f"In the file, not used: {', '.join(self.unexpected)}.")
        return "\n".join(lines)


def load_medicalnet_weights(network: nn.Module, path: str | Path) -> _WeightsReport:
    """Copy MedicalNet's weights into the backbone of a 3D ResNet, in place.

    The head stays as it is. BatchNorm's step counters may be missing (older files lack them).

    Args:
        network: A 3D ResNet of this package, of the same depth as the file's.
        path: A `.safetensors` file, or a PyTorch checkpoint (`.pth`), of which only plain tensors
            are read: nothing in it is ever run.

    Returns:
        Which tensors were loaded, missing and unexpected. Print it.

    Raises:
        NetworkError: The file cannot be read, a tensor has another shape, or nothing fits.
    """
    tensors = _strip_prefix(read_tensors(Path(path)))
    own = network.state_dict()
    backbone = {name for name in own if not name.startswith(_HEAD)}
    fitting = {name: tensor for name, tensor in tensors.items() if name in backbone}
    _check_shapes(fitting, own, Path(path).name)
    network.load_state_dict(fitting, strict=False)
    counters = {name for name in backbone if name.endswith("num_batches_tracked")}
    left_out = backbone - set(fitting) - counters
    return _WeightsReport(
        loaded=tuple(name for name in own if name in fitting),
        missing=tuple(name for name in own if name in left_out),
        unexpected=tuple(name for name in tensors if name not in fitting),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that others made; nothing in it is ever run.

    Raises:
        NetworkError: It is not there, too large, or no file of weights.
    """
    if not path.is_file():
        raise NetworkError(f"There is no weights file '{path}'.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise NetworkError(f"'{path.name}' has {size} bytes, over the {MAX_FILE_BYTES} allowed.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: tensors and containers, no code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        msg = (
            f"'{path.name}' is not a readable file of weights ({_first_line(error)}). Get it again."
        )
        raise NetworkError(msg) from error
    inner = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are without DataParallel around the network."""
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}


def _check_shapes(fitting: dict[str, Tensor], own: dict[str, Tensor], file_name: str) -> None:
    if not fitting:
        msg = f"No tensor of '{file_name}' fits: expected a 3D ResNet saved by MedicalNet."
        raise NetworkError(msg)
    for name, tensor in fitting.items():
        if tensor.shape != own[name].shape:
            msg = (
                f"'{file_name}' holds '{name}' as {tuple(tensor.shape)}, this network has "
                f"{tuple(own[name].shape)}: use the file of the same depth, with one input channel "
                f"and width 64."
            )
            raise NetworkError(msg)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]

"""Begin a network with weights that are given: of another run, of MONAI, of MedicalNet.

A tensor is taken where the file has it under the network's own name and in its shape, once what
all of the file's names have before them ("module.", "encoder.") is taken off. What the network
decides with, its head, is taken only from a classifier of the same classes.

MedicalNet (Chen et al., "Med3D", 2019) trained 3D ResNets on segmentation of many organs. Kernel
sizes, channels and names are ours, so the tensors fit. Three things differ there and are not
carried over, as they are not part of the weights: stages 3 and 4 dilate (2 and 4) where ours
stride, so features meet another field of view than the one they were trained on; ResNet-18 and
-34 use parameter-free shortcuts (type A), so our projections of ResNet-18 keep their initial
values and are reported as missing; and `conv_seg`, its segmentation head, has no place here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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
from chestct.networks.blocks import is_in_head

MAX_FILE_BYTES: Final = 2 * 2**30
"""Largest weights file read; MedicalNet's ResNet-200 has 0.5 GiB."""

_COUNTER: Final = "num_batches_tracked"
"""BatchNorm's step counters: all networks have them, and older files lack them."""
_SECTIONS: Final = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep their tensors, if not at the top."""
_NUM_NAMED: Final = 3
_UNREADABLE: Final = (
    SafetensorError,
    UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    BadZipFile,
)


@dataclass(frozen=True)
class TakenWeights:
    """What became of the tensors of a weights file.

    Attributes:
        taken: Tensors of the network that now hold the file's values.
        missing: Tensors of the backbone that the file does not have; they keep their drawn values.
        unused: Tensors of the file that have no place in the network.
        has_head: Whether the head was taken too.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    has_head: bool

    def __str__(self) -> str:
        lines = [
            f"Taken: {_counted(self.taken)}.",
            f"Not in the file and drawn: {_counted(self.missing)}." if self.missing else "",
            f"In the file and not used: {_counted(self.unused)}." if self.unused else "",
            "The head was taken." if self.has_head else "The head is drawn anew.",
        ]
        return " ".join(filter(None, lines))

    def as_record(self) -> dict[str, object]:
        """The same for `run.json`: of each kind the number and the first names."""
        kinds = {"taken": self.taken, "missing": self.missing, "unused": self.unused}
        counted = {
            kind: {"number": len(names), "first": list(names[:_NUM_NAMED])}
            for kind, names in kinds.items()
        }
        return {**counted, "has_head": self.has_head}


def load_given_weights(
    network: nn.Module, path: str | Path, *, with_head: bool = False
) -> TakenWeights:
    """Copy the weights of a file that fit into a network, in place.

    Args:
        network: Its head stays as it is unless it is wanted and fits.
        path: A `.safetensors` file, or a PyTorch checkpoint, of which only plain tensors are read:
            nothing in it is ever run.
        with_head: Whether the file's head decides between the same classes.

    Returns:
        Which tensors were taken, missing and unused. Print it.

    Raises:
        NetworkError: The file cannot be read, nothing fits, a tensor of the backbone has another
            shape, or one holds values that are not finite.
    """
    file, own = Path(path), network.state_dict()
    tensors = _without_prefix(read_tensors(file), own)
    head = {name for name in own if is_in_head(network, name)}
    has_head = with_head and bool(head) and _fits(head, tensors, own)
    wanted = [name for name in own if has_head or name not in head]
    taken = {name: tensors[name] for name in wanted if name in tensors}
    if not any(not name.endswith(_COUNTER) for name in taken):
        raise NetworkError(_nothing_fits(file, tensors, wanted))
    _check_taken(taken, own, file)
    network.load_state_dict(taken, strict=False)
    return TakenWeights(
        taken=tuple(taken),
        missing=tuple(n for n in wanted if n not in taken and not n.endswith(_COUNTER)),
        unused=tuple(name for name in tensors if name not in taken),
        has_head=has_head,
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
    content = content if isinstance(content, dict) else {}
    sections = [content[name] for name in _SECTIONS if isinstance(content.get(name), dict)]
    inner = sections[0] if sections else content
    return {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the network's names: less the prefix with which most of them are found."""
    found: Counter[str] = Counter()
    for name in tensors:
        steps = name.split(".")
        for number in range(len(steps)):
            if ".".join(steps[number:]) in own:
                found["".join(f"{step}." for step in steps[:number])] += 1
    prefix = found.most_common(1)[0][0] if found else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _fits(names: Iterable[str], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of these names are there in the network's shapes."""
    return all(name in tensors and tensors[name].shape == own[name].shape for name in names)


def _check_taken(taken: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            msg = (
                f"'{file.name}' holds '{name}' as {tuple(tensor.shape)}, this network has "
                f"{tuple(own[name].shape)}: use the file of the same network and depth, with its "
                f"number of input channels, its settings (such as width) and its input shape."
            )
            raise NetworkError(msg)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            msg = f"'{file.name}': tensor '{name}' holds values that are not finite."
            raise NetworkError(f"{msg} Get the file again.")


def _nothing_fits(file: Path, tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> str:
    expected = [name for name in wanted if not name.endswith(_COUNTER)]
    if not expected:
        msg = "all that this network learns is its head, which is taken from a classifier of the "
        return f"No tensor of '{file.name}' fits: {msg}same classes and settings alone."
    return (
        f"No tensor of '{file.name}' fits: expected {_counted(expected)}; it holds "
        f"{_counted(list(tensors))}. Name the file of this network, or set network.name to the "
        "file's."
    )


def _counted(names: Iterable[str]) -> str:
    """How many they are and what the first are called."""
    listed = list(names)
    noun = "tensor" if len(listed) == 1 else "tensors"
    more = ", ..." if len(listed) > _NUM_NAMED else ""
    shown = f" ({', '.join(listed[:_NUM_NAMED])}{more})" if listed else ""
    return f"{len(listed)} {noun}{shown}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]

"""A classifier's weights file, checked before any of it reaches a network.

safetensors holds a header of names, shapes and types and then plain numbers: reading it can run
no code. The header is read first, so that a wrong file is refused before its numbers are loaded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from chestct.errors import ClassifierError

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

WEIGHTS_FILE: Final = "weights.safetensors"
MAX_WEIGHTS_BYTES: Final = 4 * 2**30
"""Largest weights file read; 3D-AlexNet, the largest network here, has 1 GiB."""
MAX_HEADER_BYTES: Final = 4 * 2**20

_TYPES: Final = {"F32": "torch.float32", "I64": "torch.int64"}


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights to a file, as numbers and nothing else.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # What the system said stands in its text only.
        raise OSError(None, str(error).lower().removeprefix("error while serializing: ")) from error


def check_weights(path: Path, network: nn.Module) -> None:
    """Check that a weights file holds what a network needs: names, shapes, types, finite numbers.

    The network may be on the meta device.

    Raises:
        ClassifierError: The file cannot be read, or a tensor is missing, left over, of another
            shape or type, or holds a value that is not finite.
    """
    check_header_size(path)
    try:
        with safe_open(path, framework="numpy") as weights:
            _compare_names(path, set(weights.keys()), network)
            for name, wanted in network.state_dict().items():
                part = weights.get_slice(name)
                found = (tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype()))
                if found != (tuple(wanted.shape), str(wanted.dtype)):
                    msg = (
                        f"{path}: tensor '{name}' is {found[1]} {found[0]}, the card's network "
                        f"needs {wanted.dtype} {tuple(wanted.shape)}. {_REMEDY}"
                    )
                    raise ClassifierError(msg)
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                if not np.isfinite(weights.get_tensor(name)).all():
                    msg = f"{path}: tensor '{name}' holds values that are not finite. {_REMEDY}"
                    raise ClassifierError(msg)
    except (SafetensorError, OSError) as error:
        raise ClassifierError(f"{path} is not a sound weights file: {error}. {_REMEDY}") from error


def check_header_size(path: Path) -> None:
    """Refuse a file whose size or declared header length is out of bounds.

    Raises:
        ClassifierError: It is, or the file is not there.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            declared = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise ClassifierError(f"The weights {path} cannot be read: {error}. {_REMEDY}") from error
    if size > MAX_WEIGHTS_BYTES or not 2 <= declared <= min(size - 8, MAX_HEADER_BYTES):
        msg = (
            f"{path} is not a sound weights file: {size} bytes with a declared header of "
            f"{declared} bytes. {_REMEDY}"
        )
        raise ClassifierError(msg)


_REMEDY: Final = "Get the classifier's folder again."


def _compare_names(path: Path, found: set[str], network: nn.Module) -> None:
    wanted = set(network.state_dict())
    missing, left_over = sorted(wanted - found), sorted(found - wanted)
    if missing:
        msg = f"{path} lacks {len(missing)} tensors of the card's network, first '{missing[0]}'."
        raise ClassifierError(f"{msg} {_REMEDY}")
    if left_over:
        msg = f"{path} has {len(left_over)} tensors too many, first '{left_over[0]}'."
        raise ClassifierError(f"{msg} {_REMEDY}")

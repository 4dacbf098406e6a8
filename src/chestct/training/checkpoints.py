"""A run's whole state in one safetensors file: weights, optimiser, and how far it came.

No random state is kept because there is none: every step draws from generators seeded by the run's
seed and the step's number.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from chestct.errors import ReadError, WriteError
from chestct.storage import write_whole_with

_NETWORK = "network."
_OPTIMIZER = "optimizer."


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights, aside first and then renamed."""
    _save(path, {name: value.detach() for name, value in network.state_dict().items()}, {})


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, object],
) -> None:
    """Write everything a run needs to go on.

    Args:
        path: File to write, aside first and then renamed.
        network: Its weights and running statistics are kept.
        optimizer: Its per-parameter state is kept; rates come from the schedule.
        progress: Plain values saying how far the run came.
    """
    tensors = {_NETWORK + name: value for name, value in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{_OPTIMIZER}{number}.{name}"] = torch.as_tensor(value)
    _save(path, tensors, {"progress": json.dumps(progress)})


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, object]:
    """Put a network and its optimiser back where they were; returns `progress`.

    Raises:
        ReadError: The file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            progress = json.loads((stored.metadata() or {})["progress"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        network.load_state_dict(
            {n.removeprefix(_NETWORK): t for n, t in tensors.items() if n.startswith(_NETWORK)}
        )
        _load_optimizer(optimizer, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        msg = (
            f"{path.name} in {path.parent.name} is not a checkpoint of this run ({error}). "
            "Start in a new folder, or restore the settings the run was started with."
        )
        raise ReadError(msg) from error
    return dict(progress)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give every parameter its stored state back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            number, key = name.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file aside and rename it, so that no half file is ever found."""
    stored = {name: value.contiguous() for name, value in tensors.items()}
    try:
        write_whole_with(path, lambda aside: save_file(stored, aside, metadata))
    except (SafetensorError, WriteError) as error:
        msg = (
            f"{path.name} could not be written in {path.parent.name} ({error}). The last one is "
            "untouched: free some space and start the same command again."
        )
        raise WriteError(msg) from error

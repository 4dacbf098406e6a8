"""ImageNet weights for the backbone of a slice network: from a file, or the hub's cache.

Nothing is fetched here: where weights are not at hand the message says which file is missing and
how to get it. A network without them is never given silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from chestct.errors import NetworkError
from chestct.extras import import_extra
from chestct.lookup import look_up
from chestct.networks.slice_backbones import SLICE_NETWORKS, WEIGHTS_NAME, SliceBackbone
from chestct.networks.slices import SliceNetwork

IMAGENET: Final = "imagenet"
"""Asks for the weights in the hub's cache."""
NO_WEIGHTS: Final = "none"
"""Asks for weights drawn at random, by name."""
MAX_FILE_BYTES: Final = 2**30

_COUNTERS: Final = "num_batches_tracked"


def find_weights(name: str, wanted: str) -> Path | None:
    """The file that a setting asks for.

    Args:
        name: A name in `SLICE_NETWORKS`.
        wanted: `IMAGENET`, `NO_WEIGHTS`, or a path.

    Returns:
        A file, or None for random weights, which only `NO_WEIGHTS` gives.

    Raises:
        UnknownNameError: There is no such network.
        NetworkError: The file is not there; the message names it and how to get it.
        MissingExtraError: timm is not installed.
    """
    facts = look_up(SLICE_NETWORKS, name, kind="slice network")
    if wanted == NO_WEIGHTS:
        return None
    if wanted != IMAGENET:
        path = Path(wanted)
        if not path.is_file():
            raise NetworkError(_missing_file(path, name, facts))
        return path
    hub = import_extra("huggingface_hub", extra="slices")
    cached = hub.try_to_load_from_cache(facts.weights_id, WEIGHTS_NAME)
    if not isinstance(cached, str) or not Path(cached).is_file():
        raise NetworkError(_not_cached(name, facts))
    return Path(cached)


def load_backbone_weights(network: SliceNetwork, path: Path) -> None:
    """Copy a file of ImageNet weights into a slice network's backbone, in place.

    The file's 1000-class layer is left out. Everything else has to be there, in the network's own
    names and shapes, and nothing may be left over.

    Raises:
        NetworkError: The file cannot be read, or is of another network; the message says where.
    """
    tensors = _read(path)
    classifier = network.facts.classifier
    tensors = {n: t for n, t in tensors.items() if not n.startswith(classifier)}
    own = network.backbone.state_dict()
    needed = {name for name in own if not name.endswith(_COUNTERS)}
    missing, left_over = sorted(needed - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [n for n in needed & tensors.keys() if tensors[n].shape != own[n].shape]
    if missing or left_over or wrong:
        raise NetworkError(_misfit(path, network.facts, missing, left_over, sorted(wrong)))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            msg = f"'{path.name}': tensor '{name}' holds values that are not finite."
            raise NetworkError(f"{msg} Get the file again.")
    network.backbone.load_state_dict(tensors, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        msg = (
            f"'{path.name}' is no safetensors file. Only these are read, as others can run code: "
            "load it where it comes from and save its state_dict with safetensors.torch.save_file."
        )
        raise NetworkError(msg)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            msg = f"'{path.name}' has {size} bytes, over the {MAX_FILE_BYTES} allowed."
            raise NetworkError(msg)
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        msg = f"'{path.name}' is not a readable file of weights ({error}). Get it again."
        raise NetworkError(msg) from error


def _missing_file(path: Path, name: str, facts: SliceBackbone) -> str:
    return (
        f"There is no weights file '{path}'. Expected the ImageNet weights of {name} as timm names "
        f"them: {WEIGHTS_NAME} of '{facts.weights_id}'. Give --weights FILE, or ask for random "
        f"weights by name: --weights {NO_WEIGHTS}."
    )


def _not_cached(name: str, facts: SliceBackbone) -> str:
    return (
        f"The ImageNet weights of {name} are not on this machine: {WEIGHTS_NAME} of "
        f"'{facts.weights_id}' is not in the hub's cache. Where there is a connection run\n"
        f"  hf download {facts.weights_id} {WEIGHTS_NAME}\n"
        f"and copy the file it names here (--weights FILE), or take random weights by name "
        f"(--weights {NO_WEIGHTS}), which the paper's results say nothing about."
    )


def _misfit(
    path: Path, facts: SliceBackbone, missing: list[str], left_over: list[str], wrong: list[str]
) -> str:
    first = {
        "lacks": missing[:1],
        "has another shape for": wrong[:1],
        "has too many, such as": left_over[:1],
    }
    said = "; ".join(f"it {what} '{names[0]}'" for what, names in first.items() if names)
    return (
        f"'{path.name}' does not hold the weights of {facts.timm_name}: {said}. Expected "
        f"{WEIGHTS_NAME} of '{facts.weights_id}'."
    )

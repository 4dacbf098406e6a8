"""The layers a map can be taken from, and where their cells lie in the network's input.

A cell's centre is the centre of what it sees. A stride-2 convolution with "same" padding puts its
first cell on the input's first voxel, not between the first two; after five of them, laying the
cells evenly over the input, as is usually done, misplaces them by up to half a cell, which is 16
voxels of a 3D ResNet. So the centres are followed through every convolution and pool.

The network is run on the meta device, where tensors have a shape and no content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chestct.arrays import Shape, Spacing
from chestct.errors import ExplanationError
from chestct.explain.question import Question, at_rest
from chestct.lookup import unknown_name_message


@dataclass(frozen=True)
class Layer:
    """A layer whose output is a grid of cells.

    Attributes:
        name: Dotted name in the network.
        shape: Cells along (depth, height, width).
        start: Input index of the first cell's centre.
        step: Input voxels between cell centres.
    """

    name: str
    shape: Shape
    start: Spacing
    step: Spacing


_Places: TypeAlias = dict[Shape, tuple[Spacing, Spacing]]
"""Shape of a grid to start and step of its cells."""


def find_layers(question: Question) -> dict[str, Layer]:
    """Every layer a map can be taken from, by name, in the order in which they finish.

    Those that run once and give (batch, channel, depth, height, width) with more than one cell.
    """
    return {layer.name: layer for layer in _trace(question)[0]}


def pick_layer(question: Question) -> Layer:
    """The layer asked for, or the last block: what ends with the last convolution's grid.

    Raises:
        ExplanationError: The network has no usable layer, or none of that name.
    """
    traced, last_convolution = _trace(question)
    layers = {layer.name: layer for layer in traced}
    if not layers:
        msg = (
            "The network has no layer with a grid of cells that a map could be taken from: "
            "use the method 'occlusion'."
        )
        raise ExplanationError(msg)
    if question.layer is None:
        return _last_block(layers, last_convolution)
    if question.layer not in layers:
        raise ExplanationError(_no_such_layer(question.layer, layers))
    return layers[question.layer]


def finest_layer(question: Question, spacing_mm: Spacing, cell_mm: float) -> Layer | None:
    """The deepest layer whose cells are small: what it finds can be shown where it is.

    Args:
        question: A network and an input; neither's content is looked at.
        spacing_mm: Of the input.
        cell_mm: Largest edge of a cell. Where even the finest layer's cells are larger, it is the
            last of those with the smallest ones.

    Returns:
        The layer; None where the network has none with a grid of cells.
    """
    layers, _ = _trace(question)
    edges = [
        max(step * mm for step, mm in zip(layer.step, spacing_mm, strict=True)) for layer in layers
    ]
    limit = max(cell_mm, min(edges, default=0.0))
    fine = [layer for layer, edge in zip(layers, edges, strict=True) if edge <= limit * (1 + 1e-6)]
    return fine[-1] if fine else None


def _no_such_layer(name: str, layers: Mapping[str, Layer]) -> str:
    # Parts of blocks can be asked for too, but hundreds of names would help nobody.
    shown = [known for known in layers if known.count(".") <= 1]
    hint = unknown_name_message(name, shown or layers, kind="layer with a grid of cells")
    return f"{hint} Their parts ('layer.part') can be named too."


def _last_block(layers: Mapping[str, Layer], convolution: str) -> Layer:
    """The outermost layer around the last convolution that has the same grid."""
    if convolution not in layers:
        return list(layers.values())[-1]
    found = layers[convolution]
    parts = convolution.split(".")
    for length in range(len(parts) - 1, 0, -1):
        around = layers.get(".".join(parts[:length]))
        if around is not None and around.shape == found.shape:
            found = around
    return found


def _trace(question: Question) -> tuple[list[Layer], str]:
    """Every usable layer, and the name of the last convolution (or an empty one)."""
    shapes: dict[str, list[Shape]] = {}
    places: _Places = {_grid_of(question.batch): ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    last = ""

    def note(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Note where a layer's cells lie, from where those before it do."""
        nonlocal last
        if not (isinstance(output, Tensor) and output.ndim == question.batch.ndim):
            return
        grid = _grid_of(output)
        shapes.setdefault(name, []).append(grid)
        if isinstance(module, nn.Conv3d):
            last = name
        if isinstance(module, nn.Conv3d | nn.MaxPool3d) and isinstance(inputs[0], Tensor):
            places.setdefault(grid, _moved(places[_grid_of(inputs[0])], module))

    _run_on_meta(question, note)
    layers = [
        Layer(name, grids[0], *places[grids[0]])
        for name, grids in shapes.items()
        if len(grids) == 1 and max(grids[0]) > 1 and grids[0] in places
    ]
    return layers, last


def _run_on_meta(question: Question, note: Callable[..., None]) -> None:
    """Run the network without content, `note` being told of every module's output."""
    network = question.network
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    batch, lungs = question.batch.to("meta"), question.lungs.to("meta")
    with ExitStack() as stack:
        stack.enter_context(at_rest(network))
        stack.enter_context(torch.no_grad())
        for name, module in network.named_modules():
            if name:
                hook = module.register_forward_hook(partial(note, name))
                stack.callback(hook.remove)
        functional_call(network, empty, (batch, lungs))


def _grid_of(features: Tensor) -> Shape:
    depth, height, width = features.shape[-3:]
    return int(depth), int(height), int(width)


def _moved(place: tuple[Spacing, Spacing], module: nn.Module) -> tuple[Spacing, Spacing]:
    """Where the cells of a convolution's or pool's output lie, given those of its input."""
    start, step = place
    kernel, stride, padding, dilation = (
        _three(getattr(module, field)) for field in ("kernel_size", "stride", "padding", "dilation")
    )
    new_start = tuple(
        first + each * ((size - 1) * apart / 2 - before)
        for first, each, size, apart, before in zip(
            start, step, kernel, dilation, padding, strict=True
        )
    )
    new_step = tuple(each * stepped for each, stepped in zip(step, stride, strict=True))
    return (new_start[0], new_start[1], new_start[2]), (new_step[0], new_step[1], new_step[2])


def _three(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])

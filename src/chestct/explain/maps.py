"""The ways to see where a network looked: by channels, by gradients, by attention, by covering.

Each takes a `Question` and returns heat on the grid of a layer or of the input.

A cell's centre is the centre of what it sees. A stride-2 convolution with "same" padding puts its
first cell on the input's first voxel, not between the first two; after five of them, laying the
cells evenly over the input, as is usually done, misplaces them by up to half a cell, which is 16
voxels of a 3D ResNet. So the centres are followed through every convolution and pool of a network
that is run on the meta device, where tensors have a shape and no content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from chestct.arrays import Shape, Spacing
from chestct.errors import ExplanationError
from chestct.explain.back_to_scan import spread_over_input
from chestct.explain.question import (
    CellMap,
    Question,
    class_score,
    refuse_layer,
)
from chestct.lookup import unknown_name_message
from chestct.networks.blocks import Turn
from chestct.networks.maseres import Attention, Maseres, attend_over_positions
from chestct.networks.roi import Features


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode and with fixed weights; afterwards all is as it was."""
    modes = {module: module.training for module in network.modules()}
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        network.eval()
        for weight in trained:
            weight.requires_grad_(False)
        yield network
    finally:
        for module, is_training in modes.items():
            module.training = is_training
        for weight in trained:
            weight.requires_grad_(True)


def _output_of(question: Question, layer: str) -> tuple[Features, int]:
    """What a layer gives for the scan, and the class in question."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        """Keep what the layer gives."""
        # The next layer may work in place.
        kept.append(output.clone())

    watched = question.network.get_submodule(layer).register_forward_hook(keep)
    with _at_rest(question.network) as network, torch.no_grad(), watched:
        logits = network(question.batch, question.lungs)
    return kept[0], question.target_of(logits)


@dataclass(frozen=True)
class _Layer:
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


def _find_layers(question: Question) -> dict[str, _Layer]:
    """Every layer a map can be taken from, by name, in the order in which they finish.

    Those that run once and give (batch, channel, depth, height, width) with more than one cell.
    """
    return {layer.name: layer for layer in _trace(question)[0]}


def pick_layer(question: Question) -> _Layer:
    """The layer asked for, or the last block: what ends with the last convolution's grid.

    Raises:
        ExplanationError: The network has no usable layer, or none of that name.
    """
    traced, last_convolution = _trace(question)
    layers = {layer.name: layer for layer in traced}
    if not layers:
        raise ExplanationError(
            "The network has no layer with a grid of cells that a map could be taken from: "
            "use the method 'occlusion'."
        )
    if question.layer is None:
        return _last_block(layers, last_convolution)
    if question.layer not in layers:
        raise ExplanationError(_no_such_layer(question.layer, layers))
    return layers[question.layer]


def finest_layer(question: Question, spacing_mm: Spacing, cell_mm: float) -> _Layer | None:
    """The deepest layer whose cells are small: what it finds can be shown where it is.

    No cell's edge is over `cell_mm`, the input's voxels being of `spacing_mm`; where even the
    finest layer's are larger, it is the last of those with the smallest ones. None where there is
    none with a grid of cells.
    """
    layers, _ = _trace(question)
    edges = [
        max(step * mm for step, mm in zip(layer.step, spacing_mm, strict=True)) for layer in layers
    ]
    limit = max(cell_mm, min(edges, default=0.0))
    fine = [layer for layer, edge in zip(layers, edges, strict=True) if edge <= limit * (1 + 1e-6)]
    return fine[-1] if fine else None


def _no_such_layer(name: str, layers: Mapping[str, _Layer]) -> str:
    # Parts of blocks can be asked for too, but hundreds of names would help nobody.
    shown = [known for known in layers if known.count(".") <= 1]
    hint = unknown_name_message(name, shown or layers, kind="layer with a grid of cells")
    return f"{hint} Their parts ('layer.part') can be named too."


def _last_block(layers: Mapping[str, _Layer], convolution: str) -> _Layer:
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


def _trace(question: Question) -> tuple[list[_Layer], str]:
    """Every usable layer, and the name of the last convolution (or an empty one).

    Layers between a `Turn` and the way back, whose axes are others, are not usable.
    """
    shapes: dict[str, list[Shape]] = {}
    places: _Places = {_grid_of(question.batch): ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    outside, inside = places, _Places()
    last = ""

    def note(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Note where a layer's cells lie, from where those before it do."""
        nonlocal last, places
        if not (isinstance(output, Tensor) and output.ndim == question.batch.ndim):
            return
        grid = _grid_of(output)
        if isinstance(module, Turn) and isinstance(inputs[0], Tensor):
            place = _turned(places[_grid_of(inputs[0])], grid, module)
            places = outside if module.is_back else inside
            places.setdefault(grid, place)
        if places is outside:
            shapes.setdefault(name, []).append(grid)
        if isinstance(module, nn.Conv3d):
            last = name
        if isinstance(module, nn.Conv3d | nn.MaxPool3d) and isinstance(inputs[0], Tensor):
            places.setdefault(grid, _moved(places[_grid_of(inputs[0])], module))

    _run_on_meta(question, note)
    layers = [
        _Layer(name, grids[0], *outside[grids[0]])
        for name, grids in shapes.items()
        if len(grids) == 1 and max(grids[0]) > 1 and grids[0] in outside
    ]
    return layers, last


def _run_on_meta(question: Question, note: Callable[..., None]) -> None:
    """Run the network without content, `note` being told of every module's output."""
    network = question.network
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    batch, lungs = question.batch.to("meta"), question.lungs.to("meta")
    with ExitStack() as stack:
        stack.enter_context(_at_rest(network))
        stack.enter_context(torch.no_grad())
        for name, module in network.named_modules():
            if name:
                stack.enter_context(module.register_forward_hook(partial(note, name)))
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


def _turned(place: tuple[Spacing, Spacing], grid: Shape, turn: Turn) -> tuple[Spacing, Spacing]:
    """Where the cells of a turned grid lie, along its own axes; a step may be negative inside."""
    start, step = ([each[axis] for axis in turn.order] for each in place)
    for axis in turn.flipped:
        start[axis] += step[axis] * (grid[axis] - 1)
        step[axis] = -step[axis]
    return (start[0], start[1], start[2]), (step[0], step[1], step[2])


def _three(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])


_CUT: Final = 0.45
"""Share of the way from the lowest to the highest value above which a voxel is marked."""


def strongest_channel_map(question: Question) -> CellMap:
    """1 where the most active channel lies above the cut, else 0; the class changes nothing."""
    layer = pick_layer(question)
    activation, target = _output_of(question, layer.name)
    strongest = int(activation[0].mean(dim=(1, 2, 3)).argmax())
    shape = question.input_shape
    step = tuple(size / cells for size, cells in zip(shape, layer.shape, strict=True))
    start = tuple(0.5 * each - 0.5 for each in step)
    cells = CellMap(
        activation[0, strongest].numpy(),
        (start[0], start[1], start[2]),
        (step[0], step[1], step[2]),
        target,
    )
    resized = spread_over_input(cells, shape)
    lowest, span = float(resized.min()), float(np.ptp(resized))
    # A channel that is the same everywhere marks nothing.
    marked = (resized - lowest > _CUT * span).astype(np.float32)
    return CellMap(
        marked, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), target, layer.name, layer.step, unit_scale=span
    )


Cells: TypeAlias = Float[Tensor, "channel cells_d cells_h cells_w"]
Weights: TypeAlias = Float[Tensor, "channel #cells_d #cells_h #cells_w"]  # noqa: F821
Weigh: TypeAlias = Callable[[Cells, Cells], Weights]
"""Activation and gradient to the weight of every activation, or of every channel."""


def gradcam_map(question: Question) -> CellMap:
    """ReLU of the channels' sum, each weighted by its mean gradient (Selvaraju et al. 2017)."""
    return _weighted_map(question, _mean_gradient)


def gradcam_plus_plus_map(question: Question) -> CellMap:
    """As Grad-CAM, each gradient weighted by its share (Chattopadhay et al. 2018, Eq. 19)."""
    return _weighted_map(question, _shared_gradient)


def layercam_map(question: Question) -> CellMap:
    """ReLU of the sum of activations times their own positive gradient (Jiang et al. 2021)."""
    return _weighted_map(question, _own_gradient)


def _mean_gradient(activation: Cells, gradient: Cells) -> Weights:
    return gradient.mean(dim=(1, 2, 3), keepdim=True)


def _shared_gradient(activation: Cells, gradient: Cells) -> Weights:
    squared = gradient**2
    total = activation.sum(dim=(1, 2, 3), keepdim=True)
    divisor = 2 * squared + total * gradient**3
    share = torch.where(divisor != 0, squared / torch.where(divisor != 0, divisor, 1.0), 0.0)
    return (share * gradient.clamp(min=0)).sum(dim=(1, 2, 3), keepdim=True)


def _own_gradient(activation: Cells, gradient: Cells) -> Weights:
    return gradient.clamp(min=0)


def _weighted_map(question: Question, weigh: Weigh) -> CellMap:
    layer = pick_layer(question)
    activation, gradient, target = _activation_and_gradient(question, layer)
    values = _combined(activation, weigh(activation, gradient))
    return CellMap(values.numpy(), layer.start, layer.step, target, layer.name)


def _combined(activation: Cells, weights: Weights) -> Float[Tensor, "cells_d cells_h cells_w"]:
    """What speaks for the class: the weighted channels' sum, nothing where it speaks against."""
    return (weights * activation).sum(dim=0).clamp(min=0)


@runtime_checkable
class _SplitNetwork(Protocol):
    """A network of slices: its last feature map, and a head that makes logits of it."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """What makes logits of a feature map."""

    def features(self, batch: Tensor) -> Tensor:
        """The last feature map, (batch, channel, rows, columns)."""


def slice_gradcam(
    network: _SplitNetwork, picture: Float[np.ndarray, "height width"], label: int
) -> Float[np.ndarray, "height width"]:
    """Which pixels of a slice (values from 0 to 1) spoke for a class, by its index.

    It is Grad-CAM of the last feature map; slice networks give that map and what follows it apart,
    so that no hooks are needed. From 0 to 1, as large as the input; all zero where nothing spoke
    for it.
    """
    batch = torch.from_numpy(np.array(picture, dtype=np.float32))[None, None, None]
    with torch.no_grad():
        found = network.features(batch)
    features = found.clone().requires_grad_(True)
    with torch.enable_grad():
        score = class_score(network.head(features), label)
        (gradient,) = torch.autograd.grad(score.sum(), features)
    # A slice is a scan of depth one.
    activation = features.detach()[0, :, None]
    heat = _combined(activation, _mean_gradient(activation, gradient[0, :, None]))
    size = [*picture.shape]
    enlarged = nn.functional.interpolate(heat[None], size=size, mode="bilinear")[0, 0]
    most = float(enlarged.max())
    return np.asarray((enlarged / most if most > 0 else enlarged).numpy(), dtype=np.float32)


def _activation_and_gradient(question: Question, layer: _Layer) -> tuple[Cells, Cells, int]:
    """A layer's activation, the gradient of the class's score there, and the class."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        """Go on from a leaf, so that gradients reach it whatever lies before."""
        leaf = output.detach().requires_grad_(True)
        kept.append(leaf)
        # Layers behind it may work in place, which autograd does not allow on a leaf.
        return leaf.clone()

    with _at_rest(question.network) as network, torch.inference_mode(False), torch.enable_grad():
        with network.get_submodule(layer.name).register_forward_hook(keep):
            logits = network(question.batch, question.lungs)
        target = question.target_of(logits)
        (gradient,) = torch.autograd.grad(question.score(logits, target).sum(), kept)
    activation = kept[0].detach()
    if not (activation.isfinite().all() and gradient.isfinite().all()):
        raise ExplanationError(f"Layer '{layer.name}' gives values that are not finite (nan, inf).")
    return activation[0], gradient[0], target


_QUERIES_AT_ONCE: Final = 512
"""Rows of the position-by-position matrix held at a time: 12 MB per head at 18^3 positions."""


def attention_map(question: Question) -> CellMap:
    """Attention received by each position, 1 standing for an even share.

    Raises:
        ExplanationError: The network has no such attention, or a layer was named.
    """
    refuse_layer(question, "attention")
    attention = _attention_of(question.network)
    layer = _find_layers(question).get("pool")
    if layer is None:
        raise ExplanationError("This MASERes has a single position: there is nothing to attend to.")
    pooled, target = _output_of(question, layer.name)
    with torch.no_grad():
        positions = pooled[0].flatten(1).T
        received = _received(attention.query(positions), attention.key(positions))
    return CellMap(
        received.reshape(layer.shape).numpy(), layer.start, layer.step, target, "attention"
    )


def _attention_of(network: nn.Module) -> Attention:
    """The network's attention, if there is one that attends to anything."""
    if not isinstance(network, Maseres):
        raise ExplanationError(
            "Only the network 'maseres' has an attention map: use 'gradcam', which every network "
            "allows."
        )
    if network.attention.attend is not attend_over_positions:
        raise ExplanationError(
            "The attention of this MASERes is the published one, whose weights are 1 everywhere, "
            "so it has no map: use 'gradcam', or a network with the setting attention: paper."
        )
    return network.attention


def _received(
    query: Float[Tensor, "position head"], key: Float[Tensor, "position head"]
) -> Float[Tensor, " position"]:
    """Mean over heads of the column means of softmax(Q K^T), times the number of positions."""
    total = torch.zeros(key.shape[0])
    for q, k in zip(query.T, key.T, strict=True):
        for some in q.split(_QUERIES_AT_ONCE):
            total += torch.softmax(torch.outer(some, k), dim=1).sum(dim=0)
    return total / query.shape[1]


PATCHES_PER_AXIS: Final = 6
"""Patches that fill an axis side by side; half as far apart as they are long."""
_VOXELS_AT_ONCE: Final = 2**22
_MOST_AT_ONCE: Final = 16

_Patch: TypeAlias = tuple[slice, slice, slice]


def occlusion_map(
    question: Question, *, patch: Shape | None = None, stride: Shape | None = None
) -> CellMap:
    """Mean loss over the patches that cover a voxel; gains count as no loss.

    Args:
        question: What to explain; its listener is told of every run of patches.
        patch: Voxels of a patch, None for a sixth of each axis.
        stride: Voxels between patches, None for half a patch.

    Raises:
        ExplanationError: A layer was named, and there is none to look at.
    """
    refuse_layer(question, "occlusion")
    shape = question.input_shape
    size = patch or _shape(-(-n // PATCHES_PER_AXIS) for n in shape)
    apart = stride or _shape(-(-n // 2) for n in size)
    blank = _blank(question)
    patches = list(_patches(shape, size, apart))
    telling = [part for part in patches if _changes(question.batch, blank, part)]
    with _at_rest(question.network) as network, torch.no_grad():
        logits = network(question.batch, question.lungs)
        target = question.target_of(logits)
        losses = _losses(question, blank, telling, target, float(question.score(logits, target)))
    total = np.zeros(shape, dtype=np.float32)
    count = np.zeros(shape, dtype=np.float32)
    for part in patches:
        count[part] += 1.0
    for part, loss in zip(telling, losses, strict=True):
        total[part] += max(loss, 0.0)
    mean = total / np.maximum(count, 1.0)
    cell = (float(size[0]), float(size[1]), float(size[2]))
    return CellMap(mean, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), target, cell=cell)


def _losses(
    question: Question, blank: Features, patches: list[_Patch], target: int, whole: float
) -> list[float]:
    """What the score loses without each patch; expects the network to be at rest."""
    num_at_once = max(1, min(_MOST_AT_ONCE, _VOXELS_AT_ONCE // blank.numel()))
    losses: list[float] = []
    left = iter(patches)
    while some := list(islice(left, num_at_once)):
        batch = question.batch.repeat(len(some), 1, 1, 1, 1)
        for scan, part in zip(batch, some, strict=True):
            scan[(slice(None), *part)] = blank[0][(slice(None), *part)]
        lungs = question.lungs.expand(len(some), -1, -1, -1, -1)
        scores = question.score(question.network(batch, lungs), target)
        losses += [whole - score for score in scores.tolist()]
        if question.listener is not None:
            question.listener(len(losses), len(patches))
    return losses


def _blank(question: Question) -> Features:
    """The same scan with nothing in it, channel by channel."""
    inside = question.lungs[0, 0] > 0
    blank = torch.empty_like(question.batch)
    for channel, empty in zip(question.batch[0], blank[0], strict=True):
        empty[...] = channel.min()
        if inside.any():
            empty[inside] = channel[inside].median()
    return blank


def _changes(
    batch: Float[Tensor, "1 channel depth height width"], blank: Features, part: _Patch
) -> bool:
    where = (0, slice(None), *part)
    return not torch.equal(batch[where], blank[where])


def _patches(shape: Shape, size: Shape, stride: Shape) -> Iterator[_Patch]:
    """Patches in rows, the last of each row ending with the axis."""
    ranges = []
    for voxels, length, step in zip(shape, size, stride, strict=True):
        last = max(voxels - length, 0)
        starts = [*range(0, last, step), last]
        ranges.append([slice(start, start + length) for start in starts])
    yield from product(ranges[0], ranges[1], ranges[2])


def _shape(sizes: Iterator[int]) -> Shape:
    depth, height, width = sizes
    return depth, height, width

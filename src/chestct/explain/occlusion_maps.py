"""What a class's score loses when a patch of the scan is blanked.

The only method that asks the network what it would have said, instead of reading its insides; it
costs one pass per patch. A patch is blanked to what is usual at its place: the median of the lungs
inside them, the lowest value outside. What is blank already is not run: it can change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from chestct.arrays import Shape
from chestct.explain.question import CellMap, Question, at_rest, class_score, refuse_layer
from chestct.networks.roi import Features

PATCHES_PER_AXIS: Final = 6
"""Patches that fill an axis side by side; half as far apart as they are long."""
_VOXELS_AT_ONCE: Final = 2**22
_MOST_AT_ONCE: Final = 16

Patch: TypeAlias = tuple[slice, slice, slice]


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
    with at_rest(question.network) as network, torch.no_grad():
        logits = network(question.batch, question.lungs)
        target = question.target_of(logits)
        losses = _losses(question, blank, telling, target, float(class_score(logits, target)))
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
    question: Question, blank: Features, patches: list[Patch], target: int, whole: float
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
        scores = class_score(question.network(batch, lungs), target)
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
    batch: Float[Tensor, "1 channel depth height width"], blank: Features, part: Patch
) -> bool:
    where = (0, slice(None), *part)
    return not torch.equal(batch[where], blank[where])


def _patches(shape: Shape, size: Shape, stride: Shape) -> Iterator[Patch]:
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

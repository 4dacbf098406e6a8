"""What the RoI paper's script `Grad_CAM_3D_ILLUSTRATION.m` does and calls Grad-CAM.

It takes neither a gradient nor a class: of the last activation it picks the channel with the
largest mean over space, resizes it linearly to the input (the outer faces staying in place, as
MATLAB's `imresize3` does), scales it from its lowest to its highest value, and marks what lies
above 0.45. The script's figure uses 0.40 for the network without gates; here it is 0.45 for all.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from chestct.explain.layers import pick_layer
from chestct.explain.question import CellMap, Question, output_of
from chestct.explain.spread import spread_over_input

CUT: Final = 0.45
"""Share of the way from the lowest to the highest value above which a voxel is marked."""


def strongest_channel_map(question: Question) -> CellMap:
    """1 where the most active channel lies above the cut, else 0; the class changes nothing."""
    layer = pick_layer(question)
    activation, target = output_of(question, layer.name)
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
    marked = (resized - lowest > CUT * span).astype(np.float32)
    return CellMap(
        marked, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), target, layer.name, layer.step, unit_scale=span
    )

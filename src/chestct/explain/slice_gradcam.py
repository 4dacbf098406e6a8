"""Grad-CAM (Selvaraju et al. 2017) of a slice network: where in a picture a class was seen.

The slice networks give their last feature map and what follows it apart, so that no hooks are
needed; the map is taken there, after the last activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from chestct.explain.question import class_score


@runtime_checkable
class _SplitNetwork(Protocol):
    """A network that gives its last feature map, and a head that makes logits of it."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """What makes logits of a feature map."""

    def features(self, batch: Tensor) -> Tensor:
        """The last feature map, (batch, channel, rows, columns)."""


def slice_gradcam(
    network: _SplitNetwork, picture: Float32[np.ndarray, "height width"], label: int
) -> Float32[np.ndarray, "height width"]:
    """Which pixels of a slice spoke for a class.

    Channels are weighted by the mean gradient of the class's score, as for scans; what speaks
    against the class is cut off.

    Args:
        network: A slice network, in eval mode.
        picture: Its input, values from 0 to 1.
        label: Index of the class.

    Returns:
        From 0 to 1, as large as the input; all zero where nothing spoke for the class.
    """
    batch = torch.from_numpy(np.array(picture, dtype=np.float32))[None, None, None]
    with torch.no_grad():
        found = network.features(batch)
    features = found.clone().requires_grad_(True)
    with torch.enable_grad():
        score = class_score(network.head(features), label)
        (gradient,) = torch.autograd.grad(score.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * features.detach()).sum(dim=1, keepdim=True))
    size = [*picture.shape]
    enlarged = F.interpolate(heat, size=size, mode="bilinear", align_corners=False)[0, 0]
    most = float(enlarged.max())
    scaled = enlarged / most if most > 0 else enlarged
    return np.asarray(scaled.numpy(), dtype=np.float32)

"""What the MASERes paper's notebooks get from Keras without saying so, in PyTorch.

BatchNorm has epsilon 1e-3 and momentum 0.99, which PyTorch counts from the other end as 0.01.
Kernels are drawn as Glorot has it, biases start at zero. One difference remains: Keras feeds the
moving variance with the variance of the batch, PyTorch with its unbiased estimate, which for
BatchNorm over a handful of values (VoxCNN's, 4 scans) is larger by n / (n - 1).
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chestct.arrays import Shape
from chestct.errors import NetworkError
from chestct.networks.blocks import Conv3d

BATCH_NORM_EPSILON: Final = 1e-3
BATCH_NORM_MOMENTUM: Final = 0.01

NUM_SIGMOID_CLASSES: Final = 2
"""Number of classes that the papers tell apart with a single unit."""


def batch_norm_3d(channels: int) -> nn.BatchNorm3d:
    """BatchNorm over scans and voxels with Keras's numbers."""
    return nn.BatchNorm3d(channels, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)


def batch_norm_1d(features: int) -> nn.BatchNorm1d:
    """BatchNorm over scans with Keras's numbers."""
    return nn.BatchNorm1d(features, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)


def draw_glorot(network: nn.Module) -> None:
    """Draw every kernel uniformly as Glorot has it; biases become zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def relu_conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution with bias and a ReLU."""
    convolution = Conv3d(in_channels, out_channels, kernel, stride=stride, padding=padding)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def flatten_channels_last(
    features: Float[Tensor, "batch channel depth height width"],
) -> Float[Tensor, "batch units"]:
    """Flatten voxel by voxel, channels innermost: the order in which Keras holds dense weights."""
    return features.permute(0, 2, 3, 4, 1).flatten(1)


class ClassUnits(nn.Module):
    """The last layer: one unit per class, or a single one for two classes, as published.

    The published networks end in one sigmoid unit, the probability of the second label (normal).
    It is given here as the logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)) and whose
    cross-entropy is the binary one, so that all networks look alike from outside.

    Args:
        features: Features coming in.
        num_classes: Number of logits going out.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.is_sigmoid = num_classes == NUM_SIGMOID_CLASSES
        self.fc = nn.Linear(features, 1 if self.is_sigmoid else num_classes)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch class"]:
        """Logits of each scan."""
        logits: Tensor = self.fc(features)
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.is_sigmoid else logits


def check_input_shape(name: str, shape: Shape, smallest: int) -> None:
    """Refuse to build a network for inputs of which its layers leave nothing.

    Raises:
        NetworkError: An axis is shorter than `smallest`.
    """
    if min(shape) < smallest:
        msg = f"{name} needs at least {smallest} voxels along each axis, not {shape}."
        raise NetworkError(msg)


def check_batch(name: str, batch: Tensor, shape: Shape, smallest: int) -> None:
    """Refuse a batch of another size than the network's dense layers were built for.

    Raises:
        NetworkError: It has another size.
    """
    check_input_shape(name, (batch.shape[2], batch.shape[3], batch.shape[4]), smallest)
    if tuple(batch.shape[2:]) != shape:
        msg = (
            f"This {name} was built for inputs of {shape} voxels, not {tuple(batch.shape[2:])}: "
            f"build it with the setting input_shape."
        )
        raise NetworkError(msg)

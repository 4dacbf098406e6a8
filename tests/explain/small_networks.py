"""Networks small enough to be followed by hand, and questions about them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from chestct.explain.question import Question


class MeanOfChannels(nn.Module):
    """One 1^3 convolution, the mean of each channel, a dense layer: Grad-CAM by hand."""

    def __init__(self, kernel: list[float], head: list[list[float]]) -> None:
        super().__init__()
        self.cells = nn.Conv3d(1, len(kernel), 1, bias=False)
        self.head = nn.Linear(len(kernel), len(head), bias=False)
        with torch.no_grad():
            self.cells.weight.copy_(torch.tensor(kernel).reshape(-1, 1, 1, 1, 1))
            self.head.weight.copy_(torch.tensor(head))

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.cells(batch).mean(dim=(2, 3, 4)))


class Flat(nn.Module):
    """A dense layer of all voxels: no layer with a grid."""

    def __init__(self, num_voxels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(num_voxels, 3)

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        return self.dense(batch.flatten(1))


def ask(network: nn.Module, batch: torch.Tensor, **changes: object) -> Question:
    """A question about one scan, all of it lung unless told otherwise."""
    question = Question(network.eval(), batch, torch.ones_like(batch[:, :1]), target=0)
    return replace(question, **changes)

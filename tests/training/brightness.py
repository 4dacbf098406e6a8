"""A labelled set small enough to train on in a test: bright and dark cubes with a little noise."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from chestct.training.run import LabelledSets
from chestct.training.settings import TrainingSettings


class Brightness(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    def __init__(self, num: int) -> None:
        self.labels = [index % 2 for index in range(num)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        label = self.labels[index]
        noise = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(index))
        return 0.2 + 0.5 * label + 0.1 * noise, torch.ones(1, 4, 4, 4), label


class MeanThenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.BatchNorm3d(1)
        self.linear = nn.Linear(1, 2)

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        mean = self.norm(self.dropout(batch)).mean(dim=(2, 3, 4))
        return self.linear(mean)


class Breaks(nn.Module):
    """Its loss grows without bound once its weight has moved far enough."""

    def __init__(self, *, to_nothing: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.to_nothing = to_nothing
        self.calls = 0

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        size = 30.0 if self.calls > 5 else 1.0
        size = float("nan") if self.calls > 5 and self.to_nothing else size
        return (batch.mean(dim=(1, 2, 3, 4)) * 0 + self.weight * 0 + size)[:, None] * torch.tensor(
            [1.0, -1.0]
        )


SETS = LabelledSets(Brightness(24), Brightness(8), num_classes=2)
SETTINGS = TrainingSettings(
    epochs=4, batch_size=4, learning_rate=0.1, workers=1, checkpoint_every_s=0, mixup_alpha=0.2
)

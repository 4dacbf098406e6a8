"""What a network says about a whole set of labelled inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.data import DataLoader, Dataset

LabelledInputs = Dataset[tuple[torch.Tensor, torch.Tensor, int]]
"""Input (channel, depth, height, width), lungs (1, depth, height, width) and label index."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits and labels of a whole set, in its order."""

    logits: Float[torch.Tensor, "scan class"]
    labels: Int[torch.Tensor, " scan"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(nn.functional.cross_entropy(self.logits, self.labels))

    @property
    def accuracy(self) -> float:
        """Share of the scans whose largest logit is their label's."""
        return float((self.logits.argmax(1) == self.labels).float().mean())


def evaluate(network: nn.Module, examples: LabelledInputs, *, batch_size: int = 4) -> Outputs:
    """Run a network over a set of examples, in float32 and in the set's order."""
    network.eval()
    logits, targets = [], []
    with torch.inference_mode():
        for batch, lungs, labels in DataLoader(examples, batch_size=batch_size):
            logits.append(network(batch, lungs).float())
            targets.append(labels)
    return Outputs(logits=torch.cat(logits), labels=torch.cat(targets))

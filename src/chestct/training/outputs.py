"""What a network says about a whole set of labelled inputs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import nn
from torch.utils.data import DataLoader

from chestct.training.devices import device_of
from chestct.training.loading import LabelledInputs, batches_on, in_steps, make_loader
from chestct.training.ranks import current_ranks, share_buffers, total

__all__ = ["LabelledInputs", "Outputs", "evaluate", "loader_in_order", "outputs_of"]


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


def evaluate(
    network: nn.Module, examples: LabelledInputs, *, batch_size: int = 4, workers: int | None = 0
) -> Outputs:
    """Run a network over a set of examples, in float32 and in the set's order.

    Where several processes train together each must call this: it runs a share of the examples,
    and all get the outputs of all.

    Args:
        network: Run where its weights lie.
        examples: What it is run on.
        batch_size: Examples at once, in each process.
        workers: Processes that read; None leaves it to the device.
    """
    return outputs_of(network, loader_in_order(network, examples, batch_size, workers))


def loader_in_order(
    network: nn.Module, examples: LabelledInputs, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """What reads this process's share of a set of examples, for `outputs_of`."""
    own = current_ranks().share(list(range(len(examples))))  # type: ignore[arg-type]
    steps = in_steps(own, batch_size)
    return make_loader(examples, steps, workers=workers, device=device_of(network))


def outputs_of(network: nn.Module, loader: DataLoader[Any]) -> Outputs:
    """As `evaluate`, with a loader that may be used again."""
    share_buffers(network)
    network.eval()
    logits, targets = [], []
    with torch.inference_mode(), closing(batches_on(device_of(network), loader)) as batches:
        for batch, lungs, labels in batches:
            logits.append(network(batch, lungs).float().cpu())
            targets.append(labels.cpu())
    own = Outputs(torch.cat(logits), torch.cat(targets)) if logits else None
    if current_ranks().is_alone and own is not None:
        return own
    return _of_all(own, len(loader.dataset))  # type: ignore[arg-type]


def _of_all(own: Outputs | None, num: int) -> Outputs:
    """The outputs of all processes, each of which ran its share."""
    num_classes = torch.tensor([0 if own is None else own.logits.shape[1]])
    dist.all_reduce(num_classes, dist.ReduceOp.MAX)
    logits, labels = torch.zeros(num, int(num_classes)), torch.zeros(num, dtype=torch.int64)
    if own is not None:
        ranks = current_ranks()
        logits[ranks.rank :: ranks.size] = own.logits
        labels[ranks.rank :: ranks.size] = own.labels
    return Outputs(total(logits), total(labels))

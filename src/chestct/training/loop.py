"""The training loop: plain PyTorch, one function per thing that happens.

A run folder holds `settings.json`, `log.jsonl` (one line per epoch), `last.safetensors` and
`best.safetensors` (lowest validation loss; the later epoch wins a tie).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from chestct.datasets.augment import Augmentation, augment_batch
from chestct.training.settings import TrainingSettings

LabelledInputs = Dataset[tuple[torch.Tensor, torch.Tensor, int]]
"""Input (channel, depth, height, width), lungs (1, depth, height, width) and label index."""


@dataclass(frozen=True)
class EpochLog:
    """What is written down of one epoch."""

    epoch: int
    learning_rate: float
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


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


def train(
    network: nn.Module,
    training: LabelledInputs,
    validation: LabelledInputs,
    settings: TrainingSettings,
    folder: Path,
    *,
    augmentation: Augmentation | None = None,
) -> list[EpochLog]:
    """Train a network and leave it with the weights of its best epoch.

    Args:
        network: Changed in place; called as `network(batch, lungs)`.
        training: Examples to learn from.
        validation: Examples of other patients, to choose the epoch by.
        settings: Of this run.
        folder: Where log and weights are written; made when it does not exist.
        augmentation: How batches are varied; None leaves them as they are.

    Returns:
        One entry per epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(settings.model_dump_json(indent=1) + "\n")
    torch.manual_seed(settings.seed)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps_per_epoch = math.ceil(_length(training) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step / steps_per_epoch, settings)
    )
    history: list[EpochLog] = []
    for epoch in range(settings.epochs):
        started = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        losses = []
        for batch, lungs, labels in _batches(training, settings, epoch, augmentation):
            losses.append(_step(network, optimizer, (batch, lungs, labels), settings))
            schedule.step()
        outputs = evaluate(network, validation, batch_size=settings.batch_size)
        history.append(
            EpochLog(
                epoch=epoch,
                learning_rate=rate,
                training_loss=sum(losses) / len(losses),
                validation_loss=outputs.loss,
                validation_accuracy=outputs.accuracy,
                seconds=time.perf_counter() - started,
            )
        )
        _write_epoch(folder, network, history)
    network.load_state_dict(load_file(folder / "best.safetensors"))
    return history


def evaluate(network: nn.Module, examples: LabelledInputs, *, batch_size: int = 4) -> Outputs:
    """Run a network over a set of examples, in float32 and in the set's order."""
    network.eval()
    logits, targets = [], []
    with torch.inference_mode():
        for batch, lungs, labels in DataLoader(examples, batch_size=batch_size):
            logits.append(network(batch, lungs).float())
            targets.append(labels)
    return Outputs(logits=torch.cat(logits), labels=torch.cat(targets))


def learning_rate_factor(epoch: float, settings: TrainingSettings) -> float:
    """Share of the highest rate at a (fractional) epoch: linear rise, then half a cosine."""
    if epoch < settings.warmup_epochs:
        return max(epoch, 0.02) / settings.warmup_epochs
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min((epoch - settings.warmup_epochs) / span, 1.0)))


def _length(examples: LabelledInputs) -> int:
    """Number of examples; torch's `Dataset` type does not promise a length."""
    return len(examples)  # type: ignore[arg-type]


def _batches(
    examples: LabelledInputs,
    settings: TrainingSettings,
    epoch: int,
    augmentation: Augmentation | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Shuffled, varied batches of one epoch; the draw depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    loader = DataLoader(examples, batch_size=settings.batch_size, shuffle=True, generator=generator)
    # A generator of its own, since the loader draws from its generator while it is being read.
    variation = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch + 500_000)
    for batch, lungs, labels in loader:
        if augmentation is None:
            yield batch, lungs, labels
        else:
            yield *augment_batch(batch, lungs, augmentation, variation), labels


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    settings: TrainingSettings,
) -> float:
    """One optimiser step; returns the loss."""
    inputs, lungs, labels = batch
    network.train()
    optimizer.zero_grad(set_to_none=True)
    inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        logits = network(inputs, lungs)
    loss = nn.functional.cross_entropy(
        logits.float(), labels, label_smoothing=settings.label_smoothing
    )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _write_epoch(folder: Path, network: nn.Module, history: list[EpochLog]) -> None:
    """Append to the log, keep the last weights, and the best so far."""
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(asdict(history[-1])) + "\n")
    lowest = min(entry.validation_loss for entry in history)
    names = ["last"] + (["best"] if history[-1].validation_loss == lowest else [])
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    for name in names:
        aside = folder / f"{name}.safetensors.part"
        save_file(weights, aside)
        aside.replace(folder / f"{name}.safetensors")

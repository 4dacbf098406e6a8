"""The training loop: plain PyTorch, one function per thing that happens.

A run folder holds `settings.json`, `log.jsonl` (one line per epoch), `checkpoint.safetensors` (all
that is needed to go on) and `best.safetensors` (weights of the lowest validation loss). Started
again with the same settings, a run goes on where it was; because every step draws its randomness
from the seed and its own number, the weights are those of a run that was never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from chestct.datasets.augmentations import AnyAugmentation, vary_batch
from chestct.training.checkpoints import save_checkpoint, save_weights
from chestct.training.files import write_text
from chestct.training.interrupts import StopRequest
from chestct.training.objective import DivergedError, loss, mix_up, soft_targets
from chestct.training.outputs import Outputs, evaluate
from chestct.training.run import EpochLog, LabelledSets, Run, start_run
from chestct.training.sampling import StepSampler, step_seed
from chestct.training.schedules import epochs_since_best, learning_rate
from chestct.training.settings import TrainingSettings


def train(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    folder: Path,
    *,
    augmentation: AnyAugmentation | None = None,
    after_epoch: Callable[[EpochLog], object] | None = None,
) -> list[EpochLog]:
    """Train a network, or go on training it, and leave it with its best or its last weights.

    Args:
        network: Changed in place; called as `network(batch, lungs)`.
        sets: What it learns from and is watched on.
        settings: Of this run.
        folder: The run folder; made when it does not exist.
        augmentation: How batches are varied; None leaves them as they are.
        after_epoch: Called with every epoch finished by this call, once it is written down.

    Returns:
        One entry per epoch.

    Raises:
        DivergedError: The loss is no longer a number.
        TrainingError: The run was asked to stop (it can go on), or the folder holds a run with
            other settings.
    """
    run = start_run(network, sets, settings, folder, augmentation)
    with StopRequest() as stop:
        while not run.is_finished:
            _train_epoch(run, stop)
            _finish_epoch(run, evaluate(network, sets.validation, batch_size=settings.batch_size))
            if after_epoch is not None:
                after_epoch(run.progress.history[-1])
    if settings.keep == "best":
        network.load_state_dict(load_file(folder / "best.safetensors"))
    return run.progress.history


def _train_epoch(run: Run, stop: StopRequest) -> None:
    """Do the steps that are left of the epoch under way."""
    progress, settings = run.progress, run.settings
    last_saved = started = time.perf_counter()
    before = progress.seconds
    for batch, lungs, labels in _batches(run):
        progress.loss_sum += _step(run, batch, lungs, labels)
        progress.step_in_epoch += 1
        now = time.perf_counter()
        progress.seconds = before + now - started
        at_optimizer_step = progress.step_in_epoch % settings.accumulation == 0
        if at_optimizer_step and (stop or now - last_saved > settings.checkpoint_every_s):
            _save(run)
            last_saved = now
            stop.raise_if_requested(run.folder)


def _batches(run: Run) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The batches of the epoch under way that have not been used yet."""
    settings = run.settings
    sampler = StepSampler(
        run.labels, settings, epoch=run.progress.epoch, first_step=run.progress.step_in_epoch
    )
    yield from DataLoader(run.sets.training, batch_sampler=sampler, num_workers=settings.workers)


def _step(run: Run, batch: torch.Tensor, lungs: torch.Tensor, labels: torch.Tensor) -> float:
    """One forward and backward pass, and an optimiser step when it is time; returns the loss."""
    settings, progress = run.settings, run.progress
    number = progress.epoch * run.steps_per_epoch + progress.step_in_epoch
    generator = torch.Generator().manual_seed(step_seed(settings.seed, number))
    torch.manual_seed(step_seed(settings.seed, number))
    if run.augmentation is not None:
        batch, lungs = vary_batch(batch, lungs, run.augmentation, generator)
    run.network.train()
    batch = batch.contiguous(memory_format=torch.channels_last_3d)
    targets = soft_targets(labels, run.sets.num_classes)
    if settings.mixup_alpha > 0:
        batch, lungs, targets = mix_up(batch, lungs, targets, settings.mixup_alpha, generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        logits = run.network(batch, lungs)
    value = loss(logits, targets, settings, run.weights)
    if not torch.isfinite(value):
        raise DivergedError(_not_finite_message(run))
    (value / settings.accumulation).backward()  # type: ignore[no-untyped-call]
    _optimizer_step_when_due(run)
    return float(value.detach())


def _optimizer_step_when_due(run: Run) -> None:
    """Step once per `accumulation` passes, and with what is left at the end of an epoch."""
    settings, done = run.settings, run.progress.step_in_epoch + 1
    if done % settings.accumulation and done != run.steps_per_epoch:
        return
    epoch = run.progress.epoch + run.progress.step_in_epoch / run.steps_per_epoch
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(settings, epoch, run.progress.validation_losses)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def _finish_epoch(run: Run, outputs: Outputs) -> None:
    """Log a finished epoch, keep its weights if they are the best, and save."""
    progress = run.progress
    entry = EpochLog(
        epoch=progress.epoch,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        training_loss=progress.loss_sum / progress.step_in_epoch,
        validation_loss=outputs.loss,
        validation_accuracy=outputs.accuracy,
        seconds=progress.seconds,
    )
    progress.history.append(entry)
    progress.step_in_epoch, progress.loss_sum, progress.seconds = 0, 0.0, 0.0
    if epochs_since_best(progress.validation_losses) == 0:
        save_weights(run.folder / "best.safetensors", run.network)
    _save(run)
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in progress.history)
    write_text(run.folder / "log.jsonl", lines)


def _save(run: Run) -> None:
    """Write the checkpoint."""
    path = run.folder / "checkpoint.safetensors"
    save_checkpoint(path, run.network, run.optimizer, asdict(run.progress))


def _not_finite_message(run: Run) -> str:
    """Say where training broke and what can be done."""
    return (
        f"The loss is no longer a number in epoch {run.progress.epoch}, step "
        f"{run.progress.step_in_epoch}. The last checkpoint in {run.folder.name} is from before: "
        "start a new run with a lower training.learning_rate, or with training.precision float32."
    )

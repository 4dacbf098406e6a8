"""The training loop: plain PyTorch, one function per thing that happens, from examples to loss.

A run folder holds `settings.json`, `log.jsonl` (one line per epoch), `checkpoint.safetensors` (all
that is needed to go on) and `best.safetensors` (weights of the lowest validation loss). Started
again with the same settings, a run goes on where it was; because every step draws its randomness
from the seed and its own number, the weights are those of a run that was never stopped.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    nullcontext,
    suppress,
)
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, default_collate

from chestct.datasets.augment import AnyAugmentation, vary_batch
from chestct.datasets.workers import end_with_parent
from chestct.errors import ChestCTError, TrainingError
from chestct.networks.blocks import LogitsAndFeatures, Pooled, PooledNetwork
from chestct.networks.roi import Features, LungBatch
from chestct.storage import write_text
from chestct.training.distributed import (
    MEMORY_FORMAT,
    OtherProcessError,
    Ranks,
    current_ranks,
    device_of,
    from_main,
    on_main,
    others_explained,
    total,
    tuned_for,
)
from chestct.training.run import (
    Batch,
    DivergedError,
    EpochLog,
    LabelledInputs,
    LabelledSets,
    Run,
    are_findings,
    class_weights,
    epochs_since_best,
    freeze,
    learning_rate,
    learns_head_alone,
    recomputing,
    save_checkpoint,
    save_weights,
    start_run,
)
from chestct.training.settings import TrainingSettings

_GIB: Final = 2**30
_NO_LUNGS = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits, labels and pooled features of a whole set, in its order.

    Features have no columns where the network has no pooled features. Labels are indices, or rows
    as `steps.are_findings` tells.
    """

    logits: Float[torch.Tensor, "scan class"]
    labels: torch.Tensor
    features: Float[torch.Tensor, "scan pooled"]

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Those of several sets, one after the other."""
        names = ("logits", "labels", "features")
        return cls(*(torch.cat([getattr(each, name) for each in parts]) for name in names))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; of findings the binary one, over what is known."""
        if are_findings(self.labels):
            return float(_findings_loss(self.logits, self.labels))
        return float(nn.functional.cross_entropy(self.logits, self.labels))

    @property
    def accuracy(self) -> float:
        """Share of the scans whose largest logit is their label's; of findings called right."""
        if are_findings(self.labels):
            is_known = ~self.labels.isnan()
            return float(((self.logits > 0) == (self.labels > 0.5))[is_known].float().mean())
        return float((self.logits.argmax(1) == self.labels).float().mean())


def evaluate(
    network: nn.Module, examples: LabelledInputs, *, batch_size: int = 4, workers: int | None = 0
) -> Outputs:
    """Run a network over a set of examples, in float32 and in the set's order.

    Where several processes train together each must call this: it runs a share of the examples,
    `batch_size` at once, and all get the outputs of all. `workers` None leaves their number to the
    device.
    """
    return _outputs_of(network, _loader_in_order(network, examples, batch_size, workers))


def _loader_in_order(
    network: nn.Module, examples: LabelledInputs, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """What reads this process's share of a set of examples, for `_outputs_of`."""
    own = current_ranks().share(list(range(len(examples))))  # type: ignore[arg-type]
    steps = _in_steps(own, batch_size)
    return _make_loader(examples, steps, workers=workers, device=device_of(network))


def _outputs_of(network: nn.Module, loader: DataLoader[Any]) -> Outputs:
    """As `evaluate`, with a loader that may be used again."""
    _share_buffers(network)
    network.eval()
    both = LogitsAndFeatures(network)
    logits, features, targets = [], [], []
    with torch.inference_mode(), closing(_batches_on(device_of(network), loader)) as batches:
        for batch, lungs, labels in batches:
            said, pooled = both(batch, lungs)
            logits.append(said.float().cpu())
            features.append(pooled.float().cpu())
            targets.append(labels.cpu())
    own = None
    if logits:
        own = Outputs(torch.cat(logits), torch.cat(targets), torch.cat(features))
    if current_ranks().is_alone and own is not None:
        return own
    return _of_all(own, len(loader.dataset))  # type: ignore[arg-type]


def _of_all(own: Outputs | None, num: int) -> Outputs:
    """The outputs of all processes, each of which ran its share."""
    shapes = [0, 0, 0]
    if own is not None:
        shapes = [own.logits.shape[1], own.features.shape[1], int(are_findings(own.labels))]
    found = torch.tensor(shapes)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    *widths, has_rows = found.tolist()
    logits, features = (torch.zeros(num, width) for width in widths)
    labels = torch.zeros(logits.shape) if has_rows else torch.zeros(num, dtype=torch.int64)
    if own is not None:
        ranks = current_ranks()
        for whole, share in ((logits, own.logits), (features, own.features), (labels, own.labels)):
            whole[ranks.rank :: ranks.size] = share
    return Outputs(total(logits), total(labels), total(features))


class _StepFigures:
    """Adds the losses of a run's steps up, over all processes, in `run.progress.loss_sum`.

    Attributes:
        is_stop_wanted: Whether any process was asked to stop, as all of them know it.
    """

    def __init__(self, run: Run) -> None:
        self.is_stop_wanted = False
        self._run = run
        self._pending: torch.Tensor | None = None
        self._step = 0

    def add(self, loss: torch.Tensor, *, share: float, wants_stop: bool) -> None:
        """Take the mean loss of this process's `share` of a step, and read that of the step before.

        Raises:
            DivergedError: The loss of the step before is no number.
        """
        if current_ranks().is_alone:
            self.is_stop_wanted |= wants_stop
        stop = torch.full_like(loss, float(wants_stop), requires_grad=False)
        figures = total(torch.stack([loss.detach() * share, stop]))
        self.settle()
        self._pending, self._step = figures, self._run.progress.step_in_epoch

    def settle(self) -> None:
        """Read what is left to be read; a checkpoint may only be written after this.

        Raises:
            DivergedError: It is no number.
        """
        if self._pending is None:
            return
        loss, stop = self._pending.tolist()
        self._pending = None
        self.is_stop_wanted |= stop > 0
        if not math.isfinite(loss):
            _raise_agreed(DivergedError(self._not_finite()))
        self._run.progress.loss_sum += loss

    def _not_finite(self) -> str:
        """Say where training broke and what can be done."""
        run = self._run
        return (
            f"The loss is no longer a number in epoch {run.progress.epoch}, step {self._step}. "
            f"The last checkpoint in {run.folder.name} is from before: start a new run with a "
            "lower training.learning_rate, or with training.precision float32."
        )


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

    It is changed in place, where its weights lie, and called as `network(batch, lungs)`. Where
    several processes have joined each calls this with the same network, and all take the same
    steps. `after_epoch` is told, in the first process, of every epoch that this call finishes and
    writes down.

    Returns:
        One entry per epoch.

    Raises:
        DivergedError: The loss is no longer a number.
        TrainingError: The run was asked to stop (it can go on), or the folder holds a run with
            other settings, or a scan could not be read.
        WriteError: The folder cannot be written; its last checkpoint is untouched.
    """
    with ExitStack() as stack:
        stack.enter_context(others_explained())
        varies = augmentation is not None or settings.mixup_alpha > 0
        if learns_head_alone(network, settings) and not varies:
            network, sets, settings = _head_alone(network, sets, settings)
        run = start_run(network, sets, settings, folder, augmentation)
        stack.enter_context(run.warm_up.restored())
        stack.enter_context(tuned_for(run.device))
        stack.enter_context(recomputing(network, is_wanted=settings.checkpoint_activations))
        stop = stack.enter_context(_StopRequest())
        batches = stack.enter_context(closing(training_batches(run)))
        _train_epochs(run, batches, stop, after_epoch)
        is_best_kept = settings.keep == "best"
        network.load_state_dict(
            load_file(folder / "best.safetensors") if is_best_kept else run.judged.state_dict()
        )
    return run.progress.history


class _PooledScans(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Pooled features of scans in the place of the scans, without lungs."""

    def __init__(self, outputs: Outputs) -> None:
        self.labels = outputs.labels
        self._features = outputs.features

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._features[index, :, None, None, None], _NO_LUNGS, self.labels[index]


def _head_alone(
    network: nn.Module, sets: LabelledSets, settings: TrainingSettings
) -> tuple[nn.Module, LabelledSets, TrainingSettings]:
    """A network's head, pooled features of its sets, worked out once, and settings for both."""
    freeze(network, settings.freeze)
    training, validation = (
        _PooledScans(
            evaluate(network, each, batch_size=settings.batch_size, workers=settings.workers)
        )
        for each in (sets.training, sets.validation)
    )
    # Nothing is left to be read, or to be computed again.
    own = settings.model_copy(update={"workers": 0, "checkpoint_activations": False})
    head = _HeadAlone(network)  # type: ignore[arg-type]
    return head, LabelledSets(training, validation, sets.num_classes), own


def _train_epochs(
    run: Run,
    batches: Iterator[Batch],
    stop: _StopRequest,
    after_epoch: Callable[[EpochLog], object] | None,
) -> None:
    """Train until all epochs are done, or early stopping or a signal ends it."""
    validation = _loader_in_order(
        run.judged, run.sets.validation, run.settings.batch_size, run.settings.workers
    )
    while not run.is_finished:
        _train_epoch(run, batches, stop)
        _finish_epoch(run, _outputs_of(run.judged, validation))
        if after_epoch is not None and current_ranks().is_main:
            after_epoch(run.progress.history[-1])
        is_stop_wanted = bool(total(torch.tensor(float(bool(stop)))))
        if is_stop_wanted and not run.is_finished:
            _raise_agreed(_stopped(run.folder, stop))


def _train_epoch(run: Run, batches: Iterator[Batch], stop: _StopRequest) -> None:
    """Do the steps that are left of the epoch under way."""
    progress, settings = run.progress, run.settings
    last_saved = started = time.perf_counter()
    before, figures = progress.seconds, _StepFigures(run)
    for batch in islice(batches, run.steps_per_epoch - progress.step_in_epoch):
        rate = _rate(run, progress.step_in_epoch) if _is_step_due(run) else None
        share, value = step(run, batch, rate)
        figures.add(value, share=share, wants_stop=bool(stop))
        progress.step_in_epoch += 1
        now = time.perf_counter()
        progress.seconds = before + now - started
        if progress.step_in_epoch % settings.accumulation:
            continue
        if figures.is_stop_wanted or now - last_saved > settings.checkpoint_every_s:
            figures.settle()
            _save(run)
            last_saved = now
        if figures.is_stop_wanted:
            _raise_agreed(_stopped(run.folder, stop))
    figures.settle()
    progress.seconds = before + time.perf_counter() - started


def training_batches(run: Run) -> Generator[Batch]:
    """The batches that have not been used yet, of this and all further epochs."""
    progress, settings = run.progress, run.settings
    steps = _Steps(
        run.labels,
        settings,
        epoch=progress.epoch,
        first_step=progress.step_in_epoch,
        ranks=current_ranks(),
    )
    loader = _make_loader(run.sets.training, steps, workers=settings.workers, device=run.device)
    return _batches_on(run.device, loader)


def step(run: Run, batch: Batch, rate: float | None) -> tuple[float, torch.Tensor]:
    """One forward and backward pass, and where a rate is given the optimiser's step at that rate.

    Without one gradients are only added up. How far the run came is left to the caller.

    Returns:
        This process's share of the pass's examples, and its loss.
    """
    share, num_passes = _share(run), run.settings.accumulation
    with _averaging(run.called, is_wanted=rate is not None):
        value = _pass_loss(run, *batch)
        # Gradients are averaged over the processes, whose shares may differ in size.
        (value * (share * current_ranks().size) / num_passes).backward()  # type: ignore[no-untyped-call]
    if rate is not None:
        _optimizer_step(run, rate)
    return share, value


def _share(run: Run) -> float:
    """This process's part of the examples of the pass under way."""
    ranks, num = current_ranks(), run.num_in_step
    return 1.0 if ranks.is_alone else len(ranks.share(list(range(num)))) / num


def _pass_loss(
    run: Run, batch: torch.Tensor, lungs: torch.Tensor, labels: torch.Tensor
) -> Float[torch.Tensor, ""]:
    """The loss of one forward pass, its randomness that of the pass's number."""
    settings = run.settings
    generator = _seeded(run)
    if run.augmentation is not None:
        batch, lungs = vary_batch(batch, lungs, run.augmentation, generator)
    run.network.train()
    for norm in run.frozen_norms:
        norm.eval()
    batch = batch.contiguous(memory_format=MEMORY_FORMAT)
    targets = _as_targets(labels, run.sets.num_classes)
    if settings.mixup_alpha > 0:
        batch, lungs, targets = _mix_up(batch, lungs, targets, settings.mixup_alpha, generator)
    run.warm_up.before_pass(run.num_passes)
    is_half = settings.precision == "bf16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=is_half):
        logits = run.called(batch, lungs)
    if are_findings(labels):
        return _findings_loss(logits, targets, settings.label_smoothing, run.weights)
    return _class_loss(logits, targets, settings, run.weights)


def _seeded(run: Run) -> torch.Generator:
    """The randomness of a step: that of its number, and of the process where there are several."""
    ranks = current_ranks()
    own = () if ranks.is_alone else (ranks.rank,)
    seed = _step_seed(run.settings.seed, run.num_passes, *own)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _is_step_due(run: Run) -> bool:
    """Whether the pass under way ends an optimiser step: every `accumulation`, and an epoch's."""
    done = run.progress.step_in_epoch + 1
    return done % run.settings.accumulation == 0 or done == run.steps_per_epoch


def _optimizer_step(run: Run, rate: float) -> None:
    """Move the weights by the gradients gathered since the last step."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        _follow(run.average, run.network, run.settings.average_weights, run.num_passes)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, num_passes: int) -> None:
    """Move an average towards a network; early in a run faster, so that the drawn weights go."""
    rest = 1 - min(decay, (1 + num_passes) / (10 + num_passes))
    own, now = average.state_dict(), network.state_dict()
    for name, kept in own.items():
        if kept.is_floating_point():
            kept.lerp_(now[name], rest)
        else:
            kept.copy_(now[name])


def _rate(run: Run, step_in_epoch: int) -> float:
    """The rate of a step of the epoch under way."""
    epoch = run.progress.epoch + step_in_epoch / run.steps_per_epoch
    return learning_rate(run.settings, epoch, run.progress.validation_losses)


def _finish_epoch(run: Run, outputs: Outputs) -> None:
    """Log a finished epoch, keep its weights if they are the best, and save."""
    progress = run.progress
    # Not asked of the optimiser, which knows none where a run goes on after the last step.
    last_rate = _rate(run, run.steps_per_epoch - 1)
    entry = EpochLog(
        epoch=progress.epoch,
        learning_rate=last_rate,
        training_loss=progress.loss_sum / progress.step_in_epoch,
        validation_loss=outputs.loss,
        validation_accuracy=outputs.accuracy,
        seconds=progress.seconds,
        gpu_memory_gib=_take_peak_memory_gib(run.device),
    )
    # Rounding may differ between machines, and all must stop after the same epoch.
    progress.history.append(EpochLog(**from_main(asdict(entry))))
    progress.step_in_epoch, progress.loss_sum, progress.seconds = 0, 0.0, 0.0
    on_main(lambda: _write_epoch(run))


def _take_peak_memory_gib(device: torch.device) -> float | None:
    """The most memory that was taken on a GPU since this was asked last; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / _GIB
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _write_epoch(run: Run) -> None:
    """Write log, checkpoint and best weights at the end of an epoch."""
    progress = run.progress
    if epochs_since_best(progress.validation_losses) == 0:
        save_weights(run.folder / "best.safetensors", run.judged)
    _save(run)
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in progress.history)
    write_text(run.folder / "log.jsonl", lines)


def _save(run: Run) -> None:
    """Write the checkpoint, in the first process."""
    if current_ranks().is_main:
        path = run.folder / "checkpoint.safetensors"
        save_checkpoint(path, run.network, run.optimizer, asdict(run.progress), average=run.average)


def _averaging(
    called: Callable[..., torch.Tensor], *, is_wanted: bool
) -> AbstractContextManager[None]:
    """While entered, gradients are averaged over the processes, or only added up in each."""
    if isinstance(called, DistributedDataParallel) and not is_wanted:
        return called.no_sync()
    return nullcontext()


def _share_buffers(network: nn.Module) -> None:
    """Give all processes the running statistics of the first."""
    if not current_ranks().is_alone:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def _raise_agreed(error: ChestCTError) -> None:
    """Raise an error that all processes come to at once, so that only the first one tells it."""
    if current_ranks().is_main:
        raise error
    raise OtherProcessError("All processes of this training ended.") from error


def _as_targets(labels: torch.Tensor, num_classes: int) -> Float[torch.Tensor, "scan class"]:
    """What a network should say of each scan: all of one class, or of each finding 1, 0 or NaN."""
    if are_findings(labels):
        return labels.float()
    return nn.functional.one_hot(labels, num_classes).float()


def _mix_up(
    batch: Float[torch.Tensor, "scan ..."],
    lungs: Float[torch.Tensor, "scan ..."],
    targets: Float[torch.Tensor, "scan class"],
    alpha: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blend each scan with another one of the batch (Zhang et al. 2018).

    The lung mask becomes the union of both, since both are now in view. A finding is known where
    it is known of both.
    """
    order = torch.randperm(len(batch), generator=generator)
    # torch's Beta takes no generator, so it is seeded from ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
    mixed = share * batch + (1 - share) * batch[order]
    return mixed, torch.maximum(lungs, lungs[order]), share * targets + (1 - share) * targets[order]


def _findings_loss(
    logits: Float[torch.Tensor, "scan finding"],
    targets: Float[torch.Tensor, "scan finding"],
    label_smoothing: float = 0.0,
    weights: Float[torch.Tensor, " finding"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Binary cross-entropy in nats, the mean over scans and findings that are known; else 0.

    `targets` are 1, 0, between them, or NaN where not known, and smoothing moves them towards 0.5.
    `weights` say how much more scans with each finding count than those without.
    """
    is_known = ~targets.isnan()
    wanted = targets.nan_to_num() * (1 - label_smoothing) + label_smoothing / 2
    each = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), wanted, pos_weight=weights, reduction="none"
    )
    return (each * is_known).sum() / is_known.sum().clamp(min=1)


_MOST_WORKERS: Final = 8


_READ_AHEAD: Final = 2
"""Batches that each reading process has ready."""


@dataclass(frozen=True)
class _Unreadable:
    """Stands for an example that could not be read, in the place of a batch too."""

    reason: str


class _Guarded(Dataset[Any]):
    """Examples, or why one could not be read.

    An exception that leaves a reading process arrives with a traceback in its message, and a user
    should not have to look at one.
    """

    def __init__(self, examples: LabelledInputs) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> object:
        try:
            return self._examples[index]
        except (ChestCTError, OSError) as error:
            return _Unreadable(str(error))


def _collate(examples: list[Any]) -> object:
    """One batch, or the first example that could not be read."""
    failed = [example for example in examples if isinstance(example, _Unreadable)]
    return failed[0] if failed else default_collate(examples)


def _begin_reading(number: int) -> None:
    """What each reading process does first; it has a number."""
    end_with_parent()


def _num_workers(wanted: int | None, device: torch.device) -> int:
    """How many processes read examples, where the settings leave it open.

    On a CPU none, as they would take cores from the network. For a GPU as many as there are cores
    for each GPU of this machine, less one for the training itself, and no more than eight.
    """
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return 0
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    per_gpu = (num_cores or 1) // torch.cuda.device_count()
    return min(max(per_gpu - 1, 1), _MOST_WORKERS)


def _make_loader(
    examples: LabelledInputs,
    steps: Iterable[list[int]],
    *,
    workers: int | None,
    device: torch.device,
) -> DataLoader[Any]:
    """What reads the examples of one step after the other.

    Reading processes live as long as one pass over the steps. Were they kept for the next pass, the
    loader would hold them, and an exception's traceback the loader: they would end whenever the
    garbage collector comes by, in no order, and be waited for in vain.
    """
    count = _num_workers(workers, device)
    return DataLoader(
        _Guarded(examples),
        worker_init_fn=_begin_reading,
        batch_sampler=steps,
        num_workers=count,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        prefetch_factor=_READ_AHEAD if count else None,
    )


def _batches_on(device: torch.device, loader: DataLoader[Any]) -> Generator[Batch]:
    """A loader's batches, moved while the device is still busy with the one before.

    Reading processes end with this generator, also when it is closed early.

    Raises:
        TrainingError: An example could not be read.
    """
    found_batches = iter(loader)
    try:
        for found in found_batches:
            if isinstance(found, _Unreadable):
                msg = (
                    f"{found.reason} Training was stopped there. Mend the scan and start the same "
                    "command again: it goes on from its last checkpoint."
                )
                raise TrainingError(msg)
            batch, lungs, labels = (part.to(device, non_blocking=True) for part in found)
            yield batch, lungs, labels
    except RuntimeError:
        # All was read, and only then one of the processes ended in disorder: no harm is done.
        if not getattr(found_batches, "_shutdown", False):
            raise
    finally:
        _end_reading(found_batches)


def _end_reading(found_batches: Iterator[object]) -> None:
    """End a loader's reading processes here and now.

    PyTorch does this in `__del__`, whose time nobody knows: a process that ended in disorder is
    then reported to whoever is running when the garbage collector comes by.
    """
    shut_down = getattr(found_batches, "_shutdown_workers", None)
    if shut_down is None:
        return
    with suppress(RuntimeError):
        shut_down()
    for process in getattr(found_batches, "_workers", ()):
        process.join()


def _in_steps(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Numbers in their order, so many at a time."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def _step_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all the numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _steps_of_epoch(
    labels: torch.Tensor, settings: TrainingSettings, epoch: int
) -> list[list[int]]:
    """The example numbers of each step of an epoch."""
    generator = torch.Generator().manual_seed(_step_seed(settings.seed, epoch, 1))
    if settings.sampling == "balanced":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return _in_steps(order.tolist(), settings.batch_size)


class _Steps:
    """The example numbers of one step after the other, epoch after epoch without end.

    One list for all epochs lets the next epoch be read while the last one is being judged.

    `labels` are as `LabelledSets.training_labels` gives them, `epoch` and `first_step` where to
    begin.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        settings: TrainingSettings,
        *,
        epoch: int = 0,
        first_step: int = 0,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self._labels, self._settings, self._ranks = labels, settings, ranks
        self._epoch, self._first_step = epoch, first_step

    def __iter__(self) -> Iterator[list[int]]:
        """One list of example numbers per step."""
        epoch, first_step = self._epoch, self._first_step
        while True:
            for step in _steps_of_epoch(self._labels, self._settings, epoch)[first_step:]:
                # A process without a share takes part with a scan that counts for nothing.
                yield self._ranks.share(step) or step[:1]
            epoch, first_step = epoch + 1, 0


def _class_loss(
    logits: Float[torch.Tensor, "scan class"],
    targets: Float[torch.Tensor, "scan class"],
    settings: TrainingSettings,
    weights: Float[torch.Tensor, " class"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Cross-entropy with soft targets, in float32 whatever the network ran in."""
    return nn.functional.cross_entropy(
        logits.float(), targets, weight=weights, label_smoothing=settings.label_smoothing
    )


class _HeadAlone(PooledNetwork):
    """The head of a network as a network of its own, for inputs that are pooled features.

    Its weights are the network's: what it learns, the network has learned.
    """

    def __init__(self, network: PooledNetwork) -> None:
        super().__init__()
        self.HEAD = network.HEAD
        # In a list, so that the backbone's weights are none of this network's.
        self._whole = [network]
        for name in network.HEAD:
            self.add_module(name, network.get_submodule(name))

    @property
    def whole(self) -> PooledNetwork:
        """The network whose head this is."""
        return self._whole[0]

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The input as it is, (batch, pooled, 1, 1, 1); the lungs are not looked at."""
        return batch.flatten(1)

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the network says of them."""
        return self.whole.logits_of(pooled)


class _StopRequest:
    """While entered, turns Ctrl-C and SIGTERM into a request that is looked at between steps.

    A second signal acts at once, as it would have without this.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        """Whether a signal came."""
        return self._number != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended; that of SIGTERM by default.

        Another process of the same training may have got the signal.
        """
        return 128 + (self._number or signal.SIGTERM)

    def __enter__(self) -> _StopRequest:
        """Take the signals over; outside the main thread, Python does not allow that."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def _stopped(folder: Path, stop: _StopRequest) -> TrainingError:
    """What ends a run that was asked to stop, once its state is written."""
    place = Path(*folder.parts[-2:])
    error = TrainingError(
        f"Training was stopped; its state is in {place}. The same command goes on from there."
    )
    error.exit_code = stop.exit_code
    return error

"""Train the lungs network: examples, training, weights and card, leaving-one-out figures.

    python scripts/lungs_examples.py outlines WORK
    python scripts/lungs_examples.py examples WORK
    python scripts/train_lungs.py WORK [--steps 4000] [--out src/chestct/preprocess/lungs]
    python scripts/train_lungs.py WORK --leave-out [--steps 300]

Training is a plain loop, for every step draws its own example: a real scan or a simulated one,
with disease put into its known lungs and bowel around them, turned, cut and scanned anew
(`lungs_augment.py`). AdamW, cosine, an average of the weights; BatchNorm's statistics stand still
in the last fifth. `--leave-out` trains once on simulated patients only and from there, per fold,
on all real scans but the fold's, and prints each left-out scan's Dice on the 4 mm grid beside that
of the outline by the method installed when `outlines` ran.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from lungs_augment import GAS, LEFT, RIGHT, UNJUDGED, Example, augment
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, distributed, nn

from chestct import __version__
from chestct.networks.blocks import cpu_multiplies_in_bf16
from chestct.networks.lungs import LUNG_CLASSES, LungsNet
from chestct.storage import file_sha256

CROPS = ((56, 72, 88), (64, 80, 96))
"""Size of crops at first, and in the last third of the steps."""
LARGE_SHARE = 0.33
BATCH = 2
"""Of one crop, PyTorch on the CPU takes a convolution that is half as fast."""
REAL_SHARE = 0.6
ABDOMENS = ("example_ct", "ACRIN_lower", "TCGA-DE-A4MA_wholebody")
"""Drawn twice as often as a chest: little else shows real bowel."""
AIRLESS_FACTOR = 8.0
"""Weight in the loss of airless lung, a small part of all lung and the hardest."""
BESIDE_FACTOR = 3.0
"""Weight of what is not lung within 8 mm of airless lung, lest its surface move outward, or of gas
of bowel and airways, which is no lung and often lies beside it."""
DENSE, TISSUE = -0.1, 0.2
"""-293 HU and -50 HU as the network takes them."""
FROZEN_SHARE = 0.2
STEPS_APART = 8
FOLDS = (
    ("LIDC-IDRI-1011", "example_ct", "lung4d"),
    ("C3N-00247", "chest64"),
    ("TCGA-DE-A4MA_wholebody", "P001"),
    ("A0001_B", "ACRIN_lower"),
    ("aorta_ct_cropped", "normal001"),
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        steps: Of each process; the learning rate falls to zero by then.
        rate: Highest learning rate.
        seed: Of weights and of all that is drawn.
        left_out: Real scans not to be seen.
        real_share: Share of crops from real scans.
        processes: How many train side by side.
    """

    steps: int
    rate: float = 2e-3
    seed: int = 0
    left_out: tuple[str, ...] = ()
    real_share: float = REAL_SHARE
    processes: int = 2


@cache
def load_example(path: Path, start: Path | None = None) -> Example:
    """Read one example, and find what the weights to start from have wrong in it.

    Food counts as background, for real scans do not label it.
    """
    with np.load(path, allow_pickle=False) as stored:
        values, labels, body = (stored[name] for name in ("values", "labels", "body"))
    labels[(labels == 3) & (values > -250)] = 0
    example = Example(values, labels, body)
    if start is not None:
        example.hard = _wrong_places(example, start)
    return example


def _wrong_places(example: Example, start: Path) -> np.ndarray:
    """Voxels (number, 3) that a network has wrong, and most of their neighbours: not surfaces."""
    found = np.isin(predict(_with_weights(start), example.values), (RIGHT, LEFT))
    is_wrong = (found != example.lungs) & (example.labels != UNJUDGED)
    share = ndimage.uniform_filter(is_wrong.astype(np.float32), 3, mode="constant")
    return np.argwhere(is_wrong & (share > 0.5))


@cache
def _with_weights(path: Path) -> LungsNet:
    """A network to ask."""
    network = LungsNet().eval()
    network.load_state_dict(load_file(path))
    return network


def draw_crops(
    work: Path, run: Run, rank: int, start: Path | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of augmented crops, one a step: input (batch, 1, depth, height, width) and labels."""
    rng = np.random.default_rng([run.seed, rank])
    real = [
        path
        for path in sorted((work / "real").glob("*.npz"))
        if path.stem.partition("+")[0] not in run.left_out
    ]
    simulated = sorted((work / "simulated").glob("*.npz"))
    odds = np.array([0.25 if "+" in p.stem else 2.0 if p.stem in ABDOMENS else 1.0 for p in real])
    for step in range(run.steps):
        size = CROPS[step > run.steps * (1 - LARGE_SHARE)]
        scans, labels = [], []
        for _ in range(BATCH):
            path = real[rng.choice(len(real), p=odds / odds.sum())]
            if rng.random() >= run.real_share:
                path = simulated[rng.integers(len(simulated))]
            values, truth = augment(load_example(path, start), size, rng)
            scans.append(to_input(values))
            labels.append(torch.from_numpy(truth.astype(np.int64)))
        yield torch.cat(scans), torch.stack(labels)


def to_input(values: np.ndarray) -> Tensor:
    """HU as the network takes them, (1, 1, depth, height, width)."""
    scaled = (np.clip(values, -1024, 600).astype(np.float32) + 1024) / 812 - 1
    return torch.from_numpy(scaled)[None, None]


def loss_of(logits: Tensor, scans: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, airless lung counting more, and soft Dice of both lungs and of gas."""
    is_judged = labels != UNJUDGED
    labels = torch.where(is_judged, labels, 0)
    is_lung = (labels == RIGHT) | (labels == LEFT)
    airless, beside = airless_lung(is_lung, scans[:, 0])
    beside = beside | (_within_two_voxels(labels == GAS) & ~is_lung)
    weights = is_judged * (1 + (AIRLESS_FACTOR - 1) * airless + (BESIDE_FACTOR - 1) * beside)
    entropy = F.cross_entropy(logits, labels, reduction="none") * weights
    shares = logits.softmax(1) * is_judged[:, None]
    truth = F.one_hot(labels, len(LUNG_CLASSES)).permute(0, 4, 1, 2, 3) * is_judged[:, None]
    shared = (shares * truth).sum((0, 2, 3, 4))
    total = shares.sum((0, 2, 3, 4)) + truth.sum((0, 2, 3, 4))
    missing = 1 - (2 * shared + 50) / (total + 50)
    right, left, gas = missing[1:]
    dice: Tensor = 0.25 * (right + left) + 0.15 * gas
    return entropy.sum() / weights.sum().clamp(min=1) + dice


def airless_lung(is_lung: Tensor, scans: Tensor) -> tuple[Tensor, Tensor]:
    """Lung without air as far as its surface, and what is not lung within two voxels of it.

    A voxel is airless where it is as dense as tissue, and where it is nearly so and most of the
    lung in the cube of three voxels around it too: one that is half chest wall is not.
    """
    is_dense = is_lung & (scans > DENSE)
    near = F.avg_pool3d(torch.stack([is_lung, is_dense], 1).float(), 3, 1, 1)
    is_tissue = is_lung & (scans > TISSUE)
    airless = is_tissue | (is_dense & (near[:, 1] > 0.8 * near[:, 0]))
    return airless, _within_two_voxels(airless) & ~is_lung


def _within_two_voxels(mask: Tensor) -> Tensor:
    """A mask (batch, depth, height, width) and what lies within two voxels of it."""
    return F.max_pool3d(mask.float()[:, None], 5, 1, 2)[:, 0] > 0


@torch.no_grad()
def _average(mean: nn.Module, network: nn.Module, keep: float) -> None:
    """Move the running average of the weights."""
    new = network.state_dict()
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            value.lerp_(new[name], 1 - keep)
        else:
            value.copy_(new[name])


@torch.no_grad()
def _meet(network: nn.Module) -> None:
    """Give every process the mean of all weights."""
    if not distributed.is_initialized():
        return
    for value in network.state_dict().values():
        if value.is_floating_point():
            distributed.all_reduce(value)
            value /= distributed.get_world_size()


def train(work: Path, run: Run, keep: Path, start: Path | None = None) -> LungsNet:
    """Train in `run.processes` processes, the averaged weights written to `keep` on the way.

    Each process takes its own steps with one thread, and every few steps all go on from their mean:
    on a busy machine threads that wait for each other in every layer are far slower.
    """
    with TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]
            _train_one, (work, run, keep, start, meeting), nprocs=run.processes
        )
    return _with_weights(keep)


def _train_one(
    rank: int, work: Path, run: Run, keep: Path, start: Path | None, meeting: Path
) -> None:
    """One process's part."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    if run.processes > 1:
        distributed.init_process_group(
            "gloo", f"file://{meeting}", rank=rank, world_size=run.processes
        )
    network = _started(start)
    mean = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.rate, weight_decay=1e-2)
    losses = []
    for step, crop in enumerate(draw_crops(work, run, rank, start), start=1):
        spent = step / run.steps
        rate = run.rate * min(1.0, step / 30) * 0.5 * (1 + np.cos(np.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if spent > 1 - FROZEN_SHARE:
            _freeze_statistics(network)
        losses.append(_step(network, optimizer, crop))
        if step % STEPS_APART and step < run.steps:
            continue
        _meet(network)
        _average(mean, network, min(0.96, step / (step + 10 * STEPS_APART)))
        if rank == 0 and (step % 40 == 0 or step == run.steps):
            print(f"  step {step}: loss {np.mean(losses[-40:]):.4f}", flush=True)
            save_weights(mean, keep)


def _started(start: Path | None) -> LungsNet:
    """A network to train, new or with the weights of another."""
    network = LungsNet()
    if start is not None:
        network.load_state_dict(load_file(start))
    return network.to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]


def _freeze_statistics(network: nn.Module) -> None:
    """From now on train with the statistics that the network will be used with."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eval()


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, crop: tuple[Tensor, Tensor]
) -> float:
    """One step; its loss."""
    scans, labels = crop
    scans = scans.to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_in_bf16()):
        logits = network(scans)
    loss = loss_of(logits.float(), scans, labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return loss.item()


def save_weights(network: nn.Module, path: Path, *, half: bool = False) -> None:
    """The weights as safetensors, 32 bits each or 16 to ship."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(tensors, path)


def predict(network: nn.Module, values: np.ndarray) -> np.ndarray:
    """Most likely class of each voxel of a scan on the grid."""
    padding = [(0, -n % 8) for n in values.shape]
    padded = np.pad(values, padding, constant_values=-1024)
    with torch.inference_mode():
        found = network(to_input(padded))[0].argmax(0).numpy()
    return found[tuple(slice(0, n) for n in values.shape)]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks."""
    return float(2 * np.sum(one & other) / max(1, one.sum() + other.sum()))


def measure(network: nn.Module, work: Path, name: str) -> dict[str, float]:
    """Dice of one real scan on the grid, by the network and by the stored outline."""
    with np.load(work / "outlines" / f"{name}.npz", allow_pickle=False) as stored:
        values, found, truth = stored["values"], stored["found"], stored["drawn"]
    labelled = work / "real" / f"{name}.npz"
    if labelled.is_file():
        truth = np.isin(load_example(labelled).labels, (RIGHT, LEFT))
    lungs = np.isin(predict(network, values), (RIGHT, LEFT))
    is_dense = truth & (values > -300)
    return {
        "dice": round(dice(lungs, truth), 4),
        "dice of the outline": round(dice(found, truth), 4),
        "dense kept": round(float((lungs & is_dense).sum() / max(1, is_dense.sum())), 3),
        "outside, ml": round(float((lungs & ~truth).sum() * 0.064), 1),
    }


def leave_out(work: Path, steps: int) -> None:
    """Figures of every real scan by a network that has not seen it."""
    base = work / "leave_out" / "simulated.safetensors"
    if not base.is_file():
        print("simulated patients only", flush=True)
        train(work, Run(2 * steps, real_share=0.0), base)
    for number, fold in enumerate(FOLDS):
        run = Run(steps, rate=1e-3, seed=number, left_out=fold)
        network = train(work, run, work / "leave_out" / f"fold{number}.safetensors", base)
        for name in fold:
            print(json.dumps({"scan": name} | measure(network, work, name)), flush=True)


def write_card(
    out: Path, work: Path, run: Run, network: nn.Module, start: Path | None = None
) -> None:
    """What the weights are and where they come from."""
    real = [path.stem for path in (work / "real").glob("*.npz")]
    names = sorted({name.partition("+")[0] for name in real})
    card = {
        "name": "lungs",
        "version": __version__,
        "classes": LUNG_CLASSES,
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": "HU clipped to -1024..600, scaled to -1..1, 4 mm, (to the head, back, left)",
        "trained_on": {
            "real_scans": names,
            "examples_of_real_scans": len(real),
            "simulated_patients": len(list((work / "simulated").glob("*.npz"))),
        },
        "steps": run.steps,
        "rate": run.rate,
        "seed": run.seed,
        "started_from_sha256": None if start is None else file_sha256(start),
        "measured_only": {
            path.stem: measure(network, work, path.stem)
            for path in sorted((work / "outlines").glob("*.npz"))
            if path.stem not in names
        },
        "licence": "Apache-2.0",
        "weights_sha256": file_sha256(out / "weights.safetensors"),
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train and write the package's weights, or measure by leaving out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder made by lungs_examples.py")
    parser.add_argument("--steps", type=int, default=4000, help="of each of two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=Path("src/chestct/preprocess/lungs"))
    parser.add_argument("--leave-out", action="store_true")
    arguments = parser.parse_args()
    if arguments.leave_out:
        leave_out(arguments.work, arguments.steps)
        return
    run = Run(arguments.steps, arguments.rate, arguments.seed)
    network = train(arguments.work, run, arguments.work / "weights.safetensors", arguments.start)
    save_weights(network, arguments.out / "weights.safetensors", half=True)
    write_card(arguments.out, arguments.work, run, network, arguments.start)


if __name__ == "__main__":
    main()

"""Make the default classifier: chests, examples, training, estimate, thresholds, its folder.

    python scripts/train_default_classifier.py WORK_FOLDER [--rounds 24] [--steps 1000]

Network, recipe and training of the head are those of configs/default_classifier.yaml. Every chest
is used three times, with each pattern put into the same lungs on the same background, so that
nothing but the pattern tells the classes apart. A round adds a variant of each real chest of `REAL`
(CHESTCT_DATA or ../shared/data; none of them shows pneumonia; docs/lungs.md says where they come
from) and one or two simulated ones. Scans whose licence is not stated, and P001, whose pneumonia is
real, are never trained on: they are answered at the end.

Two things learn. U-Nets learn from voxels: where a chest with a pattern is denser than the same
chest without, there is disease of that kind. One is trained per fold of `FOLDS`, without the fold's
real chests and a third of the simulated ones; the mean of all marks in the classifier. The head
learns from the shares that the folds' networks mark in the chests that they did not see.

The estimate leaves each real chest out in turn: its fold's network marks, and a head that learned
without any of its variants answers, them and the scan as it is. From those answers and from
simulated chests that were not trained on come the temperature, the shift in favour of "normal", and
the thresholds for abstaining and for unlike scans.

What was made is kept in WORK_FOLDER: started again, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader, Dataset, Subset

from chestct import __version__
from chestct.arrays import Mask
from chestct.card import Abstention, Card, MeasuredResult
from chestct.classifier import load_classifier, save_classifier
from chestct.datasets.augment import vary_batch
from chestct.datasets.store import decode, encode
from chestct.engines import make_engine
from chestct.evaluation.calibration import fit_temperature
from chestct.evaluation.intervals import WILSON, estimate_figures, wilson
from chestct.evaluation.predictions import Predictions
from chestct.familiarity import Familiarity, fit_familiarity, threshold_of
from chestct.labels import CAP, COVID19, NORMAL, THREE_CLASSES
from chestct.networks.blocks import cpu_multiplies_in_bf16
from chestct.networks.lesions import LesionNet
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import Recipe
from chestct.readers import read_volume
from chestct.simulate import ThoraxSettings, simulate_patient
from chestct.simulate.fields import smooth_noise
from chestct.simulate.lesions import add_disease
from chestct.storage import write_whole
from chestct.training.loop import Outputs, evaluate
from chestct.training.plan import Parts, find_parts
from chestct.training.run import learning_rate
from chestct.training.settings import read_settings
from chestct.volume import Grid, Volume, to_canonical

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "default_classifier.yaml"
REAL = {
    "A0001_B": "real_scans/A0001_B_ct.nii.gz",
    "C3N-00247": "real_scans/C3N-00247_ct.nii.gz",
    "LIDC-IDRI-1011": "real_scans/LIDC-IDRI-1011_ct.nii.gz",
    "TCGA-DE-A4MA_wholebody": "real_scans/TCGA-DE-A4MA_wholebody_ct.nii.gz",
    "aorta_ct_cropped": "real_scans/aorta_ct_cropped_ct.nii.gz",
    "normal001": "covid_ct_md/normal001",
    "chest64": "lung_masks/chest64_ct.nii.gz",
}
"""Real chests without pneumonia that may be trained on."""
NEVER_TRAINED = {
    "P001": ("covid_ct_md/P001", COVID19),
    "DCM1": ("real_scans/DCM1_ct.nii.gz", COVID19),
    "id001": ("real_scans/id001_ct.nii.gz", NORMAL),
}
FOLDS = (
    ("A0001_B", "aorta_ct_cropped"),
    ("normal001", "LIDC-IDRI-1011", "chest64"),
    ("C3N-00247", "TCGA-DE-A4MA_wholebody"),
)
"""Real chests that a network is trained without; simulated ones go by their number."""
ONLY_JUDGED = "A0001_B"
"""A lung cancer. Learned from as healthy, its mass hides pneumonia that fills a lobe."""
SEEDS = {"real": 77, "simulated": 11, "lesions": 0}
SPACINGS_MM = (2.5, 3.0, 4.0, 6.0)
COARSE_MM = 2.4
LEFT_OUT_ROUNDS = 6
NUM_COPIES = 2
FOUND_SHARE = 0.5
"""Of training chests, those learned from in an outline that was found."""
REAL_SHARE = 0.75
"""Of the chests that the U-Net learns from in a step."""
PNEUMONIAS = (CAP, COVID19)
SOFT_TISSUE, LEAST_FILLED = 0.925, 0.08
"""Input of lung without any air, and share of a voxel's air that disease replaces at least."""
LESION_RATE = 3e-3
LEVEL = 0.95
COVID_PER_CAP = 169 / 60
"""Prior odds of the two pneumonias: patients of COVID-CT-MD (Afshar et al. 2021)."""
MOST_FALSE_ALARMS = 1 / 6
SHIFTS = np.arange(0.0, 3.01, 0.25)
# First simulated chest of a part, and one of how many rounds has one; a round counts eight.
PLACES = {"training": ((0, 1), (1, 2)), "calibration": ((11, 2),), "test": ((5, 2),)}


@cache
def recipe() -> Recipe:
    """How the classifier's scans are prepared."""
    return find_parts(read_settings(CONFIG)).recipe


def find_scan(name: str) -> Path | None:
    """A real scan, where it is at hand."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    scan = Path(os.environ.get("CHESTCT_DATA", beside)) / name
    return scan if scan.exists() else None


def perturbed(volume: Volume, lungs: Mask, rng: np.random.Generator) -> Mask:
    """The lungs as a segmentation may give them: at times without some of what is dense."""
    if rng.random() < 0.5:
        return lungs
    size = [max(round(6 / mm), 1) for mm in volume.grid.spacing_mm]
    soft = ndimage.uniform_filter(volume.voxels.astype(np.float32), size=size)
    noise = smooth_noise(rng, lungs.shape, volume.grid.spacing_mm, 30.0)
    kept = lungs & ~((soft > -250) & (noise > rng.uniform(-0.3, 1.5)))
    return kept if kept.sum() > 0.6 * lungs.sum() else lungs


def write_example(path: Path, prepared: PreparedScan) -> None:
    """Keep a prepared scan as the cache of a training does, its class in its name."""
    write_whole(path, encode(prepared, "uint8"))


Example = tuple[torch.Tensor, torch.Tensor, int]


class ExampleFolder(Dataset[Example]):
    """All examples of a folder, in the order of their file names, read when asked for."""

    def __init__(self, folder: Path, pattern: str = "*.safetensors") -> None:
        self.paths = sorted(folder.glob(pattern))
        if not self.paths:
            raise SystemExit(f"{folder.name} holds no prepared examples ({pattern}).")
        self.labels = [THREE_CLASSES.index(path.stem.rsplit("_", 1)[1]) for path in self.paths]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Input (channel, depth, height, width), lungs (1, depth, height, width), label."""
        found = decode(self.paths[index].read_bytes())
        lungs = torch.from_numpy(found.lungs[None].astype(np.float32))
        return torch.from_numpy(found.input), lungs, self.labels[index]


def write_chest(name: str, chest: Volume, lungs: Mask, seed: Sequence[int], folder: Path) -> None:
    """Three examples of one chest: each pattern in the same lungs, on the same background.

    Learned from is one outline for all patterns: what disease is, and not what it does to a mask.
    It is the known one, or, in `FOUND_SHARE` of the chests, the one found in one of the ill scans,
    with the healthy tissue that it takes in. What is judged has the lungs that are found after the
    disease was put in, as when a scan is classified.
    """
    if is_written(name, folder):
        return
    ill = {
        label: add_disease(chest, lungs, label, np.random.default_rng(seed), varied=True)
        for label in THREE_CLASSES
    }
    known = None
    if folder.name == "training":
        rng = np.random.default_rng(crc32(name.encode()))
        seen = ill[str(rng.choice([CAP, COVID19]))].volume
        if rng.random() < FOUND_SHARE:
            known = prepare(seen, recipe()).scan_lungs
        else:
            known = chest.with_voxels(perturbed(seen, lungs & ~ill[NORMAL].effusion, rng))
    for label, each in ill.items():
        path = folder / f"{name}_{label}.safetensors"
        write_example(path, prepare(each.volume, recipe(), lungs=known))


def is_written(name: str, folder: Path) -> bool:
    """Whether all three examples of a chest are there."""
    return all((folder / f"{name}_{label}.safetensors").is_file() for label in THREE_CLASSES)


def write_simulated_chest(index: int, folder: Path) -> None:
    """A simulated chest with every pattern."""
    name = f"sim_{index:04d}"
    if is_written(name, folder):
        return
    seed = SEEDS["simulated"]
    settings = ThoraxSettings(rows=144, slice_spacing_mm=SPACINGS_MM[index % len(SPACINGS_MM)])
    patient = simulate_patient(np.random.default_rng([seed, index]), settings, pattern=NORMAL)
    write_chest(name, patient.volume, patient.lungs, [seed, index, 1], folder)


@cache
def coarse_chest(name: str) -> tuple[Volume, Mask]:
    """A real chest about its lungs, averaged to some 2.4 mm where it is finer."""
    scan = find_scan(REAL[name])
    if scan is None:
        raise SystemExit(f"{REAL[name]} is not at hand: set CHESTCT_DATA.")
    volume = to_canonical(read_volume(scan))
    lungs = prepare(volume, recipe()).scan_lungs.voxels
    spacing = volume.grid.spacing_mm
    part = []
    for axis, margin_mm in enumerate((40.0, 40.0, 40.0)):
        others = tuple(a for a in range(3) if a != axis)
        used, more = np.flatnonzero(lungs.any(axis=others)), max(int(margin_mm / spacing[axis]), 1)
        part.append(slice(max(int(used[0]) - more, 0), int(used[-1]) + more + 1))
    voxels, lungs = volume.voxels[tuple(part)], lungs[tuple(part)]
    every = max(int(COARSE_MM // spacing[0]), 1)
    num = len(voxels) // every * every
    rows, columns = (
        round(voxels.shape[axis] * spacing[axis] / max(COARSE_MM, spacing[axis])) for axis in (1, 2)
    )

    def averaged(values: np.ndarray) -> np.ndarray:
        thick = values[:num].reshape(-1, every, *values.shape[1:]).mean(axis=1, dtype=np.float32)
        size = (columns, rows)
        return np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in thick])

    step = (spacing[0] * every, spacing[1] * voxels.shape[1] / rows)
    grid = Grid((num // every, rows, columns), (*step, spacing[2] * voxels.shape[2] / columns))
    whole = np.rint(averaged(voxels)).astype(np.int16)
    return Volume(grid, whole), averaged(lungs.astype(np.float32)) >= 0.5


def write_real_chest(item: tuple[str, int], folder: Path) -> None:
    """A variant of a real chest with every pattern; every other one is mirrored."""
    name, number = item
    if is_written(f"real_{name}_{number:02d}", folder):
        return
    chest, lungs = coarse_chest(name)
    if number % 2:
        chest = chest.with_voxels(np.ascontiguousarray(chest.voxels[:, :, ::-1]))
        lungs = np.ascontiguousarray(lungs[:, :, ::-1])
    seed = [SEEDS["real"], list(REAL).index(name), number]
    write_chest(f"real_{name}_{number:02d}", chest, lungs, seed, folder)


def run_all(make: Callable[..., None], items: Sequence[object], processes: int) -> None:
    """Call `make` for each item, in several processes."""
    # Forking a process that has used torch's threads can hang; a fresh interpreter cannot.
    with get_context("spawn").Pool(
        processes, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done, _ in enumerate(pool.imap_unordered(make, items), start=1):
            if done % 25 == 0 or done == len(items):
                print(f"  {done} of {len(items)}", flush=True)


def make_examples(work: Path, rounds: int, processes: int) -> None:
    """Make every example that is not there yet."""
    for part, places in PLACES.items():
        folder = work / part
        folder.mkdir(parents=True, exist_ok=True)
        indices = [
            first + 8 * number for first, every in places for number in range(0, rounds, every)
        ]
        print(f"{part}: {len(indices)} simulated chests, three patterns each", flush=True)
        run_all(partial(write_simulated_chest, folder=folder), indices, processes)
    items = [(name, number) for name in REAL for number in range(rounds)]
    print(f"training: {len(items)} variants of real chests, three patterns each", flush=True)
    run_all(partial(write_real_chest, folder=work / "training"), items, processes)


def chest_of(path: Path) -> str:
    """The chest that an example shows: "sim_0010", "real_A0001_B_07"."""
    return path.stem.rsplit("_", 1)[0]


def fold_of(chest: str) -> int:
    """The fold whose network is trained without a chest."""
    if chest.startswith("sim_"):
        return int(chest[4:]) % len(FOLDS)
    name = chest.removeprefix("real_").rsplit("_", 1)[0]
    return next(number for number, names in enumerate(FOLDS) if name in names)


def is_taught(chest: str) -> bool:
    """Whether a chest is learned from."""
    return not chest.startswith(f"real_{ONLY_JUDGED}_")


class Triples:
    """Chests with each pattern, for training the U-Net: what differs is the disease.

    Args:
        folder: Of training examples.
        fold: Whose chests are left out.
        rng: Where the randomness comes from.
    """

    def __init__(self, folder: Path, fold: int, rng: np.random.Generator) -> None:
        chests = sorted({chest_of(path) for path in folder.glob("*.safetensors")})
        used = [chest for chest in chests if fold_of(chest) != fold and is_taught(chest)]
        self._pools = [
            [self._load(folder, chest) for chest in used if chest.startswith(kind)]
            for kind in ("real_", "sim_")
        ]
        self._rng = rng

    @staticmethod
    def _load(folder: Path, chest: str) -> torch.Tensor:
        """Lungs, then the chest with each pattern in the order of `THREE_CLASSES`, as bytes."""
        found = [
            decode((folder / f"{chest}_{label}.safetensors").read_bytes())
            for label in THREE_CLASSES
        ]
        volumes = [found[0].lungs, *(each.input[0] for each in found)]
        return torch.stack([torch.from_numpy(np.rint(255.0 * each)) for each in volumes]).byte()

    def draw(self, label: str) -> torch.Tensor:
        """A chest with a pattern, at times milder or in a part of the lungs only.

        Returns:
            Input, lungs and class of each voxel (0 for none), (3, depth, height, width).
        """
        rng = self._rng
        pool = self._pools[int(rng.random() >= REAL_SHARE)]
        lungs, *values = pool[rng.integers(len(pool))].float() / 255
        normal, ill = (values[THREE_CLASSES.index(each)] for each in (NORMAL, label))
        added = ill - normal
        if rng.random() < 0.5:
            added = added * rng.uniform(0.35, 1.0)
        if rng.random() < 0.5:
            added = added * self._part(normal.shape)
        filled = added / (SOFT_TISSUE - normal).clamp(min=0.1) * (lungs > 0.5)
        kind = 1 + PNEUMONIAS.index(label) if label != NORMAL else 0
        drawn = torch.stack([normal + added, lungs, kind * (filled > LEAST_FILLED).float()])
        return drawn.flip(3) if rng.random() < 0.5 else drawn

    def _part(self, shape: torch.Size) -> torch.Tensor:
        """1 on one side of a plane through the box, 0 on the other."""
        places = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
        slope = self._rng.normal(size=3)
        slope /= np.linalg.norm(slope)
        beyond = sum(float(s) * p for s, p in zip(slope, places, strict=True))
        return torch.sigmoid((beyond - self._rng.uniform(-0.6, 0.6)) / 0.05)


def moved(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A batch turned by up to 11 degrees about each axis, scaled, shifted; classes stay whole."""
    size = np.array(batch.shape[:1:-1], dtype=np.float64)
    maps = []
    for _ in range(len(batch)):
        turn = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix()
        linear = np.diag(1 / size) @ turn @ np.diag(size) * rng.uniform(0.85, 1.15)
        maps.append(np.column_stack([linear, rng.uniform(-0.06, 0.06, 3)]))
    grid = F.affine_grid(
        torch.from_numpy(np.stack(maps)).float(), list(batch.shape), align_corners=False
    )
    result = F.grid_sample(batch, grid, align_corners=False)
    lungs = (result[:, 1:2] > 0.5).float()
    kinds = F.grid_sample(batch[:, 2:], grid, mode="nearest", align_corners=False)
    return torch.cat([result[:, :1] * lungs, lungs, kinds], dim=1)


def rescanned(values: torch.Tensor, lungs: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Inputs as other scanners give them: contrast, brightness, noise and blur vary."""
    scans = []
    for scan in values:
        varied = scan * float(rng.uniform(0.88, 1.12)) + float(rng.uniform(-0.05, 0.05))
        if rng.random() < 0.3:
            noise = torch.from_numpy(rng.normal(size=scan.shape).astype(np.float32))
            varied = varied + float(rng.uniform(0, 0.05)) * noise
        if rng.random() < 0.3:
            blur = F.avg_pool3d(varied[None], 3, stride=1, padding=1)[0]
            varied = torch.lerp(varied, blur, float(rng.uniform(0, 1)))
        scans.append(varied)
    return torch.stack(scans).clamp(0, 1) * lungs


def lesion_loss(logits: torch.Tensor, kinds: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of voxels in the lungs, and soft Dice of disease of any kind."""
    weights = torch.tensor([0.5] + [1.0] * len(PNEUMONIAS))
    entropy = F.cross_entropy(logits, kinds, reduction="none", weight=weights) * lungs
    marked = (1 - logits.softmax(1)[:, 0]) * lungs
    ill = (kinds > 0) * lungs
    # The 200 voxels (43 ml) keep a healthy scan's term from turning on single voxels.
    shared, total = ((each.flatten(1).sum(1)) for each in (marked * ill, marked + ill))
    return entropy.sum() / lungs.sum() + 0.5 * (1 - (2 * shared + 200) / (total + 200)).mean()


def train_lesions(fold: int, work: Path, steps: int) -> None:
    """Train the U-Net without a fold's chests, and keep its weights."""
    path = marker_file(work, fold)
    if path.is_file():
        return
    parts = find_parts(read_settings(CONFIG))
    rng = np.random.default_rng([fold, SEEDS["lesions"]])
    triples = Triples(work / "training", fold, rng)
    network = lesion_network(parts, [None]).to(memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.AdamW(network.lesions.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LESION_RATE, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        batch = moved(torch.stack([triples.draw(label) for label in 2 * THREE_CLASSES]), rng)
        lungs, kinds = batch[:, 1:2], batch[:, 2].long()
        values = rescanned(batch[:, :1], lungs, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_in_bf16()):
            logits = network.lesion_logits(
                values.contiguous(memory_format=torch.channels_last_3d), lungs
            )
        loss = lesion_loss(logits.float(), kinds, lungs[:, 0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"  lesions {fold}: step {step}, loss {loss.item():.3f}", flush=True)
    (marker,) = network.lesions.markers
    save_file({name: value.contiguous() for name, value in marker.state_dict().items()}, path)


def marker_file(work: Path, fold: int) -> Path:
    """Where the weights of a fold's U-Net are kept."""
    return work / f"lesions_{fold}.safetensors"


def lesion_network(parts: Parts, markers: Sequence[Path | None], seed: int = 0) -> LesionNet:
    """The network of the configuration, with as many U-Nets as there are weights for, or drawn."""
    members = replace(parts, network_settings={**parts.network_settings, "members": len(markers)})
    network = members.build_network(seed)
    if not isinstance(network, LesionNet):
        raise SystemExit(f"{CONFIG.name} names another network than lung_lesions.")
    for marker, path in zip(network.lesions.markers, markers, strict=True):
        if path is not None:
            marker.load_state_dict(load_file(path))
    return network


def pooled(network: LesionNet, parts: Parts, examples: Dataset[Example], seed: int) -> torch.Tensor:
    """Pooled features of examples as they are, then of varied copies: (copy, example, feature)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    with torch.inference_mode():
        for copy in range(NUM_COPIES + 1):
            batches = []
            for batch, lungs, _ in DataLoader(examples, batch_size=8):
                if copy and parts.augmentation is not None:
                    batch, lungs = vary_batch(batch, lungs, parts.augmentation, generator)
                batches.append(network.eval().pooled_features(batch, lungs))
            found.append(torch.cat(batches))
    return torch.stack(found).clone()


@dataclass(frozen=True, eq=False)
class Taught:
    """What the head learns from.

    Attributes:
        features: Of each example as it is, then of varied copies: (copy, example, feature).
        labels: Class of each example.
        chests: Chest of each example.
    """

    features: torch.Tensor
    labels: torch.Tensor
    chests: tuple[str, ...]

    def only(self, is_wanted: Callable[[str], bool]) -> Taught:
        """The examples of some chests."""
        kept = [number for number, chest in enumerate(self.chests) if is_wanted(chest)]
        chests = tuple(self.chests[number] for number in kept)
        return Taught(self.features[:, kept], self.labels[kept], chests)


def taught(parts: Parts, work: Path) -> Taught:
    """Training examples, each as the network marks it that was trained without its chest."""
    examples = ExampleFolder(work / "training")
    chests = tuple(chest_of(path) for path in examples.paths)
    features = learned_features(parts, work, examples)
    return Taught(features, torch.tensor(examples.labels), chests).only(is_taught)


def learned_features(parts: Parts, work: Path, examples: ExampleFolder) -> torch.Tensor:
    """Pooled features of all training examples, from WORK_FOLDER where they were kept."""
    path = work / "features.safetensors"
    if path.is_file():
        return load_file(path)["features"]
    folds = np.array([fold_of(chest_of(each)) for each in examples.paths])
    features = torch.zeros(0)
    for fold in range(len(FOLDS)):
        rows = np.flatnonzero(folds == fold)
        network = lesion_network(parts, [marker_file(work, fold)])
        found = pooled(network, parts, Subset(examples, rows.tolist()), seed=fold)
        if not len(features):
            features = torch.zeros(len(found), len(folds), found.shape[2])
        features[:, torch.from_numpy(rows)] = found
        print(f"  features of fold {fold}", flush=True)
    save_file({"features": features}, path)
    return features


def fit(parts: Parts, learned: Taught, markers: Sequence[Path]) -> LesionNet:
    """Train a head on pooled features, a copy of each example drawn anew in every step.

    Returns:
        The network of that head and the U-Nets' weights.
    """
    settings, labels = read_settings(CONFIG).training, learned.labels
    network = lesion_network(parts, markers, settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    head = [getattr(network, name) for name in network.HEAD]
    learning = [weight for module in head for weight in module.parameters()]
    optimizer = torch.optim.AdamW(
        learning, settings.learning_rate, weight_decay=settings.weight_decay
    )
    per_epoch = -(-len(labels) // settings.batch_size)
    for step in range(settings.epochs * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step / per_epoch, [])
        chosen_ones = torch.randint(len(labels), (settings.batch_size,), generator=generator)
        copies = torch.randint(len(learned.features), (settings.batch_size,), generator=generator)
        logits = network.train().logits_of(learned.features[copies, chosen_ones])
        loss = F.cross_entropy(
            logits, labels[chosen_ones], label_smoothing=settings.label_smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def offsets(shift: float) -> torch.Tensor:
    """What is added to the logits: the prior odds of the pneumonias, and a shift to "normal"."""
    added = torch.zeros(len(THREE_CLASSES), dtype=torch.float64)
    added[THREE_CLASSES.index(COVID19)] = float(np.log(COVID_PER_CAP))
    added[THREE_CLASSES.index(NORMAL)] = shift
    return added


@dataclass(frozen=True, eq=False)
class Judged:
    """What a network said of examples it had not seen.

    Attributes:
        names: Of the examples.
        outputs: Logits, labels and features.
        distances: From its training examples, one being the median of the calibration chests.
    """

    names: tuple[str, ...]
    outputs: Outputs
    distances: np.ndarray

    def predictions(self, shift: float = 0.0, temperature: float = 1.0) -> Predictions:
        """As probabilities, after adding `offsets(shift)` to the logits."""
        logits = self.outputs.logits.double() + offsets(shift)
        return Predictions(
            scans=self.names,
            patients=tuple(name.rsplit("_", 1)[0] for name in self.names),
            truth=self.outputs.labels.numpy(),
            probabilities=(logits / temperature).softmax(1).numpy(),
            labels=THREE_CLASSES,
        )


def known_to(network: torch.nn.Module, learned: Taught, work: Path) -> tuple[Familiarity, float]:
    """What is familiar after learning from features, and calibration chests' median distance."""
    watched = evaluate(network, ExampleFolder(work / "calibration"), batch_size=8)
    known = fit_familiarity(
        learned.features[0].numpy(), learned.labels.numpy(), watched.features.numpy()
    )
    if known is None:
        raise SystemExit("Too few examples to tell what is familiar.")
    return known, float(np.median(known.watched))


def judged(
    network: torch.nn.Module, examples: ExampleFolder, known: tuple[Familiarity, float]
) -> Judged:
    """What a network says of examples."""
    outputs = evaluate(network, examples, batch_size=8)
    distances = known[0].distances(outputs.features.numpy()) / known[1]
    return Judged(tuple(path.stem for path in examples.paths), outputs, distances)


def joined(parts: Iterable[Judged]) -> Judged:
    """Several sets as one."""
    found = list(parts)
    outputs = Outputs(
        torch.cat([part.outputs.logits for part in found]),
        torch.cat([part.outputs.labels for part in found]),
        torch.cat([part.outputs.features for part in found]),
    )
    names = tuple(name for part in found for name in part.names)
    return Judged(names, outputs, np.concatenate([part.distances for part in found]))


def write_scan_as_it_is(name: str, folder: Path) -> None:
    """An example of a real scan with nothing put into it, prepared as `classify` does."""
    path = folder / f"whole_{name}_{NORMAL}.safetensors"
    scan = find_scan(REAL[name])
    if not path.is_file() and scan is not None:
        prepared = prepare(read_volume(scan), recipe())
        write_example(path, prepared)


def leave_out(name: str, parts: Parts, work: Path) -> Judged:
    """Train without a real chest, and judge it with and without disease."""
    learned = taught(parts, work).only(lambda chest: not chest.startswith(f"real_{name}_"))
    network = fit(parts, learned, [marker_file(work, fold_of(f"real_{name}_00"))])
    folder = work / "left_out" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_scan_as_it_is(name, folder)
    for number in range(LEFT_OUT_ROUNDS):
        write_real_chest((name, number), folder)
    known = known_to(network, learned, work)
    return judged(network, ExampleFolder(folder), known)


def shift_to_normal(left_out: Judged) -> float:
    """The least that must be added to "normal" so that few left-out normals are called ill."""
    normal = THREE_CLASSES.index(NORMAL)
    is_normal = left_out.outputs.labels.numpy() == normal
    for shift in SHIFTS:
        called = left_out.predictions(float(shift)).decisions[is_normal] != normal
        if called.mean() <= MOST_FALSE_ALARMS:
            break
    return float(shift)


def abstention_above_errors(watched: Predictions) -> Abstention:
    """The confidence that no wrong answer reaches, and the error rate that this allows for.

    So few examples promise no error rate of 5 % at any threshold. The bound is that of no errors
    among those above, without a correction for having looked for the place, and as if they were
    independent, which variants of one chest are not.
    """
    wrong = watched.confidences[~watched.is_right]
    threshold = min(float(wrong.max(initial=0.0)) + 0.005, 1.0)
    num_above = int((watched.confidences >= threshold).sum())
    bound = 1 - (1 - LEVEL) ** (1 / max(num_above, 1))
    return Abstention(
        abstain_below=round(threshold, 4),
        wished_error=round(bound + 0.005, 2),
        level=LEVEL,
        coverage=max(num_above, 1) / len(watched),
        risk=0.0,
        risk_bound=round(bound, 4),
        num_scans=len(watched),
    )


def measured(predictions: Predictions, scans: str) -> tuple[MeasuredResult, ...]:
    """Accuracy, calibration and sensitivities as the card shows them."""
    figures = estimate_figures(predictions)
    names = ("accuracy", "macro_auc", "expected_calibration_error")
    found = {name: figures.overall[name] for name in names}
    for label in THREE_CLASSES:
        found[f"sensitivity for {label}"] = figures.per_class[label]["sensitivity"]
    return tuple(
        MeasuredResult(
            measure=name.replace("_", " "),
            value=round(estimate.value, 4),
            low=round(estimate.low, 4),
            high=round(estimate.high, 4),
            num_scans=estimate.total or len(predictions),
            scans=scans,
        )
        for name, estimate in found.items()
    )


def write_table(left_out: Judged, found: Predictions, threshold: float, path: Path) -> None:
    """The answers on left-out chests, a row each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scan", "truth", "decision", "probability", "is_certain", "distance"])
        for number, name in enumerate(left_out.names):
            label = THREE_CLASSES[found.decisions[number]]
            share = float(found.confidences[number])
            truth = THREE_CLASSES[found.truth[number]]
            distance = f"{left_out.distances[number]:.3f}"
            writer.writerow([name, truth, label, f"{share:.3f}", share >= threshold, distance])


def whole_scans(left_out: Judged, found: Predictions, threshold: float) -> list[MeasuredResult]:
    """What the scans as they are were answered by networks that never saw them."""
    rows = [n for n, name in enumerate(left_out.names) if name.startswith("whole_")]
    wrong = [n for n in rows if not found.is_right[n]]
    certain = [n for n in wrong if found.confidences[n] >= threshold]
    about = "real scans without pneumonia, each left out of the training of what answered it"
    results = []
    for measure, hits in (("called ill", wrong), ("called ill and certain", certain)):
        low, high = wilson(len(hits), len(rows))
        # The threshold was set above every wrong answer, these among them.
        why = "; zero by construction" if hits is certain else ""
        results.append(
            MeasuredResult(
                measure=measure,
                value=round(len(hits) / len(rows), 4),
                low=round(low, 4),
                high=round(high, 4),
                num_scans=len(rows),
                scans=f"{about} ({WILSON}{why})",
            )
        )
    return results


def never_trained(folder: Path) -> list[MeasuredResult]:
    """Probabilities for the real scans that are only ever measured."""
    classifier = load_classifier(folder)
    engine = make_engine(classifier, "torch")
    results = []
    for name, (where, label) in NEVER_TRAINED.items():
        scan = find_scan(where)
        if scan is None:
            continue
        prepared = prepare(read_volume(scan), classifier.recipe)
        shares = classifier.probabilities(prepared, engine)
        results.append(
            MeasuredResult(
                measure=f"probability of {label}",
                value=round(shares[label], 4),
                num_scans=1,
                scans=f"{name}, a real scan of {label}, never trained on",
            )
        )
    return results


def main() -> None:
    """Do everything, or go on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder for prepared examples and the runs")
    parser.add_argument("--rounds", type=int, default=24, help="variants of each real chest")
    parser.add_argument("--steps", type=int, default=1000, help="of each U-Net's training")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("src/chestct/default_classifier"))
    arguments = parser.parse_args()
    work, parts = arguments.work, find_parts(read_settings(CONFIG))
    make_examples(work, arguments.rounds, arguments.processes)
    print(f"lesions: {len(FOLDS)} folds' networks", flush=True)
    run_all(
        partial(train_lesions, work=work, steps=arguments.steps),
        range(len(FOLDS)),
        arguments.processes,
    )
    left_out = joined(leave_out(name, parts, work) for name in REAL)
    markers = [marker_file(work, fold) for fold in range(len(FOLDS))]
    network = fit(parts, taught(parts, work), markers)
    write_classifier(network, parts, left_out, work, arguments.out)


def write_classifier(
    network: LesionNet, parts: Parts, left_out: Judged, work: Path, out: Path
) -> None:
    """Choose shift, temperature and thresholds, test, and write the classifier's folder."""
    learned = taught(parts, work)
    known = known_to(network, learned, work)
    watched = joined([judged(network, ExampleFolder(work / "calibration"), known), left_out])
    shift = shift_to_normal(left_out)
    temperature = round(fit_temperature(watched.predictions(shift)).temperature, 4)
    abstention = abstention_above_errors(watched.predictions(shift, temperature))
    distances = np.sort(watched.distances) * known[1]
    familiarity = replace(known[0], watched=distances, threshold=threshold_of(distances))
    tested = judged(network, ExampleFolder(work / "test"), known).predictions(shift, temperature)
    with torch.no_grad():
        network.fc2.bias += offsets(shift).float()
    found = left_out.predictions(shift, temperature)
    threshold = abstention.abstain_below
    write_table(left_out, found, threshold, work / "left_out.csv")
    card = Card(
        name="default",
        version=__version__,
        network=parts.network,
        network_settings=parts.network_settings,
        recipe=asdict(parts.recipe),
        labels=parts.labels,
        trained_on=(
            f"SIMULATED DISEASE. {len(learned.chests)} examples: simulated disease put into "
            f"{len(REAL) - 1} real chests without pneumonia and into simulated chests, each chest "
            "with CAP, with COVID-19 and with neither. No real pneumonia was seen in training. "
            f"When in doubt it says normal: {shift:g} was added to that logit; and COVID-19 counts "
            f"as {COVID_PER_CAP:.1f} times as frequent as CAP. For trying the software only."
        ),
        results=(
            *measured(tested, "simulated chests that were not trained on, three patterns in each"),
            *measured(found, "real chests with simulated disease or none, each left out in turn"),
            *whole_scans(left_out, found, threshold),
        ),
        versions={"chestct": __version__, "torch": torch.__version__, "numpy": np.__version__},
        licence="Apache-2.0",
        temperature=temperature,
        abstention=abstention,
        explanation="gradcam++:lesions",
    )
    save_classifier(out, network, card, familiarity)
    card = load_classifier(out).card
    card = card.model_copy(update={"results": (*card.results, *never_trained(out))})
    save_classifier(out, network, card, familiarity)
    print(card.model_dump_json(indent=1))


if __name__ == "__main__":
    main()

"""Examples for the lungs network, on its 4 mm grid: real scans, simulated patients, composites.

    python scripts/lungs_examples.py outlines WORK     masks of the real scans by 'recommended'
    python scripts/lungs_examples.py examples WORK     labels from those masks, and simulations

The shipped network learned from outlines that the rule-based method made which it replaced: the
first command was run with `PYTHONPATH` at the sources of commit 037e2af, which know nothing of the
other commands' simulations: those are imported where they are used. The labels follow from the
outline by written rules and the corrections in `CORRECTIONS`, each looked at in three planes.
Scans marked "measure only" (id001, DCM1) are never among the examples.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from lungs_augment import find_body
from scipy import ndimage

from chestct import read_volume
from chestct.volume import Grid, Volume, to_canonical

MM = 4.0
VOXEL_ML = MM**3 / 1000
RIGHT, LEFT, GAS = 1, 2, 3
SEED = 77
NUM_SIMULATED = 120
NUM_SIMPLE = 32
GAS_BELOW_HU = -400
ADDED_HU = (-300, 140)
"""What a correction may add: neither air nor bone."""

REAL = {
    "LIDC-IDRI-1011": "real_scans/LIDC-IDRI-1011_ct.nii.gz",
    "C3N-00247": "real_scans/C3N-00247_ct.nii.gz",
    "TCGA-DE-A4MA_wholebody": "real_scans/TCGA-DE-A4MA_wholebody_ct.nii.gz",
    "A0001_B": "real_scans/A0001_B_ct.nii.gz",
    "aorta_ct_cropped": "real_scans/aorta_ct_cropped_ct.nii.gz",
    "example_ct": "real_scans/example_ct_ct.nii.gz",
    "ACRIN_lower": "real_scans/ACRIN-FLT-Breast_001_lower_ct.nii.gz",
    "P001": "covid_ct_md/P001",
    "normal001": "covid_ct_md/normal001",
    "chest64": "lung_masks/chest64_ct.nii.gz",
    "lung4d": "lung_masks/lung4d_ct.nii.gz",
    "head": "dicom_gantry_tilt",
}
"""Scans that may be trained on, by place below the data folder."""

CHESTS = tuple(name for name in REAL if name not in ("example_ct", "ACRIN_lower", "head"))
"""Those with enough of the lungs in view to put disease into them."""

INSERTED = (
    "posterior consolidation",
    "posterior consolidation",
    "airless lobe",
    "airless lung",
    "effusion",
    "mass",
    "CAP",
    "COVID-19",
)

MEASURED = {"id001": "real_scans/id001_ct.nii.gz", "DCM1": "real_scans/DCM1_ct.nii.gz"}

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Correction:
    """What is mended by hand in the labels of one scan, in voxels of the 4 mm grid.

    Attributes:
        not_lung: Boxes whose outline is no lung: colon under the dome.
        nothing: Boxes that hold no gas of the body: the gap between back and table.
        left_mass: Centres and radii of ellipsoids of left lung that the outline left out.
        middle: Column between right and left, where the outline is too small to tell.
    """

    not_lung: tuple[Box, ...] = ()
    nothing: tuple[Box, ...] = ()
    left_mass: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    middle: int | None = None


CORRECTIONS = {
    "A0001_B": Correction(left_mass=(((57.5, 75.5, 68), (6.5, 6, 8.5)),)),
    "example_ct": Correction(
        not_lung=(
            ((0, 70), (0, 80), (0, 92)),
            ((70, 84), (0, 42), (50, 79)),
            ((70, 80), (0, 42), (79, 92)),
        ),
        nothing=(((0, 84), (66, 76), (36, 56)),),
        middle=46,
    ),
    "ACRIN_lower": Correction(
        not_lung=(
            ((0, 93), (0, 70), (60, 125)),
            ((93, 97), (54, 70), (75, 90)),
            ((97, 98), (58, 70), (70, 87)),
        ),
        middle=62,
    ),
}


def data_folder() -> Path:
    """The real scans: CHESTCT_DATA or ../shared/data."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("CHESTCT_DATA", beside))


def read_scan(path: Path) -> Volume:
    """A canonical scan; the head's gantry was tilted, which harms nothing here."""
    return to_canonical(read_volume(path, allow={"tilt"}))


def true_mask(path: Path, kind: str) -> np.ndarray | None:
    """A mask drawn by others on the canonical axes of its scan, or None where there is none."""
    beside = path.with_name(path.name.replace("_ct.nii.gz", f"_{kind}.nii.gz"))
    if beside == path or not beside.is_file():
        return None
    to_right_front_head = np.asarray(nibabel.as_closest_canonical(nibabel.load(beside)).dataobj)
    return to_right_front_head[::-1, ::-1].transpose(2, 1, 0) > 0


def _axis_weights(size: int, spacing: float) -> np.ndarray:
    """Shares of old voxels in voxels of 4 mm: their mean where finer, linear where coarser."""
    new, step = max(1, round(size * spacing / MM)), MM / spacing
    places = (size - 1) / 2 + step * (np.arange(new) - (new - 1) / 2)
    old = np.arange(size)
    if step >= 1:
        low, high = places[:, None] - step / 2, places[:, None] + step / 2
        shares = np.clip(np.minimum(high, old + 0.5) - np.maximum(low, old - 0.5), 0, None)
    else:
        shares = np.clip(1 - np.abs(old - np.clip(places, 0, size - 1)[:, None]), 0, None)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def to_grid(values: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Values or a mask on the 4 mm grid, float32."""
    values = np.asarray(values, dtype=np.float32)
    for axis, spacing in enumerate(spacing_mm):
        weights = _axis_weights(values.shape[axis], spacing)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values


def label_real(name: str, values: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Labels of one real scan from its outline.

    Args:
        name: Key of `REAL`.
        values: HU on the 4 mm grid.
        outline: Both lungs there.
    """
    mended = CORRECTIONS.get(name, Correction())
    lungs = outline.copy()
    for box in mended.not_lung:
        lungs[tuple(slice(*ends) for ends in box)] = False
    pieces, _ = ndimage.label(lungs)
    lungs &= (np.bincount(pieces.ravel()) * VOXEL_ML >= 2)[pieces]
    labels = split_sides(lungs, mended.middle)
    for centre, radii in mended.left_mass:
        grid = np.ogrid[tuple(slice(0, n) for n in values.shape)]
        away = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True))
        low, high = ADDED_HU
        labels[(away <= 1) & (values > low) & (values < high) & (labels == 0)] = LEFT
    labels[find_gas(values, labels > 0)] = GAS
    for box in mended.nothing:
        labels[tuple(slice(*ends) for ends in box)] = 0
    return labels


def split_sides(lungs: np.ndarray, middle: int | None = None) -> np.ndarray:
    """Right and left lung as labels: the nearer of the two large cores, or a given column."""
    labels = np.zeros(lungs.shape, dtype=np.uint8)
    if middle is not None:
        labels[lungs] = np.where(
            np.broadcast_to(np.arange(lungs.shape[2]) < middle, lungs.shape), RIGHT, LEFT
        )[lungs]
        return labels
    for erosions in range(4):
        core = ndimage.binary_erosion(lungs, iterations=erosions) if erosions else lungs
        pieces, count = ndimage.label(core)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        pair = np.argsort(-sizes)[:2]
        if count > 1 and sizes[pair[1]] > 0.15 * sizes.sum():
            break
    else:
        labels[lungs] = RIGHT
        return labels
    right, left = sorted(pair, key=lambda piece: float(np.nonzero(pieces == piece)[2].mean()))
    to_right = ndimage.distance_transform_edt(pieces != right)
    to_left = ndimage.distance_transform_edt(pieces != left)
    labels[lungs] = np.where(to_right < to_left, RIGHT, LEFT)[lungs]
    return labels


def find_gas(values: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Gas inside the body that is no lung: pieces with body around that do not only line a lung."""
    gas = (values < GAS_BELOW_HU) & ~lungs
    pieces, _ = ndimage.label(gas)
    sizes = np.bincount(pieces.ravel())
    beside = np.bincount(pieces.ravel(), weights=ndimage.binary_dilation(lungs).ravel())
    outside = np.bincount(pieces.ravel(), weights=(~_enclosed(values)).ravel())
    is_kept = (sizes >= 2) & (beside <= 0.65 * sizes) & (outside <= 0.05 * sizes)
    is_kept[0] = False
    return is_kept[pieces]


def _enclosed(values: np.ndarray) -> np.ndarray:
    """Voxels with body on at least three of the four sides in their slice."""
    pieces, _ = ndimage.label(ndimage.binary_opening(values > -300))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    body = pieces == int(sizes.argmax())
    sides = np.zeros(values.shape, dtype=np.uint8)
    for axis in (1, 2):
        sides += np.logical_or.accumulate(body, axis=axis)
        sides += np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
    return sides >= 3


def write_outlines(work: Path) -> None:
    """Masks by `recommended` on the 4 mm grid, with the values."""
    from chestct.preprocess.lungs import segment_lungs

    (work / "outlines").mkdir(parents=True, exist_ok=True)
    for name, place in (REAL | MEASURED).items():
        path = data_folder() / place
        volume = read_scan(path)
        spacing = volume.grid.spacing_mm
        drawn = true_mask(path, "lungs")
        found = segment_lungs(volume, "recommended")
        np.savez_compressed(
            work / "outlines" / f"{name}.npz",
            values=np.rint(to_grid(np.clip(volume.voxels, -1024, 3000), spacing)).astype(np.int16),
            found=to_grid(found, spacing) >= 0.5,
            drawn=to_grid(found if drawn is None else drawn, spacing) >= 0.5,
        )
        print(f"{name}: {np.count_nonzero(found) * volume.grid.voxel_ml / 1000:.2f} l", flush=True)


def write_real(work: Path) -> None:
    """Labels of the real scans, and heads set on halved chests."""
    folder = work / "real"
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in REAL:
        with np.load(work / "outlines" / f"{name}.npz", allow_pickle=False) as stored:
            values, outline = stored["values"], stored["drawn"]
        outline = outline & (name != "head")
        made[name] = values, label_real(name, values, outline)
    for name in ("P001", "LIDC-IDRI-1011", "C3N-00247", "normal001"):
        made[f"{name}+head"] = _with_head(made[name], made["head"])
    for name, (values, labels) in made.items():
        _write(folder / f"{name}.npz", values, labels)


def write_diseased(work: Path) -> None:
    """Disease in the real lungs, on the 4 mm grid."""
    from chestct.simulate.lesions import add_disease

    folder = work / "real"
    for number, name in enumerate(CHESTS):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            values, labels = stored["values"], stored["labels"]
        scan = Volume(Grid(values.shape, (MM, MM, MM)), values)
        lungs = np.isin(labels, (RIGHT, LEFT))
        for index, pattern in enumerate(INSERTED):
            rng = np.random.default_rng([SEED, number, index])
            ill = add_disease(scan, lungs, pattern, rng, varied=True)
            changed = np.where(ill.effusion, 0, labels).astype(np.uint8)
            _write(folder / f"{name}+{pattern} {index}.npz", ill.volume.voxels, changed)
        print(f"diseased {name}", flush=True)


def _write(path: Path, values: np.ndarray, labels: np.ndarray) -> None:
    """An example in one go, for a training may be reading the folder."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            values=np.rint(values).astype(np.int16),
            labels=labels,
            body=find_body(values, labels),
        )
    unfinished.replace(path)


def _with_head(
    chest: tuple[np.ndarray, np.ndarray], head: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The upper part of a chest under a head."""
    inside = np.flatnonzero(np.isin(chest[1], (RIGHT, LEFT)).any(axis=(1, 2)))
    first = int(inside[0] + 0.55 * (inside[-1] - inside[0]))
    parts = []
    for upper, lower, empty in ((head[0], chest[0], -1024), (head[1], chest[1], 0)):
        lower = lower[first : inside[-1] + 4]
        wide = np.full((len(upper), *lower.shape[1:]), empty, dtype=lower.dtype)
        height, width = (min(a, b) for a, b in zip(wide.shape[1:], upper.shape[1:], strict=True))
        row, column = ((a - b) // 2 for a, b in zip(wide.shape[1:], (height, width), strict=True))
        wide[:, row : row + height, column : column + width] = upper[:, :height, :width]
        parts.append(np.concatenate([lower, wide]))
    return parts[0], parts[1]


def label_grid(labels: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Labels on the 4 mm grid: lung where half of a voxel is, of the side that has more of it."""
    right, left, gas = (to_grid(labels == label, spacing_mm) for label in (RIGHT, LEFT, GAS))
    side = np.where(right >= left, RIGHT, LEFT)
    return np.where(right + left >= 0.5, side, np.where(gas >= 0.5, GAS, 0)).astype(np.uint8)


def write_simulated(work: Path, num: int) -> None:
    """Simulated patients who confuse: any part of the body, any filling, any disease."""
    from confusing_patients import simulate_confusing_patient

    folder = work / "simulated"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        path = folder / f"{index:03d}.npz"
        if path.is_file():
            continue
        patient = simulate_confusing_patient(np.random.default_rng([SEED, index]))
        spacing = patient.volume.grid.spacing_mm
        values = to_grid(np.clip(patient.volume.voxels, -1024, 3000), spacing)
        labels = label_grid(patient.labels, spacing)
        _write(path, values, labels)
        print(f"simulated {index}: {values.shape} {patient.settings.view}", flush=True)


def write_simple(work: Path, num: int) -> None:
    """Chests of ellipsoids, and arrays of noise: whatever looks like no patient is handled too."""
    for index in range(num):
        rng = np.random.default_rng([SEED, 9, index])
        values, labels = _draw_noise(rng) if index % 8 == 7 else _draw_simple(rng)
        _write(work / "simulated" / f"simple{index:03d}.npz", values, labels)


def _draw_noise(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise between two values, of some grain."""
    shape = tuple(int(n) for n in rng.integers(8, 100, 3))
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), float(rng.uniform(0, 2)))
    low, high = sorted(rng.uniform(-1024, 1500, 2))
    values = low + (high - low) * (noise - noise.min()) / (np.ptp(noise) + 1e-6)
    return values, np.zeros(shape, dtype=np.uint8)


def _draw_simple(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A chest with two lungs, heart, spine, domes, airways, gas and a table, all plain shapes."""
    high, deep, wide = rng.uniform(240, 380), rng.uniform(95, 130), rng.uniform(140, 185)
    shape = (int(high / MM), int(rng.uniform(210, 300) / MM), int(rng.uniform(300, 420) / MM))
    z, y, x = np.meshgrid(*[(np.arange(n) + 0.5) * MM for n in shape], indexing="ij")
    y, x = y - shape[1] * MM / 2, x - shape[2] * MM / 2
    labels = np.zeros(shape, dtype=np.uint8)
    values = np.full(shape, rng.choice([-1024.0, -1000.0]))
    values[(y > deep + 8) & (y < deep + rng.uniform(12, 40)) & (np.abs(x) < 210)] = -930
    body = (x / wide) ** 2 + (y / deep) ** 2 < 1
    inner = (x / (wide - 15)) ** 2 + (y / (deep - 13)) ** 2 < 1
    values[body], values[inner] = -100, rng.uniform(30, 60)
    cavity = (x / (0.8 * wide)) ** 2 + (y / (0.78 * deep)) ** 2
    base, apex = rng.uniform(-20, 80), high - rng.uniform(-20, 60)
    domes = [base + rng.uniform(40, 100) for _ in range(2)]
    floor = base + (np.where(x < 0, *domes) - base) * np.clip(
        1 - ((np.abs(x) - 0.42 * wide) / (0.45 * wide)) ** 2 - ((y + 15) / (0.7 * deep)) ** 2, 0, 1
    )
    narrowing = np.clip(1.001 - np.clip((z - apex + 80) / 80, 0, 1) ** 2, 0, 1)
    spine = x**2 + (y - 0.68 * deep) ** 2 < rng.uniform(15, 23) ** 2
    heart = ((x - 20) / 62) ** 2 + ((y + 25) / 50) ** 2 + ((z - base - 90) / 60) ** 2 < 1
    apart = (np.abs(x) > rng.uniform(12, 25)) & ~spine & ~heart
    lungs = (cavity < 0.94 * narrowing) & apart & (z > floor) & (z < apex)
    ribs = body & (cavity > 1.0) & (cavity < 1.12) & ((z - 0.3 * y) % 26 < 11)
    values[ribs & (rng.random() < 0.7)], values[spine] = 600, 500
    values[lungs] = rng.uniform(-900, -780)
    labels[lungs] = np.where(x < 0, RIGHT, LEFT)[lungs]
    along = np.clip((apex - 90 - z) / 25, 0, 1)
    trachea = (x**2 + (y - 10) ** 2 < 9**2) & (z > apex - 90)
    bronchi = ((np.abs(x) - 30 * along) ** 2 + (y - 10) ** 2 < 7**2) & (np.abs(z - apex + 100) < 12)
    gas = body & (trachea | bronchi)
    for _ in range(int(rng.integers(0, 4))):
        centre = rng.uniform(-20, base + 30), rng.uniform(-0.7, 0) * deep, rng.uniform(-60, 90)
        radii = rng.uniform(12, 42, 3)
        parts = ((p - c) / r for p, c, r in zip((z, y, x), centre, radii, strict=True))
        gas |= inner & ~lungs & (z < floor - 6) & (sum(part**2 for part in parts) < 1)
    values[gas], labels[gas] = -985, GAS
    values = ndimage.gaussian_filter(values, 0.4) + rng.normal(0, rng.uniform(0, 25), shape)
    return values, labels


if __name__ == "__main__":
    step, where = sys.argv[1], Path(sys.argv[2])
    if step == "outlines":
        write_outlines(where)
    else:
        write_real(where)
        write_diseased(where)
        write_simulated(where, NUM_SIMULATED)
        write_simple(where, NUM_SIMPLE)

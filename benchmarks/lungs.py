"""Time, memory and Dice of the three lung methods, beside the obvious way per slice.

Run as `python benchmarks/lungs.py`; real scans come from CHESTCT_DATA or ../shared/data.
`python benchmarks/lungs.py --lesions 60` needs none: how much of the lesions of so many simulated
patients lies inside the `recommended` mask.
`python benchmarks/lungs.py --long` measures only what a scan of 1,200 slices of 512 x 512 takes
above its own voxels: the network's memory and the mask.
`python benchmarks/lungs.py --doubt SCAN...` prints how much of each scan's outline is in doubt, in
parts of what is along a plain one, and how much of noise's.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from measuring import memory_bytes, real_scan, run, seconds_of
from scipy.ndimage import binary_fill_holes

from chestct import read_volume
from chestct.labels import CAP, COVID19
from chestct.preprocess.lungs import LUNG_METHODS, find_lungs, segment_lungs
from chestct.simulate import ThoraxSettings, simulate_patient
from chestct.volume import Grid, Volume, to_canonical

ROUNDS = 5
LONG_SLICES = 1200


def obvious_way(volume: Volume) -> np.ndarray:
    """The published steps as one would write them with scikit-image."""
    from skimage.exposure import rescale_intensity
    from skimage.segmentation import clear_border

    voxels = volume.voxels.astype(np.float64)
    scaled = (voxels - voxels.min()) / (voxels.max() - voxels.min())
    slices = []
    for plane in scaled:
        low, high = np.percentile(plane, (1, 99))
        stretched = rescale_intensity(plane, in_range=(low, high), out_range=(0, 1))
        slices.append(binary_fill_holes(clear_border(stretched <= 0.50196)))
    return np.stack(slices)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks, 1 when they are equal."""
    return float(2 * np.sum(one & other) / (one.sum() + other.sum()))


def golden_mask(folder: Path, name: str) -> np.ndarray:
    """The mask that the paper's own script gave in GNU Octave."""
    with np.load(folder / f"{name}_published_lung_mask.npz", allow_pickle=False) as stored:
        width = int(stored["shape"][2])
        return np.unpackbits(stored["mask"], axis=-1)[..., :width].astype(np.bool_)


def drawn_mask(path: Path) -> np.ndarray:
    """A mask drawn by others, depth to the head, height to the back, width to the left."""
    to_right_front_head = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    return to_right_front_head[::-1, ::-1].transpose(2, 1, 0) > 0


def lesion_shares(num: int) -> None:
    """Share of each simulated patient's lesions that lies inside the mask."""
    shares, overlaps = [], []
    for index in range(num):
        pattern = (CAP, COVID19)[index % 2]
        rng = np.random.default_rng([2026, index])
        patient = simulate_patient(rng, ThoraxSettings(rows=160), pattern=pattern)
        mask = segment_lungs(to_canonical(patient.volume), "recommended")
        share = float((mask & patient.lesions).sum() / patient.lesions.sum())
        shares.append(share)
        overlaps.append(dice(mask, patient.lungs))
        print(f"{index:3d} {pattern:8} inside {share:.3f}  Dice {overlaps[-1]:.4f}", flush=True)
    below = sum(share < 0.9 for share in shares)
    print(
        f"lesions inside: lowest {min(shares):.3f}, mean {np.mean(shares):.3f}, {below} of {num} "
        f"below 0.9; Dice: lowest {min(overlaps):.4f}, mean {np.mean(overlaps):.4f}"
    )


def long_scan() -> None:
    """Print memory and time of finding lungs in 1,200 slices, a real scan repeated."""
    short = to_canonical(read_volume(real_scan()))
    repeats = -(-LONG_SLICES // short.grid.shape[0])
    voxels = np.concatenate([short.voxels] * repeats)[:LONG_SLICES]
    grid = Grid(voxels.shape, (1.0, *short.grid.spacing_mm[1:]))
    volume = Volume(grid, voxels)
    segment_lungs(short, "recommended")
    before, start = memory_bytes(), time.perf_counter()
    mask = segment_lungs(volume, "recommended")
    grown = (memory_bytes() - before) / 2**20
    print(
        f"{grid.shape}: volume {voxels.nbytes / 2**20:.0f} MB, peak +{grown:.0f} MB "
        f"above it, {time.perf_counter() - start:.1f} s, {mask.mean():.1%} lung"
    )


def doubtful_shares(scans: list[Path]) -> None:
    """Print the share of the outline in doubt of scans, and of noise."""
    for scan in scans:
        network = find_lungs(to_canonical(read_volume(scan)), "recommended").network
        print(f"{scan.name:40} {network.doubtful_share:5.2f}", flush=True)
    for seed in range(3):
        voxels = np.random.default_rng(seed).integers(-1000, 400, (28, 24, 24)).astype(np.int16)
        noise = Volume(Grid(voxels.shape, (15.0, 13.5, 13.5)), voxels)
        print(f"noise {seed} {find_lungs(noise, 'recommended').network.doubtful_share:5.2f}")


def by_method() -> None:
    """Print one row per scan and method."""
    folder = real_scan("covid_ct_md").parent
    for name in ("P001", "normal001"):
        volume = to_canonical(read_volume(folder / "covid_ct_md" / name))
        golden = golden_mask(folder / "golden", name)
        print(f"{name} {volume.grid.shape}: volume {volume.voxels.nbytes / 2**20:.0f} MB")
        times = {}
        for method in LUNG_METHODS:
            before = memory_bytes()
            mask = segment_lungs(volume, method)
            grown = (memory_bytes() - before) / 2**20
            times[method] = seconds_of(partial(segment_lungs, volume, method), ROUNDS)
            print(
                f"  {method:12} {times[method]:6.3f} s  peak +{grown:4.0f} MB  "
                f"{mask.sum() * volume.grid.voxel_ml / 1000:.2f} l  "
                f"Dice with the published masks {dice(mask, golden):.6f}"
            )
        plain = seconds_of(partial(obvious_way, volume))
        print(f"  scikit-image {plain:6.3f} s  Dice {dice(obvious_way(volume), golden):.6f}")
        for method, seconds in times.items():
            print(f"  {method} / scikit-image = {seconds / plain:.3f}")
    for name in ("lung_masks/chest64", "lung_masks/lung4d", "real_scans/id001", "real_scans/DCM1"):
        volume = to_canonical(read_volume(folder / f"{name}_ct.nii.gz"))
        drawn = drawn_mask(folder / f"{name}_lungs.nii.gz")
        dense = folder / f"{name}_consolidation.nii.gz"
        ill = drawn & drawn_mask(dense) if dense.exists() else np.zeros_like(drawn)
        for method in LUNG_METHODS:
            seconds = seconds_of(partial(segment_lungs, volume, method), ROUNDS)
            mask = segment_lungs(volume, method)
            kept = f"  dense disease kept {(mask & ill).sum() / ill.sum():.3f}" if ill.any() else ""
            print(f"{name:18} {method:12} {seconds:6.3f} s  Dice {dice(mask, drawn):.4f}{kept}")


def main() -> None:
    """Print one row per scan and method, or per simulated patient, or for a long scan."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lesions", type=int, default=0, metavar="PATIENTS")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--doubt", type=Path, nargs="+", default=[], metavar="SCAN")
    chosen = parser.parse_args()
    if chosen.doubt:
        doubtful_shares(chosen.doubt)
        return
    if chosen.lesions:
        lesion_shares(chosen.lesions)
        return
    if chosen.long:
        long_scan()
        return
    by_method()


if __name__ == "__main__":
    run(main)

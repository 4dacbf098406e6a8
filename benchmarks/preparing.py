"""Time and memory of preparing a scan, beside the obvious way, in one process.

    python benchmarks/preparing.py [SCAN]

The obvious way is what one writes first: every slice thresholded and cleaned with scikit-image,
then `scipy.ndimage.zoom` to 224 x 224 x 224, of the masked scan with order 3, of the mask with 0.
The last rows are the lungs network with the drawing of the mask, in either engine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from measuring import memory_bytes, real_scan, run, seconds_of
from scipy import ndimage

from chestct.preprocess.lungs import find_lungs
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.volume import Volume, to_canonical

REPEATS = 5


def prepare_the_obvious_way(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Per-slice scikit-image segmentation, then zoom of scan (cubic) and mask (nearest)."""
    from skimage import filters, morphology, segmentation

    voxels = volume.voxels.astype(np.float32)
    scaled = (voxels - voxels.min()) / (voxels.max() - voxels.min())
    mask = np.zeros(scaled.shape, dtype=bool)
    for i, plane in enumerate(scaled):
        dark = plane < filters.threshold_otsu(plane)
        dark = segmentation.clear_border(dark)
        mask[i] = ndimage.binary_fill_holes(morphology.remove_small_objects(dark, max_size=64))
    factors = [224 / size for size in mask.shape]
    return ndimage.zoom(scaled * mask, factors, order=3), ndimage.zoom(mask, factors, order=0)


def lungs_seconds(volume: Volume, engine: str) -> float:
    """Median time of finding the lungs by the network, once it is loaded."""
    canonical = to_canonical(volume)
    find_lungs(canonical, "recommended", engine=engine)
    return seconds_of(lambda: find_lungs(canonical, "recommended", engine=engine), REPEATS)


def peak_bytes(scan: Path, name: str) -> int:
    """Peak memory of a fresh process that reads the scan and prepares it."""
    command = [sys.executable, __file__, str(scan), "--only", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(arguments: list[str]) -> None:
    """Print the figures, or, for `--only NAME`, one process's peak memory."""
    scan = Path(arguments[0]) if arguments else real_scan()
    volume = read_volume(scan)
    if "--only" in arguments:
        prepare(volume, RECIPES[arguments[-1]])
        print(memory_bytes())
        return
    obvious_s = seconds_of(lambda: prepare_the_obvious_way(volume))
    print(f"{scan.name}: {' x '.join(map(str, volume.grid.shape))} voxels")
    print(f"{'':24}{'seconds':>9}{'ratio':>8}{'peak MiB':>10}")
    print(f"{'the obvious way':24}{obvious_s:9.2f}{1:8.3f}")
    find_lungs(to_canonical(volume), "recommended")  # loaded once, as in a batch
    for name, recipe in RECIPES.items():
        ours_s = seconds_of(lambda recipe=recipe: prepare(volume, recipe), REPEATS)
        peak = peak_bytes(scan, name) / 2**20
        print(f"{name:24}{ours_s:9.2f}{ours_s / obvious_s:8.3f}{peak:10.0f}")
    for engine in ("openvino", "torch"):
        lungs_s = lungs_seconds(volume, engine)
        print(f"{f'lungs alone, {engine}':24}{lungs_s:9.2f}{lungs_s / obvious_s:8.3f}")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

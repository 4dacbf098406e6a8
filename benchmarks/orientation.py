"""Chests as stored and in their seven flipped copies: refused, warned of, or taken as they are.

usage: python benchmarks/orientation.py SCAN [SCAN ...]

Each scan's voxels stay and its header is wrong: depth, height and width are reversed in all
combinations. Prints what is said of each copy, then how many are refused, warned of, and missed.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import real_scan, run

from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.volume import Volume, to_canonical

RECIPE = replace(
    RECIPES["roi_resnet_recommended"], input_shape=(16, 16, 16), spacing_mm=(24.0, 24.0, 24.0)
)
"""Small: only what is said of the scan matters here."""
DOUBTS = ("check that left and right", "check that front and back")


def copies(volume: Volume) -> dict[str, Volume]:
    """The scan under a header with some axes the wrong way round, by the names of these axes."""
    grid = volume.grid
    found = {}
    for signs in itertools.product((1, -1), repeat=3):
        name = "+".join(
            axis for axis, sign in zip(("depth", "height", "width"), signs, strict=True) if sign < 0
        )
        direction = tuple(
            tuple(sign * x for x in axis) for sign, axis in zip(signs, grid.direction, strict=True)
        )
        found[name or "as stored"] = replace(volume, grid=replace(grid, direction=direction))
    return found


def said_of(volume: Volume) -> tuple[str, str]:
    """Whether a scan is refused, warned of or taken, and in which words."""
    prepared = prepare(volume, RECIPE)
    if prepared.unsuitable_reasons:
        return "refused", " ".join(prepared.unsuitable_reasons)
    doubts = [each for each in prepared.warnings if any(words in each for words in DOUBTS)]
    return ("warned", " ".join(doubts)) if doubts else ("taken", "")


def main() -> None:
    """Print a line a copy and the sums."""
    sums: Counter[tuple[str, str]] = Counter()
    for path in map(Path, sys.argv[1:] or [real_scan()]):
        volume = to_canonical(read_volume(path))
        volume = volume.with_voxels(np.ascontiguousarray(volume.voxels))
        for name, copy in copies(volume).items():
            outcome, words = said_of(copy)
            sums["as stored" if name == "as stored" else "flipped", outcome] += 1
            print(f"{path.name}\t{name}\t{outcome}\t{words[:100]}", flush=True)
    for (kind, outcome), count in sorted(sums.items()):
        print(f"{kind}: {count} {outcome}")


if __name__ == "__main__":
    run(main)

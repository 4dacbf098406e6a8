"""Slices drawn for tests, dark lungs with bright patches in the ill ones, and settings to match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"COVID-19": True, "normal": False}


def draw_slice(seed: int, *, is_ill: bool, shape: tuple[int, int] = (72, 80)) -> np.ndarray:
    """Grey values of 8 bits."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, x = rows / shape[0] - 0.5, columns / shape[1] - 0.5
    picture = np.where((x / 0.45) ** 2 + (y / 0.42) ** 2 < 1, 170.0, 0.0)
    for side in (-1, 1):
        picture[((x - 0.2 * side) / 0.14) ** 2 + (y / 0.28) ** 2 < 1] = 40
    if is_ill:
        centre = rng.uniform(-0.15, 0.15)
        picture[((x - 0.2) / 0.09) ** 2 + ((y - centre) / 0.12) ** 2 < 1] = 140
    return np.clip(picture + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


def draw_folder(
    folder: Path, *, patients: int = 5, slices: int = 3, shape: tuple[int, int] = (72, 80)
) -> Path:
    """A folder per class, in it one per patient, in it PNGs; names of slices say nothing."""
    for label, is_ill in CLASSES.items():
        for patient in range(patients):
            place = folder / label / f"{patient:02d}"
            place.mkdir(parents=True)
            for number in range(slices):
                seed = 1000 * is_ill + 10 * patient + number
                picture = draw_slice(seed, is_ill=is_ill, shape=shape)
                Image.fromarray(picture).save(place / f"{number}.png")
    return folder


def mark(path: Path) -> None:
    """Draw a red bar on a picture."""
    picture = np.array(Image.open(path).convert("RGB"))
    picture[10:20, 10:40] = (255, 0, 0)
    Image.fromarray(picture).save(path)


SETTINGS = """
labels: [COVID-19, normal]
network:
  name: mobilenet_v2
  weights: none
  settings: {{head: {head}, size: 64, tuned_blocks: {tuned}, scaling: weights}}
pictures: {{interpolation: linear, keeps_shape: true}}
data: {{test_share: 0.2, validation_share: 0.2, cache: {cache}}}
augmentation: {{name: recommended}}
training:
  epochs: 2
  batch_size: 8
  learning_rate: 0.01
  schedule: constant
  warmup_epochs: 0
  seed: 2
"""


def write_config(folder: Path, *, head: str = "recommended", tuned: int = 0) -> Path:
    """Settings of a run of seconds, its cache in the folder."""
    path = folder / "slices.yaml"
    path.write_text(SETTINGS.format(head=head, tuned=tuned, cache=folder / "cache"))
    return path

"""A thorax of simple shapes in which everything is known: for tests of the lung segmentation.

Coordinates in mm: x to the left and y to the back from the middle of the chest, z upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chestct.volume import Grid, Volume

AIR, FAT, MUSCLE, BONE, LUNG, PLASTIC = -1000, -100, 50, 600, -850, -150


@dataclass(frozen=True, eq=False)
class Thorax:
    """A phantom and the parts of it that a test asks about, all on the volume's grid."""

    volume: Volume
    lungs: np.ndarray
    disease: np.ndarray
    airways: np.ndarray
    bowel: np.ndarray
    body: np.ndarray


def make_thorax(
    *,
    disease: str = "none",
    spacing_mm: tuple[float, float, float] = (4.0, 2.5, 2.5),
    field_mm: tuple[float, float] = (260.0, 380.0),
    offset_mm: tuple[float, float] = (0.0, 0.0),
    seed: int = 3,
) -> Thorax:
    """Draw a thorax of 320 mm height.

    Args:
        disease: "none", "bilateral" (dense lung at the back of both sides, aerated lung above
            and below), "lobar" (the left lower lobe down to the diaphragm) or "nodules".
        spacing_mm: Voxel size.
        field_mm: Extent of the image along y and x; small ones cut the body.
        offset_mm: Where the image's middle lies, y and x.
        seed: Of the noise.
    """
    shape = tuple(round(n / s) for n, s in zip((320.0, *field_mm), spacing_mm, strict=True))
    z = ((np.arange(shape[0]) + 0.5) * spacing_mm[0])[:, None, None]
    y = ((np.arange(shape[1]) + 0.5) * spacing_mm[1] - field_mm[0] / 2 + offset_mm[0])[
        None, :, None
    ]
    x = ((np.arange(shape[2]) + 0.5) * spacing_mm[2] - field_mm[1] / 2 + offset_mm[1])[
        None, None, :
    ]
    everywhere = np.ones(shape, dtype=bool)

    body = everywhere & ((x / 170) ** 2 + (y / 115) ** 2 < 1)
    narrowing = np.clip((z - 240) / 80, 0, 1) ** 2
    cavity = ((x / 135) ** 2 + (y / 88) ** 2) / (1.001 - narrowing)
    spine = everywhere & (x**2 + (y - 78) ** 2 < 22**2)
    heart = ((x - 15) / 60) ** 2 + ((y + 25) / 50) ** 2 + ((z - 150) / 60) ** 2 < 1
    mediastinum = (np.abs(x) < 22) | spine | heart
    floor = 40 + 90 * np.clip(1 - ((np.abs(x) - 70) / 75) ** 2 - ((y + 15) / 75) ** 2, 0, 1)
    lungs = (cavity < 0.94) & ~mediastinum & (z > floor) & (z < 305)
    airways = _airways(x, y, z) & body
    lungs &= ~airways
    ribs = (cavity > 1.0) & (cavity < 1.1) & ((z - 0.3 * y) % 26 < 11) & (z < 300)
    bowel = body & (((x + 20) / 40) ** 2 + ((y + 55) / 18) ** 2 + ((z - 20) / 18) ** 2 < 1)

    hu = np.full(shape, AIR, dtype=np.float32)
    table = (y > 122) & (y < 150) & (np.abs(x) < 210) & everywhere
    hu[table] = -930
    hu[table & ((y < 126) | (y > 146))] = PLASTIC
    hu[body] = FAT
    hu[everywhere & ((x / 155) ** 2 + (y / 102) ** 2 < 1)] = MUSCLE
    hu[(ribs & body) | spine] = BONE
    hu[lungs] = LUNG
    hu[lungs & (_vessel(x, y, z) < 4)] = MUSCLE
    hu[airways] = AIR
    hu[bowel] = AIR
    diseased = lungs & _DISEASES[disease](x, y, z)
    hu[diseased] = 35
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    voxels = np.clip(hu + noise, -1024, 3071).astype(np.int16)
    volume = Volume(Grid(shape, spacing_mm), voxels)
    return Thorax(volume, lungs, diseased, airways, bowel, body)


_DISEASES = {
    "none": lambda x, y, z: (x > 1e9) & (y > 1e9) & (z > 1e9),
    "bilateral": lambda x, y, z: (y > 25) & (z > 110) & (z < 190) & (np.abs(x) < 1e9),
    "lobar": lambda x, y, z: (x > 0) & (y > 0.5 * (z - 150)) & (z < 190),
    "nodules": lambda x, y, z: (
        ((np.abs(x) - 90) ** 2 + y**2 + (z - 200) ** 2 < 12**2)
        | ((np.abs(x) - 127) ** 2 + (y - 15) ** 2 + (z - 170) ** 2 < 14**2)
    ),
}


def _airways(x, y, z):
    """Trachea from the top to 205 mm, main bronchi from there down and out to 30 mm aside."""
    trachea = (x**2 + (y - 10) ** 2 < 9**2) & (z > 205)
    along = np.clip((215 - z) / 25, 0, 1)
    bronchi = ((np.abs(x) - 30 * along) ** 2 + (y - 10) ** 2 < 7**2) & (z <= 215) & (z > 190)
    return trachea | bronchi


def _vessel(x, y, z):
    """Distance from a vessel that leaves each hilum to the side."""
    return np.hypot(y - 5 - 0.2 * (np.abs(x) - 22), z - 195 + 0.3 * (np.abs(x) - 22))

"""Put a body onto the scan's grid: every tissue painted in turn, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int16

from chestct.arrays import Mask
from chestct.simulate.body import Layers, Model
from chestct.simulate.fields import Field, Grain, Plane
from chestct.simulate.pose import Pose
from chestct.simulate.scanner import Scanner, blur_plane, clothing_lines, scan_noise, table_plane
from chestct.simulate.tubes import fill_tubes
from chestct.volume import AIR_HU, Grid

Lung = Bool[np.ndarray, "rows columns"]


def compose(
    model: Model, grid: Grid, pose: Pose, scanner: Scanner, rng: np.random.Generator
) -> tuple[Int16[np.ndarray, "depth height width"], Mask]:
    """Scan a body.

    Args:
        model: The body.
        grid: The scan's grid, canonical.
        pose: Where the body lies.
        scanner: How the scan is made.
        rng: For textures and noise.

    Returns:
        Voxels in HU, and the lungs without trachea and main bronchi.
    """
    vessels, walls, hollows = (
        fill_tubes(pose.place(part, grid), grid.shape, grid.spacing_mm) for part in model.trees
    )
    texture = Grain(rng, grid, 1.6)
    voxels = np.empty(grid.shape, dtype=np.float32)
    lungs = np.empty(grid.shape, dtype=bool)
    solid = np.empty(grid.shape[0], dtype=np.float32)
    painter = _Painter(model, grid, pose, scanner, int(rng.integers(2**31)))
    for level in range(grid.shape[0]):
        plane, lungs[level], body = painter.paint(level, texture.next_slice())
        for share, value in ((vessels, model.tissues.blood), (walls, 10.0), (hollows, -985.0)):
            plane += share[level] * (value - plane)
        voxels[level] = blur_plane(plane, scanner.kernel, grid.spacing_mm[1])
        solid[level] = body
    return painter.finish(voxels, solid, rng), lungs


def sample_field(model: Model, stack: Field, grid: Grid, pose: Pose, level: int) -> Plane:
    """A field on a model's frame at one slice of a scan, at the scan's resolution."""
    frame = model.frame
    z = grid.origin_mm[2] + level * grid.spacing_mm[0]
    place = np.clip((z - frame.low_mm[0]) / frame.step_mm, 0, frame.shape[0] - 1.001)
    low, share = int(place), np.float32(place - int(place))
    return cv2.warpAffine(
        stack[low] + share * (stack[low + 1] - stack[low]),
        pose.slice_map(grid, z, frame),
        (grid.shape[2], grid.shape[1]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


class _Painter:
    """Paints slices of one model; holds what all slices share."""

    def __init__(self, model: Model, grid: Grid, pose: Pose, scanner: Scanner, seed: int) -> None:
        self.model, self.grid, self.pose, self.scanner = model, grid, pose, scanner
        pixel = grid.spacing_mm[1]
        rows, columns = grid.shape[1:]
        self.x = (grid.origin_mm[0] + pixel * np.arange(columns, dtype=np.float32))[None]
        self.y = (grid.origin_mm[1] + pixel * np.arange(rows, dtype=np.float32))[:, None]
        self.table = table_plane(scanner, self.x, self.y)
        self.seed = seed
        self.softness = 1.0 / max(pixel, 0.8)

    def _layers(self, level: int) -> dict[str, Plane]:
        """All layers at the scan's resolution."""
        return {
            field.name: sample_field(
                self.model, getattr(self.model.layers, field.name), self.grid, self.pose, level
            )
            for field in fields(Layers)
        }

    def _inside(self, distance: Plane) -> Plane:
        """Share of a pixel inside a signed distance."""
        return np.asarray(np.clip(0.5 - distance * self.softness, 0, 1), dtype=np.float32)

    def paint(self, level: int, texture: Plane) -> tuple[Plane, Lung, float]:
        """One slice in HU without noise, its lung mask, and the body's share of the slice."""
        at = self._layers(level)
        plane = self._surroundings(level, at["body"])
        for distance, value in self._tissues(at, texture):
            plane += self._inside(distance) * (value - plane)
        mask = (at["lungs"] < 0) & (at["airways"] > 2.0)
        return plane, mask, float((at["body"] < 0).mean())

    def _surroundings(self, level: int, body: Plane) -> Plane:
        """Air, table and clothing."""
        plane = np.full(body.shape, -1000.0, dtype=np.float32)
        if self.table is not None:
            plane += self.table
        if self.scanner.has_clothing:
            folds = np.random.default_rng(self.seed + level // 4)
            plane += clothing_lines(folds, body, self.x, self.grid.spacing_mm[1])
        return plane

    def _tissues(
        self, at: dict[str, Plane], texture: Plane
    ) -> Iterator[tuple[Plane, Plane | float]]:
        """Signed distance and HU of each tissue, from the outermost to what covers all others."""
        tissue = self.model.tissues
        yield at["body"], 10.0
        yield at["body"] + 1.8, tissue.fat + 6.0 * texture
        yield at["muscle"], self._muscle(at, texture)
        yield at["cage"] + 2.0, tissue.fat + 9.0 * texture
        yield at["organs"], at["organ_hu"] + 4.0 * texture
        yield at["gas"], -980.0
        yield at["lungs"] - 0.9, 42.0
        yield at["cartilage"], 125.0 + 20.0 * texture
        marrow = tissue.marrow + 45.0 * texture
        yield at["bones"], marrow + (tissue.cortex - marrow) * np.clip(1 + at["bones"] / 2.2, 0, 1)
        yield at["canal"], 28.0
        yield at["lungs"], self._parenchyma(at, texture)
        yield at["airways"] - 1.6, 30.0
        yield at["airways"], -985.0

    def _muscle(self, at: dict[str, Plane], texture: Plane) -> Plane:
        """Muscle with layers of fat between, where it is thick."""
        tissue = self.model.tissues
        narrow = np.clip(0.05 + 0.05 * at["mottle"], 0, 0.16)
        layer = 16.0 * (np.abs(np.mod(at["strands"], 1.0) - 0.5) - narrow)
        thick = (at["cage"] > 13) & (at["muscle"] < -4)
        share = self._inside(layer) * thick * np.clip(0.7 + 0.5 * at["mottle"], 0, 1)
        value = tissue.muscle + 7.0 * texture + share * (tissue.fat - tissue.muscle)
        return np.asarray(value, dtype=np.float32)

    def _parenchyma(self, at: dict[str, Plane], texture: Plane) -> Plane:
        """Lung without visible vessels: denser behind, mottled, with its fissures."""
        tissue, anatomy = self.model.tissues, self.model.anatomy
        height = (self.y - self.pose.shift_mm[1]) / (2 * anatomy.half_depth)
        value = tissue.lung + tissue.lung_slope * height + 12.0 * at["mottle"]
        # Vessels too small to see make the distribution lean towards dense.
        value = value + 19.0 * texture + 9.0 * (texture * texture - 1)
        value = value + tissue.fissure * np.exp(-((at["fissure"] / 0.9) ** 2))
        return np.asarray(value, dtype=np.float32)

    def finish(
        self,
        voxels: Float32[np.ndarray, "depth height width"],
        solid: Float32[np.ndarray, " depth"],
        rng: np.random.Generator,
    ) -> Int16[np.ndarray, "depth height width"]:
        """Add noise, set what lies outside the field of view, round to whole HU."""
        shape, spacing = self.grid.shape, self.grid.spacing_mm
        broad = np.clip(solid / max(float(np.median(solid)), 1e-3) - 1.0, 0, 1)
        noise = scan_noise(rng, shape, spacing, self.scanner.kernel, 6.0 * broad)
        sigma = self.scanner.noise_hu * self.scanner.kernel.noise * np.sqrt(2.0 / spacing[0])
        outside = np.hypot(self.x, self.y) > 0.5 * spacing[1] * shape[1]
        for level in range(shape[0]):
            density = np.clip((voxels[level] + 1000) / 1000, 0, 1.1)
            wide = max(22.0 / spacing[1], 1.0)
            density = cv2.blur(density, (2 * int(wide) + 1,) * 2)
            gain = sigma * (0.38 + 0.62 * density) * (1 + 0.6 * broad[level])
            voxels[level] += gain * noise[level]
            if self.scanner.is_padded:
                voxels[level][outside] = AIR_HU
        np.clip(voxels, AIR_HU, 3071, out=voxels)
        return np.asarray(np.rint(voxels), dtype=np.int16)

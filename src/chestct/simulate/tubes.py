"""Fill thin branching tubes (vessels, bronchi) into a voxel grid, partial volume included.

Each tube is filled with points that carry its volume, and each point is shared among its eight
neighbouring voxels: thinner than a voxel or thicker, a tube keeps its volume, and no box is drawn
per segment, so ten thousand segments take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from chestct.arrays import Shape

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True, eq=False)
class Segments:
    """Straight pieces of tubes.

    Attributes:
        start: First points (depth, height, width) in mm.
        end: Last points in mm.
        radius: Radii in mm.
    """

    start: Float64[np.ndarray, "segments 3"]
    end: Float64[np.ndarray, "segments 3"]
    radius: Float64[np.ndarray, " segments"]

    def __len__(self) -> int:
        return len(self.radius)

    def only(self, which: Bool[np.ndarray, " segments"]) -> Segments:
        """The segments that a mask selects."""
        return Segments(self.start[which], self.end[which], self.radius[which])


def join_segments(parts: Sequence[Segments]) -> Segments:
    """All segments of several sets; an empty set where there are none."""
    if not parts:
        return Segments(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    return Segments(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.radius for part in parts]),
    )


def fill_tubes(
    segments: Segments, shape: Shape, spacing_mm: tuple[float, float, float]
) -> Float32[np.ndarray, "depth height width"]:
    """Share of each voxel that tubes fill, 0 to 1.

    Args:
        segments: Tubes in mm from the centre of voxel (0, 0, 0), (depth, height, width).
        shape: The grid.
        spacing_mm: The grid's spacing.
    """
    spacing = np.asarray(spacing_mm)
    filled = np.zeros(int(np.prod(shape)), dtype=np.float32)
    # Thick tubes take many points each: batches of like radius keep the arrays small.
    for low, high in ((0.0, 0.7), (0.7, 1.5), (1.5, 3.0), (3.0, 6.0), (6.0, np.inf)):
        part = segments.only((segments.radius > low) & (segments.radius <= high))
        if len(part):
            _fill(part, filled, shape, spacing)
    return np.minimum(filled, 1.0, out=filled).reshape(shape)


def _fill(
    segments: Segments,
    filled: Float32[np.ndarray, " voxels"],
    shape: Shape,
    spacing: Float64[np.ndarray, " 3"],
) -> None:
    """Add the volume of tubes of like radius, as a share of a voxel."""
    along = segments.end - segments.start
    length = np.linalg.norm(along, axis=1)
    fine = float(spacing[1:].min())
    repeats = np.maximum(np.ceil(length / (0.6 * fine)).astype(np.intp), 1)
    which = np.repeat(np.arange(len(segments)), repeats)
    step = np.arange(len(which)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    share = (step + 0.5) / repeats[which]
    centres = segments.start[which] + along[which] * share[:, None]
    radius = segments.radius[which]
    across = int(np.clip(np.ceil((2 * radius.max() / fine) ** 2 * 1.2), 1, 300))
    volume = np.pi * radius**2 * (length / repeats)[which] / across
    first, second = _normals(along / np.maximum(length, 1e-9)[:, None])
    turns = _GOLDEN_ANGLE * np.arange(across)
    reach = np.sqrt((np.arange(across) + 0.5) / across) if across > 1 else np.zeros(1)
    for turn, out in zip(turns, reach, strict=True):
        turned = turn + which * 1.7
        offset = first[which] * np.cos(turned)[:, None] + second[which] * np.sin(turned)[:, None]
        points = (centres + offset * (radius * out)[:, None]) / spacing
        _share_out(points, volume / spacing.prod(), filled, shape)


def _normals(
    directions: Float64[np.ndarray, "segments 3"],
) -> tuple[Float64[np.ndarray, "segments 3"], Float64[np.ndarray, "segments 3"]]:
    """Two unit vectors across each direction."""
    helper = np.where(np.abs(directions[:, :1]) < 0.8, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(directions, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
    return first, np.cross(directions, first)


def _share_out(
    points: Float64[np.ndarray, "points 3"],
    weights: Float64[np.ndarray, " points"],
    filled: Float32[np.ndarray, " voxels"],
    shape: Shape,
) -> None:
    """Share each point's weight among the eight voxels around it."""
    low = np.floor(points).astype(np.intp)
    inside = np.all((low >= 0) & (low < np.asarray(shape) - 1), axis=1)
    low, weights = low[inside], weights[inside]
    part = points[inside] - low
    base = (low[:, 0] * shape[1] + low[:, 1]) * shape[2] + low[:, 2]
    for corner in np.ndindex(2, 2, 2):
        share = weights.copy()
        for axis, side in enumerate(corner):
            share *= part[:, axis] if side else 1 - part[:, axis]
        np.add.at(filled, base + (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2], share)

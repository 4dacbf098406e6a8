"""Tubes, and the trees of vessels and bronchi that they make up in both lungs.

Tubes are filled into a voxel grid, partial volume included: each is filled with points that carry
its volume, and each point is shared among its eight neighbouring voxels. Thinner than a voxel or
thicker, a tube keeps its volume, and no box is drawn per segment, so ten thousand segments take a
fraction of a second.

Trees grow from the hilum outwards, thinning at each division: every end point is joined to the
place on the tree from which the way to it, and from there to the hilum, is shortest; calibres then
follow from the number of ends that a branch serves (Murray's law with an exponent near 2.7, as
measured in lungs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from chestct.arrays import Shape
from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import Field, Frame, Points

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True, eq=False)
class Segments:
    """Straight pieces of tubes: first and last points (depth, height, width), and radii, in mm."""

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

    The tubes are in mm from the centre of voxel (0, 0, 0), (depth, height, width).
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


_NODE_MM = 6.0

_Point = Float32[np.ndarray, " 3"]


@dataclass(frozen=True, eq=False)
class _Tree:
    """A branching tree; nodes lie at (x, y, z) in mm, node 0 is the root.

    Each node's parent is before it; the root's is 0. `flow` is how many ends a node serves.
    """

    nodes: Points
    parent: Int64[np.ndarray, " points"]
    flow: Int64[np.ndarray, " points"]

    def segments(self, end_radius: float, exponent: float) -> Segments:
        """The tree's branches in mm, (depth, height, width) = (z, y, x)."""
        points = self.nodes[:, ::-1]
        radius = end_radius * self.flow[1:] ** (1 / exponent)
        return Segments(points[self.parent[1:]], points[1:], radius)


def _draw_ends(frame: Frame, lung: Field, spacing_mm: float, rng: np.random.Generator) -> Points:
    """End points spread over a lung, one per cube of `spacing_mm`, in random order."""
    every = max(round(spacing_mm / frame.step_mm), 1)
    coarse = lung[::every, ::every, ::every]
    voxels = rng.permutation(np.argwhere(coarse < 0.0) * every)
    places = voxels + rng.uniform(-0.5, 0.5, voxels.shape) * every
    near = np.clip(np.rint(places).astype(np.intp), 0, np.asarray(frame.shape) - 1)
    places = places[lung[near[:, 0], near[:, 1], near[:, 2]] < -2.5]
    points = places * frame.step_mm + np.asarray(frame.low_mm)
    return np.ascontiguousarray(points[:, ::-1])


def grow_tree(root: Points, ends: Points, rng: np.random.Generator) -> _Tree:
    """Join end points to a tree, in their order; `rng` bends the branches a little.

    `root` are the first nodes, a path from the mediastinum to the hilum.
    """
    growth = _Growth(root, len(ends))
    bends = rng.normal(0, 0.10, (len(ends), 3)).astype(np.float32)
    for end, bend in zip(ends.astype(np.float32), bends, strict=True):
        growth.join(end, bend)
    return growth.tree()


class _Growth:
    """A tree while it grows: arrays with room for more nodes."""

    def __init__(self, root: Points, num_ends: int) -> None:
        room = len(root) + 12 * num_ends + 64
        self.nodes = np.empty((room, 3), dtype=np.float32)
        self.heading = np.zeros((room, 3), dtype=np.float32)
        self.way = np.zeros(room, dtype=np.float32)
        self.parent = np.zeros(room, dtype=np.int64)
        self.count = count = len(root)
        self.nodes[:count] = root
        self.parent[1:count] = np.arange(count - 1)
        self.way[1:count] = np.cumsum(np.linalg.norm(np.diff(root, axis=0), axis=1))
        along = root[-1] - root[0]
        self.heading[:count] = along / max(float(np.linalg.norm(along)), 1e-6)

    def join(self, end: _Point, bend: _Point) -> None:
        """Grow a branch to an end point from where that is shortest and bends least."""
        count = self.count
        apart = end - self.nodes[:count]
        far = np.sqrt(np.einsum("ij,ij->i", apart, apart)) + 1e-3
        forward = np.einsum("ij,ij->i", apart, self.heading[:count]) / far
        cost = far * (1.25 - 0.45 * forward) + 0.45 * self.way[:count]
        chosen = int(np.argmin(cost))
        length = float(far[chosen])
        pieces = max(int(np.ceil(length / _NODE_MM)), 1)
        if count + pieces > len(self.nodes):
            return
        start = self.nodes[chosen]
        towards = 0.6 * self.heading[chosen] + 0.4 * apart[chosen] / length
        middle = start + towards * (0.5 * length) + bend * length
        share = (np.arange(pieces + 1, dtype=np.float32) / pieces)[:, None]
        curve = (1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * end
        self._append(chosen, curve)

    def _append(self, chosen: int, curve: Float32[np.ndarray, "points 3"]) -> None:
        """Add a branch whose first point is the chosen node."""
        new = slice(self.count, self.count + len(curve) - 1)
        steps = np.diff(curve, axis=0)
        sizes = np.linalg.norm(steps, axis=1)
        self.nodes[new] = curve[1:]
        self.heading[new] = steps / np.maximum(sizes, 1e-6)[:, None]
        self.way[new] = self.way[chosen] + np.cumsum(sizes)
        self.parent[new] = np.arange(new.start - 1, new.stop - 1)
        self.parent[new.start] = chosen
        self.count = new.stop

    def tree(self) -> _Tree:
        """The tree as it stands."""
        return _with_flow(self.nodes[: self.count].astype(np.float64), self.parent[: self.count])


def _with_flow(
    nodes: Float64[np.ndarray, "points 3"], parent: Int64[np.ndarray, " points"]
) -> _Tree:
    """Count the ends behind each node; parents always precede their children."""
    has_child = np.zeros(len(parent), dtype=bool)
    has_child[parent[1:]] = True
    flow = [0 if has else 1 for has in has_child.tolist()]
    for node, above in zip(range(len(parent) - 1, 0, -1), parent[:0:-1].tolist(), strict=True):
        flow[above] += flow[node]
    return _Tree(nodes, parent, np.maximum(np.asarray(flow, dtype=np.int64), 1))


class Trees(NamedTuple):
    """Tubes in mm, (depth, height, width) = (z, y, x), both lungs together.

    `walls` are bronchi with their walls, `hollows` their air.
    """

    vessels: Segments
    walls: Segments
    hollows: Segments


def grow_trees(
    frame: Frame,
    anatomy: Anatomy,
    lungs: Field,
    rng: np.random.Generator,
    *,
    coarse: float = 1.0,
) -> Trees:
    """Grow arteries, veins and bronchi of both lungs, with ends `coarse` times farther apart."""
    vessels, bronchi = [], []
    spacing = coarse * rng.uniform(10.0, 12.0)
    # Fewer ends, each thicker, so that the trunks keep their calibre.
    calibre = coarse * rng.uniform(0.49, 0.67)
    for hilum, side in ((anatomy.right_hilum, -1.0), (anatomy.left_hilum, 1.0)):
        lung = np.where(frame.x * side > 0, lungs, np.float32(60.0))
        root = _root(hilum, side)
        airway_ends = _draw_ends(frame, lung, 25.0 * max(1.0, 0.8 * coarse), rng)
        airways = grow_tree(root, airway_ends, rng)
        bronchi.append(airways.segments(0.62, 2.6))
        # Arteries run beside bronchi: the same first ends, a few millimetres off.
        beside = np.array([side * 3.0, -4.0, 4.0])
        ends = np.concatenate([airway_ends + beside / 2, _draw_ends(frame, lung, spacing, rng)])
        vessels.append(
            grow_tree(root + np.array([side * 2.0, -9.0, 6.0]), ends, rng).segments(calibre, 2.9)
        )
        low = root + np.array([0.0, -11.0, -15.0])
        ends = _draw_ends(frame, lung, spacing * 1.15, rng)
        vessels.append(grow_tree(low, ends, rng).segments(calibre, 3.0))
    hollows = join_segments(bronchi)
    hollows = hollows.only(hollows.radius > 1.35)
    walls = Segments(hollows.start, hollows.end, hollows.radius * 1.08 + 0.5)
    return Trees(join_segments(vessels), walls, hollows)


def _root(hilum: tuple[float, float, float], side: float) -> Points:
    """The way from the mediastinum through the hilum into the lung."""
    x, y, z = hilum
    return np.array([[x - side * 8, y, z + 3.0], [x, y, z], [x + side * 9, y + 2, z - 4.0]])

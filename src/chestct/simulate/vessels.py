"""Grow the vessel and airway trees of a lung: from the hilum outwards, thinning at each division.

Every end point is joined to the place on the tree from which the way to it, and from there to the
hilum, is shortest; calibres then follow from the number of ends that a branch serves (Murray's law
with an exponent near 2.7, as measured in lungs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from chestct.simulate.fields import Field, Frame, Points
from chestct.simulate.tubes import Segments

_NODE_MM = 6.0

Point = Float32[np.ndarray, " 3"]


@dataclass(frozen=True, eq=False)
class Tree:
    """A branching tree.

    Attributes:
        nodes: Positions (x, y, z) in mm; node 0 is the root.
        parent: Index of each node's parent, smaller than its own; the root's is 0.
        flow: Number of ends that each node serves.
    """

    nodes: Points
    parent: Int64[np.ndarray, " points"]
    flow: Int64[np.ndarray, " points"]

    def segments(self, end_radius: float, exponent: float) -> Segments:
        """The tree's branches in mm, (depth, height, width) = (z, y, x)."""
        points = self.nodes[:, ::-1]
        radius = end_radius * self.flow[1:] ** (1 / exponent)
        return Segments(points[self.parent[1:]], points[1:], radius)


def draw_ends(frame: Frame, lung: Field, spacing_mm: float, rng: np.random.Generator) -> Points:
    """End points spread over a lung, one per cube of `spacing_mm`, in random order.

    Args:
        frame: Grid of `lung`.
        lung: Signed distance from the lung's surface, negative inside.
        spacing_mm: Typical distance between ends.
        rng: Where the randomness comes from.
    """
    every = max(round(spacing_mm / frame.step_mm), 1)
    coarse = lung[::every, ::every, ::every]
    voxels = rng.permutation(np.argwhere(coarse < 0.0) * every)
    places = voxels + rng.uniform(-0.5, 0.5, voxels.shape) * every
    near = np.clip(np.rint(places).astype(np.intp), 0, np.asarray(frame.shape) - 1)
    places = places[lung[near[:, 0], near[:, 1], near[:, 2]] < -2.5]
    points = places * frame.step_mm + np.asarray(frame.low_mm)
    return np.ascontiguousarray(points[:, ::-1])


def grow_tree(root: Points, ends: Points, rng: np.random.Generator) -> Tree:
    """Join end points to a tree.

    Args:
        root: The first nodes, a path from the mediastinum to the hilum.
        ends: Where branches end, joined in the order given.
        rng: Bends the branches a little.
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

    def join(self, end: Point, bend: Point) -> None:
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

    def tree(self) -> Tree:
        """The tree as it stands."""
        return _with_flow(self.nodes[: self.count].astype(np.float64), self.parent[: self.count])


def _with_flow(
    nodes: Float64[np.ndarray, "points 3"], parent: Int64[np.ndarray, " points"]
) -> Tree:
    """Count the ends behind each node; parents always precede their children."""
    has_child = np.zeros(len(parent), dtype=bool)
    has_child[parent[1:]] = True
    flow = [0 if has else 1 for has in has_child.tolist()]
    for node, above in zip(range(len(parent) - 1, 0, -1), parent[:0:-1].tolist(), strict=True):
        flow[above] += flow[node]
    return Tree(nodes, parent, np.maximum(np.asarray(flow, dtype=np.int64), 1))

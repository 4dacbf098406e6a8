"""Tubes keep their volume, trees branch and taper."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.simulate.fields import Frame, ellipsoid
from chestct.simulate.trees import Segments, _draw_ends, _Tree, fill_tubes, grow_tree, join_segments


@pytest.fixture(scope="module")
def tree() -> tuple[_Tree, np.ndarray]:
    frame = Frame((-60.0, -60.0, -60.0), (41, 41, 41), 3.0)
    lung = ellipsoid(frame, (0.0, 0.0, 0.0), (50.0, 50.0, 50.0))
    rng = np.random.default_rng(0)
    ends = _draw_ends(frame, lung, 12.0, rng)
    root = np.array([[-60.0, 0, 0], [-50.0, 0, 0]])
    return grow_tree(root, ends, rng), ends


@pytest.mark.parametrize("radius", [0.2, 0.5, 1.0, 2.0, 4.0, 7.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8)])
def test_a_tube_keeps_its_volume(radius: float, spacing: tuple[float, float, float]) -> None:
    start, end = np.array([[20.0, 15.0, 15.0]]), np.array([[28.0, 40.0, 45.0]])
    shape = tuple(int(60 / mm) for mm in spacing)
    filled = fill_tubes(Segments(start, end, np.array([radius])), shape, spacing)
    length = float(np.linalg.norm(end - start))
    assert filled.sum() * np.prod(spacing) == pytest.approx(np.pi * radius**2 * length, rel=0.12)


def test_a_thick_tube_is_full_inside_and_empty_outside() -> None:
    tube = Segments(np.array([[10.0, 20, 20]]), np.array([[30.0, 20, 20]]), np.array([6.0]))
    filled = fill_tubes(tube, (40, 40, 40), (1.0, 1.0, 1.0))
    assert filled[15:25, 18:23, 18:23].min() > 0.7
    assert filled[20, 20, 29:].max() == 0
    assert filled.max() <= 1


def test_tubes_outside_the_grid_leave_it_empty() -> None:
    tube = Segments(np.array([[-50.0, 5, 5]]), np.array([[-20.0, 5, 5]]), np.array([2.0]))
    assert fill_tubes(tube, (10, 10, 10), (1.0, 1.0, 1.0)).max() == 0
    assert fill_tubes(join_segments([]), (4, 4, 4), (1.0, 1.0, 1.0)).max() == 0


def test_every_end_is_reached(tree: tuple[_Tree, np.ndarray]) -> None:
    grown, ends = tree
    apart = np.linalg.norm(grown.nodes[:, None] - ends[None], axis=2).min(axis=0)
    assert len(ends) > 100
    assert apart.max() < 0.01


def test_parents_come_first_and_serve_at_least_what_their_children_serve(tree) -> None:
    grown, ends = tree
    index = np.arange(1, len(grown.parent))
    assert (grown.parent[1:] < index).all()
    assert (grown.flow[grown.parent[1:]] >= grown.flow[1:]).all()
    tips = len(grown.parent) - len(set(grown.parent.tolist()))
    assert grown.flow[0] == tips
    assert tips > 0.5 * len(ends)


def test_branches_taper_from_the_hilum_outwards(tree) -> None:
    segments = tree[0].segments(0.5, 2.9)
    outwards = segments.end[:, 2] + 60
    near, far = segments.radius[outwards < 25], segments.radius[outwards > 80]
    assert segments.radius.min() == 0.5
    assert near.max() > 2.2
    assert near.mean() > 1.3 * far.mean()

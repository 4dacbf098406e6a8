"""What may befall a scan, drawn anew for each step of training: on the 4 mm grid of the network.

Values are Hounsfield units, float32; labels uint8: 0 background, 1 right lung, 2 left lung, 3 gas
of airways, stomach and bowel, 255 not judged. Axes (to the head, to the back, to the left).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

AIR = -1024.0
RIGHT, LEFT, GAS, UNJUDGED = 1, 2, 3, 255
MM = 4.0
HARD_SHARE = 0.5
"""Of crops about a place that a former network had wrong, where there is one."""

Rng = np.random.Generator


@dataclass
class Example:
    """One scan on the grid.

    Attributes:
        values: HU, (depth, height, width).
        labels: See the module.
        body: Inside the skin, lungs included.
        hard: Voxels that a former network had wrong, (number, 3); may be empty.
    """

    values: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    hard: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=int))

    @property
    def lungs(self) -> np.ndarray:
        """Both lungs."""
        return (self.labels == RIGHT) | (self.labels == LEFT)

    def part(self, box: tuple[slice, ...]) -> Example:
        """A copy of a part, to change."""
        values = self.values[box].astype(np.float32)
        return Example(values, self.labels[box].copy(), self.body[box].copy())


def find_body(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Inside the skin: the largest piece of tissue, its slices' holes filled, and the lungs."""
    tissue = ndimage.binary_opening(values > -300, iterations=1)
    pieces, _ = ndimage.label(tissue)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    body = pieces == int(sizes.argmax())
    lungs = (labels == RIGHT) | (labels == LEFT)
    return np.stack([ndimage.binary_fill_holes(b | m) for b, m in zip(body, lungs, strict=True)])


def smooth_noise(rng: Rng, shape: tuple[int, ...], step: float) -> np.ndarray:
    """A random field of variance about 1 whose details are `step` voxels wide."""
    small = rng.standard_normal([int(n / step) + 3 for n in shape]).astype(np.float32)
    for axis, n in enumerate(shape):
        place = np.arange(n, dtype=np.float32) / step + np.float32(rng.uniform(0, 1))
        low = place.astype(int)
        share = (place - low).astype(np.float32)
        share = share * share * (3 - 2 * share)
        share = share.reshape([-1 if a == axis else 1 for a in range(small.ndim)])
        first = small.take(low, axis=axis)
        small = first + share * (small.take(low + 1, axis=axis) - first)
    return small * 1.6


# Disease, where the true lung is known.


def _tissue(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Values of airless lung, now and then with contrast medium, with bronchi left open."""
    level = rng.uniform(10, 80) + (rng.uniform(20, 110) if rng.random() < 0.4 else 0)
    tissue = level + rng.uniform(3, 30) * smooth_noise(rng, shape, 1.5)
    if rng.random() < 0.4:
        bronchi = smooth_noise(rng, shape, rng.uniform(1.5, 2.6)) > rng.uniform(1.9, 2.6)
        tissue[bronchi] = rng.uniform(-900, -300)
    return tissue.astype(np.float32)


def _places(lung: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height, backness and outwardness of voxels within a lung's box, each from 0 to 1."""
    where = np.argwhere(lung)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    axes = [
        (np.arange(n, dtype=np.float32) - a) / max(b - a, 1)
        for n, a, b in zip(lung.shape, low, high, strict=True)
    ]
    z, y, x = (axis.reshape([-1 if i == k else 1 for i in range(3)]) for k, axis in enumerate(axes))
    # The back of the lung lies at other rows in other slices: count from each slice's own.
    rows = lung.any(axis=2)
    has = rows.any(axis=1)
    last = np.where(has, lung.shape[1] - rows[:, ::-1].argmax(axis=1), high[1])
    first = np.where(has, rows.argmax(axis=1), low[1])
    y = (np.arange(lung.shape[1])[None, :] - first[:, None]) / np.maximum(last - first, 1)[:, None]
    return z, y.astype(np.float32)[:, :, None], x


def _dependent(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Confluent airless lung along the back wall, at times up to half of the lung."""
    z, y, _ = _places(lung)
    noise = smooth_noise(rng, lung.shape, rng.uniform(3, 9))
    depth = rng.uniform(0.08, 0.55)
    reach = rng.uniform(0.3, 1.1)
    level = (y - (1 - depth)) / 0.12 + rng.uniform(0.3, 1.3) * noise - 4 * np.maximum(z - reach, 0)
    return np.clip(level / rng.uniform(0.3, 1.2), 0, 1)


def _lobe(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """All on one side of an oblique, slightly bent plane: a lower, upper or middle lobe."""
    z, y, x = _places(lung)
    tilt = rng.uniform(0.2, 0.9)
    level = (y - 0.5) * tilt * 1.6 - (z - rng.uniform(0.25, 0.65)) + 0.2 * (x - 0.5)
    kind = rng.random()
    if kind < 0.3:
        level = -level
    elif kind < 0.4:
        level = rng.uniform(0.08, 0.2) - np.abs(level)
    noise = smooth_noise(rng, lung.shape, rng.uniform(4, 12))
    return np.clip((level + 0.05 * noise) / rng.uniform(0.01, 0.12), 0, 1)


def _whole(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Nearly or wholly airless."""
    noise = smooth_noise(rng, lung.shape, rng.uniform(3, 10))
    return np.clip(rng.uniform(1.0, 3.0) + noise, 0, 1)


def _patches(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Patches anywhere, or along the surface."""
    noise = smooth_noise(rng, lung.shape, rng.uniform(2.5, 9))
    level = noise - rng.uniform(0.0, 1.4)
    if rng.random() < 0.6:
        depth = ndimage.distance_transform_edt(lung)
        level = level + 1.2 - depth / rng.uniform(1.5, 5)
    return np.clip(level / rng.uniform(0.1, 1.0), 0, 1)


def _mass(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """One to three round masses."""
    filled = np.zeros(lung.shape, np.float32)
    where = np.argwhere(lung)
    noise = smooth_noise(rng, lung.shape, 3)
    for _ in range(int(rng.integers(1, 4))):
        centre = where[rng.integers(len(where))]
        radius = rng.uniform(2, 10)
        away = sum(
            (axis - c) ** 2
            for axis, c in zip(np.ogrid[tuple(map(slice, lung.shape))], centre, strict=True)
        )
        filled = np.maximum(filled, np.clip(radius - np.sqrt(away) + noise, 0, 1))
    return filled


def _band(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Airless lung a few millimetres thick along parts of the surface, beside the spine too."""
    thickness = rng.uniform(0.7, 2.5) * (1 + 0.3 * smooth_noise(rng, lung.shape, 4))
    where = smooth_noise(rng, lung.shape, rng.uniform(4, 10)) - rng.uniform(-0.4, 1.0)
    depth = ndimage.distance_transform_edt(lung)
    return np.clip(thickness + 1 - depth, 0, 1) * np.clip(where / 0.3, 0, 1)


def _haze(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Ground glass: less than half filled."""
    return rng.uniform(0.15, 0.6) * np.clip(
        smooth_noise(rng, lung.shape, rng.uniform(3, 15)) + rng.uniform(-0.5, 2), 0, 1
    )


_DISEASES: tuple[tuple[Callable[[Rng, np.ndarray], np.ndarray], float], ...] = (
    (_dependent, 0.27),
    (_lobe, 0.18),
    (_whole, 0.06),
    (_patches, 0.14),
    (_mass, 0.06),
    (_haze, 0.09),
    (_band, 0.20),
)


def _fluid(rng: Rng, lung: np.ndarray) -> np.ndarray:
    """Where an effusion has taken the lung's place: a crescent behind and below."""
    z, y, x = _places(lung)
    noise = smooth_noise(rng, lung.shape, rng.uniform(5, 14))
    amount = rng.uniform(-0.05, 0.45) if rng.random() < 0.85 else rng.uniform(0.5, 1.6)
    steep = rng.uniform(0.1, 0.8)
    side = np.abs(x - 0.5) * rng.uniform(0, 0.3)
    return lung & ((1 - y) * 0.8 + steep * z - side + 0.05 * noise < amount)


def add_disease(example: Example, rng: Rng) -> None:
    """Fill air of the lungs, and now and then the room around them, with known outline."""
    both = rng.random() < 0.55
    sides = (RIGHT, LEFT) if both else (int(rng.integers(1, 3)),)
    if rng.random() < 0.25:
        for side in sides:
            lung = example.labels == side
            if np.count_nonzero(lung) > 200:
                wet = _fluid(rng, lung)
                rim = ndimage.binary_dilation(wet) & ~example.lungs & (example.values < -150)
                fluid = rng.uniform(-5, 30) + 4 * smooth_noise(rng, lung.shape, 1.5)
                example.values[wet | rim] = fluid[wet | rim]
                example.labels[wet] = 0
    names = rng.choice(
        len(_DISEASES), size=int(rng.integers(1, 3)), p=[share for _, share in _DISEASES]
    )
    for number in names:
        for side in sides:
            lung = example.labels == side
            if np.count_nonzero(lung) > 200:
                _fill(example, lung, _DISEASES[number][0](rng, lung), rng)


def _fill(example: Example, lung: np.ndarray, share: np.ndarray, rng: Rng) -> None:
    """Replace a share of the air by tissue, in the lung and its half-filled rim."""
    rim = ndimage.binary_dilation(lung) & (example.labels == 0) & (example.values < -150)
    rim &= example.body
    # A rim voxel belongs to the nearest lung voxel; its largest neighbour is near enough.
    share = np.where(lung, share, 0).astype(np.float32)
    share = np.where(rim, ndimage.maximum_filter(share, 3), share)
    tissue = _tissue(rng, lung.shape)
    example.values += share * np.where(share > 0, np.maximum(tissue - example.values, 0), 0)
    bronchi = (tissue < -250) & lung & (share > 0.5)
    example.values[bronchi] = np.minimum(example.values[bronchi], tissue[bronchi])


# What lies outside the lungs and confuses.


def add_bowel(example: Example, rng: Rng) -> None:
    """Gas, fluid and food in hollow organs, anywhere in the body outside the lungs."""
    room = ndimage.binary_erosion(example.body, iterations=2)
    room &= ~ndimage.binary_dilation(example.lungs) & (example.values > -200)
    where = np.argwhere(room)
    lungs = np.flatnonzero(example.lungs.any(axis=(1, 2)))
    if lungs.size and rng.random() < 0.8:
        # Mostly where stomach and colon lie: about the domes of the diaphragm and below.
        top = lungs[0] + 0.4 * (lungs[-1] - lungs[0])
        lower = where[where[:, 0] < top]
        where = lower if len(lower) > 50 else where
    if len(where) < 50:
        return
    for _ in range(int(rng.integers(1, 6))):
        _blow(example, room, where[rng.integers(len(where))], 13.0, rng)


def add_colon(example: Example, rng: Rng) -> None:
    """Fat and pieces of colon that touch a lung: behind the thin rim of a recess, under a dome."""
    away = ndimage.distance_transform_edt(~example.lungs)
    room = example.body & (away > 1) & (example.values > -200)
    lungs = np.flatnonzero(example.lungs.any(axis=(1, 2)))
    if not lungs.size:
        return
    top = int(lungs[0] + 0.5 * (lungs[-1] - lungs[0]))
    # Below a dome there is lung somewhere above, which chest wall has not.
    is_below = np.logical_or.accumulate(example.lungs[::-1], axis=0)[::-1]
    where = np.argwhere((room & is_below & (away > 2) & (away < 6))[:top])
    if len(where) < 50:
        return
    centre = where[rng.integers(len(where))].astype(float)
    near = np.linalg.norm(where - centre, axis=1)
    places = where[near < rng.uniform(4, 16)]
    noise = smooth_noise(rng, room.shape, 4)
    grid = np.ogrid[tuple(map(slice, room.shape))]
    reach = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    fat = room & (example.values < 150) & (reach + 2 * noise < rng.uniform(4, 20))
    if rng.random() < 0.7:
        fatty = rng.uniform(-125, -70) + rng.uniform(2, 12) * noise
        example.values[fat] = fatty[fat]
    for _ in range(int(rng.integers(1, 7))):
        _blow(example, room, places[rng.integers(len(places))], 5.0, rng)


def _blow(example: Example, room: np.ndarray, centre: np.ndarray, largest: float, rng: Rng) -> None:
    """One hollow organ, its radius of 2 voxels to `largest`: gas in front, fluid or food behind."""
    radii = np.exp(rng.uniform(np.log(1.5 if largest < 6 else 2.0), np.log(largest)))
    radii = radii * np.exp(rng.normal(0, 0.3, 3))
    noise = smooth_noise(rng, room.shape, rng.uniform(3, 8))
    away = sum(
        ((axis - c) / r) ** 2
        for axis, c, r in zip(np.ogrid[tuple(map(slice, room.shape))], centre, radii, strict=True)
    )
    organ = room & (np.sqrt(away) + 0.25 * noise < 1)
    level = centre[1] + radii[1] * rng.uniform(-1.2, 1.2)
    rows = np.arange(room.shape[1])[None, :, None]
    gas = organ & (rows < level)
    food = organ & ~gas
    mottled = rng.uniform(-30, 60) + rng.uniform(3, 20) * noise
    if rng.random() < 0.5:
        bubbles = np.clip(smooth_noise(rng, room.shape, rng.uniform(1, 2.5)) + 0.3, 0, 3)
        mottled = mottled - rng.uniform(50, 500) * bubbles
    mottled = np.maximum(mottled, -950)
    wall = example.values.copy()
    example.values[gas] = rng.uniform(-1010, -800)
    example.values[food] = mottled[food]
    # Averaging to the grid has softened every real edge.
    soft = ndimage.gaussian_filter(np.where(organ, example.values, wall), 0.55)
    near = ndimage.binary_dilation(organ) & room
    example.values[near] = soft[near]
    example.labels[near & (example.labels == GAS)] = 0
    example.labels[near & (example.values < -400)] = GAS


def add_contrast(example: Example, rng: Rng) -> None:
    """Contrast medium in blood between and below the lungs."""
    lungs = np.argwhere(example.lungs)
    blood = (example.values > 5) & (example.values < 110) & example.body
    noise = smooth_noise(rng, blood.shape, rng.uniform(5, 10)) > rng.uniform(-0.6, 0.8)
    if len(lungs):
        middle = lungs[:, 2].mean()
        columns = np.abs(np.arange(blood.shape[2]) - middle) < rng.uniform(10, 20)
        noise &= columns[None, None, :]
    added = ndimage.gaussian_filter((blood & noise).astype(np.float32), 0.7)
    added = added * rng.uniform(40, 350)
    example.values += np.where(example.lungs, 0, added)


def add_metal(example: Example, rng: Rng) -> None:
    """A bright piece with dark and bright streaks in its slices."""
    where = np.argwhere(example.body)
    if not len(where):
        return
    depth, row, column = where[rng.integers(len(where))]
    rows, columns = np.ogrid[: example.values.shape[1], : example.values.shape[2]]
    radius = np.hypot(rows - row, columns - column) + 1.5
    angle = np.arctan2(rows - row, columns - column)
    for level in range(max(0, depth - 2), min(len(example.values), depth + 3)):
        wave = np.cos(angle * rng.integers(2, 9) + rng.uniform(0, 6))
        wave += np.cos(angle * rng.integers(5, 20) + rng.uniform(0, 6))
        example.values[level] += (wave * rng.uniform(100, 900) / radius * 2).astype(np.float32)
        example.values[level][radius < rng.uniform(2, 3.5)] = 2000


# Geometry.


def place(example: Example, size: tuple[int, int, int], rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale, flip and crop a scan onto a grid of a fixed size."""
    shape = np.array(example.values.shape)
    matrix = _turn(rng) @ np.diag(rng.uniform(0.8, 1.25) * rng.uniform(0.93, 1.07, 3))
    flips = np.where(rng.random(3) < (0.05, 0.06, 0.5), -1.0, 1.0)
    matrix = matrix @ np.diag(flips)
    size_array = np.array(size)
    spare = (shape - size_array) / 2
    centre = shape / 2 - 0.5 + rng.uniform(-1, 1, 3) * (np.abs(spare) + 4)
    offset = centre - matrix @ (size_array / 2 - 0.5)
    values = ndimage.affine_transform(
        example.values, matrix, offset, size, order=1, cval=AIR, prefilter=False
    )
    labels = ndimage.affine_transform(
        example.labels, matrix, offset, size, order=0, cval=0, prefilter=False
    )
    if flips[2] < 0:
        right, left = labels == RIGHT, labels == LEFT
        labels[right], labels[left] = LEFT, RIGHT
    return values, labels


def _turn(rng: Rng) -> np.ndarray:
    """A small turn, in one case of five one of up to 40 degrees."""
    widest = 40.0 if rng.random() < 0.2 else 8.0
    angles = np.radians(rng.uniform(-widest, widest, 3) * (1.0, 0.5, 0.5))
    turn = np.eye(3)
    for axis, angle in zip(rng.permutation(3), angles, strict=True):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return turn


def cut_view(values: np.ndarray, labels: np.ndarray, rng: Rng) -> None:
    """A smaller field of view: nothing beyond some planes, or beyond a circle."""
    if rng.random() < 0.3:
        _cut_circle(values, labels, rng)
    for axis in range(3):
        for end in (0, 1):
            if rng.random() < 0.12:
                size = values.shape[axis]
                cut = int(size * rng.uniform(0.02, 0.5))
                part = [slice(None)] * 3
                part[axis] = slice(0, cut) if end == 0 else slice(size - cut, None)
                values[tuple(part)] = AIR
                labels[tuple(part)] = 0


def leave_slab(values: np.ndarray, labels: np.ndarray, rng: Rng) -> None:
    """A few slices only; above them the air that pads an input."""
    number = int(rng.integers(1, 14))
    first = int(rng.integers(len(values) - number))
    for array, empty in ((values, AIR), (labels, 0)):
        array[:number] = array[first : first + number].copy()
        array[number:] = empty


def _cut_circle(values: np.ndarray, labels: np.ndarray, rng: Rng) -> None:
    """Padding outside the scanner's circle; nearly always below air, clipped to it."""
    _, height, width = values.shape
    rows, columns = np.ogrid[:height, :width]
    away = np.hypot(
        rows - height / 2 - rng.uniform(-8, 8), columns - width / 2 - rng.uniform(-8, 8)
    )
    outside = away > rng.uniform(0.33, 0.6) * max(height, width)
    padding = AIR if rng.random() < 0.9 else float(rng.choice([-1000.0, -500.0, 0.0]))
    values[:, outside] = padding
    labels[:, outside] = 0


def thicken(values: np.ndarray, rng: Rng) -> np.ndarray:
    """Slices of 5 to 10 mm, averaged over and interpolated between."""
    thick = rng.uniform(1.2, 2.6)
    depth = len(values)
    places = np.arange(rng.uniform(0, thick), depth - 1, thick)
    averaged = ndimage.uniform_filter1d(
        values, max(1, round(thick * rng.uniform(0.4, 1.1))), axis=0
    )
    if len(places) < 3:
        return values
    slices = averaged[np.rint(places).astype(int)]
    at = np.interp(np.arange(depth), places, np.arange(len(places)))
    low = np.minimum(at.astype(int), len(places) - 2)
    share = (at - low).astype(np.float32)[:, None, None]
    return slices[low] * (1 - share) + slices[low + 1] * share


def blank_slices(values: np.ndarray, labels: np.ndarray, rng: Rng) -> None:
    """Slices without data: at an end, or one or two amid."""
    depth = len(values)
    empty = float(rng.choice([AIR, -1000.0, 0.0, 600.0]))
    kind = rng.integers(3)
    if kind == 2:
        first = int(rng.integers(depth - 1))
        share = rng.uniform(0.3, 1.0)
        values[first : first + 1] += share * (empty - values[first : first + 1])
        labels[first] = UNJUDGED
        return
    number = int(rng.integers(1, 8))
    part = slice(0, number) if kind == 0 else slice(depth - number, None)
    values[part], labels[part] = empty, 0


def _look(values: np.ndarray, rng: Rng) -> np.ndarray:
    """Scanner: kernel, noise, scale and shift of the values."""
    kind = rng.random()
    if kind < 0.25:
        values = ndimage.gaussian_filter(values, rng.uniform(0.3, 1.0))
    elif kind < 0.4:
        soft = ndimage.gaussian_filter(values, 1.0)
        values = values + rng.uniform(0.2, 0.8) * (values - soft)
    noise = np.exp(rng.uniform(np.log(2), np.log(55)))
    grain = rng.standard_normal(values.shape, dtype=np.float32)
    if rng.random() < 0.3:
        grain = ndimage.gaussian_filter(grain, 0.7) * 2.2
    values = values + np.float32(noise) * grain
    if rng.random() < 0.6:
        values = (values + 1024) * rng.uniform(0.93, 1.07) - 1024 + rng.normal(0, 18)
    return values


def _window(source: Example, size: tuple[int, int, int], rng: Rng) -> Example:
    """A part of the scan somewhat larger than a crop, mostly with lung in it or a hard place."""
    where = np.argwhere(source.lungs[::4, ::4, ::4]) * 4
    if not len(where) or rng.random() < 0.2:
        where = np.argwhere(source.body[::4, ::4, ::4]) * 4
    if len(source.hard) and rng.random() < HARD_SHARE:
        where = source.hard
    centre = where[rng.integers(len(where))] if len(where) else np.array(source.values.shape) // 2
    box = []
    for middle, n, whole in zip(centre, size, source.values.shape, strict=True):
        wide = min(whole, int(1.3 * n))
        first = int(np.clip(middle - wide * rng.uniform(0.2, 0.8), 0, whole - wide))
        box.append(slice(first, first + wide))
    return source.part(tuple(box))


def augment(source: Example, size: tuple[int, int, int], rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """One training crop: HU clipped to the network's range, and labels."""
    example = _window(source, size, rng)
    if np.count_nonzero(example.lungs) > 500 and rng.random() < 0.7:
        add_disease(example, rng)
    for add, odds in (
        (add_bowel, 0.35),
        (add_colon, 0.35),
        (add_contrast, 0.15),
        (add_metal, 0.05),
    ):
        if rng.random() < odds:
            add(example, rng)
    values, labels = place(example, size, rng)
    if rng.random() < 0.35:
        values = thicken(values, rng)
    values = _look(values, rng).astype(np.float32)
    if rng.random() < 0.5:
        cut_view(values, labels, rng)
    if rng.random() < 0.05:
        leave_slab(values, labels, rng)
    elif rng.random() < 0.03:
        blank_slices(values, labels, rng)
    return np.clip(values, -1024, 600), labels

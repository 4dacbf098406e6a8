"""Draw a scan with its lungs outlined, as 8-bit RGB arrays of the size they will be shown at.

Radiological display: the patient's right is on the left of axial and coronal pictures, the head
is up, and the front is to the left of sagittal ones. Pixels are square in mm.

A heat-map is a see-through layer of its own, and not paint on the picture, so that a page can show
the lung beneath it. It has few levels, so that it is small as a palette PNG: colour and opacity
both rise with the heat, heat outside the lungs is fainter, and a line surrounds the lung that is as
hot as the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num, UInt8

from chestct.analysis import ScanAnalysis
from chestct.arrays import Mask, Voxels
from chestct.explain.back_to_scan import map_on_body
from chestct.explain.explanation import HeatMap
from chestct.preprocess.oblique import on_body, slices_follow_body
from chestct.preprocess.prepare import PreparedScan
from chestct.volume import Volume, canonical_axes, to_canonical

RGB = UInt8[np.ndarray, "rows columns 3"]
Plane = Literal["axial", "coronal", "sagittal"]
Color = tuple[int, int, int]

_LUNG_WINDOW_HU: Final = (-1200.0, 200.0)
"""The usual lung window: centre -500, width 1400."""
LUNG_COLOR: Final[Color] = (86, 180, 233)
"""Sky blue of Okabe and Ito's palette, told apart from orange by every kind of colour vision."""
ANALYSED_COLOR: Final[Color] = (230, 159, 0)
"""Orange of the same palette."""

_MARGIN_MM = (0.0, 30.0, 32.0)
"""Chest wall left around the lungs along (depth, height, width); zero: the whole axis is shown."""
_DIMMED = 0.5
_HATCH_LIGHTER = np.uint8(70)
AXES: Final[dict[Plane, tuple[int, int, int]]] = {
    "axial": (0, 1, 2),
    "coronal": (1, 0, 2),
    "sagittal": (2, 0, 1),
}
"""Per plane: the axis looked along, the axis of the rows, the axis of the columns."""


_MOST_TALL = 4.0


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn: a canonical volume, the lungs in it, and how to look at them.

    Attributes:
        volume: Axes depth to the head, height to the back, width to the left.
        lungs: Lung mask on the same grid.
        analysed: First and last slice the network saw, along depth.
        shown_range: Values drawn black and white.
        box: First and one past the last index shown, per axis.
        heat: Heat-map on the same grid; None without one.
        is_disease: Whether the heat-map speaks for a disease, and not for the negative class.
        instance_numbers: InstanceNumber of each slice from the feet; empty where slices are no
            images of a DICOM series.
    """

    volume: Volume
    lungs: Mask
    analysed: tuple[int, int]
    shown_range: tuple[float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    heat: HeatMap | None = None
    is_disease: bool = True
    instance_numbers: tuple[str, ...] = ()

    @classmethod
    def of_scan(cls, analysis: ScanAnalysis) -> Scene:
        """A scan along the body's axes, cropped to the chest, in the lung window, with its map."""
        volume = on_body(analysis.volume)
        lungs = on_body(analysis.prepared.scan_lungs).voxels
        shown = _LUNG_WINDOW_HU if volume.unit == "HU" else _range_of(volume.voxels)
        box = _box_around(lungs, volume.grid.spacing_mm)
        explained = analysis.explanation
        return cls(
            volume=volume,
            lungs=lungs,
            analysed=analysis.analysed_slices,
            shown_range=shown,
            box=box,
            heat=None if explained is None else map_on_body(explained.heat),
            is_disease=explained is None or explained.speaks_for_disease,
            instance_numbers=instance_numbers(analysis.volume),
        )

    @classmethod
    def of_input(cls, prepared: PreparedScan) -> Scene:
        """The first channel of what a network sees, whole, from its lowest to its highest value."""
        values = prepared.input[0]
        volume = to_canonical(Volume(prepared.grid, values, unit="windowed"))
        lungs = to_canonical(Volume(prepared.grid, prepared.lungs, unit="windowed"))
        depth, height, width = volume.grid.shape
        return cls(
            volume=volume,
            lungs=lungs.voxels,
            analysed=(0, depth - 1),
            shown_range=_range_of(values),
            box=((0, depth), (0, height), (0, width)),
        )

    @property
    def is_cut(self) -> bool:
        """Whether some slices were not analysed."""
        first, last = self.analysed
        return last - first + 1 < self.volume.grid.shape[0]

    @property
    def shown_slices(self) -> tuple[int, int]:
        """First and last axial slice worth showing: analysed, and with lung where there is any."""
        first, last = self.analysed
        with_lung = first + np.flatnonzero(self.lungs[first : last + 1].any(axis=(1, 2)))
        return (int(with_lung[0]), int(with_lung[-1])) if with_lung.size else (first, last)

    def cut(
        self, voxels: Voxels | HeatMap, plane: Plane, index: int
    ) -> Num[np.ndarray, "rows columns"] | Bool[np.ndarray, "rows columns"]:
        """One slice of anything on the scene's grid, as far as the scene is shown and head up."""
        looked_along, rows, columns = AXES[plane]
        window = tuple(slice(*self.box[axis]) for axis in (rows, columns))
        if isinstance(voxels, HeatMap):
            taken = voxels.cut(looked_along, index)[window]
        else:
            taken = voxels[(slice(None),) * looked_along + (index,)][window]
        return taken if plane == "axial" else taken[::-1]

    def picture_height(self, plane: Plane, width_px: int) -> int:
        """Rows of a picture of this plane that is `width_px` wide, so that a millimetre is square.

        No picture is higher than `_MOST_TALL` times its width, whatever was scanned.
        """
        _, rows, columns = AXES[plane]
        sizes = [(stop - start) for start, stop in self.box]
        spacing = self.volume.grid.spacing_mm
        ratio = sizes[rows] * spacing[rows] / (sizes[columns] * spacing[columns])
        return max(1, round(width_px * min(ratio, _MOST_TALL)))

    def analysed_rows(self, height_px: int) -> tuple[int, int]:
        """First and one past the last row that show analysed slices in a head-up picture."""
        depth = self.volume.grid.shape[0]
        first, last = self.analysed
        top = round((depth - 1 - last) / depth * height_px)
        bottom = round((depth - first) / depth * height_px)
        return top, max(bottom, top + 1)


def instance_numbers(volume: Volume) -> tuple[str, ...]:
    """InstanceNumber of each slice from the feet, where slices are those of the scan."""
    numbers = volume.source.instance_numbers
    if not slices_follow_body(volume.grid) or len(numbers) != volume.grid.shape[0]:
        return ()
    is_reversed = canonical_axes(volume.grid)[1][0]
    return numbers[::-1] if is_reversed else numbers


def spread_slices(first: int, last: int, count: int) -> list[int]:
    """At most `count` different slices, evenly over `first` to `last`, the ends inset a little."""
    inset = 0.04 * (last - first)
    wanted = np.linspace(first + inset, last - inset, count).round().astype(int)
    return sorted({int(index) for index in wanted})


def fullest_slice(lungs: Mask, plane: Plane) -> int:
    """The slice of a plane that shows most lung; the middle one where there is none."""
    looked_along, *others = AXES[plane]
    area = np.count_nonzero(lungs, axis=tuple(others))
    return int(area.argmax()) if area.any() else lungs.shape[looked_along] // 2


def draw_slice(scene: Scene, plane: Plane, index: int, width_px: int) -> RGB:
    """Draw one slice, lungs outlined, `width_px` wide and as high as its millimetres ask for.

    Where there is a heat-map, what was not analysed is hatched. Without one, coronal and sagittal
    pictures are dimmed outside the analysed slices, with a line at each end.
    """
    values = scene.cut(scene.volume.voxels, plane, index)
    lungs = scene.cut(scene.lungs, plane, index)
    height_px = scene.picture_height(plane, width_px)
    gray = _resize(_to_gray(values, *scene.shown_range), width_px, height_px)
    picture = np.repeat(gray[:, :, None], 3, axis=2)
    _outline(picture, lungs)
    if scene.heat is not None:
        _hatch(picture, np.isnan(scene.cut(scene.heat, plane, index)))
    elif plane != "axial" and scene.is_cut:
        _mark_analysed(picture, scene)
    return picture


def _to_gray(
    values: Num[np.ndarray, "rows columns"], black: float, white: float
) -> UInt8[np.ndarray, "rows columns"]:
    """Scale values so that `black` becomes 0 and `white` 255, cutting off what lies beyond."""
    scaled = (values.astype(np.float32) - black) * (255.0 / max(white - black, 1e-6))
    gray: UInt8[np.ndarray, "rows columns"] = np.clip(scaled.round(), 0, 255).astype(np.uint8)
    return gray


def _range_of(values: Num[np.ndarray, "depth height width"]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _box_around(
    lungs: Mask, spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The lungs' bounding box with the chest wall around it, whole axes where there are none."""
    box = []
    for axis, margin_mm in enumerate(_MARGIN_MM):
        size = lungs.shape[axis]
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(lungs.any(axis=others))
        if margin_mm == 0.0 or filled.size == 0:
            box.append((0, size))
            continue
        margin = round(margin_mm / spacing_mm[axis])
        box.append((max(0, int(filled[0]) - margin), min(size, int(filled[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _resize(
    gray: UInt8[np.ndarray, "rows columns"], width_px: int, height_px: int
) -> UInt8[np.ndarray, "new_rows new_columns"]:
    import cv2

    shrinks = width_px * height_px < gray.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized: UInt8[np.ndarray, "new_rows new_columns"] = cv2.resize(
        np.ascontiguousarray(gray), (width_px, height_px), interpolation=how
    )
    return resized


def _outline(picture: RGB, lungs: Bool[np.ndarray, "mask_rows mask_columns"]) -> None:
    """Draw the lungs' outlines into a picture of the same field of view."""
    height_px, width_px = picture.shape[:2]
    smooth = _resized(lungs.astype(np.float32), (width_px, height_px))
    # Rims of single vessels would hide the very lung they lie in.
    _draw_contours(picture, smooth >= 0.5, LUNG_COLOR, smallest=(0.02 * width_px) ** 2)


def _draw_contours(
    picture: UInt8[np.ndarray, "rows columns *color"],
    area: Bool[np.ndarray, "rows columns"],
    color: Color | int,
    *,
    smallest: float,
) -> None:
    """Draw the outlines of those pieces of an area that have so many pixels, in place."""
    import cv2

    contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    shown = [contour for contour in contours if cv2.contourArea(contour) >= smallest]
    cv2.polylines(picture, shown, isClosed=True, color=color, thickness=1, lineType=cv2.LINE_AA)


def _mark_analysed(picture: RGB, scene: Scene) -> None:
    """Dim the rows above and below the analysed slices and draw a line at each end."""
    top, bottom = scene.analysed_rows(picture.shape[0])
    for outside in (picture[:top], picture[bottom:]):
        outside[:] = (outside * _DIMMED).astype(np.uint8)
    for row in (top, bottom - 1):
        if 0 < row < picture.shape[0] - 1:
            picture[row : row + 1] = ANALYSED_COLOR


def _hatch(picture: RGB, is_outside: Bool[np.ndarray, "mask_rows mask_columns"]) -> None:
    """Dim what was not analysed and hatch it, so that it is not taken for cold."""
    import cv2

    if not is_outside.any():
        return
    height_px, width_px = picture.shape[:2]
    outside = cv2.resize(
        is_outside.astype(np.uint8), (width_px, height_px), interpolation=cv2.INTER_NEAREST
    ).astype(bool)
    diagonal = np.add.outer(np.arange(height_px), np.arange(width_px))
    lines = outside & (diagonal % max(6, width_px // 60) == 0)
    picture[outside] = (picture[outside] * _DIMMED).astype(np.uint8)
    picture[lines] += _HATCH_LIGHTER


HEAT_LEVELS: Final = 40
LINE_LEVELS: Final = 3
_LINE_COLOR: Final[Color] = (255, 255, 255)
"""White: between the blue outlines and the warm colours of the heat."""

_CALM_COLOR: Final[Color] = (0, 158, 115)
"""Bluish green of Okabe and Ito's palette."""
_Palette = UInt8[np.ndarray, "levels 4"]
_FAINTEST = 0.06
"""Heat below this is not shown: every network leaves a little everywhere."""
_FULL = 0.6
"""Heat from which the layer is as opaque as it gets."""
_OPACITY = (0.22, 0.62)
"""Largest opacity outside and inside the lungs."""


@dataclass(frozen=True, eq=False)
class HeatLayer:
    """A heat-map to be laid over a picture of the same size.

    Attributes:
        levels: Rows of `heat_palette`, one per pixel.
        hottest: Largest heat in the slice.
        highlighted: Share of the lung in it that is as hot as the threshold, 0 to 1.
        palette: Red, green, blue and opacity of each level.
    """

    levels: UInt8[np.ndarray, "rows columns"]
    hottest: float
    highlighted: float
    palette: _Palette

    def over(self, picture: RGB) -> RGB:
        """A picture as it looks under this layer."""
        colors = self.palette[self.levels].astype(np.float32)
        opacity = colors[:, :, 3:] / 255.0
        mixed = picture * (1.0 - opacity) + colors[:, :, :3] * opacity
        return np.asarray(np.rint(mixed).astype(np.uint8))


def draw_heat(scene: Scene, plane: Plane, index: int, width_px: int, threshold: float) -> HeatLayer:
    """The heat-map over what `draw_slice` draws, and a line around the lung of `threshold` or more.

    Raises:
        ValueError: The scene has no heat-map.
    """
    if scene.heat is None:
        raise ValueError("The scene has no heat-map to draw.")
    # What was not analysed is hatched in the picture below and gets no colour here.
    heat = np.nan_to_num(scene.cut(scene.heat, plane, index).astype(np.float32), nan=0.0)
    lungs = scene.cut(scene.lungs, plane, index)
    size = (width_px, scene.picture_height(plane, width_px))
    smooth = _resized(heat, size).clip(0.0, 1.0)
    inside = _resized(lungs.astype(np.float32), size) >= 0.5
    # A line around lung that speaks for no finding would look like the outline of a disease.
    line = _outline_of(inside & (smooth >= threshold) & scene.is_disease)
    steps = np.rint(smooth * (HEAT_LEVELS - 1)).astype(int)
    levels = (inside * HEAT_LEVELS + steps) * LINE_LEVELS + line
    return HeatLayer(
        levels=levels.astype(np.uint8),
        hottest=float(heat.max(initial=0.0)),
        highlighted=float((heat[lungs] >= threshold).mean()) if lungs.any() else 0.0,
        palette=heat_palette(is_disease=scene.is_disease),
    )


@cache
def heat_palette(*, is_disease: bool = True) -> _Palette:
    """Red, green, blue and opacity of every level: outside and inside the lungs, heat, line.

    The colours are Inferno, whose lightness rises evenly: it can be read in gray and with every
    kind of colour vision. What speaks for no finding is green, and all of one tone.
    """
    steps = np.linspace(0.0, 1.0, HEAT_LEVELS)
    color = (_inferno(steps) if is_disease else np.tile(_CALM_COLOR, (HEAT_LEVELS, 1)))[:, None]
    rise = ((steps - _FAINTEST) / (_FULL - _FAINTEST)).clip(0.0, 1.0)
    opacity = np.multiply.outer(_OPACITY, rise)[:, :, None, None]
    line = (0.9 * np.arange(LINE_LEVELS) / (LINE_LEVELS - 1))[:, None]
    together = line + opacity * (1.0 - line)
    mixed = line * np.array(_LINE_COLOR) + opacity * (1.0 - line) * color
    shown = np.where(together > 0.0, mixed / np.maximum(together, 1e-9), color)
    palette: _Palette = np.rint(
        np.concatenate([shown, 255.0 * together], axis=3).reshape(-1, 4)
    ).astype(np.uint8)
    return palette


def _inferno(steps: Float64[np.ndarray, " levels"]) -> Float64[np.ndarray, "levels 3"]:
    import cv2

    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO)
    # From a quarter up: the darkest colours could not be told from lung.
    entries = np.rint(255 * (0.3 + 0.67 * steps)).astype(int)
    return np.asarray(table.reshape(256, 3)[entries, ::-1], dtype=np.float64)


def heat_color(heat: float, *, is_disease: bool = True) -> tuple[int, int, int, float]:
    """Red, green, blue (0 to 255) and opacity (0 to 1) of one heat in the lungs, for legends."""
    level = (HEAT_LEVELS + round(heat * (HEAT_LEVELS - 1))) * LINE_LEVELS
    red, green, blue, alpha = heat_palette(is_disease=is_disease)[level].tolist()
    return red, green, blue, alpha / 255.0


def _resized(
    values: Float32[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float32[np.ndarray, "new_rows new_columns"]:
    """Values at another size, (width, height)."""
    import cv2

    resized: Float32[np.ndarray, "new_rows new_columns"] = cv2.resize(
        np.ascontiguousarray(values), size, interpolation=cv2.INTER_LINEAR
    )
    return resized


def _outline_of(
    area: Bool[np.ndarray, "rows columns"],
) -> UInt8[np.ndarray, "rows columns"]:
    """How much of each pixel the outline covers, from 0 to `LINE_LEVELS` - 1."""
    drawn = np.zeros(area.shape, dtype=np.uint8)
    _draw_contours(drawn, area, 255, smallest=(0.012 * area.shape[1]) ** 2)
    covered: UInt8[np.ndarray, "rows columns"] = np.rint(
        drawn / np.float32(255 / (LINE_LEVELS - 1))
    ).astype(np.uint8)
    return covered

"""Draw a heat-map as a see-through layer over the pictures of `chestct.pictures`.

A layer of its own, and not paint on the picture, lets a page show the lung beneath it. It has few
levels, so that it is small as a palette PNG: colour and opacity both rise with the heat, heat
outside the lungs is fainter, and a line surrounds the lung that is as hot as the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from chestct.pictures import RGB, Color, Plane, Scene, cut, picture_height

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


def draw_heat(scene: Scene, plane: Plane, index: int, width_px: int, threshold: float) -> HeatLayer:
    """The heat-map over what `draw_slice` draws, and a line around the lung of `threshold` or more.

    Raises:
        ValueError: The scene has no heat-map.
    """
    if scene.heat is None:
        raise ValueError("The scene has no heat-map to draw.")
    # What was not analysed is hatched in the picture below and gets no colour here.
    heat = np.nan_to_num(cut(scene, scene.heat, plane, index).astype(np.float32), nan=0.0)
    lungs = cut(scene, scene.lungs, plane, index)
    size = (width_px, picture_height(scene, plane, width_px))
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


def lay_over(picture: RGB, layer: HeatLayer) -> RGB:
    """A picture as it looks under its layer."""
    colors = layer.palette[layer.levels].astype(np.float32)
    opacity = colors[:, :, 3:] / 255.0
    mixed: RGB = np.rint(picture * (1.0 - opacity) + colors[:, :, :3] * opacity).astype(np.uint8)
    return mixed


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
    import cv2

    contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smallest = (0.012 * area.shape[1]) ** 2
    shown = [contour for contour in contours if cv2.contourArea(contour) >= smallest]
    drawn = np.zeros(area.shape, dtype=np.uint8)
    cv2.polylines(drawn, shown, isClosed=True, color=255, thickness=1, lineType=cv2.LINE_AA)
    covered: UInt8[np.ndarray, "rows columns"] = np.rint(
        drawn / np.float32(255 / (LINE_LEVELS - 1))
    ).astype(np.uint8)
    return covered

"""A slice beside itself under its heat-map, as one picture with a caption."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from chestct.heat_pictures import HEAT_LEVELS, LINE_LEVELS, HeatLayer, lay_over

PANEL_PX: Final = 448
"""Side of each of the two pictures; slices are enlarged to it."""
_CAPTION_PX = 34
_WORDS_AT = (8, 9)


def picture_of_heat(
    values: Float32[np.ndarray, "height width"],
    heat: Float32[np.ndarray, "height width"],
    caption: str,
) -> Image.Image:
    """Draw the slice as the network saw it, and again with the heat in the colours of scans' maps.

    Args:
        values: Input of the network, 0 to 1.
        heat: As large, 0 to 1.
        caption: A line of words below.
    """
    size = (PANEL_PX, PANEL_PX)
    enlarged = cv2.resize(values, size, interpolation=cv2.INTER_CUBIC).clip(0.0, 1.0)
    slice_alone = np.rint(255 * enlarged).astype(np.uint8)[..., None].repeat(3, axis=2)
    smooth = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR).clip(0.0, 1.0)
    panels = np.hstack([slice_alone, lay_over(slice_alone, _layer(smooth))])
    picture = Image.new("RGB", (2 * PANEL_PX, PANEL_PX + _CAPTION_PX))
    picture.paste(Image.fromarray(panels), (0, 0))
    place = (_WORDS_AT[0], PANEL_PX + _WORDS_AT[1])
    ImageDraw.Draw(picture).text(place, caption, font=ImageFont.load_default(15), fill="white")
    return picture


def _layer(heat: Float32[np.ndarray, "rows columns"]) -> HeatLayer:
    """The heat of a whole slice; a slice network knows no lungs, so all of it counts as inside."""
    steps = np.rint(heat * (HEAT_LEVELS - 1)).astype(int)
    levels: UInt8[np.ndarray, "rows columns"] = ((HEAT_LEVELS + steps) * LINE_LEVELS).astype(
        np.uint8
    )
    return HeatLayer(levels, hottest=float(heat.max(initial=0.0)), highlighted=0.0)

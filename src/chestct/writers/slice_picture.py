"""A slice beside itself under the Grad-CAM of a slice classifier, as one PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from chestct.classifier import SliceClassifier
from chestct.datasets.pictures import fitted, read_picture
from chestct.explain.maps import slice_gradcam
from chestct.heat_pictures import HEAT_LEVELS, LINE_LEVELS, HeatLayer, heat_palette, lay_over
from chestct.lookup import look_up
from chestct.storage import write_whole_with

PANEL_PX: Final = 448
"""Side of each of the two pictures; slices are enlarged to it."""
_CAPTION_PX = 34
_WORDS_AT = (8, 9)


@dataclass(frozen=True)
class _ExplainedSlice:
    """What a slice classifier says of one slice.

    Attributes:
        probabilities: Label to probability.
        label: The class that the picture explains.
        warnings: What has to be known of the slice.
    """

    probabilities: dict[str, float]
    label: str
    warnings: tuple[str, ...]


def explain_picture(
    classifier: SliceClassifier, picture: Path, out: Path, label: str | None = None
) -> _ExplainedSlice:
    """Classify a slice and write a PNG: the slice, and beside it the slice under its Grad-CAM.

    Args:
        classifier: What judges.
        picture: A PNG, JPEG or TIFF file.
        out: PNG to write, aside first.
        label: Class to explain, or None for the likeliest.

    Raises:
        ReadError: The slice cannot be read.
        UnknownNameError: The classifier has no such class.
        WriteError: The picture cannot be written.
    """
    card, network = classifier.card, classifier.network
    places = {name: place for place, name in enumerate(card.labels)}
    if label is not None:
        look_up(places, label, kind="label")
    read = read_picture(picture, card.pictures.sixteen_bit)
    values = fitted(read.values, card.pictures)
    with torch.inference_mode():
        logits = network(torch.from_numpy(values)[None, None, None])[0].double()
    shares = torch.softmax(logits / card.temperature, dim=0).tolist()
    probabilities = dict(zip(card.labels, shares, strict=True))
    chosen = label or max(probabilities, key=lambda name: probabilities[name])
    heat = slice_gradcam(network, values, places[chosen])
    caption = f"Grad-CAM for {chosen} ({probabilities[chosen]:.1%}). Not for clinical use."
    drawn = _picture_of_heat(values, heat, caption)
    write_whole_with(out, lambda aside: drawn.save(aside, format="PNG"))
    warnings = []
    if read.is_marked:
        warnings.append(
            f"{picture.name} has coloured pixels ({read.coloured_share:.1%}), such as people draw "
            "where they saw something: the answer may be about the marks. Use an unmarked slice."
        )
    if not heat.any():
        warnings.append(f"Nothing in the last feature map spoke for {chosen}.")
    return _ExplainedSlice(probabilities, chosen, tuple(warnings))


def _picture_of_heat(
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
    hottest = float(heat.max(initial=0.0))
    return HeatLayer(levels, hottest=hottest, highlighted=0.0, palette=heat_palette())

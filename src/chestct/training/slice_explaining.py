"""One slice explained: its probabilities, and a picture of where a class was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from chestct.datasets.slice_store import fitted, read_picture
from chestct.explain.slice_gradcam import slice_gradcam
from chestct.lookup import look_up
from chestct.storage import write_whole_with
from chestct.training.slice_card import SliceClassifier
from chestct.training.slice_picture import picture_of_heat


@dataclass(frozen=True)
class ExplainedSlice:
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
) -> ExplainedSlice:
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
    read = read_picture(picture, card.form.sixteen_bit)
    values = fitted(read.values, card.form)
    with torch.inference_mode():
        logits = network(torch.from_numpy(values)[None, None, None])[0].double()
    shares = torch.softmax(logits / card.temperature, dim=0).tolist()
    probabilities = dict(zip(card.labels, shares, strict=True))
    chosen = label or max(probabilities, key=lambda name: probabilities[name])
    heat = slice_gradcam(network, values, places[chosen])
    caption = f"Grad-CAM for {chosen} ({probabilities[chosen]:.1%}). Not for clinical use."
    drawn = picture_of_heat(values, heat, caption)
    write_whole_with(out, lambda aside: drawn.save(aside, format="PNG"))
    warnings = []
    if read.is_marked:
        warnings.append(
            f"{picture.name} has coloured pixels ({read.coloured_share:.1%}), such as people draw "
            "where they saw something: the answer may be about the marks. Use an unmarked slice."
        )
    if not heat.any():
        warnings.append(f"Nothing in the last feature map spoke for {chosen}.")
    return ExplainedSlice(probabilities, chosen, tuple(warnings))

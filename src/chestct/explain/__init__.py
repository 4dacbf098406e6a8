"""Which voxels spoke for a class, and where they lie in the patient's own scan.

The table imports no PyTorch, so that listing what there is stays instant. Maps are always made
with PyTorch, whatever engine gave the probabilities.
"""

from __future__ import annotations

from typing import Final

from chestct.lookup import Entry, look_up

__all__ = ["AUTO", "EXPLANATIONS", "LAYERED", "split_choice"]

AUTO: Final = "auto"
"""Stands for the explanation that the classifier's card names."""

EXPLANATIONS: Final[dict[str, Entry]] = {
    "gradcam": Entry(
        "chestct.explain.maps:gradcam_map",
        "Grad-CAM: channels weighted by the mean gradient of the class's score",
    ),
    "gradcam++": Entry(
        "chestct.explain.maps:gradcam_plus_plus_map",
        "Grad-CAM++: each place of a channel gets its own share in the channel's weight",
    ),
    "layercam": Entry(
        "chestct.explain.maps:layercam_map",
        "LayerCAM: every activation weighted by its own gradient, sharper in early layers",
    ),
    "strongest_channel": Entry(
        "chestct.explain.maps:strongest_channel_map",
        "The RoI paper's script: the most active channel, cut at 0.45",
    ),
    "occlusion": Entry(
        "chestct.explain.maps:occlusion_map",
        "What the class's score loses when a patch is blanked: exact, and slow",
    ),
    "attention": Entry(
        "chestct.explain.maps:attention_map", "How much attention each position gets"
    ),
}
"""Name to what makes the map of a `Question`, called by `chestct.explain.run.explain`."""

LAYERED: Final = ("gradcam", "gradcam++", "layercam", "strongest_channel")
"""Those that look at one layer of the network, which can be chosen."""


def split_choice(choice: str) -> tuple[str, str | None]:
    """Take "METHOD" or "METHOD:LAYER" apart.

    Raises:
        UnknownNameError: There is no such method.
        ChestCTError: It is another package's and cannot be imported.
    """
    method, _, layer = choice.partition(":")
    look_up(EXPLANATIONS, method, kind="explanation")
    return method, layer or None

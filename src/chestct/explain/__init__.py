"""Which voxels spoke for a class, and where they lie in the patient's own scan.

The table imports no PyTorch, so that listing what there is stays instant. Maps are always made
with PyTorch, whatever engine gave the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from chestct.lookup import look_up

if TYPE_CHECKING:
    from chestct.explain.question import CellMap, Question

__all__ = ["AUTO", "EXPLANATIONS", "split_choice"]

AUTO: Final = "auto"
"""Stands for the explanation that the classifier's card names."""


def gradcam(question: Question) -> CellMap:
    """Grad-CAM: channels weighted by the mean gradient of the class's score."""
    from chestct.explain.maps import gradcam_map

    return gradcam_map(question)


def gradcam_plus_plus(question: Question) -> CellMap:
    """Grad-CAM++: each place of a channel gets its own share in the channel's weight."""
    from chestct.explain.maps import gradcam_plus_plus_map

    return gradcam_plus_plus_map(question)


def layercam(question: Question) -> CellMap:
    """LayerCAM: every activation weighted by its own gradient, sharper in early layers."""
    from chestct.explain.maps import layercam_map

    return layercam_map(question)


def strongest_channel(question: Question) -> CellMap:
    """The RoI paper's script: the most active channel, cut at 0.45; no gradient, no class."""
    from chestct.explain.maps import strongest_channel_map

    return strongest_channel_map(question)


def occlusion(question: Question) -> CellMap:
    """What the class's score loses when a patch is blanked: exact, and slow."""
    from chestct.explain.maps import occlusion_map

    return occlusion_map(question)


def attention(question: Question) -> CellMap:
    """How much attention each position gets; MASERes with the paper's attention only."""
    from chestct.explain.maps import attention_map

    return attention_map(question)


EXPLANATIONS: Final[dict[str, Callable[[Question], CellMap]]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "strongest_channel": strongest_channel,
    "occlusion": occlusion,
    "attention": attention,
}
"""Explanation name to what makes its map, called by `chestct.explain.run.explain`."""


def split_choice(choice: str) -> tuple[str, str | None]:
    """Take "METHOD" or "METHOD:LAYER" apart.

    Raises:
        UnknownNameError: There is no such method.
    """
    method, _, layer = choice.partition(":")
    look_up(EXPLANATIONS, method, kind="explanation")
    return method, layer or None

"""Pictures inside a page: a slice, the see-through heat-map over it, words and bytes of both."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from chestct.pictures import (
    RGB,
    HeatLayer,
    Plane,
    Scene,
    cut,
    draw_heat,
    draw_slice,
    position_words,
    tick_planes,
)
from chestct.writers.wording import percent

_JPEG_QUALITY: Final = 84


def _to_jpeg(picture: RGB) -> bytes:
    """JPEG with full colour resolution, as thin coloured outlines need it."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def to_png(picture: RGB) -> bytes:
    """PNG; of a noisy scan the default level makes a larger file in three times the time."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def _to_palette_png(
    levels: UInt8[np.ndarray, "rows columns"], palette: UInt8[np.ndarray, "levels 4"]
) -> bytes:
    """PNG of palette entries (red, green, blue, opacity): a see-through layer of few kilobytes."""
    picture = Image.fromarray(levels, mode="P")
    picture.putpalette(palette[:, :3].tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=palette[:, 3].tobytes())
    return stream.getvalue()


def _to_data_uri(encoded: bytes, kind: str = "jpeg") -> str:
    """A picture as the address of itself (RFC 2397), for pages that open without a network."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"


_STRIP_PX: Final = 480
_PLANE_PX: Final = 720

_SIDES: Final[dict[Plane, tuple[str, str, str, str]]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "H", "F"),
    "sagittal": ("A", "P", "H", "F"),
}
"""What lies left, right, up and down in a picture: right, left, anterior, posterior, head, feet."""


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture inside the page.

    Attributes:
        uri: The JPEG as a data URI.
        width: Columns in pixels.
        height: Rows in pixels.
        caption: Words under it.
        alt: Words instead of it.
        sides: Letters for what lies left, right, up and down.
        heat_uri: The heat-map over it as a data URI; empty without one.
        heat_alt: Words instead of the heat-map.
        is_hatched: Whether something in it was not analysed and is hatched.
    """

    uri: str
    width: int
    height: int
    caption: str
    alt: str
    sides: tuple[str, str, str, str]
    heat_uri: str = ""
    heat_alt: str = ""
    is_hatched: bool = False


@dataclass(frozen=True)
class PictureMaker:
    """What all pictures of a page have in common.

    Attributes:
        scene: What is drawn.
        threshold: Heat at which a line is drawn; of no meaning without a heat-map.
    """

    scene: Scene
    threshold: float = 0.5

    def slice_picture(self, index: int, remark: str = "") -> EmbeddedPicture:
        """An axial slice of a strip, its number, where it lies and a remark under it."""
        where = position_words(self.scene, "axial", index)
        return self._embed("axial", index, _STRIP_PX, f"Slice {index + 1}, {where}{remark}", {})

    def plane_picture(
        self, plane: Plane, index: int, crossing: Mapping[Plane, int] | None = None
    ) -> EmbeddedPicture:
        """A large picture of one plane, with ticks where the slices of other planes cross it."""
        caption = f"Axial, slice {index + 1}" if plane == "axial" else plane.capitalize()
        where = position_words(self.scene, plane, index)
        return self._embed(plane, index, _PLANE_PX, f"{caption}, {where}", crossing or {})

    def plain_picture(self, plane: Plane, index: int) -> EmbeddedPicture:
        """The same picture as `plane_picture` makes, with nothing over it."""
        bare = replace(self.scene, heat=None, analysed=(0, self.scene.volume.grid.shape[0] - 1))
        return PictureMaker(bare)._embed(plane, index, _PLANE_PX, "The same without heat-map", {})

    def _embed(
        self, plane: Plane, index: int, width: int, caption: str, crossing: Mapping[Plane, int]
    ) -> EmbeddedPicture:
        scene = self.scene
        picture = draw_slice(scene, plane, index, width)
        tick_planes(picture, scene, plane, crossing)
        plain = EmbeddedPicture(
            uri=_to_data_uri(_to_jpeg(picture)),
            width=width,
            height=picture.shape[0],
            caption=caption,
            alt=self._words(plane, index),
            sides=_SIDES[plane],
        )
        if scene.heat is None:
            return plain
        layer = draw_heat(scene, plane, index, width, self.threshold)
        is_hatched = bool(np.isnan(cut(scene, scene.heat, plane, index)).any())
        return replace(
            plain,
            alt=plain.alt + ("; what was not analysed is hatched" if is_hatched else ""),
            heat_uri=_to_data_uri(_to_palette_png(layer.levels, layer.palette), "png"),
            heat_alt=_heat_words(layer, self.threshold, is_disease=scene.is_disease),
            is_hatched=is_hatched,
        )

    def _words(self, plane: Plane, index: int) -> str:
        total = self.scene.volume.grid.shape[0]
        name = f"Axial slice {index + 1} of {total}"
        name = name if plane == "axial" else f"{plane.capitalize()} slice"
        outlined = "lungs outlined" if self.scene.lungs.any() else "no lungs found"
        is_marked = plane != "axial" and self.scene.is_cut and self.scene.heat is None
        marked = "; lines mark the first and last analysed slice" if is_marked else ""
        return f"{name}, {outlined}{marked}"


def _heat_words(layer: HeatLayer, threshold: float, *, is_disease: bool) -> str:
    if layer.hottest == 0.0:
        return "Heat-map over it: empty."
    if not is_disease:
        return f"Heat-map over it, for no finding: {layer.hottest:.2f} at most."
    return (
        f"Heat-map over it: {layer.hottest:.2f} at most, {threshold:g} or more in "
        f"{percent(layer.highlighted)} of the lung shown."
    )

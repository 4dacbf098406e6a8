"""`preview.png`: one picture that says what was found in which scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chestct.analysis import ScanAnalysis
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import (
    RGB,
    Color,
    Scene,
    draw_slice,
    fullest_slice,
    picture_height,
    scene_of_input,
    scene_of_scan,
    spread_slices,
)
from chestct.preprocess.prepared import PreparedScan
from chestct.writers.encoding import to_png
from chestct.writers.files import write_whole
from chestct.writers.wording import percent, verdict_of

FILE_NAME: Final = "preview.png"

_PAGE: Final[Color] = (15, 19, 23)
_INK: Final[Color] = (231, 235, 239)
_MUTED: Final[Color] = (152, 163, 174)
_TILE_PX: Final = 330
_GAP_PX: Final = 12
_EDGE_PX: Final = 36
_HEAD_PX: Final = 92
_FOOT_PX: Final = 66
_COLUMNS: Final = 4


@dataclass(frozen=True)
class Words:
    """The text around a montage.

    Attributes:
        title: Large, at the top left.
        scan: At the top right.
        remark: Small, at the bottom left.
    """

    title: str
    scan: str
    remark: str


def write_preview(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write `preview.png`: the verdict, eight axial slices, a coronal and a sagittal one.

    Raises:
        WriteError: It cannot be written.
    """
    result = analysis.result
    share = result.probabilities.get(result.decision)
    title = verdict_of(result.decision)
    first, last = analysis.analysed_slices
    scene = scene_of_scan(analysis)
    total = scene.volume.grid.shape[0]
    seen = f"Slices {first + 1} to {last + 1} of {total}" if scene.is_cut else f"All {total} slices"
    words = Words(
        title=title if share is None else f"{title}  {percent(share)}",
        scan=result.scan,
        remark=f"{seen} analysed. {NOT_FOR_CLINICAL_USE}",
    )
    return write_whole(folder / FILE_NAME, to_png(draw_montage(scene, words)))


def write_input_preview(prepared: PreparedScan, scan: str, folder: Path) -> Path:
    """Write `preview.png` of a network input instead of a scan.

    Raises:
        WriteError: It cannot be written.
    """
    # Pillow's own font has no multiplication sign.
    shape = " x ".join(str(size) for size in prepared.input.shape[1:])
    words = Words(
        title=f"Network input  {shape}",
        scan=scan,
        remark=f"Recipe {prepared.recipe.name}. {NOT_FOR_CLINICAL_USE}",
    )
    return write_whole(folder / FILE_NAME, to_png(draw_montage(scene_of_input(prepared), words)))


def draw_montage(scene: Scene, words: Words) -> RGB:
    """Axial slices in two rows, a coronal and a sagittal slice beside them, words around them."""
    tiles = _axial_tiles(scene)
    tile_height = tiles[0].shape[0]
    tiles_height = 2 * tile_height + _GAP_PX
    tiles_width = _COLUMNS * _TILE_PX + (_COLUMNS - 1) * _GAP_PX
    planes = _plane_tiles(scene, tiles_height)
    width = 2 * _EDGE_PX + tiles_width + _GAP_PX + max(plane.shape[1] for plane in planes)
    canvas = Image.new("RGB", (width, _HEAD_PX + tiles_height + _FOOT_PX), _PAGE)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _COLUMNS)
        left = _EDGE_PX + column * (_TILE_PX + _GAP_PX)
        canvas.paste(Image.fromarray(tile), (left, _HEAD_PX + row * (tile_height + _GAP_PX)))
    top = _HEAD_PX
    for plane in planes:
        canvas.paste(Image.fromarray(plane), (_EDGE_PX + tiles_width + _GAP_PX, top))
        top += plane.shape[0] + _GAP_PX
    _write_words(canvas, words)
    return np.asarray(canvas, dtype=np.uint8)


def _axial_tiles(scene: Scene) -> list[RGB]:
    indices = spread_slices(*scene.shown_slices, 2 * _COLUMNS)
    return [draw_slice(scene, "axial", index, _TILE_PX) for index in indices]


def _plane_tiles(scene: Scene, height_px: int) -> list[RGB]:
    """Coronal above sagittal, both of the one width at which they fill the height together."""
    heights = sum(picture_height(scene, plane, 1000) for plane in ("coronal", "sagittal"))
    width_px = max(1, round((height_px - _GAP_PX) * 1000 / heights))
    return [
        draw_slice(scene, "coronal", fullest_slice(scene.lungs, "coronal"), width_px),
        draw_slice(scene, "sagittal", fullest_slice(scene.lungs, "sagittal"), width_px),
    ]


def _write_words(canvas: Image.Image, words: Words) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    large, small = ImageFont.load_default(34), ImageFont.load_default(20)
    draw.text((_EDGE_PX, _HEAD_PX / 2), words.title, fill=_INK, font=large, anchor="lm")
    right = (width - _EDGE_PX, _HEAD_PX / 2)
    draw.text(right, words.scan, fill=_MUTED, font=small, anchor="rm")
    foot = height - _FOOT_PX / 2
    draw.text((_EDGE_PX, foot), words.remark, fill=_MUTED, font=small, anchor="lm")
    draw.text((width - _EDGE_PX, foot), "chestct", fill=_MUTED, font=small, anchor="rm")

"""One picture that says what was found: in a scan, in what a network would see of it, in a slice.

`preview.png` is that of a classified scan and, with the network's input, the lungs and how they
were made beside it, of a prepared one. That of a slice shows it beside itself under its Grad-CAM.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from chestct.analysis import ScanAnalysis
from chestct.errors import WriteError
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.pictures import (
    HEAT_LEVELS,
    LINE_LEVELS,
    RGB,
    Color,
    HeatLayer,
    Plane,
    Scene,
    draw_heat,
    draw_slice,
    fullest_slice,
    heat_color,
    heat_palette,
    spread_slices,
)
from chestct.preprocess.prepare import PreparedScan
from chestct.storage import make_folder, write_whole, write_whole_with
from chestct.volume import Grid
from chestct.writers import WriteOptions
from chestct.writers.evidence import evidence_peaks, label_words, strip_slices, telling_slices
from chestct.writers.folders import OWNER_FILE
from chestct.writers.nifti import write_nifti
from chestct.writers.pages import to_png
from chestct.writers.wording import percent

if TYPE_CHECKING:
    from chestct.classifier import SliceClassifier

_FILE_NAME: Final = "preview.png"

_PAGE: Final[Color] = (15, 19, 23)
_INK: Final[Color] = (231, 235, 239)
_MUTED: Final[Color] = (152, 163, 174)
_TILE_PX: Final = 330
_GAP_PX: Final = 12
_EDGE_PX: Final = 36
_HEAD_PX: Final = 92
_FOOT_PX: Final = 66
_COLUMNS: Final = 4
_NUM_TILES: Final = 2 * _COLUMNS
_RAMP_PX: Final = 160
_LUNG_GRAY: Final = 43
_PLANES: Final[tuple[Plane, ...]] = ("coronal", "sagittal")


@dataclass(frozen=True)
class _Words:
    """The text around a montage.

    Attributes:
        title: Large, at the top left.
        scan: At the top right.
        remark: Small, at the bottom left.
        heat: Before the legend of the heat-map; empty without one.
        is_disease: Whether the heat-map speaks for a disease.
    """

    title: str
    scan: str
    remark: str
    heat: str = ""
    is_disease: bool = True


@dataclass(frozen=True)
class _Shown:
    """The slices of a montage.

    Attributes:
        axial: Axial slices, as many as there are tiles or fewer.
        planes: Slice of each of the other planes.
        threshold: Heat at which a line is drawn; of no meaning without a heat-map.
    """

    axial: list[int]
    planes: dict[Plane, int]
    threshold: float = 0.5


def write_preview(analysis: ScanAnalysis, folder: Path, _: WriteOptions | None = None) -> Path:
    """Write `preview.png`, see `draw_preview`.

    Raises:
        WriteError: It cannot be written.
    """
    return write_whole(folder / _FILE_NAME, to_png(draw_preview(analysis)))


def draw_preview(analysis: ScanAnalysis) -> RGB:
    """The verdict, eight axial slices, a coronal and a sagittal one.

    With an explanation the slices are those that show most of it, under its heat-map.
    """
    result, explained = analysis.result, analysis.explanation
    share = result.probabilities.get(result.decision)
    title = result.verdict
    first, last = analysis.analysed_slices
    scene = Scene.of_scan(analysis)
    total = scene.volume.grid.shape[0]
    seen = f"Slices {first + 1} to {last + 1} of {total}" if scene.is_cut else f"All {total} slices"
    shown, heat = _spread(scene), ""
    done = "analysed" if result.is_suitable else "prepared"
    doubt = f"{result.doubt.capitalize()}. " if result.doubt else ""
    if explained is not None:
        peaks = evidence_peaks(explained, analysis.prepared)
        axial = strip_slices(scene.shown_slices, peaks, _NUM_TILES)
        planes = telling_slices(analysis, scene)
        shown = _Shown(axial, planes, explained.summary.threshold)
        heat = f"Heat for {label_words(explained)}" if label_words(explained) else "Heat"
    words = _Words(
        title=title if share is None else f"{title}  {percent(share)}",
        scan=result.scan,
        remark=f"{doubt}{seen} {done}. {NOT_FOR_CLINICAL_USE}",
        heat=heat,
        is_disease=scene.is_disease,
    )
    return _draw_montage(scene, words, shown)


def _draw_montage(scene: Scene, words: _Words, shown: _Shown) -> RGB:
    """Axial slices in two rows, a coronal and a sagittal slice beside them, words around them."""
    tiles = [_tile(scene, "axial", index, _TILE_PX, shown.threshold) for index in shown.axial]
    tile_height = tiles[0].shape[0]
    tiles_height = 2 * tile_height + _GAP_PX
    tiles_width = _COLUMNS * _TILE_PX + (_COLUMNS - 1) * _GAP_PX
    planes = _plane_tiles(scene, shown, (tiles_height, tiles_width))
    width = 2 * _EDGE_PX + tiles_width + _GAP_PX + max(plane.shape[1] for plane in planes)
    canvas = Image.new("RGB", (width, _HEAD_PX + tiles_height + _FOOT_PX), _PAGE)
    for number, (tile, index) in enumerate(zip(tiles, shown.axial, strict=True)):
        row, column = divmod(number, _COLUMNS)
        left = _EDGE_PX + column * (_TILE_PX + _GAP_PX)
        top = _HEAD_PX + row * (tile_height + _GAP_PX)
        canvas.paste(Image.fromarray(tile), (left, top))
        _write_number(canvas, index + 1, (left, top))
    top = _HEAD_PX
    for plane in planes:
        canvas.paste(Image.fromarray(plane), (_EDGE_PX + tiles_width + _GAP_PX, top))
        top += plane.shape[0] + _GAP_PX
    _write_words(canvas, words)
    return np.asarray(canvas, dtype=np.uint8)


def _spread(scene: Scene) -> _Shown:
    axial = spread_slices(*scene.shown_slices, _NUM_TILES)
    return _Shown(axial, {plane: fullest_slice(scene.lungs, plane) for plane in _PLANES})


def _tile(scene: Scene, plane: Plane, index: int, width_px: int, threshold: float) -> RGB:
    picture = draw_slice(scene, plane, index, width_px)
    if scene.heat is None:
        return picture
    return draw_heat(scene, plane, index, width_px, threshold).over(picture)


def _plane_tiles(scene: Scene, shown: _Shown, size_px: tuple[int, int]) -> list[RGB]:
    """Coronal above sagittal, both of the one width at which they fill height or width together."""
    height_px, most_wide_px = size_px
    heights = sum(scene.picture_height(plane, 1000) for plane in _PLANES)
    width_px = max(1, min(most_wide_px, round((height_px - _GAP_PX) * 1000 / heights)))
    return [
        _tile(scene, plane, shown.planes[plane], width_px, shown.threshold) for plane in _PLANES
    ]


def _write_number(canvas: Image.Image, number: int, corner: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(16)
    place = (corner[0] + 8, corner[1] + 6)
    draw.rectangle(draw.textbbox(place, str(number), font=font), fill=_PAGE)
    draw.text(place, str(number), fill=_INK, font=font)


def _write_words(canvas: Image.Image, words: _Words) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    large, small = ImageFont.load_default(34), ImageFont.load_default(20)
    draw.text((_EDGE_PX, _HEAD_PX / 2), words.title, fill=_INK, font=large, anchor="lm")
    right = width - _EDGE_PX
    draw.text((right, _HEAD_PX / 2), words.scan, fill=_MUTED, font=small, anchor="rm")
    if words.heat:
        _write_legend(canvas, words, round(right - draw.textlength(words.scan, small) - 48))
    foot = height - _FOOT_PX / 2
    most_px = right - draw.textlength("chestct", small) - 2 * _EDGE_PX
    remark = _fitting_font(draw, words.remark, most_px)
    draw.text((_EDGE_PX, foot), words.remark, fill=_MUTED, font=remark, anchor="lm")
    draw.text((right, foot), "chestct", fill=_MUTED, font=small, anchor="rm")


def _fitting_font(
    draw: ImageDraw.ImageDraw, text: str, most_px: float
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font of 12 to 20 pixels in which a line is no longer than that."""
    fonts = [ImageFont.load_default(size) for size in range(20, 11, -1)]
    return next((font for font in fonts if draw.textlength(text, font) <= most_px), fonts[-1])


def _write_legend(canvas: Image.Image, words: _Words, right: int) -> None:
    """The words, 0, a ramp of colours as they look over lung, and 1, ending at `right`."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(20)
    middle = _HEAD_PX // 2
    draw.text((right, middle), "1", fill=_MUTED, font=font, anchor="rm")
    left = right - 22 - _RAMP_PX
    for column in range(_RAMP_PX):
        red, green, blue, opacity = heat_color(column / (_RAMP_PX - 1), is_disease=words.is_disease)
        mixed = [round(_LUNG_GRAY * (1 - opacity) + c * opacity) for c in (red, green, blue)]
        top, bottom = (left + column, middle - 8), (left + column, middle + 8)
        draw.line([top, bottom], fill=(mixed[0], mixed[1], mixed[2]))
    draw.text((left - 10, middle), f"{words.heat}   0", fill=_MUTED, font=font, anchor="rm")


def write_prepared(prepared: PreparedScan, scan: str, folder: Path) -> list[Path]:
    """Write a prepared scan for looking at and for use elsewhere.

    Files: `input.nii.gz` and `lungs.nii.gz` (network input and lung mask on the input's grid),
    `scan_lungs.nii.gz` (lung mask on the scan's own grid), `preview.png` and `prepared.json`.

    Args:
        prepared: What to write.
        scan: Name of the scan, for the preview and the record.
        folder: Where to; made where it is missing.

    Raises:
        WriteError: A file cannot be written, or the folder holds a classified scan's results,
            some of which have the same names.
    """
    if (folder / OWNER_FILE).exists():
        msg = f"{folder} holds results of 'chestct classify'. Choose another --out."
        raise WriteError(msg)
    make_folder(folder)
    record = json.dumps(_prepared_record(prepared, scan), indent=2)
    return [
        write_nifti(folder / "input.nii.gz", prepared.input, prepared.grid),
        write_nifti(folder / "lungs.nii.gz", prepared.lungs, prepared.grid),
        write_nifti(folder / "scan_lungs.nii.gz", prepared.scan_lungs.voxels, prepared.scan_grid),
        _write_input_preview(prepared, scan, folder),
        write_whole(folder / "prepared.json", f"{record}\n".encode()),
    ]


def _write_input_preview(prepared: PreparedScan, scan: str, folder: Path) -> Path:
    """Write `preview.png` of a network input instead of a scan."""
    # Pillow's own font has no multiplication sign.
    shape = " x ".join(str(size) for size in prepared.input.shape[1:])
    words = _Words(
        title=f"Network input  {shape}",
        scan=scan,
        remark=f"Recipe {prepared.recipe.name}. {NOT_FOR_CLINICAL_USE}",
    )
    scene = Scene.of_input(prepared)
    return write_whole(folder / _FILE_NAME, to_png(_draw_montage(scene, words, _spread(scene))))


def _prepared_record(prepared: PreparedScan, scan: str) -> dict[str, object]:
    """The contents of `prepared.json`, described in docs/result_schema.md."""
    first, last = prepared.salient
    return {
        "schema_version": "1.0",
        "scan": scan,
        "recipe": asdict(prepared.recipe),
        "input_grid": _grid_record(prepared.grid),
        "scan_grid": _grid_record(prepared.scan_grid),
        "salient_slices": {"first": first, "last": last, "total": len(prepared.lung_area)},
        "lung_area": [round(float(share), 5) for share in prepared.lung_area],
        "lung_volume_l": prepared.lung_volume_l,
        "warnings": list(prepared.warnings),
        "unsuitable_reasons": list(prepared.unsuitable_reasons),
    }


def _grid_record(grid: Grid) -> dict[str, object]:
    return {
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "direction": [list(axis) for axis in grid.direction],
    }


_PANEL_PX: Final = 448
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
    from chestct.datasets.pictures import read_slice
    from chestct.explain.maps import slice_gradcam

    card = classifier.card
    places = {name: place for place, name in enumerate(card.labels)}
    if label is not None:
        look_up(places, label, kind="label")
    facts, values = read_slice(picture, card.pictures)
    probabilities = _probabilities(classifier, values)
    chosen = label or max(probabilities, key=lambda name: probabilities[name])
    heat = slice_gradcam(classifier.network, values, places[chosen])
    caption = f"Grad-CAM for {chosen} ({probabilities[chosen]:.1%}). Not for clinical use."
    drawn = _picture_of_heat(values, heat, caption)
    write_whole_with(out, lambda aside: drawn.save(aside, format="PNG"))
    warnings = list(facts.remarks(card.pictures.size))
    if not heat.any():
        warnings.append(f"nothing in the last feature map spoke for {chosen}")
    return _ExplainedSlice(probabilities, chosen, tuple(warnings))


def _probabilities(
    classifier: SliceClassifier, values: Float32[np.ndarray, "height width"]
) -> dict[str, float]:
    """Label to probability of one slice."""
    import torch

    with torch.inference_mode():
        logits = classifier.network(torch.from_numpy(values)[None, None, None])[0].double()
    shares = torch.softmax(logits / classifier.card.temperature, dim=0).tolist()
    return dict(zip(classifier.card.labels, shares, strict=True))


def _picture_of_heat(
    values: Float32[np.ndarray, "height width"],
    heat: Float32[np.ndarray, "height width"],
    caption: str,
) -> Image.Image:
    """Draw a slice as the network saw it, and again with the heat in the colours of scans' maps."""
    import cv2

    size = (_PANEL_PX, _PANEL_PX)
    enlarged = cv2.resize(values, size, interpolation=cv2.INTER_CUBIC).clip(0.0, 1.0)
    slice_alone = np.rint(255 * enlarged).astype(np.uint8)[..., None].repeat(3, axis=2)
    smooth = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR).clip(0.0, 1.0)
    panels = np.hstack([slice_alone, _layer(smooth).over(slice_alone)])
    picture = Image.new("RGB", (2 * _PANEL_PX, _PANEL_PX + _CAPTION_PX))
    picture.paste(Image.fromarray(panels), (0, 0))
    place = (_WORDS_AT[0], _PANEL_PX + _WORDS_AT[1])
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

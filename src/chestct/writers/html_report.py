"""`report.html`: one file that opens offline, needs no scripts and prints well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float64

from chestct.analysis import SCAN_FACTS, ScanAnalysis
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import (
    Plane,
    Scene,
    analysed_rows,
    draw_slice,
    fullest_slice,
    picture_height,
    scene_of_scan,
    spread_slices,
)
from chestct.result import ScanResult
from chestct.writers.encoding import to_data_uri, to_jpeg
from chestct.writers.files import write_whole
from chestct.writers.wording import PROVENANCE_NAMES, count, percent, verdict_of

if TYPE_CHECKING:
    from jinja2 import Environment

FILE_NAME: Final = "report.html"
_NUM_AXIAL: Final = 8
_AXIAL_PX: Final = 480
_PLANE_PX: Final = 720


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture inside the page.

    Attributes:
        uri: The JPEG as a data URI.
        width: Columns in pixels.
        height: Rows in pixels.
        caption: Words under it.
        alt: Words instead of it.
    """

    uri: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class AreaCurve:
    """The lung-area curve along the body axis, head up, in per cent of the panel's edges.

    Attributes:
        path: SVG path of the filled area.
        top: Upper edge of the analysed slices.
        bottom: Their lower edge.
        ticks: Horizontal positions and their labels.
        first: Number of the lowest analysed slice, counted from 1 at the feet.
        last: Number of the highest one.
        is_whole: Whether every slice was analysed.
        alt: The curve in words.
    """

    path: str
    top: float
    bottom: float
    ticks: tuple[tuple[float, str], ...]
    first: int
    last: int
    is_whole: bool
    alt: str


def write_html(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write `report.html`.

    Raises:
        WriteError: It cannot be written.
    """
    return write_whole(folder / FILE_NAME, render_report(analysis).encode())


def render_report(analysis: ScanAnalysis) -> str:
    """The report as one HTML page."""
    result = analysis.result
    scene = scene_of_scan(analysis)
    first, last = analysis.analysed_slices
    return (
        load_pages()
        .get_template("report.html.j2")
        .render(
            result=result,
            short_notice=NOT_FOR_CLINICAL_USE,
            verdict=verdict_of(result.decision),
            bars=_bars(result),
            range_words=_range_words(result, scene),
            axial=_axial_pictures(scene),
            planes=[_plane_picture(scene, "sagittal"), _plane_picture(scene, "coronal")],
            curve=area_curve(analysis.prepared.lung_area, (first, last), scene),
            figures=_figures(analysis),
            facts=_named(result.scan_facts, SCAN_FACTS),
            timings=[
                (stage, f"{seconds:.2f} s") for stage, seconds in asdict(result.timings_s).items()
            ],
            provenance=_named(asdict(result.provenance), PROVENANCE_NAMES),
        )
    )


@cache
def load_pages() -> Environment:
    """The package's page templates; everything put into them is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("chestct.writers", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def area_curve(
    lung_area: Float64[np.ndarray, " slices"], analysed: tuple[int, int], scene: Scene
) -> AreaCurve:
    """Lay out the lung share of every slice beside a head-up picture of the same height."""
    total = len(lung_area)
    largest = float(lung_area.max(initial=0.0))
    step = 0.1 if largest <= 0.3 else 0.2
    end = max(step, np.ceil(largest / step) * step)
    rows = (total - 0.5 - np.arange(total)) / total * 100
    points = " ".join(f"L{x:.2f} {y:.2f}" for x, y in zip(lung_area / end * 100, rows, strict=True))
    top, bottom = analysed_rows(scene, 10_000)
    first, last = analysed
    return AreaCurve(
        path=f"M0 100 {points} L0 0 Z",
        top=top / 100,
        bottom=bottom / 100,
        ticks=tuple(
            (float(share / end * 100), f"{share * 100:.0f} %")
            for share in np.arange(1, round(end / step) + 1) * step
        ),
        first=first + 1,
        last=last + 1,
        is_whole=last - first + 1 == total,
        alt=(
            f"Lung share of each of {count(total, 'slice')}: largest {largest * 100:.0f} % "
            f"in slice {int(lung_area.argmax()) + 1}; "
            f"slices {first + 1} to {last + 1} were analysed."
        ),
    )


def _bars(result: ScanResult) -> list[dict[str, object]]:
    return [
        {
            "words": verdict_of(label),
            "percent": percent(share),
            "width": f"{share * 100:.2f}",
            "is_decision": label == result.decision,
        }
        for label, share in result.probabilities.items()
    ]


def _axial_pictures(scene: Scene) -> list[EmbeddedPicture]:
    total = scene.volume.grid.shape[0]
    return [
        _embed(scene, "axial", index, f"Slice {index + 1}", f"Axial slice {index + 1} of {total}")
        for index in spread_slices(*scene.shown_slices, _NUM_AXIAL)
    ]


def _plane_picture(scene: Scene, plane: Plane) -> EmbeddedPicture:
    index = fullest_slice(scene.lungs, plane)
    return _embed(scene, plane, index, plane.capitalize(), f"{plane.capitalize()} slice")


def _embed(scene: Scene, plane: Plane, index: int, caption: str, alt: str) -> EmbeddedPicture:
    width = _AXIAL_PX if plane == "axial" else _PLANE_PX
    outlined = ", lungs outlined" if scene.lungs.any() else ", no lungs found"
    is_marked = plane != "axial" and scene.is_cut
    marked = "; lines mark the first and last analysed slice" if is_marked else ""
    return EmbeddedPicture(
        uri=to_data_uri(to_jpeg(draw_slice(scene, plane, index, width))),
        width=width,
        height=picture_height(scene, plane, width),
        caption=caption,
        alt=f"{alt}{outlined}{marked}",
    )


def _range_words(result: ScanResult, scene: Scene) -> str:
    seen = "saw" if result.is_suitable else "would have seen"
    if scene.is_cut:
        return f"Orange lines bound the slices the network {seen}."
    return f"The network {seen} every slice."


def _figures(analysis: ScanAnalysis) -> list[tuple[str, str, str]]:
    """The four numbers at the top: name, value, unit or remark."""
    result = analysis.result
    first, last = analysis.analysed_slices
    total = len(analysis.prepared.lung_area)
    return [
        ("Lung volume", f"{result.lung_volume_l:.2f}", "litres"),
        (
            "Slices analysed" if result.is_suitable else "Slices prepared",
            f"{first + 1}–{last + 1}",
            f"of {total}",
        ),
        ("Time", f"{result.timings_s.total:.1f}", "seconds"),
        ("Warnings", str(len(result.warnings)), "listed below" if result.warnings else "none"),
    ]


def _named(values: Mapping[str, object], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """The values that have a name, in the order of the names, under their names."""
    return [(names[key], str(values[key])) for key in names if values.get(key) is not None]

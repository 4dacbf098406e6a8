"""The report about a scan and an index of many: pages that open offline and need no scripts.

Pictures stand inside them: a slice, the see-through heat-map over it, words and bytes of both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

from chestct import __version__
from chestct.analysis import SCAN_FACTS, ScanAnalysis
from chestct.explain.explanation import PeakSlice, ScanExplanation, share_outside
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import (
    AXES,
    RGB,
    HeatLayer,
    Plane,
    Scene,
    draw_heat,
    draw_slice,
    fullest_slice,
    heat_color,
    spread_slices,
)
from chestct.report import as_csv, load_pages
from chestct.result import ScanResult
from chestct.storage import write_whole, write_whole_with
from chestct.writers import WriteOptions
from chestct.writers.evidence import (
    evidence_by_slice,
    evidence_peaks,
    label_words,
    strip_slices,
    telling_slices,
)
from chestct.writers.wording import (
    CLASSLESS_METHODS,
    bars_of,
    count,
    eyebrow_words,
    meaning_words,
    method_words,
    named,
    percent,
    provenance_words,
)

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
class _EmbeddedPicture:
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
class _PictureMaker:
    """What all pictures of a page have in common.

    Attributes:
        scene: What is drawn.
        threshold: Heat at which a line is drawn; of no meaning without a heat-map.
    """

    scene: Scene
    threshold: float = 0.5

    def slice_picture(self, index: int, remark: str = "") -> _EmbeddedPicture:
        """An axial slice of a strip, its number, where it lies and a remark under it."""
        where = _position_words(self.scene, "axial", index)
        return self._embed("axial", index, _STRIP_PX, f"Slice {index + 1}, {where}{remark}", {})

    def plane_picture(
        self, plane: Plane, index: int, crossing: Mapping[Plane, int] | None = None
    ) -> _EmbeddedPicture:
        """A large picture of one plane, with ticks where the slices of other planes cross it."""
        caption = f"Axial, slice {index + 1}" if plane == "axial" else plane.capitalize()
        where = _position_words(self.scene, plane, index)
        return self._embed(plane, index, _PLANE_PX, f"{caption}, {where}", crossing or {})

    def plain_picture(self, plane: Plane, index: int) -> _EmbeddedPicture:
        """The same picture as `plane_picture` makes, with nothing over it."""
        bare = replace(self.scene, heat=None, analysed=(0, self.scene.volume.grid.shape[0] - 1))
        return _PictureMaker(bare)._embed(plane, index, _PLANE_PX, "The same without heat-map", {})

    def _embed(
        self, plane: Plane, index: int, width: int, caption: str, crossing: Mapping[Plane, int]
    ) -> _EmbeddedPicture:
        scene = self.scene
        picture = draw_slice(scene, plane, index, width)
        _tick_planes(picture, scene, plane, crossing)
        plain = _EmbeddedPicture(
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
        is_hatched = bool(np.isnan(scene.cut(scene.heat, plane, index)).any())
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


_REPORT_FILE: Final = "report.html"
_PREVIEW_FILE: Final = "preview.png"


def write_html(analysis: ScanAnalysis, folder: Path, _: WriteOptions | None = None) -> Path:
    """Write `report.html`.

    Raises:
        WriteError: It cannot be written.
    """
    return write_whole(folder / _REPORT_FILE, _render_report(analysis).encode())


def _render_report(analysis: ScanAnalysis) -> str:
    """The report as one HTML page."""
    result, explained = analysis.result, analysis.explanation
    scene = Scene.of_scan(analysis)
    return (
        load_pages("chestct.writers")
        .get_template("report.html.j2")
        .render(
            result=result,
            percent=percent,
            short_notice=NOT_FOR_CLINICAL_USE,
            verdict=result.verdict,
            eyebrow=eyebrow_words(result),
            bars=bars_of(result),
            meaning=meaning_words(result),
            range_words=_range_words(result, scene),
            curve=_area_curve(analysis.prepared.lung_area, analysis.analysed_slices, scene),
            figures=_figures(analysis),
            facts=named(result.scan_facts, SCAN_FACTS),
            quality=_quality(analysis, scene),
            timings=[
                (stage, f"{seconds:.2f} s") for stage, seconds in asdict(result.timings_s).items()
            ],
            provenance=_provenance(result, explained),
            **_pictures(analysis, scene),
        )
    )


def _pictures(analysis: ScanAnalysis, scene: Scene) -> dict[str, object]:
    """The pictures with their heat-map where there is one, and plain ones otherwise."""
    explained = analysis.explanation
    if explained is None:
        maker = _PictureMaker(scene)
        axial = [maker.slice_picture(i) for i in spread_slices(*scene.shown_slices, _NUM_STRIP)]
        planes: list[_EmbeddedPicture] = [
            maker.plane_picture("sagittal", fullest_slice(scene.lungs, "sagittal")),
            maker.plane_picture("coronal", fullest_slice(scene.lungs, "coronal")),
        ]
        return {"evidence": None, "axial": axial, "planes": planes}
    maker = _PictureMaker(scene, explained.summary.threshold)
    evidence = _evidence_section(analysis, explained, maker)
    return {"evidence": evidence, "axial": evidence["strip"], "planes": evidence["planes"]}


def _range_words(result: ScanResult, scene: Scene) -> str:
    seen = "saw" if result.is_suitable else "would have seen"
    if scene.is_cut:
        return f"Orange lines bound the slices the network {seen}."
    return f"The network {seen} every slice."


def _figures(analysis: ScanAnalysis) -> list[tuple[str, str, str]]:
    """The four numbers at the top: name, value, unit or remark."""
    result, explained = analysis.result, analysis.explanation
    first, last = analysis.analysed_slices
    figures = [
        ("Lung volume", f"{result.lung_volume_l:.2f}", "litres"),
        (
            "Slices analysed" if result.is_suitable else "Slices prepared",
            f"{first + 1}–{last + 1}",
            f"of {len(analysis.prepared.lung_area)}",
        ),
        ("Time", f"{result.timings_s.total:.1f}", "seconds"),
        ("Warnings", str(len(result.warnings)), "listed below" if result.warnings else "none"),
    ]
    if explained is not None and explained.speaks_for_disease:
        share = percent(explained.summary.shares.get("lungs", 0.0))
        figures[2] = ("Highlighted", share, "of the lungs")
    return figures


def _quality(analysis: ScanAnalysis, scene: Scene) -> list[tuple[str, str]]:
    """Facts that say how far the answer's input can be trusted."""
    prepared = analysis.prepared
    total = len(prepared.lung_area)
    with_lung = np.flatnonzero(prepared.lung_area)
    lung_slices, ends = "none", "no lungs found"
    if with_lung.size:
        low, high = int(with_lung[0]), int(with_lung[-1])
        lung_slices = f"{low + 1}–{high + 1} of {total}"
        cut_ends = [
            end for end, is_cut in (("feet", low == 0), ("head", high == total - 1)) if is_cut
        ]
        ends = f"reach the end of the scan towards the {' and the '.join(cut_ends)}"
        ends = ends if cut_ends else "wholly inside the scan"
    lungs, voxels = prepared.lungs, prepared.input[0].size
    return [
        ("Slices with lung", lung_slices),
        ("Lungs along the body", ends),
        ("Network input, voxels", " × ".join(str(size) for size in prepared.input.shape[1:])),
        ("Its voxel spacing, mm", " × ".join(f"{s:.3g}" for s in prepared.grid.spacing_mm)),
        ("Lung in the input", percent(float(np.count_nonzero(lungs)) / voxels)),
        ("Display window", " to ".join(f"{v:.0f}" for v in scene.shown_range)),
    ]


def _provenance(result: ScanResult, explained: ScanExplanation | None) -> list[tuple[str, str]]:
    said = provenance_words(asdict(result.provenance))
    if explained is None:
        return said
    explanation, label = explained.explanation, label_words(explained)
    words = method_words(explanation.method, explanation.layer)
    words += f", for “{label}”" if label else ""
    return [*said, ("Heat-map", f"{words}; 1 stands for {explanation.scale:.4g}")]


INDEX_FILE: Final = "index.html"


@dataclass(frozen=True)
class IndexRow:
    """What the page says of one scan.

    Attributes:
        scan: What it is called.
        answer: The answer in words.
        share: Its probability in words; empty where it has none.
        doubt: Why it is not certain; empty where it is.
        folder: Folder of its report and preview, where it has them, relative to the page.
        truth: The label that was simulated, in words; empty for a scan of a patient.
        agrees: Whether the answer is that label.
    """

    scan: str
    answer: str
    share: str = ""
    doubt: str = ""
    folder: str = ""
    truth: str = ""
    agrees: bool = True

    @classmethod
    def of(cls, result: ScanResult, folder: str, truth: str = "") -> IndexRow:
        """The row of an answer; `truth` is the label that was simulated."""
        return cls(
            scan=result.scan,
            answer=result.verdict,
            share=share_words(result.decision, result.probabilities),
            doubt=result.doubt,
            folder=folder,
            truth=truth and result.label_set.words(truth),
            agrees=truth in ("", result.decision),
        )


@dataclass(frozen=True)
class IndexHead:
    """What the page says of all scans.

    Attributes:
        num: How many there are.
        notice: What the classifier may not be used for.
        trained_on: What it learned from.
        is_simulated: Whether the scans were.
        what: What they are called.
    """

    num: int
    notice: str
    trained_on: str
    is_simulated: bool = False
    what: str = "scans"


def share_words(decision: str, probabilities: Mapping[str, float]) -> str:
    """The probability of a decision; empty where that is not one of the classes."""
    return percent(probabilities[decision]) if decision in probabilities else ""


def write_index(rows: Iterable[IndexRow], head: IndexHead, folder: Path) -> Path:
    """Write `index.html`, which links every report and shows every preview that is there.

    Of any number of scans no more than one is in memory.

    Raises:
        WriteError: It cannot be written.
    """
    template = load_pages("chestct.writers").get_template("index.html.j2")

    def show(row: IndexRow) -> dict[str, object]:
        """A row, and what lies in its folder."""
        place = folder / row.folder if row.folder else None
        return {
            **asdict(row),
            "has_report": place is not None and (place / _REPORT_FILE).is_file(),
            "has_preview": place is not None and (place / _PREVIEW_FILE).is_file(),
        }

    def write(aside: Path) -> None:
        """Piece by piece."""
        with aside.open("w", encoding="utf-8", newline="") as stream:
            pieces = template.generate(rows=map(show, rows), version=__version__, **asdict(head))
            stream.writelines(pieces)

    return write_whole_with(folder / INDEX_FILE, write)


def answers_csv(
    results: Sequence[ScanResult], paths: Mapping[str, str], errors: Mapping[str, str]
) -> str:
    """The answers of one call as a table, a row per scan.

    Args:
        results: Of the scans that could be read, all by one classifier.
        paths: What each scan is called, to its path; the order of the rows.
        errors: Why others have no answer.
    """
    found = {result.scan: result for result in results}
    classes = next((result.label_set.names for result in results), ())
    return as_csv(
        answer_columns(classes),
        [
            [name, path, *answer_cells(classes, found.get(name), errors.get(name, ""))]
            for name, path in paths.items()
        ],
    )


def answer_columns(classes: Sequence[str]) -> list[str]:
    """The columns of a table of answers of a classifier of these classes."""
    shares = [f"probability_{name}" for name in classes]
    remarks = ["doubt", "lung_volume_l", "warnings", "no_answer_because"]
    return ["scan", "path", "decision", *shares, *remarks]


def answer_cells(classes: Sequence[str], result: ScanResult | None, error: str = "") -> list[str]:
    """What stands in these columns behind `scan` and `path`; `error` where there is no answer."""
    if result is None:
        return [""] * (len(classes) + 4) + [error]
    shares = [f"{result.probabilities[each]:.6f}" if result.is_suitable else "" for each in classes]
    doubt, volume = result.doubt, f"{result.lung_volume_l:.3f}"
    reasons = " ".join(result.unsuitable_reasons)
    return [result.decision, *shares, doubt, volume, " ".join(result.warnings), reasons]


_Ticks = tuple[tuple[float, str], ...]


def _area_curve(
    lung_area: Float64[np.ndarray, " slices"], analysed: tuple[int, int], scene: Scene
) -> dict[str, object]:
    """The lung share of every slice beside a head-up picture of the same height.

    Lengths are in per cent of the panel's edges, from the left and the top.
    """
    total = len(lung_area)
    largest = float(lung_area.max(initial=0.0))
    end, ticks = _scale(largest, "%")
    rows = _rows(total)
    points = " ".join(f"L{x:.2f} {y:.2f}" for x, y in zip(lung_area / end * 100, rows, strict=True))
    top, bottom = scene.analysed_rows(10_000)
    first, last = analysed
    return {
        "path": f"M0 100 {points} L0 0 Z",
        "top": top / 100,
        "bottom": bottom / 100,
        "ticks": ticks,
        "first": first + 1,
        "last": last + 1,
        "is_whole": last - first + 1 == total,
        "alt": (
            f"Lung share of each of {count(total, 'slice')}: largest {largest * 100:.0f} % "
            f"in slice {int(lung_area.argmax()) + 1}; "
            f"slices {first + 1} to {last + 1} were analysed."
        ),
    }


def _evidence_curve(
    by_slice: Float64[np.ndarray, " slices"], peaks: tuple[PeakSlice, ...]
) -> dict[str, object]:
    """The heat in the lungs of every slice, from the feet, in the same panel; gaps where NaN."""
    largest = float(np.nanmax(by_slice, initial=0.0))
    end, ticks = _scale(largest, "")
    rows = _rows(len(by_slice))
    across = by_slice / end * 100
    if largest > 0.0:
        alt = f"Evidence of each slice: largest {largest:.2f} in slice {np.nanargmax(by_slice) + 1}"
    else:
        alt = "Evidence of each slice: none"
    unknown = int(np.isnan(by_slice).sum())
    if unknown:
        alt += f"; {count(unknown, 'slice')} without lung or not analysed"
    return {
        "path": " ".join(
            "M" + " L".join(f"{across[i]:.2f} {rows[i]:.2f}" for i in range(*run))
            for run in _runs(~np.isnan(by_slice))
        ),
        "ticks": ticks,
        "peaks": tuple(
            (float(peak.evidence / end * 100), float(rows[peak.index]), peak.index + 1)
            for peak in peaks
        ),
        "alt": f"{alt}.",
    }


def _rows(total: int) -> Float64[np.ndarray, " slices"]:
    """Height of the middle of each slice, from the top, in per cent."""
    return (total - 0.5 - np.arange(total)) / total * 100


def _scale(largest: float, unit: str) -> tuple[float, _Ticks]:
    """The panel's right edge, and ticks at round numbers."""
    step = next((step for step in (0.02, 0.05, 0.1) if largest <= 3 * step), 0.2)
    end = max(step, float(np.ceil(largest / step - 1e-9)) * step)
    shares = np.arange(1, round(end / step) + 1) * step
    words = (f"{share * 100:.0f} %" if unit else f"{share:.2g}" for share in shares)
    return end, tuple(zip((shares / end * 100).tolist(), words, strict=True))


def _runs(known: Bool[np.ndarray, " slices"]) -> list[tuple[int, int]]:
    """First and one past the last index of each run of known slices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in list(pairwise(edges.tolist()))[::2]]


_NUM_STRIP: Final = 8
_LEGEND_STEPS: Final = 12
_ROWS: Final[dict[str, str]] = {
    "Upper third": "upper third",
    "Middle third": "middle third",
    "Lower third": "lower third",
    "Whole lung": "lung",
}
_HATCHED: Final = "Hatched parts were not given to the network: nothing is known about them."
_COLUMNS: Final[dict[str, str]] = {"Right": "right ", "Left": "left ", "Both": ""}


def _evidence_section(
    analysis: ScanAnalysis, explained: ScanExplanation, maker: _PictureMaker
) -> dict[str, object]:
    """The explanation of an analysis, drawn and described by the names that the template has."""
    chosen = telling_slices(analysis, maker.scene)
    by_slice = evidence_by_slice(explained, analysis.prepared)
    peaks = evidence_peaks(explained, analysis.prepared)
    axial, coronal, sagittal = (
        maker.plane_picture(plane, chosen[plane], chosen)
        for plane in ("axial", "coronal", "sagittal")
    )
    strip = tuple(
        maker.slice_picture(index, _remark(by_slice[index], index, peaks))
        for index in strip_slices(maker.scene.shown_slices, peaks, _NUM_STRIP)
    )
    is_hatched = any(picture.is_hatched for picture in (axial, coronal, sagittal, *strip))
    is_disease, explanation = explained.speaks_for_disease, explained.explanation
    return {
        "label": label_words(explained),
        "method": method_words(explanation.method, explanation.layer),
        "threshold": explained.summary.threshold,
        "is_disease": is_disease,
        "axial": axial,
        "plain": maker.plain_picture("axial", chosen["axial"]),
        "planes": (coronal, sagittal),
        "strip": strip,
        "curve": _evidence_curve(by_slice, peaks),
        "gradient": _gradient(is_disease=is_disease),
        "columns": tuple(_COLUMNS),
        "shares": _share_table(explained.summary.shares) if is_disease else (),
        "volume": f"{explained.summary.involved_ml:.0f} ml" if is_disease else "",
        "says": (*_says(analysis, explained), *((_HATCHED,) if is_hatched else ())),
        "does_not_say": _does_not_say(analysis, explained),
    }


def _share_table(shares: Mapping[str, float]) -> list[tuple[str, list[float | None]]]:
    """Thirds and whole lungs as rows, sides as columns; None for a region that holds no lung."""

    def _share(side: str, region: str) -> float | None:
        return shares.get("lungs" if region == "lung" and not side else f"{side}{region}")

    return [
        (heading, [_share(side, region) for side in _COLUMNS.values()])
        for heading, region in _ROWS.items()
    ]


def _remark(evidence: float, index: int, peaks: tuple[PeakSlice, ...]) -> str:
    if np.isnan(evidence):
        return ", not analysed or no lung"
    space = "\N{NO-BREAK SPACE}"
    ranks = [rank for rank, peak in enumerate(peaks, start=1) if peak.index == index]
    rank = f", peak{space}{ranks[0]}" if ranks else ""
    return f", evidence{space}{evidence:.2f}{rank}"


def _gradient(*, is_disease: bool) -> str:
    stops = []
    for step in range(_LEGEND_STEPS + 1):
        red, green, blue, opacity = heat_color(step / _LEGEND_STEPS, is_disease=is_disease)
        where = step / _LEGEND_STEPS * 100
        stops.append(f"rgba({red},{green},{blue},{opacity:.3f}) {where:.1f}%")
    return ", ".join(stops)


def _says(analysis: ScanAnalysis, explained: ScanExplanation) -> tuple[str, ...]:
    explanation = explained.explanation
    words = explained.label_set.words(explanation.label)
    shown = CLASSLESS_METHODS.get(explanation.method)
    if not explanation.heat.any():
        return (f"No voxel spoke for “{words}”: the map is empty.",)
    meaning = f"which voxels raised the network’s score for “{words}”"
    if shown is not None:
        meaning = f"{shown}, whatever the class"
    return (
        f"Colour shows {meaning}. 1 is the hottest voxel of this very scan, so colours of two "
        "scans cannot be compared.",
        f"{_line_words(explained)}The evidence of a slice is the heat summed over its lungs, in "
        "parts of the largest lung section; the large pictures go through the hottest place in "
        "the lungs, wherever most of it lies.",
        f"{percent(share_outside(explanation, analysis.prepared))} of all heat lies outside the "
        "lungs, where it is drawn fainter.",
    )


def _line_words(explained: ScanExplanation) -> str:
    if not explained.speaks_for_disease:
        return ""
    return (
        f"The white line surrounds lung of {explained.summary.threshold:g} or more; the table "
        "gives its share of the analysed lung. "
    )


def _cell_mm(analysis: ScanAnalysis, explained: ScanExplanation) -> int:
    sizes = zip(explained.explanation.cell, analysis.prepared.grid.spacing_mm, strict=True)
    return round(max(cell * spacing for cell, spacing in sizes))


def _does_not_say(analysis: ScanAnalysis, explained: ScanExplanation) -> tuple[str, ...]:
    label, labels = explained.explanation.label, explained.label_set
    words = labels.words(label)
    sentences = [
        "It is no outline of disease. No lesion was segmented or measured, and there can be "
        "disease where the map is cold.",
        f"It cannot tell places apart that lie closer than about {_cell_mm(analysis, explained)} "
        "mm: a hot spot can lie beside what caused it.",
    ]
    if explained.explanation.method in CLASSLESS_METHODS:
        sentences.append("It does not say which class it speaks for.")
    elif label not in analysis.result.called:
        what = "called present" if analysis.result.findings else "the most probable class"
        sentences.append(f"It was asked for “{words}”, which is not {what}.")
    if not explained.speaks_for_disease:
        sentences.append(
            f"It speaks for “{words}”: green lung is not diseased lung, so no line is drawn around "
            "it and no volume given."
        )
    elif labels.assumption:
        sentences.append(labels.assumption)
    if _is_trained_on_simulation(analysis.result.provenance.trained_on):
        sentences.append(
            "The network learned from simulated disease: what it looks for need not be what real "
            "disease looks like."
        )
    return tuple(sentences)


def _is_trained_on_simulation(trained_on: str) -> bool:
    """Whether a card says in its own words that disease was simulated."""
    return "simulated" in trained_on.lower()


_TICK_COLOR = (255, 255, 255)


def _position_words(scene: Scene, plane: Plane, index: int) -> str:
    """Where a slice lies: "z = -123.4 mm", its InstanceNumber after it where it has one."""
    axis = AXES[plane][0]
    place = [(n - 1) / 2 for n in scene.volume.grid.shape]
    place[axis] = float(index)
    number = float(scene.volume.grid.to_patient(np.array(place))[2 - axis])
    words = f"{'zyx'[axis]} = {number:.1f} mm".replace("-", "\N{MINUS SIGN}")
    image = scene.instance_numbers[index] if axis == 0 and scene.instance_numbers else ""
    return f"{words}, InstanceNumber {image}" if image else words


def _tick_planes(picture: RGB, scene: Scene, plane: Plane, slices: Mapping[Plane, int]) -> None:
    """Mark at a picture's edges where the slices of the two other planes cross it, in place."""
    length, thickness = max(8, picture.shape[1] // 36), max(2, picture.shape[1] // 300)
    for crossing, index in slices.items():
        axis = AXES[crossing][0]
        if crossing == plane:
            continue
        start, stop = scene.box[axis]
        share = (index + 0.5 - start) / (stop - start)
        across = picture if axis == AXES[plane][1] else picture.swapaxes(0, 1)
        # Pictures with the body's axis as rows are head up.
        share = 1.0 - share if axis == 0 else share
        at = int(np.clip(round(share * len(across)) - thickness // 2, 0, len(across) - thickness))
        for ends in (slice(None, length), slice(-length, None)):
            across[at : at + thickness, ends] = _TICK_COLOR

"""The report about a scan and an index of many: pages that open offline and need no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from chestct.analysis import SCAN_FACTS, ScanAnalysis
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import Scene, fullest_slice, scene_of_scan, spread_slices
from chestct.report.pages import load_pages
from chestct.result import ScanResult
from chestct.storage import write_whole
from chestct.writers import WriteOptions
from chestct.writers.evidence import label_words, method_words
from chestct.writers.evidence_section import NUM_STRIP, area_curve, evidence_section
from chestct.writers.page_pictures import EmbeddedPicture, PictureMaker
from chestct.writers.wording import (
    PROVENANCE_NAMES,
    percent,
    probability_words,
    verdict_of,
)

if TYPE_CHECKING:
    from chestct.explain.explanation import ScanExplanation


_REPORT_FILE: Final = "report.html"


def write_html(analysis: ScanAnalysis, folder: Path, _: WriteOptions | None = None) -> Path:
    """Write `report.html`.

    Raises:
        WriteError: It cannot be written.
    """
    return write_whole(folder / _REPORT_FILE, render_report(analysis).encode())


def render_report(analysis: ScanAnalysis) -> str:
    """The report as one HTML page."""
    result, explained = analysis.result, analysis.explanation
    scene = scene_of_scan(analysis)
    return (
        load_pages("chestct.writers")
        .get_template("report.html.j2")
        .render(
            result=result,
            short_notice=NOT_FOR_CLINICAL_USE,
            verdict=verdict_of(result.decision),
            bars=_bars(result),
            meaning=probability_words(result.provenance.temperature),
            range_words=_range_words(result, scene),
            curve=area_curve(analysis.prepared.lung_area, analysis.analysed_slices, scene),
            figures=_figures(analysis),
            facts=_named(result.scan_facts, SCAN_FACTS),
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
        maker = PictureMaker(scene)
        axial = [maker.slice_picture(i) for i in spread_slices(*scene.shown_slices, NUM_STRIP)]
        planes: list[EmbeddedPicture] = [
            maker.plane_picture("sagittal", fullest_slice(scene.lungs, "sagittal")),
            maker.plane_picture("coronal", fullest_slice(scene.lungs, "coronal")),
        ]
        return {"evidence": None, "axial": axial, "planes": planes}
    maker = PictureMaker(scene, explained.summary.threshold)
    evidence = evidence_section(analysis, explained, maker)
    return {"evidence": evidence, "axial": evidence.strip, "planes": evidence.planes}


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
    temperature = result.provenance.temperature
    words = "none fitted" if temperature == 1.0 else f"{temperature:.4g}"
    named = _named({**asdict(result.provenance), "temperature": words}, PROVENANCE_NAMES)
    if explained is None:
        return named
    words = method_words(explained)
    if label_words(explained):
        words = f"{words}, for “{label_words(explained)}”"
    return [*named, ("Heat-map", f"{words}; 1 stands for {explained.explanation.scale:.4g}")]


def _named(values: Mapping[str, object], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """The values that have a name, in the order of the names, under their names."""
    return [(names[key], str(values[key])) for key in names if values.get(key) is not None]


INDEX_FILE: Final = "index.html"


@dataclass(frozen=True)
class IndexEntry:
    """One simulated patient on the page.

    Attributes:
        result: The answer.
        truth: The label that was simulated.
        folder: Folder of its report and preview, relative to the page.
    """

    result: ScanResult
    truth: str
    folder: str


def write_index(entries: Sequence[IndexEntry], folder: Path) -> Path:
    """Write `index.html`, which links every report and shows every preview.

    Raises:
        WriteError: It cannot be written.
        ValueError: There are no entries.
    """
    if not entries:
        raise ValueError("An index needs at least one result.")
    page = (
        load_pages("chestct.writers")
        .get_template("index.html.j2")
        .render(
            rows=[
                {
                    "scan": entry.result.scan,
                    "folder": entry.folder,
                    "truth": verdict_of(entry.truth),
                    "answer": verdict_of(entry.result.decision),
                    "share": percent(entry.result.probabilities.get(entry.result.decision, 0.0)),
                    "is_suitable": entry.result.is_suitable,
                    "agrees": entry.truth == entry.result.decision,
                }
                for entry in entries
            ],
            notice=entries[0].result.notice,
            trained_on=entries[0].result.provenance.trained_on,
            version=entries[0].result.provenance.chestct_version,
        )
    )
    return write_whole(folder / INDEX_FILE, page.encode())

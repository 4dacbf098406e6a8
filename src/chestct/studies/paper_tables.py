"""A run beside its paper, as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chestct.evaluation.intervals import Estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.storage import write_text
from chestct.studies.compare_with_paper import Beside, PaperComparison
from chestct.text_tables import as_csv, as_markdown_table

FILE: str = "with_paper"


def write_with_paper(found: Sequence[PaperComparison], folder: Path) -> tuple[Path, Path]:
    """Write `with_paper.md` and `with_paper.csv`.

    Raises:
        WriteError: They cannot be written.
    """
    files = folder / f"{FILE}.md", folder / f"{FILE}.csv"
    write_text(files[0], paper_markdown(found))
    write_text(files[1], paper_csv(found))
    return files


def paper_markdown(found: Sequence[PaperComparison]) -> str:
    """One table per run."""
    parts = [
        "# Beside the paper",
        NOT_FOR_CLINICAL_USE,
        "In per cent, with 95 % intervals. Published figures stand as printed, without any.",
    ]
    for each in found:
        parts += [
            f"## {each.run}",
            f"{each.place} of {each.citation}",
            "\n".join(f"- {remark}" for remark in each.remarks),
            as_markdown_table(
                ["figure", "published", "recomputed", "this run", "published inside our interval"],
                [cells(figure) for figure in each.figures],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def cells(figure: Beside) -> list[str]:
    """One line of the table, in per cent."""
    inside = {True: "yes", False: "no", None: ""}[figure.is_inside]
    published = "" if figure.published is None else f"{100 * figure.published:.4g}"
    recomputed = "" if figure.recomputed is None else percent(figure.recomputed)
    return [figure.figure, published, recomputed, percent(figure.ours), inside]


def percent(estimate: Estimate) -> str:
    """An estimate in per cent with interval and counts, or why there is none."""
    if estimate.value is None:
        return f"- ({estimate.note})"
    counts = f", {estimate.hits}/{estimate.total}" if estimate.total is not None else ""
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f}{counts}"
    span = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} ({span}{counts})"


def paper_csv(found: Sequence[PaperComparison]) -> str:
    """One line per run and figure; shares, not per cent."""
    header = ["run", "place", "figure", "published"]
    header += [f"{who}_{what}" for who in ("recomputed", "ours") for what in ("", "low", "high")]
    lines: list[list[object]] = []
    for each in found:
        for figure in each.figures:
            numbers: list[object] = []
            for estimate in (figure.recomputed or Estimate(None), figure.ours):
                numbers += [estimate.value, estimate.low, estimate.high]
            lines.append([each.run, each.place, figure.figure, figure.published, *numbers])
    return as_csv([name.rstrip("_") for name in header], lines)

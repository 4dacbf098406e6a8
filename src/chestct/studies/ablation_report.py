"""Write an ablation down: its table as Markdown and CSV, its tests, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chestct.evaluation.figures import save_figure
from chestct.evaluation.intervals import Bootstrap
from chestct.storage import write_text
from chestct.studies.roi_ablation import Row
from chestct.studies.row_figures import TableRow, make_rows
from chestct.studies.study_figures import draw_accuracies, draw_sensitivities
from chestct.studies.study_rows import Progress
from chestct.studies.study_table import as_markdown, compare_pairs, pairs_csv, rows_csv

FIGURES: Final = {"accuracy": draw_accuracies, "sensitivity": draw_sensitivities}
ENDINGS: Final = (".png", ".svg")


def write_ablation(
    progress: Progress[Row],
    folder: Path,
    *,
    remarks: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> tuple[TableRow[Row], ...]:
    """Write `table.md`, `table.csv`, `tests.csv` and the figures of the rows that are finished.

    Args:
        progress: As `run_ablation` gives it.
        folder: The study's folder.
        remarks: What a reader has to know, such as that the disease is simulated.
        bootstrap: How patients are drawn; None takes the default.

    Returns:
        The rows with their figures; none, and nothing written, when no row is finished.

    Raises:
        WriteError: The folder cannot be written.
    """
    rows = make_rows(progress.results, bootstrap)
    if not rows:
        return rows
    tests = compare_pairs(rows)
    write_text(folder / "table.md", as_markdown(rows, tests, [*remarks, *progress.gaps]))
    write_text(folder / "table.csv", rows_csv(rows))
    write_text(folder / "tests.csv", pairs_csv(tests))
    for name, draw in FIGURES.items():
        figure = draw(rows)
        for ending in ENDINGS:
            save_figure(figure, folder / f"{name}{ending}")
    return rows

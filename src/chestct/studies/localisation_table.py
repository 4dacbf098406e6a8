"""The localisation study as a table: means over patients, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from chestct.evaluation.intervals import (
    PATIENTS,
    WILSON,
    Bootstrap,
    Estimate,
    percentile_interval,
    wilson,
)
from chestct.studies.localisation import MapScores
from chestct.text_tables import as_markdown_table

SHARES: Final[dict[str, str]] = {
    "in_lungs": "in lungs",
    "in_grown_lungs": "in lungs + 1 cell",
    "in_lesions": "in lesions",
    "in_grown_lesions": "in lesions + 1 cell",
    "dice": "Dice at 0.5",
}
"""Figures with a mean and a bootstrap over patients: field of `MapScores` to heading."""
HITS: Final[dict[str, str]] = {"is_hit": "pointing game", "is_near_hit": "within 1 cell"}
"""Figures that are counted, with Wilson's interval."""
CHANCE: Final = ("lesion_share", "grown_lungs_fill")


def summarise_maps(
    scores: Sequence[MapScores], bootstrap: Bootstrap | None = None
) -> dict[str, Estimate]:
    """Every figure over patients, by its field in `MapScores`.

    Maps that are zero everywhere have no shares; they count as misses, and as a Dice of 0.

    Raises:
        ValueError: There are no maps.
    """
    if not scores:
        raise ValueError("there are no maps to summarise")
    settings = bootstrap or Bootstrap()
    found = {name: _mean(scores, name, settings) for name in (*SHARES, *CHANCE)}
    return found | {name: _rate(scores, name) for name in HITS}


def as_table(rows: Mapping[tuple[str, ...], Sequence[MapScores]], headings: Sequence[str]) -> str:
    """A Markdown table, one line per row.

    Args:
        rows: What a row is (as many texts as headings) to the maps of its patients.
        headings: Of these texts.
    """
    names = [*SHARES, *HITS]
    lines = []
    for what, scores in rows.items():
        found = summarise_maps(scores)
        empty = sum(each.in_lungs is None for each in scores)
        chance = ", ".join(_percent(found[name].value) for name in CHANCE)
        cells = [estimate_text(found[name]) for name in names]
        lines.append([*what, *cells, chance, str(empty)])
    titles = [*SHARES.values(), *HITS.values()]
    return as_markdown_table([*headings, *titles, "chance: lesion, lungs + 1", "empty"], lines)


def estimate_text(estimate: Estimate) -> str:
    """A share in per cent with its interval."""
    if estimate.low is None or estimate.high is None:
        return _percent(estimate.value)
    return f"{_percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f}"


def _mean(scores: Sequence[MapScores], name: str, settings: Bootstrap) -> Estimate:
    known = [getattr(each, name) for each in scores if getattr(each, name) is not None]
    if not known:
        return Estimate(None, note="no map has evidence")
    values = np.array(known, dtype=np.float64)
    if values.size == 1:
        return Estimate(float(values[0]), note="no interval: one patient shows no spread")
    rng = np.random.default_rng(settings.seed)
    drawn = rng.integers(values.size, size=(settings.replicates, values.size))
    low, high, note = percentile_interval(values[drawn].mean(axis=1), settings.level)
    return Estimate(float(values.mean()), low, high, PATIENTS, note)


def _rate(scores: Sequence[MapScores], name: str) -> Estimate:
    hits, total = sum(getattr(each, name) for each in scores), len(scores)
    low, high = wilson(hits, total)
    return Estimate(hits / total, low, high, WILSON, hits=hits, total=total)

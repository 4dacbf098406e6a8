"""Divide slices: by patient, or as the MASERes paper does it, slice by slice.

The paper's split is there to repeat its figures, under a name that says what it is. It puts
slices of one patient on all sides: 33 per COVID-19 patient and 104 per normal one, nearly the same
picture each as its neighbour, so that its test part holds what the network has seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from chestct.datasets.manifest import TEST, TRAINING, VALIDATION, Manifest, ManifestRow
from chestct.datasets.splits import SplitSettings, given, hold_out

SHARES_PATIENTS: Final = "slice_random_leaky"
"""The paper's split: patients are shared between its parts."""


def by_patient(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """The manifest's own split where it has one; else patients are put aside class by class.

    Raises:
        ManifestError: A patient is on two sides, a row stands nowhere, or a class is too small.
    """
    if any(row.split for row in manifest.rows):
        return given(manifest)
    return hold_out(manifest, settings)


def slice_random(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """The paper's split: the slices of each class are shuffled and cut, whoever's they are.

    A split that the manifest has is not looked at.
    """
    by_label: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_label[row.label].append(row)
    sides: dict[int, str] = {}
    for rows in by_label.values():
        shuffled = sorted(rows, key=lambda row: row.scan)
        random.Random(settings.seed).shuffle(shuffled)
        num_test = round(settings.test_share * len(rows))
        num_validation = round(settings.validation_share * len(rows))
        cuts = [TEST] * num_test + [VALIDATION] * num_validation
        for place, row in enumerate(shuffled):
            sides[row.number] = cuts[place] if place < len(cuts) else TRAINING
    return manifest.with_rows(
        replace(row, split=sides[row.number], fold=None) for row in manifest.rows
    )


SLICE_SPLITS: Final[dict[str, Callable[[Manifest, SplitSettings], Manifest]]] = {
    "patient": by_patient,
    SHARES_PATIENTS: slice_random,
}
"""Split name to a function that fills in `split`."""

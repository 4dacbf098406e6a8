"""The prepared scans of a division as the loop takes them."""

from __future__ import annotations

from chestct.datasets.store import Cache, LabelledScans
from chestct.training.division import Division
from chestct.training.run import LabelledSets
from chestct.training.settings import DataSection


def labelled_sets(division: Division, cache: Cache, section: DataSection) -> LabelledSets:
    """A division's prepared inputs, as the loop takes them."""
    return LabelledSets(
        training=LabelledScans(cache, division.training, section.variants),
        validation=LabelledScans(cache, division.validation),
        num_classes=len(division.training.labels),
        test=None if division.test is None else LabelledScans(cache, division.test),
    )

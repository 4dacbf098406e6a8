"""The augmentations by name, every number written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Final

import torch
from jaxtyping import Float

from chestct.datasets.augment import Augmentation, augment_batch
from chestct.datasets.slice_augment import SliceAugmentation, vary_slices
from chestct.datasets.turns import Turns, turn_batch
from chestct.errors import TrainingError
from chestct.lookup import look_up, unknown_name_message

AnyAugmentation = Augmentation | Turns | SliceAugmentation

_MASERES_DEG: Final = (-20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 20.0)
_ROI_RESNET_DEG: Final = (-12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0)

AUGMENTATIONS: Final[dict[str, AnyAugmentation | None]] = {
    "none": None,
    "recommended": Augmentation(),
    # The text gives no angles: those of the scripts. Its flip is called vertical, without a rate.
    "roi_resnet_paper": Turns(_ROI_RESNET_DEG, flip_probability=0.5),
    # The script behind the test-set models turns and never flips.
    "roi_resnet_published": Turns(_ROI_RESNET_DEG),
    "roi_resnet_published_folds": Turns(_ROI_RESNET_DEG, flip_probability=0.4),
    # The text means a rotation of the patient; the notebooks turn slices against rows.
    "maseres_paper": Turns(_MASERES_DEG),
    "maseres_published": Turns(_MASERES_DEG, plane="slice-row"),
}
"""Augmentation name to its numbers; None leaves batches as they are."""


def find_augmentation(
    name: str,
    overrides: Mapping[str, object],
    table: Mapping[str, AnyAugmentation | None] = AUGMENTATIONS,
) -> AnyAugmentation | None:
    """An augmentation of a table, some of its fields changed.

    Args:
        name: A name in the table.
        overrides: Field to value, as YAML has them: lists are taken for tuples.
        table: `AUGMENTATIONS` for scans, `SLICE_AUGMENTATIONS` for slices.

    Raises:
        UnknownNameError: There is no such augmentation.
        TrainingError: It has no such field, or a value is impossible.
    """
    found = look_up(table, name, kind="augmentation")
    if found is None:
        if overrides:
            raise TrainingError("The augmentation 'none' has no fields to override.")
        return None
    changed: dict[str, object] = {}
    for field, value in overrides.items():
        known = {each.name: getattr(found, each.name) for each in fields(found)}
        if field not in known:
            raise TrainingError(unknown_name_message(field, known, kind="field"))
        changed[field] = _fitted(field, value, known[field])
    return replace(found, **changed)  # type: ignore[arg-type]


def vary_batch(
    batch: Float[torch.Tensor, "batch channel depth height width"],
    lungs: Float[torch.Tensor, "batch 1 depth height width"],
    augmentation: AnyAugmentation,
    generator: torch.Generator,
) -> tuple[
    Float[torch.Tensor, "batch channel depth height width"],
    Float[torch.Tensor, "batch 1 depth height width"],
]:
    """Return a varied copy of a batch and of its lung masks."""
    if isinstance(augmentation, SliceAugmentation):
        return vary_slices(batch, augmentation, generator), lungs
    if isinstance(augmentation, Turns):
        return turn_batch(batch, lungs, augmentation, generator)
    return augment_batch(batch, lungs, augmentation, generator)


def _fitted(field: str, value: object, before: object) -> object:
    """A value of the kind the field has."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(before, float) and is_number:
        return float(value)  # type: ignore[arg-type]
    if isinstance(before, str) and isinstance(value, str):
        return value
    if isinstance(before, tuple) and isinstance(value, list | tuple):
        return tuple(_fitted(field, each, 0.0) for each in value)
    expected = {float: "a number", str: "text", tuple: "a list of numbers"}[type(before)]
    raise TrainingError(f"'{field}' must be {expected}, not {value!r}.")

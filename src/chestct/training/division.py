"""Which scans a run learns from, is watched on and is tested on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from chestct.datasets.manifest import TEST, TRAINING, VALIDATION, Manifest, require_classes
from chestct.datasets.splits import SplitSettings, fold_parts, given, hold_out, k_fold, part
from chestct.errors import TrainingError
from chestct.training.settings import DataSection


@dataclass(frozen=True)
class Division:
    """The scans of one training run; no patient is in two of them.

    Attributes:
        training: What it learns from.
        validation: What its epochs are watched on, and the best of them chosen by.
        test: What it is judged on at the end, or None.
    """

    training: Manifest
    validation: Manifest
    test: Manifest | None = None

    @property
    def parts(self) -> dict[str, Manifest]:
        """The parts there are, by name."""
        parts = {TRAINING: self.training, VALIDATION: self.validation}
        return parts if self.test is None else {**parts, TEST: self.test}

    @property
    def joined(self) -> Manifest:
        """All scans, each with the name of its part as split, in the order of the manifest."""
        rows = [
            replace(row, split=name, fold=None)
            for name, part_of in self.parts.items()
            for row in part_of.rows
        ]
        return self.training.with_rows(sorted(rows, key=lambda row: row.number))

    def without(self, numbers: Collection[int]) -> Division:
        """The same division without some rows.

        Raises:
            ManifestError: A part would be empty or training would lack a class.
        """
        if not numbers:
            return self
        kept = {
            name: part_of.choose(lambda row: row.number not in numbers)
            for name, part_of in self.parts.items()
        }
        require_classes(kept[TRAINING], TRAINING)
        return Division(kept[TRAINING], kept[VALIDATION], kept.get(TEST))


def divide(manifest: Manifest, section: DataSection) -> Division:
    """Take the manifest's own split; where it has none for validation, draw that by patient.

    A column `fold` is not looked at.

    Raises:
        ManifestError: A patient is on two sides, a row stands nowhere, or a class is missing.
    """
    rows = manifest.with_rows(replace(row, fold=None) for row in manifest.rows)
    if not any(row.split for row in rows.rows):
        return _with_validation(rows, section, None)
    given(rows)
    training = part(rows, TRAINING)
    is_tested = any(row.split == TEST for row in rows.rows)
    test = part(rows, TEST) if is_tested else None
    if not any(row.split == VALIDATION for row in rows.rows):
        return _with_validation(training, section, test)
    require_classes(training, TRAINING)
    return Division(training, part(rows, VALIDATION), test)


def with_folds(manifest: Manifest, num_folds: int, section: DataSection) -> Manifest:
    """Take the manifest's own folds, or deal its patients out to as many as are wanted.

    Raises:
        TrainingError: It has another number of folds.
        ManifestError: A patient is in two folds, or there are too few of a class.
    """
    if not manifest.folds:
        return k_fold(manifest, SplitSettings(folds=num_folds, seed=section.split_seed))
    if len(manifest.folds) != num_folds:
        msg = (
            f"{manifest.name} has {len(manifest.folds)} folds and {num_folds} were asked for. Use "
            f"--folds {len(manifest.folds)}, or take the column 'fold' out."
        )
        raise TrainingError(msg)
    return given(manifest)


def divide_fold(manifest: Manifest, fold: int, section: DataSection) -> Division:
    """Hold a fold out for the test, and draw the validation part from the other folds.

    The fold itself chooses nothing, so that its results are not better than new patients' would be.

    Raises:
        ManifestError: A part would lack a class.
    """
    others, held = fold_parts(manifest, fold)
    return _with_validation(others, section, held)


def _with_validation(manifest: Manifest, section: DataSection, test: Manifest | None) -> Division:
    """Draw the validation part by patient, every class in it."""
    wanted = SplitSettings(
        test_share=0.0, validation_share=section.validation_share, seed=section.split_seed
    )
    drawn = hold_out(manifest, wanted)
    return Division(part(drawn, TRAINING), part(drawn, VALIDATION), test)

"""What age, sex and scanner alone say of the scans that a classifier judged.

It stands beside every classifier: what does not beat it has not shown that it looks at the lungs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from chestct.datasets.checks import BASELINE, baseline_probabilities, classes_with_facts
from chestct.datasets.manifest import TRAINING, Manifest, patients_by_label
from chestct.datasets.scans import ScanFacts
from chestct.datasets.splits import SplitSettings, k_fold
from chestct.evaluation.predictions import Predictions
from chestct.training.division import Division
from chestct.training.results import scan_key

BASELINE_NAME: Final = ", ".join(BASELINE)
"""What it is called in tables."""
MOST_FOLDS: Final = 5
"""Of its cross-validation; fewer where a class has fewer patients."""


def baseline_beside(
    judged: Predictions, division: Division, facts: Mapping[int, ScanFacts], part: str
) -> Predictions:
    """What age, sex and scanner alone say of the scans that a network judged."""
    joined = division.joined
    splits = [row.split for row in joined.rows]
    wanted = [index for index, split in enumerate(splits) if split == part]
    probabilities = baseline_probabilities(
        joined,
        [facts[row.number] for row in joined.rows],
        [index for index, split in enumerate(splits) if split == TRAINING],
        wanted,
    )
    keys = [scan_key(joined.rows[index]) for index in wanted]
    order = [keys.index(scan) for scan in judged.scans]
    return judged.with_probabilities(probabilities[order])


def cross_validated_baseline(
    judged: Predictions, manifest: Manifest, facts: Sequence[ScanFacts]
) -> tuple[Predictions | None, str]:
    """The same where there are no other scans to learn from: each fold is told from the others.

    Args:
        judged: What a finished classifier said.
        manifest: The scans that it judged, in the same order; splits and folds are not looked at.
        facts: Of every row's scan.

    Returns:
        The baseline's predictions, and a sentence on how they were made; or None, and why not.
    """
    present = tuple(label for label, cases in manifest.cases.items() if cases)
    rows = tuple(replace(row, split="", fold=None) for row in manifest.rows)
    whole = replace(manifest, rows=rows, labels=present, excluded=())
    fewest = min(len(patients) for patients in patients_by_label(whole).values())
    why_not = ""
    if len(present) < 2 or len(classes_with_facts(manifest, facts)) < 2:
        why_not = "none of them is known for two classes or more"
    elif fewest < 2:
        why_not = "a class has fewer than two patients"
    if why_not:
        return None, f"No baseline of {BASELINE_NAME} stands beside the classifier: {why_not}."
    num_folds = min(MOST_FOLDS, fewest)
    dealt = k_fold(whole, SplitSettings(folds=num_folds))
    folds = [row.fold for row in dealt.rows]
    probabilities = np.zeros((len(dealt), len(manifest.labels)))
    for fold in dealt.folds:
        wanted = [index for index, each in enumerate(folds) if each == fold]
        others = [index for index, each in enumerate(folds) if each != fold]
        probabilities[wanted] = baseline_probabilities(manifest, facts, others, wanted)
    remark = (
        f"The baseline '{BASELINE_NAME}' is cross-validated on these very scans ({num_folds} folds "
        "by patient): it knows what these scans are like, as the classifier may not."
    )
    return judged.with_probabilities(probabilities), remark

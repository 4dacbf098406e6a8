"""Explain a classifier's answer about one prepared scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from chestct.classifier import Classifier
from chestct.engines import check_input
from chestct.explain import EXPLANATIONS
from chestct.explain.back_to_scan import back_to_scan, spread_over_input
from chestct.explain.explanation import Explanation, ScanExplanation, summarise_evidence
from chestct.explain.question import CellMap, Listener, Question
from chestct.lookup import load_entry, look_up
from chestct.preprocess.prepare import PreparedScan
from chestct.volume import Volume


def explain(
    classifier: Classifier,
    prepared: PreparedScan,
    *,
    method: str = "gradcam",
    label: str | None = None,
    layer: str | None = None,
    listener: Listener | None = None,
) -> Explanation:
    """Find out which voxels of a prepared scan spoke for a class.

    Always runs the classifier's own PyTorch network in float32, whatever engine gave the answer.
    Neither the network nor the scan is changed.

    Args:
        classifier: What gave the answer.
        prepared: The scan, prepared with the classifier's recipe.
        method: A name in `EXPLANATIONS`.
        label: The class or finding to explain, None for the one with the highest probability.
        layer: Dotted name of the network's layer to look at, None for its last block. Methods
            that look at no layer of choice refuse one.
        listener: Told by slow methods how many steps of how many are done.

    Returns:
        The map, its largest value 1; all zero, with a scale of 0, where nothing spoke for the
        class.

    Raises:
        UnknownNameError: There is no such method or class.
        ExplanationError: There is no such layer, or the method does not fit the network.
        ClassifierError: The scan was prepared with another recipe.
        EngineError: The input is not one of this classifier, or not finite.
    """
    make_map = load_entry(EXPLANATIONS, method, kind="explanation")
    question = replace(_question(classifier, prepared, label), layer=layer, listener=listener)
    cells = make_map(question)
    return _as_explanation(cells, prepared, method, classifier.labels[cells.target])


def _question(classifier: Classifier, prepared: PreparedScan, label: str | None) -> Question:
    """What is asked about a scan that suits the classifier."""
    numbers = {name: i for i, name in enumerate(classifier.labels)}
    target = None if label is None else look_up(numbers, label, kind="class")
    classifier.require_own_recipe(prepared)
    check_input(prepared.input, prepared.lungs, classifier.input_size)
    return Question(
        network=classifier.network,
        batch=torch.from_numpy(prepared.input.copy())[None],
        lungs=torch.from_numpy(prepared.lungs.astype(np.float32))[None, None],
        target=target,
        are_findings=classifier.are_findings,
    )


def _as_explanation(cells: CellMap, prepared: PreparedScan, method: str, label: str) -> Explanation:
    """A map of cells at the input's size, its largest value 1."""
    heat = spread_over_input(cells, prepared.grid.shape)
    highest = float(heat.max())
    if highest > 0.0:
        heat = np.minimum(heat / np.float32(highest), np.float32(1.0))
    return Explanation(
        method=method,
        layer=cells.layer,
        label=label,
        heat=heat,
        scale=highest * cells.unit_scale,
        cell=cells.cell or cells.step,
    )


def explain_scan(  # noqa: PLR0913 - the options of `explain`, and the scan
    classifier: Classifier,
    prepared: PreparedScan,
    volume: Volume,
    *,
    method: str = "gradcam",
    label: str | None = None,
    layer: str | None = None,
    listener: Listener | None = None,
) -> ScanExplanation:
    """Explain an answer and lay the explanation over the scan it was given for.

    The options are those of `explain`; `volume` is the scan as it was read, which knows the UIDs
    of its slices.

    Raises:
        ChestCTError: As `explain` does.
    """
    explanation = explain(
        classifier, prepared, method=method, label=label, layer=layer, listener=listener
    )
    heat = back_to_scan(explanation.heat, prepared)
    summary = summarise_evidence(heat, prepared, volume.source.slice_uids)
    return ScanExplanation(explanation, heat, summary, classifier.card.label_set)

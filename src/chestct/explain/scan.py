"""An explanation on the patient's own scan: the map, the way back, and the summary, in one call."""

from __future__ import annotations

from chestct.classifier import Classifier
from chestct.explain.back_to_scan import back_to_scan
from chestct.explain.evidence import summarise_evidence
from chestct.explain.explanation import ScanExplanation
from chestct.explain.question import Listener
from chestct.explain.run import explain
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import Volume


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

    Args:
        classifier: What gave the answer.
        prepared: The scan, prepared with the classifier's recipe.
        volume: The scan as it was read; it knows the slices' UIDs.
        method: A name in `EXPLANATIONS`.
        label: The class to explain, None for the one with the highest probability.
        layer: The network's layer to look at, None for its last block.
        listener: Told by slow methods how many steps of how many are done.

    Raises:
        ChestCTError: As `explain` does.
    """
    explanation = explain(
        classifier, prepared, method=method, label=label, layer=layer, listener=listener
    )
    heat = back_to_scan(explanation.heat, prepared)
    summary = summarise_evidence(heat, prepared, volume.source.slice_uids)
    return ScanExplanation(explanation, heat, summary)

"""Run a finished classifier over labelled scans."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from chestct.classifier import Classifier
from chestct.datasets.manifest import SPLITS, Manifest, read_manifest
from chestct.datasets.public import scans_in
from chestct.datasets.scans import gather_facts, read_options
from chestct.datasets.splits import part
from chestct.datasets.store import Cache, prepare_all
from chestct.datasets.workers import Progress
from chestct.engines import Engine
from chestct.errors import ChestCTError, TrainingError
from chestct.evaluation.comparisons import COMPARISONS, SOUND, Judgement
from chestct.evaluation.predictions import (
    Predictions,
    PredictionsError,
    align,
    read_predictions,
    write_predictions,
)
from chestct.evaluation.report import recorded_exclusions, write_evaluation
from chestct.evaluation.tables import EvaluationSettings, Summary
from chestct.familiarity import separation
from chestct.lookup import look_up
from chestct.preprocess.prepare import prepare
from chestct.readers import read_volume
from chestct.training.data import BASELINE_FILE, PREDICTIONS_FILE, Listener, make_cache
from chestct.training.results import (
    BASELINE_NAME,
    as_predictions,
    cross_validated_baseline,
    promised_by,
    scan_key,
    undecided,
)
from chestct.training.settings import DataSection

_MOST_NAMED: Final = 3


def judge_manifest(
    classifier: Classifier, engine: Engine, manifest: Manifest, cache: Cache, listener: Listener
) -> tuple[Predictions, dict[str, str]]:
    """Classify every scan of a manifest, all of them prepared before, and kept in the cache.

    Args:
        classifier: What judges.
        engine: Its network, made ready.
        manifest: The scans, with the classifier's labels.
        cache: For the classifier's recipe; what it keeps is off by its storage's error.
        listener: Told how far things are.

    Returns:
        Predictions, and the reason for each scan that got none.

    Raises:
        TrainingError: No scan could be classified.
        EngineError: The engine could not run the network.
    """
    prepared = prepare_all(
        cache,
        manifest,
        processes=listener.processes,
        progress=listener.watch("preparing"),
    )
    reasons = {row: f"unsuitable: {' '.join(why)}" for row, why in prepared.unsuitable.items()}
    reasons |= dict(prepared.failed)
    rows = tuple(row for row in manifest.rows if row.number not in reasons)
    if not rows:
        raise TrainingError(_nothing_left(manifest, reasons))
    probabilities = []
    for number, row in enumerate(rows):
        found = cache.get(manifest.path(row), read_options(row, manifest.folder))
        shares = classifier.probabilities_of(engine.logits(found.input, found.lungs))
        probabilities.append([shares[label] for label in classifier.labels])
        listener.progress("classifying", Progress(number + 1, len(rows), 0.0))
    judged = as_predictions(rows, np.array(probabilities), classifier.labels)
    return judged, {scan_key(r): reasons[r.number] for r in manifest.rows if r.number in reasons}


def read_rows(path: Path, classifier: Classifier, split: str | None) -> Manifest:
    """A manifest's rows, or those of one split, with the classifier's labels.

    Raises:
        ManifestError: The manifest does not fit, or no row is of that split.
        UnknownNameError: There is no such split.
    """
    manifest = read_manifest(path, classifier.labels)
    if split is None:
        return manifest
    look_up(dict.fromkeys(SPLITS), split, kind="split")
    return part(manifest, split)


def read_beside(
    files: Mapping[str, Path], classifier: Classifier, manifest: Manifest
) -> dict[str, Judgement]:
    """What other classifiers said, refused before anything is classified where it misfits.

    A scan that the evaluation beside a file lists as without a decision may be missing from it.

    Args:
        files: Name to a `predictions.csv` of another classifier.
        classifier: What they will stand beside.
        manifest: The scans that it is going to judge.

    Raises:
        PredictionsError: A file cannot be read, is about other scans, labels or truths, lacks
            scans, or has a name that is taken; the message names it.
    """
    taken = (classifier.card.name, BASELINE_NAME)
    read: dict[str, Judgement] = {}
    for name, path in files.items():
        predictions = read_predictions(path)
        other = Judgement(predictions, recorded_exclusions(path, predictions))
        try:
            if name in taken:
                raise PredictionsError("Another classifier has this name: choose another.")
            _require_fit(other, manifest, classifier.labels)
        except PredictionsError as error:
            msg = f"{path.name} ('{name}') cannot stand beside {manifest.name}. {error}"
            raise PredictionsError(msg) from error
        read[name] = other
    return read


def evaluate_manifest(
    classifier: Classifier,
    engine: Engine,
    manifest: Manifest,
    folder: Path,
    listener: Listener,
    beside: Mapping[str, Judgement] | None = None,
) -> Summary:
    """Classify labelled scans; write predictions, metrics, tables and figures to a folder.

    What age, sex and scanner alone say of the scans stands in the same tables where any is known.

    Args:
        classifier: What judges.
        engine: Its network, made ready.
        manifest: The scans, with the classifier's labels.
        folder: Where to write to.
        listener: Told how far things are.
        beside: Other classifiers by name, to be compared with by every test there is, that of the
            MASERes paper among them, on the scans that both decided on.

    Raises:
        TrainingError: No scan could be classified.
        PredictionsError: Another classifier did not judge the same scans, and its exclusions do not
            say why.
        WriteError: The folder cannot be written.
    """
    cache = make_cache(DataSection(), classifier.recipe)
    judged, excluded = judge_manifest(classifier, engine, manifest, cache, listener)
    for scan, reason in excluded.items():
        listener.note(f"No decision on {scan}: {reason}")
    write_predictions(judged, folder / PREDICTIONS_FILE)
    kept = manifest.choose(lambda row: scan_key(row) not in excluded)
    facts = gather_facts(kept, cache.folder, processes=listener.processes)
    baseline, remark = cross_validated_baseline(judged, kept, facts)
    others: dict[str, Predictions | Judgement] = dict(beside or {})
    if baseline is not None:
        write_predictions(baseline, folder / BASELINE_FILE)
        others[BASELINE_NAME] = baseline
    settings = EvaluationSettings(
        name=classifier.card.name,
        comparisons=tuple(COMPARISONS) if beside else SOUND,
        promised=promised_by(classifier.card),
        remarks=(remark,),
    )
    return write_evaluation(judged, folder, settings=settings, others=others, excluded=excluded)


@dataclass(frozen=True)
class Unlike:
    """How well a classifier tells scans of another kind from those of a manifest.

    Attributes:
        auroc: How often a scan of the other kind lies further than one of the manifest.
        num_scans: Scans of the other kind.
        num_caught: Those beyond the card's threshold, or refused as unsuitable before.
        num_refused: Those of them that were refused as unsuitable.
        num_familiar: Scans of the manifest.
        num_false: Those beyond the threshold.
    """

    auroc: float
    num_scans: int
    num_caught: int
    num_refused: int
    num_familiar: int
    num_false: int


def judge_unlike(
    classifier: Classifier, engine: Engine, manifest: Manifest, folder: Path, listener: Listener
) -> Unlike:
    """Hold the distances of scans of another kind against those of a manifest, once prepared.

    Args:
        classifier: With a threshold of distance in its card.
        engine: Its network, made ready.
        manifest: Familiar scans, prepared before by `evaluate_manifest`.
        folder: Scans that are unlike them, one per file or folder in it.
        listener: Told of scans that could not be read.

    Raises:
        TrainingError: The classifier has no such threshold, or no scan of either kind is left.
    """
    known = classifier.familiarity
    if known is None:
        raise TrainingError(
            f"Classifier '{classifier.card.name}' cannot tell unlike scans: its folder holds no "
            "distances. Train it anew."
        )
    cache = make_cache(DataSection(), classifier.recipe)
    familiar = []
    for row in manifest.rows:
        with suppress(ChestCTError):
            found = cache.get(manifest.path(row), read_options(row, manifest.folder))
            familiar.append(known.distance(engine.outputs(found.input, found.lungs).features))
    others, num_refused, num_caught = [], 0, 0
    for scan in scans_in(folder):
        try:
            prepared = prepare(read_volume(scan), classifier.recipe)
        except ChestCTError as error:
            listener.note(f"{scan.name} was left out: {error}")
            continue
        features = engine.outputs(prepared.input, prepared.lungs).features
        others.append(known.distance(features))
        num_refused += bool(prepared.unsuitable_reasons)
        num_caught += bool(prepared.unsuitable_reasons) or others[-1] > known.threshold
    if not (familiar and others):
        raise TrainingError(f"No scan to compare is left in {folder.name} or {manifest.name}.")
    near, far = np.array(familiar), np.array(others)
    return Unlike(
        auroc=separation(near, far),
        num_scans=len(far),
        num_caught=num_caught,
        num_refused=num_refused,
        num_familiar=len(near),
        num_false=int((near > known.threshold).sum()),
    )


def _require_fit(other: Judgement, manifest: Manifest, labels: tuple[str, ...]) -> None:
    """Refuse predictions of other scans, labels or truths, and scans that are missing unexplained.

    Raises:
        PredictionsError: They do not fit; the message names scans and what to do.
    """
    judged = set(other.predictions.scans)
    align(undecided([r for r in manifest.rows if scan_key(r) in judged], labels), other.predictions)
    expected = [scan_key(row) for row in manifest.rows if scan_key(row) not in other.excluded]
    missing = [scan for scan in expected if scan not in judged]
    if missing:
        named = ", ".join(f"'{scan}'" for scan in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        msg = (
            f"It has no prediction of {len(missing)} of the {len(manifest)} scans: {named}{more}. "
            "Evaluate both on one manifest, name the --split that the file is of, or take these "
            "rows out. Scans without a decision may be missing where the metrics.json of the other "
            "evaluation, which lists them, lies beside the file."
        )
        raise PredictionsError(msg)


def _nothing_left(manifest: Manifest, reasons: Mapping[int, str]) -> str:
    first = min(reasons)
    return (
        f"None of the {len(manifest)} scans of {manifest.name} could be classified. Row {first}: "
        f"{reasons[first]}"
    )

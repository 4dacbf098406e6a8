"""Where heat-maps lie, by gating: the RoI paper's Figure 11 as a table over simulated patients.

    python benchmarks/localisation.py WORK [--folds 1,2,3,4,5] [--also CLASSIFIER ...]

WORK is that of five_folds.py, whose networks are used: the RoI-aware 3D ResNet-18 with gating
`none` and `all`, and `figure`, trained here in the same way where it is not there yet (--gatings
for others). Maps are made for the diseased patients of each fold by the networks that have not seen
them. A classifier given by --also is measured on the same patients, with its own weights under each
gating that looks at the lungs, and without any. Started again it goes on where it stopped;
WORK/localisation/*.json have every patient's figures. The disease is simulated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from five_folds import NARROW, NUM_FOLDS, ROWS, row_settings
from real_scans import run

from chestct.arrays import Mask
from chestct.classifier import Classifier, load_classifier
from chestct.datasets.manifest import Manifest, ManifestRow, read_manifest
from chestct.engines import make_engine
from chestct.evaluation.predictions import read_predictions
from chestct.labels import NORMAL, THREE_CLASSES
from chestct.networks import build_network
from chestct.preprocess.prepare import prepare
from chestct.preprocess.prepared import PreparedScan
from chestct.preprocess.recipes import Recipe
from chestct.readers import read_volume
from chestct.readers.masks import read_mask
from chestct.studies.localisation import (
    Asked,
    MapScores,
    as_table,
    lesion_file,
    mask_at_input,
    measure_answer,
)
from chestct.studies.model_audit import with_network
from chestct.training.plan import CLASSIFIER_FOLDER, PREDICTIONS_FILE, Listener, Plan, is_finished
from chestct.training.results import scan_key
from chestct.training.session import run_training

TRAINED = ("none", "figure", "all")
PLACED = ("none", "text", "figure", "all", "every")
ASKED = (
    Asked("gradcam"),
    Asked("gradcam", "layer2"),
    Asked("gradcam++", "layer2"),
    Asked("layercam", "layer2"),
)


def train_missing(gating: str, work: Path, folds: list[int]) -> Path:
    """The run folder of a gating, its folds trained where they are not yet."""
    name = f"roi-resnet18-{gating}"
    folder = work / name
    if not all(is_finished(folder / f"fold-{fold}") for fold in folds):
        row = replace(ROWS["roi-resnet18-all"], settings=NARROW | {"gating": gating})
        manifest = work / "cohort" / "manifest.csv"
        listener = Listener(note=print, processes=1)
        plan = Plan(row_settings(row, work / "cache"), manifest, folder, NUM_FOLDS, listener)
        run_training(plan)
    return folder


def held_out(manifest: Manifest, folder: Path) -> list[ManifestRow]:
    """The diseased patients that a fold's network has not seen."""
    judged = set(read_predictions(folder / PREDICTIONS_FILE).scans)
    return [row for row in manifest.rows if scan_key(row) in judged and row.label != NORMAL]


def with_gates(classifier: Classifier, gating: str) -> Classifier:
    """The same weights in a network with other gates, which have no weights."""
    card, recipe = classifier.card, classifier.recipe
    settings = {**card.network_settings, "gating": gating}
    network = build_network(card.network, recipe.num_channels, len(card.labels), settings)
    network.load_state_dict(classifier.network.state_dict())
    return with_network(classifier, network.eval())


# Classifiers of one recipe see the same inputs; some 10 MB a patient.
@cache
def load_patient(scan: Path, recipe: Recipe) -> tuple[PreparedScan, Mask]:
    """A patient as the network sees it, and the true lesions at the input's size."""
    prepared = prepare(read_volume(scan), recipe)
    return prepared, mask_at_input(read_mask(lesion_file(scan)), prepared)


def measure_patient(classifier: Classifier, scan: Path, label: str) -> dict[str, object]:
    """All maps of one patient by one classifier, and what it decides."""
    prepared, truth = load_patient(scan, classifier.recipe)
    if not truth.any():
        return {"left_out": "no lesion fills half a voxel of the input"}
    shares = classifier.probabilities(prepared, make_engine(classifier, "torch"))
    maps = {
        asked.name: asdict(measure_answer(classifier, prepared, truth, label, asked))
        for asked in ASKED
    }
    return {"label": label, "decision": max(shares, key=shares.__getitem__), "maps": maps}


def measure_all(
    classifier: Classifier, manifest: Manifest, rows: list[ManifestRow], path: Path
) -> list[dict[str, object]]:
    """One classifier on every patient that is not in its file yet."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    identity = [classifier.weights_sha256, [asked.name for asked in ASKED]]
    found = kept["patients"] if kept.get("identity") == identity else {}
    path.parent.mkdir(exist_ok=True)
    for row in rows:
        if row.patient not in found:
            found[row.patient] = measure_patient(classifier, manifest.path(row), row.label)
            path.write_text(json.dumps({"identity": identity, "patients": found}))
    print(f"  {path.stem}: {len(rows)} patients", flush=True)
    return [found[row.patient] for row in rows]


def measured_classifiers(
    arguments: argparse.Namespace, manifest: Manifest
) -> Iterator[tuple[str, Classifier, list[ManifestRow], Path]]:
    """Name of the row, classifier, its patients, and where its figures are kept."""
    kept = arguments.work / "localisation"
    folds = [int(fold) for fold in arguments.folds.split(",")]
    gatings = [gating for gating in arguments.gatings.split(",") if gating]
    rows: dict[int, list[ManifestRow]] = {}
    for gating in gatings:
        folder = train_missing(gating, arguments.work, folds)
        for fold in folds:
            trained = load_classifier(folder / f"fold-{fold}" / CLASSIFIER_FOLDER)
            rows[fold] = held_out(manifest, folder / f"fold-{fold}")[: arguments.most]
            yield gating, trained, rows[fold], kept / f"{gating}-{fold}.json"
    patients = [row for fold in folds for row in rows[fold]]
    for folder in arguments.also:
        loaded = load_classifier(folder)
        for gating in PLACED:
            name = f"{loaded.card.name}, {gating}"
            yield name, with_gates(loaded, gating), patients, kept / f"{folder.name}-{gating}.json"


def show(found: dict[str, list[dict[str, object]]]) -> None:
    """Print how often the classifiers are right, and the table."""
    rows = {}
    print()
    for name, patients in found.items():
        measured = [each for each in patients if "maps" in each]
        hits = sum(each["decision"] == each["label"] for each in measured)
        left_out = len(patients) - len(measured)
        print(f"- {name}: {hits} of {len(measured)} given their class, {left_out} left out")
        for asked in ASKED:
            rows[name, asked.name] = [MapScores(**each["maps"][asked.name]) for each in measured]
    ordered = {key: rows[key] for asked in ASKED for key in rows if key[1] == asked.name}
    print(f"\n{as_table(ordered, ('network', 'map, layer'))}")


def main() -> None:
    """Train what is not trained yet, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--folds", default="1,2,3,4,5", help="separated by commas")
    parser.add_argument("--gatings", default=",".join(TRAINED), help="separated by commas")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="classifier folders")
    parser.add_argument("--most", type=int, help="patients per fold; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    manifest = read_manifest(arguments.work / "cohort" / "manifest.csv", THREE_CLASSES)
    found: dict[str, list[dict[str, object]]] = {}
    for name, classifier, rows, path in measured_classifiers(arguments, manifest):
        found.setdefault(name, []).extend(measure_all(classifier, manifest, rows, path))
    show(found)


if __name__ == "__main__":
    run(main)

"""Where heat-maps lie, by gating: the RoI paper's Figure 11 as a table over simulated patients.

    python benchmarks/localisation.py WORK [--folds 1,2,3,4,5] [--also CLASSIFIER ...]

WORK is that of five_folds.py, whose networks are used: the RoI-aware 3D ResNet-18 with gating
`none` and `all`, and `figure`, trained here in the same way where it is not there yet (--gatings
for others). Maps are made for the diseased patients of each fold by the networks that have not seen
them. A classifier given by --also is measured on the same patients, with its own weights under each
gating that looks at the lungs, and without any. Started again it goes on where it stopped;
WORK/localisation/*.json have every patient's figures. The disease is simulated.

Maps are judged on the network input's grid, where every voxel has the same size and no voxel was
made up by enlarging. Lungs are those the network's gates see; lesions come from the simulation.
A map cannot tell places apart within one cell of its layer, so lungs and lesions are also judged
grown by one cell along each axis.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from five_folds import NARROW, NUM_FOLDS, ROWS, row_settings
from measuring import run

from chestct.arrays import Heat, Mask, Spacing
from chestct.classifier import Classifier, load_classifier
from chestct.datasets.manifest import Manifest, ManifestRow, read_manifest
from chestct.engines import make_engine
from chestct.evaluation.intervals import (
    PATIENTS,
    Bootstrap,
    percentile_interval,
    with_wilson,
)
from chestct.evaluation.metrics import Estimate, proportion
from chestct.evaluation.predictions import read_predictions
from chestct.explain.explanation import INVOLVED_FROM
from chestct.explain.run import explain
from chestct.labels import NORMAL, THREE_CLASSES
from chestct.networks import build_network
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import Recipe
from chestct.readers import read_volume
from chestct.readers.masks import read_mask
from chestct.report import as_markdown_table
from chestct.studies.model_audit import _mask_at_input, with_network
from chestct.training.plan import CLASSIFIER_FOLDER, PREDICTIONS_FILE, Listener, Plan, is_finished
from chestct.training.results import scan_key
from chestct.training.session import run_training

TRUTH_FOLDER = "truth"


def lesion_file(scan: Path) -> Path:
    """Where simulated_cohort.py put the true lesions of a simulated patient."""
    return scan.parent / TRUTH_FOLDER / f"{scan.name.partition('.')[0]}-lesions.nii.gz"


@dataclass(frozen=True)
class Asked:
    """A way to make a map.

    Attributes:
        method: A name in `EXPLANATIONS`.
        layer: The network's layer, or None for its last block.
    """

    method: str
    layer: str | None = None

    @property
    def name(self) -> str:
        """Method and layer in words."""
        return f"{self.method}, {self.layer or 'last block'}"


@dataclass(frozen=True)
class MapScores:
    """Where one map lies. Shares are of the map's sum, None where the map is zero everywhere.

    Attributes:
        in_lungs: Share inside the lungs.
        in_grown_lungs: Share inside the lungs grown by one cell of the layer.
        in_lesions: Share inside the lesions.
        in_grown_lesions: Share inside the lesions grown by one cell.
        is_hit: Whether the map's largest value lies in a lesion.
        is_near_hit: Whether it lies in a lesion grown by one cell.
        dice: Overlap of lesions and voxels of at least half the largest value.
        lesion_share: Share of the lungs that is lesion: what an even map over the lungs would
            have in lesions, and how often a random place in the lungs would hit.
        grown_lungs_fill: Share of the input that the grown lungs fill: what an even map over the
            whole input would have in them.
    """

    in_lungs: float | None
    in_grown_lungs: float | None
    in_lesions: float | None
    in_grown_lesions: float | None
    is_hit: bool
    is_near_hit: bool
    dice: float
    lesion_share: float
    grown_lungs_fill: float


def _grown_by_cells(mask: Mask, cell: Spacing) -> Mask:
    """A mask grown by one cell along each axis, a box and not a ball, as cells are boxes."""
    from scipy.ndimage import maximum_filter

    size = [2 * ceil(extent) + 1 for extent in cell]
    return np.asarray(maximum_filter(mask, size=size, mode="constant", cval=0), dtype=np.bool_)


def _measure_map(heat: Heat, lungs: Mask, lesions: Mask, cell: Spacing) -> MapScores:
    """Judge one map.

    Args:
        heat: The map at the input's size, 0 to 1.
        lungs: Lungs at the input's size.
        lesions: Lesions at the input's size; not empty.
        cell: The size of the layer's cells in voxels of the input.

    Raises:
        ValueError: There is no lung or no lesion.
    """
    if not (lungs.any() and lesions.any()):
        raise ValueError("Without lungs or lesions there is nothing to compare a map with.")
    near_lungs, near_lesions = _grown_by_cells(lungs, cell), _grown_by_cells(lesions, cell)
    strongest = (heat == heat.max()) & (heat > 0)
    hot = heat >= INVOLVED_FROM
    overlap = 2 * np.count_nonzero(hot & lesions)
    return MapScores(
        in_lungs=_share(heat, lungs),
        in_grown_lungs=_share(heat, near_lungs),
        in_lesions=_share(heat, lesions),
        in_grown_lesions=_share(heat, near_lesions),
        is_hit=_mostly_in(strongest, lesions),
        is_near_hit=_mostly_in(strongest, near_lesions),
        dice=overlap / (np.count_nonzero(hot) + np.count_nonzero(lesions)),
        lesion_share=np.count_nonzero(lesions & lungs) / np.count_nonzero(lungs),
        grown_lungs_fill=float(near_lungs.mean()),
    )


def measure_answer(
    classifier: Classifier, prepared: PreparedScan, lesions: Mask, label: str, asked: Asked
) -> MapScores:
    """Make one map for a class and judge it; for the arguments see `_measure_map`."""
    found = explain(classifier, prepared, method=asked.method, layer=asked.layer, label=label)
    return _measure_map(found.heat, prepared.lungs, lesions, found.cell)


def _share(heat: Heat, mask: Mask) -> float | None:
    total = float(heat.sum(dtype=np.float64))
    return float(heat.sum(dtype=np.float64, where=mask)) / total if total > 0 else None


def _mostly_in(strongest: Mask, mask: Mask) -> bool:
    """Whether at least half of the places that share the largest value lie inside."""
    num = int(np.count_nonzero(strongest))
    return num > 0 and 2 * int(np.count_nonzero(strongest & mask)) >= num


SHARES = {
    "in_lungs": "in lungs",
    "in_grown_lungs": "in lungs + 1 cell",
    "in_lesions": "in lesions",
    "in_grown_lesions": "in lesions + 1 cell",
    "dice": "Dice at 0.5",
}
"""Figures with a mean and a bootstrap over patients: field of `MapScores` to heading."""
HITS = {"is_hit": "pointing game", "is_near_hit": "within 1 cell"}
"""Figures that are counted, with Wilson's interval."""
CHANCE = ("lesion_share", "grown_lungs_fill")


def _summarise_maps(
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
        found = _summarise_maps(scores)
        empty = sum(each.in_lungs is None for each in scores)
        chance = ", ".join(_percent(found[name].value) for name in CHANCE)
        cells = [_estimate_text(found[name]) for name in names]
        lines.append([*what, *cells, chance, str(empty)])
    titles = [*SHARES.values(), *HITS.values()]
    return as_markdown_table([*headings, *titles, "chance: lesion, lungs + 1", "empty"], lines)


def _estimate_text(estimate: Estimate) -> str:
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
    hits = sum(getattr(each, name) for each in scores)
    return with_wilson(proportion(hits, len(scores), "no maps"))


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
    return prepared, _mask_at_input(read_mask(lesion_file(scan)), prepared)


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

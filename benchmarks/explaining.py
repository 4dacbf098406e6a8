"""What an explanation costs: beside the plain forward pass, and on its way back to the scan.

    python benchmarks/explaining.py [SCAN]
    python benchmarks/explaining.py --full

Goals: Grad-CAM at most 2.5 times the plain PyTorch forward pass; the way back to 512 x 512 x 300
voxels at most 0.5 s and 1 GB of memory beside what was there. Beside seconds by the clock stand
those the processor spent, which another load disturbs less; ratios are made of these. With a scan
that has radiologists' labels per slice beside it (P001_slice_labels.csv), the evidence is compared
with them. `--full` measures nothing but the paper's RoI-ResNet-101 at 224^3, once: some 10 GB of
memory, and a minute or more.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Cost, in_turns, memory_bytes, real_scan, run
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from chestct.arrays import Heat
from chestct.classifier import Classifier, load_classifier
from chestct.explain import split_choice
from chestct.explain.back_to_scan import back_to_scan
from chestct.explain.explanation import share_outside, summarise_evidence
from chestct.explain.maps import gradcam_map
from chestct.explain.question import Question
from chestct.explain.run import explain, explain_scan
from chestct.networks import build_network
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.volume import Grid, Volume

Measured = tuple[str, dict[str, object], tuple[int, int, int]]

REPEATS = 7
NETWORKS: tuple[Measured, ...] = (
    ("roi_resnet18", {"width": 32, "gating": "all"}, (96, 96, 96)),
    ("roi_resnet50", {"width": 32, "gating": "figure"}, (96, 96, 96)),
    ("maseres", {"input_shape": [56, 56, 56]}, (56, 56, 56)),
    ("alexnet3d", {"input_shape": [128, 128, 128], "dense_units": 512}, (128, 128, 128)),
    ("voxcnn", {"input_shape": [128, 128, 128]}, (128, 128, 128)),
)
FULL_NETWORKS: tuple[Measured, ...] = (("roi_resnet101", {"gating": "figure"}, (224, 224, 224)),)
BIG_SHAPE = (300, 512, 512)
MAPS = (
    ("gradcam", None),
    ("gradcam++", None),
    ("layercam", None),
    ("gradcam", "layer3"),
    ("gradcam", "layer2"),
    ("gradcam++", "layer2"),
    ("layercam", "layer2"),
    ("strongest_channel", None),
)
REGIONS = ("left lung", "right lung", "upper third", "middle third", "lower third")


def plain_forward(network: torch.nn.Module, batch: torch.Tensor, lungs: torch.Tensor) -> object:
    """The forward pass alone, as the PyTorch engine runs it."""
    with torch.inference_mode():
        return network(batch, lungs)


def shown(cost: Cost) -> str:
    """Seconds by the clock and of the processor, in columns."""
    return f"{cost.clock_s:10.3f}{cost.processor_s:10.3f}"


def report_networks(networks: tuple[Measured, ...], repeats: int) -> None:
    """Grad-CAM beside the forward pass in float32 for each network, weights drawn."""
    print(f"{'network':26}{'forward s':>10}{'CPU s':>10}{'Grad-CAM s':>12}{'CPU s':>8}{'ratio':>8}")
    for name, settings, shape in networks:
        network = build_network(name, 1, 3, settings).eval()
        batch = torch.rand(1, 1, *shape)
        asked = Question(network, batch, torch.ones_like(batch), target=0)
        works = {
            "forward": partial(plain_forward, network, asked.batch, asked.lungs),
            "Grad-CAM": partial(gradcam_map, asked),
        }
        # A single turn is not warmed up.
        forward, gradcam = in_turns(works, repeats, num_warming=min(1, repeats - 1)).values()
        ratio = gradcam.processor_s / forward.processor_s
        costs = shown(forward) + shown(gradcam)
        print(f"{name + ' ' + str(shape[0]):26}{costs}{ratio:8.2f}", flush=True)


def whole_map(heat: Heat, prepared: PreparedScan) -> Heat:
    """Every slice of a map on its scan; `back_to_scan` itself makes none before it is asked."""
    return back_to_scan(heat, prepared).voxels


def report_scan(volume: Volume, prepared: PreparedScan, classifier: Classifier) -> None:
    """Everything that is done for one real scan with the default classifier."""
    batch = torch.from_numpy(prepared.input.copy())[None]
    lungs = torch.from_numpy(prepared.lungs.astype(np.float32))[None, None]
    explanation = explain(classifier, prepared)
    heat = back_to_scan(explanation.heat, prepared)
    works = {
        "forward": partial(plain_forward, classifier.network, batch, lungs),
        "explain with gradcam": partial(explain, classifier, prepared),
        "back to the scan": partial(whole_map, explanation.heat, prepared),
        "summary": partial(summarise_evidence, heat, prepared, ()),
    }
    costs = in_turns(works, REPEATS)
    print(f"\none scan of {' x '.join(map(str, volume.grid.shape))}, default classifier")
    for name, cost in costs.items():
        ratio = cost.processor_s / costs["forward"].processor_s
        print(f"{name:26}{shown(cost)}{ratio:8.2f} times the forward pass")


def maps_of(classifier: Classifier) -> list[tuple[str, str | None]]:
    """Those of `MAPS` at layers that the network has, then the map that the card names."""
    known = dict(classifier.network.named_modules())
    maps = [(method, layer) for method, layer in MAPS if layer is None or layer in known]
    card = split_choice(classifier.card.explanation)
    return maps if card in maps else [*maps, card]


def report_evidence(
    volume: Volume, prepared: PreparedScan, classifier: Classifier, labels: Path
) -> None:
    """Where the evidence lies, beside the slices that radiologists called infected."""
    with labels.open(encoding="utf-8") as stream:
        infected = np.array([row["infected"] != "0" for row in csv.DictReader(stream)])
    area = np.count_nonzero(prepared.scan_lungs.voxels, axis=(1, 2))
    alone = roc_auc_score(infected[area > 0], area[area > 0])
    print(f"{'lung area alone':36}AUC {alone:.3f}")
    for method, layer in maps_of(classifier):
        found = explain_scan(classifier, prepared, volume, method=method, layer=layer)
        summary = found.summary
        known = np.isfinite(summary.by_slice)
        found_auc = roc_auc_score(infected[known], summary.by_slice[known])
        # What was found in a cell of the lungs is drawn up to one cell beyond them.
        size = [2 * round(voxels) + 1 for voxels in found.explanation.cell]
        grown = ndimage.maximum_filter(prepared.lungs, size, mode="constant")
        in_grown = replace(prepared, lungs=grown)
        peaks = " ".join(
            f"{peak.index}{'+' if infected[peak.index] else '-'}" for peak in summary.peaks
        )
        shares = " ".join(f"{summary.shares[name]:.3f}" for name in REGIONS)
        print(
            f"{method:18}{found.explanation.layer:8}{found.explanation.label:10}"
            f"AUC {found_auc:.3f}  peaks {peaks:24}  {shares}"
            f"  in lungs {1 - share_outside(found.explanation, prepared):.3f}"
            f"  grown {1 - share_outside(found.explanation, in_grown):.4f} of {grown.mean():.0%}"
        )


def big_scan(size: int) -> PreparedScan:
    """A prepared scan of 300 slices of 512 x 512 and a network input of the given size."""
    grid = Grid(BIG_SHAPE, (1.0, 0.7, 0.7))
    step = (BIG_SHAPE[0] / size, BIG_SHAPE[1] / size, BIG_SHAPE[2] / size)
    return PreparedScan(
        input=np.zeros((1, size, size, size), dtype=np.float32),
        lungs=np.zeros((size, size, size), dtype=np.bool_),
        grid=grid.moved((0.0, 0.0, 0.0), step, (size, size, size)),
        scan_lungs=Volume(grid, np.zeros(BIG_SHAPE, dtype=np.bool_)),
        scan_grid=grid,
        salient=(0, BIG_SHAPE[0] - 1),
        lung_area=np.zeros(BIG_SHAPE[0]),
        lung_volume_l=0.0,
        recipe=RECIPES["roi_resnet_recommended"],
        warnings=(),
        unsuitable_reasons=(),
    )


def report_way_back() -> None:
    """Time and extra memory of the way back to a large scan; the largest input comes first."""
    print(f"{'way back to 300x512x512':26}{'seconds':>10}{'CPU s':>10}{'extra MB':>10}")
    for size in (224, 128, 104):
        prepared = big_scan(size)
        heat = np.random.default_rng(0).random(prepared.grid.shape, dtype=np.float32)
        before = memory_bytes()
        (cost,) = in_turns({size: partial(whole_map, heat, prepared)}, REPEATS).values()
        extra = (memory_bytes() - before) / 1e6
        print(f"{f'from {size}^3':26}{shown(cost)}{extra:10.0f}", flush=True)


def main(arguments: list[str]) -> None:
    """Print the figures."""
    print(f"{torch.get_num_threads()} threads")
    if arguments == ["--full"]:
        report_networks(FULL_NETWORKS, repeats=1)
        return
    report_way_back()
    print()
    report_networks(NETWORKS, repeats=3)
    scan = Path(arguments[0]) if arguments else real_scan()
    classifier, volume = load_classifier(), read_volume(scan)
    prepared = prepare(volume, classifier.recipe)
    report_scan(volume, prepared, classifier)
    labels = scan.with_name(f"{scan.name}_slice_labels.csv")
    if labels.exists():
        print(f"\n{scan.name}: area under the curve of evidence against infected slices; peak")
        print(f"slices, + infected; shares of {', '.join(REGIONS)}; share of the map in the lungs,")
        print("and in the lungs grown by a cell, which is so much of the input")
        report_evidence(volume, prepared, classifier, labels)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

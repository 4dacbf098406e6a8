"""Train both papers' networks from manifest to pooled folds, same scans, same budget, one table.

    python benchmarks/five_folds.py WORK [--patients 240] [--only maseres-paper,...]

Simulates the patients (see simulated_cohort.py) and cross-validates each network by patient in five
folds with `run_training`, as `chestct train --folds 5` does: same recipe, augmentation and
optimiser for all, and about the same time: each takes as many epochs as fit in six minutes of one
core a fold. That is a small budget, and inputs are as small as it asks for. Called again, it goes
on where it stopped, and calls with different rows may share a folder (--threads 1 for each);
rows that are finished are read back. Prints a Markdown table with 95 % intervals and exact McNemar
tests.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import run
from simulated_cohort import make_cohort

from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import estimate_figures
from chestct.evaluation.predictions import Predictions, read_predictions
from chestct.labels import THREE_CLASSES
from chestct.report import as_markdown_table, p_value_text
from chestct.training.plan import PREDICTIONS_FILE, Listener, Plan
from chestct.training.run import EpochLog
from chestct.training.session import run_training
from chestct.training.settings import RunSettings

BOX_MM = (312.0, 264.0, 360.0)
"""Extent that every input covers, centred on the lungs."""
SEED = 1
NUM_FOLDS = 5


@dataclass(frozen=True)
class Row:
    """One network of the table: its settings, the voxels of its input, how it is trained."""

    network: str
    settings: dict[str, object]
    input_edge: int
    epochs: int
    learning_rate: float
    batch_size: int = 4
    precision: str = "float32"
    batch_norm_warm_up: bool = False


NARROW = {"width": 16, "head_units": 128, "dropout": 0.1}
PAPER: dict[str, object] = {"attention": "paper", "dropout": 0.1}
PUBLISHED: dict[str, object] = {"attention": "published", "dropout": 0.1}
# MASERes computes everything at full size and gets 28 = 4 x 7, whole cells of its pool of 7;
# VoxCNN's layers need at least 100 voxels, its last step at least two scans. Both have Keras's
# BatchNorm, whose moving statistics would need more steps than these.
ROWS = {
    "maseres-paper": Row("maseres", PAPER, 28, 28, 2e-4, 4, "bf16", batch_norm_warm_up=True),
    "maseres-published": Row(
        "maseres", PUBLISHED, 28, 28, 2e-4, 4, "bf16", batch_norm_warm_up=True
    ),
    "voxcnn": Row("voxcnn", {"dropout": 0.1}, 100, 10, 5e-4, 5, "bf16", batch_norm_warm_up=True),
    "roi-resnet18-none": Row("roi_resnet18", NARROW | {"gating": "none"}, 64, 42, 2e-3, 8),
    "roi-resnet18-all": Row("roi_resnet18", NARROW | {"gating": "all"}, 64, 42, 2e-3, 8),
}


def row_settings(row: Row, cache: Path) -> RunSettings:
    """The row's run settings: all that rows differ in is in `Row`."""
    edge = row.input_edge
    overrides = {
        "name": f"roi_resnet_recommended_{edge}",
        "spacing_mm": [extent / edge for extent in BOX_MM],
        "input_shape": [edge] * 3,
    }
    return RunSettings.model_validate(
        {
            "labels": THREE_CLASSES,
            "network": {"name": row.network, "settings": row.settings},
            "recipe": {"name": "roi_resnet_recommended", "overrides": overrides},
            "data": {"cache": str(cache), "storage": "uint8"},
            "augmentation": {"name": "recommended"},
            "training": {
                "epochs": row.epochs,
                "batch_size": row.batch_size,
                "optimizer": "adamw",
                "learning_rate": row.learning_rate,
                "precision": row.precision,
                "batch_norm_warm_up": row.batch_norm_warm_up,
                "seed": SEED,
            },
        }
    )


def run_row(name: str, work: Path, manifest: Path, processes: int) -> Predictions:
    """Cross-validate one network, or go on, and read what all folds predict."""

    def show(training: str, entry: EpochLog) -> None:
        print(
            f"  {name}, {training}, epoch {entry.epoch}: loss {entry.training_loss:.3f}, "
            f"validation {entry.validation_accuracy:.3f}, {entry.seconds:.0f} s",
            flush=True,
        )

    folder = work / name
    plan = Plan(
        row_settings(ROWS[name], work / "cache"),
        manifest,
        folder,
        NUM_FOLDS,
        listener=Listener(note=print, epoch=show, processes=processes),
    )
    started = time.perf_counter()
    run_training(plan)
    print(f"  {name}: {time.perf_counter() - started:.0f} s", flush=True)
    return read_predictions(folder / PREDICTIONS_FILE)


def seconds_per_epoch(folder: Path) -> float:
    """Median seconds of an epoch over all folds, as the runs logged them."""
    lines = [
        line
        for log in sorted(folder.glob("fold-*/training/log.jsonl"))
        for line in log.read_text().splitlines()
    ]
    seconds = sorted(json.loads(line)["seconds"] for line in lines)
    return seconds[len(seconds) // 2]


def show_table(found: dict[str, Predictions], work: Path) -> None:
    """Print one line per network, then a test between those that differ in one thing."""
    columns = ("network", "input", "epochs", "s per epoch", "accuracy", "macro AUC", "log loss")
    lines = []
    for name, predictions in found.items():
        figures = estimate_figures(predictions)
        cells = [figures.overall[each] for each in ("accuracy", "macro_auc", "log_loss")]
        by_class = ", ".join(
            f"{label} {figures.per_class[label]['sensitivity'].value:.2f}"
            for label in THREE_CLASSES
        )
        row, seconds = ROWS[name], seconds_per_epoch(work / name)
        budget = (f"{row.input_edge}^3", str(row.epochs), f"{seconds:.0f}")
        lines.append([name, *budget, *(each.words for each in cells), by_class])
    print(f"\n{as_markdown_table([*columns, 'sensitivity'], lines)}\n")
    for first, second in (
        ("maseres-paper", "maseres-published"),
        ("roi-resnet18-all", "roi-resnet18-none"),
        ("roi-resnet18-all", "maseres-paper"),
        ("roi-resnet18-all", "voxcnn"),
    ):
        if first in found and second in found:
            (test,) = compare(found[first], found[second], "mcnemar")
            print(
                f"- {first} against {second}: accuracy {test.estimate:+.3f}, exact McNemar, "
                f"p: {p_value_text(test.p_value)} ({test.note})"
            )


def main() -> None:
    """Simulate, cross-validate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, help="of a training; default: PyTorch's")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = arguments.work
    manifest = make_cohort(work / "cohort", arguments.patients, arguments.processes)
    names = arguments.only.split(",")
    found = {name: run_row(name, work, manifest, arguments.processes) for name in names}
    show_table(found, work)


if __name__ == "__main__":
    run(main)

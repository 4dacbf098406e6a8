"""Both ablation studies to their end on simulated patients: small inputs, narrow networks.

    python benchmarks/ablations.py WORK [--manifest FILE] [--patients 240] [--epochs 15] [--only X]

Without a manifest the patients are simulated first (benchmarks/simulated_cohort.py does the same).
WORK then holds `roi/`, the 18 rows of the RoI-aware paper's tables and three further placements of
the gates, `maseres/`, a MASERes, and `damage/`, its damaged models; a second call goes on. The
disease is simulated: the tables show that the studies run and how they read, not what a network
would do on patients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measuring import in_turns, run
from simulated_cohort import make_cohort

from chestct.classifier import load_classifier
from chestct.datasets.manifest import TEST, Manifest, read_manifest, write_manifest
from chestct.datasets.splits import SplitSettings, hold_out, part
from chestct.labels import THREE_CLASSES, TWO_CLASSES
from chestct.studies.compare_with_paper import compare_with_paper, write_with_paper
from chestct.studies.damage import DamagePlan, run_damage, write_damage
from chestct.studies.roi_ablation import ROI_LAYERS, run_ablation, table_rows, write_ablation
from chestct.training.plan import Listener, Plan
from chestct.training.session import run_training, train_all
from chestct.training.settings import RunSettings

MASERES_SIZE = 28
SPACING_MM = 336 / MASERES_SIZE
MASERES_EPOCHS = 20
"""Fewer would leave BatchNorm's moving statistics, with Keras's momentum, where they began."""
PLACED_T = 0.8
SHOWN = partial(train_all, before=lambda name: print(f"  {name}", flush=True))


@dataclass(frozen=True)
class Work:
    """What one call was asked for."""

    folder: Path
    manifest: Path
    num_patients: int
    epochs: int
    repeats: int
    edge: int
    test_share: float

    @property
    def split(self) -> SplitSettings:
        """How patients are divided, by the seed 1."""
        return SplitSettings(test_share=self.test_share, validation_share=0.1, seed=1)

    @property
    def cache(self) -> str:
        """Prepared inputs of all networks."""
        return str(self.folder / "cache")

    def remarks(self, what: str) -> list[str]:
        """What stands above every table."""
        return [
            "Simulated patients with simulated disease: nothing here says anything about patients.",
            f"{what} Not the papers' inputs, widths or number of epochs.",
        ]


def roi_settings(work: Work) -> RunSettings:
    """The RoI-aware paper's recipe at a small size, a narrow network, our optimiser."""
    return RunSettings.model_validate(
        {
            "labels": THREE_CLASSES,
            "network": {"name": "roi_resnet18", "settings": {"width": 8, "head_units": 64}},
            "recipe": {"name": "roi_resnet_paper", "overrides": {"input_shape": [work.edge] * 3}},
            "data": {"cache": work.cache},
            "augmentation": {"name": "roi_resnet_paper"},
            "training": {
                "epochs": work.epochs,
                "batch_size": 8,
                "learning_rate": 2e-3,
                "precision": "float32",
            },
        }
    )


def maseres_settings(work: Work) -> RunSettings:
    """MASERes as published, with lungs at a fixed physical size."""
    overrides = {"input_shape": [MASERES_SIZE] * 3, "spacing_mm": [SPACING_MM] * 3}
    return RunSettings.model_validate(
        {
            "labels": TWO_CLASSES,
            "network": {"name": "maseres", "settings": {"attention": "published"}},
            "recipe": {"name": "maseres_recommended", "overrides": overrides},
            "data": {"cache": work.cache},
            "training": {
                "epochs": MASERES_EPOCHS,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "precision": "bf16",
            },
        }
    )


def first_patients(manifest: Manifest, num_patients: int) -> Manifest:
    """As many of each class as there are of the rarest, and so many in all at most."""
    per_class = min([num_patients // len(manifest.labels), *manifest.cases.values()])
    seen = dict.fromkeys(manifest.labels, 0)
    kept = []
    for row in manifest.rows:
        seen[row.label] += 1
        if seen[row.label] <= per_class:
            kept.append(row)
    return manifest.with_rows(kept)


def roi_study(work: Work) -> None:
    """Tables 6 and 7, and the placements of the gates at one t."""
    chosen = first_patients(read_manifest(work.manifest, THREE_CLASSES), work.num_patients)
    file = write_manifest(hold_out(chosen, work.split), work.folder / "roi.csv")
    plan = Plan(roi_settings(work), file, work.folder / "roi", listener=LISTENER)
    what = f"RoI-ResNets of width 8 on {work.edge}^3 voxels, {work.epochs} epochs."
    table = run_ablation(plan, table_rows(), train=SHOWN)
    write_ablation(table, plan.folder, remarks=work.remarks(what))
    write_with_paper(compare_with_paper(plan.folder), plan.folder)
    placed = table_rows(("roi_resnet18",), ROI_LAYERS, (PLACED_T,))
    placements = run_ablation(plan, placed, train=SHOWN)
    write_ablation(placements, work.folder / "placements", remarks=work.remarks(what))


def damage_study(work: Work) -> None:
    """Train a MASERes, then damage it."""
    # Rows of the third class would be labels that this network does not know.
    everyone = read_manifest(work.manifest, THREE_CLASSES)
    two = replace(everyone.choose(lambda row: row.label in TWO_CLASSES), labels=TWO_CLASSES)
    chosen = first_patients(two, work.num_patients)
    file = write_manifest(hold_out(chosen, work.split), work.folder / "maseres.csv")
    settings = maseres_settings(work)
    run_training(Plan(settings, file, work.folder / "maseres", listener=LISTENER))
    classifier = load_classifier(work.folder / "maseres" / "classifier")
    tested = part(read_manifest(file, TWO_CLASSES), TEST)
    plan = DamagePlan(
        classifier,
        tested,
        work.folder / "damage",
        repeats=work.repeats,
        data=settings.data,
        listener=LISTENER,
    )
    what = f"MASERes (published form) on {MASERES_SIZE}^3 voxels, {MASERES_EPOCHS} epochs."
    write_damage(run_damage(plan), plan.folder, remarks=work.remarks(what))


def write_page(work: Work, page: Path) -> None:
    """Put the tables below the page's last heading, one level deeper."""
    head, heading, rest = page.read_text(encoding="utf-8").partition(RESULTS)
    intro = rest.split("\n### ")[0].rstrip()
    tables = []
    for name in ("roi", "placements", "damage"):
        text = (work.folder / name / "table.md").read_text(encoding="utf-8").strip()
        tables.append(text.replace("\n## ", "\n#### ").replace("# ", "### ", 1))
    parts = [intro, *tables]
    page.write_text(head + heading + "\n\n".join(parts) + "\n", encoding="utf-8")


RESULTS = "## On simulated patients\n"
LISTENER = Listener(note=lambda text: print(f"  ! {text}", flush=True), processes=1)


def timed(name: str, study: Callable[[Work], None], work: Work) -> None:
    """Run a study and say what it took."""
    print(name, flush=True)
    cost = in_turns({name: partial(study, work)}, 1, num_warming=0)[name]
    print(f"{name}: {cost.processor_s / 60:.1f} min of CPU, {cost.clock_s / 60:.1f} min")


def main() -> None:
    """Run both studies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--edge", type=int, default=40, help="voxels of a RoI-ResNet's input")
    parser.add_argument("--test-share", type=float, default=0.3)
    parser.add_argument("--only", choices=STUDIES)
    parser.add_argument("--page", type=Path, help="docs/ablations.md: its tables are replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.work
    manifest = arguments.manifest or make_cohort(folder / "patients", arguments.patients, 2)
    work = Work(
        folder,
        manifest,
        num_patients=arguments.patients,
        epochs=arguments.epochs,
        repeats=arguments.repeats,
        edge=arguments.edge,
        test_share=arguments.test_share,
    )
    for name in [arguments.only] if arguments.only else STUDIES:
        timed(name, STUDIES[name], work)
    if arguments.page:
        write_page(work, arguments.page)


STUDIES = {"damage": damage_study, "roi-ablation": roi_study}

if __name__ == "__main__":
    run(main)

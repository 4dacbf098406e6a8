"""The MASERes paper's damaged models: what a trained classifier still knows without a part.

Every damaged network's predictions are kept in a file of their own, so that a stopped study goes
on where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from chestct.classifier import Classifier
from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import read_options
from chestct.datasets.store import Cache
from chestct.datasets.workers import Progress
from chestct.engines import Engine, make_engine
from chestct.errors import ReadError
from chestct.evaluation.predictions import Predictions, read_predictions, write_predictions
from chestct.storage import write_text
from chestct.studies.damage_parts import (
    SHARE,
    Choice,
    Layer,
    Zeroed,
    choose_parts,
    damage,
    published_choice,
    random_choice,
)
from chestct.studies.study_rows import StudyError
from chestct.training.judging import judge_manifest
from chestct.training.ready import Listener, make_cache
from chestct.training.results import scan_key
from chestct.training.settings import DataSection

RECORD_FILE: Final = "damage.json"
UNDAMAGED_FILE: Final = "undamaged.csv"
PUBLISHED: Final = "published"


@dataclass(frozen=True, eq=False)
class DamagePlan:
    """One call of `chestct study damage`.

    Attributes:
        classifier: Whose network is damaged.
        manifest: Labelled scans that it is judged on.
        folder: The study's folder.
        parts: Names of parts; empty takes all.
        share: Of each layer's units.
        repeats: Random choices of units beside the published one.
        seed: Of these choices.
        device: PyTorch's name of the device, None for the CPU.
        data: Where the cache of prepared inputs is.
        listener: Who is told how far things are.
    """

    classifier: Classifier
    manifest: Manifest
    folder: Path
    parts: tuple[str, ...] = ()
    share: float = SHARE
    repeats: int = 0
    seed: int = 1
    device: str | None = None
    data: DataSection = field(default_factory=DataSection)
    listener: Listener = field(default_factory=Listener)


@dataclass(frozen=True, eq=False)
class DamagedPart:
    """What came of damaging one part.

    Attributes:
        name: The part.
        num_layers: Layers of it that were damaged.
        zeroed: Numbers set to zero, as many in every choice.
        published: Predictions with the published choice of units.
        repeats: Predictions with each random choice.
    """

    name: str
    num_layers: int
    zeroed: Zeroed
    published: Predictions
    repeats: tuple[Predictions, ...] = ()


@dataclass(frozen=True, eq=False)
class DamageResult:
    """The whole study.

    Attributes:
        undamaged: Predictions of the classifier as it is.
        parts: One per part.
        excluded: Scans that got no decision, with the reason.
    """

    undamaged: Predictions
    parts: tuple[DamagedPart, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DamagedNetwork:
    """A classifier's network with units set to zero, as an engine wants it."""

    classifier: Classifier
    layers: tuple[Layer, ...]
    choice: Choice

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """As the classifier's."""
        return self.classifier.input_size

    @property
    def weights_sha256(self) -> str:
        """Of the undamaged weights; `identity` tells damaged ones apart."""
        return self.classifier.weights_sha256

    @property
    def identity(self) -> str:
        """What decides what the network computes, beside its undamaged weights."""
        damaged = [[layer.module, layer.head] for layer in self.layers]
        return json.dumps([self.classifier.identity, damaged, [list(c) for c in self.choice]])

    def load_network(self) -> nn.Module:
        """A new network, damaged, in eval mode."""
        network = self.classifier.load_network()
        damage(network, self.layers, self.choice)
        return network


def run_damage(plan: DamagePlan) -> DamageResult:
    """Judge the classifier as it is and with each part damaged, or go on doing so.

    Raises:
        StudyError: A number is impossible, or the folder holds another study.
        ChestCTError: A part is unknown, scans cannot be prepared, or the folder not be written.
    """
    if not 0 < plan.share <= 1 or plan.repeats < 0:
        msg = f"A share of {plan.share:g} with {plan.repeats} repeats is impossible."
        raise StudyError(f"{msg} The share is above 0 and at most 1, repeats are 0 or more.")
    network = plan.classifier.load_network()
    parts = choose_parts(network, plan.parts)
    _agree_on_record(plan)
    cache = make_cache(plan.data, plan.classifier.recipe)
    undamaged, excluded = _undamaged(plan, cache)
    damaged = [_run_part(plan, cache, undamaged, each) for each in parts.items()]
    return DamageResult(undamaged, tuple(damaged), excluded)


def _undamaged(plan: DamagePlan, cache: Cache) -> tuple[Predictions, dict[str, str]]:
    """What the classifier says as it is; scans are prepared on the way."""
    path, reasons = plan.folder / UNDAMAGED_FILE, plan.folder / "excluded.json"
    if path.is_file() and reasons.is_file():
        return read_predictions(path), json.loads(reasons.read_text(encoding="utf-8"))
    engine = make_engine(plan.classifier, "torch", precision="float32", device=plan.device)
    found, excluded = judge_manifest(plan.classifier, engine, plan.manifest, cache, plan.listener)
    for scan, reason in excluded.items():
        plan.listener.note(f"No decision on {scan}: {reason}")
    write_text(reasons, json.dumps(excluded, indent=1, ensure_ascii=False) + "\n")
    write_predictions(found, path)
    return found, excluded


def _run_part(
    plan: DamagePlan, cache: Cache, undamaged: Predictions, part: tuple[str, Sequence[Layer]]
) -> DamagedPart:
    """Judge a part's damaged networks: the published choice first, then the random ones."""
    name, layers = part
    network = plan.classifier.load_network()
    found = []
    for kind, choice in _choices(plan, network, part):
        path = plan.folder / _folder_name(name) / f"{kind}.csv"
        if not path.is_file():
            model = DamagedNetwork(plan.classifier, tuple(layers), choice)
            engine = make_engine(model, "torch", precision="float32", device=plan.device)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(_judge(plan, cache, undamaged, engine), path)
        found.append(read_predictions(path))
        plan.listener.progress(f"damaging {name}", Progress(len(found), plan.repeats + 1, 0.0))
    choice = published_choice(network, layers, plan.share)
    return DamagedPart(
        name,
        sum(bool(units) for units in choice),
        damage(network, layers, choice),
        found[0],
        tuple(found[1:]),
    )


def _choices(
    plan: DamagePlan, network: nn.Module, part: tuple[str, Sequence[Layer]]
) -> Iterator[tuple[str, Choice]]:
    name, layers = part
    yield PUBLISHED, published_choice(network, layers, plan.share)
    for number in range(1, plan.repeats + 1):
        # Seeded by words, so that more repeats or other parts leave these choices as they are.
        generator = random.Random(f"{plan.seed} {name} {number}")
        yield f"random-{number:03d}", random_choice(network, layers, generator, plan.share)


def _judge(plan: DamagePlan, cache: Cache, undamaged: Predictions, engine: Engine) -> Predictions:
    """A damaged network on the scans that the undamaged one judged."""
    rows = {scan_key(row): row for row in plan.manifest.rows}
    shares = []
    for scan in undamaged.scans:
        row = rows[scan]
        found = cache.get(plan.manifest.path(row), read_options(row, plan.manifest.folder))
        by_label = plan.classifier.probabilities_of(engine.logits(found.input, found.lungs))
        shares.append([by_label[label] for label in undamaged.labels])
    return undamaged.with_probabilities(np.array(shares))


def _folder_name(part: str) -> str:
    return f"part-{part}"


def _agree_on_record(plan: DamagePlan) -> None:
    """Write down what the files of the folder depend on, or refuse when it holds other ones."""
    path = plan.folder / RECORD_FILE
    facts = {
        "classifier": plan.classifier.card.name,
        "weights_sha256": plan.classifier.weights_sha256,
        "scans": [scan_key(row) for row in plan.manifest.rows],
        "share": plan.share,
        "seed": plan.seed,
    }
    if not path.is_file():
        if plan.folder.is_dir() and any(plan.folder.iterdir()):
            msg = f"{plan.folder.name} is not empty and holds no study. Choose a new folder."
            raise StudyError(msg)
        write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path.name} in {plan.folder.name} is damaged ({error}). Start in a new folder."
        raise ReadError(msg) from error
    changed = [name for name, value in facts.items() if before.get(name) != value]
    if changed:
        msg = f"{plan.folder.name} holds a study with another {' and another '.join(changed)}"
        raise StudyError(f"{msg}. Use a new folder.")

"""The MASERes paper's damaged models: what a trained classifier still knows without a part.

Every damaged network's predictions are kept in a file of their own, so that a stopped study goes
on where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import nn

from chestct.classifier import Classifier
from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import read_options
from chestct.datasets.store import Cache
from chestct.datasets.workers import Progress
from chestct.engines import Engine, make_engine
from chestct.errors import ChestCTError, NetworkError, ReadError
from chestct.evaluation.comparisons import Comparison, compare
from chestct.evaluation.intervals import (
    Bootstrap,
    Figures,
    draw_patients,
    estimate_figures,
    percentile_interval,
    why_no_bootstrap,
)
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.predictions import Predictions, read_predictions, write_predictions
from chestct.evaluation.report import ESTIMATE_FIELDS, FILTERS, estimate_lines
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.networks.maseres import NUM_HEADS, Maseres
from chestct.report import as_csv, fill_markdown
from chestct.storage import write_text
from chestct.studies.model_audit import with_network
from chestct.studies.study_rows import holm
from chestct.training.data import make_cache
from chestct.training.judging import judge_here, judge_manifest
from chestct.training.plan import Listener
from chestct.training.results import scan_key
from chestct.training.settings import DataSection

SHARE: Final = 0.25
"""Share of each layer's units in the paper."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or dense layer, or one head's own row of a dense layer.

    Attributes:
        module: Dotted name of the module.
        head: The row of its weight that is a layer of its own; its *inputs* are then set to zero
            and its bias stays, as in the paper's model III. None: output units with their biases.
    """

    module: str
    head: int | None = None

    def num_units(self, network: nn.Module) -> int:
        """How many there are to choose from."""
        weight = _weight(network, self.module)
        return int(weight.shape[0 if self.head is None else 1])


Parts = Mapping[str, Sequence[_Layer]]
_Choice = Sequence[Sequence[int]]
"""For each layer of a part, the units that are set to zero."""


_BLOCK: Final = ("conv1", "conv2", "se.squeeze", "se.excite", "shortcut")


def _parts_of(network: nn.Module) -> dict[str, list[_Layer]]:
    """The parts that can be damaged: I to V of MASERes, else one per top-level module.

    The paper's layer numbers give the order in which its seeds are counted. For the heads
    (III) the notebook numbers keys and queries before values; which of them is which it does not
    say, and it makes no difference to the published attention, where both are inert.
    """
    if isinstance(network, Maseres):
        return _maseres_parts()
    parts: dict[str, list[_Layer]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            parts.setdefault(name.split(".")[0], []).append(_Layer(name))
    return {
        name: layers
        for name, layers in parts.items()
        if any(int(SHARE * layer.num_units(network)) for layer in layers)
    }


def _choose_parts(network: nn.Module, names: Sequence[str] = ()) -> dict[str, list[_Layer]]:
    """The named parts, or all; a name may also be a module's dotted name."""
    known = _parts_of(network)
    if not names:
        return known
    inside = {
        name: [
            _Layer(f"{name}.{inner}" if inner else name)
            for inner, module in part.named_modules()
            if isinstance(module, nn.Conv3d | nn.Linear)
        ]
        for name, part in network.named_modules()
        if name
    }
    offered = {**{name: layers for name, layers in inside.items() if layers}, **known}
    return {name: offered[name] if name in offered else look_up(known, name, kind="part")
            for name in names}  # fmt: skip


def _published_choice(
    network: nn.Module, layers: Sequence[_Layer], share: float = SHARE
) -> _Choice:
    """The notebook's choice: `random.Random(1)` for the first layer of a part, 2 for the next, ...

    The numbers of all units are shuffled and the first quarter is taken.
    """
    return [
        _drawn(random.Random(seed), layer.num_units(network), share)
        for seed, layer in enumerate(layers, start=1)
    ]


def _damage(network: nn.Module, layers: Sequence[_Layer], choice: _Choice) -> tuple[int, int]:
    """Set units to zero, in place; how many weights and how many biases."""
    weights = biases = 0
    with torch.no_grad():
        for layer, units in zip(layers, choice, strict=True):
            weight = _weight(network, layer.module)
            bias = getattr(network.get_submodule(layer.module), "bias", None)
            if layer.head is not None:
                weight[layer.head, list(units)] = 0
                weights += len(units)
                continue
            weight[list(units)] = 0
            weights += len(units) * weight[0].numel()
            if bias is not None:
                bias[list(units)] = 0
                biases += len(units)
    return weights, biases


def _maseres_parts() -> dict[str, list[_Layer]]:
    blocks = [f"block{number}.{name}" for number in (1, 2, 3) for name in _BLOCK]
    keys_and_queries = [
        _Layer(f"attention.{name}", head) for head in range(NUM_HEADS) for name in ("key", "query")
    ]
    values = [_Layer("attention.value", head) for head in range(NUM_HEADS)]
    return {
        "I": [_Layer("stem.0"), _Layer("stem.3")],
        "II": [_Layer(name) for name in blocks],
        "III": [*keys_and_queries, *values],
        "IV": [_Layer("fc1")],
        "V": [_Layer("fc2")],
    }


def _drawn(generator: random.Random, num_units: int, share: float) -> list[int]:
    numbers = list(range(num_units))
    generator.shuffle(numbers)
    return sorted(numbers[: int(num_units * share)])


def _weight(network: nn.Module, module: str) -> torch.Tensor:
    weight = getattr(network.get_submodule(module), "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise NetworkError(f"'{module}' has no weights to be damaged.")
    return weight


_RECORD_FILE: Final = "damage.json"
_UNDAMAGED_FILE: Final = "undamaged.csv"
_PUBLISHED: Final = "published"


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


class _DamagedPart(NamedTuple):
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
    zeroed: int
    published: Predictions
    repeats: tuple[Predictions, ...] = ()


class _DamageResult(NamedTuple):
    """Predictions of the classifier as it is and of each part, and why scans got no decision."""

    undamaged: Predictions
    parts: tuple[_DamagedPart, ...]
    excluded: Mapping[str, str] = MappingProxyType({})


Damaged = tuple[str, int]
"""A part and which choice of its units: 0 the published one, then the random ones."""


def run_damage(
    plan: DamagePlan, *, elsewhere: Callable[[list[Damaged]], object] | None = None
) -> _DamageResult:
    """Judge the classifier as it is and with each part damaged, or go on doing so.

    Args:
        plan: What is to be done.
        elsewhere: Has damaged networks judged, each by `DamageJudge`, once all scans are prepared;
            None judges them here.

    Raises:
        ChestCTError: A number is impossible, the classifier tells findings, the folder holds
            another study or cannot be written, a part is unknown, or scans cannot be prepared.
    """
    if not 0 < plan.share <= 1 or plan.repeats < 0:
        msg = f"A share of {plan.share:g} with {plan.repeats} repeats is impossible."
        raise ChestCTError(f"{msg} The share is above 0 and at most 1, repeats are 0 or more.")
    if plan.classifier.are_findings:
        msg = f"'{plan.classifier.card.name}' tells findings, and the damage is judged on classes."
        raise ChestCTError(f"{msg} Name a classifier of classes.")
    judge = DamageJudge(plan)
    undamaged, excluded = _undamaged(plan, judge.cache)
    wanted = list(product(judge.parts, range(plan.repeats + 1)))
    if elsewhere is not None:
        elsewhere(wanted)
    else:
        for name, number in wanted:
            judge.judge(name, number)
            progress = Progress(number + 1, plan.repeats + 1, 0.0)
            plan.listener.progress(f"damaging {name}", progress)
    return _DamageResult(undamaged, tuple(map(judge.result, judge.parts)), excluded)


def _undamaged(plan: DamagePlan, cache: Cache) -> tuple[Predictions, dict[str, str]]:
    """What the classifier says as it is; scans are prepared on the way."""
    path, reasons = plan.folder / _UNDAMAGED_FILE, plan.folder / "excluded.json"
    if path.is_file() and reasons.is_file():
        return read_predictions(path), json.loads(reasons.read_text(encoding="utf-8"))
    judging = partial(judge_here, plan.classifier, _engine(plan, plan.classifier))
    found, excluded = judge_manifest(plan.classifier, judging, plan.manifest, cache, plan.listener)
    write_text(reasons, json.dumps(excluded, indent=1, ensure_ascii=False) + "\n")
    write_predictions(found, path)
    # `run_damage` sees to it that they are of classes.
    return found, excluded  # type: ignore[return-value]


class DamageJudge:
    """Damages a classifier's network, part by part, and judges it on what it judged undamaged.

    Args:
        plan: Of the study.

    Raises:
        ChestCTError: The folder holds another study.
        UnknownNameError: There is no such part.
    """

    def __init__(self, plan: DamagePlan) -> None:
        self._plan = plan
        self._network = plan.classifier.load_network()
        self.parts = _choose_parts(self._network, plan.parts)
        """The damaged parts."""
        _agree_on_record(plan)
        self.cache = make_cache(plan.data, plan.classifier.recipe)
        """Where the scans' inputs are kept."""

    def judge(self, name: str, number: int) -> None:
        """Judge a part's network with one choice of units, unless that was done."""
        path = self._file(name, number)
        if path.is_file():
            return
        damaged = self._plan.classifier.load_network()
        _damage(damaged, self.parts[name], self._choice(name, number))
        engine = _engine(self._plan, with_network(self._plan.classifier, damaged))
        undamaged = read_predictions(self._plan.folder / _UNDAMAGED_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(_judge(self._plan, self.cache, undamaged, engine), path)

    def result(self, name: str) -> _DamagedPart:
        """What came of damaging a part, all its choices judged."""
        published, *repeats = (
            read_predictions(self._file(name, number)) for number in range(self._plan.repeats + 1)
        )
        choice = self._choice(name, 0)
        return _DamagedPart(
            name,
            sum(bool(units) for units in choice),
            sum(_damage(self._plan.classifier.load_network(), self.parts[name], choice)),
            published,
            tuple(repeats),
        )

    def _file(self, name: str, number: int) -> Path:
        kind = f"random-{number:03d}" if number else _PUBLISHED
        return self._plan.folder / f"part-{name}" / f"{kind}.csv"

    def _choice(self, name: str, number: int) -> _Choice:
        layers = self.parts[name]
        if not number:
            return _published_choice(self._network, layers, self._plan.share)
        # Seeded by words, so that more repeats or other parts leave these choices as they are.
        generator = random.Random(f"{self._plan.seed} {name} {number}")
        share = self._plan.share
        return [_drawn(generator, each.num_units(self._network), share) for each in layers]


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


def _engine(plan: DamagePlan, classifier: Classifier) -> Engine:
    return make_engine(classifier, "torch", precision="float32", device=plan.device)


def _agree_on_record(plan: DamagePlan) -> None:
    """Write down what the files of the folder depend on, or refuse when it holds other ones."""
    path = plan.folder / _RECORD_FILE
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
            raise ChestCTError(msg)
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
        raise ChestCTError(f"{msg}. Use a new folder.")


_UNDAMAGED = "undamaged"
_SHOWN = ("accuracy", "macro_auc", "log_loss")


@dataclass(frozen=True)
class DamageRow:
    """One part in the table.

    Attributes:
        part: What was damaged; the first row is the undamaged classifier.
        figures: With the published choice of units.
        test: McNemar's, undamaged against damaged; None for the undamaged.
        holm: Its p-value after Holm's correction over all parts.
        mean: Mean accuracy over the random choices, with its interval; None without any.
        accuracies: Accuracy with each random choice.
    """

    part: _DamagedPart | None
    figures: Figures
    test: Comparison | None = None
    holm: float | None = None
    mean: Estimate | None = None
    accuracies: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The part's, or that nothing is damaged."""
        return self.part.name if self.part else _UNDAMAGED


def _make_damage_rows(result: _DamageResult, settings: Bootstrap) -> tuple[DamageRow, ...]:
    """The figures of the undamaged classifier and of every part."""
    rows = [_row(result.undamaged, part, settings) for part in result.parts]
    tested = [row.test.p_value if row.test else None for row in rows]
    corrected = holm([1.0 if p is None else p for p in tested])
    first = DamageRow(None, estimate_figures(result.undamaged, settings))
    return (first, *(replace(r, holm=p) for r, p in zip(rows, corrected, strict=True)))


def write_damage(
    result: _DamageResult,
    folder: Path,
    *,
    remarks: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> tuple[DamageRow, ...]:
    """Write `table.md` and `table.csv`.

    Raises:
        WriteError: They cannot be written.
    """
    rows = _make_damage_rows(result, bootstrap or Bootstrap())
    write_text(folder / "table.md", _damage_markdown(result, rows, remarks))
    write_text(folder / "table.csv", _damage_csv(rows))
    return rows


def _damage_markdown(
    result: _DamageResult, rows: Sequence[DamageRow], remarks: Sequence[str]
) -> str:
    """The table for people."""
    left_out = f"Scans without a decision, left out: {len(result.excluded)}."
    return fill_markdown(
        "chestct.studies/damage.md.j2",
        {**FILTERS, "prefixed": lambda label: f"sensitivity {label}"},
        notice=NOT_FOR_CLINICAL_USE,
        remarks=[*remarks, *([left_out] if result.excluded else [])],
        undamaged=result.undamaged,
        rows=rows,
        shown=_SHOWN,
    )


def _damage_csv(rows: Sequence[DamageRow]) -> str:
    """One line per part and figure; the mean over choices is the figure `mean accuracy`."""
    lines: list[list[object]] = []
    for row in rows:
        zeroed = row.part.zeroed if row.part else 0
        figures = row.figures
        if row.mean is not None:
            overall = {**figures.overall, "mean accuracy over choices": row.mean}
            figures = replace(figures, overall=overall)
        lines += [[row.name, zeroed, *line] for line in estimate_lines(figures)]
        if row.test is not None:
            lines.append([row.name, zeroed, "", "mcnemar p", row.test.p_value, *[None] * 5,
                          row.test.note])  # fmt: skip
            lines.append([row.name, zeroed, "", "mcnemar p (Holm)", row.holm, *[None] * 6])
    return as_csv(["part", "zeroed", "label", "figure", *ESTIMATE_FIELDS], lines)


def _mean_accuracy(repeats: Sequence[Predictions], settings: Bootstrap) -> Estimate | None:
    """Mean accuracy over choices of units, patients and choices both drawn anew; None of none."""
    if not repeats:
        return None
    is_right = np.stack([each.is_right for each in repeats]).astype(np.float64)
    value = float(is_right.mean())
    why_not = why_no_bootstrap(repeats[0])
    if why_not or len(repeats) == 1:
        return Estimate(value, note=why_not or "no interval: a single choice shows no spread")
    rng = np.random.default_rng([settings.seed, 1])
    means = []
    for weights in draw_patients(repeats[0], settings):
        accuracies = weights @ is_right.T / weights.sum(axis=1, keepdims=True)
        shares = np.full(len(repeats), 1 / len(repeats))
        drawn = rng.multinomial(len(repeats), shares, size=len(weights)) / len(repeats)
        means.append((accuracies * drawn).sum(axis=1))
    low, high, note = percentile_interval(np.concatenate(means), settings.level)
    return Estimate(value, low, high, "bootstrap over patients and choices", note)


def _row(undamaged: Predictions, part: _DamagedPart, settings: Bootstrap) -> DamageRow:
    (test,) = compare(undamaged, part.published, "mcnemar")
    return DamageRow(
        part,
        estimate_figures(part.published, settings),
        test=test,
        mean=_mean_accuracy(part.repeats, settings),
        accuracies=tuple(float(each.is_right.mean()) for each in part.repeats),
    )

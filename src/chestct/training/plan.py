"""One call of a command that trains: its settings, what they name, who is told, and its record."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from chestct import __version__
from chestct.arrays import Spacing
from chestct.card import CARD_FILE, SLICE_CARD_FILE, PictureForm
from chestct.classifier import WEIGHTS_FILE, Classifier, load_classifier
from chestct.datasets.augment import SLICE_AUGMENTATIONS, AnyAugmentation, find_augmentation
from chestct.datasets.splits import SLICE_SPLITS
from chestct.datasets.workers import Progress
from chestct.errors import (
    ClassifierError,
    ExplanationError,
    NetworkError,
    ReadError,
    RecipeError,
    TrainingError,
    UnknownNameError,
)
from chestct.explain import EXPLANATIONS, LAYERED, split_choice
from chestct.explain.maps import finest_layer, pick_layer
from chestct.explain.question import Question, refuse_layer
from chestct.extras import is_installed
from chestct.labels import ClassLabel
from chestct.lookup import look_up
from chestct.networks import build_network, plugin_of
from chestct.networks.given_weights import TakenWeights, load_given_weights
from chestct.networks.maseres import ClassUnits
from chestct.networks.slices import (
    IMAGENET,
    SLICE_NETWORKS,
    SliceNetwork,
    build_slice_network,
    find_weights,
    load_backbone_weights,
)
from chestct.preprocess.recipes import Recipe, find_recipe, recipe_from_dict
from chestct.remote import sha256_of
from chestct.storage import file_sha256, write_text
from chestct.training.distributed import CPU, current_ranks, device_in_words, settle_precision
from chestct.training.run import FREE_SETTINGS, EpochLog, check_parts, check_something_learns
from chestct.training.settings import (
    ExplanationSection,
    RunSettings,
    SliceRunSettings,
    TrainingSettings,
    flat_settings,
)

CLASSIFIER_FOLDER: Final = "classifier"


@dataclass(frozen=True)
class _Beginning:
    """The given weights that a network begins with, and what of them fits.

    The head is kept of a classifier of the same classes and settings. `said` is where they come
    from, in words, with the hash and no path; `licence` their terms of use, where a card says them.
    """

    file: Path
    with_head: bool
    taken: TakenWeights
    said: str
    licence: str = ""

    def __str__(self) -> str:
        return f"Begun with {self.said}. {self.taken}"


@dataclass(frozen=True)
class Parts:
    """What a run's settings name, found and checked.

    `network_settings` are all that `build_network` has to be told, the input's shape with it.
    Without `beginning` weights are drawn, without `classes` labels are plain names.
    """

    network: str
    network_settings: dict[str, object]
    recipe: Recipe
    augmentation: AnyAugmentation | None
    labels: tuple[str, ...]
    beginning: _Beginning | None = None
    classes: tuple[ClassLabel, ...] | None = None
    are_findings: bool = False

    @property
    def taken(self) -> TakenWeights | None:
        """What was taken of given weights; None for drawn ones."""
        return None if self.beginning is None else self.beginning.taken

    @property
    def plugin_versions(self) -> dict[str, str]:
        """Version of the other package that brings the network, by its name; empty for ours."""
        plugin = plugin_of(self.network)
        return {} if plugin is None else {plugin.package: plugin.version}

    def build_network(self, seed: int) -> nn.Module:
        """The network, weights given or drawn from a seed; torch's generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(
                self.network,
                self.recipe.num_channels,
                len(self.labels),
                self.network_settings,
            )
        given = self.beginning
        if given is not None:
            load_given_weights(network, given.file, with_head=given.with_head)
        return network


def find_parts(settings: RunSettings) -> Parts:
    """Find and check what the settings name, and that network and recipe fit together.

    Raises:
        TrainingError: Something is unknown, impossible or does not fit; the message names the
            setting by its dotted path.
    """
    _require_distinct(settings.labels)
    recipe = _find_recipe(settings)
    with _blamed_on("augmentation"):
        chosen = settings.augmentation
        augmentation = find_augmentation(chosen.name, chosen.overrides)
    with _blamed_on("network"):
        network_settings, network = _fit_network(settings, recipe)
    _check_named_parts(network, settings.training)
    _check_kind(settings, network)
    with _blamed_on("explanation"):
        explanation_of(network, recipe, settings.explanation, recipe.spacing_mm)
    parts = Parts(
        network=settings.network.name,
        network_settings=network_settings,
        recipe=recipe,
        augmentation=augmentation,
        labels=settings.labels,
        classes=settings.classes,
        are_findings=settings.kind == "findings",
    )
    if settings.training.start_from is None:
        return parts
    with _blamed_on("training.start_from"):
        begun = _beginning(parts, Path(settings.training.start_from))
    own = begun.licence or settings.training.start_licence or "not known"
    return replace(parts, beginning=replace(begun, licence=own))


def _check_kind(settings: RunSettings, network: nn.Module) -> None:
    """Refuse what has no meaning for findings, or for classes."""
    if settings.kind == "classes":
        if settings.thresholds.wished_sensitivity is not None:
            msg = "'thresholds.wished_sensitivity' is of findings, and these labels are classes."
            raise TrainingError(f"{msg} Leave it out, or set kind to findings.")
        return
    if settings.training.sampling == "balanced":
        msg = "'training.sampling': balanced draws classes, and a scan has several findings. Set"
        raise TrainingError(f"{msg} training.class_weights to balanced instead.")
    if any(isinstance(each, ClassUnits) and each.is_sigmoid for each in network.modules()):
        msg = (
            f"'network.name': the network {settings.network.name} gives two labels from one unit, "
            "so that one is there where the other is not; two findings are independent. Choose "
            "another network, or add a finding."
        )
        raise TrainingError(msg)


def _check_named_parts(network: nn.Module, training: TrainingSettings) -> None:
    """Refuse names of a network's parts that it does not have, and to freeze all of it."""
    with _blamed_on("training.freeze"):
        check_parts(network, training.freeze)
        check_something_learns(network, training.freeze)
    with _blamed_on("training.rates"):
        check_parts(network, training.rates)


def _beginning(parts: Parts, place: Path) -> _Beginning:
    """Given weights, of a classifier's folder, a run's, or a file, tried out on the network.

    Raises:
        NetworkError: The file cannot be read or nothing of it fits.
        ClassifierError: The folder holds no sound classifier, or one of another network.
    """
    file = _weights_file(place)
    if file == place:
        taken = load_given_weights(parts.build_network(0), file)
        said = f"the weights of {file.name}, SHA-256 {file_sha256(file)}"
        return _Beginning(file, with_head=False, taken=taken, said=said)
    given = load_classifier(file.parent)
    if given.card.network != parts.network:
        msg = (
            f"'{given.card.name}' is a classifier of the network {given.card.network}, and "
            f"{parts.network} is to be trained. Set network.name={given.card.network}."
        )
        raise ClassifierError(msg)
    is_alike = (given.card.findings is not None) == parts.are_findings
    with_head = given.labels == parts.labels and is_alike
    taken = load_given_weights(parts.build_network(0), file, with_head=with_head)
    said = f"the classifier '{given.card.name}', SHA-256 {given.weights_sha256}"
    said += _differences(parts, given)
    return _Beginning(file, with_head, taken, said, given.card.licence)


def _weights_file(place: Path) -> Path:
    """The file of given weights: that of a classifier's or a run's folder, or the file itself.

    Raises:
        ClassifierError: The folder holds no finished classifier.
    """
    if not place.is_dir():
        return place
    for folder in (place, place / CLASSIFIER_FOLDER):
        if (folder / CARD_FILE).is_file():
            return folder / WEIGHTS_FILE
    msg = (
        f"{place} holds no classifier of scans. Expected a classifier's folder ({CARD_FILE} and "
        f"{WEIGHTS_FILE}), a finished run's, with --folds one of its fold-N, or a file of weights; "
        f"an unfinished run has {TRAINING_FOLDER}/best.safetensors."
    )
    raise ClassifierError(msg)


def _differences(parts: Parts, given: Classifier) -> str:
    """What a classifier that is begun with does otherwise, in words; empty where nothing."""
    said = []
    if given.labels != parts.labels:
        said.append(f"its classes are {', '.join(given.labels)}")
    if given.recipe != parts.recipe:
        said.append(f"its scans were prepared by another form of '{given.recipe.name}'")
    return f" ({'; '.join(said)})" if said else ""


def _find_recipe(settings: RunSettings) -> Recipe:
    with _blamed_on("recipe.name"):
        named = find_recipe(settings.recipe.name)
    with _blamed_on("recipe.overrides"):
        return recipe_from_dict({**asdict(named), **settings.recipe.overrides})


def _fit_network(settings: RunSettings, recipe: Recipe) -> tuple[dict[str, object], nn.Module]:
    """The network's settings with the recipe's input shape, tried out on a network without memory.

    Returns:
        The settings, and the network on the meta device.
    """
    chosen: dict[str, object] = dict(settings.network.settings)
    num_classes = len(settings.labels)
    with torch.device("meta"):
        network = build_network(settings.network.name, recipe.num_channels, num_classes, chosen)
        has_shape = hasattr(getattr(network, "settings", None), "input_shape")
        if has_shape and "input_shape" not in chosen:
            chosen["input_shape"] = list(recipe.input_shape)
            network = build_network(settings.network.name, recipe.num_channels, num_classes, chosen)
        with torch.no_grad():
            scan = torch.zeros(1, recipe.num_channels, *recipe.input_shape)
            network.eval()(scan, torch.zeros(1, 1, *recipe.input_shape))
    return chosen, network


def explanation_of(
    network: nn.Module, recipe: Recipe, chosen: ExplanationSection, spacing_mm: Spacing
) -> str:
    """How a network's answers are explained, as a card says it: "METHOD" or "METHOD:LAYER".

    Its weights are not looked at. `spacing_mm` is the input's, with some recipes another from scan
    to scan.

    Raises:
        UnknownNameError: There is no such method.
        ChestCTError: It is another package's and cannot be imported.
        ExplanationError: There is no such layer, or the method looks at none.
    """
    split_choice(chosen.method)
    with torch.device("meta"):
        scan = torch.zeros(1, recipe.num_channels, *recipe.input_shape)
        question = Question(network, scan, scan[:, :1], layer=chosen.layer)
    if chosen.method not in LAYERED:
        if chosen.method in EXPLANATIONS:
            refuse_layer(question, chosen.method)
        return ":".join(filter(None, (chosen.method, chosen.layer)))
    if chosen.layer is not None:
        return f"{chosen.method}:{pick_layer(question).name}"
    layer = finest_layer(question, spacing_mm, chosen.cell_mm)
    # Covering patches needs no layer.
    return "occlusion" if layer is None else f"{chosen.method}:{layer.name}"


def _require_distinct(labels: tuple[str, ...]) -> None:
    if len(set(labels)) < len(labels):
        raise TrainingError(f"'labels' names a class twice: {', '.join(labels)}.")


@contextmanager
def _blamed_on(setting: str) -> Iterator[None]:
    """Put the dotted path of a setting before what is said of it."""
    try:
        yield
    except (
        ClassifierError,
        ExplanationError,
        NetworkError,
        RecipeError,
        TrainingError,
        UnknownNameError,
    ) as error:
        raise TrainingError(f"'{setting}': {error}") from error


RANDOM_WEIGHTS = "random weights: nothing was learned from photographs first"


@dataclass(frozen=True)
class SliceParts:
    """What a slice run's settings name, found and checked.

    `network_settings` are all that `build_slice_network` has to be told; what only timm says of a
    network stands there too, as another version may say something else. `weights` is the file of
    the backbone's, or None for random ones, `weights_source` in words where they come from.
    """

    network: str
    network_settings: dict[str, object]
    weights: Path | None
    weights_source: str
    form: PictureForm
    augmentation: AnyAugmentation | None
    labels: tuple[str, ...]
    classes: tuple[ClassLabel, ...] | None = None

    def build_network(self, seed: int) -> SliceNetwork:
        """One member, its head drawn from a seed; torch's own generator is left as it was."""
        own = {**self.network_settings, "members": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = build_slice_network(self.network, len(self.labels), own)
        if self.weights is not None:
            load_backbone_weights(network, self.weights)
        return network  # type: ignore[no-any-return]

    def describe_weights(self) -> str:
        """Where the backbone's weights come from, in words, with the file's hash."""
        if self.weights is None:
            return RANDOM_WEIGHTS
        return f"{self.weights_source}, SHA-256 {file_sha256(self.weights)}"


def find_slice_parts(settings: SliceRunSettings) -> SliceParts:
    """Find and check what the settings name, weights among them.

    Raises:
        TrainingError: Something is unknown, impossible or missing; the message names the setting.
        MissingExtraError: timm is not installed.
    """
    _require_distinct(settings.labels)
    if settings.kind == "findings":
        msg = "'kind': findings are learned of whole scans; a slice has one class. Leave it out."
        raise TrainingError(msg)
    if settings.training.start_from is not None:
        msg = "'training.start_from' is for networks of scans: slices begin with network.weights."
        raise TrainingError(msg)
    chosen: dict[str, object] = dict(settings.network.settings)
    with _blamed_on("augmentation"):
        wanted = settings.augmentation
        augmentation = find_augmentation(wanted.name, wanted.overrides, SLICE_AUGMENTATIONS)
    with _blamed_on("data.split"):
        look_up(SLICE_SPLITS, settings.data.split, kind="split of slices")
    name, num = settings.network.name, len(settings.labels)
    with _blamed_on("network"), torch.device("meta"):
        network = build_slice_network(name, num, chosen)
        member = build_slice_network(name, num, {**chosen, "members": 1})
    _check_named_parts(member, settings.training)
    with _blamed_on("network.weights"):
        weights = find_weights(name, settings.network.weights)
    is_from_hub = settings.network.weights == IMAGENET
    source = network.facts.weights_id if is_from_hub else Path(settings.network.weights).name
    if name not in SLICE_NETWORKS:
        chosen["size"] = network.size
        if network.settings.scaling == "weights":
            chosen |= {each: list(values) for each, values in network.scaling.items()}
    form = PictureForm(size=network.size, **settings.pictures.model_dump())
    labels, classes = settings.labels, settings.classes
    return SliceParts(name, chosen, weights, source, form, augmentation, labels, classes)


TRAINING_FOLDER: Final = "training"
EVALUATION_FOLDER: Final = "evaluation"
PREDICTIONS_FILE: Final = "predictions.csv"
SCANS_FILE: Final = "scans.csv"
"""Which scans a training learned from, was watched on and was judged on, in its folder."""
BASELINE_FILE: Final = "baseline.csv"


@dataclass(frozen=True)
class Listener:
    """Who is told how far things have come; the functions may do nothing.

    `note` is told what a person should read, `progress` what is being done and how far it is,
    `epoch` a training's name and each of its epochs. `processes` scans are read at once; None takes
    all cores.
    """

    note: Callable[[str], None] = lambda _text: None
    progress: Callable[[str, Progress], None] = lambda _what, _progress: None
    epoch: Callable[[str, EpochLog], None] = lambda _name, _entry: None
    processes: int | None = None

    def watch(self, what: str) -> Callable[[Progress], None]:
        """The progress of one thing, by its name."""
        return lambda how_far: self.progress(what, how_far)


_AnySettings = TypeVar("_AnySettings", RunSettings, SliceRunSettings)


@dataclass(frozen=True)
class _AnyPlan(Generic[_AnySettings]):
    """One call of a command that trains; `num_folds` cross-validate, of slices always None."""

    settings: _AnySettings
    manifest: Path
    folder: Path
    num_folds: int | None = None
    listener: Listener = field(default_factory=Listener)
    device: torch.device = CPU

    @property
    def place(self) -> str:
        """Where it is trained, in words."""
        size = current_ranks().size
        return device_in_words(self.device) + (f", {size} processes" if size > 1 else "")


@dataclass(frozen=True)
class Plan(_AnyPlan[RunSettings]):
    """One call of `chestct train` or `chestct lr-range`."""

    settings: RunSettings


@dataclass(frozen=True)
class SlicePlan(_AnyPlan[SliceRunSettings]):
    """One call of `chestct slices train` or `chestct slices lr-range`."""

    settings: SliceRunSettings


def is_finished(folder: Path) -> bool:
    """Whether a training wrote everything."""
    return (folder / CLASSIFIER_FOLDER / CARD_FILE).is_file()


def is_whole(plan: Plan | SlicePlan) -> bool:
    """Whether all was written that a plan's run ends with, its folds pooled."""
    if plan.num_folds:
        return (plan.folder / EVALUATION_FOLDER / "metrics.json").is_file()
    card = SLICE_CARD_FILE if isinstance(plan, SlicePlan) else CARD_FILE
    return (plan.folder / CLASSIFIER_FOLDER / card).is_file()


RUN_FILE: Final = "run.json"
_PACKAGES: Final = ("torch", "numpy", "scipy", "scikit-learn", "statsmodels", "pydicom")
_PACKAGE_FOLDER: Final = Path(__file__).parents[1]
_FREE: Final = (
    "data.cache",
    "data.cache_gib",
    "tracking.mlflow_uri",
    "tracking.mlflow_experiment",
    *(f"training.{name}" for name in FREE_SETTINGS),
)
"""Settings that may differ when a run goes on; of `training.start_from` the hash is compared."""


def program_versions(*others: str) -> dict[str, str]:
    """Program to version, of all that has a part in the weights; of others where installed."""
    wanted = [*_PACKAGES, *(package for package in others if is_installed(package))]
    versions = {package: metadata.version(package) for package in wanted}
    return {"chestct": __version__, "python": platform.python_version(), **versions}


def _git_state(folder: Path = _PACKAGE_FOLDER) -> dict[str, object] | None:
    """Commit of the program and whether its files were changed since; None outside a repository."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", ".")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "is_changed": bool(changed.strip())}


def begin_record(plan: Plan | SlicePlan, taken: TakenWeights | None = None) -> None:
    """Write `run.json` in the plan's folder, or add to that of a run which goes on.

    `taken` is what was taken of the weights that the network begins with.

    Raises:
        TrainingError: The folder holds a run with other settings or scans, or something else.
        ReadError: Its `run.json` is damaged.
        WriteError: It cannot be written.
    """
    folder, settings = plan.folder, plan.settings
    path = folder / RUN_FILE
    given = settings.training.start_from
    facts: dict[str, Any] = {
        "seed": settings.training.seed,
        "folds": plan.num_folds,
        "manifest": {"name": plan.manifest.name, "sha256": sha256_of(plan.manifest)},
        "pretrained_sha256": None if given is None else file_sha256(_weights_file(Path(given))),
        "pretrained_tensors": None if taken is None else taken.as_record(),
        "settings": settings.model_dump(mode="json"),
    }
    sessions: list[object] = []
    if path.is_file():
        before = _read(path)
        before["settings"] = _with_defaults(folder, before["settings"], type(settings))
        _agree(folder, before, facts)
        sessions = before["sessions"]
    elif folder.is_dir() and any(folder.iterdir()):
        raise TrainingError(f"{folder.name} is not empty and holds no run. Choose a new folder.")
    facts["sessions"] = [*sessions, _session(plan.place)]
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def remark_on_given(plan: Plan, given: _Beginning) -> str | None:
    """What to say of weights that a run on the very same manifest gave; None of others."""
    for folder in given.file.parents[1:3]:
        if (folder / RUN_FILE).is_file():
            learned = _read(folder / RUN_FILE)["manifest"]["sha256"]
            if learned == sha256_of(plan.manifest):
                return (
                    "The given weights were learned from this very manifest: what is judged here "
                    "must not be what they learned from, or the figures are too good. A column "
                    "'split' that both runs follow keeps them apart; folds do not."
                )
    return None


def _session(place: str) -> dict[str, object]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": program_versions(),
        "git": _git_state(),
        "place": place,
    }


def settled(plan: Plan) -> Plan:
    """The plan with `training.precision` named, as the run in its folder was begun.

    Raises:
        ReadError: Its `run.json` is damaged.
    """
    path = plan.folder / RUN_FILE
    before = _read(path)["settings"].get("training", {}) if path.is_file() else {}
    wanted = plan.settings.training.precision
    return in_precision(plan, settle_precision(wanted, before.get("precision"), plan.device))


def in_precision(plan: Plan, precision: str) -> Plan:
    """The plan with another `training.precision`."""
    training = plan.settings.training.model_copy(update={"precision": precision})
    return replace(plan, settings=plan.settings.model_copy(update={"training": training}))


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"folds", "manifest", "settings", "sessions"} <= record.keys():
            raise ValueError("a field is missing")
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{path.name} in {path.parent.name} is damaged ({error}). Start in a new folder."
        raise ReadError(msg) from error
    return record


def _with_defaults(
    folder: Path, settings: dict[str, Any], model: type[RunSettings | SliceRunSettings]
) -> dict[str, Any]:
    """Settings of an earlier session; one that came after the run began had its default then."""
    try:
        return model.model_validate(settings).model_dump(mode="json")
    except ValidationError as error:
        name = ".".join(map(str, error.errors()[0]["loc"]))
        msg = (
            f"{folder.name} holds a run of another version of chestct, and this one does not know "
            f"what its setting {name} says. Use a new folder."
        )
        raise TrainingError(msg) from error


def _agree(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on where settings or scans differ; the message names the first ones."""
    if before["manifest"]["sha256"] != now["manifest"]["sha256"]:
        msg = f"{folder.name} holds a run on another manifest, or on this one before it was changed"
        raise TrainingError(f"{msg}. Use a new folder.")
    weights = "pretrained_sha256"
    pairs = {
        "folds": (before["folds"], now["folds"]),
        "the file of training.start_from": (before.get(weights), now[weights]),
    }
    old, new = flat_settings(before["settings"]), flat_settings(now["settings"])
    pairs |= {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    changed = [
        f"{name} was {was}, is {is_now}"
        for name, (was, is_now) in pairs.items()
        if was != is_now and name not in _FREE
    ]
    if changed:
        listed = ", ".join(changed)
        msg = f"{folder.name} holds a run with other settings: {listed}. Use a new folder."
        raise TrainingError(msg)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder, or None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout

"""What a training run can be told, checked before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from chestct.errors import TrainingError
from chestct.labels import ClassLabel, LabelSet

Label = Annotated[str, Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    """Settings that cannot be changed, and among which there are no unknown ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingSettings(_Strict):
    """Settings of one run's optimisation."""

    epochs: int = Field(default=20, ge=1, description="Passes over the training examples.")
    batch_size: int = Field(default=4, ge=1, description="Examples per forward pass.")
    accumulation: int = Field(default=1, ge=1, description="Forward passes per optimiser step.")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = Field(
        default="adamw", description="With PyTorch's defaults but for rate, decay and momentum."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Highest rate of the schedule.")
    weight_decay: float = Field(
        default=1e-2, ge=0, description="Decoupled for adamw, L2 otherwise."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of sgd and rmsprop.")
    adam_epsilon: float = Field(
        default=1e-8, gt=0, description="Of adam and adamw; Keras has 1e-7."
    )
    schedule: Literal["constant", "cosine", "piecewise", "plateau", "range"] = Field(
        default="cosine",
        description="How the rate falls, once per epoch; cosine falls every step. range rises, "
        "for 'chestct lr-range'.",
    )
    warmup_epochs: float = Field(default=1.0, ge=0, description="Linear rise at the start.")
    drop_every_epochs: int = Field(
        default=20,
        ge=1,
        description="Of piecewise; patience of plateau; range rises tenfold in so many.",
    )
    drop_factor: float = Field(default=0.2, gt=0, lt=1, description="Of piecewise and plateau.")
    early_stopping_epochs: int | None = Field(
        default=None, ge=1, description="Stop after so many epochs without a lower validation loss."
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Weights of the epoch with the lowest validation loss, or of the last.",
    )
    average_weights: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Of a moving average of weights and BatchNorm statistics, the share that each "
        "step keeps, such as 0.99; it is what is validated and kept. 0 is off.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="Weigh the loss by the inverse of each class's share."
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled", description="balanced draws with replacement, every class as often."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Of the cross-entropy.")
    mixup_alpha: float = Field(default=0.0, ge=0, description="Of the Beta distribution; 0 is off.")
    precision: Literal["float32", "bf16", "auto"] = Field(
        default="float32",
        description="bf16 runs convolutions under autocast; weights stay float32. auto is bf16 "
        "where the processor multiplies in it, and is settled once, when the run begins.",
    )
    batch_norm_warm_up: bool = Field(
        default=False,
        description="BatchNorm's moving statistics begin as a plain mean of the first passes: for "
        "short runs of networks with Keras's momentum (maseres, voxcnn).",
    )
    sync_batch_norm: bool = Field(
        default=True,
        description="On several GPUs, BatchNorm over the whole batch instead of each GPU's share.",
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="Residual blocks are computed again on the way back: less memory, more time, "
        "the same results.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile: a long first step, then faster ones on a GPU; excludes "
        "checkpoint_activations and batch_norm_warm_up.",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Processes that read examples; results do not vary. null: none on a CPU, up "
        "to 8 per GPU.",
    )
    checkpoint_every_s: float = Field(
        default=60.0, ge=0, description="Seconds between checkpoints within an epoch."
    )
    seed: int = Field(default=1, ge=0, description="Of weights, shuffling, augmentation, dropout.")
    start_from: str | None = Field(
        default=None,
        min_length=1,
        description="Classifier folder, run folder or file of weights that a network of scans "
        "begins with; null: drawn ones.",
    )
    start_licence: str | None = Field(
        default=None,
        min_length=1,
        description="Terms of use of a file of weights that is begun with, for the card.",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="Modules whose weights do not learn and whose BatchNorm statistics stand "
        "still, such as [layer1, layer2]; backbone is all but the head.",
    )
    rates: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Module to factor of its learning rate, such as {backbone: 0.1}; the longest "
        "name counts.",
    )

    @field_validator("compile")
    @classmethod
    def _compile_excludes(cls, value: bool, info: Any) -> bool:
        for other in ("checkpoint_activations", "batch_norm_warm_up"):
            if value and info.data.get(other):
                raise ValueError(f"it cannot be had with {other}: switch one of them off")
        return value


class _NetworkSection(_Strict):
    """Which network is trained."""

    name: str = Field(description="A name in NETWORKS; see 'chestct info'.")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The network's own settings; an input shape is taken from the recipe.",
    )


class _RecipeSection(_Strict):
    """How scans are prepared."""

    name: str = Field(description="A name in RECIPES; see 'chestct info'.")
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="Fields of the recipe that are to be other ones."
    )


class _AugmentationSection(_Strict):
    """How batches are varied while training."""

    name: str = Field(
        default="recommended", description="none, recommended, or one of the papers'."
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="Fields of the augmentation that are to be other ones."
    )


class DataSection(_Strict):
    """Which scans are used for what, where the manifest does not say it."""

    validation_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the patients of each class, at least one, that choose the epoch.",
    )
    split_seed: int = Field(default=1, ge=0, description="Of every split that is drawn.")
    variants: int = Field(
        default=1,
        ge=1,
        description="Inputs per training scan; all but the first draw the recipe's ranges (k1, k2, "
        "crop).",
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder, or address, of prepared inputs; null: in the user's cache.",
    )
    cache_gib: float = Field(
        default=100.0, gt=0, description="Most that the folder may hold, in GiB."
    )
    storage: Literal["float16", "uint8"] = Field(
        default="float16",
        description="How inputs are kept; the error is said before training starts.",
    )


class _AbstentionSection(_Strict):
    """When the finished classifier calls its own answer uncertain."""

    wished_error: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Highest error rate among the scans decided on; the threshold is chosen for "
        "it on the validation part.",
    )


class _ThresholdSection(_Strict):
    """From which probability on the finished classifier calls a finding present."""

    wished_sensitivity: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Of kind findings: the highest threshold with this sensitivity on the "
        "validation part; null: where sensitivity + specificity are largest (Youden's index).",
    )


class ExplanationSection(_Strict):
    """How the finished classifier explains its answers when nobody says how."""

    method: str = Field(
        default="gradcam++", min_length=1, description="A name in EXPLANATIONS; see 'chestct info'."
    )
    layer: str | None = Field(
        default=None,
        min_length=1,
        description="Of the network; null: the last one whose cells are at most cell_mm.",
    )
    cell_mm: float = Field(
        default=25.0, gt=0, description="Largest cells of the layer that is chosen, in mm."
    )


class TrackingSection(_Strict):
    """Where figures are sent beside the run folder; changes no result."""

    mlflow_uri: str | None = Field(
        default=None,
        min_length=1,
        description="MLflow's tracking URI; null: that of MLFLOW_TRACKING_URI, or no MLflow.",
    )
    mlflow_experiment: str = Field(
        default="chestct", min_length=1, description="MLflow's experiment."
    )

    @field_validator("mlflow_uri")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        if value is not None and re.search(r"://[^/]*@", value):
            # The run folder keeps all settings.
            msg = "it holds a name or password: use MLFLOW_TRACKING_USERNAME and _PASSWORD instead"
            raise ValueError(msg)
        return value


class LabelSettings(_Strict):
    """The classes or findings: names, or entries such as {name: emphysema, values: [yes]}."""

    labels: tuple[Label, ...] = Field(
        min_length=2,
        description="Classes in the classifier's order: names, or entries with name, wording, "
        "negative, code, color, values.",
    )
    classes: tuple[ClassLabel, ...] | None = Field(
        default=None, description="Filled in from entries under labels."
    )
    kind: Literal["classes", "findings"] = Field(
        default="classes",
        description="classes: a scan has exactly one. findings: any number, each with its own "
        "probability and threshold.",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_entries(cls, values: Any) -> Any:
        """Give entries under `labels` their own place, and leave their names there."""
        labels = values.get("labels") if isinstance(values, dict) else None
        if not isinstance(labels, list) or not any(isinstance(one, dict) for one in labels):
            return values
        entries = [one if isinstance(one, dict) else {"name": one} for one in labels]
        names = [entry.get("name", "") for entry in entries]
        return {**values, "labels": names, "classes": [_spelled_out(entry) for entry in entries]}

    @field_validator("classes")
    @classmethod
    def _are_a_set(
        cls, classes: tuple[ClassLabel, ...] | None, info: Any
    ) -> tuple[ClassLabel, ...] | None:
        names = info.data.get("labels")
        if classes is not None and names and LabelSet(classes).names != names:
            raise ValueError("they must have the names under labels, in their order")
        return classes

    @property
    def label_set(self) -> LabelSet:
        """The classes with what is said of each."""
        return LabelSet.said(self.labels, self.classes, are_findings=self.kind == "findings")

    @model_serializer(mode="wrap")
    def _of_its_kind(self, as_values: Callable[[BaseModel], dict[str, Any]]) -> dict[str, Any]:
        """What is of findings alone is left out where there are classes."""
        values = as_values(self)
        left_out = ("kind", "thresholds") if self.kind == "classes" else ()
        return {name: value for name, value in values.items() if name not in left_out}

    @field_validator("kind")
    @classmethod
    def _suits_the_labels(cls, kind: str, info: Any) -> str:
        names, classes = info.data.get("labels", ()), info.data.get("classes")
        LabelSet.said(names, classes, are_findings=kind == "findings")
        return kind


_YAML_WORDS: Final = {True: ["yes", "true"], False: ["no", "false"]}
"""What YAML takes for a truth value, and a spreadsheet's column may hold."""


def _spelled_out(entry: dict[str, Any]) -> dict[str, Any]:
    """A class whose values are words again, where YAML made truth values of them."""
    values = entry.get("values")
    if not isinstance(values, list):
        return entry
    words = [_YAML_WORDS[one] if isinstance(one, bool) else [one] for one in values]
    return {**entry, "values": [word for each in words for word in each]}


class RunSettings(LabelSettings):
    """Everything a training run depends on but the scans themselves."""

    network: _NetworkSection
    recipe: _RecipeSection
    data: DataSection = DataSection()
    augmentation: _AugmentationSection = _AugmentationSection()
    training: TrainingSettings = TrainingSettings()
    abstention: _AbstentionSection = _AbstentionSection()
    thresholds: _ThresholdSection = _ThresholdSection()
    explanation: ExplanationSection = ExplanationSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="before")
    @classmethod
    def _knows_its_old_name(cls, values: Any) -> Any:
        """`network.pretrained` is what `training.start_from` was called at first."""
        network = values.get("network") if isinstance(values, dict) else None
        if not isinstance(network, dict) or "pretrained" not in network:
            return values
        old = network["pretrained"]
        values = {**values, "network": {n: v for n, v in network.items() if n != "pretrained"}}
        if old is not None:
            training = values.get("training") or {}
            if training.get("start_from") not in (None, old):
                msg = "'network.pretrained' is the old name of 'training.start_from': keep one."
                raise TrainingError(msg)
            values["training"] = {**training, "start_from": old}
        return values


class _SliceNetworkSection(_Strict):
    """Which slice network is trained, and what it knows at the start."""

    name: str = Field(description="A name in SLICE_NETWORKS, or of any network of timm.")
    weights: str = Field(
        default="imagenet",
        min_length=1,
        description="imagenet: the hub's cache. none: random ones. Else a file: .safetensors, or "
        "a plain state dict.",
    )
    settings: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="head, tuned_blocks, batch_norm_statistics, dropout, scaling, mean, std, "
        "padding, size.",
    )


class _PicturesSection(_Strict):
    """How pictures become inputs."""

    interpolation: Literal["nearest", "linear"] = Field(
        default="linear", description="nearest is Keras's default, which the notebooks leave."
    )
    keeps_shape: bool = Field(
        default=True, description="Black margins for what is not square; else it is pulled square."
    )
    sixteen_bit: Literal["own_range", "full_range"] = Field(
        default="own_range", description="What of a 16-bit picture becomes 0 and 1."
    )


class SliceDataSection(_Strict):
    """Which slices are used for what, where the manifest does not say it."""

    split: str = Field(
        default="patient",
        description="patient, or slice_random_leaky: the paper's, which shares patients.",
    )
    test_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the patients that is tested on."
    )
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the patients that the epoch is chosen by."
    )
    split_seed: int = Field(default=1, ge=0, description="Of every split that is drawn.")
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder, or address, of prepared slices; null: in the user's cache.",
    )


class SliceRunSettings(LabelSettings):
    """Everything a training on slices depends on but the slices themselves."""

    network: _SliceNetworkSection
    pictures: _PicturesSection = _PicturesSection()
    data: SliceDataSection = SliceDataSection()
    augmentation: _AugmentationSection = _AugmentationSection()
    training: TrainingSettings = TrainingSettings()

    @property
    def num_members(self) -> int:
        """Networks that are trained, of which the mean answers; 1 where it is no whole number."""
        wanted = self.network.settings.get("members", 1)
        return wanted if isinstance(wanted, int) else 1


_PACKAGE: Final = Path(__file__).parents[1]
_SUFFIX: Final = ".yaml"


def shipped_folder() -> Path:
    """Where they are: in the package, or in the repository where that is run in place."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def shipped_names() -> list[str]:
    """What they are called: their paths in the folder, without the suffix."""
    folder = shipped_folder()
    return sorted(
        file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob(f"*{_SUFFIX}")
    )


def _find_settings(given: Path) -> Path:
    """The file of the settings given by path or by name; a file that is there comes first."""
    if given.is_file() or given.as_posix() not in shipped_names():
        return given
    return shipped_folder() / f"{given.as_posix()}{_SUFFIX}"


MAX_BYTES: Final = 2**20

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read and check the settings of a run on scans; see `read_settings_as`."""
    return read_settings_as(RunSettings, path, overrides)


def read_settings_as(
    model: type[Settings], path: str | Path, overrides: Sequence[str] = ()
) -> Settings:
    """Read and check a run's settings.

    Args:
        model: What they have to be: `RunSettings`, or `SliceRunSettings`.
        path: A YAML file with the model's sections, or the name of one that comes with chestct.
        overrides: Texts such as "training.epochs=5", which win over the file; what stands after
            the equals sign is read as YAML.

    Raises:
        TrainingError: The file cannot be read, or a setting is unknown, missing or impossible; the
            message names it by its dotted path.
    """
    file = _find_settings(Path(path))
    values = _read_yaml(file, model)
    for override in overrides:
        _override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise TrainingError(f"{file.name}: {_in_words(error, model)}") from error


def settings_as_yaml(settings: BaseModel) -> str:
    """All settings with every default filled in, as `read_settings` takes them."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted path, two levels deep as the sections are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_section = isinstance(value, dict) and not prefix
        inner = flat_settings(value, f"{name}.") if is_section else {prefix + name: value}
        flat |= inner
    return flat


def _setting_names(model: type[BaseModel] = RunSettings, prefix: str = "") -> list[str]:
    """Dotted paths of all settings."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _read_yaml(file: Path, model: type[BaseModel]) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{file} is larger than {MAX_BYTES} bytes: not a settings file.")
        values = _yaml_value(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        msg = (
            f"The settings {file} cannot be read: {reason}. Give a YAML file, or the name of "
            f"settings that come with chestct: {', '.join(shipped_names())}."
        )
        raise TrainingError(msg) from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{file.name} is not well-formed YAML: {error}") from error
    if not isinstance(values, dict):
        sections = ", ".join(model.model_fields)
        raise TrainingError(f"{file.name} holds no settings. Expected the sections {sections}.")
    return values


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads values that are written out: aliases of aliases can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """As usual, but for aliases."""
        if self.check_event(yaml.AliasEvent):
            msg = "a part is repeated by an alias (*NAME), which is not read; write it out"
            raise yaml.YAMLError(msg)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _yaml_value(text: str) -> Any:
    """What a text of YAML stands for.

    Raises:
        YAMLError: It is not well-formed, or nested too deep to be settings.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error


def _override(values: dict[str, Any], override: str) -> None:
    """Put one "name=value" into the nested values."""
    name, equals, text = override.partition("=")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        msg = f"'{override}' sets nothing. Write it as NAME=VALUE, such as training.epochs=5."
        raise TrainingError(msg)
    try:
        value = _yaml_value(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"The value of '{override}' is not well-formed YAML.") from error
    section = values
    for step in steps[:-1]:
        if section.get(step) is None:
            section[step] = {}
        inner = section[step]
        if not isinstance(inner, dict):
            raise TrainingError(f"'{override}': the setting '{step}' has no parts.")
        section = inner
    section[steps[-1]] = _number_of(value)


def _number_of(value: object) -> object:
    """A number that YAML 1.1 takes for text, such as 1e-4."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value  # type: ignore[arg-type]


def _in_words(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem, with the dotted path of its field and what is nearest to it."""
    first = error.errors()[0]
    name = ".".join(str(step) for step in first["loc"])
    if name.partition(".")[0] == "classes":
        return _of_entry(first)
    if first["type"] == "extra_forbidden":
        return _unknown(name, model)
    if first["type"] == "missing":
        return f"the setting '{name}' is missing."
    message = first["msg"].removeprefix("Value error, ")
    return f"'{name}' is {first['input']!r}: {message}.{_nearest_choice(first)}"


def _of_entry(problem: Mapping[str, Any]) -> str:
    """What is wrong with an entry under labels, or with all of them."""
    number, *field = problem["loc"][1:] or (None,)
    where = "labels" if number is None else f"labels, entry {int(number) + 1}"
    part = f", '{'.'.join(str(step) for step in field)}'" if field else ""
    if problem["type"] == "unexpected_keyword_argument":
        known = ", ".join(each.name for each in fields(ClassLabel))
        return f"{where}: there is no field '{field[-1]}'. Known: {known}."
    return f"{where}{part}: {problem['msg'].removeprefix('Value error, ')}."


def _unknown(name: str, model: type[BaseModel]) -> str:
    """Say that a setting is unknown; the nearest in its own section is looked for first."""
    names = _setting_names(model)
    section, _, leaf = name.rpartition(".")
    inside = [each for each in names if each.rpartition(".")[0] == section]
    here = inside if section else list(model.model_fields)
    nearest = _nearest_leaf(leaf, here) or _nearest_leaf(leaf, names)
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    return f"there is no setting '{name}'.{hint} Known: {', '.join(here)}."


def _nearest_leaf(leaf: str, names: Sequence[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    found = get_close_matches(leaf, leaves, n=1, cutoff=0.5)
    return leaves[found[0]] if found else ""


def _nearest_choice(problem: Mapping[str, Any]) -> str:
    choices = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    found = get_close_matches(str(problem["input"]), choices, n=1, cutoff=0.4)
    return f" Did you mean '{found[0]}'?" if found else ""

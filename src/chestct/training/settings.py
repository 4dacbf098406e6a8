"""What a training run can be told, checked before it starts."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

Label = Annotated[str, Field(min_length=1, max_length=100)]


class TrainingSettings(BaseModel):
    """Settings of one run's optimisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        default=False, description="torch.compile: a long first step, then faster ones on a GPU."
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
    seed: int = Field(default=1, ge=0, description="Of shuffling, augmentation and dropout.")

    @field_validator("compile")
    @classmethod
    def _compile_excludes(cls, value: bool, info: Any) -> bool:
        for other in ("checkpoint_activations", "batch_norm_warm_up"):
            if value and info.data.get(other):
                raise ValueError(f"it cannot be had with {other}: switch one of them off")
        return value


class NetworkSection(BaseModel):
    """Which network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="A name in NETWORKS; see 'chestct info'.")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The network's own settings; an input shape is taken from the recipe.",
    )


class RecipeSection(BaseModel):
    """How scans are prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="A name in RECIPES; see 'chestct info'.")
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="Fields of the recipe that are to be other ones."
    )


class AugmentationSection(BaseModel):
    """How batches are varied while training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="recommended", description="A name in AUGMENTATIONS, 'none' among them."
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="Fields of the augmentation that are to be other ones."
    )


class DataSection(BaseModel):
    """Which scans are used for what, where the manifest does not say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_share: float = Field(
        default=0.2, gt=0, lt=1, description="Share of the patients that the epoch is chosen by."
    )
    split_seed: int = Field(default=1, ge=0, description="Of every split that is drawn.")
    variants: int = Field(
        default=1,
        ge=1,
        description="Inputs per training scan; all but the first draw the recipe's ranges.",
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of prepared inputs; null: in the user's cache.",
    )
    cache_gib: float = Field(
        default=100.0, gt=0, description="Most that the folder may hold, in GiB."
    )
    storage: Literal["float16", "uint8"] = Field(
        default="float16",
        description="How inputs are kept; the error is said before training starts.",
    )


class AbstentionSection(BaseModel):
    """When the finished classifier calls its own answer uncertain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wished_error: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Highest error rate among the scans decided on; the threshold is chosen for "
        "it on the validation part.",
    )


class TrackingSection(BaseModel):
    """Where figures are sent beside the run folder; changes no result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class RunSettings(BaseModel):
    """Everything a training run depends on but the scans themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Label, ...] = Field(
        min_length=2, description="Class names in the classifier's order."
    )
    network: NetworkSection
    recipe: RecipeSection
    data: DataSection = DataSection()
    augmentation: AugmentationSection = AugmentationSection()
    training: TrainingSettings = TrainingSettings()
    abstention: AbstentionSection = AbstentionSection()
    tracking: TrackingSection = TrackingSection()

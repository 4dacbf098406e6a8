"""What a training run can be told, checked before it starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSettings(BaseModel):
    """Settings of one run's optimisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1, description="Passes over the training examples.")
    batch_size: int = Field(4, ge=1, description="Examples per forward pass.")
    accumulation: int = Field(1, ge=1, description="Forward passes per optimiser step.")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = Field(
        "adamw", description="With PyTorch's defaults but for rate, decay and momentum."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Highest rate of the schedule.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled for adamw, L2 otherwise.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd and rmsprop.")
    schedule: Literal["constant", "cosine", "piecewise", "plateau"] = Field(
        "cosine", description="How the rate falls, once per epoch; cosine falls every step."
    )
    warmup_epochs: float = Field(1.0, ge=0, description="Linear rise at the start.")
    drop_every_epochs: int = Field(20, ge=1, description="Of piecewise; patience of plateau.")
    drop_factor: float = Field(0.2, gt=0, lt=1, description="Of piecewise and plateau.")
    early_stopping_epochs: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a lower validation loss."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="Weigh the loss by the inverse of each class's share."
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="balanced draws with replacement, every class as often."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of the cross-entropy.")
    mixup_alpha: float = Field(0.0, ge=0, description="Of the Beta distribution; 0 is off.")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16 runs convolutions under autocast; weights stay float32."
    )
    workers: int = Field(0, ge=0, description="Processes that read examples; results do not vary.")
    checkpoint_every_s: float = Field(
        60.0, ge=0, description="Seconds between checkpoints within an epoch."
    )
    seed: int = Field(1, ge=0, description="Of shuffling, augmentation and dropout.")

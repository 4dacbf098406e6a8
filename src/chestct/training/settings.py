"""What a training run can be told, checked before it starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSettings(BaseModel):
    """Settings of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1, description="Passes over the training examples.")
    batch_size: int = Field(4, ge=1, description="Examples per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Highest rate of the schedule.")
    warmup_epochs: float = Field(1.0, ge=0, description="Linear rise before the cosine fall.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled decay of AdamW.")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="Of the cross-entropy.")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16 runs convolutions under autocast; weights stay float32."
    )
    seed: int = Field(1, ge=0, description="Of shuffling, augmentation and dropout.")

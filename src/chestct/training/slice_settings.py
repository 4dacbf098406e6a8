"""What a training on slices can be told: as for scans, with pictures in place of recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from chestct.training.settings import AugmentationSection, Label, TrainingSettings


class SliceNetworkSection(BaseModel):
    """Which slice network is trained, and what it knows at the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="A name in SLICE_NETWORKS.")
    weights: str = Field(
        default="imagenet",
        min_length=1,
        description="imagenet: the hub's cache. none: random ones. Else a .safetensors file.",
    )
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="head, tuned_blocks, dropout, scaling, size."
    )


class PicturesSection(BaseModel):
    """How pictures become inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interpolation: Literal["nearest", "linear"] = Field(
        default="linear", description="nearest is Keras's default, which the notebooks leave."
    )
    keeps_shape: bool = Field(
        default=True, description="Black margins for what is not square; else it is pulled square."
    )
    sixteen_bit: Literal["own_range", "full_range"] = Field(
        default="own_range", description="What of a 16-bit picture becomes 0 and 1."
    )


class SliceDataSection(BaseModel):
    """Which slices are used for what, where the manifest does not say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        description="Folder of prepared slices; null: in the user's cache.",
    )


class SliceRunSettings(BaseModel):
    """Everything a training on slices depends on but the slices themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Label, ...] = Field(
        min_length=2, description="Class names in the classifier's order."
    )
    network: SliceNetworkSection
    pictures: PicturesSection = PicturesSection()
    data: SliceDataSection = SliceDataSection()
    augmentation: AugmentationSection = AugmentationSection()
    training: TrainingSettings = TrainingSettings()

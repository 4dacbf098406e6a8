"""A trained slice network as a folder: its weights, and a card with all that using them takes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from safetensors.torch import load_file

from chestct.card import MeasuredResult
from chestct.datasets.slice_store import PictureForm
from chestct.errors import ClassifierError, NetworkError, UnknownNameError
from chestct.evaluation.patient_votes import VoteSettings
from chestct.evaluation.predictions import PredictionsError
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.networks.slices import SliceNetwork, build_slice_network
from chestct.storage import file_sha256, remove_file, write_text, write_whole_with
from chestct.weights import WEIGHTS_FILE, check_weights, save_weights

SLICE_CARD_FILE: Final = "slice_card.json"
MAX_CARD_BYTES: Final = 2**20

Words = Annotated[str, Field(min_length=1, max_length=10_000)]

_REMEDY: Final = "Get the folder again, or train anew: chestct slices train."


class _SlicePictures(BaseModel):
    """How pictures become inputs; see `PictureForm`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=32, le=1024)
    interpolation: Literal["nearest", "linear"]
    keeps_shape: bool
    sixteen_bit: Literal["own_range", "full_range"]


class _SliceVotes(BaseModel):
    """The numbers behind the votes on patients; see `VoteSettings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slice_threshold: float
    share_cut: float
    sharpness: float


class SliceCard(BaseModel):
    """Everything about a slice classifier but its weights.

    Attributes:
        schema_version: Version of this list of fields.
        name: The classifier's name.
        network: A name in `SLICE_NETWORKS`.
        network_settings: Those of `SliceSettings`; what is left out takes its default.
        pictures: How pictures become inputs.
        labels: What the logits stand for, in their order.
        backbone_weights: Where the backbone's weights came from.
        split: How its slices were divided; says so where patients were shared.
        trained_on: The training slices in words.
        results: What was measured.
        votes: The numbers behind the votes on patients, chosen on validation patients.
        temperature: What all logits are divided by before they become probabilities.
        versions: Program to version, of those that made it.
        licence: Terms of use of the weights.
        notice: The notice that it is not for clinical use.
        weights_sha256: Hash of the weights file; filled in when it is saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=100)]
    network: str
    network_settings: dict[str, JsonValue]
    pictures: _SlicePictures
    labels: tuple[str, ...] = Field(min_length=2, max_length=1000)
    backbone_weights: Words
    split: Words
    trained_on: Words
    results: tuple[MeasuredResult, ...]
    votes: _SliceVotes
    temperature: float = Field(ge=0.01, le=100.0)
    versions: dict[str, str]
    licence: Words
    notice: Words = NOT_FOR_CLINICAL_USE
    weights_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    @field_validator("votes")
    @classmethod
    def _are_possible(cls, votes: _SliceVotes) -> _SliceVotes:
        try:
            VoteSettings(**votes.model_dump())
        except PredictionsError as error:
            raise ValueError(str(error)) from error
        return votes

    @property
    def form(self) -> PictureForm:
        """How pictures become inputs."""
        return PictureForm(**self.pictures.model_dump())

    @property
    def vote_settings(self) -> VoteSettings:
        """The numbers behind the votes."""
        return VoteSettings(**self.votes.model_dump())


@dataclass(frozen=True, eq=False)
class SliceClassifier:
    """A slice network ready for use, and its card."""

    card: SliceCard
    network: SliceNetwork


def pictures_of(form: PictureForm) -> _SlicePictures:
    """A picture form as a card holds it."""
    return _SlicePictures(**asdict(form))


def votes_of(settings: VoteSettings) -> _SliceVotes:
    """Vote settings as a card holds them."""
    return _SliceVotes(**asdict(settings))


def save_slice_classifier(folder: Path, network: SliceNetwork, card: SliceCard) -> SliceCard:
    """Write weights and card, the card last: a folder that has it is complete.

    Raises:
        ClassifierError: A weight is not finite.
        WriteError: The folder cannot be written.
    """

    def _write(aside: Path) -> None:
        save_weights(aside, network)
        check_weights(aside, network)

    remove_file(folder / SLICE_CARD_FILE)
    weights = write_whole_with(folder / WEIGHTS_FILE, _write)
    complete = card.model_copy(update={"weights_sha256": file_sha256(weights)})
    text = json.dumps(complete.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_text(folder / SLICE_CARD_FILE, text + "\n")
    return complete


def load_slice_classifier(folder: Path) -> SliceClassifier:
    """Read a slice classifier and check all of it.

    Raises:
        ClassifierError: The folder is not a slice classifier's, or something in it is wrong.
        MissingExtraError: timm is not installed.
    """
    card = read_slice_card(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or file_sha256(weights) != card.weights_sha256:
        msg = f"{weights} is missing or not the file its card describes. {_REMEDY}"
        raise ClassifierError(msg)
    try:
        network = build_slice_network(card.network, len(card.labels), card.network_settings)
    except (UnknownNameError, NetworkError) as error:
        msg = f"{folder / SLICE_CARD_FILE}, field 'network': {error}"
        raise ClassifierError(msg) from error
    check_weights(weights, network)
    network.load_state_dict(load_file(weights))
    network.eval()
    return SliceClassifier(card, network)


def read_slice_card(folder: Path) -> SliceCard:
    """Read and check a slice classifier's card.

    Raises:
        ClassifierError: There is none, or a field is missing, unknown or wrong.
    """
    path = folder / SLICE_CARD_FILE
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ClassifierError(f"{path} is larger than {MAX_CARD_BYTES} bytes: not a card.")
        return SliceCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"The slice classifier's card {path} cannot be read: {error}. {_REMEDY}"
        raise ClassifierError(msg) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"]) or "the whole file"
        msg = f"{path}, field '{field}': {first['msg']}. {_REMEDY}"
        raise ClassifierError(msg) from error

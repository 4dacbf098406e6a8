"""A classifier's card: what it is, how it was made, what it was seen to do, and what it is not for.

There are two kinds: of classifiers of scans, and of single slices. A card is a JSON file beside the
weights. It is read strictly: a field that is missing, unknown or of the wrong kind is an error that
names it, as a card that is half understood would let a network run on inputs it was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_serializer,
)

from chestct.errors import ClassifierError
from chestct.labels import NOT_FOR_CLINICAL_USE, UNSUITABLE, ClassLabel, LabelSet
from chestct.lookup import unknown_name_message

CARD_FILE: Final = "card.json"
SLICE_CARD_FILE: Final = "slice_card.json"
_MAX_CARD_BYTES: Final = 2**20
SCHEMA_VERSION: Final = 1

Words = Annotated[str, Field(min_length=1, max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


def _tuples_to_lists(values: object) -> object:
    """Let `dataclasses.asdict` of settings or of a recipe be given as it is."""
    return json.loads(json.dumps(values)) if isinstance(values, Mapping) else values


_JsonSettings = Annotated[dict[str, JsonValue], BeforeValidator(_tuples_to_lists)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeasuredResult(_Strict):
    """One figure and how sure it is.

    Attributes:
        measure: What was measured, such as "accuracy".
        value: The figure.
        low: Lower end of its 95 % interval, or None where there is none.
        high: Upper end of its 95 % interval, or None.
        num_scans: Scans it was measured on.
        scans: Which scans those were, in words.
    """

    measure: Name
    value: float
    low: float | None = None
    high: float | None = None
    num_scans: int = Field(ge=1)
    scans: Words

    @field_validator("high")
    @classmethod
    def _is_an_interval(cls, high: float | None, info: Any) -> float | None:
        low = info.data.get("low")
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ValueError("low and high must be an interval, or both null")
        return high


class Abstention(_Strict):
    """Below which confidence the classifier had better not decide, and what that gave.

    Attributes:
        abstain_below: The largest probability, after the temperature, that is too small to decide.
        wished_error: Highest error rate wanted among the scans decided on.
        level: Certainty of the promise, for further scans of the same kind.
        coverage: Share of the scans it was chosen on that lie above it.
        risk: Error rate among them.
        risk_bound: Upper bound of the error rate, at that certainty.
        num_scans: Scans it was chosen on: validation scans of a training; for the shipped
            classifier see docs/default_classifier.md, also on what its risk is worth.
    """

    abstain_below: float = Field(gt=0, le=1)
    wished_error: float = Field(gt=0, lt=1)
    level: float = Field(gt=0, lt=1)
    coverage: float = Field(gt=0, le=1)
    risk: float = Field(ge=0, le=1)
    risk_bound: float = Field(ge=0, le=1)
    num_scans: int = Field(ge=1)


class FindingThreshold(_Strict):
    """From which probability on a finding is called present, and what that gave.

    Attributes:
        threshold: The probability, after the temperature.
        rule: How it was chosen, in words.
        sensitivity: Of the scans it was chosen on, the share of those with the finding that reach
            it; None where no scan had it.
        specificity: The share of those without that stay below; None where every scan had it.
        num_present: Scans it was chosen on that have the finding.
        num_absent: Those that have it not; scans of which it is not known count as neither.
    """

    threshold: float = Field(ge=0, le=1)
    rule: Words
    sensitivity: float | None = Field(default=None, ge=0, le=1)
    specificity: float | None = Field(default=None, ge=0, le=1)
    num_present: int = Field(ge=0)
    num_absent: int = Field(ge=0)


class FamiliarityCard(_Strict):
    """From which distance a scan is unlike those the classifier learned from.

    Attributes:
        method: A name in `familiarity.METHODS`.
        threshold: The largest distance that is still familiar.
        kept_share: Share of scans like those it was chosen on that lie within it.
        num_scans: Scans it was chosen on, as above.
        sha256: Hash of the file that the distances are measured with; filled in on saving.
    """

    method: Literal["mahalanobis", "neighbours"]
    threshold: float = Field(ge=0)
    kept_share: float = Field(gt=0, le=1)
    num_scans: int = Field(ge=1)
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class PictureForm(_Strict):
    """How pictures of slices become the inputs of a network.

    Attributes:
        size: Rows and columns of the input.
        interpolation: "nearest", Keras's default, which the paper's notebooks leave as it is; or
            "linear", which averages over what a smaller picture leaves out.
        keeps_shape: Whether a picture that is not square gets black margins instead of being
            pulled to a square.
        sixteen_bit: Of 16-bit pictures, "own_range" takes each one's lowest value for 0 and its
            highest for 1, "full_range" 0 and 65,535.
    """

    size: int = Field(ge=32, le=1024)
    interpolation: Literal["nearest", "linear"] = "nearest"
    keeps_shape: bool = False
    sixteen_bit: Literal["own_range", "full_range"] = "own_range"


class VoteSettings(_Strict):
    """The numbers behind two of the votes on patients; see `evaluation.predictions`.

    Attributes:
        slice_threshold: Of share: from which probability on a slice counts, 0 to 1.
        share_cut: Of share: from which share of slices on a patient counts as ill.
        sharpness: Of attention: 0 weighs all slices alike.
    """

    slice_threshold: float = Field(default=0.5, gt=0, le=1)
    share_cut: float = Field(default=0.1, gt=0, lt=1)
    sharpness: float = Field(default=5.0, ge=0)


_Kind = TypeVar("_Kind", bound="_AnyCard")


class _AnyCard(_Strict):
    """What the cards of all kinds of classifiers say.

    Attributes:
        schema_version: Version of this list of fields.
        name: The classifier's name.
        network: A name in the table of the kind's networks.
        network_settings: The network's own settings; what is left out takes its default.
        labels: What the logits stand for, in their order.
        classes: What is said of each of them; None: what the table of `chestct.labels` says of
            plain names.
        trained_on: The training data in words, ready to be shown with every result.
        results: What was measured.
        versions: Program to version, of those that made it.
        licence: Terms of use of the weights.
        notice: Must hold the notice that it is not for clinical use; may say more.
        weights_sha256: Hash of the weights file; filled in when the classifier is saved.
        temperature: What all logits are divided by before they become probabilities (Guo et al.
            2017), fitted on scans that were not trained on.
    """

    FILE: ClassVar[str]
    MAY_LACK: ClassVar[frozenset[str]]

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    network: Name
    network_settings: _JsonSettings = Field(default_factory=dict)
    labels: tuple[Name, ...] = Field(min_length=2, max_length=1000)
    classes: tuple[ClassLabel, ...] | None = None
    trained_on: Words
    results: tuple[MeasuredResult, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    licence: Words
    notice: Words = NOT_FOR_CLINICAL_USE
    weights_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    temperature: float = Field(default=1.0, ge=0.01, le=100.0)

    @field_validator("labels")
    @classmethod
    def _are_distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels) or UNSUITABLE in labels:
            raise ValueError(f"labels must differ from each other and from '{UNSUITABLE}'")
        return labels

    @field_validator("classes")
    @classmethod
    def _are_those_of_the_labels(
        cls, classes: tuple[ClassLabel, ...] | None, info: Any
    ) -> tuple[ClassLabel, ...] | None:
        if classes is not None and LabelSet(classes).names != info.data.get("labels"):
            raise ValueError("classes must have the names of the labels, in their order")
        return classes

    @property
    def label_set(self) -> LabelSet:
        """The labels with what is said of each."""
        return LabelSet.said(self.labels, self.classes)

    @field_validator("notice")
    @classmethod
    def _says_what_it_is_not(cls, notice: str) -> str:
        if NOT_FOR_CLINICAL_USE not in notice:
            raise ValueError(f'the notice must hold the words "{NOT_FOR_CLINICAL_USE}"')
        return notice

    @classmethod
    def read(cls: type[_Kind], folder: Path) -> _Kind:
        """Read and check the card in a classifier's folder.

        Raises:
            ClassifierError: There is none, it is no JSON, or a field is missing, unknown or wrong.
        """
        path = folder / cls.FILE
        try:
            if path.stat().st_size > _MAX_CARD_BYTES:
                raise ClassifierError(f"{path} is larger than {_MAX_CARD_BYTES} bytes: not a card.")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"The classifier's card {path} cannot be read: {error}. {_REMEDY}"
            raise ClassifierError(msg) from error
        try:
            card = cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise ClassifierError(_in_words(error, path, cls)) from error
        missing = sorted(set(cls.model_fields) - card.model_fields_set - cls.MAY_LACK)
        if missing:
            raise ClassifierError(f"{path} lacks the field '{missing[0]}'. {_REMEDY}")
        return card

    def write(self, folder: Path) -> None:
        """Write every field, for `read`."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / self.FILE).write_text(text + "\n", encoding="utf-8")


class Card(_AnyCard):
    """Everything about a classifier of scans but its weights; what all cards say, and this.

    Attributes:
        version: The classifier's version.
        recipe: Every field of the recipe that scans are prepared with.
        explanation: How its answers are best explained when nobody says how: a name in
            `EXPLANATIONS`, with ":LAYER" after it where it is not the last block's map.
        abstention: Where its answers are called uncertain; None where no threshold is known.
        familiarity: From where on scans are unlike those it learned from; None where that is not
            known.
        findings: Of a classifier of findings the threshold of each label, in their order; None of
            classes, of which a scan has exactly one. The file of such a card lacks the field.

    A card may lack classes, the temperature and the last four, and has their defaults then.
    """

    FILE: ClassVar[str] = CARD_FILE
    MAY_LACK: ClassVar[frozenset[str]] = frozenset(
        ("classes", "temperature", "explanation", "abstention", "familiarity", "findings")
    )
    """Fields that came later, which older cards do not have."""

    version: Name
    recipe: _JsonSettings
    explanation: Name = "gradcam"
    abstention: Abstention | None = None
    familiarity: FamiliarityCard | None = None
    findings: tuple[FindingThreshold, ...] | None = None

    @field_validator("findings")
    @classmethod
    def _have_a_threshold_each(
        cls, findings: tuple[FindingThreshold, ...] | None, info: Any
    ) -> tuple[FindingThreshold, ...] | None:
        if findings is not None and len(findings) != len(info.data.get("labels", ())):
            raise ValueError("there must be one per label, in their order")
        return findings

    @property
    def label_set(self) -> LabelSet:
        """The labels with what is said of each."""
        are_findings = self.findings is not None
        return LabelSet.said(self.labels, self.classes, are_findings=are_findings)

    @model_serializer(mode="wrap")
    def _of_its_kind(self, as_values: Callable[[BaseModel], dict[str, Any]]) -> dict[str, Any]:
        values = as_values(self)
        return {n: v for n, v in values.items() if n != "findings" or v is not None}

    @property
    def thresholds(self) -> dict[str, float]:
        """Finding to the probability from which on it is present; empty of classes."""
        pairs = zip(self.labels, self.findings or (), strict=False)
        return {label: finding.threshold for label, finding in pairs}


class SliceCard(_AnyCard):
    """Everything about a classifier of single slices but its weights; what all say, and this.

    Attributes:
        pictures: How pictures become inputs.
        backbone_weights: Where the backbone's weights came from.
        split: How its slices were divided; says so where patients were shared.
        votes: The numbers behind the votes on patients, chosen on validation patients.
    """

    FILE: ClassVar[str] = SLICE_CARD_FILE
    MAY_LACK: ClassVar[frozenset[str]] = frozenset(("schema_version", "notice", "classes"))

    pictures: PictureForm
    backbone_weights: Words
    split: Words
    votes: VoteSettings

    @field_validator("pictures", "votes")
    @classmethod
    def _are_whole(cls, settings: BaseModel) -> BaseModel:
        """Refuse settings that would take a default: it may not be what was trained with."""
        missing = sorted(set(type(settings).model_fields) - settings.model_fields_set)
        if missing:
            raise ValueError(f"it lacks '{missing[0]}'")
        return settings


_REMEDY: Final = "Get the classifier's folder again, or save it anew with this version of chestct."


def _in_words(error: ValidationError, path: Path, kind: type[_AnyCard]) -> str:
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "json_invalid":
        return f"{path} is not JSON: {first['msg']}. {_REMEDY}"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"{path}: {unknown_name_message(where, kind.model_fields, kind='field')} {_REMEDY}"
    if first["type"] == "missing":
        return f"{path} lacks the field '{where}'. {_REMEDY}"
    found = json.dumps(first["input"], default=str)
    shown = found if len(found) <= 60 else found[:57] + "..."
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path}: field '{where}' is {shown}: {reason}. {_REMEDY}"

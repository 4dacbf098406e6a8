"""A classifier: a trained network, the recipe it was trained with, its labels and its card.

On disk it is a folder of two files, `weights.safetensors` and `card.json`, and of a third,
`familiarity.safetensors`, where it can tell how far a scan lies from those it learned from. The
recipe travels with the weights, so that training and use cannot disagree. Classifiers of single
slices have a card of another kind, `slice_card.json`, with how pictures become inputs.

PyTorch is loaded only when the network itself is wanted: a classifier whose weights were checked
before runs in OpenVINO without it, and starts in a fraction of the time.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from chestct.card import CARD_FILE, Card, FamiliarityCard, SliceCard
from chestct.engines import Engine
from chestct.errors import (
    ClassifierError,
    NetworkError,
    RecipeError,
    UnknownNameError,
    WriteError,
    printable,
)
from chestct.extras import import_extra
from chestct.familiarity import (
    FAMILIARITY_FILE,
    KEPT_SHARE,
    Familiarity,
)
from chestct.lookup import look_up
from chestct.networks import NETWORKS, build_network, plugin_of
from chestct.preprocess.prepare import PreparedScan
from chestct.preprocess.recipes import Recipe, recipe_from_dict
from chestct.storage import file_sha256, find_entry, store_entry, text_key, write_folder_with

if TYPE_CHECKING:
    from torch import nn

    from chestct.networks.slices import MeanOfSliceNetworks, SliceNetwork

WEIGHTS_FILE: Final = "weights.safetensors"
"""safetensors: a header of names, shapes and types, then plain numbers. Reading it can run no code,
and the header is read first, so that a wrong file is refused before its numbers are loaded."""
_MAX_WEIGHTS_BYTES: Final = 4 * 2**30
"""Largest weights file read; 3D-AlexNet, the largest network here, has 1 GiB."""
_MAX_HEADER_BYTES: Final = 4 * 2**20
_TYPES: Final = {"F32": "torch.float32", "I64": "torch.int64"}
_REMEDY: Final = "Get the classifier's folder again."

DEFAULT_FOLDER: Final = Path(__file__).parent / "default_classifier"
"""The classifier that comes with the package."""
_ON_HUB: Final = "hf:"


class Answer(NamedTuple):
    """What a classifier says of one scan.

    Attributes:
        probabilities: Of every label, in label order, adding up to one; of findings each by itself.
        distance: How far the scan lies from those learned from; None where that is not known.
        percentile: Percentage of the scans that the threshold was chosen on that lie nearer; None
            likewise.
    """

    probabilities: dict[str, float]
    distance: float | None = None
    percentile: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A trained network and everything needed to use it as it was trained.

    Attributes:
        folder: Where it was loaded from.
        card: What it is, how it was made, what it is not for.
        recipe: How scans are prepared for it.
        weights_sha256: Hash of its weights file.
    """

    folder: Path
    card: Card
    recipe: Recipe
    weights_sha256: str

    def __repr__(self) -> str:
        """Name, network and labels on one line."""
        card = self.card
        return f"<Classifier {card.name}: {card.network}, {' / '.join(self.labels)}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the logits stand for, in their order."""
        return self.card.labels

    @property
    def are_findings(self) -> bool:
        """Whether a scan may have any number of the labels, or has exactly one."""
        return self.card.findings is not None

    def require_finding(self, name: str | None) -> None:
        """Refuse to be asked about a finding that is none of this classifier's.

        Raises:
            ClassifierError: It tells classes.
            UnknownNameError: There is no such finding.
        """
        if name is None:
            return
        if not self.are_findings:
            msg = f"'{self.card.name}' tells one class per scan ({', '.join(self.labels)})"
            raise ClassifierError(f"{msg} and no findings: leave the finding '{name}' out.")
        look_up(dict.fromkeys(self.labels), name, kind="finding")

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """What the network sees of one scan, (channel, depth, height, width)."""
        return (self.recipe.num_channels, *self.recipe.input_shape)

    @property
    def identity(self) -> str:
        """What decides what the network computes, beside its weights: layout, settings, code."""
        facts = [self.card.network, self.card.network_settings, self.input_size[0], self.labels]
        plugin = plugin_of(self.card.network)
        others = [] if plugin is None else [plugin.package, plugin.version, plugin.code_sha256]
        return json.dumps([*facts, _network_code_sha256(), *others], sort_keys=True)

    @cached_property
    def familiarity(self) -> Familiarity | None:
        """What tells how familiar a scan is; None where the card knows of no threshold.

        Raises:
            ClassifierError: Its file is not the one that the card describes.
        """
        kept = self.card.familiarity
        if kept is None:
            return None
        path = self.folder / FAMILIARITY_FILE
        found = Familiarity.read(path, kept.method, kept.threshold)
        _require_hash(path, file_sha256(path), kept.sha256)
        return found

    @cached_property
    def network(self) -> nn.Module:
        """The network with its weights, in eval mode, on the CPU; loaded when first used."""
        return self.load_network()

    def load_network(self) -> nn.Module:
        """A new network with its weights, in eval mode, on the CPU, float32."""
        from safetensors.torch import load_file

        network = _empty_network(self.card, self.recipe)
        network.load_state_dict(load_file(self.folder / WEIGHTS_FILE), assign=True)
        return network.eval()

    def probabilities(self, prepared: PreparedScan, engine: Engine) -> dict[str, float]:
        """Probability of every label, in label order, as in an `Answer`.

        The scan is prepared with this classifier's recipe, the engine made for its network.

        Raises:
            ClassifierError: The scan was prepared with another recipe.
            EngineError: The engine could not run the network.
        """
        self.require_own_recipe(prepared)
        return self.probabilities_of(engine.logits(prepared.input, prepared.lungs))

    def require_own_recipe(self, prepared: PreparedScan) -> None:
        """Refuse a scan that was prepared for another classifier.

        Raises:
            ClassifierError: Its recipe is another one.
        """
        if prepared.recipe != self.recipe:
            msg = (
                f"The scan was prepared with '{prepared.recipe.name}' and this classifier needs "
                f"its own form of '{self.recipe.name}': prepare it with `classifier.recipe`."
            )
            raise ClassifierError(msg)

    def answer_of(self, prepared: PreparedScan, engine: Engine) -> Answer:
        """As `probabilities`, and how far the scan lies from those that were learned from."""
        self.require_own_recipe(prepared)
        logits, features = engine.outputs(prepared.input, prepared.lungs)
        known = self.familiarity
        if known is None:
            return Answer(self.probabilities_of(logits))
        distance = known.distance(features)
        return Answer(self.probabilities_of(logits), distance, known.percentile(distance))

    def probabilities_of(self, logits: Float32[np.ndarray, " class"]) -> dict[str, float]:
        """Probability of every label, of what an engine gave for one scan."""
        scaled = logits.astype(np.float64) / self.card.temperature
        if self.are_findings:
            each = 0.5 * (1 + np.tanh(scaled / 2))
            return dict(zip(self.labels, each.tolist(), strict=True))
        shares = np.exp(scaled - scaled.max())
        shares /= shares.sum()
        return dict(zip(self.labels, shares.tolist(), strict=True))


def load_classifier(folder: str | Path | None = None) -> Classifier:
    """Load a classifier and check all of it.

    The comparison of the weights with the network needs PyTorch; its outcome is remembered in the
    user's cache under the hash of the weights, so that it is made once.

    Args:
        folder: The classifier's folder, None for the one that comes with the package, or
            "hf:NAME" or "hf:NAME@REVISION" for one on the Hugging Face hub, which is then asked.

    Raises:
        ClassifierError: The folder is not a classifier's, or something in it is wrong; the message
            names the file, the field or tensor, and what to do.
        MissingExtraError: It is on the hub, and the package for that is not installed.
    """
    if str(folder).startswith(_ON_HUB):
        folder = _from_hub(str(folder).removeprefix(_ON_HUB))
    path = DEFAULT_FOLDER if folder is None else Path(folder)
    if not path.is_dir():
        raise ClassifierError(_no_folder(path, is_default=folder is None))
    card = Card.read(path)
    _require_weights(path, card)
    classifier = Classifier(path, card, _recipe(card, path), card.weights_sha256)
    _check_once(classifier)
    _ = classifier.familiarity
    return classifier


def _from_hub(name: str) -> str:
    """The folder of a classifier's files in the cache of the hub's own package.

    Raises:
        ClassifierError: The hub cannot be asked, or has no such classifier.
    """
    # Read when the package is imported: without it every call tells the hub what is installed.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = import_extra("huggingface_hub", extra="hub")
    repository, _, revision = name.partition("@")
    wanted = [CARD_FILE, WEIGHTS_FILE, FAMILIARITY_FILE]
    try:
        folder: str = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=wanted
        )
    except Exception as error:
        # Of a dozen kinds, among them those of its HTTP client.
        reason = printable(str(error).strip().partition("\n")[0]).rstrip(".")
        msg = (
            f"The classifier '{name}' could not be had from the Hugging Face hub: "
            f"{reason or type(error).__name__}. Check the name, or name a folder."
        )
        raise ClassifierError(msg) from error
    return folder


@dataclass(frozen=True, eq=False)
class SliceClassifier:
    """A network of single slices ready for use, in eval mode, and its card."""

    card: SliceCard
    network: SliceNetwork | MeanOfSliceNetworks


def load_slice_classifier(folder: Path) -> SliceClassifier:
    """Load a classifier of single slices and check all of it.

    Raises:
        ClassifierError: The folder is not one's, or something in it is wrong; as above.
        MissingExtraError: timm is not installed.
    """
    from safetensors.torch import load_file

    card = SliceCard.read(folder)
    _require_weights(folder, card)
    network: SliceNetwork | MeanOfSliceNetworks = _built(card)  # type: ignore[assignment]
    _check_weights(folder / WEIGHTS_FILE, network)
    network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return SliceClassifier(card, network.eval())


def _require_weights(folder: Path, card: Card | SliceCard) -> None:
    """Refuse weights that are not those of the folder's card."""
    weights = folder / WEIGHTS_FILE
    _check_header_size(weights)
    _require_hash(weights, file_sha256(weights), card.weights_sha256)


def _require_hash(path: Path, found: str, wanted: str) -> None:
    """Refuse a file that is not the one a card describes."""
    if found != wanted:
        msg = (
            f"{path} is not the file its card describes (SHA-256 {found[:12]}..., the card has "
            f"'{wanted[:12]}...'): get the classifier's folder again."
        )
        raise ClassifierError(msg)


def save_classifier(
    folder: str | Path,
    network: nn.Module,
    card: Card | SliceCard,
    familiarity: Familiarity | None = None,
) -> None:
    """Write a classifier's folder: aside first, then renamed into place.

    Args:
        folder: Where to; may exist only if it is empty or holds a classifier, which is replaced.
        network: The trained network.
        card: Its card; the hash of the weights is filled in, and what it says of `familiarity`.
        familiarity: What tells how familiar a scan is, where that is known; of scans only.

    Raises:
        ClassifierError: The card's network or recipe does not fit `network`, or a weight is not
            finite.
        WriteError: Something else is in the folder, or it cannot be written.
    """
    target = Path(folder)
    _refuse_other_folders(target, card.FILE)
    recipe = _recipe(card, target) if isinstance(card, Card) else None

    def _write(aside: Path) -> None:
        save_weights(aside / WEIGHTS_FILE, network)
        _check_weights(aside / WEIGHTS_FILE, _empty_network(card, recipe))
        facts: dict[str, object] = {"weights_sha256": file_sha256(aside / WEIGHTS_FILE)}
        if isinstance(card, Card):
            facts["familiarity"] = _write_familiarity(aside, familiarity)
        card.model_copy(update=facts).write(aside)

    write_folder_with(target, _write)


def _write_familiarity(folder: Path, known: Familiarity | None) -> FamiliarityCard | None:
    """Write what tells familiar scans, and say what the card has to hold of it."""
    if known is None:
        return None
    path = folder / FAMILIARITY_FILE
    known.write(path)
    return FamiliarityCard(
        method=known.method,  # type: ignore[arg-type]
        threshold=known.threshold,
        kept_share=KEPT_SHARE,
        num_scans=len(known.watched),
        sha256=file_sha256(path),
    )


def _check_once(classifier: Classifier) -> None:
    """Compare weights and network, unless these very weights were found to fit before."""
    key = text_key(classifier.weights_sha256, classifier.identity)
    if find_entry("checked_weights", key) is not None:
        return
    weights = classifier.folder / WEIGHTS_FILE
    _check_weights(weights, _empty_network(classifier.card, classifier.recipe))

    def _write(entry: Path) -> None:
        (entry / "checked").write_text(classifier.weights_sha256, encoding="utf-8")

    store_entry("checked_weights", key, _write)


def _empty_network(card: Card | SliceCard, recipe: Recipe | None) -> nn.Module:
    """The card's network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return _built(card, recipe)


def _built(card: Card | SliceCard, recipe: Recipe | None = None) -> nn.Module:
    """The card's network, its weights drawn; of scans it takes the recipe's channels."""
    name, num_classes, settings = card.network, len(card.labels), card.network_settings
    try:
        if recipe is not None:
            return build_network(name, recipe.num_channels, num_classes, settings)
        from chestct.networks.slices import build_slice_network

        return build_slice_network(name, num_classes, settings)
    except (UnknownNameError, NetworkError) as error:
        msg = f"Classifier '{card.name}', field 'network' or 'network_settings': {error}"
        if recipe is not None and name not in NETWORKS:
            msg += " Another package may bring it: the card's 'versions' name it."
        raise ClassifierError(msg) from error


def _recipe(card: Card, folder: Path) -> Recipe:
    try:
        return recipe_from_dict(card.recipe)
    except RecipeError as error:
        raise ClassifierError(f"{folder / CARD_FILE}, field 'recipe': {error}") from error


@cache
def _network_code_sha256() -> str:
    """Hash of the code of all networks: a cached model must not outlive a change of it."""
    sources = sorted((Path(__file__).parent / "networks").glob("*.py"))
    return text_key(*(file_sha256(path) for path in sources))


def _no_folder(path: Path, *, is_default: bool) -> str:
    if is_default:
        return "This installation has no default classifier: name a classifier's folder."
    return f"There is no folder '{path}': expected one with {CARD_FILE} and {WEIGHTS_FILE}."


def _refuse_other_folders(target: Path, card_file: str) -> None:
    """Refuse to replace anything but a classifier, which has two files or three."""
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    if names - {FAMILIARITY_FILE} not in (set(), {card_file, WEIGHTS_FILE}):
        msg = f"{target} exists and is not just a classifier's folder: choose another one."
        raise WriteError(msg)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights to a file, as numbers and nothing else.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # What the system said stands in its text only.
        raise OSError(None, str(error).lower().removeprefix("error while serializing: ")) from error


def _check_weights(path: Path, network: nn.Module) -> None:
    """Check that a weights file holds what a network needs: names, shapes, types, finite numbers.

    The network may be on the meta device.

    Raises:
        ClassifierError: The file cannot be read, or a tensor is missing, left over, of another
            shape or type, or holds a value that is not finite.
    """
    _check_header_size(path)
    try:
        with safe_open(path, framework="numpy") as weights:
            _compare_names(path, set(weights.keys()), network)
            for name, wanted in network.state_dict().items():
                part = weights.get_slice(name)
                found = (tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype()))
                if found != (tuple(wanted.shape), str(wanted.dtype)):
                    msg = (
                        f"{path}: tensor '{name}' is {found[1]} {found[0]}, the card's network "
                        f"needs {wanted.dtype} {tuple(wanted.shape)}. {_REMEDY}"
                    )
                    raise ClassifierError(msg)
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                if not np.isfinite(weights.get_tensor(name)).all():
                    msg = f"{path}: tensor '{name}' holds values that are not finite. {_REMEDY}"
                    raise ClassifierError(msg)
    except (SafetensorError, OSError) as error:
        raise ClassifierError(f"{path} is not a sound weights file: {error}. {_REMEDY}") from error


def _check_header_size(path: Path) -> None:
    """Refuse a file whose size or declared header length is out of bounds.

    Raises:
        ClassifierError: It is, or the file is not there.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            declared = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise ClassifierError(f"The weights {path} cannot be read: {error}. {_REMEDY}") from error
    if size > _MAX_WEIGHTS_BYTES or not 2 <= declared <= min(size - 8, _MAX_HEADER_BYTES):
        msg = (
            f"{path} is not a sound weights file: {size} bytes with a declared header of "
            f"{declared} bytes. {_REMEDY}"
        )
        raise ClassifierError(msg)


def _compare_names(path: Path, found: set[str], network: nn.Module) -> None:
    wanted = set(network.state_dict())
    missing, left_over = sorted(wanted - found), sorted(found - wanted)
    if missing:
        msg = f"{path} lacks {len(missing)} tensors of the card's network, first '{missing[0]}'."
        raise ClassifierError(f"{msg} {_REMEDY}")
    if left_over:
        msg = f"{path} has {len(left_over)} tensors too many, first '{left_over[0]}'."
        raise ClassifierError(f"{msg} {_REMEDY}")

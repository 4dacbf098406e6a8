"""The words for labels, stages and numbers that every output shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chestct.result import ScanResult

_PROVENANCE_NAMES: Final[dict[str, str]] = {
    "classifier": "Classifier",
    "classifier_version": "Classifier version",
    "trained_on": "Trained on",
    "recipe": "Recipe",
    "engine": "Engine",
    "chestct_version": "chestct version",
    "series_uid": "Series identifier",
    "pixel_sha256": "Hash of the voxels (SHA-256)",
    "weights_sha256": "Hash of the weights (SHA-256)",
    "temperature": "Temperature of the probabilities",
    "lungs_are_given": "Lungs",
    "lungs_engine": "Engine of the lungs network",
    "lungs_weights_sha256": "Hash of the lungs network’s weights (SHA-256)",
}
"""Fields of a result's provenance, in the order they are shown, and their names in words."""

_METHOD_NAMES: Final[dict[str, str]] = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "strongest_channel": "the strongest channel",
    "occlusion": "occlusion",
    "attention": "attention",
}
"""Name in `EXPLANATIONS` to the words a reader sees; unknown names stand for themselves."""

CLASSLESS_METHODS: Final[dict[str, str]] = {
    "strongest_channel": "where the network’s most active channel is strongest",
    "attention": "how much attention the network paid to each place",
}
"""Those of them that look the same for every class, and what their colour shows."""


def named(values: Mapping[str, object], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """The values that have a name, in the order of the names, under their names."""
    return [(names[key], str(values[key])) for key in names if values.get(key) is not None]


def provenance_words(provenance: Mapping[str, object]) -> list[tuple[str, str]]:
    """The fields of a result's provenance in words, under their names."""
    temperature = provenance["temperature"]
    said = {
        **provenance,
        "temperature": "none fitted" if temperature == 1.0 else f"{temperature:.4g}",
        "lungs_are_given": "a mask that was given" if provenance["lungs_are_given"] else None,
    }
    return named(said, _PROVENANCE_NAMES)


def method_words(method: str, layer: str | None = None) -> str:
    """How a map was made: "Grad-CAM at layer4"."""
    name = _METHOD_NAMES.get(method, method)
    return f"{name} at {layer}" if layer else name


def percent(share: float) -> str:
    """A share of one as a percentage; never 0 or 100 % for something that is not certain."""
    if 0.0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1.0:
        return "> 99.9 %"
    return f"{share * 100:.1f} %"


def _probability_words(temperature: float) -> str:
    """What the probabilities mean: chances where a temperature was fitted, an order otherwise."""
    if temperature == 1.0:
        return (
            "Not calibrated: the classifier’s card has no fitted temperature. Read them as an "
            "order of the classes, not as the chance of being right."
        )
    return (
        f"Calibrated with a temperature of {temperature:.3g} on scans that the classifier had not "
        "learned from: of scans like those about 80 in 100 that are given 80 % should be right. Of "
        "other scans that promises nothing; the card says how it was tested."
    )


def meaning_words(result: ScanResult) -> str:
    """What the probabilities of a result mean."""
    return (_APART if result.findings else "") + _probability_words(result.provenance.temperature)


_APART: Final = "Each finding has a probability of its own; they do not add up to 100 %. "


def eyebrow_words(result: ScanResult) -> str:
    """What stands above a verdict."""
    if not result.is_suitable:
        return "Unsuitable scan"
    return "Findings" if result.findings else "Most probable"


def bars_of(result: ScanResult) -> list[dict[str, object]]:
    """The bars of a result, one for each class or finding, by the classifier's own wordings."""
    return [
        {
            "label": label,
            "words": result.label_set.words(label) + _from_words(result, label),
            "color": result.label_set.of(label).color,
            "share": share,
            "percent": percent(share),
            "is_decision": label in result.called,
        }
        for label, share in result.probabilities.items()
    ]


def _from_words(result: ScanResult, label: str) -> str:
    """From which probability on a finding is called present; nothing of a class."""
    found = result.findings.get(label)
    return "" if found is None else f" (present from {percent(found.threshold)})"


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where needed."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

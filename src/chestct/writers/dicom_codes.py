"""Coded concepts of the objects: SNOMED CT, DICOM and UCUM where there is a code.

What has no code anywhere is named in a coding scheme of this project's own, which DICOM keeps the
prefix 99 for (PS3.16 section 8.2); the meaning beside a code is what viewers show.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from chestct.labels import CAP, COVID19, NORMAL
from chestct.writers.dicom_identity import long_string
from chestct.writers.wording import verdict_of

if TYPE_CHECKING:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import CodedConcept

Concept = tuple[str, str, str]
"""Value, scheme and meaning."""

OWN_SCHEME: Final = "99CHESTCT"
SCT: Final = "SCT"
DCM: Final = "DCM"
UCUM: Final = "UCUM"

FINDINGS: Final[dict[str, Concept]] = {
    CAP: ("385093006", SCT, "Community acquired pneumonia"),
    COVID19: (
        "882784691000119100",
        SCT,
        "Pneumonia caused by SARS-CoV-2",
    ),
    NORMAL: ("17621005", SCT, "Normal"),
}
"""Class to finding; a class of the user's own becomes a concept of `OWN_SCHEME`."""

QUANTITIES: Final[dict[str, Concept]] = {
    "gradcam": ("130403", DCM, "Gradient-weighted class activation"),
    "gradcam++": ("130403", DCM, "Gradient-weighted class activation"),
    "layercam": ("130403", DCM, "Gradient-weighted class activation"),
    "strongest_channel": ("130401", DCM, "Visual explanation"),
    "occlusion": ("130404", DCM, "Saliency"),
    "attention": ("130401", DCM, "Visual explanation"),
}
"""Explanation to what its values are; another method is a "Visual explanation"."""
VISUAL_EXPLANATION: Final[Concept] = ("130401", DCM, "Visual explanation")

CHEST: Final[Concept] = ("816094009", SCT, "Chest")
LUNG: Final[Concept] = ("39607008", SCT, "Lung")
LEFT: Final[Concept] = ("7771000", SCT, "Left")
RIGHT: Final[Concept] = ("24028007", SCT, "Right")
UPPER_ZONE: Final[Concept] = ("281392002", SCT, "Upper zone of lung")
MIDDLE_ZONE: Final[Concept] = ("281393007", SCT, "Middle zone of lung")
LOWER_ZONE: Final[Concept] = ("281394001", SCT, "Lower zone of lung")
WHOLE: Final = "lungs"
"""Both lungs, among the regions."""
REGIONS: Final[dict[str, tuple[Concept, Concept | None]]] = {
    f"{side}{part}".strip(): (site, laterality)
    for side, laterality in (("", None), ("left ", LEFT), ("right ", RIGHT))
    for part, site in (
        ("lungs" if not side else "lung", LUNG),
        ("upper third", UPPER_ZONE),
        ("middle third", MIDDLE_ZONE),
        ("lower third", LOWER_ZONE),
    )
}
"""Region of an `EvidenceSummary` to anatomic site and side."""

ANATOMY: Final[Concept] = ("91723000", SCT, "Anatomical Structure")
SPATIAL_CONCEPT: Final[Concept] = ("309825002", SCT, "Spatial and Relational Concept")
ARTIFICIAL_INTELLIGENCE: Final[Concept] = ("123110", DCM, "Artificial Intelligence")
CHEST_CT: Final[Concept] = ("24627-2", "LN", "CT Chest")
FINDING: Final[Concept] = ("121071", DCM, "Finding")
PROBABILITY: Final[Concept] = ("122157", DCM, "Probability")
VOLUME: Final[Concept] = ("118565006", SCT, "Volume")
COMMENT: Final[Concept] = ("121106", DCM, "Comment")
QUALITY: Final[Concept] = ("111050", DCM, "Quality Assessment")
NOT_CLASSIFIED: Final[Concept] = ("unsuitable", OWN_SCHEME, "Not suitable for classification")
INVOLVED_SHARE: Final[Concept] = (
    "involved-share",
    OWN_SCHEME,
    "Share of lung volume with evidence above threshold",
)
INVOLVED_VOLUME: Final[Concept] = (
    "involved-volume",
    OWN_SCHEME,
    "Lung volume with evidence above threshold",
)
EVIDENCE: Final[Concept] = (
    "slice-evidence",
    OWN_SCHEME,
    "Evidence in a slice, share of the largest lung section",
)
NO_UNITS: Final[Concept] = ("1", UCUM, "no units")
PERCENT: Final[Concept] = ("%", UCUM, "Percent")
MILLILITER: Final[Concept] = ("mL", UCUM, "milliliter")

_MAX_CODE = 16


def coded(concept: Concept) -> CodedConcept:
    """A concept as highdicom takes it."""
    from highdicom.sr import CodedConcept

    value, scheme, meaning = concept
    return CodedConcept(value, scheme, meaning)


def finding_of(label: str) -> Concept:
    """The finding that a class stands for."""
    return FINDINGS.get(label) or (_code_of(label), OWN_SCHEME, long_string(verdict_of(label)))


def probability_of(label: str) -> Concept:
    """What is measured where the probability of a class that is not the answer is given."""
    meaning = long_string(f"Probability of {verdict_of(label)}")
    return _code_of(label, prefix="p:"), OWN_SCHEME, meaning


def _code_of(label: str, *, prefix: str = "") -> str:
    """A code of at most 16 characters that no other label has.

    The label itself where a short string (SH, PS3.5 6.2) can hold it, else a digest of it after a
    "#", which no code of the first kind has.
    """
    room = _MAX_CODE - len(prefix)
    if len(label) <= room and re.fullmatch(r"[A-Za-z0-9+.()_-]+( [A-Za-z0-9+.()_-]+)*", label):
        return prefix + label
    digest = hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{prefix}#{digest}"[:_MAX_CODE]


def quantity_of(method: str) -> Concept:
    """What the values of a heat-map of this method are."""
    return QUANTITIES.get(method, VISUAL_EXPLANATION)


def own_schemes() -> list[CodingSchemeIdentificationItem]:
    """Who is responsible for the codes of `OWN_SCHEME`."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return [
        CodingSchemeIdentificationItem(
            designator=OWN_SCHEME, name="chestct", responsible_organization="The chestct authors"
        )
    ]

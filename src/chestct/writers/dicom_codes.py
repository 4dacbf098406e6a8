"""Coded concepts of the objects: SNOMED CT, DICOM and UCUM where there is a code.

What has no code anywhere is named in a coding scheme of this project's own, which DICOM keeps the
prefix 99 for (PS3.16 section 8.2); the meaning beside a code is what viewers show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chestct.labels import CAP, COVID19, NORMAL
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
CT_PROCEDURE: Final[Concept] = ("25045-6", "LN", "CT unspecified body region")
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
    known = FINDINGS.get(label)
    return known or (label[:_MAX_CODE], OWN_SCHEME, verdict_of(label)[:64])


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

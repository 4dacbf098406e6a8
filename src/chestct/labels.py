"""Classes: their names in the order of every probability vector, and what is said of each.

A set of classes is data, of whoever trains a classifier: either classes of which a scan has exactly
one, or findings of which it has any number. The three that the papers and the shipped
classifier have stand in one table, in alphabetical order as in the published prediction files of
the RoI-aware 3D ResNet paper; a set of plain names takes from it what it says of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple

CAP: Final = "CAP"
"""Community-acquired pneumonia."""
COVID19: Final = "COVID-19"
"""COVID-19 pneumonia."""
NORMAL: Final = "normal"
"""No pneumonia."""

THREE_CLASSES: Final[tuple[str, ...]] = (CAP, COVID19, NORMAL)
"""Label order of the RoI-aware 3D ResNet paper."""
TWO_CLASSES: Final[tuple[str, ...]] = (COVID19, NORMAL)
"""Label order of the MASERes paper, in which normal is the positive class (1)."""
UNSUITABLE: Final = "unsuitable"
"""Decision given instead of a class when the scan should not be classified."""
_NOT_CLASSIFIED: Final = "Not classified"
NO_FINDING: Final = "no finding"
"""Decision of a classifier of findings on a scan that has none of them."""
FINDINGS_APART: Final = "; "
"""Stands between the findings that such a decision names."""

NOT_FOR_CLINICAL_USE: Final = (
    "Not a medical device. For research only, not for diagnosis or any other clinical use."
)
"""The notice that stands on every output."""

FINDING_PREFIX: Final = "finding_"
"""What the columns with findings are called, before the finding."""
_YES_NO: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("yes", "y", "true", "1", "1.0"), True),
    **dict.fromkeys(("no", "n", "false", "0", "0.0"), False),
    **dict.fromkeys(("", "nan", "unknown"), None),
}
"""What a cell of such a column may hold, in lower case."""

_COLOR: Final = re.compile(r"#[0-9a-fA-F]{6}")


class LabelCode(NamedTuple):
    """What DICOM speaks of, as a code.

    Attributes:
        value: The code, at most 64 characters.
        scheme: Who gives it its meaning, such as SCT (SNOMED CT), or a local one such as 99CLINIC;
            at most 16.
        meaning: What viewers show, at most 64.
    """

    value: str
    scheme: str
    meaning: str


_MOST_OF_CODE: Final = (64, 16, 64)


@dataclass(frozen=True)
class ClassLabel:
    """One class.

    Attributes:
        name: What tables, manifests and files call it.
        wording: What a report calls it; empty: its name.
        negative: Whether it is the class that means that nothing was found; never a finding.
        code: The concept that stands for it in DICOM; None: one of chestct's own scheme.
        color: Of its bar in the report, as "#0072B2"; empty: the report's own.
        values: What stands for it in a spreadsheet beside its name, such as "yes" and "1"; of a
            finding, other names of its column.

    Raises:
        ValueError: Code or colour are impossible.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True}

    name: str
    wording: str = ""
    negative: bool = False
    code: LabelCode | None = None
    color: str = ""
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, most in zip(self.code or (), _MOST_OF_CODE, strict=False):
            if not 1 <= len(part.strip()) <= most or "\\" in part:
                raise ValueError(
                    f"the code of '{self.name}' needs a value, a scheme and a meaning of 1 to 64, "
                    "16 and 64 characters, without a backslash"
                )
        if self.color and not _COLOR.fullmatch(self.color):
            raise ValueError(f"the color of '{self.name}' must be like '#0072B2', in quotes")

    @property
    def words(self) -> str:
        """What a report calls it."""
        return self.wording or self.name


_KNOWN: Final[dict[str, ClassLabel]] = {
    CAP: ClassLabel(
        CAP,
        "Community-acquired pneumonia",
        code=LabelCode("385093006", "SCT", "Community acquired pneumonia"),
    ),
    COVID19: ClassLabel(
        COVID19,
        "COVID-19 pneumonia",
        code=LabelCode("882784691000119100", "SCT", "Pneumonia caused by SARS-CoV-2"),
    ),
    NORMAL: ClassLabel(
        NORMAL,
        "No pneumonia",
        negative=True,
        code=LabelCode("17621005", "SCT", "Normal"),
    ),
}
"""What a plain name stands for; every other one stands for itself."""

SPELLINGS: Final[dict[str, str]] = {
    CAP: r"cap|community acquired pneumonia|pneumonia",
    COVID19: r"covid(?: ?19)?|sars cov 2|ncov",
    NORMAL: r"normal|healthy|controls?|no pneumonia",
}
"""How folders and tables of the public data sets spell them, in lower case."""


@dataclass(frozen=True)
class LabelSet:
    """The classes or findings of a classifier, in the order of every probability vector.

    Attributes:
        classes: What is said of each; one at most is the negative one.
        are_findings: Whether a scan may have any number of them, each with a probability of its
            own; otherwise it has exactly one, and the probabilities add up to one.
    """

    classes: tuple[ClassLabel, ...]
    are_findings: bool = False

    def __post_init__(self) -> None:
        negatives = [each.name for each in self.classes if each.negative]
        if self.are_findings:
            _check_findings(self.names, negatives)
        if len(negatives) > 1:
            raise ValueError(
                f"only one class can be the negative one, not {' and '.join(negatives)}"
            )
        given = [value.strip().casefold() for each in self.classes for value in {*each.values}]
        twice = sorted(value for value in set(given) if given.count(value) > 1)
        if twice:
            raise ValueError(f"the value '{twice[0]}' stands for two classes")

    @classmethod
    def of_names(cls, names: Iterable[str], *, are_findings: bool = False) -> LabelSet:
        """The classes of plain names, those of the table above as it describes them."""
        named = tuple(names)
        if are_findings:
            known = (_KNOWN.get(name, ClassLabel(name)) for name in named)
            return cls(tuple(replace(each, negative=False) for each in known), are_findings=True)
        classes = tuple(_KNOWN.get(name, ClassLabel(name)) for name in named)
        if not set(named) <= set(_KNOWN):
            # "No pneumonia" is only said where every other class is a pneumonia.
            classes = tuple(replace(one, wording="") if one.negative else one for one in classes)
        return cls(classes)

    @classmethod
    def said(
        cls,
        names: Iterable[str],
        classes: tuple[ClassLabel, ...] | None,
        *,
        are_findings: bool = False,
    ) -> LabelSet:
        """The classes or findings with what was said of each; None: plain names."""
        if classes is None:
            return cls.of_names(names, are_findings=are_findings)
        return cls(classes, are_findings)

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called, in their order."""
        return tuple(each.name for each in self.classes)

    @property
    def negative(self) -> str:
        """The class that means that nothing was found; empty where none is named."""
        return next((each.name for each in self.classes if each.negative), "")

    def words(self, decision: str) -> str:
        """A decision as a report says it."""
        return _NOT_CLASSIFIED if decision == UNSUITABLE else self.of(decision).words

    def of(self, name: str) -> ClassLabel:
        """What is said of a class; a name that is none of them stands for itself."""
        return next((each for each in self.classes if each.name == name), ClassLabel(name))

    def is_finding(self, name: str) -> bool:
        """Whether a class means that something was found: without a negative one each does."""
        return name != self.negative

    @property
    def spellings(self) -> dict[str, str]:
        """What may stand for a class in a spreadsheet, in lower case, to the class's name."""
        given = {value.strip().casefold(): one.name for one in self.classes for value in one.values}
        return {one.name.strip().casefold(): one.name for one in self.classes} | given

    @property
    def assumption(self) -> str:
        """What is taken for granted where no class is the negative one; empty where one is."""
        if self.negative or self.are_findings:
            return ""
        return (
            f"None of the classes {', '.join(self.names)} is named as the negative one: each of "
            "them counts as a finding. Mark one in the labels with 'negative: true'."
        )


def _check_findings(names: Iterable[str], negatives: Iterable[str]) -> None:
    """Refuse findings that mean that nothing was found, or that no decision could name."""
    for name in negatives:
        raise ValueError(f"'{name}' is a finding and cannot be negative: its absence is")
    for name in names:
        if name.casefold() == NO_FINDING or FINDINGS_APART.strip() in name:
            raise ValueError(f"no finding can be called '{name}'")


_WHAT = r"(?: (?:positive|pos|pneumonia|subjects?|cases?|patients?|scans?|volumes?|ct))*"
_NUMBER = r"(?: ?\d+)?"
_COVID_MAH_CT: Final = r"covid ?(?:19 ?)?mah ?ct ?(?:3d)?(?: .*)?"


def class_of(name: str) -> str | None:
    """The class of the public data sets that a name stands for, as a whole; None for all others.

    "COVID-19 subjects", "Covid19_cases" and "covid3" are COVID-19, "Cap subjects" and "cap012" are
    CAP, "Normal Subjects" and "healthy" are normal; "COVID-CT-MD", the name of a data set, and
    "non-covid", which says what it is not, are none.
    """
    words = _words_of(name)
    for label, spelling in SPELLINGS.items():
        if re.fullmatch(rf"(?:{spelling}){_WHAT}{_NUMBER}", words):
            return label
    return None


def classes_among(names: Iterable[str]) -> tuple[str, ...]:
    """The classes that a column of names was written with, where nobody lists them.

    Those of the public data sets where one of the names stands for one of them, so that another
    spelling, or a class beside them, is noticed; otherwise the names themselves, sorted.
    """
    found = sorted(set(names))
    return tuple(SPELLINGS) if any(map(class_of, found)) else tuple(found)


def is_covid_mah_ct(name: str) -> bool:
    """Whether a name is that of the data set COVID-MAH-CT, as a whole, or more words after it.

    "COVID-MAH-CT 3D" and "covid_mah_ct" are, "mahdi" and "mah" are not.
    """
    return re.fullmatch(_COVID_MAH_CT, _words_of(name)) is not None


def _words_of(name: str) -> str:
    """A name in lower case, its letters and digits in words one blank apart."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def yes_no(is_there: bool | None) -> str:
    """A cell of a finding: "yes", "no", or nothing where it is not known."""
    return "" if is_there is None else "yes" if is_there else "no"


def parse_finding(cell: str) -> bool | None:
    """What a cell of a table says of a finding; None where that is not known.

    Raises:
        ValueError: It says nothing that is understood.
    """
    said = cell.strip().lower()
    if said not in _YES_NO:
        msg = (
            f"'{cell}' is neither yes nor no. Expected yes, no, 1, 0, or an empty cell: not known."
        )
        raise ValueError(msg)
    return _YES_NO[said]

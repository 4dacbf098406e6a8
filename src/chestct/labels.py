"""The classes, their order, and the names that people give them.

The order is fixed once: it is the order of every probability vector. Alphabetical, as in the
published prediction files of the RoI-aware 3D ResNet paper.
"""

from __future__ import annotations

import re
from typing import Final

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

NOT_FOR_CLINICAL_USE: Final = (
    "Not a medical device. For research only, not for diagnosis or any other clinical use."
)
"""The notice that stands on every output."""

_WHAT = r"(?: (?:positive|pos|pneumonia|subjects?|cases?|patients?|scans?|volumes?|ct))*"
_NUMBER = r"(?: ?\d+)?"

_PATTERNS: Final = {
    COVID19: rf"(?:covid(?: ?19)?|sars cov 2|ncov){_WHAT}{_NUMBER}",
    CAP: rf"(?:cap|community acquired pneumonia|pneumonia){_WHAT}{_NUMBER}",
    NORMAL: rf"(?:normal|healthy|controls?|no pneumonia){_WHAT}{_NUMBER}",
}
_COVID_MAH_CT: Final = r"covid ?(?:19 ?)?mah ?ct ?(?:3d)?(?: .*)?"


def class_of(name: str) -> str | None:
    """The class a name stands for, as a whole; None for all others.

    "COVID-19 subjects", "Covid19_cases" and "covid3" are COVID-19, "Cap subjects" and "cap012" are
    CAP, "Normal Subjects" and "healthy" are normal; "COVID-CT-MD", the name of a data set, and
    "non-covid", which says what it is not, are none.
    """
    words = _words_of(name)
    for label, pattern in _PATTERNS.items():
        if re.fullmatch(pattern, words):
            return label
    return None


def is_covid_mah_ct(name: str) -> bool:
    """Whether a name is that of the data set COVID-MAH-CT, as a whole, or more words after it.

    "COVID-MAH-CT 3D" and "covid_mah_ct" are, "mahdi" and "mah" are not.
    """
    return re.fullmatch(_COVID_MAH_CT, _words_of(name)) is not None


def class_in_path(scan: str) -> str | None:
    """The class that the last part of a path stands for that stands for any."""
    for part in reversed(re.split(r"[/\\]", scan)):
        found = class_of(part.split(".")[0])
        if found is not None:
            return found
    return None


def _words_of(name: str) -> str:
    """A name in lower case, its letters and digits in words one blank apart."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))

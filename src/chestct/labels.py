"""The classes and their order, fixed once: it is the order of every probability vector.

Alphabetical, as in the published prediction files of the RoI-aware 3D ResNet paper.
"""

from __future__ import annotations

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

"""What an audit of a classifier finds, scan by scan: plain records of what was asked and answered.

Not to be taken for `audit`, which recomputes what the papers printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SERIOUS: Final = "serious"
NOTABLE: Final = "notable"
REMARK: Final = "remark"
FINE: Final = "fine"
SEVERITIES: Final = (SERIOUS, NOTABLE, REMARK, FINE)
"""Worst first. Serious: the answer does not rest on what it should. Notable: worth a look."""

CHANGED_FROM: Final = 0.1
"""A probability that moves by less than this counts as the same."""
SAME_MAP_FROM: Final = 0.7
"""Rank correlation, and structural similarity, from which a map counts as the same."""

BLANKING: Final = "blanking"
STABILITY: Final = "stability"

TRUE_LESIONS: Final = "true lesions"
GIVEN_LESIONS: Final = "given lesions"
HEAT_MAP: Final = "heat-map region"


@dataclass(frozen=True)
class Probe:
    """The same scan, something about it changed, and what the classifier says then.

    Attributes:
        group: `BLANKING` or `STABILITY`.
        name: What was changed, one word for programs.
        words: The same in words.
        probabilities: Of every label; empty where the changed scan is unsuitable.
        decision: The label with the highest probability, or "unsuitable".
        share: Probability of the label that the unchanged scan got; None where unsuitable.
        change: By how much that is more than before; None where unsuitable.
        is_same: Whether the decision is still the same.
    """

    group: str
    name: str
    words: str
    probabilities: dict[str, float]
    decision: str
    share: float | None
    change: float | None
    is_same: bool


@dataclass(frozen=True)
class WeightStage:
    """How like the classifier's map is to one made with other weights.

    Attributes:
        name: The part of the network that was drawn anew last, those after it too.
        spearman: Rank correlation of the maps inside the lungs; None where the new map is empty.
        ssim: Mean structural similarity of the maps inside the lungs; None likewise.
    """

    name: str
    spearman: float | None
    ssim: float | None


@dataclass(frozen=True)
class MapTest:
    """Whether the map depends on the weights.

    Attributes:
        method: How maps are made, a name in `EXPLANATIONS`.
        label: The class they speak for: the decision on the scan.
        has_evidence: Whether the classifier's own map is more than zeros; nothing else is known
            where it is not.
        cascade: From the network's end to its start, each stage with all before it drawn anew.
        whole: The whole network drawn anew, once per draw. Empty maps tell nothing: a map that no
            weight changes but for its sign is either the same or empty.
    """

    method: str
    label: str
    has_evidence: bool
    cascade: tuple[WeightStage, ...] = ()
    whole: tuple[WeightStage, ...] = ()

    @property
    def spearman(self) -> float:
        """Median rank correlation over the draws with a map; 0 where none has one."""
        return _median([each.spearman for each in self.whole if each.spearman is not None])

    @property
    def ssim(self) -> float:
        """Median structural similarity over the draws with a map; 0 where none has one."""
        return _median([each.ssim for each in self.whole if each.ssim is not None])

    @property
    def num_compared(self) -> int:
        """Draws of a whole network that gave a map to compare with."""
        return sum(each.spearman is not None for each in self.whole)


@dataclass(frozen=True)
class Finding:
    """A verdict in words.

    Attributes:
        severity: One of `SEVERITIES`.
        check: What was looked at: "lungs", "outside", "lesion", "weights", "stability", "scan".
        sentence: What was found.
    """

    severity: str
    check: str
    sentence: str


@dataclass(frozen=True)
class ScanAudit:
    """Everything asked about one scan.

    Attributes:
        name: Of the scan.
        truth: Its class where that is known, else empty.
        decision: What the classifier says, or "unsuitable", and then nothing else was asked.
        probabilities: Of every label.
        lesion_source: What counts as the lesion: one of the three words above, or empty.
        lesion_share: Share of the lungs' voxels that it takes; None where there is none.
        probes: What was changed and answered.
        map_test: Whether the map depends on the weights; None where no map could be made.
        findings: What that means.
    """

    name: str
    truth: str
    decision: str
    probabilities: dict[str, float]
    lesion_source: str = ""
    lesion_share: float | None = None
    probes: tuple[Probe, ...] = ()
    map_test: MapTest | None = None
    findings: tuple[Finding, ...] = ()

    def probe(self, name: str) -> Probe | None:
        """The probe of that name, where it was made."""
        return next((probe for probe in self.probes if probe.name == name), None)

    @property
    def share(self) -> float:
        """Probability of the decision on the unchanged scan."""
        return self.probabilities[self.decision]


@dataclass(frozen=True)
class ModelAudit:
    """An audit of one classifier.

    Attributes:
        classifier: Its name.
        version: Its version.
        weights_sha256: Hash of its weights.
        recipe: Its recipe's name.
        trained_on: What its card says about that.
        notice: What must stand beside every answer.
        scans: Scan by scan.
    """

    classifier: str
    version: str
    weights_sha256: str
    recipe: str
    trained_on: str
    notice: str
    scans: tuple[ScanAudit, ...]


def _median(values: list[float]) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2

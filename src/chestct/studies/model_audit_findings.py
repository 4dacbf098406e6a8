"""What an audit of a classifier finds, scan by scan, and what it means.

First plain records of what was asked and answered, then the rules, which are written out here. Not
to be taken for `audit`, which recomputes what the papers printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chestct.labels import UNSUITABLE
from chestct.studies.model_audit_changes import (
    DENSE,
    LESION,
    LUNGS_HEALTHY,
    LUNGS_TISSUE,
    MIRROR,
    OUTSIDE_AIR,
    OUTSIDE_BACKGROUND,
    OUTSIDE_TISSUE,
)

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
        is_finding: Whether the decision is another class than the negative one.
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
    is_finding: bool = True

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
        assumption: What was taken for granted of its classes; empty where nothing was.
    """

    classifier: str
    version: str
    weights_sha256: str
    recipe: str
    trained_on: str
    notice: str
    scans: tuple[ScanAudit, ...]
    assumption: str = ""


def _median(values: list[float]) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


_OUTSIDE: Final = (OUTSIDE_AIR, OUTSIDE_TISSUE, OUTSIDE_BACKGROUND)


def judge_scan_audit(audit: ScanAudit) -> tuple[Finding, ...]:
    """What one scan's answers mean, worst first.

    * Lungs: serious where decision and probability stand both with healthy and with solid lungs;
      notable where only the decision does, as painted lungs have no texture to see a disease in,
      and where a disease is still seen in lungs that were made healthy throughout.
    * Outside: a decision that changes when all but the lungs is blanked is notable, and serious
      where it does not rest on the lungs either. An answer that follows one dense piece in the
      outline of the lungs is notable where no lesion is known: it may be an organ outside them.
    * Lesion: a disease that is called as before without it is serious where the lesion is known,
      notable where it is the region of the heat-map.
    * Weights: a map that is the same with other weights by rank correlation and by structural
      similarity is serious; by rank alone notable, as coarse maps have few ranks to differ in.
    * Stability: each harmless change that changes the decision, or its probability by 0.1, is
      notable; of the exchange of left and right it is a remark, as hearts lie on the left.
    """
    if audit.decision == UNSUITABLE:
        return (Finding(REMARK, "scan", "The scan is unsuitable and was not asked about."),)
    found = [
        *_about_lungs(audit),
        *_about_outside(audit),
        *_about_dense_piece(audit),
        *_about_lesion(audit),
        *_about_weights(audit),
        *_about_stability(audit),
    ]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def worst_severity(findings: Sequence[Finding]) -> str:
    """The worst severity among findings; "fine" where there are none."""
    return min((each.severity for each in findings), key=SEVERITIES.index, default=FINE)


def ignores_lungs(audit: ScanAudit) -> bool:
    """Whether decision and probability stand whatever the lungs are filled with."""
    painted = [audit.probe(name) for name in (LUNGS_HEALTHY, LUNGS_TISSUE)]
    return all(probe is not None and not _is_moved(probe) for probe in painted)


def follows_outside(audit: ScanAudit) -> bool:
    """Whether the decision changes with what lies outside the lungs."""
    return any(not probe.is_same for probe in _outside_probes(audit))


def _about_lungs(audit: ScanAudit) -> Iterator[Finding]:
    healthy, tissue = audit.probe(LUNGS_HEALTHY), audit.probe(LUNGS_TISSUE)
    if healthy is None or tissue is None:
        return
    if ignores_lungs(audit):
        yield Finding(
            SERIOUS,
            "lungs",
            f"The decision does not rest on the lungs: it stays {audit.decision} when they are "
            f"filled with healthy lung ({_from_to(audit, healthy)}) and when they are filled with "
            f"soft tissue ({_from_to(audit, tissue)}).",
        )
    elif healthy.is_same and tissue.is_same:
        yield Finding(
            NOTABLE,
            "lungs",
            f"The decision stays {audit.decision} with lungs all healthy and with lungs all solid, "
            f"but not its probability ({audit.share:.2f} before, {healthy.share:.2f} and "
            f"{tissue.share:.2f} after).",
        )
    elif healthy.is_same and audit.is_finding:
        yield Finding(
            NOTABLE,
            "lungs",
            f"{audit.decision} is still the decision when the lungs are filled evenly with healthy "
            f"lung ({_from_to(audit, healthy)}): their outline is enough for it.",
        )
    else:
        changed = healthy if not healthy.is_same else tissue
        yield Finding(
            FINE,
            "lungs",
            f"The decision rests on the lungs: {changed.words}, it becomes {changed.decision}.",
        )


def _about_outside(audit: ScanAudit) -> Iterator[Finding]:
    probes = _outside_probes(audit)
    changed = [probe for probe in probes if not probe.is_same]
    if changed and ignores_lungs(audit):
        yield Finding(
            SERIOUS,
            "outside",
            "The model decides on what lies outside the lungs, such as the table or the body's "
            f"outline: {_became(changed[0])}.",
        )
    elif changed:
        yield Finding(
            NOTABLE,
            "outside",
            f"What lies outside the lungs matters to the decision: {_became(changed[0])}.",
        )
    elif probes:
        most = max(probes, key=_size_of_change)
        severity = NOTABLE if _size_of_change(most) >= CHANGED_FROM else FINE
        yield Finding(
            severity,
            "outside",
            f"The decision stands without what lies outside the lungs: {most.words}, "
            f"{_from_to(audit, most)}.",
        )


def _about_dense_piece(audit: ScanAudit) -> Iterator[Finding]:
    probe = audit.probe(DENSE)
    is_lesion_known = audit.lesion_source not in ("", HEAT_MAP)
    if probe is not None and not is_lesion_known and _is_moved(probe):
        what = _became(probe) if not probe.is_same else f"{probe.words}, {_from_to(audit, probe)}"
        yield Finding(
            NOTABLE,
            "outside",
            "The answer follows one dense piece in the outline of the lungs, which may be an organ "
            f"outside them (stomach, liver, spleen) taken for lung; look at the outline: {what}.",
        )


def _about_lesion(audit: ScanAudit) -> Iterator[Finding]:
    probe = audit.probe(LESION)
    if probe is None or not audit.is_finding:
        return
    change = probe.change or 0.0
    where = f"{audit.lesion_source}, {audit.lesion_share or 0.0:.0%} of the lungs"
    if probe.is_same and change > -CHANGED_FROM:
        yield Finding(
            NOTABLE if audit.lesion_source == HEAT_MAP else SERIOUS,
            "lesion",
            f"The lesion makes no difference: {audit.decision} stays the decision without it "
            f"({where}; {_from_to(audit, probe)}).",
        )
    else:
        yield Finding(
            FINE,
            "lesion",
            f"The decision rests on the lesion ({where}): without it {_from_to(audit, probe)}, "
            f"decision {probe.decision}.",
        )


def _about_weights(audit: ScanAudit) -> Iterator[Finding]:
    test = audit.map_test
    if test is None:
        yield Finding(REMARK, "weights", "No map could be made of this network's answer.")
    elif not test.has_evidence:
        yield Finding(NOTABLE, "weights", f"The {test.method} map is zero everywhere.")
    else:
        likeness = (
            f"rank correlation {test.spearman:.2f}, structural similarity {test.ssim:.2f}, medians "
            f"of {test.num_compared} maps of random networks"
        )
        same = [value >= SAME_MAP_FROM for value in (test.spearman, test.ssim)]
        if all(same):
            severity, words = SERIOUS, "does not depend on the weights"
        elif same[0]:
            severity, words = NOTABLE, "ranks places much as maps of random networks do"
        else:
            severity, words = FINE, "changes with the weights"
        yield Finding(severity, "weights", f"The {test.method} map {words} ({likeness}).")


def _about_stability(audit: ScanAudit) -> Iterator[Finding]:
    probes = [probe for probe in audit.probes if probe.group == STABILITY]
    unstable = [probe for probe in probes if _is_moved(probe)]
    for probe in unstable:
        severity = REMARK if probe.name == MIRROR else NOTABLE
        what = _became(probe) if not probe.is_same else f"{probe.words}, {_from_to(audit, probe)}"
        yield Finding(severity, "stability", f"The answer is not stable: {what}.")
    if probes and not unstable:
        most = max(probes, key=_size_of_change)
        yield Finding(
            FINE,
            "stability",
            f"The answer is stable: {len(probes)} changes, the largest {_size_of_change(most):.3f} "
            f"({most.words}).",
        )


def _outside_probes(audit: ScanAudit) -> list[Probe]:
    return [probe for probe in audit.probes if probe.name in _OUTSIDE]


def _is_moved(probe: Probe) -> bool:
    """Whether the decision changed, or its probability by enough to count."""
    return not probe.is_same or _size_of_change(probe) >= CHANGED_FROM


def _size_of_change(probe: Probe) -> float:
    return abs(probe.change or 0.0)


def _became(probe: Probe) -> str:
    share = probe.probabilities.get(probe.decision)
    return f"{probe.words}, it becomes {probe.decision}" + (
        "" if share is None else f" ({share:.2f})"
    )


def _from_to(audit: ScanAudit, probe: Probe) -> str:
    after = "none" if probe.share is None else f"{probe.share:.2f}"
    return f"probability of {audit.decision} {audit.share:.2f} before, {after} after"

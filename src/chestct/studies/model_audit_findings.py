"""What an audit of a classifier finds, scan by scan, what it means, and how it is written down.

First plain records of what was asked and answered, then the rules, which are written out here, then
the Markdown for people and the JSON for programs. Not to be taken for `audit`, which recomputes
what the papers printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from chestct.labels import UNSUITABLE
from chestct.report import fill_markdown
from chestct.storage import write_text

_SERIOUS: Final = "serious"
_NOTABLE: Final = "notable"
_REMARK: Final = "remark"
_FINE: Final = "fine"
_SEVERITIES: Final = (_SERIOUS, _NOTABLE, _REMARK, _FINE)
"""Worst first. Serious: the answer does not rest on what it should. Notable: worth a look."""

_CHANGED_FROM: Final = 0.1
"""A probability that moves by less than this counts as the same."""
_SAME_MAP_FROM: Final = 0.7
"""Rank correlation, and structural similarity, from which a map counts as the same."""

BLANKING: Final = "blanking"
STABILITY: Final = "stability"

LESION: Final = "lesion"
LUNGS_HEALTHY: Final = "lungs-healthy"
LUNGS_TISSUE: Final = "lungs-tissue"
DENSE: Final = "dense-piece"
OUTSIDE_AIR: Final = "outside-air"
OUTSIDE_TISSUE: Final = "outside-tissue"
OUTSIDE_BACKGROUND: Final = "outside-background"

WORDS: Final[dict[str, str]] = {
    LESION: "lesion filled with healthy lung",
    LUNGS_HEALTHY: "lungs filled with healthy lung",
    LUNGS_TISSUE: "lungs filled with soft tissue",
    DENSE: "largest dense piece in the outline of the lungs filled with healthy lung",
    OUTSIDE_AIR: "all but the lungs made air",
    OUTSIDE_TISSUE: "all but the lungs made soft tissue",
    OUTSIDE_BACKGROUND: "all but the lungs made background",
}
"""What is painted over, in words."""

MIRROR: Final = "mirror"
MIRROR_WORDS: Final = "left and right exchanged"

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

    @property
    def size(self) -> float:
        """By how much the probability changed, either way; 0 where unsuitable."""
        return abs(self.change or 0.0)

    @property
    def is_moved(self) -> bool:
        """Whether the decision changed, or its probability by enough to count."""
        return not self.is_same or self.size >= _CHANGED_FROM

    @property
    def cells(self) -> list[str]:
        """It as cells of a table with `PROBE_HEADINGS`."""
        share = "" if self.share is None else f"{self.share:.3f}"
        change = "" if self.change is None else f"{self.change:+.3f}"
        return [self.words, share, change, "the same" if self.is_same else self.decision]


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
        return median([e.spearman for e in self.whole if e.spearman is not None] or [0.0])

    @property
    def ssim(self) -> float:
        """Median structural similarity over the draws with a map; 0 where none has one."""
        return median([each.ssim for each in self.whole if each.ssim is not None] or [0.0])

    @property
    def num_compared(self) -> int:
        """Draws of a whole network that gave a map to compare with."""
        return sum(each.spearman is not None for each in self.whole)


@dataclass(frozen=True)
class _Finding:
    """A verdict in words: one of `_SEVERITIES`, what was looked at, and what was found.

    `check` is "lungs", "outside", "lesion", "weights", "stability" or "scan".
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
    findings: tuple[_Finding, ...] = ()
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
    """An audit of one classifier, scan by scan.

    `notice` must stand beside every answer; `assumption` is what was taken for granted of its
    classes, empty where nothing was.
    """

    classifier: str
    version: str
    weights_sha256: str
    recipe: str
    trained_on: str
    notice: str
    scans: tuple[ScanAudit, ...]
    assumption: str = ""

    @property
    def severity(self) -> str:
        """The worst of all findings."""
        return _worst_severity([finding for scan in self.scans for finding in scan.findings])

    @property
    def verdict(self) -> str:
        """What the audit comes to, in one or a few sentences."""
        asked = [scan for scan in self.scans if scan.decision != UNSUITABLE]
        if not asked:
            return "No scan could be asked about: all are unsuitable."
        outside = sum(_ignores_lungs(scan) and _follows_outside(scan) for scan in asked)
        sentences = []
        if outside:
            sentences.append(
                f"On {outside} of {len(asked)} scans the model decides on what lies outside the "
                "lungs, such as the table or the body's outline, and not on the lungs."
            )
        counts = {severity: _num_with(asked, severity) for severity in (_SERIOUS, _NOTABLE)}
        if counts[_SERIOUS]:
            sentences.append(f"Serious findings on {counts[_SERIOUS]} of {len(asked)} scans.")
        elif counts[_NOTABLE]:
            sentences.append(
                f"No serious findings; notable ones on {counts[_NOTABLE]} of {len(asked)} scans."
            )
        else:
            sentences.append(f"Nothing serious or notable was found on {len(asked)} scans.")
        return " ".join(sentences)


_OUTSIDE: Final = (OUTSIDE_AIR, OUTSIDE_TISSUE, OUTSIDE_BACKGROUND)

_Verdicts: TypeAlias = Iterator[tuple[str, str]]
"""Severities, and the sentences that tell why."""


def judge_scan_audit(audit: ScanAudit) -> tuple[_Finding, ...]:
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
        return (_Finding(_REMARK, "scan", "The scan is unsuitable and was not asked about."),)
    found = [
        _Finding(severity, check, sentence)
        for check, judge in _CHECKS.items()
        for severity, sentence in judge(audit)
    ]
    return tuple(sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity)))


def _worst_severity(findings: Sequence[_Finding]) -> str:
    """The worst severity among findings; "fine" where there are none."""
    return min((each.severity for each in findings), key=_SEVERITIES.index, default=_FINE)


def _ignores_lungs(audit: ScanAudit) -> bool:
    """Whether decision and probability stand whatever the lungs are filled with."""
    painted = [audit.probe(name) for name in (LUNGS_HEALTHY, LUNGS_TISSUE)]
    return all(probe is not None and not probe.is_moved for probe in painted)


def _follows_outside(audit: ScanAudit) -> bool:
    """Whether the decision changes with what lies outside the lungs."""
    return any(not probe.is_same for probe in _outside_probes(audit))


def _about_lungs(audit: ScanAudit) -> _Verdicts:
    healthy, tissue = audit.probe(LUNGS_HEALTHY), audit.probe(LUNGS_TISSUE)
    if healthy is None or tissue is None:
        return
    if _ignores_lungs(audit):
        yield (
            _SERIOUS,
            f"The decision does not rest on the lungs: it stays {audit.decision} when they are "
            f"filled with healthy lung ({_from_to(audit, healthy)}) and when they are filled with "
            f"soft tissue ({_from_to(audit, tissue)}).",
        )
    elif healthy.is_same and tissue.is_same:
        yield (
            _NOTABLE,
            f"The decision stays {audit.decision} with lungs all healthy and with lungs all solid, "
            f"but not its probability ({audit.share:.2f} before, {healthy.share:.2f} and "
            f"{tissue.share:.2f} after).",
        )
    elif healthy.is_same and audit.is_finding:
        yield (
            _NOTABLE,
            f"{audit.decision} is still the decision when the lungs are filled evenly with healthy "
            f"lung ({_from_to(audit, healthy)}): their outline is enough for it.",
        )
    else:
        changed = healthy if not healthy.is_same else tissue
        yield (
            _FINE,
            (f"The decision rests on the lungs: {changed.words}, it becomes {changed.decision}."),
        )


def _about_outside(audit: ScanAudit) -> _Verdicts:
    probes = _outside_probes(audit)
    changed = [probe for probe in probes if not probe.is_same]
    if changed and _ignores_lungs(audit):
        yield (
            _SERIOUS,
            "The model decides on what lies outside the lungs, such as the table or the body's "
            f"outline: {_became(changed[0])}.",
        )
    elif changed:
        yield (
            _NOTABLE,
            (f"What lies outside the lungs matters to the decision: {_became(changed[0])}."),
        )
    elif probes:
        most = max(probes, key=lambda probe: probe.size)
        yield (
            _NOTABLE if most.is_moved else _FINE,
            f"The decision stands without what lies outside the lungs: {most.words}, "
            f"{_from_to(audit, most)}.",
        )
    piece = audit.probe(DENSE)
    is_lesion_known = audit.lesion_source not in ("", HEAT_MAP)
    if piece is not None and not is_lesion_known and piece.is_moved:
        yield (
            _NOTABLE,
            "The answer follows one dense piece in the outline of the lungs, which may be an organ "
            "outside them (stomach, liver, spleen) taken for lung; look at the outline: "
            f"{_how_moved(audit, piece)}.",
        )


def _about_lesion(audit: ScanAudit) -> _Verdicts:
    probe = audit.probe(LESION)
    if probe is None or not audit.is_finding:
        return
    where = f"{audit.lesion_source}, {audit.lesion_share or 0.0:.0%} of the lungs"
    if probe.is_same and (probe.change or 0.0) > -_CHANGED_FROM:
        yield (
            _NOTABLE if audit.lesion_source == HEAT_MAP else _SERIOUS,
            f"The lesion makes no difference: {audit.decision} stays the decision without it "
            f"({where}; {_from_to(audit, probe)}).",
        )
    else:
        yield (
            _FINE,
            f"The decision rests on the lesion ({where}): without it {_from_to(audit, probe)}, "
            f"decision {probe.decision}.",
        )


def _about_weights(audit: ScanAudit) -> _Verdicts:
    test = audit.map_test
    if test is None:
        yield _REMARK, "No map could be made of this network's answer."
    elif not test.has_evidence:
        yield _NOTABLE, f"The {test.method} map is zero everywhere."
    else:
        likeness = (
            f"rank correlation {test.spearman:.2f}, structural similarity {test.ssim:.2f}, medians "
            f"of {test.num_compared} maps of random networks"
        )
        if test.spearman < _SAME_MAP_FROM:
            severity, words = _FINE, "changes with the weights"
        elif test.ssim < _SAME_MAP_FROM:
            severity, words = _NOTABLE, "ranks places much as maps of random networks do"
        else:
            severity, words = _SERIOUS, "does not depend on the weights"
        yield severity, f"The {test.method} map {words} ({likeness})."


def _about_stability(audit: ScanAudit) -> _Verdicts:
    probes = [probe for probe in audit.probes if probe.group == STABILITY]
    unstable = [probe for probe in probes if probe.is_moved]
    for probe in unstable:
        severity = _REMARK if probe.name == MIRROR else _NOTABLE
        yield severity, f"The answer is not stable: {_how_moved(audit, probe)}."
    if probes and not unstable:
        most = max(probes, key=lambda probe: probe.size)
        yield (
            _FINE,
            f"The answer is stable: {len(probes)} changes, the largest {most.size:.3f} "
            f"({most.words}).",
        )


_CHECKS: Final[dict[str, Callable[[ScanAudit], _Verdicts]]] = {
    "lungs": _about_lungs,
    "outside": _about_outside,
    "lesion": _about_lesion,
    "weights": _about_weights,
    "stability": _about_stability,
}
"""What is looked at, in the order in which it is told."""


def _outside_probes(audit: ScanAudit) -> list[Probe]:
    return [probe for probe in audit.probes if probe.name in _OUTSIDE]


def _became(probe: Probe) -> str:
    share = probe.probabilities.get(probe.decision)
    return f"{probe.words}, it becomes {probe.decision}" + (
        "" if share is None else f" ({share:.2f})"
    )


def _from_to(audit: ScanAudit, probe: Probe) -> str:
    after = "none" if probe.share is None else f"{probe.share:.2f}"
    return f"probability of {audit.decision} {audit.share:.2f} before, {after} after"


def _how_moved(audit: ScanAudit, probe: Probe) -> str:
    return f"{probe.words}, {_from_to(audit, probe)}" if probe.is_same else _became(probe)


_SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "model-audit.json"
MARKDOWN_FILE: Final = "model-audit.md"

PROBE_HEADINGS: Final = ("What was changed", "Probability", "Change", "Decision")


def write_model_audit(audit: ModelAudit, folder: Path) -> list[Path]:
    """Write an audit to a folder as JSON and Markdown; returns the files.

    Raises:
        WriteError: They cannot be written.
    """
    document = json.dumps(_as_document(audit), indent=1, ensure_ascii=False) + "\n"
    return [
        write_text(folder / JSON_FILE, document),
        write_text(folder / MARKDOWN_FILE, _as_markdown(audit)),
    ]


def _as_document(audit: ModelAudit) -> dict[str, Any]:
    """An audit as plain values, with the verdict and the medians of the map's test."""
    document: dict[str, Any] = {"schema_version": _SCHEMA_VERSION, "verdict": audit.verdict}
    document |= {"severity": audit.severity, **asdict(audit)}
    for entry, scan in zip(document["scans"], audit.scans, strict=True):
        test = scan.map_test
        if test is not None and test.whole:
            entry["map_test"] |= {"spearman": test.spearman, "ssim": test.ssim}
    return document


def _as_markdown(audit: ModelAudit) -> str:
    """The whole audit, verdict first; a line per scan tells the worst finding of each check."""
    return fill_markdown(
        "chestct.studies/model_audit.md.j2",
        {
            "likeness": lambda value: "empty map" if value is None else f"{value:.2f}",
            "severity_in": _severity_of,
        },
        audit=audit,
        checks=tuple(_CHECKS),
        unsuitable=UNSUITABLE,
        probe_headings=PROBE_HEADINGS,
    )


def _severity_of(check: str, scan: ScanAudit) -> str:
    """The worst finding of one check; empty where it was not made."""
    found = [finding for finding in scan.findings if finding.check == check]
    return _worst_severity(found) if found else ""


def _num_with(scans: Sequence[ScanAudit], severity: str) -> int:
    return sum(any(each.severity == severity for each in scan.findings) for scan in scans)

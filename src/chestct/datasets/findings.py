"""What a check of labelled scans finds: one sentence each, and how much it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["refuse", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: "leak", "duplicate", "label", "unreadable", "confounder", "classes".
        severity: "refuse": nothing should be trained on this. "warning": results need this beside
            them. "note": good to know.
        sentence: What it is, what it means and what to do.
        rows: Rows of the manifest it is about, the header being row 1; empty for all of them.
    """

    kind: str
    severity: Severity
    sentence: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Confounder:
    """How well one variable alone tells the classes apart; the pictures are not looked at.

    Attributes:
        variable: Its name.
        auc: Cross-validated area under the ROC curve, mean over classes against the rest and over
            folds; 0.5 is chance. None where it could not be computed.
        chance_auc: What 95 % of random labellings stay below; None where `auc` is too low to
            matter.
        p_value: Share of random labellings that reach `auc`; None likewise.
        is_same_as_class: Every value occurs with one class only.
        num_patients: Patients it was computed on.
        num_unknown: Of these, patients for which it is not known.
        values: Patients per value and class.
        note: Why there is no figure, or what has to be known to read it.
    """

    variable: str
    auc: float | None
    chance_auc: float | None
    p_value: float | None
    is_same_as_class: bool
    num_patients: int
    num_unknown: int
    values: Mapping[str, Mapping[str, int]]
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Everything a check found.

    Attributes:
        manifest: Name of the manifest.
        num_scans: Its scans.
        num_patients: Its patients.
        cases: Scans per class.
        sides: Scans per side of the split and class; empty without a split.
        has_pixels: Whether the scans themselves were read.
        findings: What was found, the gravest first.
        confounders: Every variable that was looked at, the strongest first.
    """

    manifest: str
    num_scans: int
    num_patients: int
    cases: Mapping[str, int]
    sides: Mapping[str, Mapping[str, int]]
    has_pixels: bool
    findings: tuple[Finding, ...]
    confounders: tuple[Confounder, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Why nothing should be trained on these scans as they are divided."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What has to stand beside every result on these scans."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

"""An audit of a classifier as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from chestct.labels import UNSUITABLE
from chestct.report.pages import fill_markdown
from chestct.storage import write_whole
from chestct.studies.model_audit_findings import (
    NOTABLE,
    SERIOUS,
    Finding,
    ModelAudit,
    Probe,
    ScanAudit,
    follows_outside,
    ignores_lungs,
    worst_severity,
)

SCHEMA_VERSION: Final = 1
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
        write_whole(folder / JSON_FILE, document.encode()),
        write_whole(folder / MARKDOWN_FILE, as_markdown(audit).encode()),
    ]


def _as_document(audit: ModelAudit) -> dict[str, Any]:
    """An audit as plain values, with the verdict and the medians of the map's test."""
    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "verdict": verdict(audit)}
    document |= {"severity": worst_severity(_all_findings(audit)), **asdict(audit)}
    for entry, scan in zip(document["scans"], audit.scans, strict=True):
        test = scan.map_test
        if test is not None and test.whole:
            entry["map_test"] |= {"spearman": test.spearman, "ssim": test.ssim}
    return document


def verdict(audit: ModelAudit) -> str:
    """What the audit comes to, in one or a few sentences."""
    asked = [scan for scan in audit.scans if scan.decision != UNSUITABLE]
    if not asked:
        return "No scan could be asked about: all are unsuitable."
    outside = sum(ignores_lungs(scan) and follows_outside(scan) for scan in asked)
    sentences = []
    if outside:
        sentences.append(
            f"On {outside} of {len(asked)} scans the model decides on what lies outside the lungs, "
            "such as the table or the body's outline, and not on the lungs."
        )
    counts = {severity: _num_with(asked, severity) for severity in (SERIOUS, NOTABLE)}
    if counts[SERIOUS]:
        sentences.append(f"Serious findings on {counts[SERIOUS]} of {len(asked)} scans.")
    elif counts[NOTABLE]:
        sentences.append(
            f"No serious findings; notable ones on {counts[NOTABLE]} of {len(asked)} scans."
        )
    else:
        sentences.append(f"Nothing serious or notable was found on {len(asked)} scans.")
    return " ".join(sentences)


def as_markdown(audit: ModelAudit) -> str:
    """The whole audit, verdict first; a line per scan tells the worst finding of each check."""
    return fill_markdown(
        "chestct.studies/model_audit.md.j2",
        {"cells": probe_cells, "likeness": _likeness, "severity_in": _severity_of},
        audit=audit,
        verdict=verdict(audit),
        checks=("lungs", "outside", "lesion", "weights", "stability"),
        unsuitable=UNSUITABLE,
        probe_headings=PROBE_HEADINGS,
    )


def probe_cells(probe: Probe) -> list[str]:
    """A probe as the cells of a table with `PROBE_HEADINGS`."""
    share = "" if probe.share is None else f"{probe.share:.3f}"
    change = "" if probe.change is None else f"{probe.change:+.3f}"
    return [probe.words, share, change, "the same" if probe.is_same else probe.decision]


def _likeness(value: float | None) -> str:
    return "empty map" if value is None else f"{value:.2f}"


def _severity_of(check: str, scan: ScanAudit) -> str:
    """The worst finding of one check; empty where it was not made."""
    found = [finding for finding in scan.findings if finding.check == check]
    return worst_severity(found) if found else ""


def _all_findings(audit: ModelAudit) -> list[Finding]:
    return [finding for scan in audit.scans for finding in scan.findings]


def _num_with(scans: Sequence[ScanAudit], severity: str) -> int:
    return sum(any(each.severity == severity for each in scan.findings) for scan in scans)

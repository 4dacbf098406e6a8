"""Check labelled scans before anything is trained on them.

Leaks are refused: what is trained and tested on the same patient or pixels means nothing.
Confounders are said, in words: they are in most public data and cannot be mended by a program.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from chestct.datasets.confounders import VARIABLES, ConfounderSettings, find_confounders
from chestct.datasets.findings import CheckReport, Confounder, Finding
from chestct.datasets.leaks import (
    find_label_conflicts,
    find_patient_leaks,
    find_pixel_leaks,
    find_unreadable,
)
from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.scans import ScanFacts

_ORDER = {"refuse": 0, "warning": 1, "note": 2}
_STRONG_AUC = 0.65
_MAX_P = 0.05
_FEW_PATIENTS = 30
_MOST_VALUES_NAMED = 4


class LeakError(ManifestError):
    """The scans are divided so that no result on them would mean anything."""


def check_manifest(
    manifest: Manifest,
    facts: Sequence[ScanFacts] | None = None,
    settings: ConfounderSettings | None = None,
) -> CheckReport:
    """Look for leaks, wrong labels, unreadable scans and confounders.

    Args:
        manifest: The scans, divided or not.
        facts: Of every row's scan, from `gather_facts`; without them pixels are not compared and
            only what the manifest says is asked.
        settings: How variables are asked.

    Raises:
        ValueError: There are not as many facts as rows.
    """
    if facts is not None and len(facts) != len(manifest):
        raise ValueError(f"{len(facts)} facts do not belong to {len(manifest)} rows")
    findings = [*find_patient_leaks(manifest), *find_label_conflicts(manifest)]
    if facts is not None:
        findings += [*find_unreadable(manifest, facts), *find_pixel_leaks(manifest, facts)]
    else:
        sentence = "The scans were not read: pixels were not compared."
        findings.append(Finding("leak", "note", sentence))
    confounders = find_confounders(manifest, facts, settings)
    findings += _class_findings(manifest)
    findings += [
        finding for each in confounders if (finding := describe_confounder(each)) is not None
    ]
    findings += _unknown_findings(confounders)
    return CheckReport(
        manifest=manifest.name,
        num_scans=len(manifest),
        num_patients=manifest.num_patients,
        cases=manifest.cases,
        sides=_count_sides(manifest),
        has_pixels=facts is not None,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])),
        confounders=tuple(confounders),
    )


def refuse_leaks(report: CheckReport) -> None:
    """Refuse scans that cannot be trained on as they are divided.

    Raises:
        LeakError: There are leaks, contradicting labels or unreadable scans; all are listed.
    """
    if report.refusals:
        listed = "".join(f"\n  - {finding.sentence}" for finding in report.refusals)
        msg = f"{report.manifest} cannot be trained on as it is ({len(report.refusals)} reasons):"
        raise LeakError(msg + listed)


def report_json(report: CheckReport) -> str:
    """The report as JSON, for programs; `schema` changes when a field does."""
    document = {"schema": 1, **asdict(report), "may_be_trained_on": not report.refusals}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def describe_confounder(found: Confounder) -> Finding | None:
    """What a variable's figure means; None where it means nothing."""
    word = VARIABLES[found.variable]
    if found.is_same_as_class:
        sentence = (
            f"Class and {word} are the same variable: every value occurs with one class only "
            f"({_list_values(found)}). A classifier can be right here by recognising the {word} "
            "and nothing of the disease, and no split of these scans, cross-validation included, "
            f"can show the difference. Add scans so that the classes mix within each {word}, or "
            "test on scans from elsewhere in which they do; until then a result on these scans is "
            "no evidence that the disease is recognised."
        )
        return Finding("confounder", "warning", sentence)
    if found.auc is None or found.p_value is None or found.chance_auc is None:
        return None
    if found.auc < _STRONG_AUC or found.p_value > _MAX_P:
        return None
    unknown = f"; {found.num_unknown} of them not known" if found.num_unknown else ""
    sentence = (
        f"The {word} alone tells the classes apart with a cross-validated AUC of {found.auc:.2f} "
        f"({found.num_patients} patients{unknown}; 95 % of random labellings stay below "
        f"{found.chance_auc:.2f}). No picture was looked at. Put this figure beside the "
        f"classifier's: what the classifier reaches may be due to the {word} up to there. Match "
        f"the classes by {word}, report results within its values, or test where it does not "
        "predict the class."
    )
    return Finding("confounder", "warning", sentence)


def _class_findings(manifest: Manifest) -> list[Finding]:
    cases = manifest.cases
    empty = [label for label, count in cases.items() if not count]
    if len(cases) - len(empty) < 2:
        sentence = f"There are scans of {len(cases) - len(empty)} class(es)."
        return [Finding("classes", "refuse", f"{sentence} A classifier needs at least two.")]
    if empty:
        sentence = f"No scan is {' or '.join(empty)}. Add some, or leave the class out of the"
        return [Finding("classes", "refuse", f"{sentence} labels.")]
    smallest = min(cases, key=lambda label: cases[label])
    if cases[smallest] >= _FEW_PATIENTS:
        return []
    # Wilson's lower end when all of n are right: n / (n + z^2).
    low = cases[smallest] / (cases[smallest] + 1.96**2)
    sentence = (
        f"Only {cases[smallest]} scan(s) are {smallest}. Whatever is measured on them has a wide "
        f"interval (all of them right: {low:.0%} to 100 %); report it."
    )
    return [Finding("classes", "warning", sentence)]


def _unknown_findings(confounders: Sequence[Confounder]) -> list[Finding]:
    unknown = [VARIABLES[each.variable] for each in confounders if each.auc is None]
    if not unknown:
        return []
    sentence = (
        f"Could not be asked: {', '.join(unknown)}. Confounding by them cannot be excluded; fill "
        "in the columns where it is known."
    )
    return [Finding("confounder", "note", sentence)]


def _count_sides(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((row.side, row.label) for row in manifest.rows)
    sides = sorted({row.side for row in manifest.rows if row.side})
    return {side: {label: counts[side, label] for label in manifest.labels} for side in sides}


def _list_values(found: Confounder) -> str:
    parts = [
        f"{value}: {', '.join(f'{count} {label}' for label, count in row.items())}"
        for value, row in found.values.items()
    ]
    more = len(parts) - _MOST_VALUES_NAMED
    return "; ".join(parts[:_MOST_VALUES_NAMED]) + (f"; {more} more values" if more > 0 else "")

"""Which scans were left out, and why: the flow of a data set from all scans to those used.

A reason in the column `excluded` leaves a scan out of everything; the row stays in the file, so
that the reason does. Reasons are the user's words, such as "image quality", "too little
radiation" or "other lesions".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.text_tables import as_csv, as_markdown_table

LISTED: Final = "listed"
USED: Final = "used"


@dataclass(frozen=True)
class FlowStep:
    """One line of the flow.

    Attributes:
        step: `LISTED`, "excluded: REASON", or `USED`.
        num_scans: Scans in it.
        num_patients: Patients with a scan in it.
        cases: Scans per label.
    """

    step: str
    num_scans: int
    num_patients: int
    cases: dict[str, int]


def flow_of(manifest: Manifest) -> tuple[FlowStep, ...]:
    """All scans, those excluded by reason (the most frequent first), and those that are used."""
    everything = (*manifest.rows, *manifest.excluded)
    reasons = Counter(row.excluded for row in manifest.excluded)
    labels = tuple(dict.fromkeys((*manifest.labels, *(row.label for row in manifest.excluded))))
    by_reason = [
        _step(
            f"excluded: {reason}",
            [row for row in manifest.excluded if row.excluded == reason],
            labels,
        )
        for reason, _ in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return (
        _step(LISTED, everything, labels),
        *by_reason,
        _step(USED, manifest.rows, labels),
    )


def exclude(manifest: Manifest, reasons: Mapping[str, str]) -> Manifest:
    """Leave scans out, by their path as the manifest has it.

    Raises:
        ManifestError: A scan is not in the manifest, a reason is empty, or no scan is left.
    """
    known = {row.scan for row in manifest.rows}
    strange = [scan for scan in reasons if scan not in known]
    if strange:
        msg = f"{manifest.name} does not list the scan '{strange[0]}'"
        more = f" ({len(strange)} such scans in all)" if len(strange) > 1 else ""
        raise ManifestError(f"{msg}{more}. Write its path as the column 'scan' has it.")
    empty = [scan for scan, reason in reasons.items() if not reason.strip()]
    if empty:
        raise ManifestError(f"The scan '{empty[0]}' has no reason for leaving it out. Give one.")
    rows = (
        replace(row, excluded=reasons[row.scan].strip()) if row.scan in reasons else row
        for row in manifest.rows
    )
    return manifest.with_rows(rows)


def flow_csv(steps: Sequence[FlowStep]) -> str:
    """The flow as CSV: step, scans, patients, and a column per label."""
    return as_csv(_columns(steps), map(_cells, steps))


def flow_markdown(steps: Sequence[FlowStep]) -> str:
    """The flow as a Markdown table."""
    return as_markdown_table(_columns(steps), map(_cells, steps)) + "\n"


def _step(name: str, rows: Sequence[ManifestRow], labels: tuple[str, ...]) -> FlowStep:
    counts = Counter(row.label for row in rows)
    patients = len({row.patient for row in rows})
    return FlowStep(name, len(rows), patients, {label: counts[label] for label in labels})


def _columns(steps: Sequence[FlowStep]) -> list[str]:
    return ["step", "scans", "patients", *(label or "no label" for label in steps[0].cases)]


def _cells(step: FlowStep) -> list[str]:
    return [step.step, *map(str, (step.num_scans, step.num_patients, *step.cases.values()))]

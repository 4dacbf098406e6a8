"""`chestct audit-model`: what a classifier's answers rest on, and what they survive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from chestct.cli import options
from chestct.cli.classify import load
from chestct.cli.terminal import scan_progress, show_written, stdout_console
from chestct.cli.workers import Workers, current_umask, worked_on
from chestct.errors import ReadError
from chestct.report import as_terminal_table

if TYPE_CHECKING:
    from rich.console import Console

    from chestct.cluster.driver import Executor
    from chestct.studies.model_audit import Auditor
    from chestct.studies.model_audit_findings import ModelAudit, ScanAudit

_STYLES = {"serious": "bold red", "notable": "yellow", "remark": "dim", "fine": "green"}


@dataclass(frozen=True)
class _Asked:
    """About what a classifier is asked, beside scans by name."""

    simulated: Annotated[
        int,
        typer.Option("--simulated", min=0, metavar="N", help="Ask about N simulated patients."),
    ] = 0
    lesions: Annotated[
        Path | None,
        typer.Option(
            "--lesions",
            metavar="FILE",
            help="Mask of the one scan's lesions, on its grid. Default: the heat-map's region.",
        ),
    ] = None
    explanation: Annotated[
        str, typer.Option("--explanation", metavar="NAME", help="How heat-maps are made.")
    ] = "gradcam"
    finding: options.Finding = None
    series: options.Series = None

    def require_use(self, scans: Sequence[Path]) -> None:
        """Refuse to ask about nothing, or about what is not there.

        Raises:
            ReadError: It is so.
            UnknownNameError: There is no such explanation.
        """
        from chestct.explain import EXPLANATIONS
        from chestct.lookup import look_up

        if not scans and self.simulated == 0:
            raise ReadError("There is nothing to ask about: name a scan, or --simulated 3.")
        look_up(EXPLANATIONS, self.explanation, kind="explanation")
        for path in [*scans, *([self.lesions] if self.lesions else [])]:
            options.require_scan(path)

    def _asked_here(self, auditor: Auditor, scans: Sequence[Path]) -> Iterator[ScanAudit]:
        """What is asked about scans that were named, then simulated ones, each in its turn."""
        from chestct.readers import ReadOptions
        from chestct.studies.model_audit import audit_scan, read_subjects, simulated_subjects

        for subject in read_subjects(scans, self.lesions, ReadOptions(self.series)):
            yield audit_scan(auditor, subject)
        for subject in simulated_subjects(range(self.simulated), auditor.classifier.labels):
            yield audit_scan(auditor, subject)

    def audited_here(self, auditor: Auditor, scans: Sequence[Path]) -> ModelAudit:
        """The audit of all of it, and a bar meanwhile."""
        from chestct.studies.model_audit import audit_model

        with scan_progress(is_quiet=False) as progress:
            task = progress.add_task("", total=None)
            told = replace(auditor, listener=lambda what: progress.update(task, description=what))
            return audit_model(auditor, self._asked_here(told, scans))

    def asked_by(
        self, executor: Executor, auditor: Auditor, engine: str, scans: Sequence[Path], folder: Path
    ) -> list[ScanAudit]:
        """The same, by workers; their job lies in a folder."""
        from chestct.cluster.driver import conclude
        from chestct.cluster.judging import AuditWork

        tasks = AuditWork.tasks(scans, self.simulated, self.lesions, self.series)
        job = AuditWork.job(auditor, engine, tasks, folder, umask=current_umask())
        with worked_on(job, tasks, executor, "Asking") as done:
            return AuditWork.audits(conclude(done, "scans", holds_results=True))


@options.grouped
def audit_model(
    scans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SCAN]...", help="Folders, files, zips, or addresses."),
    ] = None,
    classifier: options.ClassifierFolder = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write the audit as JSON and Markdown here."),
    ] = None,
    *,
    asked: _Asked,
    workers: Workers,
    engine: options.EngineName = "auto",
) -> None:
    """Check a classifier: blank lungs, lesion or surroundings, draw weights, change the scan.

    Scans may be asked about at once, one by each of several workers: --workers N --out DIR.
    """
    from chestct.studies.model_audit import Auditor, audit_model, require_finding
    from chestct.studies.model_audit_findings import write_model_audit

    paths = scans or []
    asked.require_use(paths)
    executor = workers.who() if workers.is_asked_for else None
    loaded, running = load(classifier, options.Running(engine))
    require_finding(loaded, asked.finding)
    auditor = Auditor(loaded, running, asked.explanation, finding=asked.finding)
    if executor is not None:
        if out is None:
            raise ReadError("Workers need a folder that all of them see: name --out DIR.")
        found = asked.asked_by(executor, auditor, engine, paths, out)
        audit = audit_model(auditor, found)
    else:
        audit = asked.audited_here(auditor, paths)
    _show_audit(stdout_console(), audit)
    if out is not None:
        show_written(write_model_audit(audit, out), [])


def _show_audit(console: Console, audit: ModelAudit) -> None:
    """Show an audit scan by scan, its verdict last."""
    for scan in audit.scans:
        _show_scan(console, scan)
    console.print(Text(audit.verdict, style=_STYLES[audit.severity]), soft_wrap=True)
    if audit.assumption:
        console.print(Text(audit.assumption), soft_wrap=True)
    console.print(Text(audit.notice, style="bold"))
    console.print(Text(f"Classifier trained on: {audit.trained_on}", style="dim"))


def _show_scan(console: Console, scan: ScanAudit) -> None:
    from chestct.studies.model_audit_findings import PROBE_HEADINGS

    share = f" {scan.share:.3f}" if scan.probabilities else ""
    console.print(Text(f"{scan.name}: {scan.decision}{share}", style="bold"))
    if scan.probes:
        lines = [
            [Text(cell, style="" if probe.is_same else "yellow") for cell in probe.cells]
            for probe in scan.probes
        ]
        console.print(as_terminal_table(PROBE_HEADINGS, lines, right=(1, 2)))
    for finding in scan.findings:
        line = Text(f"{finding.severity}  ", style=_STYLES[finding.severity])
        console.print(line.append(finding.sentence, style="default"), soft_wrap=True)
    console.print()

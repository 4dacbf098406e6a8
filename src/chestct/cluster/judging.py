"""What is done to a classifier: judged, damaged and judged again, or asked what answers rest on.

The jobs hold no longer than the work: what damaged networks say are files of their own, and
evaluations and audits are written whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from chestct.classifier import Classifier
from chestct.cluster.classifying import identity_of, load_same
from chestct.cluster.job import FOLDER, Job, OneByOne, Row
from chestct.datasets.manifest import Manifest
from chestct.engines import make_engine
from chestct.pipeline import scan_name
from chestct.readers import ReadOptions
from chestct.remote import refuse_secrets, whole
from chestct.studies.damage import Damaged, DamageJudge, DamagePlan
from chestct.studies.model_audit import (
    Auditor,
    audit_scan,
    read_subjects,
    require_one_of,
    simulated_subjects,
)
from chestct.studies.model_audit_findings import ScanAudit
from chestct.training.data import make_cache
from chestct.training.judging import ScanSaid, judge_here, read_rows
from chestct.training.plan import Listener
from chestct.training.results import scan_key
from chestct.training.settings import DataSection

_Tasks = list[dict[str, Any]]
_DAMAGE: Final = "damage"
_EVALUATE: Final = "evaluate"
_AUDIT: Final = "audit"


class DamageWork(OneByOne):
    """A damaged network after the other, judged on the scans of a study.

    Args:
        settings: As `job` gives them.
        out: The study's folder.
    """

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        said = dict(settings)
        classifier = load_same(said.pop("classifier"), said.pop("identity"))
        rows = read_rows(Path(said.pop("manifest")), classifier, said.pop("split"))
        said["parts"] = tuple(said["parts"])
        self._judge = DamageJudge(
            DamagePlan(classifier, rows, out, **said, listener=Listener(processes=1))
        )

    def do(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Judge one choice of a part's units, unless that was done."""
        self._judge.judge(task["part"], task["number"])
        return ()

    @staticmethod
    def job(
        plan: DamagePlan, manifest: Path, split: str | None, wanted: Sequence[Damaged], **said: Any
    ) -> tuple[Job, _Tasks]:
        """The job of judging damaged networks, and its tasks.

        Args:
            plan: Of the study, its undamaged classifier judged.
            manifest: Where its scans are listed.
            split: Which of them are judged.
            wanted: The damaged networks.
            said: Other fields of `Job`.
        """
        settings = {
            "classifier": whole(plan.classifier.folder),
            "identity": identity_of(plan.classifier),
            "manifest": whole(manifest),
            "split": split,
            "parts": list(plan.parts),
            "share": plan.share,
            "repeats": plan.repeats,
            "seed": plan.seed,
            "device": plan.device,
        }
        tasks = [
            {"name": f"{part}, choice {number}", "part": part, "number": number}
            for part, number in wanted
        ]
        folder = plan.folder.absolute() / FOLDER
        return Job(folder, _DAMAGE, settings, len(tasks), 1, **said), tasks


class EvaluateWork(OneByOne):
    """A classifier that is asked about one scan of a data set after the other.

    Args:
        settings: As `job` gives them.
        out: The folder of the evaluation.
    """

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self._classifier = load_same(settings["classifier"], settings["identity"])
        self._engine = make_engine(
            self._classifier,
            settings["engine"],
            precision=settings["precision"],
            device=settings["device"],
        )
        self.engine = self._engine.name
        self._manifest = read_rows(Path(settings["manifest"]), self._classifier, settings["split"])
        self._cache = make_cache(DataSection(), self._classifier.recipe)
        self._rows = {row.number: row for row in self._manifest.rows}

    def do(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """What it said of a scan, or why nothing, as JSON."""
        asked = self._manifest.with_rows((self._rows[task["row"]],))
        said = judge_here(self._classifier, self._engine, asked, self._cache, Listener(processes=1))
        return (str(task["row"]), json.dumps(said[task["row"]]))

    @staticmethod
    def job(
        out: Path,
        classifier: Classifier,
        manifest: Manifest,
        settings: Mapping[str, Any],
        **said: Any,
    ) -> tuple[Job, _Tasks]:
        """The job of asking a classifier about the scans of a data set, and its tasks.

        Args:
            out: The folder of the evaluation.
            classifier: Who is asked.
            manifest: As `read_rows` gives it of `settings`.
            settings: `manifest` and `split`, as `read_rows` takes them, and `engine`, `precision`
                and `device`, as `make_engine` does.
            said: Other fields of `Job`; its `shard` as a function of the number of scans.
        """
        known = {"classifier": whole(classifier.folder), "identity": identity_of(classifier)}
        tasks = [{"name": scan_key(row), "row": row.number} for row in manifest.rows]
        shard = said.pop("shard")(len(tasks))
        folder = out.absolute() / FOLDER
        return Job(folder, _EVALUATE, {**settings, **known}, len(tasks), shard, **said), tasks

    @staticmethod
    def answers(rows: Sequence[Row]) -> dict[int, ScanSaid]:
        """What workers were told of scans, out of the rows of their job, by the manifest's row."""
        answers = {int(row.cells[1]): json.loads(row.cells[2]) for row in rows}
        return {row: ScanSaid(tuple(shares), reason) for row, (shares, reason) in answers.items()}


class AuditWork(OneByOne):
    """A classifier that is asked about one scan after the other.

    Args:
        settings: As `job` gives them.
        out: Where the audit will be written.
    """

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        classifier = load_same(settings["classifier"], settings["identity"])
        self._auditor = Auditor(
            classifier,
            make_engine(classifier, settings["engine"]),
            settings["method"],
            finding=settings["finding"],
        )
        self.engine = self._auditor.engine.name

    def do(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """All that was asked about a scan, as JSON."""
        if task["scan"] is None:
            labels = self._auditor.classifier.labels
            (subject,) = simulated_subjects([task["number"]], labels)
        else:
            lesions = None if task["lesions"] is None else Path(task["lesions"])
            (subject,) = read_subjects([Path(task["scan"])], lesions, ReadOptions(task["series"]))
        return (json.dumps(asdict(audit_scan(self._auditor, subject))),)

    @staticmethod
    def tasks(
        scans: Sequence[Path], num_simulated: int, lesions: Path | None, series: str | None
    ) -> _Tasks:
        """What a classifier is asked about: scans, then simulated patients.

        Args:
            scans: Their paths.
            num_simulated: How many patients.
            lesions: A mask of the only scan's lesions.
            series: Which series of a folder is read.

        Raises:
            ReadError: Lesions were given for several scans, or an address has a password or query.
        """
        require_one_of(scans, lesions)
        for path in (*scans, *([] if lesions is None else [lesions])):
            refuse_secrets(path, "An audit by workers")
        mask = None if lesions is None else whole(lesions)
        of_scans = [
            {"name": scan_name(path), "scan": whole(path), "lesions": mask, "series": series}
            for path in scans
        ]
        return of_scans + [
            {"name": f"simulated {number + 1}", "scan": None, "number": number}
            for number in range(num_simulated)
        ]

    @staticmethod
    def job(auditor: Auditor, engine: str, tasks: _Tasks, folder: Path, **said: Any) -> Job:
        """The job of asking a classifier about scans.

        Args:
            auditor: Who asks.
            engine: What runs its network, as `make_engine` takes it.
            tasks: As `tasks` gives them.
            folder: Where the audit will be written.
            said: Other fields of `Job`.
        """
        settings = {
            "classifier": whole(auditor.classifier.folder),
            "identity": identity_of(auditor.classifier),
            "engine": engine,
            "method": auditor.method,
            "finding": auditor.finding,
        }
        return Job(folder.absolute() / FOLDER, _AUDIT, settings, len(tasks), 1, **said)

    @staticmethod
    def audits(rows: Sequence[Row]) -> list[ScanAudit]:
        """What workers asked about scans, out of the rows of their job."""
        adapter = TypeAdapter(ScanAudit)
        return [adapter.validate_python(json.loads(row.cells[1])) for row in rows]

"""What is done to a fold of a cross-validation: a network is trained, and judged on it.

A training goes on from its own last state, which lies in its folder, so that one whose worker ended
costs minutes. The job beside the folds holds no longer than the work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chestct.cluster.job import FOLDER, Job, Row
from chestct.errors import ChestCTError, TrainingError
from chestct.remote import whole
from chestct.training.distributed import choose_device
from chestct.training.plan import Listener, Plan
from chestct.training.session import SETTINGS_FILE, run_fold
from chestct.training.settings import read_settings

_WORK: Final = "folds"
_SIGNALS: Final = 128
"""Exit codes above this are those of a training that was asked to stop: another worker goes on."""


class FoldWork:
    """A run whose folds are trained by several workers.

    Args:
        settings: As `folds_job` gives them.
        out: The run's folder.
    """

    engine = ""

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self._notes: list[str] = []
        self._plan = Plan(
            read_settings(out / SETTINGS_FILE),
            Path(settings["manifest"]),
            out,
            settings["num_folds"],
            Listener(note=self._notes.append, processes=settings["processes"]),
            choose_device(settings["device"]),
        )

    def rows(
        self,
        tasks: Sequence[Mapping[str, Any]],
        begin: Callable[[int], None],
        *,
        is_careful: bool,
    ) -> Iterator[Row]:
        """Train folds, in their order; one goes on where its last worker ended."""
        for task in tasks:
            self._notes.clear()
            failure = ""
            try:
                run_fold(self._plan, task["name"])
            except ChestCTError as error:
                if error.exit_code > _SIGNALS:
                    raise
                failure = str(error)
            yield Row((task["name"], *self._notes), task["name"], failure=failure)

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a fold that was not trained."""
        return Row((task["name"],), task["name"], failure=why)


def folds_job(
    plan: Plan, names: Sequence[str], device: str, **said: Any
) -> tuple[Job, list[dict[str, Any]]]:
    """The job of training the folds of a run, and its tasks.

    Args:
        plan: Of the whole run.
        names: Of its folds.
        device: Where each worker trains, as `choose_device` takes it.
        said: Other fields of `Job`.
    """
    settings = {
        "manifest": whole(plan.manifest),
        "num_folds": plan.num_folds,
        "device": device,
        "processes": plan.listener.processes,
    }
    tasks = [{"name": name} for name in names]
    return Job(plan.folder.absolute() / FOLDER, _WORK, settings, len(tasks), 1, **said), tasks


def conclude_folds(job: Job, told: Listener) -> None:
    """Tell what workers noted; the job is removed where all folds are trained.

    Raises:
        TrainingError: Some folds failed; the message says which and why.
    """
    rows = list(job.rows())
    for row in rows:
        for note in row.cells[1:]:
            told.note(note if note.startswith(row.name) else f"{row.name}: {note}")
    failed = [f"\n  {row.name}: {row.failure}" for row in rows if row.failure]
    if failed:
        msg = f"{len(failed)} of {len(rows)} folds were not trained:{''.join(failed)}"
        raise TrainingError(f"{msg}\n  The same command goes on with these folds.")
    shutil.rmtree(job.folder, ignore_errors=True)

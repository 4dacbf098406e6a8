"""What is done to trainings: a fold of a cross-validation, a row of a study, a trial of a search.

A training goes on from its own last state, which lies in its folder, so that one whose worker ended
costs minutes. The job beside them holds no longer than the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chestct.cluster.job import FOLDER, Job, OneByOne, Row
from chestct.remote import whole
from chestct.training.distributed import choose_device
from chestct.training.plan import Listener, Plan, SlicePlan, settled
from chestct.training.session import run_fold, run_whole
from chestct.training.settings import RunSettings, SliceRunSettings

_WORK: Final = "trainings"


class TrainingWork(OneByOne):
    """Trainings of one kind, of the same scans or slices.

    Args:
        settings: As `job` gives them.
        out: The folder below which they lie.
    """

    goes_on = True

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self._notes: list[str] = []
        self._settings = settings
        self._listener = Listener(note=self._notes.append, processes=settings["processes"])
        self._device = choose_device(settings["device"])

    def do(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Train, or go on; why it diverged, or nothing, and what is to be told."""
        self._notes.clear()
        return self._train(task), *self._notes

    def _train(self, task: Mapping[str, Any]) -> str:
        common: dict[str, Any] = {
            "manifest": Path(self._settings["manifest"]),
            "folder": Path(task["folder"]),
            "num_folds": self._settings["num_folds"],
            "listener": self._listener,
            "device": self._device,
        }
        if self._settings["are_slices"]:
            return run_whole(
                SlicePlan(SliceRunSettings.model_validate_json(task["settings"]), **common)
            )
        plan = Plan(RunSettings.model_validate_json(task["settings"]), **common)
        if not self._settings["are_folds"]:
            return run_whole(plan, is_trial=self._settings["are_trials"])
        run_fold(settled(plan), task["name"])
        return ""

    @staticmethod
    def job(
        folder: Path,
        plans: Mapping[str, Plan | SlicePlan],
        device: str,
        *,
        are_folds: bool = False,
        are_trials: bool = False,
        **said: Any,
    ) -> tuple[Job, list[dict[str, Any]]]:
        """The job of trainings, and its tasks.

        Args:
            folder: The folder below which all of them lie.
            plans: What each is called, and its plan; of one manifest.
            device: Where each worker trains, as `choose_device` takes it.
            are_folds: Whether each is the fold of that name, of a run that was begun.
            are_trials: See `TrainAll`.
            said: Other fields of `Job`.
        """
        first = next(iter(plans.values()))
        settings = {
            "manifest": whole(first.manifest),
            "num_folds": first.num_folds,
            "device": device,
            "processes": first.listener.processes,
            "are_slices": isinstance(first, SlicePlan),
            "are_folds": are_folds,
            "are_trials": are_trials,
        }
        tasks = [
            {
                "name": name,
                "folder": str(plan.folder.absolute()),
                # As one text: the order of what it holds would be lost, and a training writes it.
                "settings": plan.settings.model_dump_json(),
            }
            for name, plan in plans.items()
        ]
        return Job(folder.absolute() / FOLDER, _WORK, settings, len(tasks), 1, **said), tasks

    @staticmethod
    def tell(rows: Sequence[Row], told: Listener) -> dict[str, str]:
        """Tell what workers noted.

        Returns:
            What each training that diverged is called, and why it has no result.
        """
        for row in rows:
            for note in row.cells[2:]:
                told.note(note if note.startswith(row.name) else f"{row.name}: {note}")
        return {row.name: row.cells[1] for row in rows if row.cells[1]}

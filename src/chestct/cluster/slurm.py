"""Workers as jobs of a SLURM cluster, through submitit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chestct.cluster import WorkerEnd
from chestct.cluster.job import ClusterError
from chestct.errors import ChestCTError
from chestct.extras import import_extra

_DEFAULTS: Final = {"timeout_min": 240, "cpus_per_task": 4, "name": "chestct"}
_CLUSTER: Final = "cluster"
"""The option that takes another one of submitit's executors: local, debug."""


class SlurmCrew:
    """An array of jobs, each one worker; one that runs out of time is queued again.

    Args:
        folder: The job's, on a disk that all nodes see.
        options: submitit's own parameters, such as `timeout_min`, `slurm_partition`, `mem_gb`,
            `gpus_per_node`; see `submitit.AutoExecutor.update_parameters`.
        num_workers: How many there will be at once.

    Raises:
        ClusterError: An option is unknown, or there is no SLURM here.
        MissingExtraError: submitit is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        submitit = import_extra("submitit", extra="slurm")
        said = {**_DEFAULTS, **{name: _value(text) for name, text in options.items()}}
        cluster = str(said.pop(_CLUSTER, "slurm"))
        try:
            self._executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
            if cluster == "slurm":
                said.setdefault("slurm_array_parallelism", num_workers)
            self._executor.update_parameters(**said)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            msg = f"Workers cannot be sent to '{cluster}': {str(error).splitlines()[0]}"
            raise ClusterError(
                f"{msg} Run this where sbatch is, and correct the options."
            ) from error
        self._folder = folder
        self._jobs: list[Any] = []

    def start(self, num: int) -> None:
        """Submit so many jobs more, as one array."""
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_Worker(str(self._folder))) for _ in range(num)]
        except Exception as error:
            # submitit has errors of its own for what sbatch says, by version.
            msg = f"SLURM takes no job: {' '.join(str(error).split())[:300]}"
            raise ClusterError(msg) from error
        self._jobs += jobs

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        gone = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in gone]
        return [_how(job) for job in gone]

    def stop(self) -> None:
        """Cancel those that are left."""
        for job in self._jobs:
            job.cancel()
        self._jobs = []


class _Worker:
    """What a job runs; submitit stores it with pickle, and it holds one path."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> str:
        """Work; the reason why it would not, or nothing."""
        from chestct.cluster.worker import work_on

        try:
            work_on(Path(self.folder))
        except ChestCTError as error:
            return str(error)
        return ""

    def checkpoint(self) -> Any:
        """What is queued when the time is up or the job is preempted: the same again."""
        return import_extra("submitit", extra="slurm").helpers.DelayedSubmission(self)


def _how(job: Any) -> WorkerEnd:
    error = job.exception()
    return WorkerEnd(is_lost=True) if error is not None else WorkerEnd(str(job.result()))


def _value(text: str) -> object:
    """A number where it is one."""
    return int(text) if text.isdecimal() else text

"""Options of the commands whose work several workers may do, and how that work is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from chestct.cli.terminal import scan_progress, show_error, show_line
from chestct.errors import ReadError

if TYPE_CHECKING:
    from chestct.cluster.driver import Executor
    from chestct.cluster.job import Job
    from chestct.datasets.workers import Progress
    from chestct.training.plan import Plan, SlicePlan
    from chestct.training.session import TrainAll

MANY: Final = "Many scans"
TIMEOUT_S: Final = 600.0
"""How long a scan may take where nothing is said."""

_WHO: Final = "Who works"
_MOST_PER_SHARD: Final = 50
_SHARDS_PER_WORKER: Final = 4


@dataclass(frozen=True)
class Workers:
    """Who works on many things at once."""

    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            metavar="NAME",
            help="Who works: local (processes), slurm or ray. Default: local.",
            rich_help_panel=_WHO,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="How many workers. Default: one per core of this machine.",
            rich_help_panel=_WHO,
        ),
    ] = None
    executor_option: Annotated[
        list[str] | None,
        typer.Option(
            "--executor-option",
            metavar="KEY=VALUE",
            help="What the executor alone knows, such as address=HOST:PORT or slurm_partition=gpu.",
            rich_help_panel=_WHO,
        ),
    ] = None

    @property
    def is_asked_for(self) -> bool:
        """Whether anything was said of them."""
        return any(asdict(self).values())

    def who(self, processes: int | None = None) -> Executor:
        """Who works; `processes` says how many where `--workers` does not.

        Raises:
            UnknownNameError: There is no such executor.
            ReadError: An option is no KEY=VALUE.
        """
        from chestct.cluster import EXECUTORS
        from chestct.cluster.driver import Executor
        from chestct.lookup import look_up

        name = self.executor or "local"
        look_up(EXECUTORS, name, kind="executor")
        pairs = [text.partition("=") for text in self.executor_option or []]
        for key, sign, _ in pairs:
            if not sign:
                raise ReadError(f"--executor-option is KEY=VALUE, not '{key}'.")
        return Executor(name, self.workers or processes, {key: value for key, _, value in pairs})

    @staticmethod
    def usual_shard(num_scans: int, workers: int | None) -> int:
        """Scans per shard: few enough that every worker gets several."""
        from chestct.datasets.workers import num_cores

        num_workers = workers or num_cores()
        return max(1, min(_MOST_PER_SHARD, num_scans // (_SHARDS_PER_WORKER * num_workers)))


@dataclass(frozen=True)
class Shards(Workers):
    """Who works, what a worker takes at once, and how long one scan may take."""

    shard: Annotated[
        int | None,
        typer.Option(
            "--shard",
            min=1,
            help="Scans that a worker takes at once, and that are lost with it. Default: 50 or "
            "fewer.",
            rich_help_panel=MANY,
        ),
    ] = None
    scan_timeout: Annotated[
        float | None,
        typer.Option(
            "--scan-timeout",
            min=0.1,
            metavar="S",
            help="Seconds that one scan may take; then it is tried once more, alone, and fails. "
            "Default: 600, with explanations 3600.",
            rich_help_panel=MANY,
        ),
    ] = None

    def shard_of(self, num_scans: int, workers: int | None) -> int:
        """Scans per shard: what was said, or what is usual."""
        return self.shard or self.usual_shard(num_scans, workers)


@contextmanager
def worked_on(
    job: Job, tasks: Sequence[Mapping[str, Any]], executor: Executor, what: str
) -> Iterator[Job]:
    """Have a job done, begun or gone on with, and show how far it is.

    Inside, all of it is done, and no other command works on it.

    Raises:
        ChestCTError: They cannot be worked on so.
        WriteError: The job's folder cannot be written.
    """
    from chestct.cluster.driver import only_driver, run_job
    from chestct.cluster.job import LEASE_S, begin_job

    with only_driver(job.out, LEASE_S, show_error):
        with scan_progress(is_quiet=False) as bar:
            begun = begin_job(job, tasks)
            task = bar.add_task(what, total=len(tasks))

            def show(progress: Progress) -> None:
                """Move the bar; the time left is reckoned from this call's own pace."""
                bar.update(task, completed=progress.done, total=progress.total)

            run_job(begun, executor, progress=show, say=show_error)
        yield begun


def have_trained(
    executor: Executor,
    folder: Path,
    plans: Mapping[str, Plan | SlicePlan],
    device: str,
    **are: bool,
) -> dict[str, str]:
    """Have trainings done by workers.

    Args:
        executor: Who works.
        folder: The folder below which they lie.
        plans: What each is called, and its plan.
        device: Where each worker trains, as `--device` says it.
        are: What they are, as `TrainingWork.job` takes it.

    Returns:
        What each that diverged is called, and why it has no result.

    Raises:
        ChestCTError: Some were not done, or cannot be worked on so.
    """
    from chestct.cluster.driver import conclude
    from chestct.cluster.trainings import TrainingWork

    job, tasks = TrainingWork.job(folder, plans, device, umask=current_umask(), **are)
    with worked_on(job, tasks, executor, "Training") as done:
        rows = conclude(done, "trainings")
    return TrainingWork.tell(rows, next(iter(plans.values())).listener)


def trainer(workers: Workers, folder: Path, device: str, kind: str) -> TrainAll:
    """What has many runs trained: workers where some were asked for, else this process.

    Args:
        workers: As they were asked for.
        folder: The folder below which the runs lie; no other command may train there meanwhile.
        device: Where each is trained, as `--device` says it.
        kind: What a run is called where it is begun: "Row".
    """
    executor = workers.who() if workers.is_asked_for else None

    def train(plans: Sequence[Plan | SlicePlan], *, are_trials: bool = False) -> Mapping[str, str]:
        """Have those trained that are not yet."""
        from chestct.cluster.driver import only_driver
        from chestct.cluster.job import LEASE_S
        from chestct.training.session import train_all

        if executor is not None:
            named = {plan.folder.name: plan for plan in plans}
            return have_trained(executor, folder, named, device, are_trials=are_trials)
        with only_driver(folder, LEASE_S, show_error):
            return train_all(
                plans, are_trials=are_trials, before=lambda name: show_line(f"{kind} {name}")
            )

    return train


def current_umask() -> int:
    """Who may not read what this command writes; workers elsewhere do the same."""
    current = os.umask(0o077)
    os.umask(current)
    return current

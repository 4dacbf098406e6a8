"""Many scans by many workers: what is done to them and what starts workers, as tables.

The work itself lies in a folder that all workers share (`job`): a list of scans in shards, claims
of those under way, and a part for each that is done. Whoever can see that folder can work on it
(`worker`), and comes and goes as it likes. An executor does no more than start workers and tell
when they end: what is left to do is the folder's affair, with each of them the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from chestct.lookup import Entry


@dataclass(frozen=True)
class WorkerEnd:
    """A worker has ended.

    Attributes:
        refusal: Why it will not work, where it said so; another one would say the same.
        is_lost: Whether it ended without a word: it was killed, or its machine vanished.
    """

    refusal: str = ""
    is_lost: bool = False


@runtime_checkable
class Crew(Protocol):
    """Workers on one job; made as `crew(folder, options)`.

    Raises:
        ClusterError: An option is unknown or impossible, or the cluster cannot be reached.
        MissingExtraError: The package it needs is not installed.
    """

    def start(self, num: int) -> None:
        """Start so many workers more."""

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""

    def stop(self) -> None:
        """End those that are left."""


EXECUTORS: Final[dict[str, Entry]] = {
    "local": Entry("chestct.cluster.local:LocalCrew", "processes of this machine"),
    "slurm": Entry("chestct.cluster.slurm:SlurmCrew", "jobs of a SLURM cluster, by submitit"),
    "ray": Entry("chestct.cluster.ray_actors:RayCrew", "actors on a Ray cluster"),
}
"""Executor name to its class."""

KINDS: Final[dict[str, Entry]] = {
    "classify": Entry("chestct.cluster.classifying:ClassifyWork", "answers of a classifier"),
    "prepare": Entry("chestct.cluster.preparing:PrepareWork", "inputs of a network, in a cache"),
    "folds": Entry("chestct.cluster.folds:FoldWork", "trainings of a cross-validation"),
}
"""Kind of work to its class, a `worker.Work`."""

"""Many scans by many workers: what is done to them and what starts workers, as tables.

The work itself lies in a folder that all workers share (`job`): a list of scans in shards, claims
of those under way, and a part for each that is done. Whoever can see that folder can work on it
(`job.work_on`), and comes and goes as it likes. An executor does no more than start workers and
tell when they end: what is left to do is the folder's affair, with each of them the same.
"""

from __future__ import annotations

from typing import Final

from chestct.lookup import Entry

EXECUTORS: Final[dict[str, Entry]] = {
    "local": Entry("chestct.cluster.driver:LocalCrew", "processes of this machine"),
    "slurm": Entry("chestct.cluster.driver:SlurmCrew", "jobs of a SLURM cluster, by submitit"),
    "ray": Entry("chestct.cluster.driver:RayCrew", "actors on a Ray cluster"),
}
"""Executor name to its class: workers on one job, as `driver` starts, hears and ends them."""

KINDS: Final[dict[str, Entry]] = {
    "classify": Entry("chestct.cluster.classifying:ClassifyWork", "answers of a classifier"),
    "prepare": Entry("chestct.cluster.preparing:PrepareWork", "inputs of a network, in a cache"),
    "evaluate": Entry("chestct.cluster.judging:EvaluateWork", "answers of which figures are made"),
    "damage": Entry("chestct.cluster.judging:DamageWork", "what a network says without a part"),
    "audit": Entry("chestct.cluster.judging:AuditWork", "what a classifier's answers rest on"),
    "trainings": Entry("chestct.cluster.trainings:TrainingWork", "folds, rows of studies, trials"),
}
"""Kind of work to its class: what is done to scans, as `job` has it done."""

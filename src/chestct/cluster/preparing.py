"""What is done to a scan of a data set: its input is prepared and kept in a cache.

The cache is what is left at the end. The job beside it holds no longer than the work, so that the
next call looks at every scan again: entries may have made way, or scans may have changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from chestct.cluster.driver import FAILURES_FILE
from chestct.cluster.job import FOLDER, Job, Row
from chestct.cluster.listing import plain_reading, reading_of
from chestct.datasets.manifest import Manifest
from chestct.datasets.store import (
    Cache,
    InputOutcome,
    InputTask,
    Preparation,
)
from chestct.pipeline import readable
from chestct.preprocess.recipes import recipe_from_dict
from chestct.remote import mirror_of, whole
from chestct.report import as_csv
from chestct.storage import remove_file, text_key, write_text

_WORK: Final = "prepare"


class PrepareWork:
    """A cache and its recipe, for any number of scans.

    Args:
        settings: As `job` gives them.
        out: Of the job; nothing is written there.
    """

    engine = ""

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        recipe = recipe_from_dict(settings["recipe"])
        folder = Path(settings["folder"])
        self._cache = Cache(**{**settings, "folder": folder, "recipe": recipe})

    def rows(
        self,
        tasks: Sequence[Mapping[str, Any]],
        begin: Callable[[int], None],
        *,
        is_careful: bool,
    ) -> Iterator[Row]:
        """Prepare scans, in their order; nothing is done ahead."""
        for place, task in enumerate(tasks):
            begin(place)
            input_task = InputTask(
                Path(task["path"]), reading_of(task), task["variant"], task["row"]
            )
            outcome = self._cache.prepare(input_task)
            said = (str(int(outcome.was_there)), repr(outcome.max_error))
            cells = (str(task["row"]), task["shown"], *said, *outcome.unsuitable_reasons)
            yield Row(cells, task["shown"], failure=outcome.error)

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a scan of which there is no input."""
        return Row((str(task["row"]), task["shown"], "0", "0"), task["shown"], failure=why)

    @staticmethod
    def job(
        cache: Cache, manifest: Manifest, variants: int, **said: Any
    ) -> tuple[Job, list[dict[str, Any]]]:
        """The job of preparing a manifest's scans, and its tasks.

        Args:
            cache: Where inputs are kept; the job lies below it, or below what stands for it here.
            manifest: The scans.
            variants: Inputs per scan.
            said: Other fields of `Job`; its `shard` as a function of the number of inputs.

        Raises:
            ManifestError: A row says something impossible about how its scan is read.
            CacheError: The cache could not hold all inputs at once.
        """
        tasks = [
            {
                "path": whole(each.path),
                "shown": readable(each.path.name),
                "reading": plain_reading(each.reading),
                "variant": each.variant,
                "row": each.row,
            }
            for each in cache.tasks_of(manifest, variants)
        ]
        settings = {**asdict(cache), "folder": whole(cache.folder)}
        # A name of its own for every work: several may go on in one cache.
        key = text_key(repr(settings), repr(tasks))[:16]
        folder = mirror_of(cache.folder).absolute() / f".preparing-{key}" / FOLDER
        shard = said.pop("shard")(len(tasks))
        return Job(folder, _WORK, settings, len(tasks), shard, **said), tasks

    @staticmethod
    def conclude(job: Job, manifest: Manifest, seconds: float) -> tuple[Preparation, Path]:
        """What became of all scans; the job is removed.

        Args:
            job: All of it is done.
            manifest: The scans.
            seconds: What it took.

        Returns:
            How preparing went, and the table of the scans that failed: written where there are any.

        Raises:
            WriteError: The table cannot be written.
        """
        outcomes = [
            InputOutcome(int(row), was_there == "1", each.failure, tuple(reasons), float(error))
            for each in job.rows()
            for row, _, was_there, error, *reasons in [each.cells]
        ]
        failures = [(each.cells[0], each.name, each.failure) for each in job.rows() if each.failure]
        table = job.out.parent / f"{Path(manifest.name).stem}-{FAILURES_FILE}"
        if failures:
            write_text(table, as_csv(("row", "scan", "reason"), failures))
        else:
            remove_file(table)
        shutil.rmtree(job.out, ignore_errors=True)
        return Preparation.of(outcomes, seconds), table

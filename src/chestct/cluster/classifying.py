"""What is done to a scan of a batch: it is read, prepared, classified and written about.

The next scan is read and prepared while the network runs and results are written. No more than
that is in memory, however many scans there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chestct.classifier import Classifier, load_classifier
from chestct.cluster.job import Job, Row
from chestct.cluster.listing import reading_of
from chestct.engines import Engine, make_engine
from chestct.errors import ChestCTError, ReadError, kind_of
from chestct.pipeline import ReadyScan
from chestct.remote import local_copy, shown
from chestct.result import ScanResult, verdict_of
from chestct.writers import WriteOptions
from chestct.writers.folders import check_folder, foresee_missing, write_outputs
from chestct.writers.pages import (
    IndexHead,
    IndexRow,
    answer_cells,
    answer_columns,
    share_words,
    write_index,
)

if TYPE_CHECKING:
    from chestct.volume import Volume

WORK: Final = "classify"
"""`Job.work` of classifying."""

_Tasks = Sequence[Mapping[str, Any]]
_Read = tuple[ReadyScan, ExitStack]
"""A scan that was read, and what keeps the copy it was read from until that is closed."""


def identity_of(classifier: Classifier) -> str:
    """What stands for a classifier: its weights, what decides what they compute, and its card."""
    card = classifier.card.model_dump_json()
    text = "\n".join((classifier.weights_sha256, classifier.identity, card))
    return hashlib.sha256(text.encode()).hexdigest()


def load_same(folder: str | Path | None, identity: str) -> Classifier:
    """Load the classifier that a job was begun with.

    Raises:
        ChestCTError: Another one lies there.
        ChestCTError: It cannot be loaded.
    """
    classifier = load_classifier(folder)
    if identity_of(classifier) != identity:
        msg = (
            f"The classifier in {classifier.folder} is not the one that the batch was "
            "begun with. Give every machine the same classifier and the same chestct."
        )
        raise ChestCTError(msg)
    return classifier


def failure_words(scan: str | Path, name: str, error: Exception) -> str:
    """What to say about a scan that failed."""
    scan = shown(scan)
    if isinstance(error, ChestCTError):
        return str(error) if name in str(error) else f"{scan}: {error}"
    if isinstance(error, MemoryError):
        return (
            f"{scan}: there was not enough memory ({error or 'no details'}). Free some, or take "
            "a machine with more."
        )
    return (
        f"{scan}: internal error ({kind_of(error)}). Classify this scan alone with --debug for "
        "details, and report them."
    )


class ClassifyWork:
    """A classifier and its engine, loaded once, for any number of scans.

    Args:
        settings: As `settings` gives them.
        out: Where folders of results go.

    Raises:
        ChestCTError: The classifier is not the one the batch was begun with.
        ChestCTError: It or its engine cannot be loaded.
    """

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self._settings, self._out = settings, out
        self._classifier = load_same(settings["classifier"], settings["identity"])
        self._engine: Engine = make_engine(
            self._classifier,
            settings["engine"],
            precision=settings["precision"],
            device=settings["device"],
        )
        fields = settings["writing"]
        self._writing = (
            None if fields is None else WriteOptions(**{**fields, "names": tuple(fields["names"])})
        )
        self._classes = self._classifier.card.label_set.names

    @property
    def engine(self) -> str:
        """Engine, precision and device in words: the same in every worker, or answers differ."""
        return self._engine.name

    def rows(
        self, tasks: _Tasks, begin: Callable[[int], None], *, is_careful: bool
    ) -> Iterator[Row]:
        """Classify scans, in their order; careful, one after the other and nothing ahead."""
        with ThreadPoolExecutor(1) as ahead:
            coming: list[Future[_Read]] = []
            for place, task in enumerate(tasks):
                begin(place)
                if not coming:
                    coming.append(ahead.submit(self._ready, task))
                ready = coming.pop()
                if not is_careful and place + 1 < len(tasks):
                    coming.append(ahead.submit(self._ready, tasks[place + 1]))
                yield self._row(task, ready)

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a scan that has no answer."""
        cells = answer_cells(self._classes, None, why)
        return Row((task["name"], task["shown"], *cells), task["name"], failure=why)

    def _ready(self, task: Mapping[str, Any]) -> _Read:
        with ExitStack() as stack:
            ready = self._made_ready(task, stack)
            return ready, stack.pop_all()

    def _made_ready(self, task: Mapping[str, Any], stack: ExitStack) -> ReadyScan:
        """Read and prepare a scan; a copy of it stays as long as the stack is open."""
        path = Path(task["path"])
        if task["problem"]:
            raise ReadError(task["problem"])
        path = stack.enter_context(local_copy(path))
        if not path.exists():
            raise ReadError(f"{task['shown']} does not exist, or this machine does not see it.")
        if self._writing is not None:
            check_folder(self._out / task["folder"], path)
        return ReadyScan.of(
            path,
            self._classifier,
            reading=reading_of(task),
            lungs_engine=self._engine.name.split()[0],
            explains=self._settings["explain"] is not None,
            watcher=_Foreseeing(self._writing),
        )

    def _row(self, task: Mapping[str, Any], read: Future[_Read]) -> Row:
        try:
            ready, copies = read.result()
            with copies:
                result, is_complete = self._answered(task, ready)
        except Exception as error:
            # Whatever one scan does to the program, the others get their results.
            return self.failed(task, failure_words(task["shown"], task["name"], error))
        cells = answer_cells(self._classes, result)
        return Row((task["name"], task["shown"], *cells), task["name"], is_complete=is_complete)

    def _answered(self, task: Mapping[str, Any], ready: ReadyScan) -> tuple[ScanResult, bool]:
        """The answer on a scan, and whether all about it was written."""
        analysis = ready.answered(
            self._classifier,
            engine=self._engine,
            explain=self._settings["explain"],
            finding=self._settings["finding"],
        )
        result = replace(analysis.result, scan=task["name"])
        if self._writing is None:
            return result, True
        analysis = replace(analysis, result=result)
        written = write_outputs(analysis, self._out / task["folder"], self._writing)
        return written.analysis.result, not written.failed

    @staticmethod
    def settings(classifier: Classifier, folder: Path | None, **said: Any) -> dict[str, Any]:
        """How the scans of a batch are classified, as plain values.

        Args:
            classifier: What to classify with; every worker has to find this very one.
            folder: Where it was loaded from; None for the one that is shipped.
            said: `engine`, `precision` and `device`, see `make_engine`; `explain` and `finding`,
                see `analyse_scan`; `writing`, fields of `WriteOptions`, without which there is no
                folder per scan. None or "auto" where they are not said.
        """
        usual = dict.fromkeys(("precision", "device", "explain", "finding", "writing"))
        where = None if folder is None else str(folder.absolute())
        known = {"classifier": where, "identity": identity_of(classifier)}
        return {**known, "engine": "auto", **usual, **said}


class _Foreseeing:
    """A `Watcher` that ends a scan of which nothing could be written."""

    def __init__(self, writing: WriteOptions | None) -> None:
        self._writing = writing

    def was_read(self, volume: Volume, path: Path) -> None:
        """Look whether what shows in the headers allows it."""
        if self._writing is not None:
            foresee_missing(volume, path, self._writing)

    def explaining(self, done: int, num: int) -> None:
        """Nobody watches a scan of a batch."""


def write_batch_index(job: Job, classifier: Classifier) -> Path:
    """Write a page that says every answer and leads to the folders that scans have.

    Args:
        job: All of it is done.
        classifier: What the scans were classified with.

    Raises:
        WriteError: It cannot be written.
    """
    labels = classifier.card.label_set
    names = labels.names
    tasks = chain.from_iterable(map(job.tasks, range(job.num_shards)))

    def entry(task: Mapping[str, Any], row: Row) -> IndexRow:
        """What the page says of one scan."""
        if row.failure:
            return IndexRow(row.name, f"No answer. {row.failure}")
        cells = dict(zip(answer_columns(names), row.cells, strict=True))
        decision, texts = cells["decision"], {each: cells[f"probability_{each}"] for each in names}
        share = share_words(decision, {each: float(text) for each, text in texts.items() if text})
        answer = verdict_of(decision, labels)
        return IndexRow(row.name, answer, share, cells["doubt"], task["folder"])

    head = IndexHead(job.num_tasks, classifier.card.notice, classifier.card.trained_on)
    return write_index(map(entry, tasks, job.rows()), head, job.out)

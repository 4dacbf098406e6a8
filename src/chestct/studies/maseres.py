"""The MASERes paper's tables: their networks trained on scans and on slices, judged and compared.

`configs/` holds a file for each network on volumes and each form, `configs/slices/` one for each
network on slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

from chestct.card import SLICE_CARD_FILE
from chestct.datasets.manifest import TEST, Manifest, ManifestError, read_manifest, write_manifest
from chestct.datasets.splits import SHARES_PATIENTS, maseres_paper
from chestct.evaluation.comparisons import Comparison, compare
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import read_predictions
from chestct.lookup import look_up
from chestct.networks.slices import IMAGENET, NO_WEIGHTS
from chestct.studies.audit_maseres import (
    KappaAudit,
    PValueAudit,
    audit_kappa,
    audit_p_values,
)
from chestct.studies.compare_with_paper import (
    MASERES_NETWORKS,
    Beside,
    maseres_beside,
    maseres_model,
)
from chestct.studies.published.facts import maseres_facts
from chestct.studies.study_rows import (
    RECORD_FOLDER,
    ROWS_FOLDER,
    Progress,
    RowResult,
    RowTest,
    RowWork,
    StudyError,
    TableRow,
    begin_study,
    compare_rows,
    make_rows,
    on_common_scans,
    record_scans,
    run_rows,
    run_scan_rows,
)
from chestct.training.judging import MAIN_VOTE, PATIENTS_FOLDER, SLICES_FOLDER
from chestct.training.plan import (
    CLASSIFIER_FOLDER,
    PREDICTIONS_FILE,
    RANDOM_WEIGHTS,
    Plan,
    SlicePlan,
    begin_record,
    find_parts,
    find_slice_parts,
)
from chestct.training.session import BY_PATIENT, LEAK_STATED, run_slice_training
from chestct.training.settings import RunSettings, SliceRunSettings, read_settings_as

_CHANGE_NO_RESULT: Final = ("data.cache", "tracking.")
"""Beginnings of settings that a table need not tell of, and that can hold paths of the machine."""

FORMS: Final = ("published", "paper")
"""What the authors' notebooks do, and what the text says."""

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Chosen:
    """What a table is made with.

    Attributes:
        configs: Folder of the settings files, one per network.
        form: A name in `FORMS`.
        overrides: Changes to every file, as `--set` takes them.
        edge: Voxels or pixels along each side of an input; None leaves it to the files.
    """

    configs: Path
    form: str = "published"
    overrides: tuple[str, ...] = ()
    edge: int | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """All that is not as in the files and may change a result, in words."""
        edge = () if self.edge is None else (f"inputs of {self.edge} along each side",)
        told = [each for each in self.overrides if not each.strip().startswith(_CHANGE_NO_RESULT)]
        return (*edge, *told)


def chosen_networks(table: Mapping[str, str], only: Sequence[str]) -> tuple[str, ...]:
    """The networks of a table in its order; all where none is named.

    Raises:
        UnknownNameError: There is no such network in the table.
    """
    for name in only:
        look_up(table, name, kind="network of this table")
    return tuple(name for name in table if not only or name in only)


def patient_settings(network: str, chosen: Chosen) -> RunSettings:
    """Settings of a network on volumes.

    Raises:
        StudyError: There is no folder of settings.
        TrainingError: The network's file is missing or wrong.
    """
    edge = chosen.edge
    sized = () if edge is None else (f"recipe.overrides.input_shape=[{edge}, {edge}, {edge}]",)
    return _read(RunSettings, network, chosen, sized)


def slice_settings(network: str, chosen: Chosen, weights: str | None = None) -> SliceRunSettings:
    """Settings of a network on slices.

    Args:
        network: A name in `SLICE_NETWORKS`.
        chosen: What the table is made with.
        weights: "imagenet", "none", or a folder with a file NETWORK.safetensors; None leaves it to
            the settings file.

    Raises:
        StudyError: There is no folder of settings.
        TrainingError: The network's file is missing or wrong.
    """
    sized = () if chosen.edge is None else (f"network.settings.size={chosen.edge}",)
    settings = _read(SliceRunSettings, network, chosen, sized)
    if weights is None:
        return settings
    is_name = weights in (IMAGENET, NO_WEIGHTS)
    wanted = weights if is_name else str(Path(weights) / f"{network}.safetensors")
    section = settings.network.model_copy(update={"weights": wanted})
    return settings.model_copy(update={"network": section})


def settings_remarks(chosen: Chosen) -> list[str]:
    """What a reader of a table has to know of its settings."""
    changes = ", ".join(chosen.changes)
    changed = [f"Not as in the settings files: {changes}."] if changes else []
    return [f"Settings: the form '{chosen.form}'.", *changed]


def slice_remarks(settings: SliceRunSettings, chosen: Chosen) -> list[str]:
    """What a reader of the table of slices has to know."""
    is_random = settings.network.weights == NO_WEIGHTS
    weights = [f"Backbones with {RANDOM_WEIGHTS}. The paper's had ImageNet's."] if is_random else []
    divided = LEAK_STATED if settings.data.split == SHARES_PATIENTS else BY_PATIENT
    return [*settings_remarks(chosen), *weights, f"Divided {divided}."]


def _read(model: type[Settings], network: str, chosen: Chosen, sized: tuple[str, ...]) -> Settings:
    """A network's settings; what the user sets wins over the size."""
    look_up(dict.fromkeys(FORMS), chosen.form, kind="form")
    if not chosen.configs.is_dir():
        msg = (
            f"There is no folder '{chosen.configs}'. Give one with the settings of the paper's "
            "networks, or leave --configs out: those that come with chestct are taken then."
        )
        raise StudyError(msg)
    file = chosen.configs / f"{network}_{chosen.form}.yaml"
    return read_settings_as(model, file, (*sized, *chosen.overrides))


SPLIT_FILE: Final = "split.csv"


@dataclass(frozen=True)
class NetworkRow:
    """One row of a table: a network by our name of it."""

    network: str

    @property
    def name(self) -> str:
        """What the row's folder is called."""
        return self.network


BeforeRow = Callable[[NetworkRow], object]


def run_patients(
    plan: Plan, settings: Mapping[str, RunSettings], *, before_row: BeforeRow
) -> Progress[NetworkRow]:
    """Train the rows on volumes that are neither finished nor under way elsewhere.

    Without folds and without a split in the manifest, the paper's split is drawn and kept in the
    study's folder.

    Args:
        plan: Of the whole study; its settings are those of the table's first network.
        settings: Network to its settings, in the order of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    for each in settings.values():
        find_parts(each)
    drawn = _drawn_split(plan)

    def begin(folder: Path) -> str:
        """Record scans and split once; returns the precision of all rows."""
        settled = record_scans(plan, folder)
        if drawn is not None and not (folder / SPLIT_FILE).is_file():
            write_manifest(drawn, folder / SPLIT_FILE)
        return settled.training.precision

    precision = begin_study(plan.folder, begin)
    scans = plan.manifest if drawn is None else plan.folder / RECORD_FOLDER / SPLIT_FILE
    rows = tuple(NetworkRow(name) for name in settings)
    return run_scan_rows(
        replace(plan, manifest=scans),
        rows,
        lambda row: _in_precision(settings[row.network], precision),
        before_row=before_row,
    )


def split_in_words(plan: Plan) -> str:
    """How the scans of a table are divided.

    Raises:
        ChestCTError: The manifest cannot be read, or cannot be divided as the paper divides.
    """
    if plan.num_folds:
        return (
            f"{plan.num_folds} folds, pooled: every patient is judged once, by a network that was "
            "not trained on them. The paper has one test part."
        )
    if _drawn_split(plan) is not None:
        return (
            "Divided as in the paper: the names of each class sorted as text, shuffled with "
            "Python's Random(1), cut into 80, 10 and 10 %."
        )
    rows = read_manifest(plan.manifest, plan.settings.labels).rows
    own = "Divided by the manifest's own column 'split'"
    if any(row.split == TEST for row in rows):
        return f"{own}."
    return (
        f"{own}, which has no test part: judged on the validation part, which the runs were "
        "watched on. The figures are likely too good."
    )


def run_slices(
    plan: SlicePlan,
    settings: Mapping[str, SliceRunSettings],
    *,
    before_row: BeforeRow,
) -> Progress[NetworkRow]:
    """Train the rows on slices that are neither finished nor under way elsewhere.

    Args:
        plan: Of the whole study; its settings are those of the table's first network.
        settings: Network to its settings, in the order of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: Settings, weights, slices or folder are not as they should be, or the study
            was stopped; the same call goes on.
    """
    for each in settings.values():
        find_slice_parts(each)
    begin_study(plan.folder, lambda folder: begin_record(replace(plan, folder=folder)))

    def train(row: NetworkRow, folder: Path) -> None:
        """Train one network in its own folder."""
        run_slice_training(replace(plan, settings=settings[row.network], folder=folder))

    work = RowWork(
        folder=plan.folder,
        train=train,
        last_file=Path(CLASSIFIER_FOLDER, SLICE_CARD_FILE),
        predictions_file=Path(SLICES_FOLDER, PREDICTIONS_FILE),
        note=plan.listener.note,
    )
    return run_rows(work, tuple(NetworkRow(name) for name in settings), before_row=before_row)


def votes_on_patients(
    folder: Path, progress: Progress[NetworkRow]
) -> tuple[RowResult[NetworkRow], ...]:
    """What the finished rows of a study on slices say of patients, by the mean of their slices."""
    file = Path(PATIENTS_FOLDER, f"predictions_{MAIN_VOTE}.csv")
    return tuple(
        RowResult(each.row, read_predictions(folder / ROWS_FOLDER / each.row.name / file))
        for each in progress.results
    )


def _drawn_split(plan: Plan) -> Manifest | None:
    """The manifest divided as the paper divides; None where folds or an own split are used."""
    manifest = read_manifest(plan.manifest, plan.settings.labels)
    if plan.num_folds or any(row.split for row in manifest.rows):
        return None
    try:
        return maseres_paper(manifest)
    except ManifestError as error:
        msg = f"{error} Here: --folds N, or fill in a column 'split' (chestct dataset split)."
        raise StudyError(msg) from error


def _in_precision(settings: RunSettings, precision: str) -> RunSettings:
    """The settings with "auto" settled as for the whole study."""
    if settings.training.precision != "auto":
        return settings
    training = settings.training.model_copy(update={"precision": precision})
    return settings.model_copy(update={"training": training})


MAIN: str = "maseres"
"""The network that the paper compares with the others."""


@dataclass(frozen=True)
class _PrintedPair:
    """What the paper prints of MASERes against another network, and what its counts give.

    Attributes:
        kappa: The kappa of the text.
        p_values: Table 5, by figure.
    """

    kappa: KappaAudit
    p_values: dict[str, PValueAudit]


@dataclass(frozen=True)
class Pair:
    """Two networks on the inputs that both judged.

    Attributes:
        test: McNemar's exact test.
        kappa: Agreement of their decisions.
        z: The paper's z-test, one row per figure.
        printed: What the paper says of the two; None where it says nothing.
    """

    test: RowTest[NetworkRow]
    kappa: Comparison
    z: tuple[Comparison, ...]
    printed: _PrintedPair | None

    @property
    def names(self) -> tuple[str, str]:
        """Both networks."""
        return self.test.first.name, self.test.second.name


@dataclass(frozen=True)
class PaperTable:
    """The finished rows of a table, and its pairs."""

    rows: tuple[TableRow[NetworkRow], ...]
    pairs: tuple[Pair, ...]

    def beside(self, row: TableRow[NetworkRow]) -> tuple[Beside, ...]:
        """A row's figures beside the paper's."""
        return maseres_beside(row.figures, row.row.network)


def make_table(
    results: Sequence[RowResult[NetworkRow]], bootstrap: Bootstrap | None = None
) -> PaperTable:
    """Figures of every row with intervals, and every two rows compared.

    Args:
        results: Of the finished rows, in the order of the table.
        bootstrap: How patients are drawn; None takes the default.
    """
    rows = make_rows(results, bootstrap)
    pairs = list(combinations(rows, 2))
    tests = compare_rows([(*pair, "network") for pair in pairs])
    return PaperTable(
        rows, tuple(_pair(*pair, test) for pair, test in zip(pairs, tests, strict=True))
    )


def _pair(
    first: TableRow[NetworkRow], second: TableRow[NetworkRow], test: RowTest[NetworkRow]
) -> Pair:
    one, other = on_common_scans(first.predictions, second.predictions)
    (kappa,) = compare(one, other, "kappa")
    return Pair(
        test=test,
        kappa=kappa,
        z=compare(one, other, "maseres_z"),
        printed=_printed_pair(first.row.network, second.row.network),
    )


@cache
def _printed_pair(first: str, second: str) -> _PrintedPair | None:
    """What the paper prints of two networks; None unless the first is MASERes."""
    if first != MAIN or second not in MASERES_NETWORKS or second == MAIN:
        return None
    facts = maseres_facts()
    main, other = maseres_model(first), maseres_model(second)
    audited = audit_p_values(main, other, facts.table_5)
    return _PrintedPair(
        kappa=audit_kappa(main, other, facts.kappa[other.name]),
        p_values={each.figure: each for each in audited},
    )

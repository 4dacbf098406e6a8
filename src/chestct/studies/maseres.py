"""The MASERes paper's tables: their networks trained on scans and on slices, judged and compared.

`configs/` holds a file for each network on volumes and each form, `configs/slices/` one for each
network on slices. A table is written as Markdown for people, CSV and JSON for programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel

from chestct import __version__
from chestct.datasets.manifest import TEST, Manifest, ManifestError, read_manifest
from chestct.datasets.splits import SHARES_PATIENTS, maseres_paper
from chestct.errors import ChestCTError
from chestct.evaluation.comparisons import MASERES_Z_DEFECTS, Comparison, compare
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.predictions import read_predictions
from chestct.evaluation.report import ESTIMATE_FIELDS
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.networks.slices import IMAGENET, NO_WEIGHTS
from chestct.report import as_csv, fill_markdown
from chestct.storage import write_text
from chestct.studies.audit_maseres import PrintedPair, audit_pair
from chestct.studies.compare_with_paper import (
    MASERES_NETWORKS,
    POSITIVE_CLASS,
    RECOMPUTED_FROM,
    Beside,
    maseres_beside,
    maseres_model,
)
from chestct.studies.published import maseres_facts
from chestct.studies.study_rows import (
    ROWS_FOLDER,
    Progress,
    Results,
    Row,
    RowTest,
    TableRow,
    compare_rows,
    guessing,
    make_rows,
    on_common_scans,
    run_study,
)
from chestct.training.judging import MAIN_VOTE, PATIENTS_FOLDER
from chestct.training.plan import RANDOM_WEIGHTS, Plan
from chestct.training.session import BY_PATIENT, LEAK_STATED, TrainAll, train_all
from chestct.training.settings import RunSettings, SliceRunSettings, read_settings_as

_CHANGE_NO_RESULT: Final = ("data.cache", "tracking.")
"""Beginnings of settings that a table need not tell of, and that can hold paths of the machine."""

_FORMS: Final = ("published", "paper")
"""What the authors' notebooks do, and what the text says."""

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Chosen:
    """What a table is made with.

    Attributes:
        configs: Folder of the settings files, one per network.
        form: A name in `_FORMS`.
        overrides: Changes to every file, as `--set` takes them.
        edge: Voxels or pixels along each side of an input; None leaves it to the files.
    """

    configs: Path
    form: str = "published"
    overrides: tuple[str, ...] = ()
    edge: int | None = None

    @property
    def remarks(self) -> list[str]:
        """What a reader of a table has to know of its settings."""
        changes = [] if self.edge is None else [f"inputs of {self.edge} along each side"]
        changes += [e for e in self.overrides if not e.strip().startswith(_CHANGE_NO_RESULT)]
        changed = [f"Not as in the settings files: {', '.join(changes)}."] if changes else []
        return [f"Settings: the form '{self.form}'.", *changed]

    def patient_settings(self, network: str) -> RunSettings:
        """Settings of a network on volumes.

        Raises:
            ChestCTError: There is no folder of settings.
            TrainingError: The network's file is missing or wrong.
        """
        return self._read(RunSettings, network, "recipe.overrides.input_shape=[{0}, {0}, {0}]")

    def slice_settings(self, network: str, weights: str | None = None) -> SliceRunSettings:
        """Settings of a network, a name in `SLICE_NETWORKS`, on slices.

        `weights` are "imagenet", "none", or a folder with a file NETWORK.safetensors; None leaves
        it to the settings file.

        Raises:
            ChestCTError: There is no folder of settings.
            TrainingError: The network's file is missing or wrong.
        """
        settings = self._read(SliceRunSettings, network, "network.settings.size={}")
        if weights is None:
            return settings
        is_name = weights in (IMAGENET, NO_WEIGHTS)
        wanted = weights if is_name else str(Path(weights) / f"{network}.safetensors")
        section = settings.network.model_copy(update={"weights": wanted})
        return settings.model_copy(update={"network": section})

    def slice_remarks(self, settings: SliceRunSettings) -> list[str]:
        """What a reader of the table of slices has to know."""
        remarks = self.remarks
        if settings.network.weights == NO_WEIGHTS:
            remarks.append(f"Backbones with {RANDOM_WEIGHTS}. The paper's had ImageNet's.")
        divided = LEAK_STATED if settings.data.split == SHARES_PATIENTS else BY_PATIENT
        return [*remarks, f"Divided {divided}."]

    def _read(self, model: type[Settings], network: str, size: str) -> Settings:
        """A network's settings, `size` the one of its inputs; what the user sets wins over it."""
        look_up(dict.fromkeys(_FORMS), self.form, kind="form")
        if not self.configs.is_dir():
            raise ChestCTError(
                f"There is no folder '{self.configs}'. Give one with the settings of the paper's "
                "networks, or leave --configs out: those that come with chestct are taken then."
            )
        file = self.configs / f"{network}_{self.form}.yaml"
        sized = () if self.edge is None else (size.format(self.edge),)
        return read_settings_as(model, file, (*sized, *self.overrides))


def chosen_networks(table: Mapping[str, str], only: Sequence[str]) -> tuple[str, ...]:
    """The networks of a table in its order; all where none is named.

    Raises:
        UnknownNameError: There is no such network in the table.
    """
    for name in only:
        look_up(table, name, kind="network of this table")
    return tuple(name for name in table if not only or name in only)


def run_patients(
    plan: Plan, settings: Mapping[Row, RunSettings], *, train: TrainAll = train_all
) -> Progress:
    """Train the rows on volumes; see `run_study`.

    Without folds and without a split in the manifest, the paper's split is drawn and kept in the
    study's folder.
    """
    return run_study(plan, settings, train=train, split=_drawn_split(plan))


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


def _drawn_split(plan: Plan) -> Manifest | None:
    """The manifest divided as the paper divides; None where folds or an own split are used."""
    manifest = read_manifest(plan.manifest, plan.settings.labels)
    if plan.num_folds or any(row.split for row in manifest.rows):
        return None
    try:
        return maseres_paper(manifest)
    except ManifestError as error:
        msg = f"{error} Here: --folds N, or fill in a column 'split' (chestct dataset split)."
        raise ChestCTError(msg) from error


def votes_on_patients(folder: Path, progress: Progress) -> Results:
    """What the finished rows of a study on slices say of patients, by the mean of their slices."""
    file = Path(PATIENTS_FOLDER, f"predictions_{MAIN_VOTE}.csv")
    return {
        row: read_predictions(folder / ROWS_FOLDER / row.name / file) for row in progress.results
    }


MAIN: str = "maseres"
"""The network that the paper compares with the others."""


@dataclass(frozen=True)
class _Pair:
    """Two networks on inputs that both judged: McNemar's test, agreement, the paper's z-test."""

    test: RowTest
    kappa: Comparison
    z: tuple[Comparison, ...]
    printed: PrintedPair | None

    @property
    def names(self) -> tuple[str, str]:
        """Both networks."""
        return self.test.first.name, self.test.second.name


@dataclass(frozen=True)
class PaperTable:
    """The finished rows of a table, and its pairs."""

    rows: tuple[TableRow, ...]
    pairs: tuple[_Pair, ...]

    def beside(self, row: TableRow) -> tuple[Beside, ...]:
        """A row's figures beside the paper's."""
        return maseres_beside(row.figures, row.row.network)


def make_table(results: Results, bootstrap: Bootstrap | None = None) -> PaperTable:
    """Figures of every row with intervals, and every two rows compared."""
    rows = make_rows(results, bootstrap)
    pairs = list(combinations(rows, 2))
    tests = compare_rows([(*pair, "network") for pair in pairs])
    return PaperTable(
        rows, tuple(_pair(*pair, test) for pair, test in zip(pairs, tests, strict=True))
    )


def _pair(first: TableRow, second: TableRow, test: RowTest) -> _Pair:
    one, other = on_common_scans(first.predictions, second.predictions)
    (kappa,) = compare(one, other, "kappa")
    z = compare(one, other, "maseres_z")
    return _Pair(test, kappa, z, _printed_pair(first.row.network, second.row.network))


@cache
def _printed_pair(first: str, second: str) -> PrintedPair | None:
    """What the paper prints of two networks; None unless the first is MASERes."""
    if first != MAIN or second not in MASERES_NETWORKS or second == MAIN:
        return None
    return audit_pair(maseres_model(first), maseres_model(second))


class _Level(NamedTuple):
    """One of the paper's two halves: title of its table, and what is judged, in the plural."""

    title: str
    inputs: str


PATIENT_LEVEL: Final = _Level("MASERes paper, patient level: three networks on volumes", "scans")
SLICE_LEVEL: Final = _Level("MASERes paper, slice level: six transfer networks", "slices")


def _as_markdown(
    level: _Level, table: PaperTable, remarks: Sequence[str], patients: PaperTable | None = None
) -> str:
    """The whole table for people, with the votes on patients, which the paper does not have."""
    return fill_markdown(
        "chestct.studies/maseres.md.j2",
        {
            "guessing": guessing,
            "kappa": _kappa,
            "share": lambda value: "undefined" if value is None else f"{100 * value:.1f}",
        },
        title=level.title,
        inputs=level.inputs,
        notice=NOT_FOR_CLINICAL_USE,
        citation=maseres_facts().citation,
        remarks=[*remarks, POSITIVE_CLASS, RECOMPUTED_FROM],
        table=table,
        patients=patients,
        # The test takes slices of one patient as independent.
        is_dependent=any(
            each.predictions.num_patients < len(each.predictions) for each in table.rows
        ),
        defects=MASERES_Z_DEFECTS,
    )


def _kappa(found: Comparison) -> str:
    if found.estimate is None:
        return f"- ({found.note})"
    if found.low is None or found.high is None:
        return f"{found.estimate:.4f} ({found.note})"
    return f"{found.estimate:.4f} ({found.low:.2f} to {found.high:.2f})"


_SCHEMA: Final = "chestct.maseres-table"
_SCHEMA_VERSION: Final = "1.0"


def write_table(
    folder: Path,
    level: _Level,
    table: PaperTable,
    *,
    remarks: Sequence[str],
    patients: PaperTable | None = None,
) -> tuple[Path, ...]:
    """Write `table.md`, `table.csv`, `tests.csv` and `table.json`.

    `remarks` are what a reader has to know of how the rows came about; `patients`, of slices, the
    votes on their patients.

    Raises:
        WriteError: The folder cannot be written.
    """
    tables = {"": table} if patients is None else {"": table, "patients": patients}
    texts = {
        "table.md": _as_markdown(level, table, remarks, patients),
        "table.csv": _figures_csv(table),
        "tests.csv": _tests_csv(tables),
        "table.json": _as_json(level, tables, remarks),
    }
    return tuple(write_text(folder / name, text) for name, text in texts.items())


def _figures_csv(table: PaperTable) -> str:
    """One line per network, source and figure; shares, not per cent."""
    lines: list[list[object]] = []
    for row in table.rows:
        for each in table.beside(row):
            sources = {
                "printed": None if each.published is None else Estimate(each.published),
                "recomputed": each.recomputed,
                "this run": each.ours,
            }
            for source, found in sources.items():
                if found is not None:
                    values = (getattr(found, field) for field in ESTIMATE_FIELDS)
                    lines.append([row.row.network, source, each.figure, *values])
    return as_csv(["network", "source", "figure", *ESTIMATE_FIELDS], lines)


def _tests_csv(tables: dict[str, PaperTable]) -> str:
    """One line per pair, test and figure; `level` is empty for what the table itself judges."""
    header = ["level", "first", "second", "test", "figure", "estimate", "low", "high", "statistic"]
    lines: list[list[object]] = []
    for level, table in tables.items():
        for each in table.pairs:
            test = each.test
            key = [level, *each.names]
            lines.append(
                [*key, "mcnemar", "accuracy", None, None, None, test.only_first + test.only_second,
                 test.p_value, test.holm, None]
            )  # fmt: skip
            lines += [[*key, *_comparison_cells(each, row)] for row in (each.kappa, *each.z)]
    return as_csv([*header, "p_value", "p_holm", "printed"], lines)


def _comparison_cells(pair: _Pair, row: Comparison) -> list[object]:
    printed: float | None = None
    if pair.printed is not None and row.test == "kappa":
        printed = pair.printed.kappa["published"]
    elif pair.printed is not None:
        printed = pair.printed.p_values[row.figure].published
    return [row.test, row.figure, row.estimate, row.low, row.high, row.statistic, row.p_value,
            None, printed]  # fmt: skip


def _as_json(level: _Level, tables: dict[str, PaperTable], remarks: Sequence[str]) -> str:
    record: dict[str, Any] = {
        "schema": _SCHEMA,
        "schema_version": _SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        "title": level.title,
        "citation": maseres_facts().citation,
        "remarks": list(remarks),
        "maseres_z_defects": list(MASERES_Z_DEFECTS),
        level.inputs: _table_record(tables[""]),
    }
    if "patients" in tables:
        record["patients"] = _table_record(tables["patients"])
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _table_record(table: PaperTable) -> dict[str, Any]:
    return {
        "rows": [
            {
                "network": row.row.network,
                "paper_name": maseres_model(row.row.network).name,
                "num_inputs": len(row.predictions),
                "num_patients": row.predictions.num_patients,
                "figures": [asdict(each) for each in table.beside(row)],
            }
            for row in table.rows
        ],
        "pairs": [_pair_record(each) for each in table.pairs],
    }


def _pair_record(pair: _Pair) -> dict[str, Any]:
    """A pair as plain values; its rows have no more than a network."""
    record = asdict(pair)
    for place in ("first", "second"):
        record["test"][place] = {"network": record["test"][place]["network"]}
    return record

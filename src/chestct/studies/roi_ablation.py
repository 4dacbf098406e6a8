"""Tables 6 and 7 of the RoI-aware 3D ResNet paper: networks by gating by t, each row a training.

A row is a run folder as `chestct train` writes it, so a stopped study goes on where it was and
finished rows are skipped. Rows share the cache: gating changes nothing about the inputs, t does.
Several programs may work on one study at once; each takes rows that no other one has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

from chestct.card import CARD_FILE
from chestct.errors import ChestCTError
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.predictions_csv import read_predictions
from chestct.lookup import look_up
from chestct.networks.roi import PLACEMENTS
from chestct.studies.claims import claim
from chestct.training.objective import DivergedError
from chestct.training.parts import find_parts
from chestct.training.ranks import current_ranks
from chestct.training.record import begin_record, settled
from chestct.training.session import (
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    Plan,
    run_training,
)
from chestct.training.settings import RunSettings

NETWORKS: Final = ("roi_resnet18", "roi_resnet50", "roi_resnet101")
GATINGS: Final = ("none", "figure")
"""Plain and RoI-aware, as in both tables; the repository's figure places the gates."""
THRESHOLDS: Final = (0.6, 0.7, 0.8)
ROI_LAYERS: Final = ("none", "text", "figure", "all", "every")
"""The plain network and the gates in four placements: two readings of the paper's four layers,
every stage, and every activation, for which the authors' memory did not suffice."""

ROWS_FOLDER: Final = "rows"
_CLAIMS_FOLDER: Final = ".claims"
_RECORD_FOLDER: Final = "study"


class StudyError(ChestCTError):
    """A study cannot be made as asked for; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        network: A name in `NETWORKS`.
        gating: A name in `PLACEMENTS`.
        threshold: t, the share of the largest lung area that a slice has to reach.
    """

    network: str
    gating: str
    threshold: float

    @property
    def name(self) -> str:
        """What the row's folder is called."""
        return f"{self.network}-{self.gating}-t{100 * self.threshold:g}"

    def settings(self, base: RunSettings) -> RunSettings:
        """A study's settings with this row's network, gating and t."""
        network = base.network.model_copy(
            update={
                "name": self.network,
                "settings": {**base.network.settings, "gating": self.gating},
            }
        )
        overrides = {**base.recipe.overrides, "salient_threshold": self.threshold}
        recipe = base.recipe.model_copy(update={"overrides": overrides})
        return base.model_copy(update={"network": network, "recipe": recipe})


@dataclass(frozen=True)
class RowResult:
    """A finished row and what its network said of the scans it was judged on."""

    row: Row
    predictions: Predictions


@dataclass(frozen=True)
class Progress:
    """What came of a call.

    Attributes:
        results: The finished rows, in the order of the table.
        missing: Rows that another program has under way.
        diverged: Rows whose loss is no longer a number; they have no result.
    """

    results: tuple[RowResult, ...]
    missing: tuple[Row, ...]
    diverged: tuple[Row, ...] = ()


def table_rows(
    networks: tuple[str, ...] = NETWORKS,
    gatings: tuple[str, ...] = GATINGS,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> tuple[Row, ...]:
    """The rows in the papers' order: t changes fastest, the network slowest.

    Raises:
        UnknownNameError: There is no such network or gating.
        StudyError: A threshold is impossible, something is named twice, or nothing is.
    """
    for name in networks:
        look_up(dict.fromkeys(NETWORKS), name, kind="network of this study")
    for name in gatings:
        look_up(PLACEMENTS, name, kind="gating")
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            msg = f"t = {threshold:g} is impossible. Give shares of the largest area, such as 0.8."
            raise StudyError(msg)
    rows = tuple(Row(*each) for each in product(networks, gatings, thresholds))
    if not rows or len(set(rows)) < len(rows):
        raise StudyError("Name at least one network, one gating and one t, and none of them twice.")
    return rows


def run_ablation(
    plan: Plan, rows: tuple[Row, ...], *, before_row: Callable[[Row], object] = lambda _row: None
) -> Progress:
    """Train every row that is neither finished nor under way elsewhere.

    Args:
        plan: Of the whole study: settings that hold for all rows, the scans, the study's folder.
        rows: Of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    if not current_ranks().is_alone:
        msg = "The rows of a study are trained in one process each. Start it without torchrun, "
        raise StudyError(msg + "once per GPU, with --device cuda:0, --device cuda:1, ...")
    for row in rows:
        find_parts(row.settings(plan.settings))
    with claim(plan.folder / _CLAIMS_FOLDER / "study", waits=True):
        plan = _begin_study(plan)
    diverged = []
    for row in rows:
        with claim(plan.folder / _CLAIMS_FOLDER / row.name) as is_ours:
            if is_ours and not is_row_finished(plan, row):
                before_row(row)
                try:
                    run_training(_row_plan(plan, row))
                except DivergedError as error:
                    plan.listener.note(f"{row.name}: {error}")
                    diverged.append(row)
    finished = tuple(row for row in rows if is_row_finished(plan, row))
    return Progress(
        results=tuple(RowResult(row, _row_predictions(plan, row)) for row in finished),
        missing=tuple(row for row in rows if row not in (*finished, *diverged)),
        diverged=tuple(diverged),
    )


def is_row_finished(plan: Plan, row: Row) -> bool:
    """Whether a row's run, or all its folds, came to an end."""
    last = EVALUATION_FOLDER if plan.num_folds else CLASSIFIER_FOLDER
    ending = "metrics.json" if plan.num_folds else CARD_FILE
    return (row_folder(plan, row) / last / ending).is_file()


def row_folder(plan: Plan, row: Row) -> Path:
    """Where a row's run is."""
    return plan.folder / ROWS_FOLDER / row.name


def _row_plan(plan: Plan, row: Row) -> Plan:
    return replace(
        plan,
        settings=row.settings(plan.settings),
        folder=row_folder(plan, row),
        after_epoch=lambda name, entry: plan.after_epoch(_epoch_name(row, name), entry),
    )


def _epoch_name(row: Row, name: str) -> str:
    return row.name if name == row.name else f"{row.name} {name}"


def _begin_study(plan: Plan) -> Plan:
    """Write down settings and scans of the study, or refuse where its folder has others.

    Rows check their own again; this sees to it that they differ in nothing but their columns: in
    precision neither, where they are trained on different devices.
    """
    names = {path.name for path in plan.folder.iterdir()} - {_CLAIMS_FOLDER}
    if names and _RECORD_FOLDER not in names:
        msg = f"{plan.folder.name} is not empty and holds no study. Choose a new folder."
        raise StudyError(msg)
    folder = plan.folder / _RECORD_FOLDER
    settings = settled(plan.settings, folder, plan.device)
    begin_record(folder, settings, plan.manifest, plan.num_folds, place=plan.place)
    return replace(plan, settings=settings)


def _row_predictions(plan: Plan, row: Row) -> Predictions:
    return read_predictions(row_folder(plan, row) / PREDICTIONS_FILE)

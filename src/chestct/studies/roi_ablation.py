"""Tables 6 and 7 of the RoI-aware 3D ResNet paper: networks by gating by t, each row a training.

Rows share the cache: gating changes nothing about the inputs, t does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Final

from chestct.lookup import look_up
from chestct.networks.roi import PLACEMENTS
from chestct.studies.scan_rows import record_scans, run_scan_rows
from chestct.studies.study_rows import Progress, StudyError, begin_study
from chestct.training.parts import find_parts
from chestct.training.session import Plan
from chestct.training.settings import RunSettings

NETWORKS: Final = ("roi_resnet18", "roi_resnet50", "roi_resnet101")
GATINGS: Final = ("none", "figure")
"""Plain and RoI-aware, as in both tables; the repository's figure places the gates."""
THRESHOLDS: Final = (0.6, 0.7, 0.8)
ROI_LAYERS: Final = ("none", "text", "figure", "all", "every")
"""The plain network and the gates in four placements: two readings of the paper's four layers,
every stage, and every activation, for which the authors' memory did not suffice."""


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
) -> Progress[Row]:
    """Train every row that is neither finished nor under way elsewhere.

    Args:
        plan: Of the whole study: settings that hold for all rows, the scans, the study's folder.
        rows: Of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    for row in rows:
        find_parts(row.settings(plan.settings))
    settings = begin_study(plan.folder, lambda folder: record_scans(plan, folder))
    return run_scan_rows(plan, rows, lambda row: row.settings(settings), before_row=before_row)

"""A run's results beside what its paper prints and what the paper's own files give.

The scans are never the same ones unless the run was made on the paper's data, so nothing is tested
here: figures stand side by side, each with its interval where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final

from chestct.errors import ChestCTError, ReadError
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.predictions import read_predictions
from chestct.labels import COVID19, NORMAL, NOT_FOR_CLINICAL_USE, THREE_CLASSES, TWO_CLASSES
from chestct.preprocess.recipes import RECIPES
from chestct.report import as_csv, fill_markdown
from chestct.storage import write_text
from chestct.studies.published import (
    ClassScores,
    Scores,
    TableRow,
    TestedModel,
    maseres_facts,
    percent_of,
    roi_facts,
    rounded,
)
from chestct.studies.study_rows import ROWS_FOLDER
from chestct.training.judging import SLICES_FOLDER
from chestct.training.plan import PREDICTIONS_FILE, RUN_FILE


@dataclass(frozen=True)
class _Run:
    """A finished run; its threshold is t, None where all slices are used and of a run on slices."""

    name: str
    labels: tuple[str, ...]
    network: str
    gating: str
    threshold: float | None
    num_folds: int | None
    num_scans: int
    figures: Figures


def _read_run(folder: Path, bootstrap: Bootstrap | None = None) -> _Run:
    """Read the folder of a finished run, on scans or on slices."""
    record, predictions = folder / RUN_FILE, folder / PREDICTIONS_FILE
    if not predictions.is_file() and (folder / SLICES_FOLDER / PREDICTIONS_FILE).is_file():
        predictions = folder / SLICES_FOLDER / PREDICTIONS_FILE
    if not record.is_file() or not predictions.is_file():
        missing = RUN_FILE if not record.is_file() else PREDICTIONS_FILE
        raise ReadError(
            f"{folder} has no {missing}: it is not the folder of a finished run. Give a folder "
            "that 'chestct train' or 'chestct study roi-ablation' wrote to its end."
        )
    found = read_predictions(predictions)
    try:
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        settings = known["settings"]
        return _Run(
            name=folder.name,
            labels=tuple(settings["labels"]),
            network=settings["network"]["name"],
            gating=settings["network"].get("settings", {}).get("gating", "figure"),
            threshold=_threshold(settings),
            num_folds=known["folds"],
            num_scans=len(found),
            figures=estimate_figures(found, bootstrap),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        msg = f"{RUN_FILE} in {folder.name} is damaged ({type(error).__name__})."
        raise ReadError(msg) from error


def _threshold(settings: dict[str, Any]) -> float | None:
    """T of a run on scans; None where all slices are used, and of a run on slices."""
    recipe = settings.get("recipe")
    if recipe is None:
        return None
    usual = RECIPES[recipe["name"]].salient_threshold
    found = recipe.get("overrides", {}).get("salient_threshold", usual)
    return None if found is None else float(found)


def write_with_paper(found: Sequence[PaperComparison], folder: Path) -> tuple[Path, Path]:
    """Write `with_paper.md` and `with_paper.csv`.

    Raises:
        WriteError: They cannot be written.
    """
    files = folder / "with_paper.md", folder / "with_paper.csv"
    text = fill_markdown(
        "chestct.studies/with_paper.md.j2",
        {},
        notice=NOT_FOR_CLINICAL_USE,
        found=found,
    )
    write_text(files[0], text)
    write_text(files[1], _paper_csv(found))
    return files


def _percent(estimate: Estimate) -> str:
    """An estimate in per cent with interval and counts, or why there is none."""
    if estimate.value is None:
        return f"- ({estimate.note})"
    counts = f", {estimate.hits}/{estimate.total}" if estimate.total is not None else ""
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f}{counts}"
    span = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} ({span}{counts})"


def _paper_csv(found: Sequence[PaperComparison]) -> str:
    """One line per run and figure; shares, not per cent."""
    header = ["run", "place", "figure", "published"]
    header += [f"{who}_{what}" for who in ("recomputed", "ours") for what in ("", "low", "high")]
    lines: list[list[object]] = []
    for each in found:
        for figure in each.figures:
            numbers: list[object] = []
            for estimate in (figure.recomputed or Estimate(None), figure.ours):
                numbers += [estimate.value, estimate.low, estimate.high]
            lines.append([each.run, each.place, figure.figure, figure.published, *numbers])
    return as_csv([name.rstrip("_") for name in header], lines)


_ROI_NETWORKS: Final = {
    "roi_resnet18": "ResNet-18",
    "roi_resnet50": "ResNet-50",
    "roi_resnet101": "ResNet-101",
}
MASERES_NETWORKS: Final = {"maseres": "MASERes", "alexnet3d": "3D-AlexNet", "voxcnn": "VoxCNN"}
SLICE_NETWORKS: Final = {
    "vgg19": "VGG19",
    "inception_v3": "InceptionV3",
    "resnet50_v2": "ResNet50V2",
    "xception": "Xception",
    "mobilenet_v2": "MobileNetV2",
    "densenet169": "DenseNet169",
}
"""Our name of a network to the paper's."""

POSITIVE_CLASS: Final = (
    "Normal is the paper's positive class: its sensitivity is the recall of normal scans, "
    "its specificity the recall of COVID-19."
)
RECOMPUTED_FROM: Final = "Recomputed: from the counts that the notebook prints."
_NO_RUN: Final = Estimate(None, note="no run")


@dataclass(frozen=True)
class Beside:
    """One figure as the paper prints it, as a share; from the paper's own files; and of the run.

    Where the paper has another name for it this stands with it. None, or no value, where there is
    none.
    """

    figure: str
    published: float | None
    recomputed: Estimate | None
    ours: Estimate = _NO_RUN

    @property
    def is_inside(self) -> bool | None:
        """Whether the run's interval holds the published figure; None where one is missing."""
        if self.published is None or self.ours.low is None or self.ours.high is None:
            return None
        # Half a unit of the last digit printed, which is 0.1 per cent.
        return self.ours.low - 0.0005 <= self.published <= self.ours.high + 0.0005

    @property
    def cells(self) -> list[str]:
        """It as a line of a table, in per cent."""
        inside = {True: "yes", False: "no", None: ""}[self.is_inside]
        published = "" if self.published is None else f"{100 * self.published:.4g}"
        recomputed = "" if self.recomputed is None else _percent(self.recomputed)
        return [self.figure, published, recomputed, _percent(self.ours), inside]


@dataclass(frozen=True)
class PaperComparison:
    """A run's figures beside those of a place in a paper, and what has to be known to read them."""

    run: str
    citation: str
    place: str
    figures: tuple[Beside, ...]
    remarks: tuple[str, ...]


def compare_with_paper(
    folder: Path, bootstrap: Bootstrap | None = None
) -> tuple[PaperComparison, ...]:
    """Put a run, or every finished row of an ablation study, beside its paper.

    The folder is one of `chestct train` or `chestct slices train`, or of a study that trains a
    paper's table, such as `chestct study roi-ablation`.

    Raises:
        ReadError: It is no such folder, or not finished.
        ChestCTError: No paper has results of this network with these classes.
    """
    rows = folder / ROWS_FOLDER
    found_rows = [path.parent for path in rows.glob(f"*/{PREDICTIONS_FILE}")]
    found_rows += [path.parents[1] for path in rows.glob(f"*/{SLICES_FOLDER}/{PREDICTIONS_FILE}")]
    folders = sorted(found_rows) or [folder]
    found = [_compare(_read_run(each, bootstrap)) for each in folders]
    return tuple(sorted(found, key=lambda each: _row_number(each.place)))


def _compare(run: _Run) -> PaperComparison:
    if run.network in _ROI_NETWORKS and set(run.labels) == set(THREE_CLASSES):
        return _beside_roi(run)
    of_two = {**MASERES_NETWORKS, **SLICE_NETWORKS}
    if run.network in of_two and set(run.labels) == set(TWO_CLASSES):
        return _beside_maseres(run)
    raise ChestCTError(
        f"{run.name} is a {run.network} with the classes {', '.join(run.labels)}: no paper has "
        f"figures of that. Those of {', '.join(_ROI_NETWORKS)} are for {', '.join(THREE_CLASSES)}, "
        f"those of {', '.join(of_two)} for {', '.join(TWO_CLASSES)}."
    )


def _beside_roi(run: _Run) -> PaperComparison:
    facts = roi_facts()
    is_cross_validated = run.num_folds is not None
    table, number = (facts.table_6, 6) if is_cross_validated else (facts.table_7, 7)
    row, remarks = _nearest_row(run, table)
    recomputed = None
    if not is_cross_validated:
        recomputed = Scores.of(facts.official, facts.predicted[row.row])
        remarks += ["Recomputed: from the row's prediction file and the official labels."]
    else:
        remarks += ["Recomputed: not possible, no predictions of Table 6 were published."]
    kind = "RoI-aware" if row.roi else "plain"
    return PaperComparison(
        run.name,
        facts.citation,
        f"Table {number}, row {row.row}: {row.network}, {kind}, t = {row.t} %",
        tuple(_roi_figures(run.figures, row, recomputed)),
        (_scans_remark(run), *remarks, "The column that the paper heads SPE holds PPV."),
    )


def _nearest_row(run: _Run, table: Sequence[TableRow]) -> tuple[TableRow, list[str]]:
    """The row of the same network and kind with the nearest t, and in what the run differs."""
    gating = run.gating
    is_roi = gating not in ("none", "published")
    wanted = 100 * (run.threshold or 0.0)
    network = _ROI_NETWORKS[run.network]
    alike = [row for row in table if row.network == network and row.roi == is_roi]
    row = min(alike, key=lambda row: abs(row.t - wanted))
    remarks = []
    if gating == "published":
        remarks.append("The published gates confine nothing to the lungs: beside the plain row.")
    elif is_roi and gating != "figure":
        remarks.append(f"The run's gates are placed as '{gating}', the paper's at four layers.")
    if abs(row.t - wanted) > 1e-6:
        used = f"t = {wanted:g} %" if wanted else "all slices"
        remarks.append(f"The run uses {used}: the nearest row is shown.")
    return row, remarks


def _roi_figures(figures: Figures, row: TableRow, recomputed: Scores | None) -> list[Beside]:
    accuracy = recomputed.accuracy if recomputed else None
    found = [
        Beside("accuracy (AC)", row.accuracy / 100, accuracy, figures.overall["accuracy"]),
    ]
    printed = {
        "sensitivity": ("sensitivity {} (SEN)", row.sensitivity),
        "ppv": ("PPV {} (SPE)", row.spe),
        "specificity": ("specificity {}", None),
    }
    for name, (words, shown) in printed.items():
        for index, label in enumerate(THREE_CLASSES):
            found.append(
                Beside(
                    words.format(label),
                    None if shown is None else shown[index] / 100,
                    getattr(recomputed.classes[label], name) if recomputed else None,
                    figures.per_class[label][name],
                )
            )
    return found


def _beside_maseres(run: _Run) -> PaperComparison:
    model = maseres_model(run.network)
    total = sum(astuple(model.counts))
    remarks = [_scans_remark(run), POSITIVE_CLASS, RECOMPUTED_FROM]
    place = f"patient level, {model.name} on {total} patients"
    if run.network in SLICE_NETWORKS:
        remarks.append("The paper split slices, not patients: its test slices are no new patients.")
        place = f"slice level, {model.name} on {total} slices"
    figures = maseres_beside(run.figures, run.network)
    return PaperComparison(run.name, maseres_facts().citation, place, figures, tuple(remarks))


def maseres_model(network: str) -> TestedModel:
    """The test result in the MASERes paper of a name in `MASERES_NETWORKS` or `SLICE_NETWORKS`."""
    facts = maseres_facts()
    name = {**MASERES_NETWORKS, **SLICE_NETWORKS}[network]
    (model,) = (each for each in facts.patient_models + facts.slice_models if each.name == name)
    return model


def maseres_printed(network: str) -> tuple[Beside, ...]:
    """What the MASERes paper prints of a network, and what its notebook's counts give."""
    model = maseres_model(network)
    scores = ClassScores.of(model.counts, NORMAL)
    rows = {
        "accuracy": scores.one_vs_rest_accuracy,
        "recall of normal (sensitivity)": scores.sensitivity,
        f"recall of {COVID19} (specificity)": scores.specificity,
        "PPV of normal (precision)": scores.ppv,
        "F1 of normal": Estimate(scores.f1),
    }
    found = [Beside(words, _printed(each), each) for words, each in rows.items()]
    return (*found, Beside("AUC", model.auc, None))


def maseres_beside(figures: Figures, network: str) -> tuple[Beside, ...]:
    """A run's figures beside those of its network in the MASERes paper."""
    normal = figures.per_class[NORMAL]
    ours = (
        figures.overall["accuracy"],
        normal["sensitivity"],
        figures.per_class[COVID19]["sensitivity"],
        normal["ppv"],
        normal["f1"],
        normal["auc"],
    )
    return tuple(
        replace(each, ours=found)
        for each, found in zip(maseres_printed(network), ours, strict=True)
    )


def _printed(estimate: Estimate) -> float | None:
    """A share as the notebooks print it, in per cent with two digits."""
    if estimate.value is None:
        return None
    percent = percent_of(estimate, 2)
    return (rounded(100 * estimate.value, 2) if percent is None else percent) / 100


def _scans_remark(run: _Run) -> str:
    folds = f", {run.num_folds} folds pooled" if run.num_folds else ""
    return (
        f"The run was judged on {run.num_scans} scans{folds} of its own manifest. Unless they are "
        "the paper's scans, the figures differ by the scans too, and no test is made."
    )


def _row_number(place: str) -> int:
    """Row of a table, for sorting; 0 where a place has none."""
    _, _, rest = place.partition("row ")
    return int(rest.partition(":")[0]) if rest else 0

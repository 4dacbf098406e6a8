"""Write an evaluation: metrics.json, tables and figures, complete or not at all.

Files are made aside and moved into place, `metrics.json` last: a folder that has it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from chestct import __version__
from chestct.errors import WriteError
from chestct.evaluation import figures, tables
from chestct.evaluation.comparisons import (
    Comparison,
    Judgement,
    compare_all,
    paired,
    remark_on_pair,
)
from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.evaluation.tables import EvaluationSettings, Summary, summarise
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.storage import install, reason_of, working_folder

SCHEMA: Final = "chestct.evaluation"
SCHEMA_VERSION: Final = 1
"""Raised when a field of metrics.json changes its meaning or goes; new fields leave it."""
FORMATS: Final = {"png": ".png", "svg": ".svg"}
"""Kinds of figure files."""
_COMPLETE: Final = "metrics.json"


def write_evaluation(
    predictions: Predictions,
    folder: Path,
    *,
    settings: EvaluationSettings | None = None,
    others: Mapping[str, Predictions | Judgement] | None = None,
    logs: Mapping[str, list[dict[str, Any]]] | None = None,
    excluded: Mapping[str, str] | None = None,
) -> Summary:
    """Evaluate a classifier; write metrics.json, tables.md, three CSV files and the figures.

    Args:
        predictions: What the classifier said of labelled scans.
        folder: Made when it does not exist; files of the same names are replaced.
        settings: Name, bootstrap, wished error rates, figure formats, tests, remarks.
        others: Further classifiers by name, to be compared with in the same tables: another
            network, the baseline of age, sex and scanner. What either gave no decision on is left
            out of the other's figures and of the comparison, and counted in a warning.
        logs: Epochs of training runs by name (`read_log`), for the learning curves.
        excluded: Scans that got no decision, with the reason.

    Raises:
        PredictionsError: Another classifier did not judge the same scans, or has the same name.
        UnknownNameError: A figure format is unknown.
        WriteError: The folder could not be written.
    """
    chosen, excluded = settings or EvaluationSettings(), excluded or {}
    endings = [look_up(FORMATS, name, kind="figure format") for name in chosen.formats]
    pairs = _pairs(Judgement(predictions, excluded), chosen.name, others or {})
    comparisons = {name: _compared(pair, name, chosen) for name, pair in pairs.items()}
    plain = replace(chosen, promised=None, remarks=())
    beside = {name: summarise(pair.second, plain) for name, pair in pairs.items()}
    remarks = (*chosen.remarks, *(pair.remark for pair in pairs.values() if pair.remark))
    main = summarise(predictions, replace(chosen, remarks=remarks), excluded=excluded)
    main = replace(main, others=beside, comparisons=comparisons)
    summaries = {chosen.name: main, **beside}
    drawn = _draw_all(predictions, main, chosen, logs or {}) if endings else {}
    record = _evaluation_record(chosen, summaries, comparisons, excluded)
    try:
        with working_folder(folder.parent) as aside:
            for name, figure in drawn.items():
                for ending in endings:
                    figures.save_figure(figure, aside / (name + ending))
            for name, text in _texts(record, summaries, comparisons).items():
                (aside / name).write_text(text, encoding="utf-8")
            install(aside, folder, old=[folder / _COMPLETE], last=_COMPLETE)
    except OSError as error:
        msg = f"The evaluation could not be written to '{folder.name}': {reason_of(error)}."
        raise WriteError(msg) from error
    return main


def recorded_exclusions(file: Path, predictions: Predictions) -> dict[str, str]:
    """Scans without a decision, as the evaluation of a file of predictions lists them.

    It is looked for where `chestct evaluate` and `train` write it: beside the file, or in a folder
    `evaluation` beside it. Where there is none, or one of another number of scans, there are none.
    """
    for folder in (file.parent, file.parent / "evaluation"):
        try:
            record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            continue
        if record.get("num_scans") == len(predictions):
            return {str(scan): str(why) for scan, why in record.get("excluded", {}).items()}
    return {}


def _draw_all(
    predictions: Predictions,
    summary: Summary,
    settings: EvaluationSettings,
    logs: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """The figures of an evaluation by file name without ending."""
    error = summary.figures.overall["expected_calibration_error"].value
    drawn = {
        "confusion": figures.draw_confusion(summary.confusion, summary.labels),
        "roc": figures.draw_roc(predictions, summary.figures, settings.bootstrap),
        "reliability": figures.draw_reliability(summary.reliability, error),
        "coverage_risk": figures.draw_coverage_risk(summary.coverage_risk),
    }
    if logs:
        drawn["learning_curves"] = figures.draw_learning_curves(logs)
    return drawn


def _evaluation_record(
    settings: EvaluationSettings,
    summaries: Mapping[str, Summary],
    comparisons: Mapping[str, Sequence[Comparison]],
    excluded: Mapping[str, str],
) -> dict[str, Any]:
    """The content of metrics.json; its fields are described in docs/evaluation.md."""
    main = summaries[settings.name]
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        "classifier": settings.name,
        "settings": asdict(settings),
        **_summary_record(main),
        "excluded": dict(excluded),
        "others": {
            name: _summary_record(each) for name, each in summaries.items() if each is not main
        },
        "comparisons": {name: [asdict(row) for row in rows] for name, rows in comparisons.items()},
    }


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two classifiers on the scans that they are compared on, and what to say of these."""

    first: Predictions
    second: Predictions
    remark: str | None


def _pairs(
    main: Judgement, name: str, others: Mapping[str, Predictions | Judgement]
) -> dict[str, _Pair]:
    """The classifier with each of the others, by name of the other."""
    if name in others:
        msg = f"Two classifiers are called '{name}'. Give one of them another name."
        raise PredictionsError(msg)
    pairs = {}
    for other_name, given in others.items():
        other = Judgement(given) if isinstance(given, Predictions) else given
        first, second = paired(main, other)
        whole = (main.predictions, other.predictions)
        remark = remark_on_pair((name, other_name), whole, len(first))
        pairs[other_name] = _Pair(first, second, remark)
    return pairs


def _compared(pair: _Pair, name: str, settings: EvaluationSettings) -> tuple[Comparison, ...]:
    try:
        return compare_all(pair.first, pair.second, settings.comparisons)
    except PredictionsError as error:
        msg = f"'{name}' cannot be compared with '{settings.name}'. {error}"
        raise PredictionsError(msg) from error


def _texts(
    record: dict[str, Any],
    summaries: Mapping[str, Summary],
    comparisons: Mapping[str, Sequence[Comparison]],
) -> dict[str, str]:
    """The files that are not figures, by name; the first summary is the classifier's."""
    return {
        "tables.md": tables.as_markdown(summaries, comparisons),
        "figures.csv": tables.figures_csv(summaries),
        "confusion.csv": tables.confusion_csv(next(iter(summaries.values()))),
        "comparisons.csv": tables.comparisons_csv(comparisons),
        "metrics.json": json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
    }


def _summary_record(summary: Summary) -> dict[str, Any]:
    return {
        "labels": list(summary.labels),
        "num_scans": summary.num_scans,
        "num_patients": summary.num_patients,
        "cases": summary.cases,
        "warnings": list(summary.warnings),
        "confusion": {"rows": "true", "columns": "decision", "counts": summary.confusion.tolist()},
        **asdict(summary.figures),
        "sites": {
            site: {
                "num_scans": part.num_scans,
                "num_patients": part.num_patients,
                **asdict(part.figures),
            }
            for site, part in summary.sites.items()
        },
        "reliability": [asdict(each) for each in summary.reliability],
        "coverage_risk": [asdict(point) for point in summary.coverage_risk],
        "abstention": [asdict(each) for each in summary.abstention],
        "at_threshold": None if summary.at_threshold is None else asdict(summary.at_threshold),
    }

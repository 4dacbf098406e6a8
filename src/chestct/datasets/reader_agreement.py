"""How far readers agree beyond chance: Cohen's kappa of two, Fleiss' kappa of all.

Intervals come from a bootstrap over patients, which is one over scans where each patient has one.
statsmodels and scikit-learn give the figures, matrix products those of all replicates at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from chestct.datasets.manifest import Manifest
from chestct.datasets.reader_labels import Readings, ReadScan
from chestct.text_tables import as_csv, as_markdown_table

REPLICATES: Final = 2000
LEVEL: Final = 0.95
_MAX_UNDEFINED_SHARE: Final = 0.05

Weights = Int64[np.ndarray, "replicate scan"]


@dataclass(frozen=True)
class Agreement:
    """A kappa.

    Attributes:
        readers: Whose labels are compared.
        num_scans: Scans that all of them read.
        same: Share of these on which they all say the same.
        kappa: Agreement beyond chance; None where it is undefined.
        low: Lower end of its 95 % interval.
        high: Upper end.
        note: Why something is missing.
    """

    readers: tuple[str, ...]
    num_scans: int
    same: float | None
    kappa: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class AgreementReport:
    """How far all readers agree.

    Attributes:
        pairs: Cohen's kappa of every pair.
        all_readers: Fleiss' kappa of all; None with fewer than three readers.
        num_scans: Scans in the table.
        num_disputed: Scans to which two readers gave different labels.
    """

    pairs: tuple[Agreement, ...]
    all_readers: Agreement | None
    num_scans: int
    num_disputed: int


def judge_agreement(
    readings: Readings, rng: np.random.Generator, *, without: str = ""
) -> AgreementReport:
    """Every kappa with its interval.

    Args:
        readings: The scans.
        rng: Draws the replicates.
        without: A reader left out: an adjudicator reads disputed scans only.
    """
    readers = tuple(reader for reader in readings.readers if reader != without)
    pairs = tuple(_judge_pair(readings, pair, rng) for pair in combinations(readers, 2))
    everyone = _judge_all(readings, readers, rng) if len(readers) > 2 else None
    disputed = sum(scan.is_disputed for scan in readings.scans)
    return AgreementReport(pairs, everyone, len(readings.scans), disputed)


def cohen_kappas(
    first: Int64[np.ndarray, " scan"],
    second: Int64[np.ndarray, " scan"],
    weights: Weights,
    num_labels: int,
) -> Float64[np.ndarray, " replicate"]:
    """Cohen's kappa of every replicate; NaN where both name one label only.

    Args:
        first: Label index of each scan by one reader.
        second: The same by the other.
        weights: How often each scan stands in each replicate.
        num_labels: Number of labels.
    """
    cells = np.eye(num_labels**2)[first * num_labels + second]
    tables = (weights @ cells).reshape(-1, num_labels, num_labels)
    totals = tables.sum(axis=(1, 2))
    same = np.trace(tables, axis1=1, axis2=2) / totals
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / totals**2
    return _beyond_chance(same, chance)


def fleiss_kappas(
    counts: Int64[np.ndarray, "scan label"], weights: Weights
) -> Float64[np.ndarray, " replicate"]:
    """Fleiss' kappa of every replicate; NaN where all name one label only.

    Args:
        counts: Readers who gave each label to each scan; the same number for every scan.
        weights: How often each scan stands in each replicate.
    """
    num_readers = int(counts[0].sum())
    totals = weights.sum(axis=1)
    same = ((counts**2).sum(axis=1) - num_readers) / (num_readers * (num_readers - 1))
    shares = weights @ counts / (totals * num_readers)[:, None]
    return _beyond_chance(weights @ same / totals, (shares**2).sum(axis=1))


def draw_weights(
    patients: Sequence[str], rng: np.random.Generator, num: int = REPLICATES
) -> Weights:
    """How often each scan stands in each replicate; patients are drawn with all their scans."""
    names = {name: index for index, name in enumerate(dict.fromkeys(patients))}
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)
    weights: Weights = drawn[:, [names[patient] for patient in patients]].astype(np.int64)
    return weights


def disputes_csv(readings: Readings, decided: Manifest) -> str:
    """The scans on which readers disagree: what each said, and what was decided."""
    rows = {row.scan: row for row in (*decided.rows, *decided.excluded)}
    lines: list[list[object]] = []
    for scan in readings.scans:
        if scan.is_disputed:
            row = rows[scan.row.scan]
            said = [scan.given.get(reader, "") for reader in readings.readers]
            lines.append([scan.row.number, scan.row.scan, *said, row.label, row.excluded])
    return as_csv(["row", "scan", *readings.readers, "decided", "excluded"], lines)


def agreement_json(report: AgreementReport, rule: Mapping[str, object]) -> str:
    """The report for programs, with the rule by which labels were decided."""
    document = {"schema": "chestct.readers", "schema_version": 1, "rule": dict(rule)}
    return json.dumps(document | asdict(report), indent=1, allow_nan=False) + "\n"


def agreement_markdown(report: AgreementReport) -> str:
    """The report for people."""
    header = ["readers", "scans", "same", "kappa", "95 % interval", "note"]
    lines: list[list[str]] = []
    everyone = [report.all_readers] if report.all_readers else []
    for kind, found in (("Cohen", report.pairs), ("Fleiss", everyone)):
        lines += [_cells(kind, each) for each in found]
    disputed = f"{report.num_disputed} of {report.num_scans} scans are disputed."
    return f"{as_markdown_table(header, lines)}\n\n{disputed}\n"


def _judge_pair(readings: Readings, pair: tuple[str, str], rng: np.random.Generator) -> Agreement:
    from sklearn.metrics import cohen_kappa_score

    scans = _read_by(readings, pair)
    if not scans:
        return Agreement(pair, 0, None, None, note="no scan was read by both")
    first, second = (
        np.array([readings.labels.index(scan.given[reader]) for scan in scans], dtype=np.int64)
        for reader in pair
    )
    same = float((first == second).mean())
    if len({*first.tolist(), *second.tolist()}) < 2:
        return Agreement(pair, len(scans), same, None, note="both name one label throughout")
    num_labels = len(readings.labels)
    kappa = float(cohen_kappa_score(first, second, labels=range(num_labels)))
    weights = draw_weights([scan.row.patient for scan in scans], rng)
    spread = cohen_kappas(first, second, weights, num_labels)
    return Agreement(pair, len(scans), same, kappa, *_interval(spread))


def _judge_all(readings: Readings, readers: tuple[str, ...], rng: np.random.Generator) -> Agreement:
    from statsmodels.stats.inter_rater import fleiss_kappa

    scans = _read_by(readings, readers)
    if not scans:
        return Agreement(readers, 0, None, None, note="no scan was read by all")
    given = [[scan.given[reader] for reader in readers] for scan in scans]
    counts = np.array(
        [[labels.count(label) for label in readings.labels] for labels in given], dtype=np.int64
    )
    same = float((counts.max(axis=1) == len(readers)).mean())
    if (counts.sum(axis=0) > 0).sum() < 2:
        return Agreement(readers, len(scans), same, None, note="all name one label throughout")
    weights = draw_weights([scan.row.patient for scan in scans], rng)
    spread = fleiss_kappas(counts, weights)
    kappa = float(fleiss_kappa(counts, method="fleiss"))
    return Agreement(readers, len(scans), same, kappa, *_interval(spread))


def _read_by(readings: Readings, readers: Sequence[str]) -> list[ReadScan]:
    return [scan for scan in readings.scans if set(readers) <= set(scan.given)]


def _beyond_chance(
    same: Float64[np.ndarray, " replicate"], chance: Float64[np.ndarray, " replicate"]
) -> Float64[np.ndarray, " replicate"]:
    room = 1 - chance
    is_defined = room > 1e-12
    kappas = np.full(same.shape, np.nan)
    kappas[is_defined] = (same - chance)[is_defined] / room[is_defined]
    return kappas


def _interval(
    spread: Float64[np.ndarray, " replicate"],
) -> tuple[float | None, float | None, str]:
    undefined = float(np.isnan(spread).mean())
    if undefined > _MAX_UNDEFINED_SHARE:
        return None, None, f"no interval: undefined in {undefined:.0%} of the replicates"
    low, high = np.nanquantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    note = "all replicates are equal: the interval is too narrow" if low == high else ""
    return float(low), float(high), note


def _cells(kind: str, each: Agreement) -> list[str]:
    same = "" if each.same is None else f"{each.same:.1%}"
    kappa = "" if each.kappa is None else f"{each.kappa:.3f}"
    ends = "" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}"
    who = f"{kind}: {', '.join(each.readers)}"
    return [who, str(each.num_scans), same, kappa, ends, each.note]

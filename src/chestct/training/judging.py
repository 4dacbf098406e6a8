"""Run a finished classifier over labelled scans, or over slices, which vote on their patients.

Reporting checklists are filled in as far as a run, a manifest, a card and an evaluation know: CLAIM
2024 update (Tejani et al., Radiology: Artificial Intelligence 2024, doi 10.1148/ryai.240300) and
TRIPOD+AI (Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378, CC BY 4.0). `checklists.csv`
holds their numbers and headings, what is said of an item beside these being in our words, and
`checklists.j2` the words for what is known.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
from jaxtyping import Float64

from chestct.card import CARD_FILE, SLICE_CARD_FILE, Card, VoteSettings
from chestct.classifier import Classifier, SliceClassifier, load_slice_classifier
from chestct.datasets.checks import find_oddities, find_unreadable_slices
from chestct.datasets.confounders import VARIABLES, groups_by
from chestct.datasets.manifest import (
    SPLITS,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestRow,
    describe_rows,
    read_manifest,
)
from chestct.datasets.pictures import LabelledSlices
from chestct.datasets.public import scans_in
from chestct.datasets.scans import ScanFacts, gather_facts, read_options
from chestct.datasets.splits import part
from chestct.datasets.store import Cache, prepare_all
from chestct.datasets.workers import Progress
from chestct.engines import Engine
from chestct.errors import ChestCTError, TrainingError
from chestct.evaluation.calibration import AbstentionThreshold
from chestct.evaluation.comparisons import COMPARISONS, SOUND, Judgement
from chestct.evaluation.predictions import (
    VOTES,
    AnyPredictions,
    Predictions,
    PredictionsError,
    align,
    assumption,
    one_per_patient,
    read_predictions,
    vote,
    write_predictions,
)
from chestct.evaluation.report import (
    FIGURE_NAMES,
    EvaluationSettings,
    Summary,
    recorded_exclusions,
    write_evaluation,
)
from chestct.familiarity import Familiarity, separation
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import first_of, look_up
from chestct.preprocess.prepare import prepare
from chestct.readers import read_volume
from chestct.remote import shown
from chestct.report import as_markdown_table, fill_blocks
from chestct.result import SliceAnswer
from chestct.storage import write_text
from chestct.training.data import make_cache, parts_in_run, patient_labels_of, read_slices
from chestct.training.loop import evaluate
from chestct.training.plan import (
    BASELINE_FILE,
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    RUN_FILE,
    SCANS_FILE,
    TRAINING_FOLDER,
    Listener,
)
from chestct.training.results import (
    BASELINE_NAME,
    as_finding_predictions,
    as_predictions,
    cross_validated_baseline,
    predictions_of,
    reasons_by_scan,
    scan_key,
)
from chestct.training.settings import DataSection

CHECKLISTS: Final = {
    "claim": "CLAIM, 2024 update, doi 10.1148/ryai.240300",
    "tripod-ai": "TRIPOD+AI, 2024, doi 10.1136/bmj-2023-078378",
}
"""Name to what it is."""
_FOR_THE_AUTHOR: Final = "**for the author**"


def require_checklists(names: Sequence[str]) -> None:
    """Refuse names of checklists that there are none of.

    Raises:
        UnknownNameError: There is no such checklist.
    """
    for name in names:
        look_up(CHECKLISTS, name, kind="checklist")


def _write_checklist(
    name: str,
    folder: Path,
    classifier: Classifier,
    manifest: Manifest,
    summary: Summary,
    excluded: Mapping[str, str],
) -> Path:
    """Write `checklist_NAME.md`: every item, with what is known of it or marked for the author.

    `excluded` are scans without a decision, with the reason.

    Raises:
        UnknownNameError: There is no such checklist.
        WriteError: It cannot be written.
    """
    require_checklists([name])
    facts = _facts(classifier, manifest, summary, len(excluded))
    text = files("chestct.training").joinpath("checklists.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["list"] == name]
    said = [facts.get(row["fact"], "") for row in rows]
    lines = [
        [row["item"], row["section"], row["about"], fact or _FOR_THE_AUTHOR]
        for row, fact in zip(rows, said, strict=True)
    ]
    table = as_markdown_table(["item", "section", "what it asks for, in our words", "known"], lines)
    return write_text(
        folder / f"checklist_{name}.md",
        f"# {CHECKLISTS[name]}\n\n{NOT_FOR_CLINICAL_USE}\n\n{sum(map(bool, said))} of {len(rows)} "
        "items are filled in from the run, the manifest, the card and the evaluation; read them, "
        "and say more where the item asks for more. Numbers and headings are the list's; its own "
        f"wording stands where it was published.\n\n{table}\n",
    )


_SAID_OF_TRAINING: Final = (
    *("epochs", "batch_size", "accumulation", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "label_smoothing", "mixup_alpha", "early_stopping_epochs", "seed"),
)


def _facts(
    classifier: Classifier, manifest: Manifest, summary: Summary, num_excluded: int
) -> dict[str, str]:
    """What manifest, scans, card, run and evaluation say, by fact; empty where nothing is known."""
    run, card = _record_of_run(classifier), classifier.card
    parts = (parts_in_run(classifier.folder.resolve(), manifest) or {}) if run else {}
    figures, groups = summary.figures, {"site": summary.sites, **summary.groups}
    sizes = {
        name: f"{name}: " + ", ".join(f"{value} {part.num_scans}" for value, part in each.items())
        for name, each in groups.items()
        if each
    }
    return fill_blocks(
        "chestct.training/checklists.j2",
        card=card,
        recipe=classifier.recipe,
        are_findings=classifier.are_findings,
        settings=json.dumps(card.network_settings, ensure_ascii=False),
        manifest=manifest,
        flow=manifest.flow().rows,
        reasons=Counter(row.excluded for row in manifest.excluded),
        sites=sorted({row.site for row in manifest.rows if row.site}),
        dates=sorted({row.others["date"] for row in manifest.rows if row.others.get("date")}),
        num_excluded=num_excluded,
        run=run,
        parts=Counter(parts.values()),
        scans_file=SCANS_FILE,
        said_of_training=_SAID_OF_TRAINING,
        summary=summary,
        sizes=sizes,
        measures=[*figures.overall, *next(iter(figures.per_class.values()))],
        figure_names=FIGURE_NAMES,
    )


def _record_of_run(classifier: Classifier) -> Any:
    """The record of the classifier's run; None where it is not there."""
    folder = classifier.folder.resolve()
    found = [each / RUN_FILE for each in folder.parents[:2] if (each / RUN_FILE).is_file()]
    if not found:
        return None
    record = json.loads(found[0].read_text(encoding="utf-8"))
    training = {"average_weights": 0.0, **record["settings"]["training"]}
    settings = {**record["settings"], "training": training}
    return {"pretrained_sha256": None, **record, "settings": settings}


_MOST_NAMED: Final = 3
SLICES_FOLDER: Final = "slices"
PATIENTS_FOLDER: Final = "patients"
_OF_A_RUN: Final = (
    *(CLASSIFIER_FOLDER, EVALUATION_FOLDER, TRAINING_FOLDER),
    *(SLICES_FOLDER, PATIENTS_FOLDER),
)
"""Folders that a training makes in its own."""
_ENDING: Final = re.compile(r"(\.nii)?\.\w+$")
_GROUPINGS: Final = ("age", "sex", "scanner", "slice_thickness_mm")
"""What scans are grouped by where it is known, and differs; sites have a table anyway."""

_Other = TypeVar("_Other", Predictions, Judgement)


class ScanSaid(NamedTuple):
    """What a classifier said of a scan: a probability per label, or why there is none."""

    shares: tuple[float, ...] = ()
    reason: str = ""


Judging = Callable[[Manifest, Cache, Listener], Mapping[int, ScanSaid]]
"""Asks a classifier about all scans of a manifest; what it said, by row number."""


def judge_here(
    classifier: Classifier, engine: Engine, manifest: Manifest, cache: Cache, listener: Listener
) -> dict[int, ScanSaid]:
    """Ask a classifier about all scans of a manifest: prepared by all processes, kept in the cache.

    Raises:
        CacheError: It cannot be written.
        EngineError: The engine could not run the network.
    """
    prepared = prepare_all(
        cache,
        manifest,
        processes=listener.processes,
        progress=listener.watch("preparing"),
    )
    reasons = {row: f"unsuitable: {' '.join(why)}" for row, why in prepared.unsuitable.items()}
    said = {row: ScanSaid(reason=why) for row, why in (reasons | dict(prepared.failed)).items()}
    rows = [row for row in manifest.rows if row.number not in said]
    for number, row in enumerate(rows):
        found = cache.get(manifest.path(row), read_options(row, manifest.folder))
        shares = classifier.probabilities_of(engine.logits(found.input, found.lungs))
        said[row.number] = ScanSaid(tuple(float(shares[label]) for label in classifier.labels))
        listener.progress("classifying", Progress(number + 1, len(rows), 0.0))
    return said


def judge_manifest(
    classifier: Classifier, judging: Judging, manifest: Manifest, cache: Cache, listener: Listener
) -> tuple[AnyPredictions, dict[str, str]]:
    """Classify every scan of a manifest.

    Returns:
        Predictions, and the reason for each scan that got none, which the listener is told.

    Raises:
        TrainingError: No scan could be classified.
        ChestCTError: The scans could not be judged.
    """
    said = judging(manifest, cache, listener)
    reasons = {row: each.reason for row, each in said.items() if each.reason}
    rows = tuple(row for row in manifest.rows if row.number not in reasons)
    if not rows:
        first = min(reasons)
        msg = f"None of the {len(manifest)} scans of {manifest.name} could be classified. Row"
        raise TrainingError(f"{msg} {first}: {reasons[first]}")
    shares = np.array([said[row.number].shares for row in rows])
    judged = _predictions_of(classifier, manifest.with_rows(rows), shares)
    excluded = reasons_by_scan(manifest, reasons)
    for scan, reason in excluded.items():
        listener.note(f"No decision on {scan}: {reason}")
    return judged, excluded


def _predictions_of(
    classifier: Classifier, manifest: Manifest, shares: Float64[np.ndarray, "scan class"]
) -> AnyPredictions:
    """What a classifier said of all scans of a manifest, of classes or of findings."""
    if classifier.are_findings:
        thresholds = [*classifier.card.thresholds.values()]
        return as_finding_predictions(manifest, shares, classifier.labels, thresholds)
    return as_predictions(manifest.rows, shares, classifier.labels)


def read_rows(path: Path, classifier: Classifier, split: str | None) -> Manifest:
    """A manifest's rows, or those of one split, with the classifier's labels.

    A manifest without splits is divided as the classifier's own run divided these scans.

    Raises:
        ManifestError: The manifest does not fit, or no row is of that split.
        UnknownNameError: There is no such split.
    """
    manifest = read_manifest(path, classifier.labels, are_findings=classifier.are_findings)
    if split is None:
        return manifest
    look_up(dict.fromkeys(SPLITS), split, kind="split")
    if not any(row.split for row in manifest.rows):
        parts = parts_in_run(classifier.folder, manifest) or {}
        manifest = manifest.with_rows(
            replace(row, split=parts.get(row.number, "")) for row in manifest.rows
        )
    return part(manifest, split)


_SEEN: Final = {
    TRAINING: "it learned from them, and the figures are too good",
    VALIDATION: "it was watched on them while it was trained, and the figures are likely too good",
}


def _seen_before(classifier: Path, manifest: Manifest) -> tuple[str, ...]:
    """Which rows a classifier has seen, a sentence for each part; empty where none is known.

    The record of its run says so; without one the manifest's own column `split` does.
    """
    parts, source = parts_in_run(classifier, manifest), f"the record of its run, {SCANS_FILE},"
    if parts is None:
        parts = {row.number: row.split for row in manifest.rows}
        source = "the manifest's column 'split'"
    said = []
    for name, worth in _SEEN.items():
        rows = [row for row in manifest.rows if parts.get(row.number) == name]
        if rows:
            said.append(
                f"The classifier has seen {len(rows)} of these {len(manifest)} scans "
                f"({describe_rows(rows)}): by {source} {worth}. Judge scans that it has not seen, "
                "such as --split test."
            )
    return tuple(said)


def require_own_folder(folder: Path) -> None:
    """Refuse to write an evaluation where a training or a classifier has its own files.

    Raises:
        TrainingError: It is such a folder.
    """
    files = (RUN_FILE, f"{TRAINING_FOLDER}/log.jsonl", CARD_FILE, SLICE_CARD_FILE)
    places = [folder, folder.parent] if folder.name in _OF_A_RUN else [folder]
    if any((place / name).is_file() for place in places for name in files):
        msg = (
            f"{folder} holds files of a training or a classifier, which an evaluation would "
            "replace. Choose another folder for it."
        )
        raise TrainingError(msg)


def _require_columns(manifest: Manifest, names: Sequence[str]) -> None:
    """Refuse groups by what no row and no scan says.

    Raises:
        UnknownNameError: There is no such column.
    """
    others = (column for row in manifest.rows for column in row.others)
    columns = dict.fromkeys((*VARIABLES, "split", "fold", *others))
    for name in names:
        look_up(columns, name, kind="column to group by")


def _with_groups(
    judged: AnyPredictions, manifest: Manifest, facts: Sequence[ScanFacts], by: Sequence[str]
) -> AnyPredictions:
    """The predictions, their scans in groups: by the usual variables that differ, and as asked."""
    groups = {
        name: tuple(groups_by(manifest, facts, name)) for name in dict.fromkeys((*_GROUPINGS, *by))
    }
    wanted = {name: each for name, each in groups.items() if name in by or len(set(each)) > 1}
    return replace(judged, groups=wanted)


def _report_links(reports: Path, folder: Path, rows: Sequence[ManifestRow]) -> dict[str, str]:
    """Scan to its report, as an address relative to a folder; nothing where two could be meant.

    `reports` is what `chestct classify --out` wrote: a folder with `report.html` per scan, called
    as the scan is, the folders above it before its name or not, without a file's ending.
    """
    found = {path.parent.name: path for path in sorted(reports.glob("*/report.html"))}
    links: dict[str, str] = {}
    for row in rows:
        parts = Path(row.scan).parts
        names = ["-".join(parts[-depth:]) for depth in range(len(parts), 0, -1)]
        names = [each for name in names for each in (name, _ENDING.sub("", name))]
        report = next((found[name] for name in names if name in found), None)
        if report is not None:
            place = os.path.relpath(report.resolve(), folder.resolve())
            links[scan_key(row)] = quote(Path(place).as_posix())
    times = Counter(links.values())
    return {scan: link for scan, link in links.items() if times[link] == 1}


def read_beside(
    files: Mapping[str, Path], classifier: Classifier, manifest: Manifest
) -> dict[str, Judgement]:
    """What others said, by a `predictions.csv` each, refused before anything is classified.

    A scan that the evaluation beside a file lists as without a decision may be missing from it.

    Raises:
        PredictionsError: A file cannot be read, is about other scans, labels or truths, lacks
            scans, or has a name that is taken; the message names it.
    """
    if files and classifier.are_findings:
        msg = (
            f"'{classifier.card.name}' tells findings, and its tests against others are of classes."
        )
        raise PredictionsError(f"{msg} Leave --beside out, and compare the tables of both.")

    def fitted(path: Path) -> Judgement:
        """One file's predictions, and the scans it explains the lack of."""
        predictions = read_predictions(path)
        other = Judgement(predictions, recorded_exclusions(path, predictions))
        _require_fit(other, manifest, classifier.labels)
        return other

    return _read_others(files, {classifier.card.name, BASELINE_NAME}, manifest, fitted)


def _read_others(
    files: Mapping[str, Path],
    taken: Collection[str],
    manifest: Manifest,
    read: Callable[[Path], _Other],
) -> dict[str, _Other]:
    """What others said, by their names; an error names the file and what it cannot stand beside.

    Raises:
        PredictionsError: A name is taken, or a file cannot be read or does not fit.
    """
    found: dict[str, _Other] = {}
    for name, path in files.items():
        try:
            if name in taken:
                raise PredictionsError("Another classifier has this name: choose another.")
            found[name] = read(path)
        except PredictionsError as error:
            msg = f"{path.name} ('{name}') cannot stand beside {manifest.name}. {error}"
            raise PredictionsError(msg) from error
    return found


@dataclass(frozen=True)
class Wishes:
    """What an evaluation is to hold beside its usual tables.

    Attributes:
        beside: Other classifiers by name, compared with on the scans that both decided on.
        by: Columns of the manifest, or facts of the scans, whose values divide the scans.
        reports: Folder that `chestct classify --out` wrote, to link wrong answers to; or None.
        checklists: Names in `CHECKLISTS`, to be filled in as far as is known.
        has_maseres_z: Whether the MASERes paper's test is made too, which is not sound.
    """

    beside: Mapping[str, Judgement] = field(default_factory=dict)
    by: tuple[str, ...] = ()
    reports: Path | None = None
    checklists: tuple[str, ...] = ()
    has_maseres_z: bool = False


def evaluate_manifest(
    classifier: Classifier,
    judging: Judging,
    manifest: Manifest,
    folder: Path,
    listener: Listener,
    wishes: Wishes | None = None,
) -> Summary:
    """Classify labelled scans; write predictions, metrics, tables and figures to a folder.

    What age, sex and scanner alone say of the scans stands in the same tables where any is known.

    Raises:
        TrainingError: No scan could be classified, or the folder is a training's.
        UnknownNameError: There is no such column or checklist.
        PredictionsError: Another classifier did not judge the same scans, and its exclusions do not
            say why.
        WriteError: The folder cannot be written.
    """
    wishes = wishes or Wishes()
    require_own_folder(folder)
    _require_columns(manifest, wishes.by)
    seen = _seen_before(classifier.folder, manifest)
    for sentence in seen:
        listener.note(sentence)
    cache = make_cache(DataSection(), classifier.recipe)
    judged, excluded = judge_manifest(classifier, judging, manifest, cache, listener)
    write_predictions(judged, folder / PREDICTIONS_FILE)
    kept = manifest.choose(lambda row: scan_key(row) not in excluded)
    facts = gather_facts(kept, cache.folder, processes=listener.processes)
    baseline, remark = cross_validated_baseline(judged, kept, facts)
    judged = _with_groups(judged, kept, facts, wishes.by)
    others: dict[str, AnyPredictions | Judgement] = dict(wishes.beside)
    if baseline is not None:
        write_predictions(baseline, folder / BASELINE_FILE)
        others[BASELINE_NAME] = baseline
    settings = replace(
        _settings_of(wishes, classifier, (*seen, remark)),
        reports=_report_links(wishes.reports, folder, kept.rows) if wishes.reports else {},
    )
    summary = write_evaluation(judged, folder, settings=settings, others=others, excluded=excluded)
    for name in wishes.checklists:
        _write_checklist(name, folder, classifier, manifest, summary, excluded)
    return summary


@dataclass(frozen=True)
class Unlike:
    """How well a classifier tells scans of another kind from those of a manifest.

    `auroc` is how often a scan of the other kind lies further than one of the manifest. Caught are
    those beyond the card's threshold or refused as unsuitable before; false those of the manifest
    that lie beyond it.
    """

    auroc: float
    num_scans: int
    num_caught: int
    num_refused: int
    num_familiar: int
    num_false: int


def _settings_of(
    wishes: Wishes, classifier: Classifier, remarks: Sequence[str]
) -> EvaluationSettings:
    """How a classifier's answers are evaluated; empty remarks are none."""
    return EvaluationSettings(
        name=classifier.card.name,
        comparisons=tuple(COMPARISONS) if wishes.has_maseres_z else SOUND,
        promised=_promised_by(classifier.card),
        remarks=tuple(filter(None, remarks)),
    )


def _promised_by(card: Card) -> AbstentionThreshold | None:
    """The threshold of a card as an evaluation takes it."""
    kept = card.abstention
    if kept is None:
        return None
    return AbstentionThreshold(
        kept.abstain_below, kept.wished_error, kept.level, kept.coverage, kept.risk, kept.risk_bound
    )


def judge_unlike(
    classifier: Classifier, engine: Engine, manifest: Manifest, folder: Path, listener: Listener
) -> Unlike:
    """Hold the distances of the scans in a folder against those of a manifest's familiar ones.

    These were prepared before by `evaluate_manifest`. A scan that cannot be read is noted and left
    out.

    Raises:
        TrainingError: The classifier has no such threshold, or no scan of either kind is left.
    """
    known = classifier.familiarity
    if known is None:
        raise TrainingError(
            f"Classifier '{classifier.card.name}' cannot tell unlike scans: its folder holds no "
            "distances. Train it anew."
        )
    familiar = _familiar_distances(known, classifier, engine, manifest)
    others, num_refused, num_caught = [], 0, 0
    for scan in scans_in(folder):
        try:
            prepared = prepare(read_volume(scan), classifier.recipe)
        except ChestCTError as error:
            listener.note(f"{scan.name} was left out: {error}")
            continue
        features = engine.outputs(prepared.input, prepared.lungs).features
        others.append(known.distance(features))
        num_refused += bool(prepared.unsuitable_reasons)
        num_caught += bool(prepared.unsuitable_reasons) or others[-1] > known.threshold
    if not (familiar and others):
        raise TrainingError(f"No scan to compare is left in {folder.name} or {manifest.name}.")
    near, far = np.array(familiar), np.array(others)
    return Unlike(
        auroc=separation(near, far),
        num_scans=len(far),
        num_caught=num_caught,
        num_refused=num_refused,
        num_familiar=len(near),
        num_false=int((near > known.threshold).sum()),
    )


def _familiar_distances(
    known: Familiarity, classifier: Classifier, engine: Engine, manifest: Manifest
) -> list[float]:
    """How far the scans of a manifest lie, those that the cache can give."""
    cache = make_cache(DataSection(), classifier.recipe)
    distances = []
    for row in manifest.rows:
        with suppress(ChestCTError):
            found = cache.get(manifest.path(row), read_options(row, manifest.folder))
            distances.append(known.distance(engine.outputs(found.input, found.lungs).features))
    return distances


def _undecided(rows: Sequence[ManifestRow], labels: tuple[str, ...]) -> Predictions:
    """Every class as likely: stands in for what a classifier has yet to say of these scans."""
    return as_predictions(rows, np.full((len(rows), len(labels)), 1 / len(labels)), labels)


def _require_fit(other: Judgement, manifest: Manifest, labels: tuple[str, ...]) -> None:
    """Refuse predictions of other scans, labels or truths, and scans that are missing unexplained.

    Raises:
        PredictionsError: They do not fit; the message names scans and what to do.
    """
    judged = set(other.predictions.scans)
    align(
        _undecided([r for r in manifest.rows if scan_key(r) in judged], labels), other.predictions
    )
    expected = [scan_key(row) for row in manifest.rows if scan_key(row) not in other.excluded]
    missing = [scan for scan in expected if scan not in judged]
    if missing:
        named = first_of((f"'{scan}'" for scan in missing), _MOST_NAMED)
        msg = (
            f"It has no prediction of {len(missing)} of the {len(manifest)} scans: {named}. "
            "Evaluate both on one manifest, name the --split that the file is of, or take these "
            "rows out. Scans without a decision may be missing where the metrics.json of the other "
            "evaluation, which lists them, lies beside the file."
        )
        raise PredictionsError(msg)


MAIN_VOTE: Final = "mean"
"""The vote that others are compared with: the only one without a number to choose."""
SLICES_AT_ONCE: Final = 32
_PICTURES_AT_ONCE: Final = 16 * SLICES_AT_ONCE
"""Between two words on how far things are."""


@dataclass(frozen=True)
class JudgedSlices:
    """Slices that were judged, and the numbers behind the votes on their patients.

    `patient_labels` is patient to the class of the whole patient, or None; `negative` the class
    that means that nothing was found, empty where none is named.
    """

    name: str
    slices: Predictions
    votes: VoteSettings
    patient_labels: Mapping[str, str] | None
    negative: str = ""

    def votes_on_patients(self) -> dict[str, Predictions]:
        """What they say of their patients, by each vote.

        Raises:
            PredictionsError: A patient's class is not known.
        """
        given = (self.votes, self.patient_labels, self.negative)
        return {name: vote(self.slices, name, *given) for name in VOTES}


def write_judged(
    judged: JudgedSlices,
    folder: Path,
    *,
    beside: Mapping[str, Predictions] | None = None,
    logs: Mapping[str, list[dict[str, Any]]] | None = None,
    comparisons: tuple[str, ...] = SOUND,
    remarks: tuple[str, ...] = (),
) -> tuple[Summary, Summary]:
    """Write predictions and evaluations in `slices/` and, by votes, in `patients/` of a folder.

    `beside` are further classifiers of the same patients by name, scan-level ones among them;
    `remarks` are sentences that join the warnings.

    Returns:
        What was found on slices, and on their patients by the main vote.

    Raises:
        PredictionsError: A patient's class is not known, or another classifier judged others.
        WriteError: The folder cannot be written.
    """
    places = {name: folder / name for name in (SLICES_FOLDER, PATIENTS_FOLDER)}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    write_predictions(judged.slices, places[SLICES_FOLDER] / PREDICTIONS_FILE)
    on_slices = write_evaluation(
        judged.slices,
        places[SLICES_FOLDER] / EVALUATION_FOLDER,
        settings=EvaluationSettings(name=f"{judged.name}, slices", remarks=remarks),
        logs=logs,
    )
    on_patients = _write_votes(judged, places[PATIENTS_FOLDER], beside or {}, comparisons, remarks)
    return on_slices, on_patients


def _write_votes(
    judged: JudgedSlices,
    folder: Path,
    beside: Mapping[str, Predictions],
    comparisons: tuple[str, ...],
    remarks: tuple[str, ...],
) -> Summary:
    """Write what each vote says of the patients, and the evaluation of the main one."""
    votes = judged.votes_on_patients()
    assumed = assumption(judged.slices.labels, judged.negative)
    others = {f"{judged.name}, {name}": votes[name] for name in VOTES if name != MAIN_VOTE}
    for name, each in votes.items():
        write_predictions(each, folder / f"predictions_{name}.csv")
    for name, each in beside.items():
        others[name] = align(votes[MAIN_VOTE], one_per_patient(each))
    return write_evaluation(
        votes[MAIN_VOTE],
        folder / EVALUATION_FOLDER,
        settings=EvaluationSettings(
            name=f"{judged.name}, {MAIN_VOTE}",
            comparisons=comparisons,
            remarks=(*remarks, assumed) if assumed else remarks,
        ),
        others=others,
    )


def _judge_slices(
    classifier: SliceClassifier, manifest: Manifest, listener: Listener
) -> Predictions:
    """Classify every slice of a manifest.

    Raises:
        TrainingError: A slice cannot be read; the message names the files.
    """
    form = classifier.card.pictures
    store = read_slices(manifest, form, listener)
    facts = store.by_row
    unreadable = find_unreadable_slices(manifest, facts)
    if unreadable:
        raise TrainingError(unreadable[0].sentence)
    for finding in find_oddities(manifest, facts, form.size):
        listener.note(finding.sentence)
    examples = LabelledSlices(store, manifest)
    outputs = evaluate(classifier.network, examples, batch_size=SLICES_AT_ONCE)
    return predictions_of(outputs, manifest, classifier.card.labels, classifier.card.temperature)


def judge_pictures(
    classifier: SliceClassifier, pictures: Mapping[Path, str], cache: Path, listener: Listener
) -> list[SliceAnswer]:
    """Classify pictures that nobody has labelled; those that cannot be read stop no other.

    `pictures` are where they lie, each once, to their patients, empty where those are not known;
    `cache` keeps them as the network sees them.

    Returns:
        An answer or a failure for each, in their order.

    Raises:
        WriteError: The folder cannot be written.
    """
    card = classifier.card
    # A manifest needs labels; these are not looked at.
    rows = tuple(ManifestRow(shown(path), shown(path), card.labels[0]) for path in pictures)
    manifest = Manifest(rows, card.labels)
    store = read_slices(manifest, card.pictures, listener, str(cache))
    read = [row for row in manifest.rows if not store.by_row[row.number].error]
    said: dict[int, dict[str, float]] = {}
    for start in range(0, len(read), _PICTURES_AT_ONCE):
        part_of = manifest.with_rows(read[start : start + _PICTURES_AT_ONCE])
        examples = LabelledSlices(store, part_of)
        outputs = evaluate(classifier.network, examples, batch_size=SLICES_AT_ONCE)
        judged = predictions_of(outputs, part_of, card.labels, card.temperature)
        for row, shares in zip(part_of.rows, judged.probabilities.tolist(), strict=True):
            said[row.number] = dict(zip(card.labels, shares, strict=True))
        listener.progress("classifying", Progress(start + len(part_of), len(read), 0.0))
    answers = []
    for row, (path, patient) in zip(manifest.rows, pictures.items(), strict=True):
        facts = store.by_row[row.number]
        remarks = () if facts.error else facts.remarks(card.pictures.size)
        shares = said.get(row.number, {})
        answers.append(SliceAnswer(shown(path), patient, shares, remarks, facts.error))
    return answers


def _read_patients_beside(
    files: Mapping[str, Path], classifier: SliceClassifier, manifest: Manifest
) -> dict[str, Predictions]:
    """Others' predictions, one scan of each patient, refused before a slice is read.

    Raises:
        PredictionsError: A file cannot be read, is about other patients, labels or truths, or has a
            name that is taken; the message names it.
    """
    taken = {f"{classifier.card.name}, {each}" for each in VOTES}
    slices = _undecided(manifest.rows, classifier.card.labels)
    patients = vote(slices, MAIN_VOTE, patient_labels=patient_labels_of(manifest))

    def fitted(path: Path) -> Predictions:
        """One file's predictions, by patient."""
        found = one_per_patient(read_predictions(path))
        _require_patients(found, manifest)
        align(patients, found)
        return found

    return _read_others(files, taken, manifest, fitted)


def evaluate_slices(
    place: Path,
    table: Path,
    folder: Path,
    listener: Listener,
    beside: Mapping[str, Path] | None = None,
    *,
    comparisons: tuple[str, ...] = SOUND,
) -> Summary:
    """Judge labelled slices with a classifier, and their patients; write what was found.

    `beside` is name to a `predictions.csv` of another classifier on the same patients.

    Returns:
        What was found on the patients.

    Raises:
        ChestCTError: The table, a slice or a file to stand beside is not as it should be.
    """
    require_own_folder(folder)
    classifier = load_slice_classifier(place)
    manifest = read_manifest(table, classifier.card.labels, are_findings=False)
    manifest.require_classes()
    seen = _seen_before(place, manifest)
    for sentence in seen:
        listener.note(sentence)
    others = _read_patients_beside(beside or {}, classifier, manifest)
    judged = JudgedSlices(
        name=classifier.card.name,
        slices=_judge_slices(classifier, manifest, listener),
        votes=classifier.card.votes,
        patient_labels=patient_labels_of(manifest),
        negative=classifier.card.label_set.negative,
    )
    _, on_patients = write_judged(
        judged, folder, beside=others, comparisons=comparisons, remarks=seen
    )
    return on_patients


def _require_patients(other: Predictions, manifest: Manifest) -> None:
    """Refuse predictions that lack patients of the slices; rows are named, as patients are not.

    Raises:
        PredictionsError: Patients are missing.
    """
    known = set(other.patients)
    rows = {row.patient: row.number for row in reversed(manifest.rows) if row.patient not in known}
    if rows:
        first = sorted(rows.values())
        msg = (
            f"It has no prediction of {len(first)} of the {manifest.num_patients} patients: those "
            f"whose slices begin in row {first_of(first, _MOST_NAMED)}. Evaluate "
            "both on the same patients, or take the rows of these patients out."
        )
        raise PredictionsError(msg)

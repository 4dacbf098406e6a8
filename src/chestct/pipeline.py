"""The main path: a scan on disk in, its classification out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from time import perf_counter
from typing import Final

from chestct import __version__
from chestct.analysis import SCAN_FACTS, ScanAnalysis, Watcher
from chestct.card import Card
from chestct.classifier import Answer, Classifier, load_classifier
from chestct.engines import Engine, make_engine
from chestct.errors import printable
from chestct.explain import AUTO, split_choice
from chestct.labels import FINDINGS_APART, NO_FINDING, UNSUITABLE
from chestct.memory import require_memory
from chestct.preprocess.oblique import MAX_DEGREES, body_grid, degrees_off
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.readers import ReadOptions
from chestct.readers.pictures import TiffGeometry
from chestct.remote import local_copy, shown
from chestct.result import UNLIKE, FindingAnswer, Provenance, ScanResult, Timings
from chestct.volume import Volume, hash_voxels

_TAKEN: Final = (0.25e9, 0.5)
_TAKEN_WITH_HEAT: Final = (0.6e9, 1.8)
"""Memory that a scan takes beyond its own voxels while it is prepared, and with its heat-map and
all outputs: bytes that do not depend on its size, and parts of its voxels in 16 bits. Measured as
the growth of the process from reading to its peak, with the classifier that is shipped, on 148 and
600 slices of 512 x 512: 267 and 375 MB, with all outputs 542 and 959 MB; and by
`benchmarks/memory.py`, where loading PyTorch for the heat-map counts, on 150 and 300: 224 and
237 MB, with all outputs 673 and 721 MB.
"""
_OBLIQUE, _OBLIQUE_WITH_HEAT = 1.5, 7.0
"""What an oblique scan takes beyond that, in parts of the voxels in 16 bits that it has when it is
put upright: its turned copy with its lungs, and two whole heat-maps. By `benchmarks/memory.py`
on 150 and 300 slices at 20 degrees: 168 and 372 MB, with all outputs 822 and 1691 MB."""
_UNITS: Final = {"HU": "Hounsfield units", "windowed": "windowed, without an absolute scale"}


def classify_scan(  # noqa: PLR0913 - all that can be said about a scan
    path: str | Path,
    classifier: Classifier | None = None,
    *,
    engine: str | Engine = "auto",
    series: str | None = None,
    allow: Collection[str] = (),
    tiff: TiffGeometry | None = None,
    lungs: str | Path | None = None,
) -> ScanResult:
    """Classify one chest CT scan.

    Args:
        path: A folder, file or zip of a DICOM series, a NIfTI file, or a folder of TIFF slices.
        classifier: What to classify with; None takes the one that is shipped.
        engine: Name in `ENGINES`, "auto", or an engine made before for this very classifier.
        series: SeriesInstanceUID, where a folder holds several.
        allow: Irregularities to accept: "gap", "tilt", "mixed-orientations", "bad-slices",
            "unplaced"; `chestct.readers.ALLOWED` says what each does.
        tiff: Geometry of a folder of TIFF slices, which cannot say it themselves.
        lungs: Mask of the scan's lungs, as NIfTI or DICOM Segmentation; None has them found.

    Returns:
        The answer; decision "unsuitable" with reasons where there should be none.

    Raises:
        ChestCTError: The scan, the classifier or the engine is not as it should be.
    """
    reading = ReadOptions(series, allow, tiff, None if lungs is None else Path(lungs))
    return analyse_scan(path, classifier, engine=engine, reading=reading).result


def analyse_scan(  # noqa: PLR0913 - all that can be said about a scan
    path: str | Path,
    classifier: Classifier | None = None,
    *,
    engine: str | Engine = "auto",
    reading: ReadOptions | None = None,
    explain: str | None = None,
    finding: str | None = None,
    watcher: Watcher | None = None,
) -> ScanAnalysis:
    """As `classify_scan`, and return with the answer what it was made from.

    The time it takes to load a classifier or to compile an engine is not part of the timings:
    it is spent once, however many scans follow. Nor is that of an explanation, which is no part
    of the answer.

    Args:
        path: The scan.
        classifier: What to classify with; None takes the one that is shipped.
        engine: Name in `ENGINES`, "auto", or an engine made before for this very classifier.
        reading: How to read the scan; None reads it as it is.
        explain: How to explain the decision: a name in `EXPLANATIONS`, with ":LAYER" after it for
            a layer of choice, or "auto" for what the classifier's card names. A scan that is
            unsuitable has no decision and gets no explanation.
        finding: Which of several findings is explained; None takes the one that is furthest above
            its threshold, or least below.
        watcher: Told that the scan was read, and by slow explanations how far they are.

    Raises:
        ChestCTError: The scan, the classifier or the engine is not as it should be, or the
            classifier's network has nothing that this explanation could use.
    """
    classifier = classifier or _default_classifier()
    classifier.require_finding(finding)
    chosen_map = _chosen_map(classifier, explain)
    chosen = _engine_of(classifier, engine) if isinstance(engine, str) else engine
    lungs_engine = engine if isinstance(engine, str) else engine.name.split()[0]
    with local_copy(path) as place:
        ready = ReadyScan.of(
            place,
            classifier,
            reading=reading,
            lungs_engine=lungs_engine,
            explains=chosen_map is not None,
            watcher=watcher,
        )
        return ready.answered(
            classifier, engine=chosen, explain=explain, finding=finding, watcher=watcher
        )


@dataclass(frozen=True, eq=False)
class ReadyScan:
    """A scan that was read and prepared; what is left to do is the network's.

    Attributes:
        path: Where it lies.
        volume: The scan as read.
        prepared: What the network will see.
        read_s: What reading took.
        prepare_s: What preparing took.
    """

    path: Path
    volume: Volume
    prepared: PreparedScan
    read_s: float
    prepare_s: float

    @classmethod
    def of(
        cls,
        path: str | Path,
        classifier: Classifier,
        *,
        reading: ReadOptions | None = None,
        lungs_engine: str = "auto",
        explains: bool = False,
        watcher: Watcher | None = None,
    ) -> ReadyScan:
        """Read and prepare a scan: what can be done to the next one while the network runs.

        `lungs_engine` names what finds the lungs. A heat-map takes more memory, so `explains` says
        whether there will be one. Otherwise as `analyse_scan`.

        Raises:
            ChestCTError: The scan is not as it should be, or takes more memory than is free.
        """
        reading = reading or ReadOptions()
        started = perf_counter()
        volume = reading.read(path)
        lungs = reading.lungs_of(volume)
        was_read = perf_counter()
        if watcher is not None:
            watcher.was_read(volume, Path(path))
        was_watched = perf_counter()
        _require_room(volume, explains=explains)
        prepared = prepare(volume, classifier.recipe, lungs=lungs, engine=lungs_engine)
        prepare_s = perf_counter() - was_watched
        return cls(Path(path), volume, prepared, was_read - started, prepare_s)

    def answered(
        self,
        classifier: Classifier,
        *,
        engine: Engine,
        explain: str | None = None,
        finding: str | None = None,
        watcher: Watcher | None = None,
    ) -> ScanAnalysis:
        """Classify the scan, which was prepared for this classifier; see `analyse_scan`.

        Raises:
            ChestCTError: The network cannot be run, or has nothing that this explanation could use.
        """
        started = perf_counter()
        is_suitable = not self.prepared.unsuitable_reasons
        answer = classifier.answer_of(self.prepared, engine) if is_suitable else Answer({})
        network_s = perf_counter() - started if is_suitable else 0.0
        result = _result_of(self, classifier, answer, network_s=network_s, engine_name=engine.name)
        analysis = ScanAnalysis(result, self.volume, self.prepared, path=self.path)
        chosen_map = _chosen_map(classifier, explain)
        if chosen_map is None or not is_suitable:
            return analysis
        label = finding or _told_best(result)
        return _explained(classifier, analysis, (*chosen_map, label), watcher)


def _result_of(
    ready: ReadyScan,
    classifier: Classifier,
    answer: Answer,
    *,
    network_s: float,
    engine_name: str,
) -> ScanResult:
    """All that is said of a scan, its network's answer and the doubts about it among it."""
    volume, prepared, probabilities = ready.volume, ready.prepared, answer.probabilities
    unlike = _unlikeness_of(classifier.card, answer)
    doubts = (*unlike, *_doubts_of(classifier.card, probabilities))
    findings = _findings_of(classifier.card, probabilities, is_unlike=bool(unlike))
    return ScanResult(
        scan=scan_name(ready.path),
        probabilities=probabilities,
        decision=_decision(probabilities, findings),
        unsuitable_reasons=prepared.unsuitable_reasons,
        warnings=(*doubts, *volume.warnings, *prepared.warnings),
        lung_volume_l=float(prepared.lung_volume_l),
        scan_facts=_describe_scan(volume),
        timings_s=Timings(
            read=ready.read_s,
            prepare=ready.prepare_s,
            network=network_s,
            total=ready.read_s + ready.prepare_s + network_s,
        ),
        provenance=_describe_provenance(volume, prepared, classifier, engine_name),
        notice=classifier.card.notice,
        is_uncertain=bool(doubts),
        is_unlike=bool(unlike),
        distance=answer.distance,
        distance_percentile=answer.percentile,
        labels=classifier.card.label_set,
        findings=findings,
    )


def _findings_of(
    card: Card, probabilities: Mapping[str, float], *, is_unlike: bool
) -> dict[str, FindingAnswer]:
    """What is said of each finding; nothing by a classifier of classes."""
    thresholds = card.thresholds
    return {
        name: FindingAnswer(share, thresholds[name], share >= thresholds[name], is_unlike)
        for name, share in probabilities.items()
        if name in thresholds
    }


def _decision(probabilities: Mapping[str, float], findings: Mapping[str, FindingAnswer]) -> str:
    """The most probable class, or the findings that are present."""
    if findings:
        present = [name for name, each in findings.items() if each.is_present]
        return FINDINGS_APART.join(present) or NO_FINDING
    return max(probabilities, key=probabilities.__getitem__, default=UNSUITABLE)


def _told_best(result: ScanResult) -> str:
    """The class that was decided on, or the finding that is furthest above its threshold."""
    above = {name: each.probability - each.threshold for name, each in result.findings.items()}
    return max(above, key=above.__getitem__, default=result.decision)


def _chosen_map(classifier: Classifier, explain: str | None) -> tuple[str, str | None] | None:
    """Method and layer of an explanation, where one is wanted."""
    choice = classifier.card.explanation if explain == AUTO else explain
    return None if choice is None else split_choice(choice)


def _explained(
    classifier: Classifier,
    analysis: ScanAnalysis,
    choice: tuple[str, str | None, str],
    watcher: Watcher | None,
) -> ScanAnalysis:
    """The same with an explanation, by a method, at a layer and for a class or finding."""
    from chestct.explain.explanation import outside_warning
    from chestct.explain.run import explain_scan

    method, layer, label = choice
    explanation = explain_scan(
        classifier,
        analysis.prepared,
        analysis.volume,
        method=method,
        label=label,
        layer=layer,
        listener=None if watcher is None else watcher.explaining,
    )
    doubts = outside_warning(explanation.explanation, analysis.prepared)
    result = replace(analysis.result, warnings=(*analysis.result.warnings, *doubts))
    return replace(analysis, result=result, explanation=explanation)


def _require_room(volume: Volume, *, explains: bool) -> None:
    """Refuse a scan that would take more memory than is free, before it takes it."""
    size = " x ".join(map(str, volume.grid.shape))
    remedy = ", leave out --explain" if explains else ""
    needed_bytes = needed_memory(volume, explains=explains)
    require_memory(needed_bytes, f"Classifying {size} voxels", remedy=remedy)


def needed_memory(volume: Volume, *, explains: bool) -> float:
    """Bytes that a scan takes at most beyond its own voxels, from when it was read.

    `explains` stands for a heat-map and all outputs.
    """
    in_any_case, share = _TAKEN_WITH_HEAT if explains else _TAKEN
    needed = in_any_case + share * 2 * volume.grid.num_voxels
    if degrees_off(volume.grid) > MAX_DEGREES:
        share = _OBLIQUE_WITH_HEAT if explains else _OBLIQUE
        needed += share * 2 * body_grid(volume.grid).num_voxels
    return needed


@cache
def _default_classifier() -> Classifier:
    return load_classifier()


# One engine holds a whole network; two allow a comparison without compiling again and again.
@lru_cache(maxsize=2)
def _engine_of(classifier: Classifier, name: str) -> Engine:
    return make_engine(classifier, name)


def _doubts_of(card: Card, probabilities: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence where the largest probability is below the card's threshold, else nothing.

    The threshold was chosen on the very scans whose share and errors the sentence tells: validation
    scans of a training, for a wished error rate; for the shipped classifier, simulated chests and
    variants of left-out ones, above all wrong answers among them (docs/default_classifier.md).
    """
    promised, largest = card.abstention, max(probabilities.values(), default=1.0)
    if promised is None or largest >= promised.abstain_below:
        return ()
    return (
        f"Uncertain: the largest probability is {largest:.3f}. Below "
        f"{promised.abstain_below:.3f} this classifier had better not decide: of the "
        f"{promised.num_scans} scans that this threshold was chosen on, "
        f"{promised.coverage * 100:.0f} % lie above it, {promised.risk * 100:.1f} % of them wrong.",
    )


def _unlikeness_of(card: Card, answer: Answer) -> tuple[str, ...]:
    """A sentence where a scan lies beyond the card's distance, else nothing.

    The threshold is a rank among the scans that the sentence counts: validation scans of a
    training; for the shipped classifier, simulated chests and variants of left-out ones.
    """
    known = card.familiarity
    if known is None or answer.distance is None or answer.distance <= known.threshold:
        return ()
    return (
        f"{UNLIKE.capitalize()}. Its distance from them is {answer.distance:.2f}; "
        f"{known.kept_share * 100:g} % of {known.num_scans} scans that were not learned from lie "
        f"within {known.threshold:.2f}.",
    )


def scan_name(path: str | Path) -> str:
    """What a scan is called everywhere: the last part of its path, as text that can be written.

    Where that part is missing or "..", it is the name of the folder that is meant.
    """
    place = Path(shown(path))
    name = place.name
    if name in ("", ".."):
        name = ""
        # A working folder that is gone and links in a circle lead nowhere.
        with suppress(OSError, RuntimeError):
            name = place.resolve().name
    return readable(name) or "scan"


def scan_names(paths: Sequence[str | Path]) -> list[str]:
    """As `scan_name`, each another one: of folders of one name, those above are named as well.

    The names depend on what the scans are called and not on their order; only the same path twice
    is numbered.
    """
    names = [scan_name(path) for path in paths]
    places = [Path(shown(path)).absolute() for path in paths]
    for level in range(max((len(place.parents) for place in places), default=0)):
        # Equal names of different places; the same place cannot be told apart by any name.
        num_places = Counter(name for name, _ in set(zip(names, places, strict=True)))
        if max(num_places.values(), default=1) == 1:
            break
        for index, (name, place) in enumerate(zip(names, places, strict=True)):
            if num_places[name] > 1 and level < len(place.parents) - 1:
                names[index] = f"{readable(place.parents[level].name)}-{name}"
    return names


def readable(path: str | Path) -> str:
    """A path as text on one line: what no output can hold or show becomes "�"."""
    return printable(os.fsencode(path).decode("utf-8", "replace"))


def _describe_scan(volume: Volume) -> dict[str, str]:
    """The facts about a scan that may be shown: those named in `SCAN_FACTS`, and no other."""
    grid, source = volume.grid, volume.source
    known = {
        **source.facts,
        "format": source.format,
        "size_voxels": " × ".join(str(size) for size in grid.shape),
        "spacing_mm": " × ".join(f"{spacing:.3g}" for spacing in grid.spacing_mm),
        "extent_mm": " × ".join(f"{extent:.0f}" for extent in grid.extent_mm),
        "unit": _UNITS[volume.unit],
    }
    if source.left_out:
        known["left_out"] = ", ".join(f"{n} {what}" for what, n in source.left_out.items())
    return {name: known[name] for name in SCAN_FACTS if known.get(name)}


def _describe_provenance(
    volume: Volume, prepared: PreparedScan, classifier: Classifier, engine_name: str
) -> Provenance:
    """What has to be known to make the same result again."""
    return Provenance(
        pixel_sha256=hash_voxels(volume),
        series_uid=volume.source.series_uid,
        classifier=classifier.card.name,
        classifier_version=classifier.card.version,
        weights_sha256=classifier.weights_sha256,
        trained_on=classifier.card.trained_on,
        recipe=prepared.recipe.name,
        engine=engine_name,
        chestct_version=__version__,
        temperature=classifier.card.temperature,
        lungs_are_given=prepared.lungs_are_given,
        lungs_weights_sha256=prepared.lungs_weights_sha256,
        lungs_engine=prepared.lungs_engine,
    )

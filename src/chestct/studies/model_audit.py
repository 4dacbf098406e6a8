"""Sanity checks of a classifier: what do its answers rest on, and what do they survive?

Every scan is asked again with parts blanked, with harmless changes, and its heat-map is compared
with those of networks whose weights were drawn anew. What that means is said in words; see
`model_audit_findings` for the rules.

Heat-maps: the test of Adebayo et al. (2018). A map that looks the same when the network's weights
are drawn anew shows the scan and not the network. Parts are drawn anew from the network's end to
its start, so that one sees from where on the map changes, and then the whole network several times,
as one draw may be like it by chance.

Kernels and matrices are drawn from a normal distribution of the trained ones' root mean square;
of biases and of what a normalisation keeps, the entries are shuffled, which leaves activations at
a scale that the network can work with. Maps are compared inside the lungs, as gates and
backgrounds make all maps alike outside.

Painting is done on the prepared input and not on the scan: a scan whose lungs are filled has none
to be found, and would come back as unsuitable, or cropped elsewhere. So the network is asked the
same question, on the same grid and with the same gates, about other content.

What the paint is worth: where a recipe has a fixed scale of Hounsfield units it stands for healthy
lung, soft tissue and air in these units; other recipes scale each scan by itself, so healthy lung
is the lower quartile of the input inside the lungs, soft tissue its 99th percentile (vessels), and
air the lowest value. Lungs are painted twice, as no paint is neutral: an answer that stands both
when they are healthy and when they are solid does not rest on them.

Harmless changes are made to the scan itself, before its lungs are found, as the preparation is part
of what answers; only the exchange of left and right is made to what was prepared. None is drawn
from a real scanner: a kernel is a filter here, and thick slices are means of thin ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from chestct.arrays import Heat, Mask
from chestct.classifier import Classifier
from chestct.engines import Engine
from chestct.errors import ClassifierError, ExplanationError, ReadError
from chestct.explain.explanation import INVOLVED_FROM, Explanation
from chestct.explain.run import explain
from chestct.labels import UNSUITABLE
from chestct.pipeline import scan_name
from chestct.preprocess.oblique import on_body
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.resample import bounding_box, grown, mask_on_grid
from chestct.readers import ReadOptions
from chestct.readers.masks import read_mask, same_place
from chestct.remote import local_copy
from chestct.studies import model_audit_findings as findings
from chestct.studies.model_audit_findings import (
    MapTest,
    ModelAudit,
    Probe,
    ScanAudit,
    WeightStage,
    judge_scan_audit,
)
from chestct.volume import AIR_HU, Grid, Unit, Volume, to_canonical

_NUM_DRAWS: Final = 5
"""Maps of random networks that a map is compared with."""
_MOST_DRAWS: Final = 12
"""Random networks asked for them; about half give an empty map."""
_WHOLE: Final = "whole network"
_OWN_PARAMETERS: Final = "parameters of its own"
_WINDOW: Final = 7
"""Voxels along each axis that structural similarity looks at together."""
_STABILISERS: Final = (0.01**2, 0.03**2)


@dataclass(frozen=True, eq=False)
class _WithNetwork(Classifier):
    """A classifier whose network is another one than that in its folder."""

    given: nn.Module

    def load_network(self) -> nn.Module:
        """The network that was given, as it is."""
        return self.given


def with_network(classifier: Classifier, network: nn.Module) -> _WithNetwork:
    """The classifier with another network in the place of its own."""
    own = {field.name: getattr(classifier, field.name) for field in fields(Classifier)}
    return _WithNetwork(**own, given=network)


def _compare_weights(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, rng: np.random.Generator
) -> MapTest:
    """Compare a classifier's map with maps made with other weights."""
    if not found.has_evidence:
        return MapTest(found.method, found.label, has_evidence=False)
    cascade = tuple(_cascade(classifier, prepared, found, _generator(rng)))
    whole: list[WeightStage] = []
    for _ in range(_MOST_DRAWS):
        network = copy.deepcopy(classifier.network)
        generator = _generator(rng)
        for part in _parts_of(network).values():
            _redraw(part, generator)
        whole.append(_compared(_WHOLE, with_network(classifier, network), prepared, found))
        if sum(stage.spearman is not None for stage in whole) == _NUM_DRAWS:
            break
    return MapTest(found.method, found.label, True, cascade, tuple(whole))


def _parts_of(network: nn.Module) -> dict[str, list[Tensor]]:
    """What each part of a network has learned, by name, in the order in which they were made."""
    parts = {name: [*part.parameters(), *part.buffers()] for name, part in network.named_children()}
    own = [*network.parameters(recurse=False), *network.buffers(recurse=False)]
    return {name: learned for name, learned in {_OWN_PARAMETERS: own, **parts}.items() if learned}


def _redraw(learned: list[Tensor], generator: torch.Generator) -> None:
    """Draw tensors anew, in place; counts, which are whole numbers, stay."""
    with torch.no_grad():
        for tensor in (each for each in learned if each.is_floating_point()):
            if tensor.ndim > 1:
                scale = tensor.square().mean().sqrt()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            elif tensor.numel() > 1:
                tensor.copy_(tensor[torch.randperm(tensor.numel(), generator=generator)])


def _spearman(first: Heat, second: Heat, where: Mask) -> float:
    """Rank correlation of two maps inside a mask; 0 where one of them is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(heat[where]) for heat in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _structural_similarity(first: Heat, second: Heat, where: Mask) -> float:
    """Mean structural similarity (Wang et al. 2004) of two maps from 0 to 1, inside a mask."""
    from scipy.ndimage import uniform_filter

    def smoothed(values: Heat) -> Heat:
        """Mean over a window round each voxel."""
        return np.asarray(uniform_filter(values, _WINDOW), dtype=np.float32)

    one, other = smoothed(first), smoothed(second)
    spread_one, spread_other = smoothed(first**2) - one**2, smoothed(second**2) - other**2
    together = smoothed(first * second) - one * other
    low, high = _STABILISERS
    likeness = (2 * one * other + low) * (2 * together + high)
    likeness /= (one**2 + other**2 + low) * (spread_one + spread_other + high)
    return float(likeness[where].mean(dtype=np.float64))


def _cascade(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, generator: torch.Generator
) -> Iterator[WeightStage]:
    network = copy.deepcopy(classifier.network)
    changed = with_network(classifier, network)
    for name, part in reversed(_parts_of(network).items()):
        _redraw(part, generator)
        yield _compared(name, changed, prepared, found)


def _compared(
    name: str, changed: Classifier, prepared: PreparedScan, found: Explanation
) -> WeightStage:
    other = explain(changed, prepared, method=found.method, label=found.label)
    if not other.has_evidence:
        return WeightStage(name, None, None)
    return WeightStage(
        name,
        _spearman(found.heat, other.heat, prepared.lungs),
        _structural_similarity(found.heat, other.heat, prepared.lungs),
    )


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


_SIMULATION_SEED = 21
_ROWS = 192
_SLICE_SPACING_MM = 2.5


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan to be asked about.

    Attributes:
        name: What it is called.
        volume: The scan.
        lesions: Where its disease is, on the same grid, where that is known.
        lesion_source: How that is known: a word of `model_audit_findings`, or empty.
        truth: Its class, or empty.
    """

    name: str
    volume: Volume
    lesions: Volume | None = None
    lesion_source: str = ""
    truth: str = ""


@dataclass(frozen=True, eq=False)
class Auditor:
    """Who asks.

    Attributes:
        classifier: Who is asked.
        engine: Its network, made ready; maps are always made with PyTorch.
        method: How maps are made, a name in `EXPLANATIONS`.
        seed: Of noise and new weights.
        listener: Told what is being done.
        finding: Which of a classifier's findings is asked about; None of classes.
    """

    classifier: Classifier
    engine: Engine
    method: str = "gradcam"
    seed: int = 1
    listener: Callable[[str], object] = lambda _what: None
    finding: str | None = None

    def answer(self, prepared: PreparedScan) -> tuple[dict[str, float], str]:
        """The probabilities of a scan and the decision; of a finding whether it is there."""
        shares = self.classifier.probabilities(prepared, self.engine)
        if self.finding is None:
            return shares, max(shares, key=shares.__getitem__)
        share, absent = shares[self.finding], f"no {self.finding}"
        is_present = share >= self.classifier.card.thresholds[self.finding]
        return {self.finding: share, absent: 1 - share}, self.finding if is_present else absent

    @property
    def assumption(self) -> str:
        """What is taken for granted of the classifier's classes, or is asked of its findings."""
        card = self.classifier.card
        if self.finding is None:
            return card.label_set.assumption
        threshold = card.thresholds[self.finding]
        return f"Asked about one finding: {self.finding}, present from {threshold:.3f} on."


def audit_model(auditor: Auditor, scans: Iterable[ScanAudit]) -> ModelAudit:
    """The audit of a classifier that was asked about scans.

    Args:
        auditor: Who asked.
        scans: Scan by scan, as `audit_scan` gives them; each is asked for when it is its turn.

    Raises:
        ChestCTError: The classifier tells findings and none of them was named, or a scan cannot be
            asked about.
    """
    card = auditor.classifier.card
    require_finding(auditor.classifier, auditor.finding)
    return ModelAudit(
        classifier=card.name,
        version=card.version,
        weights_sha256=auditor.classifier.weights_sha256,
        recipe=auditor.classifier.recipe.name,
        trained_on=card.trained_on,
        notice=card.notice,
        scans=tuple(scans),
        assumption=auditor.assumption,
    )


def require_finding(classifier: Classifier, finding: str | None) -> None:
    """Refuse an audit of findings that names none, or none of them.

    Raises:
        ClassifierError: It names none, or the classifier tells classes.
        UnknownNameError: There is no such finding.
    """
    if classifier.are_findings and finding is None:
        msg = f"'{classifier.card.name}' tells several findings, and an audit asks about one."
        raise ClassifierError(f"{msg} Name it with --finding: {', '.join(classifier.labels)}.")
    classifier.require_finding(finding)


def audit_scan(auditor: Auditor, subject: Subject) -> ScanAudit:
    """Ask a classifier everything about one scan.

    Raises:
        ChestCTError: The scan, its lesions, the engine or the method is not as it should be.
    """
    auditor.listener(f"{subject.name}: reading")
    prepared = prepare(subject.volume, auditor.classifier.recipe)
    if prepared.unsuitable_reasons:
        audit = ScanAudit(subject.name, subject.truth, UNSUITABLE, {})
        return replace(audit, findings=judge_scan_audit(audit))
    shares, decision = auditor.answer(prepared)
    of_class = auditor.classifier.card.label_set.is_finding(decision)
    is_finding = of_class if auditor.finding is None else decision == auditor.finding
    before = ScanAudit(subject.name, subject.truth, decision, shares, is_finding=is_finding)
    found = _map_of(auditor, prepared, auditor.finding or decision)
    lesion, source = _lesion(subject, prepared, found)
    # Noise must not depend on how many networks were drawn before.
    weights_rng, noise_rng = np.random.default_rng(auditor.seed).spawn(2)
    map_test = None
    if found is not None:
        auditor.listener(f"{subject.name}: drawing weights")
        map_test = _compare_weights(auditor.classifier, prepared, found, weights_rng)
    audit = replace(
        before,
        lesion_source=source,
        lesion_share=None if lesion is None else float(lesion[prepared.lungs].mean()),
        probes=(
            *_blanked(auditor, subject, before, (prepared, lesion)),
            *_changed(auditor, subject, before, noise_rng),
            _asked(
                auditor,
                _mirrored(prepared),
                before,
                (findings.STABILITY, findings.MIRROR, findings.MIRROR_WORDS),
            ),
        ),
        map_test=map_test,
    )
    return replace(audit, findings=judge_scan_audit(audit))


def require_one_of(scans: Sequence[Path], lesions: Path | None) -> None:
    """Refuse a mask of lesions for several scans.

    Raises:
        ReadError: It was given for several, or for none.
    """
    if lesions is not None and len(scans) != 1:
        msg = f"A mask of lesions belongs to one scan and {len(scans)} were given: name only that."
        raise ReadError(msg)


def read_subjects(
    scans: Iterable[Path], lesions: Path | None = None, reading: ReadOptions | None = None
) -> Iterator[Subject]:
    """Scans from disk, each read when it is its turn.

    Args:
        scans: Their paths or addresses.
        lesions: A mask of the only scan's lesions.
        reading: How to read scans; None reads them as they are.

    Raises:
        ReadError: Lesions were given for several scans, or a file cannot be read.
    """
    paths = list(scans)
    require_one_of(paths, lesions)
    options = reading or ReadOptions()
    for path in paths:
        volume = options.read(path)
        if lesions is None:
            yield Subject(scan_name(path), volume)
        else:
            with local_copy(lesions) as copy:
                mask = read_mask(copy)
            yield Subject(scan_name(path), volume, mask, findings.GIVEN_LESIONS)


def simulated_subjects(numbers: Iterable[int], labels: Collection[str]) -> Iterator[Subject]:
    """Simulated patients with known lesions, the classes in turn, each made when it is its turn.

    Args:
        numbers: Which ones, from 0 on.
        labels: The classifier's classes; what was simulated is told where it is one of them.
    """
    from chestct.simulate import ThoraxSettings, simulate_patient
    from chestct.simulate.lesions import PATTERNS

    settings = ThoraxSettings(rows=_ROWS, slice_spacing_mm=_SLICE_SPACING_MM)
    patterns = tuple(PATTERNS)
    for number in numbers:
        label = patterns[number % len(patterns)]
        rng = np.random.default_rng([_SIMULATION_SEED, number])
        patient = simulate_patient(rng, settings, pattern=label)
        lesions = patient.volume.with_voxels(patient.lesions)
        name, truth = f"simulated-{number + 1}", label if label in labels else ""
        name = f"{name}-{truth.lower()}" if truth else name
        yield Subject(name, patient.volume, lesions, findings.TRUE_LESIONS, truth)


def _mask_at_input(mask: Volume, prepared: PreparedScan) -> Mask:
    """A mask of the scan at the size of the network's input: true where at least half is covered.

    Args:
        mask: Truth values on the scan's voxels, in any axis order.
        prepared: The scan.

    Raises:
        ReadError: The mask's grid is not the scan's.
    """
    if not same_place(mask.grid, prepared.scan_grid):
        raise ReadError(
            f"The lesions lie on {mask.grid.shape} voxels and the scan on "
            f"{prepared.scan_grid.shape}, or at another place: draw them on this very scan."
        )
    canonical = on_body(mask)
    grid = canonical.grid
    start = grid.to_index(np.asarray(prepared.grid.origin_mm, dtype=np.float64))
    depth, height, width = (
        new / old for new, old in zip(prepared.grid.spacing_mm, grid.spacing_mm, strict=True)
    )
    voxels = np.ascontiguousarray(canonical.voxels, dtype=np.bool_)
    where = (float(start[0]), float(start[1]), float(start[2]))
    return mask_on_grid(
        voxels, bounding_box(voxels), (where, (depth, height, width), prepared.grid.shape)
    )


def _map_of(auditor: Auditor, prepared: PreparedScan, label: str) -> Explanation | None:
    """A label's map; None for a network of which none can be made."""
    try:
        return explain(auditor.classifier, prepared, method=auditor.method, label=label)
    except ExplanationError:
        return None


def _lesion(
    subject: Subject, prepared: PreparedScan, found: Explanation | None
) -> tuple[Mask | None, str]:
    """What counts as the lesion at the input's size, and how it is known."""
    if subject.lesions is not None:
        known = _mask_at_input(subject.lesions, prepared)
        return (known, subject.lesion_source) if known.any() else (None, "")
    if found is None or not found.has_evidence:
        return None, ""
    hot = (found.heat >= INVOLVED_FROM) & prepared.lungs
    return (hot, findings.HEAT_MAP) if hot.any() else (None, "")


def _blanked(
    auditor: Auditor,
    subject: Subject,
    before: ScanAudit,
    seen: tuple[PreparedScan, Mask | None],
) -> Iterator[Probe]:
    prepared, lesion = seen
    paint = _find_paint(prepared, subject.volume.unit)
    for name, painted in _painted_scans(prepared, lesion, paint):
        auditor.listener(f"{subject.name}: {findings.WORDS[name]}")
        yield _asked(auditor, painted, before, (findings.BLANKING, name, findings.WORDS[name]))


def _changed(
    auditor: Auditor, subject: Subject, before: ScanAudit, rng: np.random.Generator
) -> Iterator[Probe]:
    for name, change in CHANGES.items():
        auditor.listener(f"{subject.name}: {change.words}")
        changed = _changed_scan(subject.volume, change, rng)
        prepared = prepare(changed, auditor.classifier.recipe)
        yield _asked(auditor, prepared, before, (findings.STABILITY, name, change.words))


def _asked(
    auditor: Auditor, prepared: PreparedScan, before: ScanAudit, what: tuple[str, str, str]
) -> Probe:
    """Ask about a changed scan; `what` is the group, name and words of the change."""
    if prepared.unsuitable_reasons:
        return Probe(*what, {}, UNSUITABLE, None, None, is_same=False)
    shares, decision = auditor.answer(prepared)
    share = shares[before.decision]
    change = share - before.share
    return Probe(*what, shares, decision, share, change, is_same=decision == before.decision)


_HEALTHY_HU: Final = -850.0
_TISSUE_HU: Final = 40.0
_MARGIN_MM: Final = 3.0
"""Rim around the lungs that counts as lung: half of a border voxel's content is lung's."""
_DENSE_ML: Final = 30.0
"""Vessels that hang together are smaller; a stomach taken for lung had 80 ml and more."""
_FIXED_SCALES: Final = ("window", "window_8bit")
_HEALTHY_PERCENT: Final = 25
_TISSUE_PERCENT: Final = 99


@dataclass(frozen=True)
class _Paint:
    """Values of the network's input that stand for healthy lung, soft tissue and air."""

    healthy: float
    tissue: float
    air: float


def _find_paint(prepared: PreparedScan, unit: Unit) -> _Paint:
    """What to paint with."""
    recipe = prepared.recipe
    if unit == "HU" and recipe.intensity in _FIXED_SCALES:
        low, high = recipe.window_hu
        healthy, tissue, air = (
            float(np.clip((hu - low) / (high - low), 0.0, 1.0))
            for hu in (_HEALTHY_HU, _TISSUE_HU, AIR_HU)
        )
        return _Paint(healthy, tissue, air)
    inside = prepared.input[0][_lungs_with_rim(prepared)]
    healthy, tissue = np.percentile(inside, [_HEALTHY_PERCENT, _TISSUE_PERCENT]).tolist()
    return _Paint(healthy, tissue, float(prepared.input.min()))


def _lungs_with_rim(prepared: PreparedScan) -> Mask:
    """The lungs at the input's size with their rim."""
    depth, height, width = (_MARGIN_MM / spacing for spacing in prepared.grid.spacing_mm)
    return grown(prepared.lungs, (depth, height, width))


def _painted_scans(
    prepared: PreparedScan, lesion: Mask | None, paint: _Paint
) -> Iterator[tuple[str, PreparedScan]]:
    """Each way to blank a part, by its name in `WORDS`, and the scan with it blanked."""
    lungs = _lungs_with_rim(prepared)
    background = prepared.recipe.background
    if lesion is not None:
        yield findings.LESION, _painted(prepared, lesion, paint.healthy)
    piece = _dense_piece(prepared, paint)
    if piece is not None:
        yield findings.DENSE, _painted(prepared, piece, paint.healthy)
    yield findings.LUNGS_HEALTHY, _painted(prepared, lungs, paint.healthy)
    yield findings.LUNGS_TISSUE, _painted(prepared, lungs, paint.tissue)
    if background is not None:
        yield findings.OUTSIDE_BACKGROUND, _painted(prepared, ~lungs, background)
    else:
        yield findings.OUTSIDE_AIR, _painted(prepared, ~lungs, paint.air)
        yield findings.OUTSIDE_TISSUE, _painted(prepared, ~lungs, paint.tissue)


def _dense_piece(prepared: PreparedScan, paint: _Paint) -> Mask | None:
    """The largest piece as dense as tissue in the lungs' outline, if it is large.

    It can be consolidation, or an organ outside the lungs that was taken for lung.
    """
    from scipy import ndimage

    dense = prepared.lungs & (prepared.input[0] > (paint.healthy + 3 * paint.tissue) / 4)
    pieces, count = ndimage.label(dense)
    if count == 0:
        return None
    largest = pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1
    volume_ml = int(np.count_nonzero(largest)) * prepared.grid.voxel_ml
    return np.asarray(largest) if volume_ml >= _DENSE_ML else None


def _painted(prepared: PreparedScan, where: Mask, value: float) -> PreparedScan:
    changed = prepared.input.copy()
    changed[:, where] = value
    return replace(prepared, input=changed)


_SHIFT_MM: Final = 10.0
_NOISE_HU: Final = 20.0
_NOISE_GREY: Final = 4.0
"""Of exports with values from 0 to 255."""
_KERNEL_MM: Final = 0.8
"""Standard deviation of the Gauss that smooths, and that is taken away from a sharper slice."""
_THICK_MM: Final = 5.0


@dataclass(frozen=True)
class _Change:
    """A change in words, and what makes it of a canonical scan and a generator."""

    words: str
    make: Callable[[Volume, np.random.Generator], Volume]


def _changed_scan(volume: Volume, change: _Change, rng: np.random.Generator) -> Volume:
    """A scan with a change; the scan itself stays as it is."""
    return change.make(to_canonical(volume), rng)


def _moved(volume: Volume, _: np.random.Generator, *, axis: int) -> Volume:
    """The patient moved along an axis, the grid staying; what comes into view is air."""
    steps = max(1, round(_SHIFT_MM / volume.grid.spacing_mm[axis]))
    lowest = float(volume.voxels.min())
    outside = AIR_HU if volume.unit == "HU" else lowest
    moved = np.full_like(volume.voxels, outside)
    target: list[slice] = [slice(None)] * 3
    source: list[slice] = [slice(None)] * 3
    target[axis], source[axis] = slice(steps, None), slice(None, -steps)
    moved[tuple(target)] = volume.voxels[tuple(source)]
    return volume.with_voxels(moved)


def _noisier(volume: Volume, rng: np.random.Generator) -> Volume:
    spread = _NOISE_HU if volume.unit == "HU" else _NOISE_GREY
    noise = rng.standard_normal(volume.voxels.shape, dtype=np.float32)
    return _as_stored(volume.voxels + np.float32(spread) * noise, volume)


def _smoother(volume: Volume, _: np.random.Generator) -> Volume:
    return _as_stored(_smoothed(volume), volume)


def _sharper(volume: Volume, _: np.random.Generator) -> Volume:
    values = volume.voxels.astype(np.float32)
    return _as_stored(2 * values - _smoothed(volume), volume)


def _thicker(volume: Volume, _: np.random.Generator) -> Volume:
    """Neighbouring slices become one, at least two; a rest at the top is left out."""
    grid = volume.grid
    num = min(max(2, round(_THICK_MM / grid.spacing_mm[0])), grid.shape[0])
    slabs = grid.shape[0] // num
    groups = volume.voxels[: slabs * num].reshape(slabs, num, *grid.shape[1:])
    means = groups.mean(axis=1, dtype=np.float32)
    new_grid = grid.moved(
        ((num - 1) / 2, 0.0, 0.0), (float(num), 1.0, 1.0), (slabs, grid.shape[1], grid.shape[2])
    )
    return _as_stored(means, volume, new_grid)


def _smoothed(volume: Volume) -> Heat:
    from scipy.ndimage import gaussian_filter

    _, height, width = volume.grid.spacing_mm
    sigma = (0.0, _KERNEL_MM / height, _KERNEL_MM / width)
    return np.asarray(gaussian_filter(volume.voxels, sigma, output=np.float32), dtype=np.float32)


def _as_stored(values: Heat, volume: Volume, grid: Grid | None = None) -> Volume:
    """A scan of values in the type, where of whole numbers in the limits, of the scan's own."""
    kind = volume.voxels.dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return volume.with_voxels(values.astype(kind), grid)


CHANGES: Final[dict[str, _Change]] = {
    "shift-left": _Change(f"patient moved {_SHIFT_MM:g} mm to the left", partial(_moved, axis=2)),
    "shift-back": _Change(f"patient moved {_SHIFT_MM:g} mm to the back", partial(_moved, axis=1)),
    "noise": _Change(f"noise of {_NOISE_HU:g} HU added", _noisier),
    "smooth": _Change(f"smoother kernel (Gauss, {_KERNEL_MM:g} mm)", _smoother),
    "sharp": _Change(f"sharper kernel (unsharp mask, {_KERNEL_MM:g} mm)", _sharper),
    "thick": _Change(f"slices of {_THICK_MM:g} mm or two in one", _thicker),
}
"""Change name to change."""


def _mirrored(prepared: PreparedScan) -> PreparedScan:
    """A prepared scan with left and right exchanged.

    Done after the preparation: that finds the liver on the wrong side, and refuses such a scan.
    """
    return replace(
        prepared,
        input=np.ascontiguousarray(prepared.input[..., ::-1]),
        lungs=np.ascontiguousarray(prepared.lungs[..., ::-1]),
    )

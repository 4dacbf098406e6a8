"""The consistency pass: which slices of a series belong together, told from all their headers.

A series identifier promises one patient, one study, one frame of reference and one pass of the
scanner, and archives break every part of the promise. Slices of other patients, studies or frames
of reference never lie in one stack. Passes (acquisitions, temporal positions, phases, kernels) are
taken apart where they overlap in space; where they follow one another, as in a scan made in
steps, they are one stack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from chestct.readers.dicom_fields import Fields
from chestct.readers.dicom_geometry import SAME_PLACE_MM
from chestct.readers.dicom_slices import Slice

_REFORMAT_WORDS = frozenset(
    {"MPR", "MIP", "MINIP", "REFORMATTED", "PROJECTION IMAGE", "CPR", "VRT"}
)
_MAP_WORDS: Final = (
    *("IODINE", "PERFUSION", "PERF_", "MAP", "MIP", "MINIP", "CBF", "CBV", "MTT", "TTP", "TMAX"),
    *("PBV", "PBF", "BV_", "BF_", "Z_EFF", "ZEFF", "EFF_Z", "EFFECTIVE", "ELECTRON", "RHO"),
    *("WATER", "CALCIUM", "URIC", "FAT_FRACTION", "SUBTRACT", "OVERLAY", "FUSION", "VENTILATION"),
)
"""What stands in the image type or the description of images computed from a CT."""
_HU_TYPES = ("", "HU", "US")
_ONE_NORMAL = 0.9999
_MIN_PASS = 3
_MAX_PASSES = 4


@dataclass(frozen=True, eq=False)
class Group:
    """Slices that belong together.

    Attributes:
        slices: In no particular order.
        told_by: What sets them apart from others of the series, in words.
    """

    slices: tuple[Slice, ...]
    told_by: tuple[str, ...] = ()


def _combined(*names: str) -> Callable[[Fields], str]:
    """The values of elements that say the same in different kinds of files."""
    return lambda fields: "/".join(part for name in names if (part := _value(fields, name)))


def _value(fields: Fields, name: str) -> str:
    """A text, or the digits of a binary number."""
    raw = fields.raw.get(name, b"").strip(b" \0")
    return raw.decode("ascii") if raw.isascii() and raw.decode("ascii").isprintable() else raw.hex()


_NEVER_MIXED: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "patient": lambda fields: fields.hashed("patient_id"),
    "study": _combined("study_uid"),
    "frame of reference": _combined("frame_of_reference"),
    "kind of image": lambda fields: is_map(fields) or is_derived(fields),
}
"""What slices of one stack have in common; where each has its own, a de-identifier made it up."""

_NOT_OVERLAPPING: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "acquisition": _combined("frame_acquisition", "acquisition"),
    "temporal position": _combined("temporal_index", "temporal_position", "temporal_offset"),
    "trigger time": _combined("trigger_time", "trigger_delay"),
    "cardiac phase": _combined("cardiac_phase"),
    "stack": _combined("stack"),
    "tube voltage": _combined("kvp"),
    "kernel": _combined("kernel"),
    "image type": lambda fields: (fields.words("image_type"), fields.words("frame_type")),
}
"""What may change along a stack, but not between slices that lie among each other."""


def is_derived(fields: Fields) -> bool:
    """Whether an image is a reformat or another computation on a series, not just compressed."""
    words = fields.words("image_type")
    is_secondary = words[0] == "DERIVED" and words[1:2] == ("SECONDARY",)
    return is_secondary or bool(_REFORMAT_WORDS.intersection(words))


def is_original(fields: Fields) -> bool:
    """Whether the image type says so, or says nothing."""
    return fields.words("image_type")[0] in ("ORIGINAL", "")


def is_map(fields: Fields) -> bool:
    """Whether values stand for something else than attenuation, such as iodine or perfusion."""
    if fields.text("rescale_type").upper() not in _HU_TYPES:
        return True
    told = (*fields.words("image_type")[2:], *fields.words("frame_type")[2:])
    told = (*told, *fields.words("series_description"))
    words = {part for text in told for part in (text, *re.split("[ _-]+", text))}
    return any(word.startswith(known) for word in words for known in _MAP_WORDS)


def split_groups(slices: Iterable[Slice]) -> list[Group]:
    """Take the slices of a series apart, as far as headers and positions tell.

    Returns:
        One group where all is as it should be. The order does not depend on that of the slices.
    """
    groups = [Group(tuple(slices))]
    for name, value in _NEVER_MIXED.items():
        groups = [part for group in groups for part in _by_value(group, name, value)]
    for name, value in _NOT_OVERLAPPING.items():
        groups = [part for group in groups for part in _by_pass(group, name, value)]
    return [part for group in groups for part in _by_spacing(group)]


def _by_value(group: Group, name: str, value: Callable[[Fields], Hashable]) -> Iterator[Group]:
    """Groups of equal values; the group itself where every slice has a value of its own."""
    found = _valued(group, value)
    if len(found) == 1 or len(found) == len(group.slices) > 2:
        yield group
        return
    for number, slices in enumerate(found.values(), start=1):
        yield Group(tuple(slices), (*group.told_by, f"{name} {number}"))


def _by_pass(group: Group, name: str, value: Callable[[Fields], Hashable]) -> Iterator[Group]:
    """Groups of equal values, where slices of different ones lie among each other."""
    found = _valued(group, value)
    if len(found) == 1 or not _overlap(group, value, len(found)):
        yield group
        return
    for number, (key, slices) in enumerate(found.items(), start=1):
        said = key if isinstance(key, str) and key and len(key) <= 16 else f"number {number}"
        yield Group(tuple(slices), (*group.told_by, f"{name} {said}"))


def _valued(group: Group, value: Callable[[Fields], Hashable]) -> dict[Hashable, list[Slice]]:
    """Slices by the value that they have, in the order of the values."""
    found: dict[Hashable, list[Slice]] = {}
    for one in group.slices:
        found.setdefault(value(one.fields), []).append(one)
    return dict(sorted(found.items(), key=lambda item: repr(item[0])))


def _overlap(group: Group, value: Callable[[Fields], Hashable], num_values: int) -> bool:
    """Whether values come back along the stack, or two slices of different ones share a place."""
    values = (repr(value(one.fields)) for one in group.slices)
    placed = sorted(zip(_along(group.slices).tolist(), values, strict=True))
    runs = 1 + sum(a[1] != b[1] for a, b in pairwise(placed))
    return runs > num_values


def _along(slices: tuple[Slice, ...]) -> np.ndarray:
    """Positions along the mean of normals that only jitter, else each along its own."""
    normals = np.array([one.plane.normal for one in slices])
    mean = normals.mean(axis=0)
    if np.linalg.norm(mean) < _ONE_NORMAL:
        return np.array([one.plane.along_mm for one in slices])
    places = np.array([one.plane.position_mm for one in slices])
    return np.asarray(places @ (mean / np.linalg.norm(mean)))


def _by_spacing(group: Group) -> Iterator[Group]:
    """Groups that are each evenly spaced, where the series as a whole is not."""
    along = _along(group.slices)
    order = np.argsort(along, kind="stable")
    places = _passes(along[order])
    if places is None:
        yield group
        return
    for number in range(int(places.max()) + 1):
        slices = tuple(group.slices[i] for i in order[places == number])
        yield Group(slices, (*group.told_by, f"pass {number + 1}"))


def _passes(along: np.ndarray) -> np.ndarray | None:
    """Which of several evenly spaced stacks each position is of; None where there is only one."""
    steps = np.diff(along)
    if len(along) < 2 * _MIN_PASS or np.ptp(steps) <= 0.1 * np.median(steps):
        return None
    # Where passes overlap, a slice's own successor is not the next slice but one soon after it.
    strides = [np.round(along[num:] - along[:-num], 2) for num in range(1, _MAX_PASSES + 1)]
    counts = Counter(np.concatenate(strides).tolist())
    least = max(_MIN_PASS, len(along) // 5)
    for step in sorted(step for step, count in counts.items() if count >= least):
        found = _phases(along, step) if step > SAME_PLACE_MM else None
        if found is not None:
            return found
    return None


def _phases(along: np.ndarray, step: float) -> np.ndarray | None:
    """Positions by their remainder of a step; None unless each is a whole evenly spaced stack."""
    tolerance = max(0.05 * step, SAME_PLACE_MM)
    phases = (along - along[0]) % step
    phases[phases > step - tolerance] -= step
    centres: list[float] = []
    for phase in np.sort(phases):
        if not centres or phase - centres[-1] > 2 * tolerance:
            centres.append(float(phase))
    if not 2 <= len(centres) <= _MAX_PASSES:
        return None
    number: np.ndarray = np.abs(phases[:, None] - np.array(centres)).argmin(axis=1)
    for index in range(len(centres)):
        own = np.diff(along[number == index])
        if len(own) < _MIN_PASS - 1 or np.abs(own - step).max() > 2 * tolerance:
            return None
    return number


def aligned(slices: Iterable[Slice]) -> list[Slice]:
    """Slices of one kind with one orientation, the mean of theirs.

    Orientations that jitter in the fourth decimal put slices at wrong places along their normals.
    """
    slices = list(slices)
    if len({(one.plane.across, one.plane.down) for one in slices}) == 1:
        return slices
    across = np.mean([one.plane.across for one in slices], axis=0)
    across /= np.linalg.norm(across)
    down = np.mean([one.plane.down for one in slices], axis=0)
    down -= across * (across @ down)
    down /= np.linalg.norm(down)
    rows = (float(across[0]), float(across[1]), float(across[2]))
    columns = (float(down[0]), float(down[1]), float(down[2]))
    return [replace(one, plane=replace(one.plane, across=rows, down=columns)) for one in slices]

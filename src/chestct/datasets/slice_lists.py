"""Make a manifest of slices: from folders of pictures, or from lists of file names.

A row is a picture. Whose slice it is decides where it may stand when the slices are divided, so
the patient is looked for: in the folder the picture lies in, or in its name by a pattern.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from chestct.datasets.manifest import (
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestError,
    ManifestRow,
    class_of,
)
from chestct.datasets.public import class_folders, folders_under
from chestct.datasets.slice_store import PICTURE_ENDINGS
from chestct.datasets.splits import SplitSettings, hold_out
from chestct.labels import COVID19, NORMAL
from chestct.lookup import unknown_name_message

SHARES_PATIENTS: Final = "slice_random_leaky"
"""The paper's split: patients are shared between its parts."""


def _slice_random(manifest: Manifest, settings: SplitSettings) -> Manifest:
    """The paper's split: the slices of each class are shuffled and cut, whoever's they are.

    A split that the manifest has is not looked at.
    """
    by_label: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_label[row.label].append(row)
    sides: dict[int, str] = {}
    for rows in by_label.values():
        shuffled = sorted(rows, key=lambda row: row.scan)
        random.Random(settings.seed).shuffle(shuffled)
        num_test = round(settings.test_share * len(rows))
        num_validation = round(settings.validation_share * len(rows))
        cuts = [TEST] * num_test + [VALIDATION] * num_validation
        for place, row in enumerate(shuffled):
            sides[row.number] = cuts[place] if place < len(cuts) else TRAINING
    return manifest.with_rows(
        replace(row, split=sides[row.number], fold=None) for row in manifest.rows
    )


SLICE_SPLITS: Final[dict[str, Callable[[Manifest, SplitSettings], Manifest]]] = {
    "patient": hold_out,
    SHARES_PATIENTS: _slice_random,
}
"""Split name to a function that fills in `split`, where the table has none of its own."""


_LISTED: Final = 5
_MAX_LIST_BYTES: Final = 2**24
_MOST_NAMED: Final = 5

UNKNOWN_PATIENTS: Final = (
    "Neither folders nor a pattern say whose slices these are: every picture is taken for another "
    "patient, so slices of one patient can stand on two sides of a split and make its result too "
    "good. Give --patient-pattern, or correct the column 'patient'."
)

_COVID_CT_LIST = re.compile(r"(train|val|test)ct_(covid|noncovid)\.txt", re.IGNORECASE)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_COVID_CT_FOLDERS = {"covid": ("CT_COVID", COVID19), "noncovid": ("CT_NonCOVID", NORMAL)}


@dataclass(frozen=True)
class _SliceList:
    """A text file with one picture's name per line.

    Attributes:
        file: The list.
        label: Class of all pictures it names.
        split: Side of the split they stand on, or empty.
        images: Folder of the pictures.
    """

    file: Path
    label: str
    split: str
    images: Path


@dataclass(frozen=True)
class _FoundSlices:
    """Slices of a folder or of lists.

    Attributes:
        manifest: One row per slice.
        notes: What should be known about it.
    """

    manifest: Manifest
    notes: tuple[str, ...]


def scan_slice_folder(folder: Path, *, patient_pattern: str | None = None) -> _FoundSlices:
    """List the pictures of a folder: by COVID-CT's lists where there are some, else by class.

    Class folders are named after their class ("COVID-19", "normal", ...). A picture's patient is
    the folder between it and the class folder, or what the pattern finds in its name.

    Args:
        folder: A data set, unpacked.
        patient_pattern: Regular expression with one group, looked for in each picture's path below
            the class folder; the group is the patient.

    Raises:
        ManifestError: No pictures, no such folder, a wrong pattern, or a list that names pictures
            which are not there.
    """
    place = folder.absolute()
    if not place.is_dir():
        raise ManifestError(f"There is no folder {folder}. Name a folder of slices.")
    lists = _find_covid_ct_lists(place)
    if lists:
        return read_lists(lists, place, patient_pattern=patient_pattern)
    classes = class_folders(place)
    rows = [
        ManifestRow(str(picture), _patient(picture, inside, label, patient_pattern), label)
        for inside, label in classes
        for picture in _pictures_under(inside)
    ]
    if not rows:
        msg = (
            f"{place} holds no pictures ({', '.join(PICTURE_ENDINGS)}) in folders named after a "
            "class. Put them into one folder per class, named COVID-19, CAP and normal, name lists "
            "with --list, or write the table yourself (columns scan, patient, label)."
        )
        raise ManifestError(msg)
    found = _finished(rows, place)
    return replace(found, notes=(*found.notes, *_left_out(place, [each for each, _ in classes])))


def _left_out(place: Path, classes: Sequence[Path]) -> tuple[str, ...]:
    """Which folders of pictures were not taken, because their names are no class."""
    names = []
    for each in folders_under(place, 3):
        is_class = any(inside == each or inside in each.parents for inside in classes)
        if not is_class and any(file.suffix.lower() in PICTURE_ENDINGS for file in each.iterdir()):
            names.append(each.relative_to(place).as_posix())
    if not names:
        return ()
    listed = ", ".join(names[:_LISTED]) + (" and others" if len(names) > _LISTED else "")
    return (
        f"Pictures in folders that are not named after a class were left out: {listed}. Name a "
        "folder COVID-19, CAP or normal to have it taken.",
    )


def _find_covid_ct_lists(folder: Path) -> list[_SliceList]:
    """COVID-CT's own split: lists such as `trainCT_COVID.txt`, pictures in `CT_COVID`."""
    places = [folder, *folders_under(folder, 4)]
    images = {place.name.lower(): place for place in reversed(places)}
    found = []
    for place in places:
        for file in sorted(place.glob("*.txt")):
            name = _COVID_CT_LIST.fullmatch(file.name)
            # A later revision of the data set keeps its first split beside the second.
            if name is None or place.name.lower().startswith("old"):
                continue
            folder_name, label = _COVID_CT_FOLDERS[name[2].lower()]
            where = images.get(folder_name.lower(), folder / folder_name)
            found.append(_SliceList(file, label, _SPLITS[name[1].lower()], where))
    return found


def parse_list(text: str, images: Path) -> _SliceList:
    """A list as the command line names it: LABEL=FILE, or SPLIT:LABEL=FILE.

    Raises:
        ManifestError: It is neither.
    """
    what, equals, file = text.partition("=")
    split, colon, label = what.rpartition(":")
    if not equals or not file or not label or (colon and split not in _SPLITS.values()):
        hint = unknown_name_message(split, _SPLITS.values(), kind="split") if colon else ""
        msg = f"'{text}' names no list. Write LABEL=FILE or SPLIT:LABEL=FILE, such as "
        raise ManifestError(f"{msg}test:COVID-19=testCT_COVID.txt. {hint}".rstrip())
    return _SliceList(Path(file), class_of(label) or label, split, images)


def read_lists(
    lists: Sequence[_SliceList], folder: Path, *, patient_pattern: str | None = None
) -> _FoundSlices:
    """The slices that lists name.

    Raises:
        ManifestError: A list cannot be read, is empty, or names pictures that are not there; the
            message names list and pictures.
    """
    rows = [
        ManifestRow(
            str(picture),
            _patient(picture, each.images, each.label, patient_pattern),
            each.label,
            split=each.split,
        )
        for each in lists
        for picture in _listed(each)
    ]
    found = _finished(rows, folder)
    if any(each.label == NORMAL and "non" in each.file.name.lower() for each in lists):
        note = (
            "Pictures listed as not COVID-19 are taken for normal; some show other findings. "
            "Change the column 'label' where that matters."
        )
        return _FoundSlices(found.manifest, (*found.notes, note))
    return found


def _listed(each: _SliceList) -> list[Path]:
    names = _names_in(each.file)
    places = [each.images / name for name in names]
    missing = [n for n, place in zip(names, places, strict=True) if not place.is_file()]
    if missing:
        listed = "".join(f"\n  {name}" for name in missing[:_MOST_NAMED])
        more = len(missing) - _MOST_NAMED
        msg = (
            f"{each.file.name} names {len(missing)} of {len(names)} pictures that are not in "
            f"{each.images}:{listed}{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
            "  Unpack the pictures there, name their folder with --images, or take the lines out."
        )
        raise ManifestError(msg)
    return places


def _names_in(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _MAX_LIST_BYTES:
            raise ManifestError(f"{file.name} is larger than {_MAX_LIST_BYTES} bytes: not a list.")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        msg = f"The list {file} cannot be read: {reason}. Expected one file name per line."
        raise ManifestError(msg) from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise ManifestError(f"{file.name} names no pictures. Expected one file name per line.")
    outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in Path(n).parts]
    if outside:
        msg = f"{file.name} names '{outside[0]}', which lies outside the pictures' folder."
        raise ManifestError(f"{msg} Name pictures relative to it.")
    return names


def _patient(picture: Path, inside: Path, label: str, pattern: str | None) -> str:
    """Whose slice a picture is; of one class, as folders are numbered anew in each."""
    relative = picture.relative_to(inside)
    if pattern is not None:
        return f"{label} {_matched(pattern, relative)}"
    folders = relative.parts[:-1]
    return f"{label} {'/'.join(folders) if folders else relative.name}"


def _matched(pattern: str, relative: Path) -> str:
    try:
        match = re.search(pattern, relative.as_posix())
    except re.error as error:
        raise ManifestError(f"The patient pattern '{pattern}' is wrong: {error}.") from error
    if match is None or not match.groups() or not match[1]:
        msg = f"The patient pattern '{pattern}' finds no patient in '{relative.as_posix()}'."
        raise ManifestError(f"{msg} Write one with a group, such as '(p[0-9]+)-'.")
    return match[1]


def _finished(rows: Sequence[ManifestRow], folder: Path) -> _FoundSlices:
    labels = tuple(sorted({row.label for row in rows}, key=str.lower))
    manifest = Manifest(tuple(rows), labels, folder=folder, name=folder.name)
    is_known = manifest.num_patients < len(manifest)
    return _FoundSlices(manifest, () if is_known else (UNKNOWN_PATIENTS,))


def _pictures_under(folder: Path) -> Iterator[Path]:
    for place in (folder, *folders_under(folder, 3)):
        files = sorted(each for each in place.iterdir() if each.is_file())
        yield from (
            each
            for each in files
            if each.suffix.lower() in PICTURE_ENDINGS and not each.name.startswith(".")
        )

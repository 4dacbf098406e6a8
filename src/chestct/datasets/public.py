"""Make a manifest from a folder of scans or slices, as public data sets lay them out, or of lists.

What is assumed of each layout stands in its function; `docs/datasets.md` lists them. A manifest of
slices has a picture in every row. _Whose slice it is decides where it may stand when the slices are
divided, so the patient is looked for: in the folder the picture lies in, or in its name by a
pattern.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, TypeVar

from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    parse_age,
    parse_sex,
    read_lines,
)
from chestct.errors import ReadError
from chestct.labels import CAP, COVID19, NORMAL, THREE_CLASSES, LabelSet, class_of, is_covid_mah_ct
from chestct.lookup import first_lines_of, first_of, look_up, unknown_name_message
from chestct.readers import format_of
from chestct.readers.dicom_elements import looks_like_dicom
from chestct.readers.pictures import SUFFIXES
from chestct.remote import joined, refuse_secrets
from chestct.report import read_csv

_SCAN_ENDINGS: Final = (".nii", ".nii.gz", ".zip", ".dcm")
"""Files that are a scan of their own; every other scan is a folder."""
PICTURE_ENDINGS: Final = tuple(ending for endings in SUFFIXES.values() for ending in endings)
"""Files that are a slice of their own."""
_WHOLE_SCANS: Final = (".nii", ".nii.gz", ".zip", ".mha", ".mhd", ".nrrd", ".nhdr")
_RESULT_FILE: Final = "result.json"
"""What a folder of results holds."""
_MAX_FOLDERS: Final = 100_000
"""Most folders looked at."""

_MAX_TEXT_BYTES: Final = 2**24
"""Longest table or list that is read."""


class _Listing(NamedTuple):
    """Labelled scans or slices of a folder, how it is laid out, and what was assumed of it."""

    manifest: Manifest
    layout: str
    notes: tuple[str, ...]


@dataclass
class _Found:
    """Labelled scans in one layout, paths in full, and what was noticed."""

    rows: list[ManifestRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def with_reading(row: ManifestRow, reading: Mapping[str, str]) -> ManifestRow:
    """The row with what was said of slices, where its scan is a folder of them."""
    if not reading or format_of(row.scan) != "tiff":
        return row
    return replace(row, others={**row.others, **reading})


def _folders_under(folder: Path, depth: int) -> Iterator[Path]:
    """Visible folders below a folder, nearest first, by name; linked ones too."""
    level = [folder]
    seen = 0
    for _ in range(depth):
        level = [child for parent in level for child in _subfolders(parent)]
        seen += len(level)
        if seen > _MAX_FOLDERS:
            msg = f"{folder} holds more than {_MAX_FOLDERS} folders."
            raise ManifestError(f"{msg} Name the folder of one data set.")
        yield from level


def _subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, by name."""
    return sorted(Path(entry) for entry in _entries(folder) if entry.is_dir())


def scans_in(folder: Path) -> list[Path]:
    """Scans that lie in a folder: its sub-folders with a file in them, and files of one scan."""
    files = [
        Path(entry) for entry in _entries(folder) if entry.name.lower().endswith(_SCAN_ENDINGS)
    ]
    return sorted([*files, *(each for each in _subfolders(folder) if _holds_files(each))])


def scans_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Scans in a folder and at most eight below it, in the order of their paths.

    A folder with slices in it is a scan, and so is a file of one. Folders of results are not
    entered.

    Returns:
        The scans, and NIfTI files of 8 bits, which cannot hold a CT scan: masks.

    Raises:
        ManifestError: There are too many folders.
        ReadError: A folder cannot be read.
    """
    scans: list[Path] = []
    for place in (folder, *_folders_under(folder, 8)):
        files = [Path(entry) for entry in _entries(place) if entry.is_file()]
        if any(file.name == _RESULT_FILE for file in files):
            continue
        scans += [file for file in files if file.name.lower().endswith(_WHOLE_SCANS)]
        if any(_is_slice(file) for file in files):
            scans.append(place)
    masks = [file for file in scans if _is_mask(file)]
    return sorted(set(scans) - set(masks)), sorted(masks)


def _is_slice(file: Path) -> bool:
    """Whether a file is one slice of a scan: DICOM by its first bytes, or a picture by its name."""
    if file.suffix.lower() in PICTURE_ENDINGS:
        return True
    with suppress(OSError), file.open("rb") as stream:
        return looks_like_dicom(stream.read(132))
    return False


def _is_mask(file: Path) -> bool:
    """Whether a file is NIfTI with 8 bits per voxel."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    if not file.name.lower().endswith((".nii", ".nii.gz")):
        return False
    with suppress(OSError, ValueError, EOFError, ImageFileError):
        kind = nibabel.load(file).header.get_data_dtype()  # type: ignore[attr-defined]
        return bool(kind.itemsize == 1)
    return False


def _holds_files(folder: Path) -> bool:
    """Whether any visible file lies in or below a folder."""
    with suppress(ReadError):
        for place in (folder, *_folders_under(folder, 4)):
            if any(entry.is_file() for entry in _entries(place)):
                return True
    return False


def _class_folders(
    folder: Path, depth: int = 3, class_named: Callable[[str], str | None] = class_of
) -> list[tuple[Path, str]]:
    """Folders named after a class, the outermost of nested ones, with their class.

    Unpacking an archive often nests a folder in one of the same name; then the inner one is taken.
    """
    found: list[tuple[Path, str]] = []
    for each in _folders_under(folder, depth):
        label = class_named(each.name)
        if label is None or any(outer in each.parents for outer, _ in found):
            continue
        found.append((each, label))
    return [(_innermost(each, label, class_named), label) for each, label in found]


def stem(path: Path) -> str:
    """Name of a scan without the ending of its file."""
    lowered = path.name.lower()
    for ending in sorted(_SCAN_ENDINGS, key=len, reverse=True):
        if lowered.endswith(ending):
            return path.name[: -len(ending)]
    return path.name


def read_table(path: Path) -> list[list[str]]:
    """Cells of a CSV file; nothing where it is none."""
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            return []
        return [[cell.strip() for cell in row] for row in read_csv(path, strict=False)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _tables_under(folder: Path, depth: int = 1) -> list[Path]:
    """CSV files in a folder and so many levels below."""
    places = [folder, *_folders_under(folder, depth)]
    return [path for place in places for path in sorted(place.glob("*.csv"))]


def _with_distinct_patients(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Tell patients of two classes apart where a name stands for one of each.

    Folders are numbered anew in each class: "1" among the sick is not "1" among the healthy.
    """
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.patient, set()).add(row.label)
    if all(len(labels) == 1 for labels in classes.values()):
        return list(rows)
    return [replace(row, patient=f"{row.label} {row.patient}") for row in rows]


def _innermost(folder: Path, label: str, class_named: Callable[[str], str | None]) -> Path:
    inside = _subfolders(folder)
    if len(inside) == 1 and class_named(inside[0].name) == label and _subfolders(inside[0]):
        return _innermost(inside[0], label, class_named)
    return folder


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is visible in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise ReadError(f"The folder {folder} cannot be read: {error.strerror}.") from error


_Value = TypeVar("_Value")

_COVID_CT_MD_NAME = re.compile(r"(p|cap|normal)[ _-]?\d{3}", re.IGNORECASE)
_COVID_CT_MD_CLASSES = {"p": COVID19, "cap": CAP, "normal": NORMAL}
_SPGC_NAME = re.compile(r"'?(T\d+)[-_ ](\d{3})'?", re.IGNORECASE)
_SEQUENCE_NAME = re.compile(r"SR[_ -]?\d+", re.IGNORECASE)
_SEVERITY_NAME = re.compile(r"CT-?([0-4])", re.IGNORECASE)
_NEEDS_GEOMETRY = (
    "The slices are images that do not say how far apart they lie nor what their values mean. Say "
    "it for all with --spacing-mm, --order, --slope and --intercept (or --windowed), or in a "
    "chestct.json beside them."
)


def scan_folder(
    folder: str | Path,
    layout: str = "auto",
    reading: Mapping[str, str] | None = None,
    labels: LabelSet | None = None,
) -> _Listing:
    """List the labelled scans of a folder.

    Args:
        folder: A data set, unpacked.
        layout: Name in `LAYOUTS`, or "auto" for the first one that finds scans.
        reading: Columns that say how slices lie (`spacing_mm`, `order`, ...), put on every row
            whose scan is a folder of slices.
        labels: Classes of one's own, after which folders are named; None: those of the public data
            sets.

    Raises:
        ManifestError: No scans were found, or there is no such folder.
        UnknownNameError: There is no such layout.
    """
    # Links stay as they are: their names may say what the places they lead to do not.
    place = Path(folder).absolute()
    if not place.is_dir():
        raise ManifestError(f"There is no folder {folder}. Name the folder of a data set.")
    layouts = LAYOUTS if labels is None else _own_layouts(labels)
    names = list(layouts) if layout == "auto" else [layout]
    for name in names:
        found = look_up(layouts, name, kind="layout")(place)
        if found.rows:
            rows = [with_reading(r, reading or {}) for r in _with_distinct_patients(found.rows)]
            notes = tuple(note for note in found.notes if not (reading and note is _NEEDS_GEOMETRY))
            used = {row.label for row in rows}
            known = () if labels is None else tuple(each for each in labels.names if each in used)
            return _Listing(Manifest(tuple(rows), known, place, place.name), name, notes)
    raise ManifestError(_no_layout_message(place, names, labels))


def _no_layout_message(place: Path, names: Sequence[str], labels: LabelSet | None) -> str:
    classes = ", ".join(THREE_CLASSES if labels is None else labels.names)
    return (
        f"{place} holds no labelled scans in any known layout ({', '.join(names)}). Put the scans "
        f"into one folder per class, named {classes} (or as --classes says), join them to a "
        "spreadsheet (--labels TABLE), or write the manifest yourself (columns scan, patient, "
        "label)."
    )


def _read_spgc(folder: Path) -> _Found:
    """The SPGC-COVID test sets: folders `T1-001`, ... anywhere, and CSV files with their labels.

    Assumed: a line of a CSV holds the study's name and, in another cell, its class in words.
    """
    labels = _spgc_labels(folder)
    found, unlabelled, seen = _Found(), 0, set()
    for place in _folders_under(folder, 3):
        study = _spgc_name(place.name)
        if study is None:
            continue
        seen.add(study)
        if study not in labels:
            unlabelled += 1
            continue
        others = {"dataset": f"SPGC-COVID {study.split('-')[0]}"}
        found.rows.append(ManifestRow(str(place), study, labels[study], others=others))
    if unlabelled:
        found.notes.append(f"{unlabelled} studies stand in no label file and were left out.")
    if missing := len(labels.keys() - seen):
        found.notes.append(f"{missing} studies of the label files have no folder.")
    return found


def _read_mosmed(folder: Path) -> _Found:
    """MosMedData: `studies/CT-0` to `CT-4`, NIfTI files `study_0001.nii.gz` in them.

    Assumed: every study is another patient, as its description says. CT-0, no sign of viral
    pneumonia, is taken as normal, CT-1 to CT-4 as COVID-19.
    """
    found = _Found()
    for place in _folders_under(folder, 3):
        severity = _SEVERITY_NAME.fullmatch(place.name)
        if severity is None:
            continue
        label = NORMAL if severity[1] == "0" else COVID19
        others = {"dataset": "MosMedData", "severity": f"CT-{severity[1]}"}
        found.rows += [
            ManifestRow(str(scan), stem(scan), label, others=others) for scan in scans_in(place)
        ]
    found.notes.append(
        "CT-0 is taken as normal, CT-1 to CT-4 as COVID-19. Both are findings on the scan, not "
        "laboratory tests: a classifier is compared with a radiologist's eye here."
    )
    return found


def _read_covid_ctset(folder: Path) -> _Found:
    """COVID-CTset: per class folders of patients, each with sequences `SR_2`, `SR_3`, `SR_4`.

    Assumed: a folder above the patient is named after the class, numbered parts ("covid1",
    "normal3") included. Each sequence is a scan; a patient has several.
    """
    found = _Found()
    for place, label in _class_folders(folder):
        for sequence in _folders_under(place, 3):
            if _SEQUENCE_NAME.fullmatch(sequence.name) and _entries(sequence):
                patient = sequence.parent.name
                others = {"dataset": "COVID-CTset", "sequence": sequence.name}
                found.rows.append(
                    ManifestRow(str(sequence), patient, label, "Negin", others=others)
                )
    found.notes.append(_NEEDS_GEOMETRY)
    return found


def _read_covid_ct_md(folder: Path) -> _Found:
    """COVID-CT-MD: patients `P001`, `cap001`, `normal001` of DICOM, in class folders or not.

    The class folders ("COVID-19 subjects", "Cap subjects", "Normal subjects") may be spelled in any
    way; where one contradicts a patient's name, this is taken for no COVID-CT-MD. Age and sex are
    taken from a CSV beside them (`Clinical-data.csv`) that has a column of patients' names and ones
    called age and sex or gender.
    """
    found = _Found()
    for place in _folders_under(folder, 4):
        name = _COVID_CT_MD_NAME.fullmatch(place.name)
        if name is None or not _entries(place):
            continue
        label = _COVID_CT_MD_CLASSES[name[1].lower()]
        if class_of(place.parent.name) not in (None, label):
            return _Found()
        others = {"dataset": "COVID-CT-MD"}
        found.rows.append(ManifestRow(str(place), place.name, label, others=others))
    known = _clinical_facts(folder, {row.patient for row in found.rows})
    found.rows = [
        replace(row, age=known[row.patient][0], sex=known[row.patient][1])
        if row.patient in known
        else row
        for row in found.rows
    ]
    return found


def _read_covid_mah_ct(folder: Path) -> _Found:
    """COVID-MAH-CT 3D: one folder of TIFF slices per patient, numbered 1 to 133, all COVID-19.

    Assumed: the folder, or one below it, is named after the data set ("COVID-MAH-CT 3D",
    "covid_mah_ct"); what lies above the folder is not asked. Where a folder in or around it is
    named after another class, this is taken for no COVID-MAH-CT.
    """
    found = _Found()
    for place in [folder, *_folders_under(folder, 2)]:
        inside = [folder.name, *place.relative_to(folder).parts]
        if not any(is_covid_mah_ct(name) for name in inside):
            continue
        if any(class_of(name) not in (None, COVID19) for name in (folder.parent.name, *inside)):
            return _Found()
        for patient in _subfolders(place):
            if patient.name.isdecimal() and _entries(patient):
                others = {"dataset": "COVID-MAH-CT"}
                found.rows.append(ManifestRow(str(patient), patient.name, COVID19, others=others))
    found.notes.append(_NEEDS_GEOMETRY)
    found.notes.append(
        "All scans of this data set are COVID-19. With normal scans from another one, class and "
        "source are the same variable: 'chestct dataset check' says what that means."
    )
    return found


def _read_label_table(folder: Path) -> _Found:
    """A `labels.csv` with the columns scan and label, as `chestct simulate` writes it."""
    found = _Found()
    lines = read_table(folder / "labels.csv")
    if not lines or not {"scan", "label"} <= set(lines[0]):
        return found
    rows = [dict(zip(lines[0], cells, strict=False)) for cells in lines[1:] if any(cells)]
    complete = [row for row in rows if row.get("scan") and row.get("label")]
    for row in complete:
        scan = folder / row["scan"]
        label = class_of(row["label"]) or row["label"]
        found.rows.append(ManifestRow(str(scan), row.get("patient") or stem(scan), label))
    if missing := len(rows) - len(complete):
        note = f"{missing} row(s) of labels.csv have no scan or no label and were left out."
        found.notes.append(note)
    return found


def _own_layouts(labels: LabelSet) -> dict[str, Callable[[Path], _Found]]:
    """The layout that scans of one's own classes can have, beside a table."""

    def read(folder: Path) -> _Found:
        """Folders called by a class's name or by what stands for it."""
        return _read_class_folders(folder, lambda name: labels.spellings.get(name.casefold()))

    return {"folder_per_class": read}


def _read_class_folders(
    folder: Path, class_named: Callable[[str], str | None] = class_of
) -> _Found:
    """A plain folder per class, named after it; what lies in it are the scans.

    Assumed: every scan is another patient, unless the manifest is told otherwise.
    """
    found = _Found()
    for place, label in _class_folders(folder, 2, class_named):
        found.rows += [ManifestRow(str(scan), stem(scan), label) for scan in scans_in(place)]
    found.notes.append(
        "Every scan is taken for another patient. Where a patient has several, give their rows the "
        "same text in the column 'patient' before dividing the scans."
    )
    return found


LAYOUTS: Final[dict[str, Callable[[Path], _Found]]] = {
    "spgc": _read_spgc,
    "mosmed": _read_mosmed,
    "covid_ctset": _read_covid_ctset,
    "covid_ct_md": _read_covid_ct_md,
    "covid_mah_ct_3d": _read_covid_mah_ct,
    "labels_csv": _read_label_table,
    "folder_per_class": _read_class_folders,
}
"""Layout name to a function that lists a folder's scans, or none where it is another layout."""


def _spgc_labels(folder: Path) -> dict[str, str]:
    """Class by study, of all tables in and below a folder."""
    labels: dict[str, str] = {}
    for path in _tables_under(folder, depth=2):
        for cells in read_table(path):
            studies = [name for cell in cells if (name := _spgc_name(cell))]
            classes = [label for cell in cells if (label := class_of(cell))]
            if len(studies) == 1 and len(classes) == 1:
                labels[studies[0]] = classes[0]
    return labels


def _spgc_name(text: str) -> str | None:
    """A study's name in one spelling: T1-001, also of T1_001 and 'T1-001'."""
    match = _SPGC_NAME.fullmatch(text.strip())
    return f"{match[1].upper()}-{match[2]}" if match else None


def _clinical_facts(folder: Path, patients: set[str]) -> dict[str, tuple[float | None, str]]:
    """Age and sex by patient, of the first table that knows them."""
    for path in _tables_under(folder):
        lines = read_table(path)
        header = [re.findall(r"[a-z]+", name.lower()) for name in lines[0]] if lines else []
        ages = [i for i, words in enumerate(header) if "age" in words]
        sexes = [i for i, words in enumerate(header) if {"sex", "gender"} & set(words)]
        found: dict[str, tuple[float | None, str]] = {}
        for cells in lines[1:]:
            named = patients & set(cells)
            if len(named) == 1 and len(cells) >= len(header):
                age = _parsed(parse_age, [cells[i] for i in ages])
                sex = _parsed(parse_sex, [cells[i] for i in sexes])
                found[named.pop()] = (age, sex or "")
        if found and (ages or sexes):
            return found
    return {}


def _parsed(parse: Callable[[str], _Value], cells: list[str]) -> _Value | None:
    """The first cell, parsed; None where it holds something else."""
    try:
        return parse(cells[0]) if cells else None
    except (ValueError, KeyError):
        return None


_UNKNOWN_PATIENTS: Final = (
    "Neither folders nor a pattern say whose slices these are: every picture is taken for another "
    "patient, so slices of one patient can stand on two sides of a split and make its result too "
    "good. Give --patient-pattern, put a table 'patients.csv' (columns file, patient) beside the "
    "pictures, or correct the column 'patient'."
)
_PICTURE_COLUMNS: Final = ("file", "filename", "picture", "image")
_PATIENT_COLUMNS: Final = ("patient", "patientid", "group")

_COVID_CT_LIST = re.compile(r"(train|val|test)(?:ct)?_(covid|noncovid)\.txt", re.IGNORECASE)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_COVID_CT_FOLDERS = {"covid": ("CT_COVID", "COVID"), "noncovid": ("CT_NonCOVID", "NonCOVID")}
_COVID_CT_CLASSES = {"covid": COVID19, "noncovid": NORMAL}


class _SliceList(NamedTuple):
    """A text file with a picture's name per line, all of one class and side of a split, if any."""

    file: Path
    label: str
    split: str
    images: Path


def scan_slice_folder(
    folder: Path,
    *,
    patient_pattern: str | None = None,
    lists: Sequence[str] = (),
    images: Path | None = None,
) -> _Listing:
    """List the pictures of a folder: by lists, given or COVID-CT's own, else by class.

    Class folders are named after their class ("COVID-19", "normal", ...). A picture's patient is
    what the pattern finds in its name, what a table `patients*.csv` says of it, or the folder
    between it and the class folder.

    Args:
        folder: A data set, unpacked.
        patient_pattern: Regular expression with one group, looked for in each picture's path below
            the class folder; the group is the patient.
        lists: Text files with one picture's name per line, as LABEL=FILE or SPLIT:LABEL=FILE; no
            other picture is then taken.
        images: Where listed pictures lie; None: in the folder.

    Raises:
        ManifestError: No pictures, no such folder, a wrong pattern, or a list that is not written
            so or names pictures which are not there.
    """
    if lists:
        given = [_parse_list(each, images or folder) for each in lists]
        return _read_lists(given, folder, patient_pattern=patient_pattern)
    place = folder.absolute()
    if not place.is_dir():
        raise ManifestError(f"There is no folder {folder}. Name a folder of slices.")
    own = _find_covid_ct_lists(place)
    if own:
        return _read_lists(own, place, patient_pattern=patient_pattern)
    classes, whose = _class_folders(place), _Whose.of(place, patient_pattern)
    rows = [
        ManifestRow(str(picture), whose.named(picture, inside, label), label)
        for inside, label in classes
        for picture in _pictures_under(inside)
    ]
    if not rows:
        raise ManifestError(
            f"{place} holds no pictures ({', '.join(PICTURE_ENDINGS)}) in folders named after a "
            "class. Put them into one folder per class, named COVID-19, CAP and normal, name lists "
            "with --list, or write the table yourself (columns scan, patient, label)."
        )
    notes = _left_out(place, [each for each, _ in classes])
    return _listing(rows, place, "folder_per_class", notes)


def _left_out(place: Path, classes: Sequence[Path]) -> tuple[str, ...]:
    """Which folders of pictures were not taken, because their names are no class."""
    names = []
    for each in _folders_under(place, 3):
        is_class = any(inside == each or inside in each.parents for inside in classes)
        if not is_class and any(file.suffix.lower() in PICTURE_ENDINGS for file in each.iterdir()):
            names.append(each.relative_to(place).as_posix())
    if not names:
        return ()
    return (
        f"Pictures in folders that are not named after a class were left out: {first_of(names)}. "
        "Name a folder COVID-19, CAP or normal to have it taken.",
    )


def _find_covid_ct_lists(folder: Path) -> list[_SliceList]:
    """COVID-CT's own split: lists such as `trainCT_COVID.txt`, pictures in `CT_COVID`.

    Or as copies of it have them: `train_COVID.txt`, pictures in `COVID`.
    """
    places = [folder, *_folders_under(folder, 4)]
    images = {place.name.lower(): place for place in reversed(places)}
    found = []
    for place in places:
        for file in sorted(place.glob("*.txt")):
            name = _COVID_CT_LIST.fullmatch(file.name)
            # A later revision of the data set keeps its first split beside the second.
            if name is None or place.name.lower().startswith("old"):
                continue
            kind = name[2].lower()
            usual, *others = (each.lower() for each in _COVID_CT_FOLDERS[kind])
            known = (images[each] for each in (usual, *others) if each in images)
            where = next(known, folder / _COVID_CT_FOLDERS[kind][0])
            split = _SPLITS[name[1].lower()]
            found.append(_SliceList(file, _COVID_CT_CLASSES[kind], split, where))
    return found


def find_pictures(given: Sequence[Path], *, patient_pattern: str | None = None) -> dict[Path, str]:
    """Pictures that nobody has labelled, to their patients; empty where those are not known.

    Args:
        given: Pictures, folders of them (each looked at with the three levels below it; a folder
            between is the patient, as in `scan_slice_folder`), and tables with a column `scan` and
            perhaps `patient`, by the ending `.csv`.
        patient_pattern: As there; it comes before what folders and tables say.

    Raises:
        ReadError: None were found.
        ManifestError: A table lacks its column, or the pattern is wrong or finds nothing.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for each in given:
        for picture, patient in _pictures_of(each, patient_pattern):
            found.setdefault(picture.resolve(), (picture, patient))
    if not found:
        named = ", ".join(str(each) for each in given)
        msg = f"There is no picture ({', '.join(PICTURE_ENDINGS)}) in {named} or below."
        raise ReadError(f"{msg} Name pictures, a folder of them, or a table with a column 'scan'.")
    return dict(found.values())


def _pictures_of(given: Path, pattern: str | None) -> Iterator[tuple[Path, str]]:
    """The pictures that one argument stands for, and their patients."""
    if given.suffix.lower() == ".csv":
        header, lines = read_lines(given, ("scan",))
        for cells in lines:
            row = dict(zip(header, cells, strict=False))
            refuse_secrets(row.get("scan", ""), given.name)
            if row.get("scan", "").strip() and not row.get("excluded", "").strip():
                said = _matched(pattern, Path(row["scan"])) if pattern else row.get("patient", "")
                yield joined(given.parent, row["scan"].strip()), said.strip()
        return
    if not given.is_dir():
        yield given, _matched(pattern, given) if pattern else ""
        return
    whose = _Whose.of(given, pattern)
    for picture in _pictures_under(given):
        yield picture, whose.patient(picture, given) or ""


def _parse_list(text: str, images: Path) -> _SliceList:
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


def _read_lists(
    lists: Sequence[_SliceList], folder: Path, *, patient_pattern: str | None = None
) -> _Listing:
    """The slices that lists name.

    Raises:
        ManifestError: A list cannot be read, is empty, or names pictures that are not there; the
            message names list and pictures.
    """
    whose = _Whose.of(folder, patient_pattern)
    rows = [
        ManifestRow(
            str(picture),
            whose.named(picture, each.images, each.label),
            each.label,
            split=each.split,
        )
        for each in lists
        for picture in _listed(each)
    ]
    rows, notes = _without_shared(rows)
    if any(each.label == NORMAL and "non" in each.file.name.lower() for each in lists):
        notes += (
            "Pictures listed as not COVID-19 are taken for normal; some show other findings. "
            "Change the column 'label' where that matters.",
        )
    return _listing(rows, folder, "lists", notes)


def _listed(each: _SliceList) -> list[Path]:
    names = _names_in(each.file)
    places = [each.images / name for name in names]
    missing = [n for n, place in zip(names, places, strict=True) if not place.is_file()]
    if missing:
        raise ManifestError(
            f"{each.file.name} names {len(missing)} of {len(names)} pictures that are not in "
            f"{each.images}:{first_lines_of(missing)}\n"
            "  Unpack the pictures there, name their folder with --images, or take the lines out."
        )
    return places


def _names_in(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _MAX_TEXT_BYTES:
            raise ManifestError(f"{file.name} is larger than {_MAX_TEXT_BYTES} bytes: not a list.")
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


def _without_shared(rows: Sequence[ManifestRow]) -> tuple[list[ManifestRow], tuple[str, ...]]:
    """The rows of lists, none of whose patients is judged after something was learned from them.

    A patient's slices stay in the last of the parts; in those before they are marked as excluded.
    """
    parts = tuple(_SPLITS.values())
    last: dict[str, str] = {}
    for row in rows:
        if row.split:
            last[row.patient] = max(row.split, last.get(row.patient, row.split), key=parts.index)
    kept = [
        replace(row, excluded=f"its patient is also in the {last[row.patient]} part")
        if row.split and row.split != last[row.patient]
        else row
        for row in rows
    ]
    num_left = sum(bool(row.excluded) for row in kept)
    if not num_left:
        return kept, ()
    return kept, (
        f"{num_left} slices are listed for one part and their patients for another one too. They "
        "are left out of the first, so that no patient is learned from and judged: the column "
        "'excluded' says which.",
    )


@dataclass(frozen=True)
class _Whose:
    """What says whose slice a picture is: a pattern whose group is the patient, or tables."""

    pattern: str | None
    listed: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, pattern: str | None) -> _Whose:
        """With what the tables `patients*.csv` in a folder and directly below it say.

        A table has a column `file` with the pictures' names and one `patient`, or `group`: what
        must not be parted, such as the slices of one page of a paper.
        """
        listed: dict[str, str] = {}
        for path in _tables_under(folder):
            if path.name.lower().startswith("patients"):
                listed |= _patients_in(path)
        return cls(pattern, listed)

    def patient(self, picture: Path, inside: Path) -> str | None:
        """The patient of a picture in a folder, of which the folders between also tell; or None.

        Raises:
            ManifestError: The pattern is wrong, or finds nothing in the picture's path.
        """
        relative = picture.relative_to(inside)
        if self.pattern is not None:
            return _matched(self.pattern, relative)
        return self.listed.get(picture.name) or "/".join(relative.parts[:-1]) or None

    def named(self, picture: Path, inside: Path, label: str) -> str:
        """The same within one class, as folders are numbered anew in each; or the picture's own."""
        return f"{label} {self.patient(picture, inside) or picture.name}"


def _patients_in(table: Path) -> dict[str, str]:
    """Picture's name to its patient; nothing where the table lacks the columns."""
    header, *lines = read_table(table) or [[]]
    names = [re.sub(r"[ _-]", "", name.lower()) for name in header]
    picture = next((names.index(name) for name in _PICTURE_COLUMNS if name in names), None)
    patient = next((names.index(name) for name in _PATIENT_COLUMNS if name in names), None)
    if picture is None or patient is None:
        return {}
    whole = [cells for cells in lines if len(cells) == len(header) and cells[patient]]
    return {PurePosixPath(cells[picture]).name: cells[patient] for cells in whole}


def _matched(pattern: str, relative: Path) -> str:
    try:
        match = re.search(pattern, relative.as_posix())
    except re.error as error:
        raise ManifestError(f"The patient pattern '{pattern}' is wrong: {error}.") from error
    if match is None or not match.groups() or not match[1]:
        msg = f"The patient pattern '{pattern}' finds no patient in '{relative.as_posix()}'."
        raise ManifestError(f"{msg} Write one with a group, such as '(p[0-9]+)-'.")
    return match[1]


def _listing(
    rows: Sequence[ManifestRow], folder: Path, layout: str, notes: tuple[str, ...]
) -> _Listing:
    labels = tuple(sorted({row.label for row in rows}, key=str.lower))
    manifest = Manifest(tuple(rows), labels, folder=folder, name=folder.name)
    is_known = len({row.patient for row in rows}) < len(rows)
    return _Listing(manifest, layout, notes if is_known else (_UNKNOWN_PATIENTS, *notes))


def _pictures_under(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and at most three below it, folder by folder."""
    for place in (folder, *_folders_under(folder, 3)):
        files = sorted(Path(entry) for entry in _entries(place) if entry.is_file())
        yield from (each for each in files if each.suffix.lower() in PICTURE_ENDINGS)

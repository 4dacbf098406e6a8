"""Pictures of slices: read from files, kept at a network's size, or made from labelled scans.

Kept are all slices of a manifest in one file of 16-bit floats, off by at most 1/4096, which is read
in place: every epoch of a small network needs all of them, and an entry per slice, as the cache of
scans has them, takes nine times as long to read.

Made from a scan, a slice becomes a PNG of 8 bits through a window; names of files hold numbers
only. A slice of an ill patient that shows no infection is no picture of the illness: it is left
out, or taken for the negative class, as asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Integer, Num, UInt8
from PIL import Image
from torch.utils.data import Dataset

from chestct.card import PictureForm
from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.public import PICTURE_ENDINGS, read_table
from chestct.datasets.scans import read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError, ReadError
from chestct.labels import LabelSet
from chestct.lookup import look_up
from chestct.readers import read_volume
from chestct.readers.pictures import (
    MAX_COLOUR,
    MAX_COLOURED_SHARE,
    SUFFIXES,
    read_stored_pixels,
    stored_format,
)
from chestct.remote import bring, local_copy, send, shown, stamp_of
from chestct.storage import is_address, write_whole_with
from chestct.volume import Volume, to_canonical

_SMALLEST_SIDE: Final = 32
"""Fewest rows or columns of a picture that is read."""

_GREY_SHARES: Final = (0.299, 0.587, 0.114)
"""What red, green and blue count for in a grey value (ITU-R BT.601)."""

_Picture = Float32[np.ndarray, "height width"]
"""Grey values of a slice from 0 to 1."""


@dataclass(frozen=True, eq=False)
class _SlicePicture:
    """A slice read from a file: grey values from 0 to 1, (height, width), of 8 or 16 bits.

    `coloured_share` of its pixels, 0 to 1, have a colour. `kind` is "TIFF", "PNG" or "JPEG",
    whatever its name says.
    """

    values: _Picture
    bits: int
    coloured_share: float
    kind: str

    @property
    def is_marked(self) -> bool:
        """Whether something coloured was drawn on it."""
        return self.coloured_share > MAX_COLOURED_SHARE


def read_picture(path: Path, sixteen_bit: str = "own_range") -> _SlicePicture:
    """Read a slice from a PNG, JPEG or TIFF file.

    It may lie at an address. Its format is known by its first bytes, as JPEGs are often named .png.
    `sixteen_bit` says what becomes 0 and 1 of a picture with 16 bits; see `PictureForm`.

    Raises:
        ReadError: It is no picture, damaged, too small or too large; the message names the file.
    """
    if path.suffix.lower() not in PICTURE_ENDINGS:
        msg = f"{path.name} is no picture of a slice: expected one of {', '.join(PICTURE_ENDINGS)}."
        raise ReadError(msg)
    with local_copy(path) as copy:
        if not copy.is_file():
            raise ReadError(f"There is no picture {shown(path)}.")
        kind = stored_format(copy) or ""
        stored = read_stored_pixels(copy, kind)
    if min(stored.shape[:2]) < _SMALLEST_SIDE:
        msg = (
            f"{path.name} has {stored.shape[0]} x {stored.shape[1]} pixels; a slice of at least "
            f"{_SMALLEST_SIDE} x {_SMALLEST_SIDE} was expected. Leave it out."
        )
        raise ReadError(msg)
    bits = 8 * stored.dtype.itemsize
    share = _coloured_share(stored, bits)
    return _SlicePicture(_scaled(_grey(stored), stored.dtype, sixteen_bit), bits, share, kind)


def fitted(values: _Picture, form: PictureForm) -> Float32[np.ndarray, "size size"]:
    """A picture at the size of a network's input."""
    if form.keeps_shape:
        values = _squared(values)
    method = {"nearest": Image.Resampling.NEAREST, "linear": Image.Resampling.BILINEAR}
    resized = Image.fromarray(values).resize((form.size, form.size), method[form.interpolation])
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)


def _grey(stored: Integer[np.ndarray, "height width *samples"]) -> _Picture:
    """One value per pixel, in stored units; what alpha says is left out."""
    if stored.ndim == 2:
        return stored.astype(np.float32)
    if stored.shape[-1] < 3:
        return np.ascontiguousarray(stored[..., 0], dtype=np.float32)
    colours = stored[..., :3].astype(np.float32)
    return np.asarray(colours @ np.array(_GREY_SHARES, dtype=np.float32))


def _scaled(values: _Picture, dtype: np.dtype, sixteen_bit: str) -> _Picture:
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if dtype.itemsize > 1 and sixteen_bit == "own_range":
        low, high = float(values.min()), float(values.max())
    scale = 1.0 / (high - low) if high > low else 0.0
    scaled = (values - np.float32(low)) * np.float32(scale)
    return np.asarray(np.clip(scaled, 0.0, 1.0))


def _coloured_share(stored: Integer[np.ndarray, "height width *samples"], bits: int) -> float:
    """Share of pixels whose colours differ by more than JPEG's rounding makes of grey."""
    if stored.ndim == 2 or stored.shape[-1] < 3:
        return 0.0
    colours = stored[..., :3].astype(np.int32)
    spread = colours.max(axis=-1) - colours.min(axis=-1)
    return float(np.mean(spread > MAX_COLOUR * 2 ** (bits - 8)))


def _squared(values: _Picture) -> Float32[np.ndarray, "side side"]:
    lacking = [max(values.shape) - size for size in values.shape]
    return np.pad(values, [(num // 2, num - num // 2) for num in lacking])


_ENLARGED: Final = 2.0
"""A picture enlarged more than so often is pointed out."""
_FEW_PICTURES: Final = 400
"""So many pictures are read in this process alone."""
_ASKED_AT_ONCE: Final = 8
_NAME: Final = "slices-"
_REMEDY: Final = (
    "Free space or choose another folder for prepared slices: data.cache in the settings, or the "
    "environment's XDG_CACHE_HOME."
)


@dataclass(frozen=True)
class SliceFacts:
    """What is known of one slice's file: its size in pixels, or `error`, why it cannot be read.

    `coloured_share` of its pixels have a colour. Files with the same picture have the same
    `digest`, a hash of its grey values. `kind` is "TIFF", "PNG" or "JPEG" by its first bytes, and
    `is_misnamed` whether its name says another one.
    """

    rows: int = 0
    columns: int = 0
    bits: int = 0
    coloured_share: float = 0.0
    digest: str = ""
    error: str = ""
    kind: str = ""
    is_misnamed: bool = False

    def is_small(self, size: int) -> bool:
        """Whether its shorter side has less than half the pixels of a network's input."""
        return min(self.rows, self.columns) * _ENLARGED < size

    def remarks(self, size: int) -> tuple[str, ...]:
        """What an answer about it has to be read with, for an input of so many pixels a side."""
        said = {
            f"{self.coloured_share:.1%} of it is coloured: the answer may be about marks": (
                self.coloured_share > 0
            ),
            f"it has {self.rows} x {self.columns} pixels, less than half of {size}": (
                self.is_small(size)
            ),
            f"it is a {self.kind} file by another name": self.is_misnamed,
        }
        return tuple(words for words, holds in said.items() if holds)


@dataclass(frozen=True, eq=False)
class SliceStore:
    """All slices of a manifest at one size, in its order; zeros where one could not be read.

    `pictures` are grey values from 0 to 1, `places` the manifest's row to the place in them and in
    `facts`.
    """

    pictures: Float16[np.ndarray, "slice height width"]
    facts: tuple[SliceFacts, ...]
    places: dict[int, int]

    @property
    def by_row(self) -> dict[int, SliceFacts]:
        """Row of the manifest to what is known of its slice."""
        return {row: self.facts[place] for row, place in self.places.items()}


class LabelledSlices(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Slices with their labels' indices, as the loop takes scans: volumes of depth one."""

    def __init__(self, store: SliceStore, manifest: Manifest) -> None:
        self.labels = manifest.label_indices
        self._store = store
        self._places = [store.places[row.number] for row in manifest.rows]

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Input (1, 1, height, width), a mask of ones of that size, label.

        Raises:
            IndexError: There is no such item.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        values = self._store.pictures[self._places[index]].astype(np.float32)
        picture = torch.from_numpy(values)[None, None]
        return picture, torch.ones_like(picture), self.labels[index]


def gather_slices(
    manifest: Manifest,
    form: PictureForm,
    folder: Path,
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> SliceStore:
    """Read every slice of a manifest, or take what an earlier call kept in a folder.

    Few pictures are read by this process alone, of many `processes` at once; None takes all cores.

    Raises:
        WriteError: The folder cannot be written.
        ReadError: A file of the manifest is gone.
    """
    paths = [manifest.path(row) for row in manifest.rows]
    places = {row.number: place for place, row in enumerate(manifest.rows)}
    name = f"{_NAME}{_key(paths, form)}"
    values_file, facts_file = (bring(folder, f"{name}{ending}") for ending in (".npy", ".json"))
    if facts_file.is_file() and values_file.is_file():
        facts = tuple(SliceFacts(**each) for each in json.loads(facts_file.read_text()))
        return SliceStore(_opened(values_file), facts, places)
    tasks = [(path, form) for path in paths]
    # Starting a process takes as long as reading hundreds of pictures.
    count = 1 if len(tasks) < _FEW_PICTURES else processes
    found = run_all(_read_one, tasks, processes=count, progress=progress)
    _keep(folder, values_file, facts_file, found)
    return SliceStore(_opened(values_file), tuple(facts for facts, _ in found), places)


_Task = tuple[Path, PictureForm]
_Found = tuple[SliceFacts, Float16[np.ndarray, "height width"]]


def _read_one(task: _Task) -> _Found:
    """Facts and values of one slice, by any process; what goes wrong is a fact."""
    path, form = task
    try:
        facts, values = read_slice(path, form)
    except ChestCTError as error:
        empty = np.zeros((form.size, form.size), dtype=np.float16)
        return SliceFacts(error=str(error)), empty
    return facts, values.astype(np.float16)


def read_slice(
    path: Path, form: PictureForm
) -> tuple[SliceFacts, Float32[np.ndarray, "size size"]]:
    """Read a slice for a network: what is known of its file, and its input.

    Raises:
        ReadError: As `read_picture`.
    """
    picture = read_picture(path, form.sixteen_bit)
    rows, columns = picture.values.shape
    # To 16 bits: grey and RGB of the same picture differ in the last digits of a float.
    levels = np.rint(picture.values * 65535).astype(np.uint16)
    grey = hashlib.blake2b(levels.tobytes(), digest_size=16)
    grey.update(f"{rows} {columns}".encode())
    facts = SliceFacts(
        rows,
        columns,
        picture.bits,
        round(picture.coloured_share, 6) if picture.is_marked else 0.0,
        grey.hexdigest(),
        kind=picture.kind,
        is_misnamed=path.suffix.lower() not in SUFFIXES[picture.kind],
    )
    return facts, fitted(picture.values, form)


def _key(paths: Sequence[Path], form: PictureForm) -> str:
    """Hash of what the file's content depends on; a picture that was changed changes it."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        stats = list(pool.map(_state_of, paths))
    text = json.dumps([2, form.model_dump(), stats])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _state_of(path: Path) -> list[str | int]:
    """What changes with a picture's file, wherever it lies; of one that is not there nothing."""
    with suppress(OSError, ChestCTError):
        if is_address(path):
            return [shown(path), stamp_of(path)]
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    return [str(path), 0, 0]


def _opened(path: Path) -> Float16[np.ndarray, "slice height width"]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _keep(folder: Path, values_file: Path, facts_file: Path, found: Sequence[_Found]) -> None:
    """Write both files aside and rename them, the facts last: they say that all is there."""
    text = json.dumps([asdict(facts) for facts, _ in found])
    writing: dict[Path, Callable[[Path], object]] = {
        values_file: lambda aside: _write_values(aside, found),
        facts_file: lambda aside: aside.write_text(text, encoding="utf-8"),
    }
    for file, write in writing.items():

        def write_and_send(aside: Path, write: Callable[[Path], object] = write) -> None:
            """Where the folder is at an address, the storage has it first."""
            write(aside)
            send(folder, aside.name, aside)

        write_whole_with(file, write_and_send, remedy=_REMEDY)


def _write_values(path: Path, found: Sequence[_Found]) -> None:
    """Write an .npy file slice by slice.

    Not in place through a memory map: on a full disk the system would end the process there, and no
    error would be seen.
    """
    shape = (len(found), *found[0][1].shape)
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float16))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for _, values in found:
            stream.write(values.astype(np.float16).tobytes())


_WHITE: Final = 255
_WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "abdomen": (40.0, 400.0),
}
"""Window name to centre and width in HU: the two views of Fig. 1 of the MASERes paper."""


def _windowed(
    voxels_hu: Num[np.ndarray, "*shape"], window: str = "lung"
) -> UInt8[np.ndarray, "*shape"]:
    """HU as grey values of 8 bits, as an export through a viewer's window gives them.

    What lies outside the window, a name in `_WINDOWS`, is black or white.

    Raises:
        UnknownNameError: There is no such window.
    """
    centre_hu, width_hu = look_up(_WINDOWS, window, kind="window")
    share = (voxels_hu.astype(np.float32) - np.float32(centre_hu - width_hu / 2)) / width_hu
    return np.asarray(np.rint(np.clip(share, 0.0, 1.0) * _WHITE), dtype=np.uint8)


_MAX_BYTES: Final = 2**28

_INDEX: Final = ("label index", "index")
_PATIENT: Final = ("folder/id", "patient id", "patient", "folder", "id", "subject-id")

_SliceLabels = Bool[np.ndarray, " slice"]


def read_slice_labels(labels: Path, index: Path) -> dict[str, _SliceLabels]:
    """Infection by slice, by patient.

    Args:
        labels: `Slice-level-labels.npy`.
        index: `Index.csv`. Its numbers are rows of the other file, from 0; where they reach
            beyond it (the published ones skip a number that the rows do not) their order counts.

    Returns:
        Patient to one truth value per slice, from the feet; longer than the scan by zeros.

    Raises:
        ManifestError: A file cannot be read or they do not fit each other.
    """
    values = _read_array(labels)
    numbered = _read_index(index)
    if max(number for number, _ in numbered) < len(values):
        return {patient: values[number] for number, patient in numbered}
    if len(numbered) != len(values):
        msg = (
            f"{index.name} lists {len(numbered)} patients and {labels.name} holds {len(values)}. "
            "Use the two files of one release."
        )
        raise ManifestError(msg)
    return {patient: values[place] for place, (_, patient) in enumerate(numbered)}


def _cut_to_scan(labels: _SliceLabels, num_slices: int, scan: str) -> Bool[np.ndarray, " kept"]:
    """The labels of a scan's own slices.

    Raises:
        ManifestError: There are fewer than the scan has, or infection where it has no slice.
    """
    if len(labels) < num_slices or labels[num_slices:].any():
        marked = int(np.flatnonzero(labels)[-1]) + 1 if labels.any() else 0
        msg = (
            f"{scan} has {num_slices} slices; its labels are for {len(labels)}, infection marked "
            f"up to slice {marked}. They belong to another scan, or slices are missing: copy the "
            "scan again, or leave it out."
        )
        raise ManifestError(msg)
    return labels[:num_slices]


def _find_labels(known: Mapping[str, _SliceLabels], *names: str) -> _SliceLabels | None:
    """The labels of the first of a scan's names that is known, upper and lower case alike."""
    by_name = {name.lower(): each for name, each in known.items()}
    return next((by_name[n.lower()] for n in names if n.lower() in by_name), None)


def _read_array(path: Path) -> Bool[np.ndarray, "case slice"]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestError(f"{path.name} is larger than {_MAX_BYTES} bytes: not slice labels.")
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"The slice labels {path} cannot be read ({error}). Expected a .npy file of numbers."
        raise ManifestError(msg) from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "buif":
        msg = f"{path.name} holds no table of numbers. Expected (case, slice), 0 or 1 each."
        raise ManifestError(msg)
    if not np.isin(values, (0, 1)).all():
        raise ManifestError(f"{path.name} holds other values than 0 and 1.")
    return values.astype(bool)


def _read_index(path: Path) -> list[tuple[int, str]]:
    """Numbers and patients, in the order of the numbers."""
    lines = read_table(path)
    header = [name.lower() for name in lines[0]] if lines else []
    number = next((header.index(name) for name in _INDEX if name in header), None)
    patient = next((header.index(name) for name in _PATIENT if name in header), None)
    if number is None or patient is None:
        msg = (
            f"{path} is no index of slice labels: expected a column with the patient "
            f"({', '.join(_PATIENT)}) and one with the number ({', '.join(_INDEX)})."
        )
        raise ManifestError(msg)
    try:
        numbered = sorted((int(cells[number]), cells[patient]) for cells in lines[1:])
    except (ValueError, IndexError) as error:
        msg = f"{path.name}: a line has no whole number or no patient ({error})."
        raise ManifestError(msg) from error
    is_distinct = all(len(set(column)) == len(numbered) for column in zip(*numbered, strict=True))
    if not numbered or not is_distinct or numbered[0][0] < 0:
        msg = f"{path.name} lists no patients, or a patient or a number twice."
        raise ManifestError(f"{msg} Correct it.")
    return numbered


_PATIENT_LABEL = "patient_label"
"""Column with the class of the whole patient."""


@dataclass(frozen=True)
class Extraction:
    """Which slices are taken and what they are called.

    Attributes:
        infected: Infection by slice, by patient or scan; empty where none is known.
        without_labels: Scans whose slices nobody looked at: "all" takes every slice for its
            patient's class, "negative" does so for patients of the negative class only and leaves
            the others out.
        uninfected: Slices of an ill patient without infection: "leave_out", or "negative".
        window: A name in `_WINDOWS`.
        every: Take every so many slices only.
        negative: The class that means that nothing was found; empty: what plain names say of it.
    """

    infected: Mapping[str, _SliceLabels] = field(default_factory=dict)
    without_labels: Literal["all", "negative"] = "negative"
    uninfected: Literal["leave_out", "negative"] = "leave_out"
    window: str = "lung"
    every: int = 1
    negative: str = ""


def extract_slices(
    manifest: Manifest,
    extraction: Extraction,
    folder: Path,
    *,
    told: Callable[[str], None] = lambda _text: None,
) -> Manifest:
    """Write the slices of a manifest's scans as pictures, in a folder per scan.

    `told` hears of scans that give no slices.

    Returns:
        A manifest with one row per slice, its patient's own class in the column `patient_label`.

    Raises:
        ManifestError: No slice is left, or labels do not fit a scan.
        ReadError: A scan cannot be read.
        WriteError: The folder cannot be written.
    """
    rows: list[ManifestRow] = []
    extraction = _with_negative(extraction, manifest)
    for row in manifest.rows:
        path = manifest.path(row)
        infected = _find_labels(extraction.infected, row.patient, path.name)
        is_left = row.label != extraction.negative and extraction.without_labels == "negative"
        if infected is None and is_left:
            told(f"Row {row.number} is {row.label} and has no slice labels: left out.")
            continue
        volume = _canonical(row, manifest)
        marks = None if infected is None else _cut_to_scan(infected, len(volume.voxels), row.scan)
        rows += _write_scan(row, volume, marks, extraction, folder)
    if not rows:
        msg = (
            f"No slice of {manifest.name} is left: its scans have no slice labels. Give them "
            "(--labels, --index), or take all slices of every scan (--without-labels all)."
        )
        raise ManifestError(msg)
    return Manifest(tuple(rows), manifest.labels, folder, manifest.name)


def _canonical(row: ManifestRow, manifest: Manifest) -> Volume:
    """A row's scan on canonical axes."""
    options = read_options(row, manifest.folder)
    return to_canonical(
        read_volume(
            manifest.path(row), series=options.series, allow=options.allow, tiff=options.tiff
        )
    )


def _with_negative(extraction: Extraction, manifest: Manifest) -> Extraction:
    """The same with the negative class, which the wished slices may depend on.

    Raises:
        ManifestError: They do, and none is named.
    """
    negative = extraction.negative or LabelSet.of_names(manifest.labels).negative
    if not negative and "negative" in (extraction.without_labels, extraction.uninfected):
        msg = (
            f"None of the classes {', '.join(manifest.labels)} of {manifest.name} is named as the "
            "negative one, and which slices are taken depends on it. Mark one with 'negative: "
            "true' in a file for --classes, or say --without-labels all."
        )
        raise ManifestError(msg)
    return replace(extraction, negative=negative)


def _label_of(row: ManifestRow, is_infected: bool | None, extraction: Extraction) -> str | None:
    """Class of one slice, or None where it is to be left out."""
    if is_infected is None or is_infected or row.label == extraction.negative:
        return row.label
    return extraction.negative if extraction.uninfected == "negative" else None


def _write_scan(
    row: ManifestRow,
    volume: Volume,
    marks: _SliceLabels | None,
    extraction: Extraction,
    folder: Path,
) -> Iterator[ManifestRow]:
    place = folder / f"scan-{row.number:04d}"
    for number in range(0, len(volume.voxels), extraction.every):
        is_infected = None if marks is None else bool(marks[number])
        label = _label_of(row, is_infected, extraction)
        if label is None:
            continue
        file = place / f"slice-{number:04d}.png"
        _write_picture(file, volume.voxels[number], volume.unit, extraction.window)
        others = {_PATIENT_LABEL: row.label, "source_row": str(row.number), "slice": str(number)}
        yield ManifestRow(
            str(file), row.patient, label, row.site, row.age, row.sex, row.split, others=others
        )


def _write_picture(file: Path, voxels: np.ndarray, unit: str, window: str) -> None:
    """Write a slice as a PNG, whole or not at all."""
    # An export that is windowed already has its own grey values.
    grey = _windowed(voxels, window) if unit == "HU" else np.clip(voxels, 0, 255).astype(np.uint8)
    write_whole_with(file, Image.fromarray(grey).save)

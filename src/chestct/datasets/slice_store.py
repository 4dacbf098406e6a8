"""Slices of a manifest, read and brought to size once and kept in one file.

Reading a picture takes longer than the step of a small network, and every epoch needs all of them:
the file holds them as 16-bit floats, off by at most 1/4096, and is read in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Float32, Integer
from PIL import Image
from torch.utils.data import Dataset

from chestct.card import PictureForm
from chestct.datasets.manifest import Manifest
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError, ReadError
from chestct.readers.pictures import (
    MAX_COLOUR,
    MAX_COLOURED_SHARE,
    SUFFIXES,
    read_stored_pixels,
)
from chestct.storage import write_whole_with

PICTURE_ENDINGS: Final = tuple(ending for endings in SUFFIXES.values() for ending in endings)
"""Endings of the files that are read."""
_SMALLEST_SIDE: Final = 32
"""Fewest rows or columns of a picture that is read."""

_GREY_SHARES: Final = (0.299, 0.587, 0.114)
"""What red, green and blue count for in a grey value (ITU-R BT.601)."""

Picture = Float32[np.ndarray, "height width"]
"""Grey values of a slice from 0 to 1."""


@dataclass(frozen=True, eq=False)
class _SlicePicture:
    """A slice read from a file.

    Attributes:
        values: Grey values from 0 to 1, (height, width).
        bits: Of a stored value, 8 or 16.
        coloured_share: Share of the pixels that have a colour, 0 to 1.
    """

    values: Picture
    bits: int
    coloured_share: float

    @property
    def is_marked(self) -> bool:
        """Whether something coloured was drawn on it."""
        return self.coloured_share > MAX_COLOURED_SHARE


def read_picture(path: Path, sixteen_bit: str = "own_range") -> _SlicePicture:
    """Read a slice from a PNG, JPEG or TIFF file.

    Args:
        path: The file; its format is known by its name.
        sixteen_bit: What becomes 0 and 1 of a picture with 16 bits; see `PictureForm`.

    Raises:
        ReadError: It is no picture, damaged, too small or too large; the message names the file.
    """
    if path.suffix.lower() not in PICTURE_ENDINGS:
        msg = f"{path.name} is no picture of a slice: expected one of {', '.join(PICTURE_ENDINGS)}."
        raise ReadError(msg)
    if not path.is_file():
        raise ReadError(f"There is no picture {path}.")
    stored = read_stored_pixels(path)
    if min(stored.shape[:2]) < _SMALLEST_SIDE:
        msg = (
            f"{path.name} has {stored.shape[0]} x {stored.shape[1]} pixels; a slice of at least "
            f"{_SMALLEST_SIDE} x {_SMALLEST_SIDE} was expected. Leave it out."
        )
        raise ReadError(msg)
    bits = 8 * stored.dtype.itemsize
    share = _coloured_share(stored, bits)
    return _SlicePicture(_scaled(_grey(stored), stored.dtype, sixteen_bit), bits, share)


def fitted(values: Picture, form: PictureForm) -> Float32[np.ndarray, "size size"]:
    """A picture at the size of a network's input."""
    if form.keeps_shape:
        values = _squared(values)
    method = {"nearest": Image.Resampling.NEAREST, "linear": Image.Resampling.BILINEAR}
    resized = Image.fromarray(values).resize((form.size, form.size), method[form.interpolation])
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)


def _grey(stored: Integer[np.ndarray, "height width *samples"]) -> Picture:
    """One value per pixel, in stored units; what alpha says is left out."""
    if stored.ndim == 2:
        return stored.astype(np.float32)
    if stored.shape[-1] < 3:
        return np.ascontiguousarray(stored[..., 0], dtype=np.float32)
    colours = stored[..., :3].astype(np.float32)
    return np.asarray(colours @ np.array(_GREY_SHARES, dtype=np.float32))


def _scaled(values: Picture, dtype: np.dtype, sixteen_bit: str) -> Picture:
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


def _squared(values: Picture) -> Float32[np.ndarray, "side side"]:
    height, width = values.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = values
    return square


_FEW_PICTURES: Final = 400
"""So many pictures are read in this process alone."""

_NAME: Final = "slices-"
_REMEDY: Final = (
    "Free space or choose another folder for prepared slices: data.cache in the settings, or the "
    "environment's XDG_CACHE_HOME."
)


@dataclass(frozen=True)
class SliceFacts:
    """What is known of one slice's file.

    Attributes:
        rows: Height in pixels.
        columns: Width in pixels.
        bits: Of a stored value.
        coloured_share: Share of the pixels with a colour.
        digest: Hash of its grey values; two files with the same picture have the same.
        error: Why it cannot be read, or empty.
    """

    rows: int = 0
    columns: int = 0
    bits: int = 0
    coloured_share: float = 0.0
    digest: str = ""
    error: str = ""


@dataclass(frozen=True, eq=False)
class SliceStore:
    """All slices of a manifest at one size.

    Attributes:
        pictures: Grey values from 0 to 1, in the order of the manifest; zeros where a slice could
            not be read.
        facts: Of each.
        places: Row of the manifest to the place in both.
    """

    pictures: Float16[np.ndarray, "slice height width"]
    facts: tuple[SliceFacts, ...]
    places: dict[int, int]

    @property
    def by_row(self) -> dict[int, SliceFacts]:
        """Row of the manifest to what is known of its slice."""
        return {row: self.facts[place] for row, place in self.places.items()}


class LabelledSlices(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Slices with their labels, as the training loop takes scans: volumes of depth one.

    Attributes:
        labels: Index of each item's label.
    """

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
    """Read every slice of a manifest, or take what an earlier call kept.

    Args:
        manifest: One row per slice.
        form: How pictures become inputs.
        folder: Where the file is kept.
        processes: How many pictures are read at once, of many; None takes all cores.
        progress: Told how far things are.

    Raises:
        WriteError: The folder cannot be written.
        ReadError: A file of the manifest is gone.
    """
    paths = [manifest.path(row) for row in manifest.rows]
    places = {row.number: place for place, row in enumerate(manifest.rows)}
    kept = folder / f"{_NAME}{_key(paths, form)}"
    values_file, facts_file = kept.with_suffix(".npy"), kept.with_suffix(".json")
    if facts_file.is_file() and values_file.is_file():
        facts = tuple(SliceFacts(**each) for each in json.loads(facts_file.read_text()))
        return SliceStore(_opened(values_file), facts, places)
    tasks = [(path, form) for path in paths]
    # Starting a process takes as long as reading hundreds of pictures.
    count = 1 if len(tasks) < _FEW_PICTURES else processes
    found = run_all(_read_one, tasks, processes=count, progress=progress)
    _keep(values_file, facts_file, found)
    return SliceStore(_opened(values_file), tuple(facts for facts, _ in found), places)


Task = tuple[Path, PictureForm]
Found = tuple[SliceFacts, Float16[np.ndarray, "height width"]]


def _read_one(task: Task) -> Found:
    """Facts and values of one slice, by any process; what goes wrong is a fact."""
    path, form = task
    try:
        picture = read_picture(path, form.sixteen_bit)
    except ChestCTError as error:
        empty = np.zeros((form.size, form.size), dtype=np.float16)
        return SliceFacts(error=str(error)), empty
    rows, columns = picture.values.shape
    # To 16 bits: grey and RGB of the same picture differ in the last digits of a float.
    levels = np.rint(picture.values * 65535).astype(np.uint16)
    grey = hashlib.blake2b(levels.tobytes(), digest_size=16)
    grey.update(f"{rows} {columns}".encode())
    share = round(picture.coloured_share, 6) if picture.is_marked else 0.0
    facts = SliceFacts(rows, columns, picture.bits, share, grey.hexdigest())
    return facts, fitted(picture.values, form).astype(np.float16)


def _key(paths: Sequence[Path], form: PictureForm) -> str:
    """Hash of what the file's content depends on; a picture that was changed changes it."""
    stats = []
    for path in paths:
        try:
            stat = path.stat()
            stats.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        except OSError:
            stats.append([str(path), 0, 0])
    text = json.dumps([1, form.model_dump(), stats])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _opened(path: Path) -> Float16[np.ndarray, "slice height width"]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _keep(values_file: Path, facts_file: Path, found: Sequence[Found]) -> None:
    """Write both files aside and rename them, the facts last: they say that all is there."""
    write_whole_with(values_file, lambda aside: _write_values(aside, found), remedy=_REMEDY)
    text = json.dumps([asdict(facts) for facts, _ in found])
    write_whole_with(
        facts_file, lambda aside: aside.write_text(text, encoding="utf-8"), remedy=_REMEDY
    )


def _write_values(path: Path, found: Sequence[Found]) -> None:
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

"""What a folder of image slices does not say about itself: voxel size, order, map to HU.

It comes from the caller or from a sidecar file, `chestct.json`, in the folder of the slices:

    {
      "spacing_mm": [1.0, 0.7, 0.7],
      "order": "ascending",
      "unit": "HU",
      "slope": 1,
      "intercept": -1024
    }

| field | meaning |
|---|---|
| spacing_mm | distance between voxel centres in mm: between slices, between rows, between columns |
| order | "ascending": the first file is nearest the feet; "descending": nearest the head |
| unit | "HU" (the default), or "windowed" for exports without an absolute scale |
| slope, intercept | HU = slope * stored + intercept; needed for "HU", not allowed for "windowed" |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from chestct.arrays import Spacing
from chestct.errors import ReadError
from chestct.lookup import unknown_name_message
from chestct.volume import Unit

SIDECAR = "chestct.json"
"""Name of the file that describes a folder of slices."""

EXAMPLE = (
    '{"spacing_mm": [2.0, 0.7, 0.7], "order": "ascending", "unit": "HU",'
    ' "slope": 1, "intercept": -1024}'
)
"""A sidecar, with numbers to be replaced."""

_MAX_SIDECAR_BYTES = 65536
_MAX_SPACING_MM = 50.0

Order = Literal["ascending", "descending"]


@dataclass(frozen=True)
class TiffGeometry:
    """Geometry and scale of a folder of slices; nothing of it is ever guessed.

    Attributes:
        spacing_mm: Between slices, rows and columns: (depth, height, width).
        order: "ascending" when the first file, by natural order of names, is nearest the feet.
        slope: HU = slope * stored + intercept. Needed for unit "HU".
        intercept: See `slope`; -1024 or -1000 in most exports.
        unit: "HU", or "windowed" when the values have no absolute scale.

    Raises:
        ReadError: A field is missing, impossible, or contradicts another; the message names it.
    """

    spacing_mm: Spacing
    order: Order
    slope: float | None = None
    intercept: float | None = None
    unit: Unit = "HU"

    def __post_init__(self) -> None:
        is_possible = len(self.spacing_mm) == 3 and all(
            0 < size <= _MAX_SPACING_MM for size in self.spacing_mm
        )
        if not is_possible:
            msg = f"spacing_mm must be three sizes above 0 and up to {_MAX_SPACING_MM:g} mm"
            raise ReadError(f"{msg} (slices, rows, columns), not {self.spacing_mm}.")
        _check_choice("order", self.order, get_args(Order))
        _check_choice("unit", self.unit, get_args(Unit))
        has_map = self.slope is not None or self.intercept is not None
        if self.unit == "windowed":
            if has_map:
                msg = "slope and intercept lead to Hounsfield units: leave them out, or set HU."
                raise ReadError(msg)
            return
        if self.slope is None or self.intercept is None:
            msg = "slope and intercept are needed: HU = slope * stored + intercept"
            raise ReadError(f'{msg}. Without an absolute scale set unit to "windowed".')
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)) or self.slope == 0:
            msg = "slope and intercept must be finite and slope not 0, not"
            raise ReadError(f"{msg} {self.slope} and {self.intercept}.")


def as_options(geometry: TiffGeometry) -> str:
    """A geometry as it is said on the command line."""
    said = [f"--spacing-mm {','.join(f'{size:g}' for size in geometry.spacing_mm)}"]
    said.append(f"--order {geometry.order}")
    if geometry.unit == "windowed":
        said.append("--windowed")
    else:
        said += [f"--slope {geometry.slope:g}", f"--intercept {geometry.intercept:g}"]
    return " ".join(said)


def read_sidecar(folder: Path) -> TiffGeometry | None:
    """The geometry that `chestct.json` in a folder of slices states; None without such a file.

    Raises:
        ReadError: The file is too large, not JSON, or a field is missing, unknown or impossible.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SIDECAR_BYTES + 1)
        if len(text) > _MAX_SIDECAR_BYTES:
            raise ReadError(f"{path.name} is larger than {_MAX_SIDECAR_BYTES} bytes.")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path.name} is not a readable JSON file: {error}.") from error
    try:
        return geometry_from_dict(content)
    except ReadError as error:
        raise ReadError(f"{path.name}: {error}") from error


def geometry_from_dict(content: object) -> TiffGeometry:
    """A geometry from the fields of a sidecar.

    Raises:
        ReadError: Not an object, or a field is missing, unknown or impossible.
    """
    if not isinstance(content, Mapping):
        raise ReadError(f"an object with spacing_mm and order was expected, not {content!r:.40}.")
    known = [field.name for field in fields(TiffGeometry)]
    for name in content:
        if name not in known:
            raise ReadError(unknown_name_message(str(name), known, kind="field"))
    for name in ("spacing_mm", "order"):
        if name not in content:
            raise ReadError(f"{name} is missing. Fields: {', '.join(known)}.")
    spacing = content["spacing_mm"]
    if not isinstance(spacing, list | tuple) or len(spacing) != 3:
        raise ReadError(f"spacing_mm must be three numbers in mm, not {spacing!r:.40}.")
    depth, height, width = (_number("spacing_mm", size) for size in spacing)
    scale = {
        name: _number(name, content[name])
        for name in ("slope", "intercept")
        if content.get(name) is not None
    }
    order, unit = content["order"], content.get("unit", "HU")
    _check_choice("order", order, get_args(Order))
    _check_choice("unit", unit, get_args(Unit))
    return TiffGeometry((depth, height, width), order, unit=unit, **scale)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReadError(f"{name} must be a number, not {value!r:.40}.")
    try:
        return float(value)
    except OverflowError as error:
        raise ReadError(f"{name} must be a number of ordinary size.") from error


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ReadError(f'{name} must be "{choices[0]}" or "{choices[1]}", not {value!r:.40}.')

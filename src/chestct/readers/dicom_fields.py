"""The elements that a CT reader needs, by name, and how their values are read.

Only what stands here is ever looked at: names, dates and descriptions of patients and studies are
jumped over. The one exception, the patient ID, is hashed at once; it serves to notice that a
folder holds two patients.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from chestct.readers.files import UnreadableFileError

TAGS: Final[dict[str, int]] = {
    "transfer_syntax": 0x00020010,
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "slice_uid": 0x00080018,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "model": 0x00081090,
    "series_description": 0x0008103E,
    "frame_type": 0x00089007,
    "patient_id": 0x00100020,
    "slice_thickness_mm": 0x00180050,
    "kvp": 0x00180060,
    "kernel": 0x00181210,
    "trigger_time": 0x00181060,
    "trigger_delay": 0x00209153,
    "cardiac_phase": 0x00209241,
    "study_uid": 0x0020000D,
    "acquisition": 0x00200012,
    "frame_acquisition": 0x00209156,
    "frame_of_reference": 0x00200052,
    "stack": 0x00209056,
    "temporal_position": 0x00200100,
    "temporal_index": 0x00209128,
    "temporal_offset": 0x0020930D,
    "patient_position": 0x00185100,
    "series_uid": 0x0020000E,
    "instance_number": 0x00200013,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "num_frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "pixel_representation": 0x00280103,
    "padding_value": 0x00280120,
    "padding_limit": 0x00280121,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
    "lossy": 0x00282110,
    "lossy_ratio": 0x00282112,
    "lut_descriptor": 0x00283002,
    "lut_data": 0x00283006,
    "lut_type": 0x00283004,
    "offset_table": 0x7FE00001,
    "offset_lengths": 0x7FE00002,
}
"""Element names used in this package and their tags (PS3.6)."""

FACT_NAMES: Final = (
    "kernel",
    "slice_thickness_mm",
    "manufacturer",
    "model",
    "kvp",
    "patient_position",
)
"""The acquisition facts that are kept and may be shown: none of them can identify a patient."""

FRAME_NAMES: Final = (
    "position",
    "orientation",
    "pixel_spacing",
    "slope",
    "intercept",
    "rescale_type",
    "slice_thickness_mm",
    "kernel",
    "frame_type",
    "kvp",
    "frame_acquisition",
    "stack",
    "temporal_index",
    "temporal_offset",
    "trigger_delay",
    "cardiac_phase",
)
"""What an enhanced image says per frame or for all frames instead of once (PS3.3 C.7.6.16)."""

LUT_NAMES: Final = ("lut_descriptor", "lut_data", "lut_type")
"""What an item of the Modality LUT Sequence says (PS3.3 C.11.1); other tables have it too."""

MODALITY_LUT = 0x00283000
SHARED_GROUPS = 0x52009229
PER_FRAME_GROUPS = 0x52009230

_MAX_TEXT = 64
_WANTED_LENGTH = 1024
_LONG_NAMES = ("offset_table", "offset_lengths", "lut_data")
_NAMES = {tag: name for name, tag in TAGS.items()}


def wanted_name(tag: int, length: int) -> str | None:
    """Name of an element that is read; None for all others and for values of absurd length."""
    name = _NAMES.get(tag)
    if name is None or length <= _WANTED_LENGTH or name in _LONG_NAMES:
        return name
    raise UnreadableFileError(f"has a value of {length} bytes where '{name}' should be")


@dataclass(frozen=True, slots=True)
class Fields:
    """Raw values by name, and the byte order of the binary ones."""

    raw: dict[str, bytes]
    order: str = "<"

    def text(self, name: str) -> str:
        """A value as one line of printable text, at most 64 characters; empty when absent."""
        return self._line(name)[:_MAX_TEXT].strip()

    def words(self, name: str) -> tuple[str, ...]:
        """The parts of a multi-valued text, in upper case."""
        return tuple(word.strip() for word in self._line(name).upper().split("\\"))

    def _line(self, name: str) -> str:
        """A value's printable characters, without the padding around them."""
        line = self.raw.get(name, b"").decode("latin-1").strip(" \0")
        return "".join(character for character in line if character.isprintable())

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Decimal strings as floats; None when absent or empty.

        Raises:
            UnreadableFileError: Not `count` finite numbers.
        """
        value = self.raw.get(name)
        line = value.decode("latin-1").strip(" \0") if value else ""
        if not line:
            return None
        try:
            found = tuple(float(part) for part in line.split("\\"))
        except ValueError:
            found = ()
        if len(found) < count or not all(math.isfinite(x) for x in found):
            raise UnreadableFileError(f"has no {count} finite number(s) in '{name}'")
        return found[:count]

    def integer(self, name: str, default: int = 0, *, is_signed: bool = False) -> int:
        """A binary or written-out whole number.

        Raises:
            UnreadableFileError: It is neither.
        """
        value = self.raw.get(name)
        if not value:
            return default
        if len(value) == 2:
            order = "little" if self.order == "<" else "big"
            return int.from_bytes(value, order, signed=is_signed)  # type: ignore[arg-type]
        return self.written_integer(name)

    def written_integer(self, name: str, default: int = 0) -> int:
        """A whole number in decimal digits (IS), whatever its length."""
        value = self.raw.get(name)
        line = value.decode("latin-1").strip(" \0") if value else ""
        try:
            return int(line) if line else default
        except ValueError as error:
            raise UnreadableFileError(f"has no whole number in '{name}'") from error

    def hashed(self, name: str) -> str:
        """A short digest that tells values apart without holding them."""
        return hashlib.sha256(self.raw.get(name, b"").strip(b" \0")).hexdigest()[:16]

    def updated(self, other: Fields) -> Fields:
        """These fields, with those of `other` before them."""
        return Fields({**self.raw, **other.raw}, self.order)

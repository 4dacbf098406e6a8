"""Read what a CT reader needs of one DICOM file's header, and where its pixels lie.

Tolerant as readers should be: files with and without preamble or file meta information, explicit
files labelled implicit and the other way round, invalid identifiers. What is damaged is an
`UnreadableFileError`; what is not DICOM at all is None. Only the elements of `TAGS` are ever looked
at. ID, name, birth date, sex, age and weight of a patient serve to notice that a folder holds two
patients, and dates that it holds two scans. A description serves to notice maps, phases and
expiration. None of them is ever shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from chestct.readers.dicom_elements import (
    BIG_ENDIAN_UID,
    EXPLICIT_UID,
    PIXEL_DATA,
    UNDEFINED,
    Bytes,
    Element,
    Encoding,
    MoreBytesNeededError,
    find_dataset,
    inflated_file,
    looks_like_dicom,
    walk_elements,
    walk_items,
)
from chestct.readers.files import (
    PACKED_HEAD_BYTES,
    FileSource,
    Unpacked,
    UnreadableFileError,
    first_inside,
    is_wrapped,
    readable,
    unwrapped,
)

TAGS: Final[dict[str, int]] = {
    "first_record": 0x00041200,
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "slice_uid": 0x00080018,
    "study_date": 0x00080020,
    "acquisition_date": 0x00080022,
    "content_date": 0x00080023,
    "acquired": 0x0008002A,
    "study_time": 0x00080030,
    "acquisition_time": 0x00080032,
    "content_time": 0x00080033,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "model": 0x00081090,
    "series_description": 0x0008103E,
    "frame_type": 0x00089007,
    "frame_acquired": 0x00189074,
    "patient_name": 0x00100010,
    "patient_id": 0x00100020,
    "birth_date": 0x00100030,
    "sex": 0x00100040,
    "age": 0x00101010,
    "weight": 0x00101030,
    "body_part": 0x00180015,
    "slice_thickness_mm": 0x00180050,
    "kvp": 0x00180060,
    "slice_step_mm": 0x00180088,
    "diameter_mm": 0x00181100,
    "filter": 0x00181160,
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
    "location_mm": 0x00201041,
    "concatenation": 0x00209161,
    "concatenation_part": 0x00209162,
    "concatenation_parts": 0x00209163,
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

_FACT_NAMES: Final = (
    "kernel",
    "slice_thickness_mm",
    "manufacturer",
    "model",
    "kvp",
    "patient_position",
)
"""The acquisition facts that are kept and may be shown: none of them can identify a patient."""

_FRAME_NAMES: Final = (
    "position",
    "orientation",
    "pixel_spacing",
    "slope",
    "intercept",
    "rescale_type",
    "slice_thickness_mm",
    "kernel",
    "frame_type",
    "frame_acquired",
    "kvp",
    "frame_acquisition",
    "stack",
    "temporal_index",
    "temporal_offset",
    "trigger_delay",
    "cardiac_phase",
)
"""What an enhanced image says per frame or for all frames instead of once (PS3.3 C.7.6.16)."""

_LUT_NAMES: Final = ("lut_descriptor", "lut_data", "lut_type")
"""What an item of the Modality LUT Sequence says (PS3.3 C.11.1); other tables have it too."""

_MODALITY_LUT = 0x00283000
_SHARED_GROUPS = 0x52009229
_PER_FRAME_GROUPS = 0x52009230

_MAX_TEXT = 64
_WANTED_LENGTH = 1024
_LONG_NAMES = ("offset_table", "offset_lengths", "lut_data")
_NAMES = {tag: name for name, tag in TAGS.items()}
_COLLECTED = frozenset(_NAMES) | {_MODALITY_LUT, _SHARED_GROUPS, _PER_FRAME_GROUPS}


def _wanted_name(tag: int, length: int) -> str | None:
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
        return "".join(each for each in self._stripped(name) if each.isprintable())

    def _stripped(self, name: str) -> str:
        """A value as text, without the padding around it; empty when absent."""
        return self.raw.get(name, b"").decode("latin-1").strip(" \0")

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Decimal strings as floats; None when absent or empty.

        Raises:
            UnreadableFileError: Not `count` finite numbers.
        """
        line = self._stripped(name)
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
        line = self._stripped(name)
        try:
            return int(line) if line else default
        except ValueError as error:
            raise UnreadableFileError(f"has no whole number in '{name}'") from error

    def updated(self, other: Fields) -> Fields:
        """These fields, with those of `other` before them."""
        return Fields({**self.raw, **other.raw}, self.order)


_HEAD_BYTES = 2**14
"""Read of a file at first; enough for the header of nearly every slice."""
MAX_HEADER_BYTES = 2**26
"""Longest header read; 2000 frames of an enhanced CT need 3 MB."""
_MAX_OTHER_HEADER_BYTES = 2**20
"""As far an object of another modality is looked through for pixels; it is left out either way."""

_GROW_BY = 8
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
"""JPEG in 8 and 12 bits, JPEG-LS near-lossless, JPEG 2000, HTJ2K (PS3.5 A.4), if not said else."""
_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
"""CT Image Storage; the UIDs of enhanced and legacy converted CT continue it (PS3.4 B.5)."""
_MAX_GROUP_DEPTH = 3
_MACROS = frozenset({0x00189118, 0x00189314, 0x00189325, 0x00189329, 0x00209111, 0x00209113}) | {
    0x00209116,
    0x00209310,
    0x00289110,
    0x00289145,
}
"""Sequences of PS3.3 C.7.6.16 and C.8.15.3 that hold a `_FRAME_NAMES` field."""


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How and where the pixels of a file are stored (PS3.3 C.7.6.3).

    Attributes:
        rows: Height of a frame.
        columns: Width of a frame.
        samples: Values per pixel, 1 for CT.
        photometric: PhotometricInterpretation.
        bits_allocated: Bits a value takes in an uncompressed file.
        bits_stored: Bits of it that mean something.
        high_bit: The highest of those.
        is_signed: Whether values are two's complement.
        num_frames: Images in the file.
        syntax: Transfer syntax UID.
        order: Byte order of uncompressed values, "<" or ">".
        offset: Where the value of PixelData starts in the source.
        length: Its length, or `UNDEFINED` when it is encapsulated.
        offset_table: Extended Offset Table and its lengths, as stored; empty when there is none.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    num_frames: int
    syntax: str
    order: str
    offset: int
    length: int
    offset_table: tuple[bytes, bytes] = (b"", b"")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8

    @property
    def native_end(self) -> int:
        """Where uncompressed pixels end in the source."""
        return self.offset + self.frame_bytes * self.num_frames


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What one file says.

    Attributes:
        source: Where its pixels are read from.
        fields: Its own elements.
        frames: Elements of each frame, file-wide ones included. One entry for a plain image.
        layout: Its pixels; None when it has none.
    """

    source: FileSource
    fields: Fields
    frames: tuple[Fields, ...]
    layout: PixelLayout | None

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID as written."""
        return self.fields.text("series_uid")

    def facts(self) -> dict[str, str]:
        """Acquisition facts that may be shown."""
        found = {name: self.frames[0].text(name) for name in _FACT_NAMES}
        found["lossy_compression"] = self._lossy_words()
        return {name: value for name, value in found.items() if value}

    def _lossy_words(self) -> str:
        """Whether pixels were ever compressed with a loss (PS3.3 C.7.6.1.1.5); empty if not."""
        is_lossy = self.fields.text("lossy") == "01"
        if not is_lossy and (self.layout is None or self.layout.syntax not in LOSSY_SYNTAXES):
            return ""
        ratio = self.fields.text("lossy_ratio").split("\\")[-1].strip()
        return f"yes, {ratio} to 1" if ratio else "yes"


def read_header(source: FileSource, unpacked: Unpacked | None = None) -> DicomHeader | None:
    """Read a file's header; None when it is not DICOM.

    `unpacked` counts what the gzipped files of the same read unpack to.

    What says that it is no CT image ends at Modality when its header is longer than is read: a
    document, raw data or a waveform of any size must not stop the scan beside it from being read.

    Raises:
        UnreadableFileError: It is DICOM but damaged, cut short or beyond the bounds.
    """
    head, place = _first_bytes(source, _HEAD_BYTES), source
    if is_wrapped(head.content):
        packed = _first_bytes(source, PACKED_HEAD_BYTES).content
        if not looks_like_dicom(first_inside(packed)):
            return None
        source = unwrapped(source)
        place = (unpacked or Unpacked()).added(place, source)
        head = _first_bytes(source, _HEAD_BYTES)
    num_wanted = _HEAD_BYTES
    while True:
        try:
            return _parse(place, head)
        except MoreBytesNeededError:
            is_last = num_wanted >= MAX_HEADER_BYTES
            if is_last or num_wanted >= _MAX_OTHER_HEADER_BYTES:
                other = _other_object(place, head, trusts_class=is_last)
                if other is not None:
                    return other
            if is_last:
                msg = f"has a header of more than {MAX_HEADER_BYTES // 2**20} MiB"
                raise UnreadableFileError(msg) from None
            num_wanted *= _GROW_BY
            head = _first_bytes(source, num_wanted)


def _first_bytes(source: FileSource, count: int) -> Bytes:
    """The first bytes of a file."""
    with readable(), source.open() as stream:
        content = stream.read(count)
    return Bytes(content, is_whole=len(content) < count)


def _other_object(source: FileSource, head: Bytes, *, trusts_class: bool) -> DicomHeader | None:
    """What a file says up to Modality, if that is of no CT image; None where it may be of one.

    Some CT images have a SOP class of their maker's own, so that is believed only as a last resort.
    """
    raw: dict[str, bytes] = {}
    with suppress(MoreBytesNeededError):
        dataset = find_dataset(replace(head, num_elements=0))
        if dataset is None:
            return None
        for element in walk_elements(dataset.head, dataset.start, dataset.encoding):
            if element.tag > TAGS["modality"]:
                break
            if name := _wanted_name(element.tag, element.length):
                raw[name] = dataset.head.value(element)
    fields = Fields(raw)
    modality, uid = fields.text("modality").upper(), fields.text("sop_class")
    is_ct_class = uid in ("", _CT_CLASS) or uid.startswith(f"{_CT_CLASS}.")
    if modality in ("", "CT") and (is_ct_class or not trusts_class):
        return None
    return DicomHeader(source, fields, (fields,), None)


def _parse(source: FileSource, head: Bytes) -> DicomHeader | None:
    """Parse a header out of the first bytes of its file."""
    dataset = find_dataset(head)
    if dataset is None:
        return None
    head, start, encoding, syntax, deflated_at = dataset
    fields, groups, pixels = _collect(head, start, encoding)
    frames = _frame_fields(head, fields, groups, encoding)
    if pixels is None:
        return DicomHeader(source, fields, frames, None)
    written = BIG_ENDIAN_UID if encoding.order == ">" else EXPLICIT_UID
    layout = _layout(fields, pixels, syntax or written)
    if deflated_at is not None:
        source = inflated_file(source, deflated_at, layout.native_end)
    return DicomHeader(source, fields, frames, layout)


def _collect(
    head: Bytes, start: int, encoding: Encoding
) -> tuple[Fields, dict[int, Element], Element | None]:
    """The wanted fields of a data set, its functional groups, and its pixels."""
    raw: dict[str, bytes] = {}
    groups: dict[int, Element] = {}
    for element in walk_elements(head, start, encoding, wanted=_COLLECTED):
        if element.tag == PIXEL_DATA:
            return Fields(raw, encoding.order), groups, element
        if element.tag in (_SHARED_GROUPS, _PER_FRAME_GROUPS):
            groups[element.tag] = element
        elif element.tag == _MODALITY_LUT:
            raw |= _lut_values(head, element, encoding)
        elif name := _wanted_name(element.tag, element.length):
            raw[name] = head.value(element)
    return Fields(raw, encoding.order), groups, None


def _lut_values(head: Bytes, element: Element, encoding: Encoding) -> dict[str, bytes]:
    """What the one item of a Modality LUT Sequence says."""
    raw: dict[str, bytes] = {}
    for start, end in walk_items(head, element, encoding):
        for inner in walk_elements(head, start, encoding, end):
            name = _wanted_name(inner.tag, inner.length)
            if name in _LUT_NAMES:
                raw.setdefault(name, head.value(inner))
    return raw


def _frame_fields(
    head: Bytes, fields: Fields, groups: dict[int, Element], encoding: Encoding
) -> tuple[Fields, ...]:
    """Fields per frame: the file's own, then the shared ones, then the frame's."""
    if _PER_FRAME_GROUPS not in groups:
        return (fields,)
    shared = fields
    if _SHARED_GROUPS in groups:
        for item in _flat_items(head, groups[_SHARED_GROUPS], encoding):
            shared = shared.updated(item)
    items = _flat_items(head, groups[_PER_FRAME_GROUPS], encoding)
    frames = tuple(shared.updated(item) for item in items)
    return frames or (fields,)


def _flat_items(head: Bytes, element: Element, encoding: Encoding) -> Iterator[Fields]:
    """The wanted fields of each item of a functional-groups sequence, whatever macro holds them."""
    for start, end in walk_items(head, element, encoding):
        raw: dict[str, bytes] = {}
        _flatten(head, (start, end), encoding, raw, 0)
        yield Fields(raw, encoding.order)


def _flatten(
    head: Bytes, item: tuple[int, int], encoding: Encoding, raw: dict[str, bytes], depth: int
) -> None:
    """Gather wanted fields of an item and of the sequences in it, the first of a name winning."""
    for element in walk_elements(head, item[0], encoding, item[1]):
        name = _wanted_name(element.tag, element.length)
        if name in _FRAME_NAMES:
            raw.setdefault(name, head.value(element))
        elif element.tag in _MACROS and depth < _MAX_GROUP_DEPTH:
            for inner in walk_items(head, element, encoding):
                _flatten(head, inner, encoding, raw, depth + 1)


def _layout(fields: Fields, pixels: Element, syntax: str) -> PixelLayout:
    """Put together how the pixels are stored."""
    bits_allocated = fields.integer("bits_allocated")
    bits_stored = fields.integer("bits_stored", bits_allocated)
    is_encapsulated = pixels.length == UNDEFINED
    return PixelLayout(
        rows=fields.integer("rows"),
        columns=fields.integer("columns"),
        samples=fields.integer("samples", 1),
        photometric=fields.text("photometric"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=fields.integer("high_bit", bits_stored - 1),
        is_signed=bool(fields.integer("pixel_representation")),
        num_frames=fields.written_integer("num_frames", 1),
        syntax=syntax,
        order=fields.order,
        offset=pixels.start,
        length=pixels.length,
        offset_table=(
            (fields.raw.get("offset_table", b""), fields.raw.get("offset_lengths", b""))
            if is_encapsulated
            else (b"", b"")
        ),
    )

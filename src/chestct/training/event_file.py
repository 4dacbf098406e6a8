"""Figures of epochs as TensorBoard reads them, written without its package.

An event file is a row of records, each a length, the event in protobuf's wire format, and a
checksum after both. Five numbers per epoch need no more than these few lines; the packages that
write such files bring a server along, and a thread that waits for ever when the disk is full.
Formats: `tensorflow/core/util/event.proto`, `summary.proto`, and TFRecord's framing.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from chestct.errors import WriteError

TAGS: Final = {
    "training_loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "seconds": "epoch/seconds",
    "gpu_memory_gib": "epoch/gpu_memory_gib",
}
"""Field of `run.EpochLog` to what it is called in TensorBoard."""

_VERSION: Final = b"brain.Event:2"
_CASTAGNOLI: Final = 0x82F63B78
_MASK_DELTA: Final = 0xA282EAD8
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class EventFile:
    """The event file of one training; of a training that goes on it holds all epochs again.

    Args:
        folder: Where it lies; event files of earlier sessions there are replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.chestct"
        self._num_written = 0

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs that are not in it yet.

        Args:
            epochs: All that are finished, as `log.jsonl` has them.

        Raises:
            WriteError: It cannot be written.
        """
        new = epochs[self._num_written :]
        try:
            if self._num_written == 0:
                self._begin()
            with self._path.open("ab") as file:
                file.write(b"".join(record(_epoch(each, time.time())) for each in new))
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            msg = f"{self._path.name} cannot be written in {self._folder.name}: {reason}. Free "
            raise WriteError(msg + "some space and start the same command again.") from error
        self._num_written = len(epochs)

    def finish(self, figures: Mapping[str, float]) -> None:
        """There is nothing left to do: final figures stand in the run folder."""

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._path.write_bytes(record(_double(1, time.time()) + _bytes(3, _VERSION)))


def record(content: bytes) -> bytes:
    """A TFRecord: length, its checksum, content, its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def crc32c(content: bytes) -> int:
    """Castagnoli's cyclic redundancy check."""
    table, remainder = _crc_table(), 0xFFFFFFFF
    for byte in content:
        remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder ^ 0xFFFFFFFF


def _epoch(figures: Mapping[str, Any], wall_time: float) -> bytes:
    """One event with a value for each figure that there is."""
    values = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + _float(2, figures[name]))
        for name, tag in TAGS.items()
        if figures.get(name) is not None
    )
    step = _key(2, _VARINT) + _varint(figures["epoch"])
    return _double(1, wall_time) + step + _bytes(5, values)


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (_CASTAGNOLI if number & 1 else 0)
        table.append(number)
    return tuple(table)


def _checksum(content: bytes) -> bytes:
    """The check as TFRecord stores it: turned and shifted, as its data often hold checks too."""
    plain = crc32c(content)
    turned = (plain >> 15) | (plain << 17)
    return struct.pack("<I", (turned + _MASK_DELTA) & 0xFFFFFFFF)


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _double(field: int, value: float) -> bytes:
    return _key(field, _DOUBLE) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, _FLOAT) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value

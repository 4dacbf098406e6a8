"""Damaged and random files: an error of our own family or a volume, soon, in bounded memory."""

from __future__ import annotations

import gzip
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ENCODERS, ct_dataset, enhanced_dataset, pixels_at, save, save_encapsulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from chestct.errors import ChestCTError
from chestct.readers.dicom_series import read_dicom
from chestct.volume import Volume

MAX_S = 5.0
MAX_GROWTH_KIB = 500 * 1024
SEEDS = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    **{f"compressed {uid[18:]}": uid for uid in ENCODERS},
}
fuzzed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(content: bytes, folder: Path) -> Volume | ChestCTError:
    """What reading these bytes gives; anything but a volume or our own error is a failure."""
    path = folder / "fuzzed.dcm"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    try:
        found: Volume | ChestCTError = read_dicom(path)
    except ChestCTError as error:
        found = error
    assert time.monotonic() - start < MAX_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB
    return found


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small valid file per encoding, and an enhanced one."""
    folder = tmp_path_factory.mktemp("seeds")
    stored = pixels_at(1.0, (16, 16))
    found = {}
    for name, uid in SEEDS.items():
        dataset = ct_dataset(stored, 1.0)
        if uid in ENCODERS:
            save_encapsulated(dataset, folder / "x", uid, [bytes(ENCODERS[uid](stored))])
        else:
            save(dataset, folder / "x", uid)
        found[name] = (folder / "x").read_bytes()
    frames = np.stack([stored, stored + np.uint16(1)])
    found["enhanced"] = save(enhanced_dataset(frames, [0.0, 2.0]), folder / "x").read_bytes()
    return found


@pytest.mark.parametrize("name", [*SEEDS, "enhanced"])
def test_seed_itself_is_read(seeds: dict[str, bytes], name: str, tmp_path: Path) -> None:
    assert isinstance(outcome(seeds[name], tmp_path), Volume)


@pytest.mark.parametrize("name", [*SEEDS, "enhanced"])
@fuzzed
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_single_byte_may_be_wrong(
    seeds: dict[str, bytes], name: str, tmp_path: Path, place: int, value: int
) -> None:
    content = bytearray(seeds[name])
    content[128 + place % (len(content) - 128)] = value
    assert isinstance(outcome(bytes(content), tmp_path), Volume | ChestCTError)


@pytest.mark.parametrize("name", [*SEEDS, "enhanced"])
def test_sampled_bytes_may_have_any_bit_flipped(
    seeds: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    """The bytes that matter most, lengths and tags, one after the other."""
    chooser = random.Random(name)
    places = chooser.sample(range(132, len(seeds[name])), 40)
    for place in places:
        content = bytearray(seeds[name])
        content[place] ^= 1 << chooser.randrange(8)
        assert isinstance(outcome(bytes(content), tmp_path), Volume | ChestCTError)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEEDS, "enhanced"])
def test_every_byte_may_be_wrong(seeds: dict[str, bytes], name: str, tmp_path: Path) -> None:
    for place in range(128, len(seeds[name])):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            content = bytearray(seeds[name])
            content[place] = value
            assert isinstance(outcome(bytes(content), tmp_path), Volume | ChestCTError)


@pytest.mark.parametrize("name", [*SEEDS, "enhanced"])
def test_file_may_end_anywhere(seeds: dict[str, bytes], name: str, tmp_path: Path) -> None:
    content = seeds[name]
    # Only the delimiter, the last 8 bytes, may be missing without loss.
    for length in range(0, len(content) - 8, 1 + len(content) // 30):
        assert isinstance(outcome(content[:length], tmp_path), ChestCTError)


@fuzzed
@given(content=st.binary(max_size=400), has_prefix=st.booleans())
def test_random_bytes_are_an_error(tmp_path: Path, content: bytes, has_prefix: bool) -> None:
    prefix = bytes(128) + b"DICM" if has_prefix else b""
    assert isinstance(outcome(prefix + content, tmp_path), ChestCTError)


@fuzzed
@given(content=st.binary(max_size=200), syntax=st.sampled_from(sorted(ENCODERS)))
def test_random_compressed_pixels_are_an_error_or_pixels(
    tmp_path: Path, content: bytes, syntax: str
) -> None:
    dataset = ct_dataset(pixels_at(1.0, (16, 16)), 1.0)
    path = save_encapsulated(dataset, tmp_path / "seed", syntax, [content or b"\0\0"])
    assert isinstance(outcome(path.read_bytes(), tmp_path), Volume | ChestCTError)


def element(group: int, number: int, length: int) -> bytes:
    return struct.pack("<HHL", group, number, length)


def deflate_bomb(folder: Path) -> bytes:
    path = save(ct_dataset(pixels_at(1.0)), folder / "x", DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    stream = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = stream.compress(element(8, 5, 0) + element(8, 0x1140, 2**31) + bytes(2**27))
    return content[:start] + bomb + stream.flush()


def huge_image(folder: Path) -> bytes:
    syntax = "1.2.840.10008.1.2.4.90"
    frame = bytearray(ENCODERS[syntax](pixels_at(1.0, (16, 16))))
    frame[8:16] = struct.pack(">LL", 60_000, 60_000)
    dataset = ct_dataset(pixels_at(1.0, (16, 16)), Rows=60_000, Columns=60_000)
    return save_encapsulated(dataset, folder / "x", syntax, [bytes(frame)]).read_bytes()


def wrapped_bomb(folder: Path) -> bytes:
    path = save(ct_dataset(pixels_at(1.0)), folder / "x")
    return gzip.compress(path.read_bytes() + bytes(2**28), 1)


FIRST = element(0x0008, 0x0005, 0)
OPEN = element(8, 0x1140, 0xFFFFFFFF) + element(0xFFFE, 0xE000, 0xFFFFFFFF)
HOSTILE = {
    "million empty elements": lambda _: FIRST + element(0x0009, 0x0010, 0) * 2_000_000,
    "nested without end": lambda _: FIRST + OPEN * 100_000,
    "huge length": lambda _: FIRST + element(0x0009, 0x0010, 0xFFFFFFF0) + bytes(100),
    "gzip bomb": lambda _: gzip.compress(bytes(2**28), 1),
    "gzip bomb that begins as DICOM": wrapped_bomb,
    "deflate bomb": deflate_bomb,
    "huge image": huge_image,
}

# In a process of its own: neither the memory of other tests nor run-time type checks count.
PROGRAM = """
import sys, time
from pathlib import Path
from chestct.errors import ChestCTError
from chestct.readers.dicom_series import read_dicom
start = time.monotonic()
try:
    read_dicom(Path(sys.argv[1]))
except ChestCTError:
    seconds = time.monotonic() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM")).split()[1], seconds)
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_an_error_soon_and_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.dcm"
    path.write_bytes(HOSTILE[name](tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True
    )
    peak_kib, seconds = map(float, done.stdout.split())
    assert peak_kib < MAX_GROWTH_KIB
    assert seconds < MAX_S

"""Damaged NIfTI files and slice stacks: an error of our own family or a volume, soon and small."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from chestct.errors import ChestCTError
from chestct.readers.nifti import read_nifti
from chestct.readers.pictures import TiffGeometry, read_tiff_stack
from chestct.volume import Volume

PERMITTED = {"volume", "ReadError"}
MAX_SECONDS = 5.0
MAX_BYTES = 100e6
GEOMETRY = TiffGeometry((2.0, 0.7, 0.8), "ascending", slope=1, intercept=-1024)
PIXELS = np.random.default_rng(3).integers(0, 3000, (12, 16)).astype(np.uint16)

STORED = PIXELS.astype(np.int16).reshape(4, 6, 8) - 1024

Read = Callable[[], Volume]


def ends_well(read: Read) -> str:
    """Read, and say how it ended; anything but a volume or a ChestCTError is a failure."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        volume = read()
        outcome = "volume"
        assert np.isfinite(volume.voxels).all()
        assert volume.voxels.shape == volume.grid.shape
    except ChestCTError as error:
        outcome = type(error).__name__
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES
    return outcome


def nifti_bytes(image_type: type = nibabel.Nifti1Image) -> bytes:
    picture = image_type(STORED, np.diag([-0.7, -0.7, 2.0, 1.0]))
    picture.header.set_xyzt_units("mm")
    picture.set_qform(picture.affine, code=1)
    return bytes(picture.to_bytes())


NIFTI1 = nifti_bytes()
NIFTI2 = nifti_bytes(nibabel.Nifti2Image)
ZIPPED = gzip.compress(NIFTI1)


def slice_bytes(folder: Path, **options: object) -> bytes:
    tifffile.imwrite(folder / "made.tif", PIXELS, **options)
    return (folder / "made.tif").read_bytes()


def corrupted(content: bytes, position: int, value: int) -> bytes:
    changed = bytearray(content)
    changed[position] = value
    return bytes(changed)


def sampled_corruptions(content: bytes, positions: range, num_samples: int) -> Iterator[bytes]:
    """Single bytes set to 0, 255 or one bit off, at that many of the positions.

    All positions were tried once; the sample keeps the suite quick.
    """
    rng = np.random.default_rng(11)
    for position in rng.permutation(positions)[:num_samples].tolist():
        value = rng.choice([0, 255, content[position] ^ 1, content[position] ^ 128])
        yield corrupted(content, position, int(value))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_bytes_as_nifti(workplace: Path, content: bytes) -> Read:
    path = workplace / "scan.nii.gz"
    path.write_bytes(content)
    return lambda: read_nifti(path)


def read_bytes_as_slice(workplace: Path, content: bytes, suffix: str = ".tif") -> Read:
    """A stack of the given slice alone."""
    folder = workplace / suffix[1:]
    folder.mkdir(exist_ok=True)
    (folder / f"1{suffix}").write_bytes(content)
    return lambda: read_tiff_stack(folder, GEOMETRY)


@pytest.mark.parametrize("content", [NIFTI1, NIFTI2], ids=["nifti1", "nifti2"])
def test_a_corrupted_header_byte_ends_well(workplace: Path, content: bytes) -> None:
    header_bytes = int.from_bytes(content[:4], "little") + 4
    outcomes = {
        ends_well(read_bytes_as_nifti(workplace, changed))
        for changed in sampled_corruptions(content, range(header_bytes), 150)
    }
    assert outcomes == {"volume", "ReadError"}


def test_bytes_of_a_gzipped_file_corrupted_is_refused_or_harmless(workplace: Path) -> None:
    expected = ends_well(read_bytes_as_nifti(workplace, ZIPPED))
    assert expected == "volume"
    for position in range(0, len(ZIPPED), 4):
        read = read_bytes_as_nifti(workplace, corrupted(ZIPPED, position, ZIPPED[position] ^ 64))
        # The gzip header has bytes without meaning, and deflate several ways to say the same.
        if ends_well(read) == "volume":
            np.testing.assert_array_equal(read().voxels, STORED.T)


@pytest.mark.parametrize("content", [NIFTI1, ZIPPED], ids=["plain", "gzipped"])
def test_a_nifti_file_cut_anywhere_is_refused(workplace: Path, content: bytes) -> None:
    for length in range(0, len(content), 16):
        assert ends_well(read_bytes_as_nifti(workplace, content[:length])) == "ReadError"


TIFF_KINDS = {
    "plain": {},
    "strips": {"rowsperstrip": 5},
    "deflate": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "tiles": {"tile": (16, 16), "compression": "zlib"},
    "big": {"bigtiff": True, "byteorder": ">"},
}


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_a_corrupted_tiff_byte_ends_well(workplace: Path, kind: str) -> None:
    content = slice_bytes(workplace, **TIFF_KINDS[kind])
    assert ends_well(read_bytes_as_slice(workplace, content)) == "volume"
    outcomes = {
        ends_well(read_bytes_as_slice(workplace, changed))
        for changed in sampled_corruptions(content, range(len(content)), 80)
    }
    assert outcomes <= PERMITTED
    assert "ReadError" in outcomes


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_a_tiff_slice_cut_anywhere_within_its_pixels_is_refused(workplace: Path, kind: str) -> None:
    content = slice_bytes(workplace, **TIFF_KINDS[kind])
    (workplace / "made.tif").write_bytes(content)
    with tifffile.TiffFile(workplace / "made.tif") as file:
        page = file.pages.first
        end = max(a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    for length in range(0, end, 29):
        assert ends_well(read_bytes_as_slice(workplace, content[:length])) == "ReadError"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_with_a_corrupted_byte_or_cut_ends_well(workplace: Path, suffix: str) -> None:
    path = workplace / f"made{suffix}"
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).save(path)
    content = path.read_bytes()
    assert ends_well(read_bytes_as_slice(workplace, content, suffix)) == "volume"
    chunk_length = corrupted(content, 8, 255)  # a PNG that declares a first chunk of 4 GB
    for changed in [chunk_length, *sampled_corruptions(content, range(len(content)), 100)]:
        assert ends_well(read_bytes_as_slice(workplace, changed, suffix)) in PERMITTED
    for length in range(0, len(content) // 2, 20):
        read = read_bytes_as_slice(workplace, content[:length], suffix)
        assert ends_well(read) == "ReadError"


@given(st.binary(max_size=800))
@example(b"\x5c\x01\x00\x00" + bytes(396))
@example(NIFTI1[:352] + bytes(800))
@example(gzip.compress(b""))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_bytes_end_well(workplace: Path, content: bytes) -> None:
    assert ends_well(read_bytes_as_nifti(workplace, content)) == "ReadError"
    assert ends_well(read_bytes_as_nifti(workplace, NIFTI1[:4] + content)) == "ReadError"
    for start in (b"", b"II*\x00", b"MM\x00*\x00\x00\x00\x08", b"II+\x00\x08\x00\x00\x00"):
        assert ends_well(read_bytes_as_slice(workplace, start + content)) == "ReadError"


@given(
    st.lists(
        st.tuples(st.integers(0, len(NIFTI1) - 1), st.integers(0, 255)), min_size=2, max_size=12
    )
)
@settings(max_examples=60, deadline=None)
def test_several_corrupted_bytes_at_once_end_well(
    workplace: Path, changes: list[tuple[int, int]]
) -> None:
    content = NIFTI1
    for position, value in changes:
        content = corrupted(content, position, value)
    assert ends_well(read_bytes_as_nifti(workplace, content)) in PERMITTED


def declared(shape: tuple[int, int, int], dtype: type = np.int16) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4)


@pytest.mark.parametrize("shape", [(4096, 4096, 64), (4096, 4096, 4096), (512, 512, 600)])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_huge_declared_sizes_are_refused_without_allocating_them(
    workplace: Path, shape: tuple[int, int, int], is_zipped: bool
) -> None:
    content = declared(shape) + bytes(10_000)
    content = gzip.compress(content) if is_zipped else content
    assert ends_well(read_bytes_as_nifti(workplace, content)) == "ReadError"


def test_a_gzip_bomb_behind_a_small_header_is_not_unpacked(workplace: Path) -> None:
    bomb = gzip.compress(declared((8, 8, 8)) + bytes(60_000_000), compresslevel=1)
    assert ends_well(read_bytes_as_nifti(workplace, bomb)) == "ReadError"


def test_a_gzip_bomb_within_the_offset_of_the_voxels_is_bounded(workplace: Path) -> None:
    header = nibabel.Nifti1Header(NIFTI1[:348])
    header["vox_offset"] = 50_000_000
    bomb = gzip.compress(bytes(header.binaryblock) + bytes(60_000_000), compresslevel=1)
    assert ends_well(read_bytes_as_nifti(workplace, bomb)) == "ReadError"

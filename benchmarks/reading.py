"""How fast a real DICOM scan is read, next to what a user would otherwise run.

Usage: python benchmarks/reading.py [SCAN_FOLDER]   (default: covid_ct_md/P001 of the shared data)

Prints four figures, each from one process: reading time against a plain loop of pydicom with
pylibjpeg over the same files; reading time with pydicom for the headers, against our own walk over
them; milliseconds per slice for the header pass; and peak memory against the volume. Loops
alternate and medians count, because other programs may be running.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import in_turns, memory_bytes, real_scan, run

if TYPE_CHECKING:
    from chestct.readers.dicom_headers import DicomHeader
    from chestct.readers.files import FileSource

REPEATS = 5
HEADERS_RATIO = 1.1
"""Our own parser of headers is kept for as long as the whole read is slower by this without it."""
RATIO_GOAL, HEADER_GOAL_MS, MEMORY_GOAL = 0.15, 2.0, 1.5


def read_ours(folder: Path) -> int:
    """Read the scan with chestct."""
    from chestct import read_volume

    return read_volume(folder).voxels.shape[0]


def read_plainly(folder: Path) -> int:
    """The loop a user would write: pydicom, pixels through pylibjpeg, rescaled and sorted."""
    import numpy as np
    import pydicom

    slices = []
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.pixel_array_options(decoding_plugin="pylibjpeg")
        voxels = dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept
        slices.append((float(dataset.ImagePositionPatient[2]), voxels.astype(np.int16)))
    slices.sort(key=lambda item: item[0])
    return len(np.stack([voxels for _, voxels in slices]))


def read_with_pydicom_headers(folder: Path) -> int:
    """Read the scan with chestct, but for the headers, which pydicom reads as fast as it can."""
    from unittest.mock import patch

    with patch("chestct.readers.dicom_slices.read_header", header_by_pydicom):
        return read_ours(folder)


def header_by_pydicom(source: FileSource, _: object = None) -> DicomHeader:
    """What `read_header` gives of an explicit little-endian slice, without its bounds."""
    import pydicom
    from pydicom.tag import Tag

    from chestct.readers.dicom_elements import PIXEL_DATA, Element
    from chestct.readers.dicom_headers import TAGS, DicomHeader, Fields, _layout

    with source.open() as stream:
        dataset = pydicom.dcmread(
            stream,
            defer_size=1024,
            stop_before_pixels=True,
            specific_tags=[Tag(tag) for tag in TAGS.values()],
        )
        start = stream.tell() + 12
        length = int.from_bytes(stream.read(12)[8:], "little")
    found = {name: dataset.get_item(tag) for name, tag in TAGS.items() if tag in dataset}
    fields = Fields({name: element.value for name, element in found.items()})
    pixels = Element(PIXEL_DATA, b"OW", start, length)
    layout = _layout(fields, pixels, dataset.file_meta.TransferSyntaxUID)
    return DicomHeader(source, fields, (fields,), layout)


def list_headers(folder: Path) -> int:
    """Only the header pass."""
    from chestct.readers.dicom_headers import read_header
    from chestct.readers.files import opened_files

    with opened_files(folder) as files:
        return sum(read_header(source) is not None for source in files)


def memory_ratio(folder: Path) -> float:
    """Growth of the process while reading, relative to the voxels; imports are not counted."""
    from chestct import read_volume

    read_volume(sorted(folder.iterdir())[0])
    before = memory_bytes()
    volume = read_volume(folder)
    return (memory_bytes() - before) / volume.voxels.nbytes


def main() -> None:
    """Measure and print."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--memory"]:
        print(memory_ratio(Path(arguments[1])))
        return
    folder = Path(arguments[0]) if arguments else real_scan()
    tasks = {
        "chestct": read_ours,
        "pydicom + pylibjpeg": read_plainly,
        "headers by pydicom": read_with_pydicom_headers,
        "headers": list_headers,
    }
    # The first round, which does not count, fills caches and imports packages.
    ours, plain, mixed, headers = in_turns(
        {name: partial(task, folder) for name, task in tasks.items()}, REPEATS
    ).values()
    num_slices = list_headers(folder)
    child = [sys.executable, __file__, "--memory", str(folder)]
    memory = float(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    print(f"{folder.name}: {num_slices} slices, median of {REPEATS}, load {os.getloadavg()[0]:.1f}")
    print(
        f"  read            {ours.clock_s:.3f} s against {plain.clock_s:.3f} s with pydicom + "
        f"pylibjpeg: ratio {ours.clock_s / plain.clock_s:.3f}, of the best runs "
        f"{ours.best_s / plain.best_s:.3f} (goal {RATIO_GOAL})"
    )
    print(
        f"  read, headers by pydicom {mixed.clock_s:.3f} s: ratio "
        f"{mixed.clock_s / ours.clock_s:.2f}, of the best runs {mixed.best_s / ours.best_s:.2f} "
        f"(our parser goes where it is under {HEADERS_RATIO})"
    )
    slice_ms = 1000 * headers.clock_s / num_slices
    print(f"  headers only    {slice_ms:.2f} ms a slice (goal {HEADER_GOAL_MS})")
    print(f"  peak memory     {memory:.2f} times the volume (goal {MEMORY_GOAL})")


if __name__ == "__main__":
    run(main)

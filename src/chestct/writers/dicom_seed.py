"""What tells one analysis from any other: a digest of everything that stands in its objects.

A SOPInstanceUID stands for one content (PS3.5 section 9): archives keep the first of two objects
that share one, or the last. So where identifiers must come out the same each time they depend on
all that is written, and a field added to the answer counts unless it is named here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import ScanExplanation
from chestct.readers.dicom_source import SourceImage
from chestct.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NOT_WRITTEN: Final = ("scan", "scan_facts", "timings_s")
"""Fields of a result that stand in no object: they differ where a folder or a clock does."""

_PROGRAMS: Final = ("highdicom", "pydicom", "pillow")
"""What encodes and draws: each may do it differently in another version."""

_DIGESTS: Final[WeakKeyDictionary[Volume, str]] = WeakKeyDictionary()
"""Of voxels that were hashed before: four writers ask for those of one heat-map in turn."""


def seed_of(analysis: ScanAnalysis, header: Dataset, images: tuple[SourceImage, ...]) -> str:
    """What all new identifiers of an analysis are derived from.

    Args:
        analysis: The scan and its answer.
        header: Patient, study and frame of reference, as they will be written.
        images: The source images.
    """
    digest = hashlib.sha256(_encoded(header))
    for part in (images, *_contents(analysis)):
        digest.update(f"/{part!r}".encode())
    return digest.hexdigest()


def _contents(analysis: ScanAnalysis) -> Iterator[object]:
    """Everything else that reaches an object, as values whose text is all there is to them."""
    yield __version__, [version(name) for name in _PROGRAMS]
    yield [item for item in vars(analysis.result).items() if item[0] not in _NOT_WRITTEN]
    yield analysis.volume.grid, analysis.analysed_slices
    yield analysis.prepared.recipe.lungs, _digest_of(analysis.prepared.scan_lungs)
    if analysis.explanation is not None:
        yield from _explained(analysis.explanation)


def _explained(explained: ScanExplanation) -> Iterator[object]:
    explanation, summary = explained.explanation, explained.summary
    yield explanation.method, explanation.layer, explanation.label
    yield summary.threshold, summary.shares, summary.involved_ml, summary.peaks
    yield _digest_of(explained.heat)


def _digest_of(volume: Volume) -> str:
    """SHA-256 of a volume's voxels, however they are stored."""
    if volume not in _DIGESTS:
        voxels = np.ascontiguousarray(volume.voxels)
        digest = hashlib.sha256(voxels.dtype.str.encode())
        digest.update(voxels.data)
        _DIGESTS[volume] = digest.hexdigest()
    return _DIGESTS[volume]


def _encoded(header: Dataset) -> bytes:
    """A header as it stands in a file, Explicit VR Little Endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, header)
    return stream.getvalue()

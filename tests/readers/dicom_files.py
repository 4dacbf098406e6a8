"""Small DICOM files made with pydicom, for the tests of the DICOM reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

SERIES = "1.2.3.4.5"
NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
ROWS, COLUMNS = 10, 12


def pixels_at(z: float, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    """Stored values that tell slices, rows and columns apart; linear in z."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(500 + 10 * z + 7 * row + 3 * column, dtype=np.uint16)


def ct_dataset(pixels: np.ndarray, z: float = 0.0, **fields: object) -> Dataset:
    """One CT slice at height z; fields replace or, if None, remove attributes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.9"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.3.4.9.{round(abs(z) * 100)}.{int(z < 0)}"
    dataset.Modality = "CT"
    dataset.Manufacturer = "Maker"
    dataset.PatientName = "Secret^Name"
    dataset.PatientID = "SECRET-ID"
    dataset.SliceThickness = "2"
    dataset.KVP = "120"
    dataset.ConvolutionKernel = "B30f"
    dataset.PatientPosition = "HFS"
    dataset.SeriesDescription = "Secret description"
    dataset.SeriesInstanceUID = SERIES
    dataset.ImagePositionPatient = [-10, -20, z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelSpacing = [0.5, 0.75]
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = 12 if pixels.dtype == np.uint16 else 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.PixelData = pixels.tobytes()
    for name, value in fields.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def enhanced_dataset(pixels: np.ndarray, heights: list[float]) -> Dataset:
    """An enhanced multi-frame CT; pixels (frames, rows, columns), one height per frame."""
    removed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    dataset = ct_dataset(pixels, SOPClassUID=EnhancedCTImageStorage)
    for name in (*removed, "RescaleIntercept", "RescaleSlope", "ConvolutionKernel", "KVP"):
        delattr(dataset, name)
    dataset.NumberOfFrames = len(pixels)
    shared, orientation, measures, transformation = (Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], "2"
    transformation.RescaleIntercept, transformation.RescaleSlope = "-1024", "1"
    transformation.RescaleType = "HU"
    reconstruction = Dataset()
    reconstruction.ConvolutionKernel = "B60f"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([transformation])
    shared.CTReconstructionSequence = Sequence([reconstruction])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in heights:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, z]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set in a native syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


_made: dict[str, bytes] = {}


def save_same(path: Path, what: object, make: Callable[[], Dataset]) -> Path:
    """Write what is written again and again, and tells itself apart: it is made once."""
    key = repr(what)
    if key not in _made:
        _made[key] = save(make(), path).read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_made[key])
    return path


def save_encapsulated(
    dataset: Dataset,
    path: Path,
    syntax: str,
    frames: list[bytes],
    *,
    has_table: bool = True,
    fragments_per_frame: int = 1,
) -> Path:
    """Write a data set with compressed frames."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(
        frames, has_bot=has_table, fragments_per_frame=fragments_per_frame
    )
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, heights: list[float], **fields: object) -> Path:
    """A series, one file per height, whose names are not in the order of the slices."""
    for index, z in enumerate(heights):
        name = f"{(index * 7) % len(heights):03d}-{index}.dcm"
        make = partial(ct_dataset, pixels_at(z), z, **fields)
        save_same(folder / name, ("plain", z, fields), make)
    return folder


def expected_hu(heights: list[float]) -> np.ndarray:
    """What a series of `write_series` holds, slices by ascending height."""
    return np.stack([pixels_at(z).astype(np.int16) - 1024 for z in sorted(heights)])


def _rle(frame: np.ndarray) -> bytes:
    """RLE by pydicom."""
    return get_encoder(RLELossless).encode(
        frame,
        encoding_plugin="pydicom",
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


ENCODERS = {
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.jpeg8_encode(
        a, lossless=True, predictor=6, bitspersample=12
    ),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.jpeg8_encode(
        a, lossless=True, predictor=1, bitspersample=12
    ),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(
        a, level=0, codecformat="j2k", reversible=True
    ),
    "1.2.840.10008.1.2.4.201": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
    "1.2.840.10008.1.2.5": _rle,
}
"""Lossless transfer syntax to encoder of one 12-bit frame."""

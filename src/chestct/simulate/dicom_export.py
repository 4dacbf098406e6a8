"""Write a volume as a DICOM CT series that any reader takes: uncompressed, one file per slice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chestct.errors import WriteError
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.volume import AIR_HU, Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_UUID_ROOT = "2.25."


_STUDY_DATE = "20240101"
"""Fixed, so that files can be compared."""


def write_dicom_series(
    volume: Volume, folder: Path, *, uid_seed: str | int = 0, patient_id: str = ""
) -> list[Path]:
    """Write a volume in HU as a CT series, Explicit VR Little Endian.

    All attributes that a CT image requires (PS3.3 A.3.3) are there; voxels stay exact, floating
    ones are rounded to whole HU.

    Args:
        volume: Scan in HU; slices are stacked along depth.
        folder: Where to write; made if needed.
        uid_seed: The patient: the same seed and grid give the same UIDs and PatientID.
        patient_id: PatientID; empty: one of the seed's own. The name is always "Simulated^Patient".

    Returns:
        The files, `slice_0000.dcm` and so on, in order of depth.

    Raises:
        WriteError: The volume is not in HU, holds values that 16 bits do not, or the folder
            cannot be written.
    """
    if volume.unit != "HU":
        raise WriteError("Only a scan in Hounsfield units can be written as a DICOM CT series.")
    stored = _stored(volume)
    patient_id = patient_id or _patient_id(str(uid_seed))
    folder = Path(folder)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for level in range(volume.grid.shape[0]):
            dataset = _slice(volume, stored[level], level, str(uid_seed), patient_id)
            path = folder / f"slice_{level:04d}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            files.append(path)
    except OSError as error:
        msg = f"The series could not be written to {folder}: {error}. Choose another folder."
        raise WriteError(msg) from error
    return files


def make_uid(*parts: object) -> str:
    """A valid UID that depends only on its parts (PS3.5 B.2, derived from 128 bits)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return _UUID_ROOT + str(int.from_bytes(digest[:16], "big"))


def _patient_id(seed: str) -> str:
    """A PatientID that depends only on the seed."""
    return f"SIM-{int(hashlib.sha256(seed.encode()).hexdigest(), 16) % 10**10:010d}"


def _stored(volume: Volume) -> np.ndarray:
    """Values as they stand in the file: HU plus 1024, 16 bits without sign."""
    voxels = np.rint(volume.voxels)
    low, high = float(voxels.min()), float(voxels.max())
    if not (low >= AIR_HU and high <= 65535 + AIR_HU):
        msg = f"Values from {low:g} to {high:g} HU do not fit a CT series; clip them to -1024 HU."
        raise WriteError(msg)
    return (voxels.astype(np.int32) - AIR_HU).astype("<u2")


def _slice(volume: Volume, stored: np.ndarray, level: int, seed: str, patient_id: str) -> Dataset:
    """One CT image object."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    study = UID(make_uid(seed, patient_id, "study"))
    series = UID(make_uid(seed, patient_id, "series", 1))
    instance = UID(make_uid(series, level))
    dataset = Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CT_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = UID(_EXPLICIT_VR_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID(make_uid("chestct", "implementation"))
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = _CT_IMAGE_STORAGE, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.FrameOfReferenceUID = make_uid(study, "frame")
    dataset.InstanceNumber = level + 1
    _describe(dataset, volume, patient_id)
    _place(dataset, volume, level)
    _fill(dataset, stored)
    return dataset


def _describe(dataset: Dataset, volume: Volume, patient_id: str) -> None:
    """Patient, study, series and equipment; says that all of it is simulated."""
    # The simulated scanner is where these pixels were made: no other image was their source.
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "Simulated^Patient", patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = _STUDY_DATE
    dataset.AcquisitionDate = _STUDY_DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", "1"
    dataset.Modality, dataset.SeriesNumber = "CT", 1
    dataset.SeriesDescription = "simulated chest CT"
    dataset.ImageComments = NOT_FOR_CLINICAL_USE
    dataset.Manufacturer, dataset.ManufacturerModelName = "chestct", "simulated"
    dataset.BodyPartExamined, dataset.PatientPosition = "CHEST", "HFS"
    dataset.KVP, dataset.AcquisitionNumber = "120", 1
    dataset.ConvolutionKernel = volume.source.facts.get("kernel", "simulated")
    dataset.PositionReferenceIndicator = ""
    dataset.BurnedInAnnotation = "NO"


def _place(dataset: Dataset, volume: Volume, level: int) -> None:
    """Position, orientation and spacing (PS3.3 C.7.6.2)."""
    grid = volume.grid
    position = grid.to_patient(np.array([float(level), 0.0, 0.0]))
    along_columns, along_rows = grid.direction[2], grid.direction[1]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*along_columns, *along_rows)]
    dataset.ImagePositionPatient = [_decimal(v) for v in position]
    dataset.PixelSpacing = [_decimal(grid.spacing_mm[1]), _decimal(grid.spacing_mm[2])]
    dataset.SliceThickness = _decimal(grid.spacing_mm[0])
    dataset.SpacingBetweenSlices = _decimal(grid.spacing_mm[0])
    dataset.SliceLocation = _decimal(float(position @ np.asarray(grid.direction[0])))


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2), as exact as that allows."""
    for digits in range(15, 5, -1):
        text = f"{value + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.5g}"


def _fill(dataset: Dataset, stored: np.ndarray) -> None:
    """Pixels and how to read them."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(AIR_HU), "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    dataset.PixelData = stored.tobytes()

"""Volumes with known places, written by nibabel and pydicom: what the readers are held against."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> Path:
    """A NIfTI-1 file of ``voxels`` as they are, in their byte order, with header fields set afterwards.

    nibabel scales what it saves under a slope, so the bytes are put together here where one is given.
    """
    header = nibabel.Nifti1Header(endianness=">" if voxels.dtype.byteorder == ">" else "<")
    header.set_data_dtype(voxels.dtype)
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine, header)
    slope, intercept = fields.pop("scl_slope", None), fields.pop("scl_inter", None)
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    if slope is None:
        nibabel.save(image, path)
        return path
    image.header.set_slope_inter(slope, intercept)
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    path.write_bytes(image.header.binaryblock + b"\0\0\0\0" + voxels.tobytes(order="F"))
    return path


def slice_file(
    path: Path,
    pixels: np.ndarray,
    position: tuple[float, ...],
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    *,
    series: str,
    **elements: object,
) -> Path:
    """One slice: ``pixels`` (rows, columns) with their corner at ``position`` (left, back, head)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.PatientID = "SECRET-1"
    dataset.SeriesInstanceUID = series
    dataset.ImagePositionPatient = [float(x) for x in position]
    dataset.ImageOrientationPatient = [float(x) for x in orientation]
    dataset.PixelSpacing = [1.0, 1.0]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path

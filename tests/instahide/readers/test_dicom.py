"""DICOM files made here, with the expected grey values worked out from PS3.3 C.11."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid  # noqa: E402

from instahide import load_images  # noqa: E402
from instahide.errors import InvalidInputError  # noqa: E402
from instahide.readers import read_images  # noqa: E402
from instahide.readers.dicom import decode_dicom  # noqa: E402
from instahide.readers.limits import Limits, UnreadableError  # noqa: E402

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def dicom_bytes(pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **elements: object) -> bytes:
    """A secondary capture of ``pixels`` with any element set or, by None, left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Modality = "CR"
    dataset.PatientID = "SECRET-ID"
    dataset.PatientName = "SECRET^NAME"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def grey(pixels: np.ndarray = RAMP, **elements: object) -> np.ndarray:
    return decode_dicom(dicom_bytes(pixels, **elements), Limits())[0]


def test_a_linear_window_follows_the_standard():
    # C.11.2.1.2 with center 2048 and width 2049: ((x − 2047.5) / 2048 + 0.5) · 255, clipped.
    expected = np.clip(((RAMP.astype(float) - 2047.5) / 2048 + 0.5) * 255, 0, 255)
    np.testing.assert_array_equal(grey(WindowCenter=2048, WindowWidth=2049), np.rint(expected))


def test_our_windows_agree_with_pydicom():
    from pydicom.pixels import apply_voi_lut

    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        elements = {"WindowCenter": [1500, 9], "WindowWidth": [800, 9], "VOILUTFunction": function}
        dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(RAMP, **elements)))
        oracle = apply_voi_lut(RAMP, dataset) / 65535 * 255
        assert np.abs(grey(**elements) - oracle).max() <= 0.5 + 1e-6, function


def test_rescale_comes_before_the_window():
    # x·2 − 1000 with an exact window of 1000 around 0: only stored 250..750 is inside.
    pixels = np.array([[250, 500, 750]], np.uint16)
    window = {"WindowCenter": 0, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    values = grey(pixels, RescaleSlope=2, RescaleIntercept=-1000, **window)
    assert values.tolist() == [[0, 128, 255]]


def test_monochrome1_is_inverted():
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    inverted = grey(PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_array_equal(inverted, 255 - grey(**window))
    assert inverted[0, 0] > inverted[-1, -1]


def test_without_a_window_percentiles_span_the_range_and_padding_does_not_count():
    pixels = np.full((20, 20), -2000, np.int16)
    pixels[5:15, 5:15] = np.arange(100).reshape(10, 10)
    plain = grey(pixels)
    known = grey(pixels, PixelPaddingValue=-2000)
    assert np.ptp(plain[5:15, 5:15].astype(int)) < 20  # the padding ate the range
    assert known[5, 5] == 0
    assert known[14, 14] == 255
    assert known[0, 0] == 0


def test_a_constant_image_is_black_and_a_step_window_is_a_step():
    assert grey(np.full((4, 4), 7, np.uint16)).max() == 0
    step = grey(np.array([[1, 2, 3]], np.uint16), WindowCenter=2.5, WindowWidth=1)
    assert step.tolist() == [[0, 0, 255]]


def test_colour_keeps_its_values():
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grey(colour), colour)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "RTDOSE"}, "RTDOSE object, not a picture"),
        ({"Modality": "SR", "PixelData": None}, "SR object, not a picture"),
        ({"PixelData": None}, "without an image"),
        ({"NumberOfFrames": 8}, "8 frames in one file"),
        ({"Rows": 20000, "Columns": 20000}, "20000x20000 pixels, above the cap"),
        ({"Rows": 9}, "corrupt or unsupported DICOM"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "window has no width"),
        ({"PhotometricInterpretation": None}, "corrupt or unsupported DICOM"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, "deflated transfer syntax"),
    ],
)
def test_what_is_no_picture_is_set_aside_with_a_reason(elements, reason):
    with pytest.raises(UnreadableError, match=reason):
        grey(**elements)


def test_truncated_files_are_set_aside():
    data = dicom_bytes(RAMP)
    for length in (0, 100, 131, 140, 300, len(data) - 1):
        with pytest.raises(UnreadableError):
            decode_dicom(data[:length], Limits())


def test_a_folder_of_classes_gives_subjects_in_memory_and_nowhere_else(tmp_path: Path, caplog, capfd):
    for number, label in enumerate(("well", "sick", "sick")):
        path = tmp_path / label / "study" / f"1.2.3.{number}"  # no suffix, as archives export them
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_bytes(RAMP, PatientID=f"SECRET-{number % 2}"))
    (tmp_path / "DICOMDIR").write_bytes(b"an index of the medium")
    with caplog.at_level(logging.DEBUG):
        reading = read_images(tmp_path)
    images = reading.images
    assert images.class_names == ("sick", "well")
    assert images.labels.tolist() == [0, 0, 1]
    assert images.subject_ids == ("SECRET-1", "SECRET-0", "SECRET-0")
    out, err = capfd.readouterr()
    assert "SECRET" not in repr(reading) + caplog.text + out + err


def test_invalid_header_values_are_not_printed(tmp_path: Path, caplog, capfd):
    (tmp_path / "a").mkdir()
    # A date and a decimal that pydicom would quote in a warning.
    data = dicom_bytes(RAMP, PatientBirthDate="19700101").replace(b"19700101", b"SECRET-1")
    (tmp_path / "a/1.dcm").write_bytes(data)
    (tmp_path / "a/2.dcm").write_bytes(dicom_bytes(RAMP)[:-7])
    with caplog.at_level(logging.DEBUG):
        reading = read_images(tmp_path, max_bad_fraction=1.0)
    out, err = capfd.readouterr()
    assert len(reading.quarantined) == 1
    assert "SECRET" not in repr(reading) + caplog.text + out + err


def test_folders_named_after_patients_are_not_classes(tmp_path: Path):
    for patient in ("PAT-1", "PAT-2"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "1.dcm").write_bytes(dicom_bytes(RAMP, PatientID=patient))
    with pytest.raises(InvalidInputError, match="named after patients") as caught:
        load_images(tmp_path)
    assert "PAT-" not in str(caught.value)


def test_a_manifest_labels_dicom_files_and_fills_missing_patients(tmp_path: Path):
    (tmp_path / "1.dcm").write_bytes(dicom_bytes(RAMP))
    (tmp_path / "2.dcm").write_bytes(dicom_bytes(RAMP, PatientID=""))
    (tmp_path / "labels.csv").write_text("path,label\n1.dcm,1\n2.dcm,0\n")
    images = load_images(tmp_path)
    assert images.labels.tolist() == [1, 0]
    assert images.subject_ids == ("SECRET-ID", "unknown:2.dcm")


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch):
    import sys

    (tmp_path / "1.dcm").write_bytes(dicom_bytes(RAMP))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InvalidInputError, match="pydicom is not installed") as caught:
        load_images(tmp_path)
    assert "instahide-fl[dicom]" in caught.value.hint

"""DICOM series written by pydicom with known places: order, window, gaps, and the same volume as NIfTI."""

from __future__ import annotations

import logging
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import JPEGLSLossless, generate_uid  # noqa: E402

from instahide import load_images  # noqa: E402
from instahide.dataset_report import inspect_dataset  # noqa: E402
from instahide.errors import InvalidInputError  # noqa: E402
from instahide.readers import Slicing, VolumeWarning, read_images  # noqa: E402
from instahide.readers.dicom_headers import read_slice_header, spacing_of  # noqa: E402
from instahide.readers.limits import Limits  # noqa: E402

from .volumes import slice_file, write_nifti  # noqa: E402

CT = np.random.default_rng(5).integers(-1000, 1000, (6, 8, 7)).astype(np.int16)  # slices, rows, columns
AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def write_series(
    folder: Path,
    stack: np.ndarray = CT,
    orientation: tuple[float, ...] = AXIAL,
    *,
    places: list[float] | None = None,
    order: list[int] | None = None,
    **elements: Any,
) -> Path:
    """``stack[k]`` lies at ``places[k]`` mm along the normal; files are named and numbered in ``order``."""
    normal = np.cross(orientation[:3], orientation[3:])
    uid = elements.pop("series", None) or generate_uid()
    names = order or list(np.random.default_rng(len(stack)).permutation(len(stack)))
    for k, pixels in enumerate(stack):
        distance = 5.0 * k - 12.0 if places is None else places[k]
        own = {name: value[k] if isinstance(value, list) else value for name, value in elements.items()}
        name = f"{names[k]:03}.dcm"
        position = tuple(distance * normal + 100.0)
        slice_file(
            folder / name, pixels, position, orientation, series=uid, InstanceNumber=int(names[k]), **own
        )
    return folder


def images_of(path: Path, **options: Any) -> np.ndarray:
    return load_images(path, **options).images[:, 0]


WIDE = Slicing(window=(-1000, 1000))


def spread(values: np.ndarray, low: float = -1000, high: float = 1000) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_slices_come_in_the_order_of_their_places(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    write_series(tmp_path, orientation=orientation)
    np.testing.assert_array_equal(images_of(tmp_path, slicing=WIDE), spread(CT))


def test_each_picture_keeps_the_name_of_its_file_and_the_subject_of_its_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "ill" / "study", CT[:3], order=[2, 0, 1], PatientID="SECRET-7")
    write_series(tmp_path / "well", CT[3:] * 0, order=[0, 2, 1], PatientID="")
    report = inspect_dataset(tmp_path)
    assert report.near_constant == ("well/000.dcm", "well/002.dcm", "well/001.dcm")
    assert (report.num_volumes, report.num_files, report.splits[0].num_subjects) == (2, 6, 2)
    subjects = load_images(tmp_path).subject_ids
    assert subjects == ("SECRET-7",) * 3 + ("series:well/000.dcm",) * 3


def test_slope_intercept_and_inversion_are_each_files_own(tmp_path: Path) -> None:
    slopes = [1.0, 2.0, 0.5, 1.5, 3.0, 0.25]
    write_series(
        tmp_path, RescaleSlope=slopes, RescaleIntercept=-24.0, PhotometricInterpretation="MONOCHROME1"
    )
    values = CT * np.array(slopes)[:, None, None] - 24.0
    np.testing.assert_array_equal(images_of(tmp_path, slicing=WIDE), 255 - spread(values))
    low, high = np.percentile(values, (0.5, 99.5))
    difference = images_of(tmp_path).astype(int) - (255 - spread(values, low, high))
    assert np.abs(difference).max() <= 1  # the percentiles of changing slopes are taken in float32


def test_one_window_for_the_series_that_of_the_files_where_they_agree(tmp_path: Path) -> None:
    same = {"WindowCenter": 40, "WindowWidth": 401, "VOILUTFunction": "LINEAR"}
    write_series(tmp_path / "same", **same)
    # PS3.3 C.11.2.1.2: ((x − 39.5) / 400 + 0.5) · 255
    expected = np.rint(np.clip(((CT - 39.5) / 400 + 0.5) * 255, 0, 255))
    np.testing.assert_array_equal(images_of(tmp_path / "same"), expected)
    write_series(tmp_path / "other", WindowCenter=[10, 20, 30, 40, 50, 60], WindowWidth=[400] * 6)
    low, high = np.percentile(CT, (0.5, 99.5))
    np.testing.assert_array_equal(images_of(tmp_path / "other"), spread(CT, low, high))
    given = Slicing(percentiles=(10, 90))
    low, high = np.percentile(CT, (10, 90))
    np.testing.assert_array_equal(images_of(tmp_path / "same", slicing=given), spread(CT, low, high))


def test_padding_is_no_part_of_the_percentiles(tmp_path: Path) -> None:
    padded = CT.copy()
    padded[:, :4] = -2000
    write_series(tmp_path, padded, PixelPaddingValue=-2000)
    low, high = np.percentile(CT[:, 4:], (0.5, 99.5))
    np.testing.assert_array_equal(images_of(tmp_path), spread(padded, low, high))


@pytest.mark.parametrize(
    ("orientation", "flipped"), list(product((AXIAL, CORONAL, SAGITTAL, (0, 1, 0, 1, 0, 0)), (False, True)))
)
def test_a_volume_gives_the_same_pictures_from_dicom_and_from_nifti(
    tmp_path: Path, orientation: tuple[float, ...], flipped: bool
) -> None:
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    if flipped:
        row = -row
    normal = np.cross(row, column)
    write_series(tmp_path / "dicom", orientation=(*row, *column))
    affine = np.eye(4)  # from columns, rows, slices to right, front, head: two signs change
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.stack([row, column, 5.0 * normal], axis=1)
    path = write_nifti(tmp_path / "v.nii.gz", CT.transpose(2, 1, 0), affine)
    for axis in ("axial", "coronal", "sagittal"):
        slicing = Slicing(axis=axis)  # type: ignore[arg-type]
        np.testing.assert_array_equal(
            images_of(tmp_path / "dicom", slicing=slicing), images_of(path, slicing=slicing)
        )


def test_axial_slices_of_a_usual_scan_are_drawn_as_acquired(tmp_path: Path) -> None:
    write_series(tmp_path)
    np.testing.assert_array_equal(images_of(tmp_path), images_of(tmp_path, slicing=Slicing(axis="axial")))


def test_spacing_faults_are_counted() -> None:
    assert spacing_of([0, 5, 10, 15]).is_even
    assert spacing_of([0, 5, 15, 20, 40]) == spacing_of([1, 6, 16, 21, 41])
    assert (spacing_of([0, 5, 15, 20, 40]).num_missing, spacing_of([0, 5, 5, 10]).num_doubled) == (4, 1)
    assert spacing_of([3.0]).is_even
    assert spacing_of([0, 0, 0]).num_doubled == 2


def test_missing_and_doubled_slices_are_reported_and_named_by_file(tmp_path: Path) -> None:
    write_series(tmp_path / "a", places=[0, 5, 15, 20, 25, 30])
    write_series(tmp_path / "b", places=[0, 5, 5, 10, 15, 20])
    notes = inspect_dataset(tmp_path).notes
    assert notes[0] == "missing slices: 1 in 1 series, first in that of a/000.dcm"
    assert notes[1].startswith(
        "slices where another one lies (copies, echoes or time points?): 1 in 1 series"
    )
    with pytest.warns(VolumeWarning) as seen:
        load_images(tmp_path)
    assert len(seen) == 2
    with pytest.raises(InvalidInputError, match="cannot be cut into coronal slices"):
        load_images(tmp_path, slicing=Slicing(axis="coronal"))


def test_a_damaged_slice_is_set_aside_alone(tmp_path: Path) -> None:
    write_series(tmp_path, order=list(range(6)))
    damaged = tmp_path / "002.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    reading = read_images(tmp_path, slicing=WIDE, max_bad_fraction=0.5)
    assert [file.name for file in reading.quarantined] == ["002.dcm"]
    np.testing.assert_array_equal(reading.images.images[:, 0], spread(CT[[0, 1, 3, 4, 5]]))


def test_other_sizes_orientations_and_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path / "a", series=uid)
    write_series(tmp_path / "b", orientation=CORONAL, series=uid)
    write_series(tmp_path / "c", CT[:, :4], series=uid)
    write_series(tmp_path / "d")
    assert inspect_dataset(tmp_path).num_volumes == 4


def test_a_manifest_may_name_the_folder_of_a_series(tmp_path: Path) -> None:
    write_series(tmp_path / "scan 1")
    write_series(tmp_path / "scan 2", CT[:4])
    text = "path,label,subject_id\nscan 1,ill,p1\nscan 2/,well,p2\nscan 3,well,p3\n"
    (tmp_path / "manifest.csv").write_text(text)
    (tmp_path / "scan 3").mkdir()
    reading = read_images(tmp_path, max_bad_fraction=0.5, slicing=Slicing(every=2))
    assert reading.images.labels is not None
    assert reading.images.labels.tolist() == [0, 0, 0, 1, 1]
    assert reading.images.subject_ids == ("p1",) * 3 + ("p2",) * 2
    assert reading.quarantined[0].reason == "a folder without pictures or volumes"


def enhanced(path: Path, places: list[float], slopes: list[float]) -> Path:
    """One enhanced file of all slices of CT, its frames in the order of ``places``."""
    shared, frames = Dataset(), []
    plane = Dataset()
    plane.ImageOrientationPatient = list(map(float, AXIAL))
    shared.PlaneOrientationSequence = Sequence([plane])
    for place, slope in zip(places, slopes, strict=True):
        position, transformation, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, place]
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 1.0
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([transformation])
        frames.append(frame)
    return slice_file(
        path,
        CT[0],
        (0, 0, 0),
        series=generate_uid(),
        NumberOfFrames=len(places),
        PixelData=CT[: len(places)].tobytes(),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_frames_with_places_are_slices(tmp_path: Path) -> None:
    slopes = [1.0, 2.0, 3.0, 1.0, 2.0]
    enhanced(tmp_path / "multi.dcm", [20, 0, 10, 40, 30], slopes)
    values = CT[:5] * np.array(slopes)[:, None, None] + 1.0
    found = images_of(tmp_path, slicing=WIDE)
    np.testing.assert_array_equal(found, spread(values)[[1, 2, 0, 4, 3]])
    assert len(set(load_images(tmp_path).subject_ids or ())) == 1


def test_compressed_pixels_without_a_decoder_say_which_one_is_needed(tmp_path: Path) -> None:
    from pydicom.pixels import get_decoder

    if get_decoder(JPEGLSLossless).is_available:
        pytest.skip("this machine has a JPEG-LS decoder")
    write_series(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xf7 no true stream"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    with pytest.raises(InvalidInputError, match="compressed as JPEG-LS Lossless") as caught:
        load_images(tmp_path)
    assert "pip install pylibjpeg pylibjpeg-libjpeg" in caught.value.message


def test_a_series_above_the_cap_is_set_aside_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", CT[:2])
    reading = read_images(tmp_path, max_bad_fraction=1.0, limits=Limits(max_volume_bytes=500))
    assert len(reading.images) == 2
    assert {file.reason for file in reading.quarantined} == {"a series of 672 bytes, above the cap of 500"}


def test_a_long_header_is_read_all_the_same(tmp_path: Path) -> None:
    path = slice_file(tmp_path / "1.dcm", CT[0], (0, 0, 3), series="1.2.3", TextValue="x" * 400_000)
    header = read_slice_header(path, Limits())
    assert header is not None
    assert header.distances == (3.0,)


def test_identifiers_of_series_reach_no_report(tmp_path: Path, caplog, capfd) -> None:
    write_series(tmp_path / "a", series="1.2.840.99999.7", places=[0, 5, 5, 10, 25, 30])
    with caplog.at_level(logging.DEBUG):
        reading = read_images(tmp_path)
        report = inspect_dataset(tmp_path)
    out, err = capfd.readouterr()
    assert "99999" not in repr(reading) + repr(report) + caplog.text + out + err
    assert "SECRET" not in repr(reading) + repr(report) + caplog.text + out + err


def test_real_slices_are_read_as_before(real_data: Path, tmp_path: Path) -> None:
    """One slice of a CT and one of an MR scan, compressed or not."""
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm"):
        header = read_slice_header(real_data / "dicom" / name, Limits())
        assert header is not None
        assert len(header.distances) == 1
    assert read_slice_header(real_data / "dicom" / "emri_small.dcm", Limits()) is None
    # The two files of one MR slice lie in one place, and inspection says so.
    report = inspect_dataset(real_data / "dicom")
    assert any(note.startswith("slices where another one lies") for note in report.notes)
    assert ("MR_small.dcm", "MR_small_RLE.dcm") in report.duplicates_within


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 1200),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=5),
    axis=st.sampled_from([None, "axial", "coronal"]),
)
def test_damaged_slices_are_read_or_set_aside_and_nothing_else(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]], axis: Any
) -> None:
    folder = tmp_path / "fuzz"
    if not folder.exists():
        write_series(folder, CT[:3], order=[0, 1, 2])
        (tmp_path / "whole").write_bytes((folder / "001.dcm").read_bytes())
    data = bytearray((tmp_path / "whole").read_bytes())
    for place, value in flips:
        data[place % len(data)] ^= value
    (folder / "001.dcm").write_bytes(bytes(data[: len(data) - cut] if cut < 600 else data))
    with suppress(InvalidInputError):
        reading = read_images(folder, max_bad_fraction=1.0, slicing=Slicing(axis=axis), image_size=8)
        assert 1 <= len(reading.images) <= 24

"""NIfTI volumes written by nibabel: orientation, scaling, slices, and what is set aside."""

from __future__ import annotations

import gzip
import logging
import re
import struct
import sys
import tracemalloc
from contextlib import suppress
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

from instahide import load_images  # noqa: E402
from instahide.dataset_report import inspect_dataset  # noqa: E402
from instahide.errors import InstaHideError, InvalidInputError  # noqa: E402
from instahide.readers import Slicing, read_images  # noqa: E402
from instahide.readers.limits import Limits, UnreadableError  # noqa: E402
from instahide.readers.nifti import read_pictures  # noqa: E402

from .volumes import write_nifti  # noqa: E402

VOXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
WIDE = Slicing(window=(0, 255))


def pictures(path: Path, slicing: Slicing = WIDE, limits: Limits | None = None) -> np.ndarray:
    return np.stack([pixels for _, pixels in read_pictures(path, limits or Limits(), slicing)])


def oriented(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An affine whose voxel axes run along the given axes of the world, with steps of 2, 3 and 4 mm."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, voxel] = sign * (2 + voxel)
    return affine


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_orientation_is_turned_as_nibabel_turns_it(tmp_path: Path, order: tuple[int, ...]) -> None:
    for signs in product((1, -1), repeat=3):
        path = write_nifti(tmp_path / "v.nii", VOXELS, oriented(order, signs))
        ras = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        np.testing.assert_array_equal(pictures(path), ras.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_oblique_volumes_go_to_the_nearest_axes_as_in_nibabel(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 3, 3)
        best = np.sort(np.abs(turn / np.linalg.norm(turn, axis=0)), axis=0)
        if (best[2] - best[1]).min() < 0.2:
            continue  # near 45 degrees there is no nearest axis to agree on
        affine = np.eye(4)
        affine[:3, :3] = turn
        path = write_nifti(tmp_path / "v.nii", VOXELS, affine)
        ras = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        np.testing.assert_array_equal(pictures(path), ras.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_pictures_are_drawn_as_radiologists_see_them(tmp_path: Path) -> None:
    voxels = np.zeros((6, 7, 8), np.uint8)
    voxels[5, 6, 7] = 255  # the most right, front and upper corner
    path = write_nifti(tmp_path / "v.nii.gz", voxels)
    axial = pictures(path)
    assert axial.shape == (8, 7, 6)
    assert axial[7, 0, 0] == 255  # front at the top, the patient's right on the left
    coronal = pictures(path, Slicing(axis="coronal", window=(0, 255)))
    assert coronal.shape == (7, 8, 6)
    assert coronal[6, 0, 0] == 255  # head at the top
    sagittal = pictures(path, Slicing(axis="sagittal", window=(0, 255)))
    assert sagittal.shape == (6, 8, 7)
    assert sagittal[5, 0, 0] == 255  # front on the left


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", "<f4", ">f4", "<f8"])
def test_slope_and_intercept_are_applied_as_nibabel_applies_them(tmp_path: Path, dtype: str) -> None:
    path = write_nifti(tmp_path / "v.nii", VOXELS.astype(dtype), scl_slope=2.5, scl_inter=-30.0)
    scaled = nibabel.load(path).get_fdata()
    np.testing.assert_allclose(scaled, VOXELS * 2.5 - 30.0)
    expected = np.rint(np.clip((scaled + 10) * (255 / 90), 0, 255)).transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(pictures(path, Slicing(window=(-10, 80))), expected)


@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_percentiles_are_those_of_the_scaled_volume(tmp_path: Path, slope: float) -> None:
    voxels = np.random.default_rng(3).integers(-500, 900, (9, 8, 7)).astype(np.int16)
    path = write_nifti(tmp_path / "v.nii", voxels, scl_slope=slope, scl_inter=12.0)
    scaled = voxels * slope + 12.0
    for chosen in (None, (10.0, 80.0)):
        low, high = np.percentile(scaled, chosen or (0.5, 99.5))
        expected = np.rint(np.clip((scaled - low) * (255 / (high - low)), 0, 255))
        found = pictures(path, Slicing(percentiles=chosen))
        difference = found.astype(int) - expected.transpose(2, 1, 0)[:, ::-1, ::-1]
        assert np.abs(difference).max() <= 1  # a value on the edge of two greys may go to either
        assert (difference == 0).mean() > 0.99


def test_nifti_2_and_big_endian_headers_are_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(VOXELS, np.eye(4)), tmp_path / "two.nii.gz")
    big = nibabel.Nifti1Image(VOXELS, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii")
    plain = pictures(write_nifti(tmp_path / "one.nii", VOXELS))
    np.testing.assert_array_equal(pictures(tmp_path / "two.nii.gz"), plain)
    np.testing.assert_array_equal(pictures(tmp_path / "big.nii"), plain)


def test_slices_are_those_asked_for(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", np.zeros((4, 4, 20), np.uint8))
    numbers = [n for n, _ in read_pictures(path, Limits(), Slicing(first=3, last=12, every=4))]
    assert numbers == [3, 7, 11]
    with pytest.raises(UnreadableError, match="20 slices, none from number 20 on"):
        read_pictures(path, Limits(), Slicing(first=20))


def study(root: Path) -> Path:
    """Two classes of three volumes; every volume has two slices that show nothing."""
    rng = np.random.default_rng(1)
    for label, number in product(("ill", "well"), range(3)):
        voxels = rng.integers(0, 1000, (10, 12, 6)).astype(np.int16)
        voxels[:, :, [0, 5]] = 0
        write_nifti(root / label / f"sub-{label}{number}_T1w.nii.gz", voxels)
    return root


def test_a_folder_gives_one_image_a_slice_and_one_subject_a_volume(tmp_path: Path) -> None:
    reading = read_images(study(tmp_path))
    images = reading.images
    assert (reading.format, len(images), images.image_shape) == ("folder of NIfTI volumes", 36, (1, 12, 10))
    assert images.class_names == ("ill", "well")
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 18 + [1] * 18
    assert images.subject_ids is not None
    assert images.subject_ids[:7] == ("sub-ill0",) * 6 + ("sub-ill1",)


def test_volumes_toml_says_which_slices_for_every_verb(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "volumes.toml").write_text('axis = "axial"\ndrop-empty = true\nwindow = [0, 1000]\n')
    images = load_images(tmp_path)
    assert len(images) == 24
    report = inspect_dataset(tmp_path)
    assert (report.num_images, report.num_volumes, report.num_files) == (24, 6, 6)
    assert report.splits[0].num_subjects == 6
    assert report.near_constant == ()
    assert len(load_images(tmp_path, slicing=Slicing(axis="coronal"))) == 72


def test_the_report_points_at_empty_slices(tmp_path: Path) -> None:
    report = inspect_dataset(study(tmp_path))
    assert len(report.near_constant) == 12
    assert "ill/sub-ill0_T1w.nii.gz axial 0" in report.near_constant
    assert any("drop-empty" in note for note in report.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('axis = "oblique"', "axis is 'oblique'"),
        ("every = 0", "every is 0"),
        ("first = 9\nlast = 3", "slices from 9 to 3 are none"),
        ("window = [5, 5]", "window is"),
        ("window = [0, 1]\npercentiles = [1, 99]", "both window and percentiles"),
        ("percentiles = [-1, 99]", "percentiles are"),
        ("drop_empty = true", "unknown setting 'drop_empty'"),
        ("every = true", "every is True"),
        ("axis =", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    study(tmp_path)
    (tmp_path / "volumes.toml").write_text(text)
    with pytest.raises(InvalidInputError, match=r"volumes\.toml") as caught:
        load_images(tmp_path)
    assert message in caught.value.message


def test_a_patient_with_volumes_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = ["path,label,subject_id,split"]
    for number, split in enumerate(("train", "train", "test")):
        write_nifti(tmp_path / f"{number}.nii.gz", rng.integers(0, 99, (5, 5, 3)).astype(np.uint8))
        rows.append(f"{number}.nii.gz,{number % 2},patient-{number // 2},{split}")
    write_nifti(tmp_path / "3.nii.gz", rng.integers(0, 99, (5, 5, 3)).astype(np.uint8))
    rows.append("3.nii.gz,1,patient-0,test")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    report = inspect_dataset(tmp_path)
    assert report.has_leaks
    assert report.subjects_in_two_splits == 1
    assert load_images(tmp_path, split="test").subject_ids == ("patient-1",) * 3 + ("patient-0",) * 3


def test_folders_named_after_bids_subjects_are_not_classes(tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii", VOXELS)
    with pytest.raises(InvalidInputError, match="named after patients"):
        load_images(tmp_path)


def test_a_single_volume_is_a_data_set_without_labels(tmp_path: Path) -> None:
    images = load_images(write_nifti(tmp_path / "one.nii.gz", VOXELS))
    assert (len(images), images.labels, set(images.subject_ids or ())) == (5, None, {"volume:one.nii.gz"})


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def volume_bytes(voxels: np.ndarray = VOXELS, **fields: object) -> bytearray:
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    data = bytearray(image.to_bytes())
    offsets = {"dim": (40, "<8h"), "datatype": (70, "<h"), "vox_offset": (108, "<f"), "magic": (344, "4s")}
    for name, value in fields.items():
        start, form = offsets[name]
        packed = struct.pack(form, *value) if isinstance(value, tuple) else struct.pack(form, value)
        data[start : start + len(packed)] = packed
    return data


NAN = np.where(VOXELS == 7, np.nan, VOXELS).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzipped(bytes(volume_bytes()))[:-30], "truncated NIfTI"),
        (bytes(volume_bytes())[:-1], "declares 120 bytes of voxels, more than the file can hold"),
        (bytes(volume_bytes()) + b"\0", "goes on after the last voxel"),
        (gzipped(bytes(volume_bytes()) + b"\0" * 10**7), "goes on after the last voxel"),
        (gzipped(bytes(volume_bytes(dim=(3, 3, 4, 90, 1, 1, 1, 1)))), "ends after 120 of 2,160 bytes"),
        (gzipped(bytes(volume_bytes(dim=(3, 32767, 32767, 5, 1, 1, 1, 1)))), "above the cap"),
        (gzipped(bytes(volume_bytes(dim=(3, 9999, 9999, 5, 1, 1, 1, 1)))), "more than the file can hold"),
        (gzipped(bytes(volume_bytes(dim=(4, 3, 4, 1, 5, 1, 1, 1)))), "4-D: 5 volumes in one file; write the"),
        (bytes(volume_bytes(dim=(3, 0, 4, 5, 1, 1, 1, 1))), "NIfTI|no voxels"),
        (bytes(volume_bytes(NAN)), "1 voxels are NaN or infinite"),
        (bytes(volume_bytes(datatype=32)), "colours, complex or extended"),
        (bytes(volume_bytes(datatype=12345)), "corrupt or truncated NIfTI"),
        (bytes(volume_bytes(vox_offset=1e9)), "where they cannot be"),
        (bytes(volume_bytes(vox_offset=float("nan"))), "NIfTI"),
        (bytes(volume_bytes(magic=b"ni1\0")), r"\.hdr/\.img pair"),
        (b"PNG", "ends after 3 of 4 bytes"),
        (b"not a volume at all", "not a NIfTI file"),
        (b"", "corrupt|ends after 0"),
    ],
)
def test_what_is_no_whole_volume_is_set_aside_with_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    write_nifti(tmp_path / "a" / "1.nii", VOXELS)
    (tmp_path / "a" / "2.nii.gz").write_bytes(data)
    reading = read_images(tmp_path, max_bad_fraction=0.5)
    assert len(reading.images) == 5
    (bad,) = reading.quarantined
    assert bad.name == "a/2.nii.gz"
    assert re.search(reason, bad.reason), bad.reason
    with pytest.raises(InvalidInputError, match="1 of 2 files cannot be used"):
        load_images(tmp_path)


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    # 64 MiB of zeros behind a header that declares 60 voxels.
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(volume_bytes(dim=(3, 3, 4, 5, 1, 1, 1, 1)))[:352])
        for _ in range(64):
            file.write(bytes(1024 * 1024))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="goes on after"):
        read_pictures(path, Limits(), WIDE)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_four_dimensions_of_one_volume_are_three(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", VOXELS[..., None])
    np.testing.assert_array_equal(pictures(path), pictures(write_nifti(tmp_path / "w.nii", VOXELS)))


def test_text_in_headers_reaches_no_log_and_no_screen(tmp_path: Path, caplog, capfd) -> None:
    write_nifti(tmp_path / "a" / "1.nii", VOXELS, descrip=b"SECRET-NAME", aux_file=b"SECRET-FILE")
    data = volume_bytes()
    data[148:159] = b"SECRET-NAME"
    data[70:72] = b"\xff\x7f"
    (tmp_path / "a" / "2.nii").write_bytes(bytes(data))
    with caplog.at_level(logging.DEBUG):
        reading = read_images(tmp_path, max_bad_fraction=0.5)
    out, err = capfd.readouterr()
    assert "SECRET" not in repr(reading) + caplog.text + out + err


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "a" / "1.nii", VOXELS)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InvalidInputError, match="nibabel is not installed") as caught:
        load_images(tmp_path)
    assert "instahide-fl[nifti]" in caught.value.hint


def test_volumes_of_two_sizes_are_named(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "1.nii", VOXELS)
    write_nifti(tmp_path / "b" / "2.nii", VOXELS[:2])
    with pytest.raises(InvalidInputError, match=r"a/1\.nii axial 0 is 3x4 and b/2\.nii axial 0 is 2x4"):
        load_images(tmp_path)
    assert load_images(tmp_path, image_size=8).image_shape == (1, 8, 8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 600),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    in_header=st.booleans(),
    compress=st.booleans(),
)
def test_damaged_volumes_are_read_or_set_aside_and_nothing_else(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]], in_header: bool, compress: bool
) -> None:
    data = volume_bytes()
    for place, value in flips:
        data[place % (352 if in_header else len(data))] ^= value
    packed = bytearray(gzipped(bytes(data)) if compress else data)
    if compress and not in_header:
        for place, value in flips:
            packed[place % len(packed)] ^= value
    (tmp_path / "v.nii.gz").write_bytes(bytes(packed[: len(packed) - cut] if cut < 300 else packed))
    with suppress(InstaHideError):
        reading = read_images(tmp_path / "v.nii.gz", max_bad_fraction=1.0)
        assert reading.images.images.dtype == np.uint8


def test_a_volume_without_orientation_is_taken_as_nibabel_takes_it_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    nibabel.save(nibabel.Nifti1Image(VOXELS, None), path)
    ras = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    assert not np.array_equal(ras, VOXELS)
    np.testing.assert_array_equal(pictures(path), ras.transpose(2, 1, 0)[:, ::-1, ::-1])
    (note,) = read_images(path).notes
    assert note == "volumes without an orientation, taken to run from right, back and feet: 1"


def test_all_slices_of_a_volume_are_held_out_together(tmp_path: Path) -> None:
    from federation.site.dataset import hold_out

    training, test = hold_out(load_images(study(tmp_path)), 0.5)
    sides = [set(images.subject_ids or ()) for images in (training, test)]
    assert len(sides[0]) + len(sides[1]) == 6
    assert not sides[0] & sides[1]


def test_the_command_shows_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from federation import cli

    assert cli.run(["dataset", "inspect", str(study(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "folder of NIfTI volumes" in shown
    assert "6 (NIfTI files and DICOM series; images are slices)" in shown
    assert "sub-ill0_T1w.nii.gz axial 0" in shown

""".npz and .npy: names understood, memory maps, and hostile headers."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from instahide import load_images
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.readers.limits import Limits

X = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def npz_with(path: Path, name: str, data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{name}.npy", data)
    return path


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("images", "labels"),
    [("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("{}_images", "{}_labels"), ("images_{}", "labels_{}")],
)
def test_splits_of_keras_and_medmnist_are_found(tmp_path, images, labels):
    arrays = {}
    for split, rows in (("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 6))):
        arrays[images.format(split)] = X[rows]
        arrays[labels.format(split)] = Y[rows, None]
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    train = load_images(tmp_path / "d.npz")
    np.testing.assert_array_equal(train.images[:, 0], X[:3])
    assert train.labels.tolist() == [0, 1, 2]
    test = load_images(tmp_path / "d.npz", split="test")
    np.testing.assert_array_equal(test.images[:, 0], X[4:])
    # Only classes 0 and 1 stand in these rows of "val", three classes in the file.
    assert load_images(tmp_path / "d.npz", split="val").num_classes == 3


@pytest.mark.parametrize(("images", "labels"), [("x", "y"), ("images", "labels"), ("data", "target")])
def test_a_file_without_splits_is_taken_whole(tmp_path, images, labels):
    np.savez(tmp_path / "d.npz", **{images: X, labels: Y, "classes": np.array(["a", "b", "c"])})
    found = load_images(tmp_path / "d.npz")
    assert found.class_names == ("a", "b", "c")
    assert found.labels.tolist() == Y.tolist()
    with pytest.raises(InvalidInputError, match="no train split; splits found: none"):
        load_images(tmp_path / "d.npz", split="train")


def test_text_labels_are_numbered_alike_in_every_split(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=X[:2], y_train=np.array(["sick", "well"]), x_test=X[2:3],
             y_test=np.array(["well"]))  # fmt: skip
    test = load_images(tmp_path / "d.npz", split="test")
    assert test.class_names == ("sick", "well")
    assert test.labels.tolist() == [1]


def test_subject_ids_are_kept_in_memory_only(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=X, subject_ids_train=np.array(list("uvwxyz")))
    images = load_images(tmp_path / "d.npz")
    assert images.subject_ids == tuple("uvwxyz")
    assert "u" not in repr(images).replace("ImageSet", "")


def test_deep_arrays_are_scaled_and_floats_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([[[0, 2048, 4095]]], np.uint16))
    assert load_images(tmp_path / "d.npz", bit_depth=12).images.ravel().tolist() == [0, 128, 255]
    with pytest.raises(InvalidInputError, match="do not fit in 11 bits"):
        load_images(tmp_path / "d.npz", bit_depth=11)
    np.savez(tmp_path / "d.npz", x=X / 255.0)
    with pytest.raises(InvalidInputError, match="float64, not uint8"):
        load_images(tmp_path / "d.npz")


def test_sizes_and_channels_convert_arrays_too(tmp_path):
    np.savez(tmp_path / "d.npz", x=X)
    images = load_images(tmp_path / "d.npz", image_size=4, channels=3)
    assert images.images.shape == (6, 3, 4, 4)


def test_unknown_names_are_listed(tmp_path):
    np.savez(tmp_path / "d.npz", pictures=X)
    with pytest.raises(InvalidInputError, match="it holds pictures"):
        load_images(tmp_path / "d.npz")


def test_labels_of_another_length_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y[:-1])
    with pytest.raises(InvalidInputError, match="labels"):
        load_images(tmp_path / "d.npz")


@pytest.mark.parametrize("name", ["scans_labels.npy", "scans.labels.npy"])
def test_npy_with_labels_beside_it(tmp_path, name):
    np.save(tmp_path / "scans.npy", X)
    np.save(tmp_path / name, Y)
    images = load_images(tmp_path / "scans.npy")
    assert images.labels.tolist() == Y.tolist()


@pytest.mark.parametrize(("images", "labels"), [("x_train", "y_train"), ("test_images", "test_labels")])
def test_npy_pairs_by_name(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", X)
    np.save(tmp_path / f"{labels}.npy", Y)
    assert load_images(tmp_path / f"{images}.npy").labels.tolist() == Y.tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_stay_on_disk(tmp_path, order):
    array = np.asarray(X, order=order)
    small = Limits(map_above_bytes=X.nbytes - 1)
    np.save(tmp_path / "d.npy", array)
    np.savez(tmp_path / "stored.npz", first=Y, x=array)
    np.savez_compressed(tmp_path / "packed.npz", x=array)
    for name, mapped in (("d.npy", True), ("stored.npz", True), ("packed.npz", False)):
        images = load_images(tmp_path / name, limits=small).images
        assert (_root_of(images) is np.memmap) == mapped
        np.testing.assert_array_equal(images[:, 0], X)
    assert _root_of(load_images(tmp_path / "d.npy").images) is not np.memmap


def _root_of(array: np.ndarray) -> type:
    """The type of the first array behind a chain of views that is a memory map, else ndarray."""
    base = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return np.memmap
        base = base.base
    return np.ndarray


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("pickle-was-run"),))


def test_pickled_objects_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "d.npz", x_train=X, y_train=objects)
    np.save(tmp_path / "d.npy", objects)
    (tmp_path / "e.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("d.npz", "d.npy", "e.npz"):
        with pytest.raises(IntegrityError):
            load_images(tmp_path / name)
    assert not (tmp_path / "pickle-was-run").exists()


def test_an_array_of_addresses_is_refused_for_what_it_is(tmp_path):
    # The size is right (8 bytes an object), so that only the type can give it away.
    (tmp_path / "d.npy").write_bytes(npy_header((2, 2, 2), "|O") + bytes(64))
    with pytest.raises(IntegrityError, match="pickled objects, which are never loaded"):
        load_images(tmp_path / "d.npy")


def test_a_header_that_declares_more_than_the_file_holds_takes_no_memory(tmp_path):
    (tmp_path / "d.npy").write_bytes(npy_header((10**6, 10**6)) + b"x")
    with pytest.raises(IntegrityError, match="declares 1,000,000,000,000 bytes of data and holds 1"):
        load_images(tmp_path / "d.npy")
    path = npz_with(tmp_path / "d.npz", "x", npy_header((10**6, 10**6)) + b"x")
    with pytest.raises(IntegrityError, match="sizes that disagree"):
        load_images(path)


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path):
    honest = npy_header((1 << 22, 1, 4)) + bytes(1 << 24)
    path = npz_with(tmp_path / "d.npz", "x", honest)
    assert path.stat().st_size < 1 << 15
    with pytest.raises(RefusedError, match="above the cap"):
        load_images(path, limits=Limits(max_decoded_bytes=1 << 23))


@pytest.mark.parametrize("lie", ["central", "data"])
def test_a_changed_byte_is_noticed(tmp_path, lie):
    path = tmp_path / "d.npz"
    np.savez(path, x=X)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 16 if lie == "central" else data.index(X.tobytes()) + 7
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        load_images(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy_header((1, 2, 2)) + b"abcd")
        archive.writestr("X.npy", npy_header((1, 2, 2)) + b"efgh")
    with pytest.raises(IntegrityError, match="two members of one name"):
        load_images(tmp_path / "d.npz")


@pytest.mark.parametrize(
    "header",
    [npy_header((2, 2, 2), "|O"), npy_header((-1, 2, 2)), npy_header((1,) * 9), npy_header((2, 2), "|V0"),
     b"\x93NUMPY\x02\x00\xff\xff\xff\xff", b"\x93NUMPY\x01\x00\x04\x00(((("],
)  # fmt: skip
def test_strange_headers_are_refused(tmp_path, header):
    (tmp_path / "d.npy").write_bytes(header + bytes(64))
    with pytest.raises(IntegrityError):
        load_images(tmp_path / "d.npy")


def test_a_password_protected_member_is_refused(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=X)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # general purpose flag, bit 0
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="password-protected"):
        load_images(path)

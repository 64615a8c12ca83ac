"""CIFAR batches, and pickles that are read without being run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from instahide import load_images
from instahide.errors import IntegrityError, InvalidInputError
from instahide.readers.plain_pickle import PlainPickleError, load_plain_pickle

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
Y = [3, 9, 0, 1, 1, 7]


def python_batch(images: np.ndarray, labels: list[int], key: str = "labels", protocol: int = 2) -> bytes:
    names = [f"{index}.png".encode() for index in range(len(images))]
    flat = images.reshape(len(images), -1)
    return pickle.dumps({b"data": flat, key.encode(): labels, b"filenames": names}, protocol)


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """As Python 2 wrote the original files: byte texts (U), numpy.core names, a REDUCE and a BUILD."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01K" + bytes([len(images)]) + b"M\x00\x0c\x86cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_cifar10_python_batches_are_joined_in_order(tmp_path, protocol):
    (tmp_path / "data_batch_1").write_bytes(python_batch(X[:2], Y[:2], protocol=protocol))
    (tmp_path / "data_batch_2").write_bytes(python_batch(X[2:3], Y[2:3], protocol=protocol))
    (tmp_path / "data_batch_10").write_bytes(python_batch(X[3:4], Y[3:4], protocol=protocol))
    (tmp_path / "test_batch").write_bytes(python_batch(X[4:], Y[4:], protocol=protocol))
    names = [f"class {index}".encode() for index in range(10)]
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol))
    train, test = load_images(tmp_path), load_images(tmp_path, split="test")
    np.testing.assert_array_equal(train.images, X[:4])
    assert train.labels.tolist() == Y[:4]
    assert train.class_names[9] == "class 9"
    np.testing.assert_array_equal(test.images, X[4:])


def test_batches_of_python_2_are_read(tmp_path):
    data = python2_batch(X, Y)
    oracle = pickle.loads(data, encoding="bytes")
    np.testing.assert_array_equal(oracle[b"data"], X.reshape(6, -1))  # the fixture is a true one
    (tmp_path / "data_batch_1").write_bytes(data)
    images = load_images(tmp_path)
    np.testing.assert_array_equal(images.images, X)
    assert images.labels.tolist() == Y


def test_cifar100_takes_the_fine_labels(tmp_path):
    (tmp_path / "train").write_bytes(python_batch(X, [5, 99, 0, 1, 2, 3], key="fine_labels"))
    (tmp_path / "test").write_bytes(python_batch(X[:1], [50], key="fine_labels"))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}, 2))
    images = load_images(tmp_path)
    assert images.num_classes == 100
    assert images.labels.tolist() == [5, 99, 0, 1, 2, 3]


def test_binary_batches(tmp_path):
    ten = b"".join(bytes([label]) + image.tobytes() for label, image in zip(Y, X, strict=True))
    (tmp_path / "data_batch_1.bin").write_bytes(ten)
    (tmp_path / "batches.meta.txt").write_text("".join(f"n{index}\n" for index in range(10)) + "\n")
    images = load_images(tmp_path)
    np.testing.assert_array_equal(images.images, X)
    assert images.labels.tolist() == Y
    assert images.class_names[3] == "n3"
    hundred = b"".join(bytes([7, 10 * label]) + x.tobytes() for label, x in zip(Y, X, strict=True))
    (tmp_path / "train.bin").write_bytes(hundred)
    alone = load_images(tmp_path / "train.bin")
    assert alone.labels.tolist() == [10 * label for label in Y]
    assert alone.num_classes == 100


def test_wrong_sizes_and_labels_are_integrity_errors(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(3074))
    with pytest.raises(IntegrityError, match="not a whole number of 3073-byte records"):
        load_images(path)
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(IntegrityError, match="labels from 10 to 10 for 10 classes"):
        load_images(path)
    python = tmp_path / "data_batch_1"
    for bad in (
        {b"data": X[:, 0].reshape(6, -1), b"labels": Y},
        {b"data": X.reshape(6, -1), b"labels": Y[:5]},
        {b"data": X.reshape(6, -1), b"labels": [True] * 6},
        {b"data": X.reshape(6, -1).astype(np.float32), b"labels": Y},
        {b"data": np.array([object()]), b"labels": Y},
        [1, 2],
    ):
        python.write_bytes(pickle.dumps(bad, 2))
        with pytest.raises(IntegrityError):
            load_images(python)
    with pytest.raises(InvalidInputError, match="python and binary"):
        load_images(tmp_path)


class Runs:
    def __init__(self, what, *arguments):
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("call", [os.system, eval, getattr, np.load, np.fromfile, open, pickle.loads])
def test_no_call_in_a_pickle_is_made(tmp_path, monkeypatch, protocol, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Runs(call, "touch pickle-was-run"), protocol))
    with pytest.raises(IntegrityError):
        load_images(tmp_path / "data_batch_1")
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # a global call
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"Pid\n.",  # a persistent id
        b"\x82\x01.",  # an extension
        b"cnumpy\nndarray\n(tR.",  # an allowed name, called otherwise
        b"cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"}(}K\x01u.",  # a key that is no text
        b"}(]K\x01u.",
        b"K\x01b.",  # state without a target
        b"h\x00.",  # a memo entry never made
        b"t.",  # no mark
        b"\x8e" + b"\xff" * 8,  # bytes longer than the file
        b"2.",  # DUP
        b"K\x01",  # no end
        b".",  # nothing
    ],
)
def test_hostile_opcodes_are_refused(hostile):
    with pytest.raises(ValueError):
        load_plain_pickle(hostile)


def test_a_name_that_is_not_numpys_is_refused_before_any_call():
    for text in (b"cos\nsystem\n.", b"\x8c\x02os\x8c\x06system\x93."):
        with pytest.raises(PlainPickleError, match="a name that is not numpy's array"):
            load_plain_pickle(text)


def test_deep_nesting_and_huge_memo_numbers_cost_nothing():
    deep = b")" + b"\x85" * 300_000 + b"."  # a tuple in a tuple in a tuple ...
    load_plain_pickle(deep)
    assert load_plain_pickle(b"K\x07r\xff\xff\xff\x7f.") == 7  # memo slot 2^31 - 1
    key = b"}" + b")" + b"\x85" * 1000 + b"K\x01s."
    with pytest.raises(PlainPickleError, match="a key that is no text"):
        load_plain_pickle(key)


def test_plain_values_agree_with_the_unpickler():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        value = {"a": [1, -5, 70_000, 2.5, None, True, (1, 2, 3, "é")], "b": {}, "c": ([], ())}
        assert load_plain_pickle(pickle.dumps(value, protocol)) == value
        array = np.asfortranarray(X[0, 0])
        stream = io.BytesIO(pickle.dumps({"x": array}, protocol))
        if protocol >= 1:
            np.testing.assert_array_equal(load_plain_pickle(stream.read())["x"], array)


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    (tmp_path / "real").write_bytes(python_batch(X, Y))
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1").symlink_to(Path("../real"))
    with pytest.raises(IntegrityError, match="symbolic link, not followed"):
        load_images(tmp_path / "cifar")

"""Properties of all readers: what is written comes back, and no bytes break them."""

from __future__ import annotations

import gzip
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from instahide import ImageSet, load_images
from instahide.dataset_report import inspect_dataset
from instahide.errors import InstaHideError

# (N, H, W) or (N, H, W, 3)
shapes = st.tuples(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9), st.sampled_from([1, 3]))
pictures = shapes.flatmap(lambda s: npst.arrays(np.uint8, s[:3] if s[3] == 1 else s))


@st.composite
def labelled_pictures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    images = draw(pictures)
    labels = draw(npst.arrays(np.uint8, len(images), elements=st.integers(0, 9)))
    return images, labels


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def same(found: ImageSet, images: np.ndarray, labels: np.ndarray) -> None:
    expected = ImageSet(images, labels)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


@settings(max_examples=40, deadline=None)
@given(labelled_pictures(), st.sampled_from(["npz", "npz packed", "npy", "idx", "idx.gz", "csv", "folder"]))
def test_arrays_come_back_from_every_format(data, form):
    images, labels = data
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if form.startswith("npz"):
            save = np.savez_compressed if form.endswith("packed") else np.savez
            save(folder / "d.npz", x=images, y=labels)
            found = load_images(folder / "d.npz")
        elif form == "npy":
            np.save(folder / "x.npy", images)
            np.save(folder / "y.npy", labels)
            found = load_images(folder / "x.npy")
        elif form.startswith("idx"):
            pack: Callable[[bytes], bytes] = gzip.compress if form.endswith("gz") else bytes
            ending = ".gz" if form.endswith("gz") else ""
            (folder / f"train-images-idx3-ubyte{ending}").write_bytes(pack(idx_bytes(images)))
            (folder / f"train-labels-idx1-ubyte{ending}").write_bytes(pack(idx_bytes(labels)))
            found = load_images(folder)
        else:
            found = _through_pictures(folder, images, labels, form)
            if form == "folder":  # numbered by the class folders that exist, in reading order
                order = np.argsort(labels, kind="stable")
                images, labels = images[order], np.unique(labels, return_inverse=True)[1][order]
        same(found, images, labels)


def _through_pictures(folder: Path, images: np.ndarray, labels: np.ndarray, form: str) -> ImageSet:
    lines = ["path,label"]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"{label}/{index}.png,{label}")
    if form == "folder":
        return load_images(folder)
    (folder / "manifest.csv").write_text("\n".join(lines))
    return load_images(folder)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(
    npst.arrays(np.uint8, (n, 3, 32, 32), elements=st.integers(0, 255), fill=st.integers(0, 255)),
    npst.arrays(np.uint8, n, elements=st.integers(0, 9)))), st.booleans())  # fmt: skip
def test_cifar_batches_come_back(data, binary):
    images, labels = data
    with tempfile.TemporaryDirectory() as name:
        flat = images.reshape(len(images), -1)
        if binary:
            path = Path(name, "data_batch_1.bin")
            path.write_bytes(np.concatenate([labels[:, None], flat], axis=1).tobytes())
        else:
            path = Path(name, "data_batch_1")
            path.write_bytes(pickle.dumps({b"data": flat, b"labels": labels.tolist()}, 2))
        same(load_images(path), images, labels)


# Every format's file name, with a valid file to mutate.


def _picture_file(kind: str, pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def _npz_file() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=X, y=np.arange(3, dtype=np.uint8), classes=np.array(["a", "b", "c"]))
    return stream.getvalue()


def _npy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, X)
    return stream.getvalue()


def _dicom_file() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.Modality, dataset.PatientID, dataset.WindowCenter, dataset.WindowWidth = "CR", "p", 100, 50
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 8, 8, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME1", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = X[0].tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


X = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
VALID = {
    "a/x.png": _picture_file("PNG", X[0]),
    "a/deep.png": _picture_file("PNG", X[0].astype(np.uint16) * 200),
    "a/x.jpg": _picture_file("JPEG", COLOUR),
    "a/x.bmp": _picture_file("BMP", COLOUR),
    "a/x.tif": _picture_file("TIFF", X[0]),
    "a/x.pgm": _picture_file("PPM", X[0]),
    "a/x.webp": _picture_file("WEBP", COLOUR),
    "a/x.dcm": _dicom_file(),
    "d.npz": _npz_file(),
    "d.npy": _npy_file(),
    "train-images-idx3-ubyte": idx_bytes(X),
    "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(X)),
    "data_batch_1": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 2),
    "data_batch_1.bin": bytes(3073 * 2),
    "manifest.csv": b"path,label,subject_id,split\nx.png,a,p,train\n",
}


@st.composite
def hostile_file(draw: st.DrawFn) -> tuple[str, bytes]:
    """Random bytes, or a valid file with bytes changed, cut out, repeated or cut off."""
    name = draw(st.sampled_from(sorted(VALID)))
    data = bytearray(VALID[name])
    kind = draw(st.sampled_from(["random", "magic", "change", "cut", "repeat", "truncate"]))
    if kind == "random":
        return name, draw(st.binary(max_size=400))
    place = draw(st.integers(0, len(data) - 1))
    if kind == "magic":
        return name, bytes(data[: min(place, 16)]) + draw(st.binary(max_size=400))
    if kind == "change":
        for _ in range(draw(st.integers(1, 6))):
            data[draw(st.integers(0, min(len(data), 1000) - 1))] = draw(st.integers(0, 255))
    elif kind == "cut":
        del data[place : place + draw(st.integers(1, 40))]
    elif kind == "repeat":
        data[place:place] = data[place : place + draw(st.integers(1, 40))]
    else:
        del data[place:]
    return name, bytes(data)


@settings(max_examples=400, deadline=None)
@given(hostile_file())
def test_any_bytes_give_images_or_our_own_error(hostile):
    name, data = hostile
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        root = path if path.parent == Path(folder) else Path(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for read in (load_images, inspect_dataset):
                # Any other exception, or a warning, fails the test.
                with suppress(InstaHideError):
                    assert read(root) is not None

"""CSV manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from instahide import load_images
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError
from instahide.readers import read_images


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_labels_subjects_and_splits_come_from_the_columns(tmp_path, save_picture):
    for name in ("img/1.png", "img/2.png", "img/3.png"):
        save_picture(name)
    write(
        tmp_path / "manifest.csv",
        "path,label,subject_id,split",
        "img/2.png,well,P-7,train",
        "img/1.png,sick,P-9,train",
        "img/3.png,sick,P-8,test",
    )
    train = load_images(tmp_path)  # the folder holds a manifest
    assert train.class_names == ("sick", "well")
    assert train.labels.tolist() == [1, 0]  # rows keep their order
    assert train.subject_ids == ("P-7", "P-9")
    assert load_images(tmp_path / "manifest.csv", split="test").subject_ids == ("P-8",)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheet_exports_are_understood(tmp_path, save_picture, separator, encoding):
    save_picture("a b.png")
    save_picture("sub/c.png")
    lines = [("Patient_ID", "Diagnosis", "FileName"), ("1", "x", '"a b.png"'), ("2", "y", "sub\\c.png")]
    write(tmp_path / "list.csv", *(separator.join(line) for line in lines), "", encoding=encoding)
    images = load_images(tmp_path / "list.csv")
    assert images.class_names == ("x", "y")
    assert images.subject_ids == ("1", "2")


def test_whole_number_labels_are_the_class_indices(tmp_path, save_picture):
    save_picture("1.png")
    save_picture("2.png")
    write(tmp_path / "labels.csv", "path,label", "1.png,10", "2.png,2")
    images = load_images(tmp_path)
    assert images.labels.tolist() == [10, 2]
    assert images.num_classes == 11


def test_a_manifest_without_labels_is_a_pool(tmp_path, save_picture):
    save_picture("1.png")
    write(tmp_path / "pool.csv", "path", "1.png")
    assert load_images(tmp_path / "pool.csv").labels is None


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\..\\secret.png", "img/..", "."]
)
def test_paths_out_of_the_folder_are_refused(tmp_path, save_picture, path):
    save_picture("data/1.png")
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "data/manifest.csv", "path,label", "1.png,a", f"{path},a")
    with pytest.raises(RefusedError, match=r"manifest\.csv line 3: .* leaves the data folder"):
        load_images(tmp_path / "data")


def test_links_on_the_way_are_not_followed(tmp_path, save_picture):
    outside = save_picture("outside/1.png")
    save_picture("data/1.png")
    (tmp_path / "data/file.png").symlink_to(outside)
    (tmp_path / "data/folder").symlink_to(outside.parent)
    write(tmp_path / "data/manifest.csv", "path,label", "1.png,a", "file.png,a", "folder/1.png,a", "no.png,b")
    reading = read_images(tmp_path / "data", max_bad_fraction=0.75)
    assert len(reading.images) == 1
    assert {file.name: file.reason for file in reading.quarantined} == {
        "file.png": "symbolic link, not followed",
        "folder/1.png": "symbolic link, not followed",
        "no.png": "file not found",
    }


def test_rows_without_a_label_or_split_are_set_aside(tmp_path, save_picture):
    for name in "123":
        save_picture(f"{name}.png")
    write(tmp_path / "m.csv", "path,label,split", "1.png,a,train", "2.png,,train", "3.png,a,")
    reading = read_images(tmp_path / "m.csv", max_bad_fraction=0.7)
    assert len(reading.images) == 1
    assert [file.reason for file in reading.quarantined] == [
        "no label in the manifest",
        "no split in the manifest",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,label", "1.png,a"], "no column for the picture's path"),
        (["path,label"], "lists no picture"),
        (["path,label,split", "1.png,a,dev"], "line 2: split 'dev' is unknown"),
        (["path,label", ",a"], "line 2 has no path"),
    ],
)
def test_mistakes_name_the_line(tmp_path, save_picture, lines, message):
    save_picture("1.png")
    write(tmp_path / "m.csv", *lines)
    with pytest.raises(InvalidInputError, match=message):
        load_images(tmp_path / "m.csv")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'path,label\n"1.png,a', b"path\n" + b"x" * 200_000])
def test_what_is_no_table_is_named(tmp_path, data):
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises((IntegrityError, InvalidInputError), match=r"m\.csv|cannot be used"):
        load_images(tmp_path / "m.csv")


def test_no_message_quotes_a_subject(tmp_path, save_picture):
    save_picture("1.png")
    write(tmp_path / "m.csv", "path,label,patient,split", "1.png,a,SECRET-ID,train", "2.png,a,SECRET-ID,dev")
    with pytest.raises(InstaHideError) as caught:
        load_images(tmp_path / "m.csv")
    write(
        tmp_path / "m.csv", "path,label,patient,split", "1.png,a,SECRET-ID,train", "2.png,a,SECRET-ID,train"
    )
    with pytest.raises(InstaHideError) as again:
        load_images(tmp_path / "m.csv")
    assert "SECRET-ID" not in str(caught.value) + str(again.value)
    assert "SECRET-ID" not in repr(read_images(tmp_path / "m.csv", max_bad_fraction=1.0))

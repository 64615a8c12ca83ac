"""What is saved comes back bit for bit; anything damaged is named and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instahide.encoded_dataset import EncodedDataset
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import IntegrityError, InvalidInputError
from instahide.storage import EncodedFolder, load_encoded, pack_values, save_encoded

from .encoded_examples import encoded, private_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoded(encoded(), tmp_path / "encoded", shard_size=16)
    return tmp_path / "encoded"


@pytest.mark.parametrize(
    ("law", "stored"),
    [
        ({}, torch.int8),
        ({"quantization_bits": 2}, torch.int8),
        ({"quantization_bits": 12}, torch.int16),
        ({"quantization_bits": 16}, torch.int16),
        ({"mode": "compat"}, torch.float32),
        ({"mode": "mixup"}, torch.float32),
    ],
    ids=str,
)
def test_encodings_come_back_bit_for_bit(tmp_path: Path, law: dict[str, object], stored: torch.dtype) -> None:
    epoch = encoded(**law)
    save_encoded(epoch, tmp_path / "out")
    again = load_encoded(tmp_path / "out")
    assert torch.equal(again.images, epoch.images)
    assert torch.equal(again.labels, epoch.labels)
    assert (again.class_names, again.config, again.scheme) == (epoch.class_names, epoch.config, epoch.scheme)
    on_disk = safetensors.torch.load_file(tmp_path / "out" / "shard-00000.safetensors")
    assert on_disk["images"].dtype == stored


def test_every_value_of_every_grid_survives_packing() -> None:
    for bits in range(2, 17):
        config = EncoderConfig(quantization_bits=bits)
        levels = config.quantization_levels
        assert levels is not None
        grid = torch.arange(-levels, levels + 1, dtype=torch.float32) / float(levels)
        back = pack_values(grid, levels).to(torch.float32) / float(levels)
        assert torch.equal(back, grid)


@pytest.mark.parametrize("batch", [1, 7, 16, 100])
def test_batches_are_cut_into_shards_whatever_their_size(tmp_path: Path, batch: int) -> None:
    encoder = Encoder(EncoderConfig(), private=private_images())
    parts = list(encoder.encode_batches(batch))
    manifest = save_encoded(iter(parts), tmp_path / "out", shard_size=16)
    assert [shard.num_images for shard in manifest.shards] == [16, 16, 8]
    assert torch.equal(load_encoded(tmp_path / "out").images, torch.cat([part.images for part in parts]))


def test_epochs_lie_one_after_the_other(tmp_path: Path) -> None:
    epochs = [encoded(), encoded()]
    save_encoded(epochs, tmp_path / "out", shard_size=16, epochs=2)
    folder = EncodedFolder(tmp_path / "out")
    for index, epoch in enumerate(epochs):
        rows = list(folder.epoch(index))
        assert max(map(len, rows)) <= 16
        assert torch.equal(torch.cat([part.images for part in rows]), epoch.images)
    with pytest.raises(InvalidInputError, match="epoch 2"):
        folder.epoch(2)


@given(start=st.integers(0, 45), stop=st.none() | st.integers(0, 45))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_any_range_of_rows_can_be_read(folder: Path, start: int, stop: int | None) -> None:
    whole = load_encoded(folder).images
    parts = [part.images for part in EncodedFolder(folder).shards(start, stop)]
    read = torch.cat(parts) if parts else whole[:0]
    assert torch.equal(read, whole[start:stop])


def test_only_its_owner_reads_the_folder(folder: Path) -> None:
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    def breaking() -> object:
        yield encoded()
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        save_encoded(breaking(), tmp_path / "out", shard_size=8)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_replaced_only_on_request(folder: Path) -> None:
    fresh = encoded()
    with pytest.raises(InvalidInputError, match="already holds"):
        save_encoded(fresh, folder)
    save_encoded(fresh, folder, overwrite=True)
    assert torch.equal(load_encoded(folder).images, fresh.images)
    assert [path.name for path in folder.parent.iterdir()] == ["encoded"]


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInputError, match="holds other files"):
        save_encoded(encoded(), tmp_path, overwrite=True)
    with pytest.raises(InvalidInputError, match="in the way"):
        save_encoded(encoded(), tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_cannot_be_one_data_set_is_refused(tmp_path: Path) -> None:
    small = Encoder(EncoderConfig(), private=private_images(side=7)).encode_epoch()
    off_grid = EncodedDataset(
        *(lambda e: (e.images * 0.99, e.labels, e.class_names, e.config, e.scheme))(encoded())
    )
    for bad, reason in [
        ([encoded(), encoded(mode="compat")], "differ in law"),
        ([encoded(), small], "differ in image shape"),
        ([], "no encodings"),
        (off_grid, "not on the grid"),
    ]:
        with pytest.raises(InvalidInputError, match=reason):
            save_encoded(bad, tmp_path / "out", shard_size=40)
    with pytest.raises(InvalidInputError, match="not 3 epochs"):
        save_encoded(encoded(), tmp_path / "out", epochs=3)
    with pytest.raises(InvalidInputError, match="shard size is 0"):
        save_encoded(encoded(), tmp_path / "out", shard_size=0)
    assert list(tmp_path.iterdir()) == []


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "missing"),
    "longer": (append, "bytes long"),
    "truncated": (truncate, "bytes long"),
    "empty": (lambda path: path.write_bytes(b""), "bytes long"),
    "a link": (replace_by_link, "not a plain file"),
    "a neighbour": (
        lambda path: path.write_bytes((path.parent / "shard-00000.safetensors").read_bytes()),
        "SHA-256",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named(folder: Path, kind: str) -> None:
    damage, reason = DAMAGE[kind]
    damage(folder / "shard-00001.safetensors")
    with pytest.raises(IntegrityError, match=rf"shard-00001\.safetensors: .*{reason}"):
        load_encoded(folder)


def test_a_shard_too_many_is_named(folder: Path) -> None:
    (folder / "shard-00003.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"shard-00003\.safetensors: .*does not know"):
        EncodedFolder(folder)


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), shard=st.integers(0, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
def test_any_changed_byte_of_any_shard_is_caught(
    folder: Path, position: float, flip: int, shard: int
) -> None:
    path = folder / f"shard-{shard:05d}.safetensors"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(position * len(bad))] ^= flip
    try:
        path.write_bytes(bytes(bad))
        with pytest.raises(IntegrityError, match=path.name):
            load_encoded(folder)
    finally:
        path.write_bytes(good)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_without_the_hash_check_random_bytes_still_raise_no_strange_error(
    folder: Path, data: st.DataObject
) -> None:
    path = folder / "shard-00001.safetensors"
    good = path.read_bytes()
    start = data.draw(st.integers(0, 200))
    noise = data.draw(st.binary(min_size=8, max_size=64))
    try:
        path.write_bytes((good[:start] + noise + good[start + len(noise) :])[: len(good)])
        try:
            loaded = load_encoded(folder, verify=False)
        except IntegrityError as error:
            assert path.name in error.message  # noqa: PT017  # either outcome is right, another error is not
        else:
            assert bool((loaded.images.abs() <= 1).all())
    finally:
        path.write_bytes(good)


def test_tensors_of_another_shape_or_type_are_refused_without_the_hash_check(folder: Path) -> None:
    path = folder / "shard-00002.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["images"] = tensors["images"].reshape(8, 3, 4, 16)
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(IntegrityError, match=path.name):
        load_encoded(folder, verify=False)


@pytest.mark.parametrize(("name", "value"), [("images", 2.0), ("images", float("nan")), ("labels", -1.0)])
def test_values_out_of_range_are_refused_without_the_hash_check(
    tmp_path: Path, name: str, value: float
) -> None:
    save_encoded(encoded(mode="compat"), tmp_path / "out")
    path = tmp_path / "out" / "shard-00000.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[name].view(-1)[5] = value
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(IntegrityError, match=path.name):
        load_encoded(tmp_path / "out", verify=False)


def test_a_folder_without_manifest_is_never_loaded(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="unfinished"):
        load_encoded(folder)


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a folder"):
        load_encoded(tmp_path / "nowhere")


def test_the_manifest_has_no_room_for_a_secret(folder: Path) -> None:
    """Every name in it, spelt out: a new one must be argued for here."""
    body = json.loads((folder / "manifest.json").read_text())
    assert set(body) == {
        "format", "format_version", "created_by", "scheme", "law", "label_policy",
        "texture_filter_version", "epochs", "num_images", "image_shape", "class_names", "row_order",
        "values", "shards", "manifest_sha256",
    }  # fmt: skip
    assert set(body["shards"][0]) == {"name", "num_images", "bytes", "sha256"}
    assert set(safetensors.torch.load_file(folder / "shard-00000.safetensors")) == {"images", "labels"}

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.implementation_audits import artefacts
from instahide.attacks.implementation_audits.artefacts import Scan, audit_artefacts, scan_artefacts
from instahide.attacks.implementation_audits.generator_signatures import scan_bytes
from instahide.attacks.implementation_audits.pickle_outline import named_values, outlines
from instahide.attacks.implementation_audits.planted import smooth_pictures
from instahide.checkpoints import save_checkpoint, save_model
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.models import build_model
from instahide.storage import save_encoded
from instahide.training import TrainingState
from instahide.training_config import TrainingConfig


def scan(path: Path) -> Scan:
    return scan_artefacts([path])


def kinds(path: Path) -> set[str]:
    return {finding.kind for finding in scan(path).findings}


@pytest.mark.parametrize("used", [0, 1000])
@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_generator_is_found_in_a_checkpoint_under_any_name(
    tmp_path: Path, used: int, zipped: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    torch.randn(used, generator=generator)
    content = {"model": torch.nn.Linear(8, 8).state_dict(), "extra": generator.get_state()}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    assert kinds(tmp_path / "c.pt") == {"state"}


def test_a_cuda_generator_is_found_by_its_name(tmp_path: Path) -> None:
    torch.save({"cuda_rng_state": torch.arange(16, dtype=torch.uint8)}, tmp_path / "c.pt")
    np.savez(tmp_path / "c.npz", cuda_rng_state=np.arange(16, dtype=np.uint8))
    assert kinds(tmp_path / "c.pt") == kinds(tmp_path / "c.npz") == {"state"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "state",
    [
        random.Random(1).getstate(),
        np.random.RandomState(2).get_state(),
        np.random.RandomState(2),
        np.random.default_rng(3),
        {"deep": [{"inside": np.random.RandomState(4).get_state()[1]}]},
    ],
    ids=["random", "numpy tuple", "RandomState", "Generator", "bare words"],
)
def test_generators_are_found_in_pickles_of_every_protocol(
    tmp_path: Path, protocol: int, state: object
) -> None:
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"epoch": 1, "x": state}, protocol=protocol))
    assert kinds(tmp_path / "c.pkl") == {"state"}


def test_a_pickle_is_looked_through_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    content = [Trap(), {"state": random.Random(1).getstate()}]
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(content))
    assert kinds(tmp_path / "c.pkl") == {"state"}
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.json", json.dumps({"config": {"mask_seed": 12}}), "seed"),
        ("b.json", json.dumps(np.random.default_rng(1).bit_generator.state), "state"),
        ("c.json", json.dumps({"s": random.Random(3).getstate()}), "state"),
        ("d.json", json.dumps({"note": json.dumps({"encoding_key": "ab" * 32})}), "key"),
        ("e.yaml", "lr: 0.1\nseed: 42\n", "seed"),
        ("f.toml", f'[site]\nsigning-key = "{"0f" * 32}"\n', "key"),
        ("g.txt", "-----BEGIN EC PRIVATE KEY-----\nMHc\n", "key"),
        ("h.jsonl", '{"round": 1}\n{"round": 2, "rng_seed": 3}\n', "seed"),
        ("i.py", "PASSWORD = 'hunter2hunter2'\n", "key"),
    ],
)
def test_seeds_and_keys_are_found_in_text(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text)
    assert kinds(tmp_path / name) == {kind}


def test_arrays_that_are_keys_or_states_are_found(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "key.npz", mask_key=np.frombuffer(os.urandom(32), np.uint8))
    np.savez_compressed(tmp_path / "state.npz", x=np.random.RandomState(1).get_state()[1])
    np.save(tmp_path / "object.npy", np.array([{"seed": 3}], dtype=object), allow_pickle=True)
    assert kinds(tmp_path / "key.npz") == {"key"}
    assert kinds(tmp_path / "state.npz") == {"state"}
    assert kinds(tmp_path / "object.npy") == {"seed"}


def test_archives_in_archives_are_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.json", json.dumps({"s": random.Random(3).getstate()}))
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as archive_of_archive:
        info = tarfile.TarInfo("inner.zip")
        info.size = len(inner.getvalue())
        archive_of_archive.addfile(info, io.BytesIO(inner.getvalue()))
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(outer.getvalue()))
    (finding,) = scan(tmp_path / "all.tar.gz").findings
    assert "inner.zip" in finding.where
    assert "x.json" in finding.where


def test_a_bomb_is_bounded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "MAX_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 24))
    for name in ("bomb.gz", "bomb.zip"):
        assert scan(tmp_path / name).unread


@pytest.mark.parametrize("cut", [10, 100, 400])
def test_damaged_files_are_read_as_far_as_they_go(tmp_path: Path, cut: int) -> None:
    torch.save({"rng": torch.Generator().manual_seed(1).get_state()}, tmp_path / "whole.pt")
    np.savez(tmp_path / "whole.npz", x=np.zeros(500))
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps(list(range(2000))))
    for name in ("whole.pt", "whole.npz", "whole.pkl"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:-cut])
        scan(tmp_path / f"cut-{name}")  # no exception
    assert kinds(tmp_path / "cut-whole.pt") == {"state"}  # the bytes are still there


def test_states_are_found_at_any_place_in_raw_bytes() -> None:
    seeded = np.random.RandomState(5).get_state()[1].tobytes()
    wide = torch.Generator().manual_seed(9).get_state().numpy().tobytes()
    for offset in (0, 1, 2, 3, 777):
        (found,) = scan_bytes(os.urandom(offset) + seeded + os.urandom(50))
        assert found[:2] == ("state", offset)
        assert [kind for kind, _, _ in scan_bytes(os.urandom(offset) + wide)][:1] == ["state"]


@pytest.mark.statistical
def test_ordinary_numbers_are_no_states() -> None:
    # Random words obey a recurrence of 32 bits, 623 times, with chance 2^-19936.
    rng = np.random.default_rng(0)
    for values in (
        rng.integers(0, 2**32, 50_000, dtype=np.uint32),
        rng.integers(0, 10, 50_000),
        rng.permutation(50_000),
        np.zeros(50_000),
        rng.normal(size=50_000).astype(np.float32),
        np.arange(50_000, dtype=np.uint32),
    ):
        assert scan_bytes(values.tobytes()) == []


def test_what_the_toolkit_writes_is_clean(tmp_path: Path) -> None:
    private, pool = smooth_pictures(40, seed=1, classes=3), smooth_pictures(60, seed=2)
    for mode in ("hardened", "compat"):
        encoder = Encoder(EncoderConfig(mode=mode), private=private, public=pool)
        save_encoded(encoder.encode_epoch(), tmp_path / mode)
    model = build_model("small-cnn", image_shape=(1, 16, 16), num_classes=3)
    save_model(tmp_path / "model.safetensors", model)
    state = TrainingState(seed=7, epoch=1, step=0, loss_sum=0.0, num_right=0, optimizer={})
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, TrainingConfig(), state)
    result = audit_artefacts([tmp_path])
    assert result.settings["findings"] == []
    assert result.leaked is False
    assert any(where.endswith("content.state.seed") for where in result.settings["harmless"])


def test_states_leak_and_seeds_are_not_decided(tmp_path: Path) -> None:
    (tmp_path / "seed.json").write_text('{"seed": 1}')
    assert audit_artefacts([tmp_path]).leaked is None
    (tmp_path / "state.pkl").write_bytes(pickle.dumps(random.Random(1).getstate()))
    result = audit_artefacts([tmp_path])
    assert result.leaked
    text = json.dumps(result.to_dict())
    assert not any(str(word) in text for word in random.Random(1).getstate()[1][:20])  # never the value


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not there"):
        scan_artefacts([tmp_path / "nothing"])


def test_an_outline_keeps_names_and_values_and_circles_end() -> None:
    circle: list[object] = []
    circle.append(circle)
    (outline,) = outlines(pickle.dumps({"a": {"b": [b"x", "y"]}, "c": circle}))
    found = list(named_values(outline))
    assert ("a.b", b"x") in found
    assert ("a.b", "y") in found

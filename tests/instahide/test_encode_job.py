"""Encoding to disk: charged once, nothing half, resumable after any kill, no secret on disk."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instahide import encode_job
from instahide.encode_job import JOB_FILE, encode_to_folder
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError
from instahide.exposure import RELEASED, ExposureLedger
from instahide.images import ImageSet
from instahide.storage import EncodedFolder, load_encoded

from .encoded_examples import everything_in, private_images

ROOT = Path(__file__).resolve().parents[2]
CONFIG = EncoderConfig()
OWN_LABELS = EncoderConfig(mode="compat", num_mixed=1, num_private=1)
"""With k = 1 an encoding shows its own image's class, and its values the image's pixels."""


@pytest.fixture
def ledger(tmp_path: Path) -> ExposureLedger:
    return ExposureLedger(tmp_path / "ledger.sqlite3")


class Killed(BaseException):
    """Stands for a kill between two steps: no handler of ours catches it."""


def stop_after(rows: int) -> Any:
    def on_progress(done: int, total: int) -> None:
        if done >= rows:
            raise Killed

    return on_progress


def interrupt(out: Path, ledger: ExposureLedger, rows: int, **options: Any) -> None:
    options = {"private": private_images(), "shard_size": 8, **options}
    with pytest.raises(Killed):
        encode_to_folder(CONFIG, out, ledger=ledger, on_progress=stop_after(rows), **options)


def test_one_call_writes_a_whole_folder_and_charges_it(tmp_path: Path, ledger: ExposureLedger) -> None:
    result = encode_to_folder(
        CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, shard_size=16
    )
    loaded = load_encoded(tmp_path / "out")
    assert len(loaded) == 40
    assert loaded.class_names == ("benign", "malignant", "normal")
    assert (result.own_uses, result.partner_uses, result.copies_left_out) == (1, 3, 0)
    counts = ledger.counts(private_images(), kind=RELEASED)
    assert counts.own.tolist() == [1] * 40
    assert counts.partner.tolist() == [3] * 40
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors",
    ]  # fmt: skip


def test_with_defaults_a_second_release_of_the_same_images_is_refused(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    encode_to_folder(CONFIG, tmp_path / "one", private=private_images(), ledger=ledger)
    with pytest.raises(RefusedError, match="40 of 40 images"):
        encode_to_folder(CONFIG, tmp_path / "two", private=private_images(), ledger=ledger)
    assert not (tmp_path / "two").exists()


def test_a_refusal_leaves_an_empty_folder_empty(tmp_path: Path, ledger: ExposureLedger) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError):
        encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, max_releases=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_epochs_need_a_budget_of_two(tmp_path: Path, ledger: ExposureLedger) -> None:
    options: dict[str, Any] = {"private": private_images(), "ledger": ledger, "epochs": 2, "shard_size": 16}
    with pytest.raises(RefusedError):
        encode_to_folder(CONFIG, tmp_path / "out", **options)
    encode_to_folder(CONFIG, tmp_path / "out", max_releases=2, **options)
    folder = EncodedFolder(tmp_path / "out")
    assert [shard.num_images for shard in folder.manifest.shards] == [16, 16, 8] * 2
    first, second = (torch.cat([part.images for part in folder.epoch(i)]) for i in (0, 1))
    assert first.shape == second.shape == (40, 3, 8, 8)
    assert not torch.equal(first, second)


def test_the_research_modes_are_counted_but_not_limited(tmp_path: Path, ledger: ExposureLedger) -> None:
    law = EncoderConfig(mode="compat")
    for name in ("one", "two"):
        encode_to_folder(law, tmp_path / name, private=private_images(), ledger=ledger)
    assert ledger.counts(private_images(), kind=RELEASED).own.tolist() == [2] * 40


def test_exact_copies_beyond_the_budget_are_left_out(tmp_path: Path, ledger: ExposureLedger) -> None:
    images = private_images(10).subset([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 3, 7])
    result = encode_to_folder(CONFIG, tmp_path / "one", private=images, ledger=ledger)
    assert result.copies_left_out == 3
    assert len(load_encoded(tmp_path / "one")) == 10
    assert ledger.counts(images, kind=RELEASED).own.tolist() == [1] * 13


def test_a_larger_budget_keeps_as_many_copies(tmp_path: Path, ledger: ExposureLedger) -> None:
    images = private_images(10).subset([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 3, 7])
    result = encode_to_folder(CONFIG, tmp_path / "out", private=images, ledger=ledger, max_releases=2)
    assert result.copies_left_out == 1
    assert ledger.counts(private_images(10), kind=RELEASED).own.tolist() == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1]


def test_hardened_rows_are_shuffled_within_their_shard_and_no_row_is_lost(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    """k = 1 and one mask-free comparison: |x| of an encoding is |x| of its own image, on the grid.

    A false alarm needs one of two shards of 20 rows to be left in order: 2/20! < 1e-17.
    """
    law = EncoderConfig(num_mixed=1, num_private=1, quantization_bits=16)
    images = private_images()
    encode_to_folder(law, tmp_path / "out", private=images, ledger=ledger, shard_size=20)
    folder = EncodedFolder(tmp_path / "out")
    assert folder.manifest.row_order == "shuffled-within-shards"
    own = torch.from_numpy(images.images).float().div(127.5).sub(1).abs().flatten(1)
    for start, shard in zip((0, 20), folder.shards(), strict=True):
        distances = torch.cdist(shard.images.abs().flatten(1), own)
        nearest = distances.argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(start, start + 20))
        assert nearest.tolist() != list(range(start, start + 20))


def test_compat_rows_keep_the_order_of_the_data(tmp_path: Path, ledger: ExposureLedger) -> None:
    images = private_images()
    encode_to_folder(OWN_LABELS, tmp_path / "out", private=images, ledger=ledger, shard_size=16)
    assert images.labels is not None
    assert load_encoded(tmp_path / "out").labels.argmax(dim=1).tolist() == images.labels.tolist()


@pytest.mark.parametrize("rows", [0, 8, 24, 40])
def test_a_killed_job_leaves_nothing_loadable_and_resumes(
    tmp_path: Path, ledger: ExposureLedger, rows: int
) -> None:
    out = tmp_path / "out"
    interrupt(out, ledger, rows)
    with pytest.raises(IntegrityError, match="unfinished"):
        load_encoded(out)
    before = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    result = encode_to_folder(CONFIG, out, private=private_images(), ledger=ledger, shard_size=8, resume=True)
    assert len(load_encoded(out)) == 40
    assert result.rows_kept_from_before == rows
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not (out / JOB_FILE).exists()


@pytest.mark.parametrize(("rows", "partner"), [(0, 3), (24, 6), (40, 3)])
def test_a_resume_charges_no_own_use_and_the_upper_bound_of_partner_uses(
    tmp_path: Path, ledger: ExposureLedger, rows: int, partner: int
) -> None:
    """Inside an epoch partners are drawn afresh: 3 more at most. At its start or end nothing is redrawn."""
    interrupt(tmp_path / "out", ledger, rows)
    result = encode_to_folder(
        CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, shard_size=8, resume=True
    )
    counts = ledger.counts(private_images(), kind=RELEASED)
    assert counts.own.tolist() == [1] * 40
    assert counts.partner.tolist() == [partner] * 40
    assert result.partner_uses == partner


def test_every_image_is_own_once_an_epoch_however_often_the_job_is_killed(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    images = private_images()
    options: dict[str, Any] = {"private": images, "ledger": ledger, "shard_size": 7, "epochs": 2}
    for rows in (7, 14, 42, 61):
        with pytest.raises(Killed):
            encode_to_folder(
                OWN_LABELS, tmp_path / "out", resume=True, on_progress=stop_after(rows), **options
            )
    encode_to_folder(OWN_LABELS, tmp_path / "out", resume=True, **options)
    assert images.labels is not None
    assert load_encoded(tmp_path / "out").labels.argmax(dim=1).tolist() == images.labels.tolist() * 2
    own = torch.from_numpy(images.images).float().div(127.5).sub(1).abs()
    assert torch.allclose(load_encoded(tmp_path / "out").images.abs(), torch.cat([own, own]), atol=1e-5)


FILE_OPERATIONS = 11
"""Three shards: the job file, then for each shard job file, shard, job file, and the manifest."""


def kill_before(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Kill the job before its file operation ``number``; returns the list of those it made."""
    made: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(encode_job, name)

        def operation(*arguments: Any, **options: Any) -> None:
            if len(made) == number:
                raise Killed
            made.append(name)
            real(*arguments, **options)

        return operation

    for name in ("atomic_write_bytes", "atomic_write_text", "write_manifest"):
        monkeypatch.setattr(encode_job, name, counted(name))
    return made


@pytest.mark.parametrize("number", range(FILE_OPERATIONS + 1))
def test_a_kill_between_any_two_file_operations_can_be_resumed(
    tmp_path: Path, ledger: ExposureLedger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    options: dict[str, Any] = {"private": private_images(), "ledger": ledger, "shard_size": 16}
    made = kill_before(monkeypatch, number)
    if number == FILE_OPERATIONS:
        encode_to_folder(CONFIG, tmp_path / "out", **options)
    else:
        with pytest.raises(Killed):
            encode_to_folder(CONFIG, tmp_path / "out", **options)
        monkeypatch.undo()
        encode_to_folder(CONFIG, tmp_path / "out", resume=True, **options)
    assert len(made) == number
    assert len(load_encoded(tmp_path / "out")) == 40
    assert ledger.counts(private_images(), kind=RELEASED).own.tolist() == [1] * 40
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}


def test_resume_with_nothing_to_resume_is_a_plain_start(tmp_path: Path, ledger: ExposureLedger) -> None:
    encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, resume=True)
    assert len(load_encoded(tmp_path / "out")) == 40


def test_an_interrupted_folder_is_not_started_over_by_accident(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    interrupt(tmp_path / "out", ledger, 8)
    with pytest.raises(InvalidInputError, match="interrupted encoding"):
        encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"private": private_images(seed=5)}, "the images"),
        ({"epochs": 2}, "epochs"),
        ({"shard_size": 9}, "shard_rows"),
        ({"config": EncoderConfig(num_mixed=5)}, "law"),
        ({"public": private_images(seed=6)}, "scheme"),
    ],
    ids=["images", "epochs", "shards", "law", "scheme"],
)
def test_a_resume_with_other_settings_is_refused(
    tmp_path: Path, ledger: ExposureLedger, change: dict[str, Any], reason: str
) -> None:
    interrupt(tmp_path / "out", ledger, 8)
    options = {"config": CONFIG, "private": private_images(), "shard_size": 8, **change}
    config = options.pop("config")
    with pytest.raises(InvalidInputError, match=f"differs in .*{reason}"):
        encode_to_folder(config, tmp_path / "out", ledger=ledger, resume=True, **options)


def test_a_finished_shard_that_was_touched_stops_the_resume(tmp_path: Path, ledger: ExposureLedger) -> None:
    interrupt(tmp_path / "out", ledger, 16)
    shard = tmp_path / "out" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"shard-00001\.safetensors"):
        encode_to_folder(
            CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, shard_size=8, resume=True
        )


def test_a_damaged_job_file_is_named(tmp_path: Path, ledger: ExposureLedger) -> None:
    interrupt(tmp_path / "out", ledger, 16)
    (tmp_path / "out" / JOB_FILE).write_text("{}")
    with pytest.raises(IntegrityError, match=JOB_FILE):
        encode_to_folder(
            CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, shard_size=8, resume=True
        )


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, ledger: ExposureLedger, name: str) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "ledger.sqlite3").unlink()
    with pytest.raises(InvalidInputError, match="holds"):
        encode_to_folder(CONFIG, tmp_path, private=private_images(), ledger=ledger)
    assert (tmp_path / name).read_text() == "mine"


def test_a_second_job_in_the_folder_is_refused(tmp_path: Path, ledger: ExposureLedger) -> None:
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="another job"):
            encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger)
    finally:
        os.close(descriptor)
    assert ledger.summary()[0].num_images == 0


def test_a_full_disk_is_told_and_can_be_resumed(
    tmp_path: Path, ledger: ExposureLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode_job, "atomic_write_bytes", full)
    with pytest.raises(InstaHideError, match="No space left"):
        encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger)
    monkeypatch.undo()
    encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, resume=True)
    assert len(load_encoded(tmp_path / "out")) == 40


def test_only_the_job_token_and_public_things_are_in_the_job_file(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    interrupt(tmp_path / "out", ledger, 16)
    file = tmp_path / "out" / JOB_FILE
    state = json.loads(file.read_text())
    assert set(state) == {"format_version", "token", "settings", "resumes", "shards", "pending"}
    assert set(state["settings"]) == {
        "law", "scheme", "epochs", "shard_rows", "images",
    }  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o600
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_no_secret_drawn_from_the_system_reaches_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: ExposureLedger
) -> None:
    """Every byte string the system hands out is kept here and looked for in everything written."""
    drawn: list[bytes] = []
    real = os.urandom

    def canary(size: int) -> bytes:
        drawn.append(real(size))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", canary)
    interrupt(tmp_path / "out", ledger, 16)
    encode_to_folder(
        CONFIG, tmp_path / "out", private=private_images(), ledger=ledger, shard_size=8, resume=True
    )
    roots = [secret for secret in drawn if len(secret) >= 16]
    assert len(roots) > 4, "the encoder's roots and salts pass through os.urandom"
    written = everything_in(tmp_path)
    for secret in roots:
        for shape in (secret, secret.hex().encode(), secret[::-1], secret[:16], secret[16:]):
            assert shape not in written


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from instahide.encode_job import encode_to_folder
from instahide.encoder_config import EncoderConfig
from instahide.exposure import ExposureLedger
from instahide.images import ImageSet
images = ImageSet(np.load(sys.argv[2]), np.arange(600) % 3)
def on_progress(done, total):
    print(done, flush=True)
    time.sleep(0.02)
ledger = ExposureLedger(Path(sys.argv[1]) / "ledger.sqlite3")
encode_to_folder(EncoderConfig(), Path(sys.argv[1]) / "out", private=images, ledger=ledger,
    shard_size=10, on_progress=on_progress)
"""


def test_kill_9_in_the_middle_then_resume(tmp_path: Path) -> None:
    images = private_images(600)
    np.save(tmp_path / "x.npy", images.images)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tmp_path / "x.npy")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if int(line) >= 200:
                break
        job.kill()
        assert job.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    ledger = ExposureLedger(tmp_path / "ledger.sqlite3")
    again = ImageSet(images.images, np.arange(600) % 3)
    result = encode_to_folder(
        CONFIG, tmp_path / "out", private=again, ledger=ledger, shard_size=10, resume=True
    )
    assert result.rows_kept_from_before >= 200
    assert len(load_encoded(tmp_path / "out")) == 600
    assert not list((tmp_path / "out").glob(".*"))
    counts = ledger.counts(again, kind=RELEASED)
    assert set(counts.own.tolist()) == {1}
    assert set(counts.partner.tolist()) == {6}  # 3 for the epoch, 3 more at most for the resume


def test_memory_mapped_images_stay_on_disk(tmp_path: Path, ledger: ExposureLedger) -> None:
    images = private_images(64)
    np.save(tmp_path / "x.npy", images.images)
    mapped = ImageSet(np.load(tmp_path / "x.npy", mmap_mode="r"), images.labels, images.class_names)
    encode_to_folder(CONFIG, tmp_path / "out", private=mapped, ledger=ledger, shard_size=10)
    assert isinstance(mapped.images, np.memmap)
    assert (mapped.images == images.images).all()
    assert ledger.counts(images, kind=RELEASED).own.tolist() == [1] * 64


def test_a_public_pool_is_neither_counted_nor_charged(tmp_path: Path, ledger: ExposureLedger) -> None:
    pool = ImageSet(private_images(60, seed=9).images)
    result = encode_to_folder(CONFIG, tmp_path / "out", private=private_images(), public=pool, ledger=ledger)
    assert (
        result.partner_uses
        == Encoder(CONFIG, private=private_images(), public=pool).partner_uses_per_epoch
        == 1
    )
    assert (result.manifest.scheme, result.manifest.texture_filter_version) == ("cross", "v1")
    assert ledger.counts(pool, kind=RELEASED).partner.tolist() == [0] * 60

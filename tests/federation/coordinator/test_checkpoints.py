"""A checkpoint is loaded whole and true, or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from coordinator_fakes import initial_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from federation.config import RunConfig
from federation.coordinator.checkpoints import Checkpoint, CheckpointStore, read_tensors
from instahide import atomic
from instahide.errors import IntegrityError, RefusedError

CONFIG = RunConfig(strategy="fedadam", keep_checkpoints=2)


class Recorder:
    def __init__(self):
        self.lines = []

    def emit(self, event, **fields):
        self.lines.append((event, fields))


def checkpoint(server_round=1):
    state = {"m/w": np.full((4, 3), 1e-300), "v/w": np.arange(12.0).reshape(4, 3)[:, ::-1]}
    return Checkpoint(
        server_round=server_round, weights=initial_weights(), state=state, sizes={"11:num-examples": 7}
    )


def assert_same(first, second):
    assert (first.server_round, first.sizes, list(first.weights)) == (
        second.server_round,
        second.sizes,
        list(second.weights),
    )
    for one, other in ((first.weights, second.weights), (first.state, second.state)):
        assert set(one) == set(other)
        for name in one:
            assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
            assert one[name].tobytes() == other[name].tobytes()


def test_a_checkpoint_comes_back_bit_for_bit_with_its_order_and_scalars(tmp_path):
    store = CheckpointStore(tmp_path, CONFIG)
    store.save(checkpoint())
    assert_same(store.load_latest(Recorder()), checkpoint())


def test_the_last_few_are_kept_and_the_newest_is_loaded(tmp_path):
    store = CheckpointStore(tmp_path, CONFIG)
    for server_round in (1, 2, 9, 10, 11):
        store.save(checkpoint(server_round))
    assert store.rounds() == [10, 11]
    assert store.load_latest(Recorder()).server_round == 11
    assert {path.name for path in tmp_path.iterdir()} == {"round-0010.safetensors", "round-0011.safetensors"}


def test_no_checkpoint_is_none(tmp_path):
    assert CheckpointStore(tmp_path / "never", CONFIG).load_latest(Recorder()) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_and_any_cut_is_found(tmp_path, data):
    store = CheckpointStore(tmp_path / "one", CONFIG)
    if not store.rounds():
        (tmp_path / "one").mkdir()
        store.save(checkpoint())
    whole = store.path(1).read_bytes()
    spoiled = CheckpointStore(tmp_path / "two", CONFIG)
    (tmp_path / "two").mkdir(exist_ok=True)
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        bad = whole[:place]
    else:
        bad = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    spoiled.path(1).write_bytes(bad)
    with pytest.raises(IntegrityError, match="none of the 1"):
        spoiled.load_latest(Recorder())


def test_a_spoiled_newest_one_is_passed_over_for_the_one_before_and_reported(tmp_path):
    store = CheckpointStore(tmp_path, CONFIG)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    store.path(2).write_bytes(b"")
    recorder = Recorder()
    assert store.load_latest(recorder).server_round == 1
    ((event, fields),) = recorder.lines
    assert (event, fields["round"]) == ("checkpoint-corrupt", 2)


def test_weights_swapped_under_the_same_metadata_are_found(tmp_path):
    store = CheckpointStore(tmp_path, CONFIG)
    store.save(checkpoint())
    tensors, metadata = read_tensors(store.path(1))
    tensors["weights/bias"] = tensors["weights/bias"] + np.float32(1)
    save_file(tensors, store.path(1), metadata)
    with pytest.raises(IntegrityError):
        store.load_latest(Recorder())


def test_other_settings_are_refused_by_name_and_patience_may_change(tmp_path):
    CheckpointStore(tmp_path, CONFIG).save(checkpoint())
    patient = replace(CONFIG, round_deadline=7.0, num_server_rounds=30)
    assert CheckpointStore(tmp_path, patient).load_latest(Recorder()).server_round == 1
    with pytest.raises(RefusedError, match="batch-size, server-tau"):
        CheckpointStore(tmp_path, replace(CONFIG, batch_size=2, server_tau=0.5)).load_latest(Recorder())


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_that_dies_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, moment):
    store = CheckpointStore(tmp_path, CONFIG)
    store.save(checkpoint(1))

    def die(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "fsync":
            patch.setattr(atomic.os, "fsync", die)
        else:
            patch.setattr(atomic.Path, "replace", die)
        with pytest.raises(OSError, match="No space"):
            store.save(checkpoint(2))
    assert store.rounds() == [1]
    assert_same(store.load_latest(Recorder()), checkpoint(1))


def test_plain_safetensors_of_others_are_no_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, CONFIG)
    save_file(initial_weights(), store.path(1))
    shutil.copy(store.path(1), store.path(2))
    assert set(load_file(store.path(2))) == set(initial_weights())
    with pytest.raises(IntegrityError, match="none of the 2"):
        store.load_latest(Recorder())

"""The shell around Flower: records in and out, hostile replies, and a whole run over a Flower grid."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file, save_file

from federation.config import RunConfig
from federation.flower_records import WEIGHTS, weights_in, weights_record
from federation.messages import Refusal, RoundRequest, SiteReply
from federation.packing import pack_arrays, unpack_arrays
from federation.server_app import FlowerGrid, app, to_content, to_site_reply
from instahide.errors import FederationError, InvalidInputError

NAMES = {2**63 + 5: "Anna", 7: "Bern"}  # Flower's node ids are unsigned 64-bit numbers
ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.array(2.0, np.float32)}
LARGEST = 100_000


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch):
    """Flower gives the process of a ServerApp its identity; messages are made out in its name."""
    for identity in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, identity, 1)


class LoopbackGrid(Grid):
    """Flower's grid with sites in the same process; messages are Flower's own."""

    def __init__(self, answer):
        self.answer = answer
        self.replies = {}
        self.sent = []

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at="2026-01-01") for node in NAMES]

    def get_node_ids(self):
        return list(NAMES)

    def push_messages(self, messages):
        for message in messages:
            name = f"m{len(self.sent)}"
            self.sent.append(message)
            self.replies[name] = self._reply(name, message)
        return [f"m{len(self.sent) - len(messages) + i}" for i in range(len(messages))]

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def _reply(self, name, message):
        node = message.metadata.dst_node_id
        content = self.answer(node, message)
        source = 1 if isinstance(content, Error) else node
        metadata = Metadata(1, "r" + name, source, 1, name, "", 0.0, 60.0, message.metadata.message_type)
        return (
            make_message(metadata, error=content)
            if isinstance(content, Error)
            else make_message(metadata, content)
        )

    def set_run(self, run): ...

    def create_message(self, *_, **__): ...

    def send_and_receive(self, *_, **__):
        raise AssertionError("sleeps three seconds between two looks")

    @property
    def run(self): ...


def trained(node, message):
    """What an honest site makes of a message, through the protocol's own classes."""
    request = RoundRequest.from_mapping(
        dict(message.content["config"]),
        kind=message.metadata.message_type,
        arrays=unpack_arrays(weights_in(message.content["arrays"])),
    )
    metrics = {"evaluate-num-examples": 5, "evaluate-accuracy-plain": 0.5}
    records = RecordDict({"site": ConfigRecord({"name": NAMES[node]})})
    if request.kind == "train":
        metrics |= {"num-examples": 10, "train-loss": 1.0, "train-seconds": 0.1, "worker-seconds": 0.1}
        step = {name: np.asarray(array + np.float32(node % 3 + 1)) for name, array in request.arrays.items()}
        records["arrays"] = packed(pack_arrays(step))
    records["metrics"] = MetricRecord(metrics)
    return records


def packed(data):
    return weights_record(data)


def context(folder, **settings):
    save_file(ARRAYS, folder / "initial.safetensors")
    (folder / "sites.json").write_text(json.dumps({str(node): name for node, name in NAMES.items()}))
    config = RunConfig(run_directory=str(folder), **{"settle_time": 0.0, "retry_pause": 0.0} | settings)
    return Context(1, 1, {}, RecordDict(), config.to_run_config())


# --- whole runs --------------------------------------------------------------------------------------


def test_a_run_over_flowers_grid_ends_with_the_mean_of_the_sites(tmp_path):
    grid = LoopbackGrid(trained)
    app(grid, context(tmp_path, num_server_rounds=2))
    model = load_file(tmp_path / "model.safetensors")
    # both sites have 10 examples; they add (2**63 + 5) % 3 + 1 and 7 % 3 + 1 in each of two rounds
    step = np.mean([node % 3 + 1 for node in NAMES])
    assert np.allclose(model["w"], ARRAYS["w"] + 2 * step)
    assert [message.metadata.message_type for message in grid.sent] == ["train"] * 4 + ["evaluate"] * 2


def test_a_failed_run_raises_so_that_flower_marks_it_as_failed(tmp_path):
    gone = lambda node, message: Error(5, "node unavailable")  # noqa: E731
    with pytest.raises(
        FederationError, match=r"Anna: Flower error 5: node unavailable; Bern: Flower error 5"
    ):
        app(LoopbackGrid(gone), context(tmp_path))
    assert "run-failed" in (tmp_path / "events.jsonl").read_text().splitlines()[-1]


def test_a_wrong_setting_fails_before_anything_is_sent(tmp_path):
    grid = LoopbackGrid(trained)
    wrong = context(tmp_path)
    wrong.run_config["learing-rate"] = 1.0
    with pytest.raises(InvalidInputError, match="learing-rate"):
        app(grid, wrong)
    assert grid.sent == []


def test_a_reply_that_cannot_be_taken_apart_is_that_sites_failure(tmp_path):
    def answer(node, message):
        if NAMES[node] == "Bern":
            return RecordDict({"site": ConfigRecord({"name": "Bern"}), "model": ConfigRecord({"x": 1})})
        return trained(node, message)

    app(LoopbackGrid(answer), context(tmp_path, num_server_rounds=1, minimum_sites=1))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (failed, _) = [line for line in lines if line["event"] == "site-failed"]
    assert failed["site"] == "Bern"
    assert "unknown record 'model'" in failed["reason"]


# --- the grid ---------------------------------------------------------------------------------------------


def request(**settings):
    return RoundRequest.for_round(RunConfig(class_names=("a", "b"), **settings), 1, ARRAYS)


def test_a_request_reads_back_from_flowers_records():
    content = to_content(request(), pack_arrays(ARRAYS))
    again = RoundRequest.from_mapping(
        dict(content["config"]), arrays=unpack_arrays(weights_in(content["arrays"]))
    )
    assert again == request()
    assert all(again.arrays[name].tobytes() == ARRAYS[name].tobytes() for name in ARRAYS)
    assert again.arrays["scale"].shape == ()


def test_messages_carry_round_type_and_lifetime_and_share_their_weights():
    grid = LoopbackGrid(trained)
    one = request()
    ids = FlowerGrid(grid).push(dict.fromkeys(NAMES, one), lifetime=33.0)
    assert set(ids) == set(NAMES)
    first, second = grid.sent
    assert (first.metadata.group_id, first.metadata.message_type, first.metadata.ttl) == ("1", "train", 33.0)
    assert first.content is second.content


@pytest.mark.parametrize("returned", [[], ["", ""], [None, None]])
def test_messages_flower_did_not_take_are_not_waited_for(returned, monkeypatch):
    grid = LoopbackGrid(trained)
    monkeypatch.setattr(grid, "push_messages", lambda messages: returned)
    assert FlowerGrid(grid).push(dict.fromkeys(NAMES, request()), lifetime=1.0) == {}


# --- replies ----------------------------------------------------------------------------------------------


def record(arrays):
    return RecordDict({"site": ConfigRecord({"name": "A"}), "arrays": arrays})


def test_a_refusal_keeps_its_text():
    refusal = ConfigRecord({"reason": "k is below our policy", "hint": "raise num-mixed", "kind": "policy"})
    reply = to_site_reply(RecordDict({"site": ConfigRecord({"name": "A"}), "refusal": refusal}), largest=0)
    assert reply == SiteReply(
        site_name="A", refusal=Refusal(reason="k is below our policy", hint="raise num-mixed", kind="policy")
    )


def test_more_bytes_than_the_model_has_are_refused_before_they_are_read():
    with pytest.raises(InvalidInputError, match="bytes in a record, where at most 100000"):
        to_site_reply(record(packed(bytes(400_000))), largest=LARGEST)


@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04 a zip archive", b"\x80\x04K\x01.", pack_arrays({"w": np.zeros(3, np.float32)})[:-1]],
)
def test_bytes_that_are_not_packed_weights_are_refused(data):
    with pytest.raises(InvalidInputError):
        to_site_reply(record(packed(data)), largest=LARGEST)


def test_weights_come_as_one_array_of_one_name():
    loose = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})
    with pytest.raises(InvalidInputError, match="does not hold the packed weights alone"):
        to_site_reply(record(loose), largest=LARGEST)


def test_what_an_array_claims_about_itself_is_not_believed():
    lying = ArrayRecord({WEIGHTS: Array("float32", (1000, 1000), "numpy.ndarray", pack_arrays(ARRAYS))})
    assert to_site_reply(record(lying), largest=LARGEST).arrays["w"].shape == (2, 3)


def test_the_server_process_never_imports_torch():
    code = "import sys, federation.server_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

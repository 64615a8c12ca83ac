"""The relay: a Flower message in, the worker's words out, and a refusal where there is no worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save

from federation.client_app import SOCKET_VARIABLE, app
from federation.flower_records import weights_in, weights_record
from federation.frames import BUNDLE_KEY, Frame, receive_frame, send_frame
from federation.packing import unpack_arrays
from federation.site.listener import Listener

WEIGHTS = {"z.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}
DONE = {"site": {"name": "north"}, "metrics": {"num-examples": 7, "train-loss": 0.5}}


@pytest.fixture(autouse=True)
def _inside_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower gives the process of a task its identity; messages are made out in its name."""
    for identity in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, identity, 1)


def message(kind: str, arrays: dict[str, Any] | None = None, **config: Any) -> Message:
    data = save(WEIGHTS if arrays is None else arrays)
    content = RecordDict({"arrays": weights_record(data), "config": ConfigRecord(config)})
    return make_message(Metadata(1, "m1", 1, 2, "", "1", time.time(), 60.0, kind), content)


def context(**node_config: Any) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config=node_config,
        state=RecordDict(),
        run_config={"worker-socket": "/evil"},
    )


@contextmanager
def worker(folder: Path, reply: Callable[[Frame], Frame]) -> Iterator[tuple[Path, list[Frame]]]:
    """A worker that answers one request with ``reply`` and keeps what it was asked."""
    path, asked = folder / "run" / "w.sock", []

    def serve() -> None:
        connection = listener.accept(timeout=20)
        if connection is not None:
            with connection:
                frame = receive_frame(connection, timeout=20)
                assert frame is not None
                asked.append(frame)
                send_frame(connection, reply(frame), timeout=20)

    with Listener(path, allowed_uids=[os.getuid()]) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield path, asked
        thread.join()


def relayed(asked: Message, **node_config: Any) -> RecordDict:
    return app(asked, context(**node_config)).content


def test_a_train_message_reaches_the_worker_whole_and_its_reply_comes_back(tmp_path: Path) -> None:
    with worker(tmp_path, lambda frame: Frame("reply", DONE, frame.arrays)) as (path, asked):
        settings = {"model": "mlp", "class-names": ["a", "b"], "learning-rate": 0.1, "evaluate": True}
        content = relayed(message("train", **settings), **{"worker-socket": str(path), BUNDLE_KEY: "ab"})
    assert asked[0].kind == "train"
    assert asked[0].fields == {"config": settings, BUNDLE_KEY: "ab"}
    assert asked[0].arrays.keys() == WEIGHTS.keys()
    assert dict(content["metrics"]) == DONE["metrics"]
    assert dict(content["site"]) == DONE["site"]
    returned = unpack_arrays(weights_in(content["arrays"]))
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(returned[name], array)


def test_an_evaluate_message_is_passed_on_as_one(tmp_path: Path) -> None:
    with worker(tmp_path, lambda frame: Frame("reply", DONE)) as (path, asked):
        content = relayed(message("evaluate"), **{"worker-socket": str(path)})
    assert asked[0].kind == "evaluate"
    assert "arrays" not in content


def test_a_refusal_of_the_worker_keeps_its_words(tmp_path: Path) -> None:
    refusal = {"reason": "too few", "hint": "more", "kind": "policy"}
    with worker(tmp_path, lambda _: Frame("reply", {"site": {"name": "n"}, "refusal": refusal})) as (path, _):
        content = relayed(message("train"), **{"worker-socket": str(path)})
    assert dict(content["refusal"]) == refusal


def test_a_worker_that_is_not_there_is_a_refusal_that_says_so(tmp_path: Path) -> None:
    content = relayed(message("train"), **{"worker-socket": str(tmp_path / "w.sock"), "site-name": "north"})
    assert content["refusal"]["kind"] == "error"
    assert "not there" in content["refusal"]["reason"]
    assert dict(content["site"]) == {"name": "north"}
    assert str(tmp_path) not in str(dict(content["refusal"]))


def test_the_coordinators_run_configuration_cannot_name_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    assert "does not know" in relayed(message("train"))["refusal"]["reason"]


def test_the_environment_may_name_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker(tmp_path, lambda frame: Frame("reply", DONE)) as (path, asked):
        monkeypatch.setenv(SOCKET_VARIABLE, str(path))
        relayed(message("train"))
    assert len(asked) == 1


@pytest.mark.parametrize("array", [np.ones(2), np.ones(2, np.int64)])
def test_arrays_that_are_not_float32_go_no_further(tmp_path: Path, array: Any) -> None:
    content = relayed(message("train", {"w": array}), **{"worker-socket": str(tmp_path / "w.sock")})
    assert "not F32" in content["refusal"]["reason"]


def test_the_relay_needs_no_torch() -> None:
    program = "import sys, federation.client_app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

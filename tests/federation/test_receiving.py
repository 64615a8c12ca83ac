"""Flower's own receiving step on its own node state, with a run that stops while a message arrives."""

from __future__ import annotations

import threading
import types
from typing import Any

import flwr.supernode.start_client_internal as flower_loop
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import Status
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from federation.flower_processes.receiving import guard

RUN_ID = 7


class Arrival:
    """A node's empty state, and a coordinator with one message for it; ``stopped_at`` names a call."""

    def __init__(self, stopped_at: str, receiving: threading.Lock) -> None:
        objects = ObjectStoreFactory()
        self.store = objects.store()
        self.state = NodeStateFactory(objectstore_factory=objects).state()
        self.state.set_node_id(3)
        run = Run.create_empty(RUN_ID)
        self.state.store_run(run)
        content = RecordDict({"arrays": ArrayRecord([np.ones(3)]), "config": ConfigRecord({"round": 1})})

        self.message = Message(content, dst_node_id=3, message_type="train")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.tree = get_object_tree(self.message)
        self.contents = {key: found.deflate() for key, found in get_all_nested_objects(self.message).items()}
        self.stopped_at, self.receiving, self.held = stopped_at, receiving, set[bool]()

    def receive_it(self) -> Any:
        return flower_loop._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (self.message, self.tree),
            get_run=lambda run_id: None,
            get_fab=lambda fab_hash, run_id: None,
            pull_object=self._pull_object,
            confirm_message_received=self._confirm,
            trusted_entities=None,
        )

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        self._stop("pull_object")
        return self.contents[object_id]

    def _confirm(self, run_id: int, message_id: str) -> None:
        self._stop("confirm_message_received")

    def _stop(self, call: str) -> None:
        self.held.add(self.receiving.locked())
        if call == self.stopped_at:
            raise RunNotRunningException

    @property
    def waiting_tasks(self) -> int:
        return len(self.state.get_tasks(statuses=[Status.PENDING]))

    @property
    def waiting_messages(self) -> int:
        return len(self.state.get_messages_legacy(is_reply=False))


@pytest.fixture(autouse=True)
def _sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made in the name of the process's task."""
    for name, value in {"_task_id": 5, "_run_id": RUN_ID, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> threading.Lock:
    """Flower's step, guarded for the length of a test."""
    monkeypatch.setattr(flower_loop, "_pull_and_store_message", flower_loop._pull_and_store_message)
    lock = threading.Lock()
    assert guard(lock, flower_loop)
    return lock


CALLS = ["pull_object", "confirm_message_received"]


@pytest.mark.parametrize("call", CALLS)
def test_flower_alone_leaves_the_task_of_a_stopped_run_behind(call: str) -> None:
    """Why there is a guard; when this fails, Flower has mended it and the guard can go."""
    arrival = Arrival(call, threading.Lock())
    assert arrival.receive_it() is None
    assert (arrival.waiting_tasks, arrival.waiting_messages) == (1, 1)


@pytest.mark.parametrize("call", CALLS)
def test_a_run_stopped_while_its_message_arrives_leaves_nothing_behind(
    receiving: threading.Lock, call: str
) -> None:
    arrival = Arrival(call, receiving)
    assert arrival.receive_it() is None
    assert (arrival.waiting_tasks, arrival.waiting_messages) == (0, 0)
    assert not receiving.locked()


def test_a_message_is_received_while_the_lock_is_held(receiving: threading.Lock) -> None:
    arrival = Arrival("", receiving)
    assert arrival.receive_it() == RUN_ID
    assert (arrival.waiting_tasks, arrival.waiting_messages) == (1, 1)
    assert arrival.held == {True}
    assert not receiving.locked()


def test_an_unknown_loop_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert not guard(threading.Lock(), types.ModuleType("other"))
    assert "another way" in caplog.text

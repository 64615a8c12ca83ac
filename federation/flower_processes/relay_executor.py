"""Runs ClientApp tasks inside the node process, with the client the hospital installed itself.

Flower's way is a new Python process for each message, which unpacks the bundle the coordinator
shipped and runs *its* client code. Here a thread fetches the task through the SuperNode's
runtime interface, as Flower's executor would (same calls, same functions for messages and
objects), and calls the locally installed client. Nothing from the bundle is unpacked, imported
or run; its SHA-256 is handed to the client as ``node_config["bundle-sha256"]``, so that the
hospital's policy can judge it.

A client that raises gives the coordinator an error reply with the exception's type, never its
text (which may name paths or data), and the node goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
from collections.abc import Callable, Mapping

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from instahide.errors import InvalidInputError

from .environment import without_proxies
from .polling import NodeClock

log = logging.getLogger("relay")

ClientFunction = Callable[[Message, Context], Message]
ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
LONGEST_WAIT = 0.5  # seconds between two looks for a task when no wake-up comes


def load_client(reference: str) -> ClientFunction:
    """The client function or ClientApp behind ``module:attribute``, from the installed packages.

    Raises InvalidInputError if there is no such thing.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        client = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"there is no client {reference!r}: {error}", hint='the usual one is "federation.client_app:app"'
        ) from error
    if not callable(client):
        raise InvalidInputError(f"{reference!r} cannot be called", hint="name a ClientApp or a function")
    function: ClientFunction = client
    return function


class RelayExecutor:
    """Fetches ClientApp tasks from the SuperNode at ``address`` and answers them with ``client``.

    ``secret`` is the one the SuperNode's runtime interface was started with. ``node_settings``
    are shown to the client in ``context.node_config``. No task is taken while ``receiving`` is held.
    """

    def __init__(
        self,
        address: str,
        *,
        secret: bytes,
        client: ClientFunction,
        clock: NodeClock,
        receiving: threading.Lock,
        node_settings: Mapping[str, str | int | float | bool],
    ) -> None:
        self.address = address
        self._client = client
        self._clock = clock
        self._receiving = receiving
        self._node_settings = dict(node_settings)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._tasks = self._connect(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE_TASK})
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no further task; a task under way goes on until the process ends."""
        self._stopping.set()
        self._clock.task_waiting.set()

    def _connect(self, authentication: object) -> RuntimeHttpClient:
        with without_proxies():
            return RuntimeHttpClient.from_server_address(
                server_address=self.address,
                insecure=True,  # loopback inside one machine; tasks need the secret, calls a token
                root_certificates=None,
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), authentication],
            )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._clock.task_waiting.wait(LONGEST_WAIT)
            self._clock.task_waiting.clear()
            try:
                while not self._stopping.is_set() and (token := self._acquire()) is not None:
                    self._answer(token)
            except httpx.HTTPError as error:
                log.warning("the node's runtime interface did not answer: %s", type(error).__name__)
            except Exception:
                log.exception("a task could not be answered")

    def _acquire(self) -> str | None:
        """The token of the next waiting ClientApp task, or None."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        with self._receiving:
            answer = self._tasks.AcquireTask(request)
        return str(answer.token) if answer.HasField("task") and answer.token else None

    def _answer(self, token: str) -> None:
        runtime = self._connect(RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(_quiet_heartbeat(runtime))
        heartbeat.start()
        context: Context | None = None
        failure = ""
        try:
            message, context, _, bundle = pull_task_input(runtime)
            reply, failure = self._call(message, context, hashlib.sha256(bundle.content).hexdigest())
            push_message(runtime, reply, context)
            self._clock.reply_ready.set()
        except httpx.HTTPError as error:  # the run was stopped, or the node is going down
            failure = failure or f"the task's exchange failed: {type(error).__name__}"
            log.warning("%s", failure)
        finally:
            status = SubStatus.FAILED if failure else SubStatus.COMPLETED
            push_task_output(runtime, context, status, failure)
            heartbeat.stop()
            runtime.close()

    def _call(self, message: Message, context: Context, bundle_sha256: str) -> tuple[Message, str]:
        """The client's reply, or an error reply and what went wrong."""
        shown = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config={**context.node_config, **self._node_settings, "bundle-sha256": bundle_sha256},
            state=context.state,
            run_config=context.run_config,
            series_id=context.series_id,
        )
        try:
            return self._client(message, shown), ""
        except Exception as error:
            log.exception("the client raised")
            reason = f"the site's client raised {type(error).__name__}"
            reply = Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )
            return reply, reason


def _quiet_heartbeat(runtime: RuntimeHttpClient) -> Callable[[], bool]:
    """A heartbeat that lets a task lapse; Flower's own would interrupt the whole process."""

    def beat() -> bool:
        try:
            runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError as error:
            log.warning("a task heartbeat failed: %s", type(error).__name__)
        return True

    return beat

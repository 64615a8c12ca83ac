"""The relay: Flower's ClientApp at a hospital, which owns nothing and decides nothing.

It turns a message into a frame, hands it to the site worker over a Unix socket, and sends the
worker's answer back. No image, key, policy or torch is on this side of the socket, so the
relay may run as another operating-system user, and starts fast.

The socket comes from the node's own configuration (``worker-socket``) or from the environment
(``INSTAHIDE_WORKER_SOCKET``), never from the run configuration, which is the coordinator's.
"""

from __future__ import annotations

import os

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from instahide.errors import FederationError, InstaHideError

from .flower_records import AGGREGATION, ARRAYS, weights_in, weights_record
from .frames import BUNDLE_KEY, Frame, ask
from .packing import pack_arrays, unpack_arrays

SOCKET_KEY = "worker-socket"
SOCKET_VARIABLE = "INSTAHIDE_WORKER_SOCKET"
TIMEOUT_KEY = "worker-timeout-seconds"
SITE_KEY = "site-name"
DEFAULT_TIMEOUT_SECONDS = 12 * 3600.0
"""As long as Flower keeps a message; the coordinator's round deadline is the shorter one."""

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Pass a "train" message to the worker."""
    return relay(message, context, "train")


@app.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:
    """Pass an "evaluate" message to the worker."""
    return relay(message, context, "evaluate")


@app.query("session")  # type: ignore[untyped-decorator]
def session(message: Message, context: Context) -> Message:
    """Pass a "query.session" message (secure aggregation's set-up) to the worker."""
    return relay(message, context, "query.session")


@app.query("confirm")  # type: ignore[untyped-decorator]
def confirm(message: Message, context: Context) -> Message:
    """Pass a "query.confirm" message to the worker."""
    return relay(message, context, "query.confirm")


@app.query("unmask")  # type: ignore[untyped-decorator]
def unmask(message: Message, context: Context) -> Message:
    """Pass a "query.unmask" message to the worker."""
    return relay(message, context, "query.unmask")


def relay(message: Message, context: Context, kind: str) -> Message:
    """The worker's reply to ``message``, or a refusal that says why there is none."""
    try:
        answer = ask(
            _socket_path(context),
            _to_frame(message, context, kind),
            timeout=float(context.node_config.get(TIMEOUT_KEY, DEFAULT_TIMEOUT_SECONDS)),
        )
        content = _to_records(answer)
    except InstaHideError as error:
        content = _refusal(error, str(context.node_config.get(SITE_KEY, "unnamed")))
    return Message(content, reply_to=message)


def _socket_path(context: Context) -> str:
    path = context.node_config.get(SOCKET_KEY) or os.environ.get(SOCKET_VARIABLE)
    if not path:
        raise FederationError(
            "the relay does not know the site worker's socket",
            hint=f"set {SOCKET_KEY} in the node configuration or {SOCKET_VARIABLE} in the environment",
        )
    return str(path)


def _to_frame(message: Message, context: Context, kind: str) -> Frame:
    records = message.content
    config = dict(records.config_records.get("config", ConfigRecord()))
    arrays = unpack_arrays(weights_in(records[ARRAYS])) if ARRAYS in records else {}
    octets = weights_in(records[AGGREGATION]) if AGGREGATION in records else b""
    fields = {"config": config, BUNDLE_KEY: str(context.node_config.get(BUNDLE_KEY, ""))}
    return Frame(kind, fields, arrays, octets)


def _to_records(answer: Frame) -> RecordDict:
    content = RecordDict()
    for name, record in answer.fields.items():
        content[name] = MetricRecord(record) if name == "metrics" else ConfigRecord(record)
    if answer.arrays:
        content[ARRAYS] = weights_record(pack_arrays(answer.arrays))
    if answer.octets:
        content[AGGREGATION] = weights_record(answer.octets)
    return content


def _refusal(error: InstaHideError, site: str) -> RecordDict:
    refusal = {"reason": error.message, "hint": error.hint, "kind": "error"}
    return RecordDict({"refusal": ConfigRecord(refusal), "site": ConfigRecord({"name": site})})

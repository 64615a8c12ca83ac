"""The only thing of the coordinator that hospitals can reach: a small TLS gateway.

Flower's SuperLink serves three interfaces on one port: the fleet's (node keys required), the
control interface and the runtime's. The control interface has no authentication: whoever
reaches the port can start code at every hospital. So the SuperLink listens on loopback only and
this gateway passes, by exact path and method,

    POST /v1/fleet/<call>     the calls a registered node makes (see FLEET_CALLS)
    GET  /health

and answers everything else 403 without asking upstream. Bodies are streamed in both directions,
never held whole, and cut off at ``max_body_bytes``; every peer address has a bucket of
``requests_per_second`` (429 when empty); a peer that stalls is dropped after
``stall_seconds``. The connection upstream is verified against our own authority. Answers to calls
whose signature the SuperLink accepted name our release. The log has method, path, status, bytes
and milliseconds; no header and no content.

    python -m federation.gateway --config gateway.toml
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys
import time
import tomllib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, fields
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from instahide.errors import FederationError, InstaHideError, InvalidInputError

from .release import RELEASE, RELEASE_HEADER

log = logging.getLogger("gateway")

# What an authenticated node calls. Registering and unregistering are the coordinator's own acts.
FLEET_CALLS = frozenset(
    {
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
# RFC 9110, section 7.6.1: these concern one connection only and are not passed on.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Said about the sender by the sender, or set anew by each side.
NOT_FORWARDED = frozenset({b"host", b"forwarded", b"via", b"date", b"server", b"cookie", b"authorization"})
PEERS_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Where the gateway listens, what it shows, where it passes calls to, and its limits."""

    host: str
    port: int
    certificate: Path
    key: Path
    upstream: str  # host:port of the SuperLink
    authority: Path  # CA certificate the SuperLink's certificate is verified against
    max_body_bytes: int = 64 * 2**20  # of one call; Flower sends arrays in 5 MB pieces
    requests_per_second: float = 200.0
    stall_seconds: float = 60.0
    max_connections: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InvalidInputError(f"port is {self.port}", hint="choose one between 1 and 65535")
        for name in ("max_body_bytes", "requests_per_second", "stall_seconds", "max_connections"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} is {getattr(self, name)}", hint="it must be above zero")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From a TOML table with kebab-case keys; unknown and missing keys are refused."""
        known = {item.name.replace("_", "-"): item for item in fields(cls)}
        if unknown := sorted(set(mapping) - set(known)):
            raise InvalidInputError(f"unknown gateway setting {unknown[0]!r}", hint=f"known: {sorted(known)}")
        values = {known[key].name: value for key, value in mapping.items()}
        for name in ("certificate", "key", "authority"):
            if name in values:
                values[name] = Path(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidInputError(f"the gateway's settings are incomplete: {error}") from error

    def to_toml(self) -> str:
        """The settings as the TOML text ``load_settings`` reads."""
        values = ((key.replace("_", "-"), value) for key, value in asdict(self).items())
        return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values)


def _toml_value(value: object) -> str:
    if isinstance(value, int | float):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def load_settings(path: Path) -> GatewaySettings:
    """Read a gateway's TOML file. Raises InvalidInputError if it is missing or wrong."""
    try:
        return GatewaySettings.from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {path}", hint="give --config FILE") from error
    except ValueError as error:  # TOML's error, and bytes that are no text
        raise InvalidInputError(f"{path} is not TOML: {error}", hint="see `to_toml`") from error


class RateLimiter:
    """A token bucket per peer: ``rate`` a second, bursts up to two seconds' worth.

    Memory is bounded: only the ``PEERS_REMEMBERED`` most recent peers have a bucket.
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = max(1.0, 2 * rate)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, peer: str) -> bool:
        """Take one token of ``peer``; False if its bucket is empty."""
        now = self._clock()
        tokens, seen = self._buckets.pop(peer, (self.burst, now))
        tokens = min(self.burst, tokens + (now - seen) * self.rate)
        allowed = tokens >= 1
        self._buckets[peer] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > PEERS_REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed


class BodyTooLargeError(Exception):
    """The peer sent more than ``max_body_bytes``."""


class StalledError(Exception):
    """The peer sent nothing for ``stall_seconds``."""


def is_passed(method: str, raw_path: bytes) -> bool:
    """Whether a call goes upstream: compared byte by byte, so no escape or ``..`` can help."""
    if method == "GET":
        return raw_path == b"/health"
    prefix = b"/v1/fleet/"
    call = raw_path.removeprefix(prefix)
    return method == "POST" and raw_path.startswith(prefix) and call.decode("latin-1") in FLEET_CALLS


def forwarded_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The end-to-end headers of a message: without hop-by-hop ones and those ``Connection`` names."""
    named = {
        part.strip().lower()
        for key, value in headers
        if key.lower() == b"connection"
        for part in value.split(b",")
    }
    dropped = HOP_BY_HOP | NOT_FORWARDED | named
    return [
        (key, value)
        for key, value in headers
        if key.lower() not in dropped and not key.lower().startswith(b"x-forwarded-")
    ]


class Gateway:
    """The request handler; ``application`` wraps it in an ASGI application."""

    def __init__(self, settings: GatewaySettings, upstream: httpx.AsyncClient) -> None:
        self.settings = settings
        self._upstream = upstream
        self._limiter = RateLimiter(settings.requests_per_second)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; every outcome is logged with the bytes it moved."""
        started = time.monotonic()
        counts = {"in": 0, "out": 0}

        def write_log(status: int) -> None:
            log.info(
                "%s %s %d in=%d out=%d %.0fms",
                request.method,
                _printable(request.scope["raw_path"]),
                status,
                counts["in"],
                counts["out"],
                1000 * (time.monotonic() - started),
            )

        try:
            response = await self._answer(request, counts, write_log)
        except BodyTooLargeError:
            response = _refusal(413, "the body is larger than this gateway passes on")
        except StalledError:
            response = _refusal(408, "nothing arrived for too long")
        except ClientDisconnect:
            response = _refusal(400, "the peer went away")
        except httpx.TimeoutException:
            response = _refusal(504, "the coordinator did not answer in time")
        except httpx.HTTPError:
            response = _refusal(502, "the coordinator is not reachable")
        if not isinstance(response, StreamingResponse):
            write_log(response.status_code)
        return response

    async def _answer(
        self, request: Request, counts: dict[str, int], write_log: Callable[[int], None]
    ) -> Response:
        peer = request.client.host if request.client else ""
        if not self._limiter.allows(peer):
            return _refusal(429, "too many requests")
        raw_path: bytes = request.scope["raw_path"]
        if not is_passed(request.method, raw_path) or request.scope["query_string"]:
            return _refusal(403, "this gateway passes only what hospitals need")
        if _declared_length(request) > self.settings.max_body_bytes:
            raise BodyTooLargeError
        outgoing = self._upstream.build_request(
            request.method,
            raw_path.decode("ascii"),
            headers=forwarded_headers(request.headers.raw),
            content=self._body(request, counts) if request.method == "POST" else None,
        )
        answer = await self._upstream.send(outgoing, stream=True)

        async def finish() -> None:
            await answer.aclose()
            write_log(answer.status_code)

        response = StreamingResponse(
            _counted(answer.aiter_raw(), counts),
            status_code=answer.status_code,
            background=BackgroundTask(finish),
        )
        response.raw_headers = forwarded_headers(answer.headers.raw)
        if request.method == "POST" and answer.status_code != HTTPStatus.UNAUTHORIZED:
            response.headers[RELEASE_HEADER] = RELEASE  # for nodes: `instahide node doctor` compares
        return response

    async def _body(self, request: Request, counts: dict[str, int]) -> AsyncIterator[bytes]:
        """The request's body piece by piece, counted, and cut off at the limits."""
        pieces = request.stream().__aiter__()
        while True:
            try:
                piece = await asyncio.wait_for(anext(pieces), self.settings.stall_seconds)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise StalledError from None
            counts["in"] += len(piece)
            if counts["in"] > self.settings.max_body_bytes:
                raise BodyTooLargeError
            if piece:
                yield piece


async def _counted(pieces: AsyncIterator[bytes], counts: dict[str, int]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        counts["out"] += len(piece)
        yield piece


def _declared_length(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", status_code=status)


def _printable(raw_path: bytes) -> str:
    """A path fit for a log line: no control characters, not endless."""
    return raw_path[:200].decode("ascii", errors="backslashreplace").translate(dict.fromkeys(range(32), "?"))


def application(settings: GatewaySettings, *, transport: httpx.AsyncBaseTransport | None = None) -> Starlette:
    """The gateway as an ASGI application; ``transport`` replaces the network in tests."""
    if transport is None:
        context = ssl.create_default_context(cafile=str(settings.authority))
        limits = httpx.Limits(max_connections=settings.max_connections, max_keepalive_connections=64)
        transport = httpx.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False)
    client = httpx.AsyncClient(
        transport=transport,
        base_url=f"https://{settings.upstream}",
        timeout=httpx.Timeout(settings.stall_seconds, connect=5.0),
        trust_env=False,
    )
    gateway = Gateway(settings, client)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        response = await gateway(Request(scope, receive))
        await response(scope, receive, send)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    life: Callable[[Starlette], AbstractAsyncContextManager[None]] = lifespan
    app = Starlette(lifespan=life)
    app.router.default = endpoint  # no routes: every path, well-formed or not, is judged in one place
    app.router.redirect_slashes = False
    return app


def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises FederationError if the port or certificate is unusable."""
    config = uvicorn.Config(
        application(settings),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        log_level="warning",
        log_config=None,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=75,  # longer than a node's heartbeat interval, so connections are reused
        timeout_graceful_shutdown=3,
    )
    try:
        uvicorn.Server(config).run()
    except (OSError, SystemExit) as error:
        raise FederationError(
            f"the gateway cannot serve {settings.host}:{settings.port}: {error}",
            hint="see the line above; is another program on that port?",
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Command line of the gateway process; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m federation.gateway", description="The TLS gateway.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file with the gateway's settings")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        serve(load_settings(options.config))
    except InstaHideError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

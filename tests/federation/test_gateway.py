"""The gateway: what passes, what does not, and how much of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.gateway import (
    FLEET_CALLS,
    GatewaySettings,
    RateLimiter,
    application,
    forwarded_headers,
    is_passed,
    load_settings,
)
from federation.release import RELEASE_HEADER
from instahide import __version__
from instahide.errors import InvalidInputError

FLEET = "/v1/fleet/push-object"
Answer = Callable[[httpx.Request], httpx.Response]


def settings(**changes: object) -> GatewaySettings:
    values = {
        "host": "127.0.0.1",
        "port": 8443,
        "certificate": Path("gateway.crt"),
        "key": Path("gateway.key"),
        "upstream": "127.0.0.1:8000",
        "authority": Path("authority.crt"),
    }
    return GatewaySettings(**(values | changes))  # type: ignore[arg-type]


class Pieces(httpx.AsyncByteStream):
    """A response body that comes off a network."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Recorder(httpx.AsyncBaseTransport):
    """An upstream that reads the body piece by piece, answers 200, and remembers what came."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self.pieces: list[bytes] = []
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for piece in request.stream:
            self.pieces.append(piece)
        if self._answer is not None:
            return self._answer(request)
        return httpx.Response(
            200, stream=Pieces(b"ans", b"wer"), headers={"content-type": "application/x-protobuf"}
        )


def call(
    upstream: Recorder,
    method: str = "POST",
    path: str = FLEET,
    gateway: GatewaySettings | None = None,
    **more: object,
) -> httpx.Response:
    """One request through a gateway whose network is ``upstream``."""

    async def go() -> httpx.Response:
        app = application(gateway or settings(), transport=upstream)
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 5000))
        async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
            return await client.request(method, path, **more)  # type: ignore[arg-type]

    return asyncio.run(go())


@pytest.mark.parametrize("name", sorted(FLEET_CALLS))
def test_the_calls_of_a_node_pass_with_their_body(name: str) -> None:
    upstream = Recorder()
    answer = call(upstream, path=f"/v1/fleet/{name}", content=b"body")
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert b"".join(upstream.pieces) == b"body"
    assert upstream.requests[0].url == f"https://127.0.0.1:8000/v1/fleet/{name}"


def test_the_health_check_passes() -> None:
    assert call(Recorder(), "GET", "/health").status_code == 200


@pytest.mark.parametrize(("status", "told"), [(200, True), (400, True), (412, True), (401, False)])
def test_the_release_is_told_to_those_whose_signature_was_accepted(status: int, told: bool) -> None:
    forged = {RELEASE_HEADER: "9.9.9"} if told else {}
    answer = call(Recorder(lambda _: httpx.Response(status, headers=forged, stream=Pieces(b"{}"))))
    assert answer.status_code == status
    assert answer.headers.get_list(RELEASE_HEADER) == ([__version__] if told else [])


def test_the_release_is_not_told_to_strangers() -> None:
    for method, path in (("GET", "/health"), ("POST", "/v1/control/start-run"), ("GET", "/")):
        assert RELEASE_HEADER not in call(Recorder(), method, path).headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/list-nodes"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1//fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/v1/fleet/pull%2dmessages"),
        ("POST", "/v1/fleet/pull-messages?x=1"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/fleet/"),
        ("GET", "/v1/fleet/pull-messages"),
        ("PUT", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/health/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("OPTIONS", "/v1/control/start-run"),
        ("DELETE", "/v1/control/start-run"),
    ],
)
def test_everything_else_is_403_and_never_reaches_upstream(method: str, path: str) -> None:
    upstream = Recorder()
    assert call(upstream, method, path).status_code == 403
    assert upstream.requests == []


@given(st.binary(max_size=60), st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]))
def test_only_the_listed_paths_pass_whatever_the_bytes(tail: bytes, method: str) -> None:
    allowed = {b"/v1/fleet/" + name.encode() for name in FLEET_CALLS} | {b"/health"}
    for path in (tail, b"/v1/fleet/" + tail, b"/health" + tail):
        assert not is_passed(method, path) or path in allowed


def test_headers_of_one_connection_and_claims_about_the_sender_are_not_passed_on() -> None:
    kept = [(b"flwr-public-key", b"k"), (b"content-type", b"t"), (b"content-length", b"4")]
    dropped = [
        (b"connection", b"close, X-Secret"),
        (b"x-secret", b"named by connection"),
        (b"transfer-encoding", b"chunked"),
        (b"Host", b"evil"),
        (b"Cookie", b"c"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"upgrade", b"websocket"),
    ]
    assert forwarded_headers(kept + dropped) == kept


def test_the_authentication_headers_of_a_node_arrive_and_the_host_is_ours() -> None:
    upstream = Recorder()
    call(upstream, headers={"flwr-signature": "s", "host": "evil.example", "cookie": "c=1"}, content=b"x")
    headers = upstream.requests[0].headers
    assert headers["flwr-signature"] == "s"
    assert headers["host"] == "127.0.0.1:8000"
    assert "cookie" not in headers


@pytest.mark.parametrize("declared", [True, False], ids=["length declared", "length unknown"])
def test_a_body_over_the_limit_is_refused(declared: bool) -> None:
    upstream = Recorder()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    body: object = b"x" * 1100 if declared else pieces()
    answer = call(upstream, gateway=settings(max_body_bytes=1000), content=body)
    assert answer.status_code == 413
    assert len(b"".join(upstream.pieces)) <= 1000


def test_a_body_at_the_limit_passes_and_is_not_collected_first() -> None:
    """Upstream has each piece before the next one is sent: nothing waits for the whole body."""
    upstream = Recorder()
    seen_before_sending: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            seen_before_sending.append(len(upstream.pieces))
            yield b"x" * 100

    answer = call(upstream, gateway=settings(max_body_bytes=400), content=pieces())
    assert answer.status_code == 200
    assert upstream.pieces == [b"x" * 100] * 4
    assert seen_before_sending[-1] >= 2  # with the whole body collected first it would be 0


def test_a_peer_that_stalls_is_dropped() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    answer = call(Recorder(), gateway=settings(stall_seconds=0.05), content=pieces())
    assert answer.status_code == 408


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (httpx.ConnectError("down"), 502),
        (httpx.ReadTimeout("slow"), 504),
        (httpx.RemoteProtocolError("odd"), 502),
    ],
)
def test_an_upstream_that_fails_is_a_gateway_error_and_not_a_traceback(
    failure: Exception, status: int
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    answer = call(Recorder(fail))
    assert answer.status_code == status
    assert str(failure) not in answer.text


def test_upstream_refusals_come_through_unchanged() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(401, stream=Pieces(b'{"code": 2004}'), headers={"connection": "close"})

    answer = call(Recorder(refuse))
    assert (answer.status_code, answer.json()) == (401, {"code": 2004})
    assert "connection" not in answer.headers


def test_a_peer_over_its_rate_gets_429_and_others_do_not() -> None:
    now = [0.0]
    limiter = RateLimiter(5.0, clock=lambda: now[0])  # a bucket of two seconds' worth: ten calls
    assert [limiter.allows("a") for _ in range(11)] == [True] * 10 + [False]
    assert limiter.allows("b")
    now[0] += 0.2  # one fifth of a second at five a second: one call
    assert [limiter.allows("a"), limiter.allows("a")] == [True, False]


def test_the_rate_limiter_remembers_a_bounded_number_of_peers() -> None:
    limiter = RateLimiter(5.0)
    for peer in range(20_000):
        limiter.allows(str(peer))
    assert len(limiter._buckets) == 10_000


def test_the_log_holds_method_path_status_and_bytes_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gateway"):
        call(Recorder(), content=b"secret body", headers={"flwr-signature": "secret-header"})
        call(Recorder(), path="/v1/control/a%0ab")
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    assert lines[0].startswith(f"POST {FLEET} 200 in=11 out=6 ")
    assert lines[1].startswith("POST /v1/control/a%0ab 403 in=0 out=0 ")
    assert "secret" not in caplog.text


def test_settings_survive_their_toml_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(settings(max_body_bytes=5).to_toml())
    assert load_settings(path) == settings(max_body_bytes=5)
    for text in ('hots = "x"', "port = 1", "not toml", settings().to_toml().replace("8443", "0")):
        path.write_text(text)
        with pytest.raises(InvalidInputError):
            load_settings(path)
    with pytest.raises(InvalidInputError, match="there is no file"):
        load_settings(tmp_path / "absent.toml")

"""The way to the coordinator, with real sockets and real TLS on loopback."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.doctor import network
from federation.doctor.checks import Outcome, State
from federation.doctor.network import (
    Address,
    check_answer,
    check_chain,
    check_clock,
    check_expiry,
    check_host_name,
    check_name,
    check_port,
    judge_clock,
    parse_address,
)
from federation.provisioning import CertificateFiles, create_authority, issue_server_certificate
from federation.supervision import free_port
from instahide.errors import InvalidInputError

from .gateways import HOST, Behaviour, gateway

OK, WARNING, FAILED, SKIPPED = State.ok, State.warning, State.failed, State.skipped
LATER_STEPS = (check_chain, check_host_name, check_expiry, check_clock, check_answer)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return create_authority(tmp_path_factory.mktemp("authority"))


def issued(authority: CertificateFiles, folder: Path, **changes: Any) -> CertificateFiles:
    return issue_server_certificate(authority, folder, **({"names": [HOST, "localhost"]} | changes))


@pytest.fixture
def good(authority: CertificateFiles, tmp_path: Path) -> Iterator[Address]:
    with gateway(issued(authority, tmp_path), authority.certificate) as address:
        yield address


def states(address: Address, steps: tuple[Callable[[Address], Outcome], ...] = LATER_STEPS) -> list[State]:
    return [step(address).state for step in steps]


def test_a_coordinator_in_order_passes_every_step(good: Address) -> None:
    assert states(good, (check_name, check_port, *LATER_STEPS)) == [OK] * 7


def test_a_name_is_looked_up_and_an_address_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in check_name(Address("localhost", 1, tmp_path)).seen
    asked: list[str] = []

    def unknown(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert check_name(Address("10.0.0.5", 1, tmp_path)).state is OK
    assert asked == []
    outcome = check_name(Address("fl.example.org", 1, tmp_path))
    assert outcome.state is FAILED
    assert "DNS" in outcome.fix


def test_where_the_name_is_unknown_the_later_steps_say_so(
    authority: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    address = Address("fl.example.org", 9443, authority.certificate)
    for step in (check_port, *LATER_STEPS):
        outcome = step(address)
        assert (outcome.state, outcome.fix) == (SKIPPED, "see the name above")


def test_a_closed_port_fails_once_and_the_later_steps_are_skipped(authority: CertificateFiles) -> None:
    address = Address(HOST, free_port(), authority.certificate)
    outcome = check_port(address)
    assert outcome.state is FAILED
    assert "refuses" in outcome.seen
    assert states(address) == [SKIPPED] * 5


def test_a_port_that_is_dropped_is_the_firewalls(
    authority: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silence)
    outcome = check_port(Address(HOST, 9443, authority.certificate))
    assert outcome.state is FAILED
    assert "firewall" in outcome.fix


def test_a_peer_that_takes_the_connection_and_says_nothing_is_given_up(
    authority: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    with socket.create_server((HOST, 0)) as silent:
        address = Address(HOST, silent.getsockname()[1], authority.certificate)
        assert check_port(address).state is OK
        assert states(address) == [FAILED] * 5


def test_a_connection_that_is_cut_after_it_was_taken_fails(authority: CertificateFiles) -> None:
    with socket.create_server((HOST, 0)) as server:

        def cut() -> None:
            peer, _ = server.accept()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()  # with a reset, as a firewall does

        cutter = threading.Thread(target=cut)
        cutter.start()
        outcome = check_chain(Address(HOST, server.getsockname()[1], authority.certificate))
        cutter.join()
    assert outcome.state is FAILED


def test_a_program_that_speaks_no_tls_is_not_a_gateway(authority: CertificateFiles) -> None:
    with socket.create_server((HOST, 0)) as server:

        def speak() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"220 mail.example.org ready for mail, and nothing else at all\r\n")
                peer.recv(4096)

        speaker = threading.Thread(target=speak)
        speaker.start()
        outcome = check_chain(Address(HOST, server.getsockname()[1], authority.certificate))
        speaker.join()
    assert outcome.state is FAILED
    assert "gateway's port" in outcome.fix


def test_a_certificate_of_another_authority_is_not_trusted(
    authority: CertificateFiles, tmp_path: Path
) -> None:
    other = create_authority(tmp_path / "other")
    with gateway(issued(other, tmp_path), authority.certificate) as address:
        outcome = check_chain(address)
        assert outcome.state is FAILED
        assert "not signed by this federation's authority" in outcome.seen
        assert states(address) == [FAILED, SKIPPED, OK, OK, SKIPPED]


def test_a_certificate_for_another_name_says_which_it_is_for(
    authority: CertificateFiles, tmp_path: Path
) -> None:
    files = issued(authority, tmp_path, names=["fl.example.org", "10.0.0.5"])
    with gateway(files, authority.certificate) as address:
        for host in (HOST, "localhost"):  # an address that does not match, and a name
            outcome = check_host_name(Address(host, address.port, authority.certificate))
            assert outcome.state is FAILED
            assert outcome.seen == f"the certificate is for fl.example.org, 10.0.0.5, not for {host}"
        assert states(address) == [OK, FAILED, OK, OK, SKIPPED]
        named = Address(HOST, address.port, authority.certificate, "fl.example.org")
        assert states(named) == [OK] * 5


@pytest.mark.parametrize(
    ("starting", "days", "chain", "expiry", "words"),
    [
        (-40.0, 10, FAILED, FAILED, "has expired"),
        (+2.0, 10, FAILED, FAILED, "not valid yet"),
        (-40.0, 60, OK, WARNING, "signed by"),
        (-40.0, 80, OK, OK, "signed by"),
    ],
    ids=["expired", "not yet", "20 days left", "40 days left"],
)
def test_a_certificates_time(
    authority: CertificateFiles,
    tmp_path: Path,
    starting: float,
    days: float,
    chain: State,
    expiry: State,
    words: str,
) -> None:
    start = datetime.now(UTC) + timedelta(days=starting)
    with gateway(issued(authority, tmp_path, starting=start, days=days), authority.certificate) as address:
        outcome = check_chain(address)
        assert (outcome.state, check_expiry(address).state) == (chain, expiry)
        assert words in outcome.seen
        assert check_clock(address).state is OK  # measured although the certificate is not trusted


@pytest.mark.parametrize(
    ("coordinator_ahead", "state"),
    [(0.0, OK), (-60.0, FAILED), (200.0, WARNING), (600.0, FAILED)],
    ids=["agree", "this one a minute ahead", "200 s behind", "ten minutes behind"],
)
def test_a_clock_is_measured_by_the_date_of_the_answer(
    authority: CertificateFiles, tmp_path: Path, coordinator_ahead: float, state: State
) -> None:
    behaviour = Behaviour(clock_ahead=coordinator_ahead)
    with gateway(issued(authority, tmp_path), authority.certificate, behaviour) as address:
        outcome = check_clock(address)
    assert outcome.state is state, outcome
    if coordinator_ahead:
        assert ("ahead of" if coordinator_ahead < 0 else "behind") in outcome.seen


def test_a_date_that_cannot_be_read_is_not_taken_for_a_clock(
    authority: CertificateFiles, tmp_path: Path
) -> None:
    with gateway(issued(authority, tmp_path), authority.certificate, Behaviour(date="noon")) as address:
        assert check_clock(address).state is SKIPPED


@given(st.floats(-2000, 2000), st.floats(1.0, 4.0))
def test_a_clock_fails_only_where_flower_would_refuse_it_for_certain(
    ahead: float, uncertainty: float
) -> None:
    state = judge_clock(ahead, uncertainty).state
    # Flower takes a stamp of age a if -5 < a < 305; the age is minus what this clock is ahead.
    surely_refused = all(not -5 < -(ahead + side * uncertainty) < 305 for side in (-1, 1))
    surely_taken = all(-5 < -(ahead + side * uncertainty) < 305 for side in (-1, 1))
    assert (state is FAILED) == surely_refused
    if state is OK:
        assert surely_taken


@pytest.mark.parametrize(
    ("health", "state", "words"),
    [
        (200, OK, "are up"),
        (502, FAILED, "SuperLink behind it"),
        (504, FAILED, "SuperLink"),
        (404, FAILED, "404"),
    ],
)
def test_the_answer_tells_the_gateway_from_what_is_behind_it(
    authority: CertificateFiles, tmp_path: Path, health: int, state: State, words: str
) -> None:
    with gateway(issued(authority, tmp_path), authority.certificate, Behaviour(health=health)) as address:
        outcome = check_answer(address)
    assert outcome.state is state
    assert words in outcome.seen


def test_an_address_has_a_host_and_a_port(tmp_path: Path) -> None:
    assert parse_address("fl.example.org:9443", tmp_path) == Address("fl.example.org", 9443, tmp_path)
    ipv6 = parse_address("[::1]:9443", tmp_path)
    assert (ipv6.host, str(ipv6)) == ("::1", "[::1]:9443")
    for text in ("fl.example.org", "fl.example.org:", ":9443", "host:0", "host:65536", "host:٣"):
        with pytest.raises(InvalidInputError, match="not host:port"):
            parse_address(text, tmp_path)

"""The way from a node to its coordinator, step by step: name, port, TLS chain, TLS name, clock, answer.

Every check makes a connection of its own and needs no other check; where an earlier step is what
fails, the later ones are skipped and say so. Nothing but ``GET /health`` is sent.

The clocks. Flower accepts a node's signed time stamp if, by the coordinator's clock, it is less
than 305 s old and less than 5 s ahead. The gateway stamps its answers with its own clock (the
``Date`` header, whole seconds): for a request sent at t0 and answered at t1 by our clock, stamped d,

    ahead = (t0 + t1) / 2 - (d + 1/2),      known to within (t1 - t0) / 2 + 1 second

(half a second of rounding, and half of slack for a server that renews the header once a second).
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from instahide.errors import InvalidInputError

from .checks import Outcome, failed, ok, skipped, warning
from .files import names_of, trust_context, validity

CONNECT_SECONDS = 2.5
MOST_AHEAD, MOST_BEHIND = 5.0, 305.0  # Flower's limits
WARN_BEHIND = 60.0
_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH = 62, 64  # X509_V_ERR_* of OpenSSL
_NOT_YET_VALID, _EXPIRED = 9, 10
SET_CLOCK = "let a time service set this machine's clock (`timedatectl set-ntp true`, or chrony)"
RENEW_THERE = "ask the coordinator to renew the gateway's certificate (the authority and the join file stay)"


class NotReachedError(OSError):
    """No TCP connection was made; what fails after that is another matter."""


@dataclass(frozen=True)
class Address:
    """Host and port of a gateway, and the certificate of the authority it is to be signed by.

    ``name`` is what its certificate must be for where that is not the host (the gateway looked at
    from its own machine).
    """

    host: str
    port: int
    authority: Path
    name: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, authority: Path) -> Address:
    """An address as the join file has it, ``host:port``. Raises InvalidInputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise InvalidInputError(
            f"coordinator is {text!r:.100}, not host:port",
            hint="`instahide node join` once more",
        )
    return Address(host.removeprefix("[").removesuffix("]"), int(port), authority)


def check_name(address: Address) -> Outcome:
    """Whether the coordinator's name is known here."""
    try:
        ipaddress.ip_address(address.host)
        return ok(f"{address.host} is an address; there is no name to look up")
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return failed(
            f"{address.host} is not known here ({_words(error)})",
            fix="ask IT for a DNS entry, or put name and address into /etc/hosts; is node.toml right?",
        )
    return ok(f"{address.host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}")


def check_port(address: Address) -> Outcome:
    """Whether a TCP connection can be made. Proxy variables play no part, as for the node itself."""
    started = time.monotonic()
    try:
        with socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS):
            return ok(f"{address} answers in {1000 * (time.monotonic() - started):.0f} ms")
    except (socket.gaierror, UnicodeError):
        return _no_name(address)
    except ConnectionRefusedError:
        return failed(
            f"{address} refuses the connection",
            fix="the machine is reached and nothing listens: is the coordinator started? is the port right?",
        )
    except TimeoutError:
        return failed(
            f"{address} does not answer within {CONNECT_SECONDS:g} s",
            fix=f"have the firewall allow TCP from here to {address} (outgoing; no proxy is used)",
        )
    except OSError as error:
        return failed(f"{address}: {_words(error)}", fix="check this machine's network and routes")


def check_chain(address: Address) -> Outcome:
    """Whether the certificate shown is signed by the federation's authority and valid now."""

    def judge(error: ssl.SSLCertVerificationError) -> Outcome:
        if error.verify_code == _EXPIRED:
            return failed(
                "the certificate shown has expired, by this machine's clock",
                fix=f"compare the clocks; if this one is right, {RENEW_THERE}",
            )
        if error.verify_code == _NOT_YET_VALID:
            return failed("the certificate shown is not valid yet, by this machine's clock", fix=SET_CLOCK)
        return failed(
            f"the certificate shown is not signed by this federation's authority ({error.verify_message})",
            fix="a firewall that opens TLS must leave this address out; else the coordinator has a new "
            "authority: ask for its latest join file, and join again",
        )

    return _with_tls(
        address, lambda _: ok("signed by the federation's authority"), judge, check_hostname=False
    )


def check_host_name(address: Address) -> Outcome:
    """Whether the certificate shown is for the name the node uses."""

    def judge(error: ssl.SSLCertVerificationError) -> Outcome:
        if error.verify_code in (_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH):
            shown = _shown_names(address)
            return failed(
                f"the certificate is for {shown}, not for {address.host}",
                fix="use one of those names as `coordinator` in node.toml, or ask the coordinator for a "
                "certificate with this one",
            )
        return skipped(
            "the certificate is not trusted, so its names say nothing", fix="see the TLS chain above"
        )

    return _with_tls(
        address, lambda _: ok(f"the certificate is for {address.host}"), judge, check_hostname=True
    )


def check_expiry(address: Address) -> Outcome:
    """How long the certificate shown is valid yet, whether it is trusted or not."""

    def look(connection: http.client.HTTPSConnection) -> Outcome:
        return validity(_certificate(connection), renew=RENEW_THERE)

    return _untrusted(address, look)


def check_clock(address: Address) -> Outcome:
    """How far this machine's clock is from the coordinator's, by the stamp on an answer."""

    def look(connection: http.client.HTTPSConnection) -> Outcome:
        sent = time.time()
        connection.request("GET", "/health")
        stamp = connection.getresponse().getheader("Date")
        received = time.time()
        if stamp is None:
            return skipped(
                "the answer has no Date", fix="compare the two clocks by hand: `date -u` on both machines"
            )
        try:
            stamped = parsedate_to_datetime(stamp).timestamp()
        except ValueError:
            return skipped("the answer's Date cannot be read", fix="compare the clocks by hand: `date -u`")
        return judge_clock((sent + received) / 2 - (stamped + 0.5), (received - sent) / 2 + 1.0)

    return _untrusted(address, look)


def judge_clock(ahead: float, uncertainty: float) -> Outcome:
    """An outcome for a clock that is ``ahead`` seconds (negative: behind) of the coordinator's."""
    word = "ahead of" if ahead > 0 else "behind"
    seen = (
        f"{abs(ahead):.1f} s {word} the coordinator's clock "
        f"(± {uncertainty:.1f} s, by the Date of its answer)"
    )
    limits = f"Flower accepts less than {MOST_AHEAD:g} s ahead and {MOST_BEHIND:g} s behind"
    if ahead - uncertainty >= MOST_AHEAD or ahead + uncertainty <= -MOST_BEHIND:
        return failed(f"{seen}; {limits}", fix=f"{SET_CLOCK}; have the coordinator check theirs")
    if ahead + uncertainty >= MOST_AHEAD or ahead < -WARN_BEHIND:
        return warning(f"{seen}; {limits}", fix=SET_CLOCK)
    return ok(seen)


def check_answer(address: Address) -> Outcome:
    """Whether the gateway answers, and whether the SuperLink behind it does."""

    def look(connection: http.client.HTTPSConnection) -> Outcome:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        if answer.status == http.HTTPStatus.OK:
            return ok("the gateway and the SuperLink behind it are up")
        if answer.status in (http.HTTPStatus.BAD_GATEWAY, http.HTTPStatus.GATEWAY_TIMEOUT):
            return failed(
                f"the gateway is up, the SuperLink behind it is not (HTTP {answer.status})",
                fix="ask the coordinator to restart: `instahide coordinator start STUDY`",
            )
        return failed(
            f"HTTP {answer.status} where 200 was expected",
            fix="is this the gateway's port, or another program's? ask the coordinator",
        )

    return _with_tls(
        address,
        look,
        lambda _: skipped("the connection is not trusted", fix="see the TLS checks above"),
        check_hostname=True,
    )


def trusted_connection(address: Address) -> http.client.HTTPSConnection:
    """A connection verified as the node verifies its own. Raises OSError (with ssl's errors)."""
    return _connect(address, trust_context(address.authority))


def unreachable(address: Address, error: Exception) -> Outcome:
    """The outcome of a later step where an earlier one failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return skipped("the connection is not trusted", fix="see the TLS checks above")
    if isinstance(error, socket.gaierror | UnicodeError):
        return _no_name(address)
    if isinstance(error, NotReachedError):
        return skipped(f"{address} cannot be reached ({_words(error)})", fix="see the port above")
    return failed(  # the port answers: what does not is TLS or HTTP
        f"{address} does not speak TLS and HTTP as a gateway does ({_words(error)})",
        fix="is this the gateway's port, and is the gateway well? a firewall or proxy that opens or cuts TLS "
        "must leave this address out",
    )


def _with_tls(
    address: Address,
    look: Callable[[http.client.HTTPSConnection], Outcome],
    distrusted: Callable[[ssl.SSLCertVerificationError], Outcome],
    *,
    check_hostname: bool,
) -> Outcome:
    context = trust_context(address.authority)
    context.check_hostname = check_hostname
    try:
        connection = _connect(address, context)
        try:
            return look(connection)
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        return distrusted(error)
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return unreachable(address, error)


def _untrusted(address: Address, look: Callable[[http.client.HTTPSConnection], Outcome]) -> Outcome:
    """Look without verifying: a wrong clock makes good certificates look bad. Nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        connection = _connect(address, context)
        try:
            return look(connection)
        finally:
            connection.close()
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return unreachable(address, error)


def _connect(address: Address, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=CONNECT_SECONDS, context=context
    )
    try:
        plain = socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS)
    except (socket.gaierror, ConnectionResetError):  # a reset, unlike a refusal, follows on a connection
        raise
    except OSError as error:
        raise NotReachedError(_words(error)) from error
    try:
        connection.sock = context.wrap_socket(plain, server_hostname=address.name or address.host)
    except BaseException:
        plain.close()
        raise
    return connection


def _certificate(connection: http.client.HTTPSConnection) -> x509.Certificate:
    shown = connection.sock.getpeercert(binary_form=True)
    assert shown is not None  # a TLS server always shows one
    return x509.load_der_x509_certificate(shown)


def _shown_names(address: Address) -> str:
    shown: list[str] = []

    def look(connection: http.client.HTTPSConnection) -> Outcome:
        shown.extend(names_of(_certificate(connection)))
        return ok("seen")

    _untrusted(address, look)
    return ", ".join(shown) or "no name"


def _no_name(address: Address) -> Outcome:
    return skipped(f"{address.host} is not known here", fix="see the name above")


def _words(error: Exception) -> str:
    return str(
        getattr(error, "strerror", None) or getattr(error, "reason", None) or error or type(error).__name__
    )

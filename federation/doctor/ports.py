"""The coordinator's own port and processes: free to be used, used by ours, or taken by others."""

from __future__ import annotations

import socket
import ssl

import psutil

from instahide.errors import FederationError, InvalidInputError

from ..flower_processes.superlink import CoordinatorFolder, find_superlink
from .checks import Outcome, failed, ok, skipped
from .files import read_certificate
from .network import Address, check_answer

PROBE_SECONDS = 2.5
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104


def check_superlink(folder: CoordinatorFolder) -> Outcome:
    """Whether this folder's SuperLink is up. Raises RefusedError where something else answers for it."""
    try:
        return ok(f"up at {find_superlink(folder)}")
    except (InvalidInputError, FederationError) as error:  # never started, or ended
        return skipped(error.message.removesuffix("."), fix=error.hint or "instahide coordinator start STUDY")


def check_port(folder: CoordinatorFolder, listen: str, port: int) -> Outcome:
    """Whether the gateway's port is free, or held by our own gateway (by the certificate it shows)."""
    host = _EVERYWHERE.get(listen, listen)
    shown = _shown_certificate(host, port)
    if shown is not None:
        from cryptography.hazmat.primitives.serialization import Encoding

        if shown == read_certificate(folder.gateway.certificate).public_bytes(Encoding.DER):
            return ok(f"port {port} is in use by our gateway")
        return failed(
            f"port {port} is in use by a program with another certificate{_holder(port)}",
            fix="stop that program (or restart the coordinator, if its certificate was renewed)",
        )
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            listen or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except PermissionError:
        return failed(
            f"this user may not listen on port {port}", fix="use a port from 1024 on: `port` in study.toml"
        )
    except OSError as error:
        return failed(
            f"port {port} of {listen} cannot be used: {error.strerror}{_holder(port)}",
            fix="stop the program that has it, or change `port` in study.toml (hospitals join anew)",
        )
    return ok(f"port {port} of {listen} is free")


def check_gateway(folder: CoordinatorFolder, listen: str, port: int, name: str) -> Outcome:
    """Whether the gateway answers on this machine, under the name that hospitals use."""
    host = _EVERYWHERE.get(listen, listen)
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return skipped("no gateway is up here", fix="instahide coordinator start STUDY")
    return check_answer(Address(host, port, folder.gateway_authority, name))


def _shown_certificate(host: str, port: int) -> bytes | None:
    """What a TLS server on this port shows; None if nothing there speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is compared with our own file, not trusted
    try:
        with (
            socket.create_connection((host, port), timeout=PROBE_SECONDS) as plain,
            context.wrap_socket(plain) as connection,
        ):
            return connection.getpeercert(binary_form=True)
    except OSError:
        return None


def _holder(port: int) -> str:
    """Which program holds a port, where this user may know."""
    try:
        for entry in psutil.net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port and entry.pid:
                return f" ({psutil.Process(entry.pid).name()}, process {entry.pid})"
    except (psutil.Error, OSError):
        pass
    return ""

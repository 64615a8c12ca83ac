"""A gateway as far as the doctor looks at one: TLS on loopback, /health with a date, one fleet call."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from federation.doctor.network import Address
from federation.provisioning import CertificateFiles

HOST = "127.0.0.1"


@dataclass
class Behaviour:
    """What the gateway answers, and what it was asked."""

    clock_ahead: float = 0.0
    health: int = 200
    status: int = 400
    code: int | None = 2003
    release: str | None = None
    date: str | None = None
    calls: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that look and go away are the point here."""


def _handler(behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            return behaviour.date or formatdate(time.time() + behaviour.clock_ahead, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if behaviour.release is not None:
                self.send_header("instahide-release", behaviour.release)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer(behaviour.health if self.path == "/health" else 403)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            behaviour.calls.append((self.path, dict(self.headers), body))
            self._answer(behaviour.status, json.dumps({"code": behaviour.code}).encode())

    return Handler


@contextmanager
def gateway(
    files: CertificateFiles, authority: Path, behaviour: Behaviour | None = None, *, name: str = ""
) -> Iterator[Address]:
    """Serve with this certificate; the address to look at, trusting ``authority``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server = _Server((HOST, 0), _handler(behaviour or Behaviour()))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield Address(HOST, server.server_port, authority, name)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

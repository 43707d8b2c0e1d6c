"""An HTTP server on a thread: stands where a server, a webhook's receiver or a collector of spans should be."""

import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any

POLL_S = 0.01  # how long it may take to end
SILENCE_S = 60  # after which a connection is closed


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is answered; `Date` is that of this machine unless `headers` say another."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], answer: Callable[[Request], Answer]) -> None:
        super().__init__(address, _Handler)
        self.answer = answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that went away, or does not trust us."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_S

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answer(Request(self.command, self.path, self.headers, body))
        self.send_response_only(answer.status)
        for name, value in ({"Date": self.date_time_string()} | dict(answer.headers)).items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def http_server(
    answer: Callable[[Request], Answer], address: tuple[str, int] = ("127.0.0.1", 0), tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Answers every request by this function, each connection on a thread of its own; yields the server's URL."""
    with _Server(address, answer) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        with on_a_thread(server):
            yield f"{'https' if tls else 'http'}://{address[0]}:{server.server_port}"


@contextmanager
def on_a_thread(server: BaseServer) -> Iterator[None]:
    """Serves until the end on a thread, which stands in the network of the calling one."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True, name="server")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()

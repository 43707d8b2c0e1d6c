"""What a client does not send or finish holds up no stop of `uvicorn server:app`, as README starts it."""

import socket
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from bench.processes import server

HEAD = "{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
HALVES = (
    HEAD.format("POST /series") + 'Content-Length: 1000\r\n\r\n{"SeriesInstanceUID": "1.2',
    HEAD.format("POST /series") + "Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n",
    HEAD.format("POST /series") + "Transfer-Encoding: chunked\r\n\r\n5\r\n{ ",
    HEAD.format("POST /series") + "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
    HEAD.format("PUT /gateways/one") + "Content-Length: 1000\r\n\r\n{",
    HEAD.format("POST /conflicts/" + "0" * 64) + "Content-Length: 1000\r\n\r\n{",
    HEAD.format("GET /changes/stream") + "Content-Length: 1000\r\n\r\n{",
    HEAD.format("GET /series") + "Content-Length: 1000\r\n\r\n{",
    HEAD.format("POST /nowhere") + "Content-Length: 1000\r\n\r\n{",
    "POST /series HTTP/1.1\r\nHost: 127",
    "",
)


def test_half_a_request_holds_up_no_stop(tmp_path: Path) -> None:
    with server(tmp_path) as (process, url), ExitStack() as open_:
        address = urlsplit(url)
        for half in HALVES:
            connection = socket.create_connection((address.hostname, address.port))
            open_.enter_context(closing(connection))
            connection.sendall(half.encode())
        watcher = socket.create_connection((address.hostname, address.port))
        open_.enter_context(closing(watcher))
        watcher.sendall((HEAD.format("GET /health/ready") + "\r\n").encode())
        assert b" 200 " in watcher.recv(1000)  # so the others have been read, too
        process.stop(timeout_s=60)
    assert not process.events("server.failed")
    assert not [line for line in process.lines if "Traceback" in line]

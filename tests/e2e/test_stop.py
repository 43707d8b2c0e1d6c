"""What a client does not send or finish holds up no stop of `uvicorn server:app`, as README starts it."""

import socket
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from bench.rig.processes import server

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


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answer_holds_up_no_stop(tmp_path: Path) -> None:
    with server(tmp_path) as (process, url), ExitStack() as open_:
        uids = [f"1.2.3.{n}" for n in range(60_000)]
        report = {
            "SeriesInstanceUID": "1.2",
            "StudyInstanceUID": "1",
            "NumInstances": len(uids),
            "SOPInstanceUIDs": uids,
        }
        httpx.post(f"{url}/series", json=report, timeout=60).raise_for_status()
        address = urlsplit(url)
        for _ in range(3):
            connection = socket.create_connection((address.hostname, address.port))
            open_.enter_context(closing(connection))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall((HEAD.format("GET /series/1.2/instances") + "\r\n").encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        process.stop(timeout_s=100)
    assert not process.events("server.failed")

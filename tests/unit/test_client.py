"""How the gateway calls the server: with its key, over TLS that it checks. The server is a real one on loopback."""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import pytest
import trustme
from structlog.testing import capture_logs

from bench.rig.http_server import Answer, Request, http_server
from client import run
from common.settings import GatewaySettings, load
from gateway.cli.commands import command_line
from gateway.cli.process import run_main
from gateway.dispatcher import SeriesDispatcher
from gateway.server_client import Bearer, CannotCall, server_client, stored_instances
from models import SeriesReport
from tests.rig.factories import make_instance, make_report, memory_journal, stored

KEY = "k3y-n0b0dy-may-see"
UIDS = ["1.2.3"]


class Server:
    """Stores what comes with `key` and answers other requests 401; `seen` are the methods and keys that came."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.before_refusal: Callable[[], object] = lambda: None
        self.seen: list[tuple[str, str | None]] = []
        self.url = ""

    def answer(self, request: Request) -> Answer:
        key = request.headers["Authorization"] and request.headers["Authorization"].removeprefix("Bearer ")
        self.seen.append((request.method, key))
        if key != self.key:
            self.before_refusal()
            return Answer(401)
        if request.method == "GET":
            return Answer(200, json.dumps({"SOPInstanceUIDs": UIDS}).encode())
        return Answer(200, stored(SeriesReport.model_validate_json(request.body)).content)


@contextmanager
def serving(key: str | None, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(key)
    with http_server(server.answer, tls=tls) as url:
        server.url = url.replace("127.0.0.1", "localhost")  # as the certificate names it
        yield server


async def deliver(http: httpx.AsyncClient) -> int:
    """Post a report until it is delivered; returns how many are not."""
    with memory_journal() as journal:
        await journal.keep([make_instance("1")])
        (waiting,) = await journal.file_reports([make_report("1")])
        dispatcher = SeriesDispatcher(http, journal, concurrency=1, retry_max_s=0.01)
        dispatcher.submit(waiting)
        running = asyncio.create_task(dispatcher.run())
        undelivered = await dispatcher.drain(10)
        running.cancel()
        await asyncio.wait([running])
        return undelivered


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return file


@pytest.mark.parametrize("given", ["key", "file"])
async def test_every_request_carries_the_key(key_file: Path, given: str) -> None:
    key = {"api_key": KEY} if given == "key" else {"api_key_file": str(key_file)}
    with serving(KEY) as server:
        async with server_client(load(GatewaySettings, {"server_url": server.url, **key})) as http:
            assert await stored_instances(http, make_instance().key) == UIDS
            assert await deliver(http) == 0
    assert server.seen == [("GET", KEY), ("POST", KEY)]


async def test_without_a_key_none_is_sent() -> None:
    with serving(None) as server:
        async with server_client(load(GatewaySettings, {"server_url": server.url})) as http:
            assert await deliver(http) == 0
    assert server.seen == [("POST", None)]


async def test_rotated_key_file_is_read_again_at_401_and_the_request_repeated_at_once(key_file: Path) -> None:
    with serving("new") as server, capture_logs() as logs:
        async with server_client(load(GatewaySettings, {"server_url": server.url, "api_key_file": str(key_file)})) as h:
            key_file.write_text("new\n")
            assert await stored_instances(h, make_instance().key) == UIDS
            assert await stored_instances(h, make_instance().key) == UIDS
    assert [key for _, key in server.seen] == [KEY, "new", "new"]
    assert [entry["event"] for entry in logs] == ["key.reloaded"]


async def test_reports_refused_for_their_key_are_delivered_once_the_file_holds_the_right_one(key_file: Path) -> None:
    contents = iter(["", "still wrong", "right"])
    with serving("right") as server, capture_logs() as logs:
        server.before_refusal = lambda: key_file.write_text(next(contents, "right"))
        async with server_client(load(GatewaySettings, {"server_url": server.url, "api_key_file": str(key_file)})) as h:
            assert await deliver(h) == 0
    assert server.seen[-1] == ("POST", "right")
    assert {"key.refused", "key.reloaded", "report.delayed", "report.delivered"} == {entry["event"] for entry in logs}
    assert not any(key in str(logs) for key in (KEY, "still wrong"))


async def test_key_that_stays_wrong_is_not_sent_twice_for_one_try(key_file: Path) -> None:
    with serving("right") as server, capture_logs() as logs:
        async with server_client(load(GatewaySettings, {"server_url": server.url, "api_key_file": str(key_file)})) as h:
            assert await stored_instances(h, make_instance().key) is None
    assert (server.seen, logs) == ([("GET", KEY)], [])


async def test_a_key_without_the_scope_to_read_is_said() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(403))
    with capture_logs() as logs:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            assert await stored_instances(http, make_instance().key) is None
    assert [entry["event"] for entry in logs] == ["key.refused"]
    assert "series:read" in logs[0]["reason"]


@pytest.mark.parametrize("status", [401, 429])
async def test_the_key_file_is_read_again_where_the_key_may_be_the_cause(key_file: Path, status: int) -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return httpx.Response(200 if request.headers["Authorization"] == "Bearer new" else status)

    auth = Bearer(None, key_file)
    key_file.write_text("new")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=auth) as http:
        assert (await http.get("http://server")).status_code == 200
    assert sent == [f"Bearer {KEY}", "Bearer new"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (f"{KEY}\nanother\n".encode(), "holds a space, a line break"),
        (f"{KEY}\xff".encode("latin-1"), "not ASCII"),
    ],
)
def test_key_file_that_cannot_be_used_stops_the_start_with_the_cure(
    key_file: Path, content: bytes | None, problem: str
) -> None:
    key_file.unlink()
    if content is not None:
        key_file.write_bytes(content)
    settings = load(GatewaySettings, {"scp_port": "0", "api_key_file": str(key_file)})
    with pytest.raises(click.ClickException) as error:
        run_main(run(settings, asyncio.Event()), settings)
    assert str(error.value).startswith(f"--api-key-file={key_file}: ")
    assert problem in str(error.value)
    assert str(error.value).endswith("Give a readable file with nothing but the key.")
    assert KEY not in str(error.value)


def test_directory_is_no_key_file(key_file: Path) -> None:
    with pytest.raises(CannotCall, match=r"GATEWAY_API_KEY_FILE=.*: Is a directory\. Give a readable file"):
        server_client(load(GatewaySettings, {"api_key_file": str(key_file.parent)}))


def test_key_is_no_flag_and_not_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", KEY)
    group = command_line(run)
    flags = {option for parameter in group.params for option in parameter.opts}
    assert "--api-key" not in flags
    assert {"--api-key-file", "--server-ca"} <= flags
    assert KEY not in group.get_help(click.Context(group))


@pytest.mark.parametrize(
    ("url", "events"), [("http://server", ["key.exposed"]), ("http://127.0.0.1", []), ("https://server", [])]
)
def test_key_that_travels_in_clear_text_is_warned_of_once(url: str, events: list[str]) -> None:
    with capture_logs() as logs:
        server_client(load(GatewaySettings, {"server_url": url, "api_key": KEY}))
    assert [entry["event"] for entry in logs] == events
    assert all(entry["log_level"] == "warning" for entry in logs)
    assert KEY not in str(logs)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS, and the file of the authority that it is signed by."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, tmp_path / "ca.pem"


async def test_certificate_of_the_server_is_checked_against_the_authority(tls: tuple[ssl.SSLContext, Path]) -> None:
    context, ca = tls
    with serving(KEY, context) as server:
        flags = {"server_url": server.url, "api_key": KEY}
        async with server_client(load(GatewaySettings, flags)) as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get("")
        assert server.seen == []
        async with server_client(load(GatewaySettings, flags | {"server_ca": str(ca)})) as http:
            assert await deliver(http) == 0


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authority_that_cannot_be_read_stops_the_start_with_the_cure(tmp_path: Path, content: str | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(CannotCall, match=rf"GATEWAY_SERVER_CA={ca}: .+\. Give a readable PEM file"):
        server_client(load(GatewaySettings, {"server_url": "https://server", "server_ca": str(ca)}))

"""Whatever answers where the server or a webhook should be: nonsense costs one try, and nothing else."""

import asyncio
import gzip
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, cast

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.webhooks import Teller
from bench.rig.http_server import on_a_thread
from common.outgoing import http_client
from common.settings import GatewaySettings, load
from gateway.heartbeat import _tell
from gateway.orders import Orders
from gateway.server_client import (
    MAX_ANSWER_BYTES,
    NoAnswer,
    SeriesRejected,
    ServerUnavailable,
    ask,
    post_report,
    server_client,
    stored_instances,
)
from models import Change, GatewayState, SeriesRecord
from storage.webhooks import new_secret
from tests.rig.factories import make_instance, make_report, make_state, stored

REPORT = make_report("1").model_dump_json()
STATE = GatewayState.model_validate(make_state("gateway"))
CHANGE = Change(
    Number=1,
    SeriesInstanceUID="1.2",
    StudyInstanceUID="1",
    Revision=1,
    NumInstances=1,
    Verdict="idle",
    At=datetime.now(UTC),
)


class Stranger(ThreadingTCPServer):
    """Answers every request with the same bytes."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 50

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answer = b""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass  # who was not listened to


class Answering(BaseRequestHandler):
    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
            head += more
        self.request.sendall(cast(Stranger, self.server).answer)


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    with Stranger() as server, on_a_thread(server):
        yield server


async def meet(url: str) -> None:
    """All that is asked of a server, and one webhook, twice: what the first answer left behind may hurt the second."""
    gateway = load(GatewaySettings, {"server_url": url, "request_timeout_s": "5"})
    orders = Orders({})
    async with server_client(gateway) as http, http_client(timeout=5) as hooks:
        teller = Teller(cast(Any, None), cast(Any, None), hooks)
        for _ in range(2):
            try:
                assert isinstance(await post_report(http, REPORT, {}), SeriesRecord)
            except (ServerUnavailable, SeriesRejected) as error:
                assert len(str(error)) <= 1000
                if isinstance(error, ServerUnavailable):
                    assert 0 <= error.retry_after_s <= 3600
            assert isinstance(await _tell(http, STATE, orders), str | None)
            known = await stored_instances(http, make_instance().key)
            assert known is None or all(isinstance(uid, str) for uid in known)
            hook = {"Id": 1, "Url": f"{url}/hook", "Secret": new_secret(), "OldSecret": None, "LinkLocal": False}
            problem, wait_s = await teller._post(hook, CHANGE)
            assert isinstance(problem, str | None)
            assert wait_s == math.inf or 0 <= wait_s <= 3600


def http_answer(status: bytes, headers: list[bytes], body: bytes, *, length: bool = True) -> bytes:
    own = [b"Content-Length: %d" % len(body)] if length else []
    return b"\r\n".join([b"HTTP/1.1 " + status, *own, *headers, b"", body])


RECORD = stored(make_report("1")).content
STATUSES = [
    b"200 OK",
    b"201 X",
    b"204 X",
    b"301 X",
    b"302 X",
    b"401 X",
    b"403 X",
    b"404 X",
    b"413 X",
    b"422 X",
    b"429 X",
]
STATUSES += [
    b"101 X",
    b"100 X",
    b"500 X",
    b"502 X",
    b"503 X",
    b"599 X",
    b"999 X",
    b"000 X",
    b"200",
    b"20 X",
    b"2000 X",
    b"\xff",
]
HEADERS = [
    *(b"Set-Cookie: \xff=1; Path=/", b"Set-Cookie: a=\xc3\xa9", b"Set-Cookie: a\x01b", b"Set-Cookie: a=1; Expires=-1"),
    *(b"Location: http://[::1", b"Location: \xff\xfe", b"Location: //", b"Location: http://a:99999/", b"Location: x:"),
    *(b"Retry-After: " + text for text in ("²".encode(), "²".encode("latin-1"), b"9" * 5000, b"-1", b"1e9", b"\xff")),
    b"Retry-After: Thu, 01 Jan 2026 00:00:00 -0000",
    b"Retry-After: Thu, 01 Jan 2026 00:00:00 +99999999999999",
    b"Retry-After: Thu, 01 Jan 0001 00:00:00 +2359",
    *(b"Content-Encoding: " + text for text in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip, gzip", b"\xff")),
    *(b"Content-Length: " + text for text in (b"-1", b"5", b"99999999999", b"x", b"", "²".encode())),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", b"Content-Type: text/html; charset=\xff", b"\xff: x"),
    *(b"no colon", b": x", b"a b: x", b"Connection: upgrade", b"Upgrade: h2c", b"X: " + b"x" * 200_000),
]
BODIES = [
    *(b"", b"null", b"{}", b"[]", b"1", b"NaN", b'{"detail": "\\ud800"}', b"\xff\xfe", b"\xef\xbb\xbf{}", b"9" * 5000),
    *(b"[" * 100_000, b'{"detail":' * 100_000, b'{"SOPInstanceUIDs": [null]}', b'{"SOPInstanceUIDs": "1.2"}'),
    *(b'{"detail": [{"loc": 5}]}', b'{"detail": [{"loc": [{}], "type": null}]}', b'{"detail": {"loc": []}}'),
    json.dumps({"detail": [{"loc": [10**300] * 50, "type": "x"}]}).encode(),
    json.dumps({"detail": "no series 1"}).encode(),
    *(RECORD, RECORD[:-5], RECORD.replace(b'"NumInstances":1', b'"NumInstances":' + b"9" * 4000)),
    RECORD.replace(b'"NumInstances":1', b'"NumInstances":1e999'),
    RECORD.replace(b'"Attributes":{}', b'"Attributes":{"x":["\\ud800"]},"deep":' + b"[" * 100_000),
    *(gzip.compress(RECORD), gzip.compress(bytes(2**20)), gzip.compress(gzip.compress(bytes(2**20)))),
    *(b"5\r\n12345\r\n0\r\n\r\n", b"ffffffffff\r\n", b"-1\r\n", b"0\r\n\xff\r\n\r\n"),
]
ANSWERS = st.binary(max_size=300) | st.builds(
    http_answer,
    st.sampled_from(STATUSES) | st.binary(max_size=10),
    st.lists(st.sampled_from(HEADERS) | st.binary(max_size=30), max_size=4),
    st.sampled_from(BODIES) | st.binary(max_size=100),
    length=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(answer=ANSWERS)
@example(answer=http_answer(b"503 X", [b"Set-Cookie: \xff=1; Path=/"], b""))
@example(answer=http_answer(b"422 X", [], b"[" * 100_000))
@example(answer=http_answer(b"503 X", [b"Retry-After: Thu, 01 Jan 2026 00:00:00 +99999999999999"], b""))
@example(answer=http_answer(b"503 X", [b"Retry-After: Thu, 01 Jan 2026 00:00:00 -0000"], b""))
@example(answer=http_answer(b"302 X", [b"Location: http://a:99999/"], b""))
@example(answer=http_answer(b"302 X", [b"Location: \xff\xfe"], RECORD))
@example(answer=http_answer(b"200 X", [b"Content-Encoding: gzip, gzip"], gzip.compress(gzip.compress(RECORD))))
@example(answer=http_answer(b"200 X", [], BODIES[-9]))
@example(answer=b"HTTP/1.1 100 X\r\n\r\n" * 1000)
def test_no_answer_ends_more_than_its_own_try(stranger: Stranger, answer: bytes) -> None:
    stranger.answer = answer
    asyncio.run(meet(stranger.url))


# --- bounds ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def saying(head: bytes, more: Callable[[], bytes], pause_s: float) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that begins an answer and goes on with `more` for ever; its URL, and how much it has sent."""
    sent = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while True:
                content = more()
                writer.write(content)
                await writer.drain()
                sent[0] += len(content)
                await asyncio.sleep(pause_s)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", sent


ENDLESS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\n",
]


@pytest.mark.parametrize("head", ENDLESS)
async def test_an_answer_without_end_is_not_read_into_memory(head: bytes) -> None:
    async with saying(head, lambda: bytes(2**20), 0.0) as (url, sent), http_client(base_url=url, timeout=30) as http:
        answer = await ask(http, "GET", "series")
    assert (answer.status, answer.content) == (200, b"")
    assert sent[0] < 2 * MAX_ANSWER_BYTES


async def test_what_is_refused_without_end_is_no_word_of_our_servers() -> None:
    head = b"HTTP/1.1 422 X\r\n\r\n"
    async with saying(head, lambda: bytes(2**20), 0.0) as (url, _), http_client(base_url=url, timeout=30) as http:
        with pytest.raises(ServerUnavailable, match=r"^HTTP 422, but not from our server"):
            await post_report(http, REPORT, {})


@pytest.mark.parametrize("head", [*ENDLESS, b"HTTP/1.1 200 OK\r\nX: ", b"", b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 "])
async def test_an_answer_that_trickles_is_bounded_as_a_whole(head: bytes) -> None:
    """Each read is in time, and the answer never ends."""
    async with saying(head, lambda: b"1", 0.01) as (url, _), http_client(base_url=url, timeout=0.1) as http:
        with pytest.raises(NoAnswer):
            await ask(http, "GET", "series")


async def test_a_401_without_end_is_not_read_to_repeat_the_request(tmp_path: Any) -> None:
    key = tmp_path / "key"
    key.write_text("old")
    head = b"HTTP/1.1 401 X\r\n\r\n"
    async with saying(head, lambda: bytes(2**20), 0.0) as (url, sent):
        gateway = load(GatewaySettings, {"server_url": url, "api_key_file": str(key), "request_timeout_s": "30"})
        async with server_client(gateway) as http:
            key.write_text("new")
            answer = await ask(http, "GET", "series")
    assert answer.status == 401
    assert sent[0] < 3 * MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("content", "coding", "read"),
    [
        (gzip.compress(b"{}", mtime=0), "gzip", b"{}"),  # of a proxy that does so though nobody asked
        (gzip.compress(bytes(MAX_ANSWER_BYTES + 1), mtime=0), "gzip", b""),
        (gzip.compress(b"{}", mtime=0)[:-9], "gzip", b""),
        (b"{}", "gzip", b""),
        (b"{}", "br", b""),
        (b"{}", "identity", b"{}"),
    ],
)
async def test_what_is_packed_is_inflated_within_the_bound(
    stranger: Stranger, content: bytes, coding: str, read: bytes
) -> None:
    stranger.answer = http_answer(b"200 OK", [b"Content-Encoding: " + coding.encode()], content)
    async with http_client(base_url=stranger.url) as http:
        assert (await ask(http, "GET", "series")).content == read


async def test_nobody_is_asked_to_pack_an_answer_nor_sent_a_cookie() -> None:
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, headers={"Set-Cookie": "a=1; Path=/"})

    async with http_client(base_url="http://server", transport=httpx.MockTransport(answer)) as http:
        for _ in range(2):
            await ask(http, "GET", "series")
        assert not http.cookies
    assert [(headers["Accept-Encoding"], headers.get("Cookie")) for headers in seen] == [("identity", None)] * 2


# --- what the server has ---------------------------------------------------------------------------------------


UID = make_instance().series_instance_uid
OWN_404 = {"detail": f"no series {UID}"}


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (httpx.Response(200, json={"SOPInstanceUIDs": ["1.2", "1.3"]}), ["1.2", "1.3"]),
        (httpx.Response(200, json={"SOPInstanceUIDs": []}), []),
        (httpx.Response(404, json=OWN_404), []),
        (httpx.Response(404, json={"detail": "Not Found"}), None),  # of a path that is not the server's
        (httpx.Response(404, json={"detail": [UID]}), None),
        (httpx.Response(404, content=b"404 page not found"), None),
        (httpx.Response(404, json=[]), None),
        (httpx.Response(204), None),
        (httpx.Response(200, json={"SOPInstanceUIDs": ["1.2", "Märked^Name"]}), None),
        (httpx.Response(200, json={"SOPInstanceUIDs": "1.2"}), None),
        (httpx.Response(200, json={"SOPInstanceUIDs": ["1.2", 5]}), None),
        (httpx.Response(200, json={}), None),
        (httpx.Response(200, content=b"<html>"), None),
        (httpx.Response(302, headers={"Location": "/"}, json={"SOPInstanceUIDs": []}), None),
        (httpx.Response(500, json={"SOPInstanceUIDs": []}), None),
        (httpx.Response(503, json=OWN_404), None),
        (httpx.Response(403, json=OWN_404), None),
        (httpx.Response(410, json=OWN_404), None),
        (httpx.ConnectError("refused"), None),
        (httpx.ReadTimeout("slow"), None),
    ],
    ids=str,
)
async def test_what_the_server_has_is_what_the_server_itself_says(
    answer: httpx.Response | Exception, known: list[str] | None
) -> None:
    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with http_client(base_url="http://server", transport=httpx.MockTransport(handle)) as http:
        assert await stored_instances(http, make_instance().key) == known


async def test_too_many_instances_to_be_told_are_not_known() -> None:
    uids = {"SOPInstanceUIDs": ["1"] * 250_001}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=uids))
    async with http_client(base_url="http://server", transport=transport) as http:
        assert await stored_instances(http, make_instance().key) is None


async def test_a_series_is_asked_for_by_its_name_whatever_that_holds() -> None:
    paths = []

    def handle(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(200, json={"SOPInstanceUIDs": []})

    async with http_client(base_url="http://server", transport=httpx.MockTransport(handle)) as http:
        for uid in ("1/../2?x#y", "1 2", "\ud800"):
            await stored_instances(http, make_instance(series=uid).key)
    assert paths == [b"/series/1%2F..%2F2%3Fx%23y/instances", b"/series/1%202/instances"]

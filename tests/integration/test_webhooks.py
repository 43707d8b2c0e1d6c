"""Webhooks: a real receiver over real HTTP, on both databases; the Standard Webhooks library checks the signatures."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import select, text
from standardwebhooks import Webhook, WebhookVerificationError

from api.follower import Follower
from api.operations import operations
from api.webhooks import GIVE_UP_S, Teller, signed, wants
from common.outgoing import LinkLocalAddress, http_client, refuse_link_local
from db import Database
from models import Change, SeriesReport
from storage.connection import Connection
from storage.schema import webhooks
from storage.webhooks import new_secret
from tests.rig.factories import SERIES, STUDY, make_report
from tests.rig.papers import ROOT


class Receiver:
    """A small HTTP server that keeps what it was sent; `answer` says with which status it answers what."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda change: 204
        self.header = b""
        self.news = asyncio.Condition()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.requests.append((headers, body))
                change = json.loads(body)
                status = self.answer(change)
                if status < 300:
                    self.received.append(change)
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n%s\r\n" % (status, self.header))
                async with self.news:
                    self.news.notify_all()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def until(self, done: Callable[[], bool], timeout_s: float = 120) -> None:
        async with asyncio.timeout(timeout_s), self.news:
            await self.news.wait_for(done)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield receiver


@asynccontextmanager
async def telling(database: Database, processes: int = 1) -> AsyncIterator[list[Follower]]:
    """What a server process does about webhooks, or several processes."""
    followers = [Follower(database) for _ in range(processes)]
    async with http_client() as http, asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follower.run())
            tasks.create_task(Teller(database, follower, http).run())
        yield followers
        for follower in followers:
            follower.end()


async def added(database: Database, url: str, from_start: bool = True, **filters: Any) -> dict[str, Any]:
    return await operations(database)["add_webhook"](url=url, from_start=from_start, filters=filters)


async def listed(database: Database, id: int | None = None) -> dict[str, Any]:
    rows: list[dict[str, Any]] = (await operations(database)["list_webhooks"]())["rows"]
    return next(row for row in rows if id in (None, row["id"]))


async def store(database: Database, series: int, *sops: int) -> None:
    await database.store(make_report(*map(str, sops), series=f"{STUDY}.{series}"))


async def test_every_change_is_told_once_in_order_signed_and_names_no_patient(
    database: Database, receiver: Receiver
) -> None:
    hook = await added(database, receiver.url)
    async with telling(database):
        for revision in range(3):
            for series in range(4):
                await store(database, series, revision)
        await receiver.until(lambda: len(receiver.received) == 12)
    assert [change["Number"] for change in receiver.received] == list(range(1, 13))
    for series in range(4):
        revisions = [c["Revision"] for c in receiver.received if c["SeriesInstanceUID"] == f"{STUDY}.{series}"]
        assert revisions == [1, 2, 3]
    for headers, body in receiver.requests:
        Webhook(hook["secret"]).verify(body, headers)
        assert headers["webhook-id"] == f"change-{json.loads(body)['Number']}"
        assert b"Test^One" not in body
        assert b"P1" not in body
    assert (await listed(database))["behind"] == 0


async def test_a_webhook_is_told_of_studies_only_if_it_asks(database: Database, receiver: Receiver) -> None:
    urls = {name: f"{receiver.url}/{name}" for name in ("before", "series", "study", "any")}
    await database.webhooks.add(urls["before"], 0, {"Modality": ["CT"]})  # as an earlier version made it
    await added(database, urls["series"])
    await added(database, urls["study"], Subject=["study"])
    await added(database, urls["any"], Subject=["series", "study"])
    report = make_report("1").model_copy(update={"Verdict": None})
    await database.store(report)
    await database.declare_study(STUDY, "complete", "me", "over")
    async with telling(database):
        await receiver.until(lambda: len(receiver.received) == 5)
    told = sorted((change["Subject"], change["Number"], change["SeriesInstanceUID"]) for change in receiver.received)
    assert told == [("series", 1, SERIES)] * 3 + [("study", 2, None)] * 2


def test_a_study_is_wanted_by_any_of_its_modalities() -> None:
    study = Change(
        Number=1,
        Subject="study",
        SeriesInstanceUID=None,
        StudyInstanceUID="1",
        Modality="CT\\SR",
        Revision=1,
        NumInstances=1,
        Verdict="idle",
        At=datetime.now(UTC),
    )
    assert wants({"Filters": {"Subject": ["study"], "Modality": ["SR"]}}, study)
    assert not wants({"Filters": {"Subject": ["study"], "Modality": ["MR"]}}, study)
    assert not wants({"Filters": {"Modality": ["SR"]}}, study)
    assert not wants({"Filters": None}, study)


async def test_a_new_webhook_is_told_what_comes_from_now_on(database: Database, receiver: Receiver) -> None:
    await store(database, 1, 1)
    await added(database, receiver.url, from_start=False)
    async with telling(database):
        await store(database, 2, 1)
        await receiver.until(lambda: len(receiver.received) == 1)
    assert receiver.received[0]["SeriesInstanceUID"] == f"{STUDY}.2"


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"Modality": ["MR", "CT"]}, [1, 2, 3, 4, 5]),
        ({"Modality": ["MR"]}, []),
        ({"Source": ["CT2 CT"]}, [3, 4, 5]),
        ({"Verdict": ["capped"]}, [2]),
        ({"Kinds": ["conflict", "contradicted"]}, [4, 5]),
        ({"Kinds": ["created"], "Source": ["CT1 CT"]}, [1, 2]),
    ],
)
async def test_a_webhook_is_told_what_it_asks_for_and_is_behind_with_nothing_else(
    database: Database, receiver: Receiver, filters: dict[str, Any], wanted: list[int]
) -> None:
    def by(source: str, *sops: str, series: str, **more: Any) -> SeriesReport:
        return make_report(*sops, series=series).model_copy(update={"Source": source} | more)

    hook = await added(database, receiver.url, **filters)
    assert hook["filters"] == filters
    await database.store(by("CT1 CT", "1", series="1.1"))
    await database.store(by("CT1 CT", "1", series="1.2", Verdict="capped"))
    await database.store(by("CT2 CT", "1", series="1.3"))
    await database.store(by("CT2 CT", "2", series="1.3", Revision=2))
    await database.store(by("CT2 CT", "3", series="1.3", PatientID="other"))
    async with telling(database):
        await receiver.until(lambda: len(receiver.received) == len(wanted))
        async with asyncio.timeout(120):
            while (await listed(database))["behind"]:  # noqa: ASYNC110 - its place is in the database alone
                await asyncio.sleep(0.05)
    assert [change["Number"] for change in receiver.received] == wanted


async def test_a_webhook_from_the_start_is_told_what_was_not_purged_and_is_then_behind_with_nothing(
    database: Database, receiver: Receiver
) -> None:
    for series in (1, 2, 3):
        await store(database, series, 1)
    await database.last_change()
    after = datetime(9999, 1, 1, tzinfo=UTC)
    assert (await database.purger.series(after, None, dry=False)).series == 3
    await added(database, receiver.url)
    async with telling(database), asyncio.timeout(120):
        while (await listed(database))["behind"]:  # noqa: ASYNC110 - its place is in the database alone
            await asyncio.sleep(0.05)
        await store(database, 4, 1)
        await receiver.until(lambda: len(receiver.received) == 1)
    assert receiver.received[0]["Number"] == 4


@contextmanager
def fast_clock() -> Any:
    """Wall time 1000 times as fast: waits between tries are measured by it."""
    began, real = datetime.now(UTC), time.monotonic()
    with time_machine.travel(began, tick=False) as traveller:
        yield lambda: traveller.move_to(began + timedelta(seconds=1000 * (time.monotonic() - real)))


async def test_a_receiver_that_fails_is_tried_again_and_nothing_overtakes(
    database: Database, receiver: Receiver
) -> None:
    left = [503, 429, 500]
    receiver.answer = lambda change: left.pop() if left and change["Number"] == 2 else 200
    await added(database, receiver.url)
    with fast_clock() as advance:
        async with telling(database):
            for series in range(4):
                await store(database, series, 1)
            while len(receiver.received) < 4:
                advance()
                await asyncio.sleep(0.05)
    assert [change["Number"] for change in receiver.received] == [1, 2, 3, 4]
    assert [json.loads(body)["Number"] for _, body in receiver.requests] == [1, 2, 2, 2, 2, 3, 4]
    assert (await listed(database))["problem"] is None


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 422])
async def test_whatever_is_no_acknowledgement_is_tried_again(
    database: Database, receiver: Receiver, status: int
) -> None:
    left = [status]
    receiver.answer = lambda change: left.pop() if left else 200
    await added(database, receiver.url)
    with fast_clock() as advance:
        async with telling(database):
            await store(database, 1, 1)
            while not receiver.received:
                advance()
                await asyncio.sleep(0.05)
    assert len(receiver.requests) == 2
    assert (await listed(database))["dead"] == 0


async def test_a_receiver_that_says_when_is_not_asked_before(database: Database, receiver: Receiver) -> None:
    receiver.answer, receiver.header = lambda change: 429, b"Retry-After: 1800\r\n"
    await added(database, receiver.url)
    began = datetime.now(UTC)
    async with telling(database):
        await store(database, 1, 1)
        await receiver.until(lambda: len(receiver.requests) == 1)
    (row,) = await database.engine.read(select(webhooks))
    assert began + timedelta(seconds=1700) < row["NextAttemptAt"] < began + timedelta(seconds=1900)


async def test_a_receiver_that_is_gone_is_told_no_more_until_it_is_replayed(
    database: Database, receiver: Receiver
) -> None:
    receiver.answer = lambda change: 410 if change["Number"] == 2 else 200
    await added(database, receiver.url)
    async with telling(database):
        for series in range(3):
            await store(database, series, 1)
        await receiver.until(lambda: len(receiver.requests) == 2)
    with time_machine.travel(datetime.now(UTC) + timedelta(days=400)):
        assert await database.webhooks.claim("another", 3, ()) == []
    row = await listed(database)
    assert "HTTP 410" in row["problem"]
    assert row["dead"] == 0
    receiver.answer = lambda change: 200
    assert await operations(database)["replay_webhook"](id=row["id"]) == {"from": 2}
    async with telling(database):
        await receiver.until(lambda: len(receiver.received) == 3)
    assert [change["Number"] for change in receiver.received] == [1, 2, 3]
    assert await operations(database)["replay_webhook"](id=row["id"]) == {"from": None}


async def test_a_change_that_was_given_up_is_visible_and_can_be_told_again(
    database: Database, receiver: Receiver
) -> None:
    await added(database, receiver.url)
    async with telling(database):
        await store(database, 1, 1)
        await receiver.until(lambda: len(receiver.received) == 1)
    row = await listed(database)
    await database.webhooks.bury(row["id"], 1, "HTTP 500")
    assert (await listed(database))["dead"] == 1
    await database.engine.write(lambda connection: connection.execute(webhooks.update().values(Attempts=12)))
    assert await operations(database)["replay_webhook"](id=row["id"]) == {"from": 1}
    assert (await listed(database))["attempts"] == 0  # the next failure waits as long as a first one
    async with telling(database):
        await receiver.until(lambda: len(receiver.received) == 2)
    assert [change["Number"] for change in receiver.received] == [1, 1]
    assert (await listed(database))["dead"] == 0
    assert await operations(database)["replay_webhook"](id=row["id"]) == {"from": None}


async def test_a_receiver_that_is_down_for_too_long_loses_the_change_to_the_dead(
    database: Database, receiver: Receiver
) -> None:
    receiver.answer = lambda change: 500 if change["Number"] == 1 else 200
    await added(database, receiver.url)
    async with telling(database):
        await store(database, 1, 1)
        await receiver.until(lambda: len(receiver.requests) == 1)
        with time_machine.travel(datetime.now(UTC) + timedelta(seconds=GIVE_UP_S + 400)):
            await store(database, 2, 1)
            await receiver.until(lambda: len(receiver.received) == 1)
    assert (await listed(database))["dead"] == 1


async def test_of_several_processes_one_tells_and_another_goes_on_when_it_dies(
    database: Database, receiver: Receiver
) -> None:
    await added(database, receiver.url)
    async with telling(database, processes=3) as followers:
        for series in range(10):
            await store(database, series, 1)
        await receiver.until(lambda: len(receiver.received) == 10)
        owner = await database.engine.read(text('SELECT "Owner" FROM webhooks'))
        assert owner[0]["Owner"]
        followers[0].end()
        followers[1].end()
        with time_machine.travel(datetime.now(UTC) + timedelta(seconds=70)):  # whoever owned it, its claim is over
            await store(database, 99, 1)
            await receiver.until(lambda: len(receiver.received) == 11)
    assert [change["Number"] for change in receiver.received] == list(range(1, 12))


async def test_a_receiver_that_answers_without_end_is_not_listened_to(database: Database) -> None:
    """Nor one whose URL makes the client fail in a way of its own: the others are told all the same."""

    told = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.set()
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 999999999999\r\n\r\n")
            while True:
                writer.write(bytes(2**16))
                await writer.drain()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await operations(database)["add_webhook"](url="http://127.0.0.1:99999/x", from_start=True)
        hook = await operations(database)["add_webhook"](url=f"http://127.0.0.1:{port}/", from_start=True)
        async with telling(database):
            await store(database, 1, 1)
            async with asyncio.timeout(120):
                while (await listed(database, hook["id"]))["behind"]:
                    await told.wait()


async def test_a_cookie_of_a_receiver_does_not_silence_it(database: Database, receiver: Receiver) -> None:
    receiver.header = b"Set-Cookie: \xff=1; Path=/\r\n"
    await added(database, receiver.url)
    async with telling(database):
        for series in range(3):
            await store(database, series, 1)
        await receiver.until(lambda: len(receiver.received) == 3)
    assert not any("cookie" in headers for headers, _ in receiver.requests)


async def test_a_webhook_whose_secret_is_none_stops_no_other(database: Database, receiver: Receiver) -> None:
    spoilt = await added(database, receiver.url)

    async def spoil(connection: Connection) -> None:
        await connection.execute(webhooks.update().where(webhooks.c.Id == spoilt["id"]).values({"Secret": "whsec_5"}))

    await database.engine.write(spoil)
    await added(database, receiver.url)
    async with telling(database):
        await store(database, 1, 1)
        await receiver.until(lambda: len(receiver.received) == 1)


async def test_a_removed_webhook_is_told_no_more(database: Database, receiver: Receiver) -> None:
    hook = await added(database, receiver.url)
    assert await operations(database)["remove_webhook"](id=hook["id"]) == {"done": True}
    assert await operations(database)["remove_webhook"](id=hook["id"]) == {"done": False}
    assert (await operations(database)["list_webhooks"]())["rows"] == []


def test_the_signature_is_that_of_the_standard_and_covers_id_time_and_body() -> None:
    secret, now = new_secret(), datetime.now(UTC)
    headers = signed(secret, "change-1", now, b'{"a": 1}')
    Webhook(secret).verify(b'{"a": 1}', headers)
    for wrong in ({"webhook-id": "change-2"}, {"webhook-timestamp": str(int(now.timestamp()) + 1)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(b'{"a": 1}', headers | wrong)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(b'{"a": 2}', headers)


async def test_another_secret_keeps_the_place_and_both_sign_until_the_old_one_ends(
    database: Database, receiver: Receiver
) -> None:
    hook = await added(database, receiver.url)
    rotate = operations(database)["rotate_webhook"]

    async def next_told(number: int) -> tuple[bytes, dict[str, str]]:
        await store(database, number, 1)
        await receiver.until(lambda: len(receiver.received) == number)
        headers, body = receiver.requests[-1]
        return body, headers

    async with telling(database):
        Webhook(hook["secret"]).verify(*await next_told(1))
        rotated = await rotate(id=hook["id"], keep_old_s=3600)
        assert rotated["secret"] != hook["secret"]
        told = await next_told(2)
        for secret in (hook["secret"], rotated["secret"]):
            Webhook(secret).verify(*told)
        refused = await rotate(id=hook["id"], keep_old_s=7200)
        assert (refused["secret"], refused["old_until"]) == (None, rotated["old_until"])
        told = await next_told(3)
        for secret in (hook["secret"], rotated["secret"]):
            Webhook(secret).verify(*told)
        last = await rotate(id=hook["id"], keep_old_s=0)
        told = await next_told(4)
    Webhook(last["secret"]).verify(*told)
    for secret in (hook["secret"], rotated["secret"]):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(*told)
    again = await rotate(id=hook["id"], keep_old_s=3600)  # the old one has ended
    assert again["secret"] not in (None, last["secret"])
    assert [change["Number"] for change in receiver.received] == [1, 2, 3, 4]
    missing = await operations(database)["rotate_webhook"](id=99, keep_old_s=0)
    assert (missing["secret"], missing["old_until"]) == (None, None)


# --- where they lead --------------------------------------------------------------------------------------------


@pytest.mark.peer("namespaces")
@pytest.mark.parametrize("name", ["169.254.7.7", "2851997447", "[::ffff:169.254.7.7]"])
def test_nothing_is_sent_to_a_link_local_address_unless_that_is_meant(name: str) -> None:
    ask = f"{sys.executable} -m tests.rig.programs.link_local 169.254.7.7 {name}"
    commands = f"ip link set lo up && ip address add 169.254.7.7/32 dev lo && {ask}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", commands],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    refused, sent = map(json.loads, done.stdout.splitlines())
    assert (refused[0], refused[2], sent) == (False, 0, [True, None, 1])
    assert "--link-local" in refused[1]


class Connected:
    """A connection to an address, as httpx's trace is told of one."""

    def __init__(self, address: str) -> None:
        self.closed = False
        self._address = address

    def get_extra_info(self, _: str) -> tuple[str, int]:
        return self._address, 80

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("febf::1", True),
        ("::ffff:169.254.0.1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.7", False),
        ("fd00::1", False),
        ("169.255.0.1", False),
    ],
)
async def test_loopback_and_private_networks_are_reached_and_link_local_ones_are_not(
    address: str, refused: bool
) -> None:
    stream = Connected(address)
    with pytest.raises(LinkLocalAddress) if refused else contextlib.nullcontext():
        await refuse_link_local("connection.connect_tcp.complete", {"return_value": stream})
    assert stream.closed == refused

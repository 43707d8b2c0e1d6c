"""Many readers of /changes/stream: one read serves them all, and one that leaves or dawdles costs nobody anything."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.types import Message
from structlog.testing import capture_logs

from api import follower as follower_module
from api.follower import AT_ONCE, KEPT, Follower
from api.stream import Events
from db import Database
from models import Change, Subjects
from tests.rig.factories import STUDY, make_report


class Counted:
    """A database whose reads of changes are counted, and wait while `gate` is closed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads: list[int] = []
        self.broken_off = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def last_change(self) -> int:
        return await self._database.last_change()

    async def changes(self, since: int, limit: int, subject: Subjects = "any") -> list[Change]:
        self.reads.append(since)
        self.asked.set()
        try:
            await self.gate.wait()
            return await self._database.changes(since=since, limit=limit, subject=subject)
        except asyncio.CancelledError:
            self.broken_off += 1
            raise


async def store(database: Database, *series: int) -> None:
    for one in series:
        await database.store(make_report("1", series=f"{STUDY}.{one}"))
    await database.last_change()


class Reader:
    """Reads a stream of changes; knows the numbers that it was told."""

    def __init__(self, follower: Follower, since: int) -> None:
        self.told: list[int] = []
        self._news = asyncio.Condition()
        self.task = asyncio.create_task(self._read(follower.events(since)))

    async def _read(self, events: AsyncIterator[bytes]) -> None:
        async for some in events:
            self.told += [int(line[4:]) for line in some.decode().splitlines() if line.startswith("id: ")]
            async with self._news:
                self._news.notify_all()

    async def until(self, done: Callable[["Reader"], bool]) -> None:
        async with asyncio.timeout(120), self._news:
            await self._news.wait_for(lambda: done(self))


async def test_one_read_of_the_database_serves_all_readers(database: Database) -> None:
    counted = Counted(database)
    follower = Follower(counted)  # type: ignore[arg-type]
    await store(database, 1)
    running = asyncio.create_task(follower.run())
    readers = [Reader(follower, 1) for _ in range(100)]
    for n in range(2, 5):
        await store(database, n)
        follower.stored()
        await asyncio.gather(*(reader.until(lambda one: one.told[-1:] == [n]) for reader in readers))  # noqa: B023
    follower.end()
    await asyncio.gather(running, *(reader.task for reader in readers))
    assert all(reader.told == [2, 3, 4] for reader in readers)
    assert len(counted.reads) < 20


async def test_a_reader_that_leaves_breaks_no_read_off(database: Database) -> None:
    await store(database, *range(5))
    counted = Counted(database)
    counted.gate.clear()
    follower = Follower(counted)  # type: ignore[arg-type]
    leaves, stays = Reader(follower, 0), Reader(follower, 0)
    await counted.asked.wait()
    leaves.task.cancel()
    await asyncio.wait([leaves.task])
    counted.gate.set()
    await stays.until(lambda one: len(one.told) == 5)
    stays.task.cancel()
    await asyncio.wait([stays.task])
    assert (stays.told, counted.reads[0], counted.broken_off) == ([1, 2, 3, 4, 5], 0, 0)


@pytest.mark.parametrize("kept", [3, KEPT])
async def test_readers_of_any_place_are_told_each_change_once_in_order(
    database: Database, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "KEPT", kept)
    monkeypatch.setattr(follower_module, "AT_ONCE", 4)
    assert AT_ONCE > 4
    await store(database, *range(10))
    follower = Follower(database)
    running = asyncio.create_task(follower.run())
    readers = {since: Reader(follower, since) for since in (0, 3, 9, 10, 12)}
    for n in range(10, 30):
        await store(database, n)
        if n % 3:
            follower.stored()
    for since, reader in readers.items():
        await reader.until(lambda one: one.told[-1:] == [30])
        assert reader.told == list(range(since + 1, 31))
    follower.end()
    await asyncio.gather(running, *(reader.task for reader in readers.values()))


async def test_a_reader_that_takes_nothing_is_let_go_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.stream.STUCK_S", 0.05)
    ended = False

    async def content() -> AsyncIterator[bytes]:
        nonlocal ended
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            ended = True

    async def send(message: Message) -> None:
        if message.get("body"):
            await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    chunks = content()
    with capture_logs() as logs:
        await Events(chunks).stream_response(send)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert [entry["event"] for entry in logs] == ["stream.dropped"]
    assert ended


@pytest.mark.parametrize("begun", [False, True])
async def test_a_reader_passes_over_what_was_purged_and_waits_behind_it(database: Database, begun: bool) -> None:
    follower = Follower(database)
    await store(database, 1)
    if begun:  # it knows the first change, and keeps it
        await follower.look_once()
    await store(database, *range(2, 6))
    after = datetime(9999, 1, 1, tzinfo=UTC)
    assert (await database.purger.series(after, None, dry=False)).series == 5
    await follower.look_once()
    for since in (1, 3, 5):  # else a reader would ask for ever, and never wait
        assert await follower.behind((since, "series")) == (5, b"")
    running = asyncio.create_task(follower.run())
    readers = [Reader(follower, since) for since in (1, 3, 5)]
    await store(database, 9)
    for reader in readers:
        await reader.until(lambda one: one.told == [6])
    follower.end()
    await asyncio.gather(running, *(reader.task for reader in readers))
    assert all(reader.told == [6] for reader in readers)

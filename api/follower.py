"""Who waits for changes is woken here: one look at the database for all of a process's listeners."""

import asyncio
import contextlib
import math
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from api.stream import PING, PING_S, encoded
from db import Database
from models import Change, Subjects
from storage.engine import DatabaseUnavailable

POLL_S = 0.5  # how late what other server processes stored is seen
AT_ONCE = 100  # changes of one read, and of one piece of a stream
KEPT = 1000  # changes in memory, for those who wait
A_READER_S = 0.005  # pause between two looks for each who waits: waking them takes a tenth of that
UNREAD_S = 20.0  # how long a stop leaves clients to read what they asked for
Asked = tuple[int, Subjects]  # behind which number, and of what
STREAM_S = 600.0  # length of a stream: then its reader asks again, with a key that is still valid


class Follower:
    """Knows the last changes, and wakes those that wait for the next; looks only while somebody waits.

    One read of the database serves all who wait, and no read is broken off when one of them leaves.
    """

    def __init__(self, database: Database) -> None:
        self.ended = False
        self._database = database
        self._last = 0
        self._tail: deque[Change] = deque(maxlen=KEPT)  # up to the last one, all that there are
        self._events: dict[Asked, tuple[int, bytes]] = {}  # of the tail, as those who wait are sent them
        self._reads: dict[Asked, asyncio.Task[tuple[int, bytes]]] = {}  # under way
        self._waiting = 0
        self._look = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Look for changes, until the end."""
        while not self.ended:
            waiting = self._waiting
            if waiting:
                await self.look_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._look.wait()
            self._look.clear()
            if not self.ended:
                await asyncio.sleep(min(waiting * A_READER_S, POLL_S))
        await self._wake()

    async def look_once(self) -> None:
        """Read what is new, and wake those that wait for it."""
        with contextlib.suppress(DatabaseUnavailable):
            last = await self._database.last_change()
            if last <= self._last:
                return
            if last - self._last > KEPT:
                self._tail.clear()
            else:
                news = await self._database.changes(since=self._last, limit=KEPT)
                self._tail.extend(news)
                last = max([last, *(change.Number for change in news[-1:])])  # the last ones may have been purged
            self._last = last
            self._events.clear()
            await self._wake()

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    def stored(self) -> None:
        """Look now: this process has stored something."""
        self._look.set()

    def end(self) -> None:
        """Let every listener go: the process is about to stop."""
        self.ended = True
        self._look.set()

    async def beyond(self, number: float, timeout_s: float) -> None:
        """Wait until there is a change with a higher number, until the end, or at most so long."""
        self._waiting += number < math.inf
        self._look.set()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s), self._news:
                    await self._news.wait_for(lambda: self._last > number or self.ended)
        finally:
            self._waiting -= number < math.inf

    async def events(self, since: int, subject: Subjects = "series") -> AsyncIterator[bytes]:
        """Yield all changes behind `since` as server-sent events, also those to come, until the end or for STREAM_S.

        Raises DatabaseUnavailable.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + STREAM_S
        while not self.ended and loop.time() < ends_at:
            since, told = await self.behind((since, subject))
            if told:
                yield told
            else:
                await self.beyond(since, min(PING_S, ends_at - loop.time()))
                if self._last <= since:
                    yield PING

    async def behind(self, asked: Asked) -> tuple[int, bytes]:
        """Return what comes next behind a place, as events, and the number up to which nothing else is there."""
        since, subject = asked
        if self._last and since >= self._last:
            return since, b""
        if known := self._events.get(asked):
            return known
        if not (self._tail and self._tail[0].Number <= since + 1):
            return await self._read(asked)
        news = [change for change in self._tail if change.Number > since][:AT_ONCE]
        told = self._events[asked] = _joined(news, self._last, subject)
        return told

    async def _read(self, asked: Asked) -> tuple[int, bytes]:
        """Read once for all who ask for the same meanwhile; a listener that leaves does not break it off."""
        read = self._reads.get(asked)
        if read is None:
            read = self._reads[asked] = asyncio.create_task(self._read_behind(*asked), name="read changes")
            read.add_done_callback(lambda done: (self._reads.pop(asked), done.cancelled() or done.exception()))
        return await asyncio.shield(read)

    async def _read_behind(self, since: int, subject: Subjects) -> tuple[int, bytes]:
        """Read the changes behind `since`; if there are none, all up to the last one known before have been purged."""
        last = max(since, self._last)
        return _joined(await self._database.changes(since=since, limit=AT_ONCE, subject=subject), last, subject)


def _joined(changes: Sequence[Change], last: int, subject: Subjects) -> tuple[int, bytes]:
    """Return the changes of a subject as events, and the number of the last of all."""
    told = b"".join(encoded(change) for change in changes if subject in ("any", change.Subject))
    return (changes[-1].Number if changes else last), told


@contextmanager
def ended_by_signals(follower: Follower) -> Iterator[None]:
    """End the follower when uvicorn is told to stop: it waits for its connections, and streams have no end.

    It would wait for ever for a client that does not read what it asked for: after UNREAD_S we tell it a second time.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not follower.ended:
            loop.call_soon_threadsafe(loop.call_later, UNREAD_S, os.kill, os.getpid(), signal.SIGINT)
        follower.end()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    try:
        for number in before:
            signal.signal(number, on_signal)
    except ValueError:  # not in the main thread: whoever runs us there stops us otherwise
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

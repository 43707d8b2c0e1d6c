"""Who waits for changes is woken here: one look at the database for all of a process's listeners."""

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

from db import Database
from models import Change
from storage.engine import DatabaseUnavailable

POLL_S = 0.5  # what other server processes stored is seen so late
AT_ONCE = 100
UNREAD_S = 20.0  # of a stop, that clients have to read what they asked for
STREAM_S = 600.0  # then whoever reads has to ask again, and to show a key that is still valid


class Follower:
    """Knows the number of the last change, and wakes those that wait for the next; looks only while somebody waits."""

    def __init__(self, database: Database) -> None:
        self.ended = False
        self._database = database
        self._last = 0
        self._waiting = 0
        self._look = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Look for changes, until the end."""
        while not self.ended:
            if self._waiting:
                await self._look_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._look.wait()
            self._look.clear()
        await self._wake()

    async def _look_once(self) -> None:
        with contextlib.suppress(DatabaseUnavailable):
            last = await self._database.last_change()
            if last > self._last:
                self._last = last
                await self._wake()

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    def stored(self) -> None:
        """Something was stored by this process: look now."""
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

    async def changes(self, since: int) -> AsyncIterator[Change]:
        """Every change behind `since`, those to come included, until the end or for STREAM_S.

        Raises DatabaseUnavailable.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + STREAM_S
        while not self.ended and loop.time() < ends_at:
            changes = await self._database.changes(since=since, limit=AT_ONCE)
            for change in changes:
                since = change.Number
                yield change
            if not changes:
                await self.beyond(since, ends_at - loop.time())


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

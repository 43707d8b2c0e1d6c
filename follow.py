"""Who waits for changes is woken here: one look at the database for all of a process's listeners."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

from db import Database
from engine import DatabaseUnavailable
from models import Change

POLL_S = 0.5  # what other server processes stored is seen so late
AT_ONCE = 100


class Follower:
    """Knows the number of the last change, and wakes those that wait for the next."""

    def __init__(self, database: Database) -> None:
        self.ended = False
        self._database = database
        self._last = 0
        self._stored = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Look for changes, until the end."""
        while not self.ended:
            with contextlib.suppress(DatabaseUnavailable):
                last = await self._database.last_change()
                if last > self._last:
                    self._last = last
                    await self._wake()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._stored.wait()
            self._stored.clear()
        await self._wake()

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    def stored(self) -> None:
        """Something was stored by this process: look now."""
        self._stored.set()

    def end(self) -> None:
        """Let every listener go: the process is about to stop."""
        self.ended = True
        self._stored.set()

    async def beyond(self, number: int, timeout_s: float | None = None) -> None:
        """Wait until there is a change with a higher number, until the end, or at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self._last > number or self.ended)

    async def changes(self, since: int) -> AsyncIterator[Change]:
        """Every change behind `since`, those to come included, until the end. Raises DatabaseUnavailable."""
        while not self.ended:
            changes = await self._database.changes(since=since, limit=AT_ONCE)
            for change in changes:
                since = change.Number
                yield change
            if not changes:
                await self.beyond(since)


@contextmanager
def ended_by_signals(follower: Follower) -> Iterator[None]:
    """End the follower when uvicorn is told to stop: it waits for its connections, and streams have no end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, frame: FrameType | None) -> None:
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

"""How transactions are run: each as a whole, on PostgreSQL in a greenlet, on SQLite in a thread.

What a transaction does is a coroutine function of a `Connection`. It awaits nothing but that, which never suspends: so
the event loop is entered once a transaction (SQLite), or once a round trip (PostgreSQL), and not for each call of a
driver.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import CursorResult, Dialect, Executable
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

WAIT_S = 30.0  # how long a transaction waits for a connection to SQLite

T = TypeVar("T")
P = ParamSpec("P")


class Connection:
    """The connection of one transaction."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Execute a statement, once for each of several parameters."""
        return self._connection.execute(statement, parameters)

    async def execute_plain(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute a statement in the driver's own words, once for each row."""
        self._connection.exec_driver_sql(statement, list(rows))

    async def run_sync(
        self, do: Callable[Concatenate[sqlalchemy.Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Let a function use SQLAlchemy's connection, as Alembic does."""
        return do(self._connection, *arguments, **named)


Do = Callable[[Connection], Coroutine[Any, Any, T]]


def _run(engine: sqlalchemy.Engine, do: Do[T]) -> T:
    """Run one transaction: committed at its end, rolled back if it raises."""
    with engine.begin() as connection:
        work = do(Connection(connection))
        try:
            work.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        work.close()
        raise RuntimeError("a transaction awaits something else than its connection")


class Greenlets:
    """Runs the transactions of an asynchronous engine, each in a greenlet of the event loop's thread."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def run(self, do: Do[T]) -> T:
        return await greenlet_spawn(_run, self.engine.sync_engine, do)

    async def close(self) -> None:
        await self.engine.dispose()


class Threads:
    """Runs the transactions of a synchronous engine in as many threads as its pool has connections."""

    def __init__(self, engine: sqlalchemy.Engine, size: int) -> None:
        self.engine = engine
        self._free = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sqlite")

    async def run(self, do: Do[T]) -> T:
        """Run a transaction; once it has begun, also to its end if nobody waits for that any more.

        Raises TimeoutError if it did not begin within WAIT_S.
        """
        async with asyncio.timeout(WAIT_S):
            await self._free.acquire()
        try:
            run = copy_context().run
            return await asyncio.get_running_loop().run_in_executor(self._threads, run, _run, self.engine, do)
        finally:
            self._free.release()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self.engine.dispose()

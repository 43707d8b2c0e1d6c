"""How transactions are run: each as a whole, in a greenlet of the event loop's thread.

What a transaction does is a coroutine function of a `Connection`. It awaits nothing but that, which never suspends the
coroutine: the driver's calls suspend the greenlet, and no chain of coroutines is entered anew for each of them.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import CursorResult, Dialect, Executable
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

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


async def run(engine: AsyncEngine, do: Do[T]) -> T:
    """Run one transaction of an engine: committed at its end, rolled back if it raises or is cancelled.

    One cancellation reaches it, and its rollback is waited for: the next, while a connection is given back or closed,
    would leave that open, or aiosqlite waiting for a thread that has ended.
    """
    transaction: asyncio.Task[T] = asyncio.create_task(greenlet_spawn(_run, engine.sync_engine, do))
    cancelled: asyncio.CancelledError | None = None
    while not transaction.done():
        try:
            await asyncio.wait((transaction,))
        except asyncio.CancelledError as error:
            if not transaction.cancelling():
                transaction.cancel()
            cancelled = error
    if cancelled is not None:
        if not transaction.cancelled():
            transaction.exception()  # which nobody waits for
        raise cancelled
    return transaction.result()


def _run(engine: sqlalchemy.Engine, do: Do[T]) -> T:
    with engine.begin() as connection:
        work = do(Connection(connection))
        try:
            work.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        work.close()
        raise RuntimeError("a transaction awaits something else than its connection")

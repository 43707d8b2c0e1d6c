"""When a transaction is tried again, what its errors become, and what is counted of them."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from common import metrics
from common.settings import ServerSettings
from storage import connection, engine
from storage.connection import Connection
from storage.engine import FIRST_BACKOFF_S, TRIES, DatabaseUnavailable, Engine
from tests.rig.migrating import upgrade

A_NAME = "Test^One"


class Driver(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(A_NAME)
        self.sqlstate = sqlstate


def of_driver(code: str | None, *, broken: bool = False) -> exc.DBAPIError:
    return exc.DBAPIError(f"INSERT {A_NAME}", {}, Driver(code), connection_invalidated=broken)


AGAIN = [
    (of_driver("40001"), "DBAPIError 40001"),
    (of_driver("40P01"), "DBAPIError 40P01"),
    (of_driver(None, broken=True), "DBAPIError"),
    (asyncpg.InterfaceError(A_NAME), "InterfaceError"),
]
UNAVAILABLE = [
    (of_driver("53100"), "DBAPIError 53100"),
    (of_driver(None), "DBAPIError"),
    (exc.TimeoutError(A_NAME), "TimeoutError"),
    (OSError(A_NAME), "OSError"),
    (TimeoutError(A_NAME), "TimeoutError"),
]


class Database:
    """An engine whose transactions fail as they are told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures: Iterator[Exception] = iter(failures)
        self.times: list[float] = []
        self.engine = Engine(self, self)  # type: ignore[arg-type]

    @property
    def sync_engine(self) -> "Database":
        return self

    @contextmanager
    def begin(self) -> Iterator[None]:
        self.times.append(asyncio.get_running_loop().time())
        yield

    async def do(self, _: Connection) -> int:
        if (failure := next(self.failures, None)) is not None:
            raise failure
        return len(self.times)


def counted() -> tuple[float, float]:
    return metrics.total(metrics.database_retries), metrics.total(metrics.database_failures)


@pytest.mark.virtual_time
@pytest.mark.parametrize(("error", "_reason"), AGAIN)
async def test_what_is_given_up_for_anothers_sake_is_tried_again(error: Exception, _reason: str) -> None:
    database, (retries, failures) = Database(error, error), counted()
    assert await database.engine.write(database.do) == 3
    assert counted() == (retries + 2, failures)


@pytest.mark.virtual_time
@pytest.mark.parametrize(("error", "reason"), AGAIN)
async def test_it_is_tried_a_bounded_number_of_times_within_a_bounded_time(error: Exception, reason: str) -> None:
    database, (retries, failures) = Database(*[error] * 99), counted()
    with pytest.raises(DatabaseUnavailable) as raised:
        await database.engine.write(database.do)
    assert str(raised.value) == f"{reason}, {TRIES} times"
    assert len(database.times) == TRIES
    assert counted() == (retries + TRIES, failures + 1)
    for n, (before, after) in enumerate(zip(database.times, database.times[1:], strict=False)):
        assert 0 <= after - before <= FIRST_BACKOFF_S * 2**n
    assert database.times[-1] > database.times[0]


@pytest.mark.virtual_time
@pytest.mark.parametrize(("error", "reason"), UNAVAILABLE)
async def test_any_other_failure_is_said_at_once_without_its_text(error: Exception, reason: str) -> None:
    database, (retries, failures) = Database(error), counted()
    with pytest.raises(DatabaseUnavailable) as raised:
        await database.engine.write(database.do)
    assert str(raised.value) == reason
    assert len(database.times) == 1
    assert counted() == (retries, failures + 1)


@pytest.mark.virtual_time
async def test_a_fault_of_ours_is_none_of_the_databases() -> None:
    database, before = Database(KeyError(A_NAME)), counted()
    with pytest.raises(KeyError):
        await database.engine.write(database.do)
    assert counted() == before


async def test_a_transaction_that_awaits_something_else_is_said_and_undone(tmp_path: Path) -> None:
    async def wait(connection: Connection) -> None:
        await connection.execute(text("CREATE TABLE one (id INTEGER)"))
        await asyncio.sleep(0)

    async def tables(connection: Connection) -> list[str]:
        return list((await connection.execute(text("SELECT name FROM sqlite_master"))).scalars())

    writer = engine._sqlite(make_url(f"sqlite+aiosqlite:///{tmp_path}/series.db"), writes=True)
    try:
        with pytest.raises(RuntimeError, match="something else"):
            await connection.run(writer, wait)
        assert await connection.run(writer, tables) == []
    finally:
        await writer.dispose()


async def test_sqlite_s_write_ahead_log_gives_back_what_a_large_transaction_took(tmp_path: Path) -> None:
    async def write(connection: Connection) -> None:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS one (content BLOB)"))
        await connection.execute(text("INSERT INTO one VALUES (zeroblob(:size))"), {"size": sizes.pop()})

    sizes, log = [1, engine.WAL_BYTES + 2**20], tmp_path / "series.db-wal"
    writer = engine._sqlite(make_url(f"sqlite+aiosqlite:///{tmp_path}/series.db"), writes=True)
    try:
        await connection.run(writer, write)
        assert log.stat().st_size > engine.WAL_BYTES
        await connection.run(writer, write)
        assert log.stat().st_size <= engine.WAL_BYTES
    finally:
        await writer.dispose()


@pytest.mark.parametrize("moment", ["connect", "begin", "before_cursor_execute", "commit", "rollback"])
async def test_who_is_cancelled_again_and_again_leaves_no_connection_open_and_no_task(
    moment: str, tmp_path: Path
) -> None:
    """As anyio cancels what a client that is gone had asked for: at each turn of the loop, until it has ended."""

    async def write(connection: Connection) -> None:
        await connection.execute(text("CREATE TABLE one (id INTEGER)"))
        if moment == "rollback":
            raise KeyError(A_NAME)

    async def tables(connection: Connection) -> list[str]:
        return list((await connection.execute(text("SELECT name FROM sqlite_master"))).scalars())

    def cancel(*_: Any, **__: Any) -> None:
        if not asked.done():
            asked.cancel()
            loop.call_soon(cancel)

    loop, threads = asyncio.get_running_loop(), threading.enumerate()
    writer = engine._sqlite(make_url(f"sqlite+aiosqlite:///{tmp_path}/series.db"), writes=True)
    event.listen(writer.sync_engine, moment, cancel)
    asked = asyncio.ensure_future(connection.run(writer, write))
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await connection.run(writer, tables) in ([], ["one"])
    await writer.dispose()
    for thread in set(threading.enumerate()) - set(threads):
        await asyncio.to_thread(thread.join, 10)
        assert thread.name.startswith("asyncio_") or not thread.is_alive()


@pytest.mark.parametrize("ends", ["cancelled", "all the same", "wrong"])
async def test_a_transaction_is_told_that_it_is_cancelled_and_who_waited_learns_no_more(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    begun, ended = asyncio.Event(), []

    async def work(*_: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(ends)
            if ends == "wrong":
                raise KeyError(A_NAME) from None
            if ends == "cancelled":
                raise

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    monkeypatch.setattr(connection, "greenlet_spawn", work)
    asked = asyncio.ensure_future(connection.run(cast(Any, SimpleNamespace(sync_engine=None)), cast(Any, None)))
    await begun.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert ended == [ends]
    del asked
    await asyncio.sleep(0)
    gc.collect()  # which complains of a failure that nobody has looked at
    assert complaints == []


async def test_a_schema_of_an_earlier_version_is_said_before_it_is_brought_up_to_date(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    head = engine.revisions()[-1]
    await upgrade(url, "0018")
    for told in ([("database.migrating", "0018", head), ("database.migrated", None, head)], []):
        with capture_logs() as logs:
            async with Engine.open(ServerSettings(database_url=url)):
                pass
        assert [(log["event"], log.get("before"), log["to"]) for log in logs if "migrat" in log["event"]] == told


async def test_what_runs_when_a_database_is_closed_is_waited_for_and_nothing_begins_any_more() -> None:
    database, may_end, begun = Database(), asyncio.Event(), asyncio.Event()

    async def slow(_: object, do: Any) -> Any:
        begun.set()
        await may_end.wait()
        return await do(None)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "run", slow)
        nobody_waits = asyncio.create_task(database.engine.write(database.do))
        await begun.wait()
        closing = asyncio.create_task(database.engine.close())
        await asyncio.sleep(0)
        with pytest.raises(DatabaseUnavailable, match="being closed"):
            await database.engine.write(database.do)
        assert not closing.done()
        may_end.set()
        await closing
        assert nobody_waits.done()
    await database.engine.close()


async def test_postgresql_s_pool_is_as_it_is_set_and_waits_no_longer_than_a_transaction_may() -> None:
    url = make_url("postgresql+asyncpg://user@127.0.0.1:1/series")
    pool: Any = engine._postgresql(url, ServerSettings(database_pool_size=3, database_timeout_s=7)).sync_engine.pool
    assert (pool.size(), pool._max_overflow, pool._timeout) == (3, 0, 7)

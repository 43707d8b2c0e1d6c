"""Moves a SQLite database to PostgreSQL: every row, compared afterwards; goes on where it was broken off."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Table, func, select, text, tuple_

from storage.connection import Connection
from storage.engine import DatabaseUnusable, Engine, insert
from storage.schema import changes, counters, metadata, orders, timeline, webhooks

AT_ONCE = 2000
MARK = "move"  # in `counters` of the target while it is being filled
TABLES = [table for table in metadata.sorted_tables if table is not counters] + [counters]
WITH_SEQUENCE = (timeline, changes, webhooks, orders)

Progress = Callable[[int], None]


async def rows_of(engine: Engine) -> int:
    """Count the rows that there are to move."""
    return sum([await _count(engine, table) for table in TABLES])


async def move(source: Engine, target: Engine, moved: Progress, compared: Progress) -> None:
    """Copy every row of `source` to `target`, then compare them all. Raises DatabaseUnusable."""
    await _mark(target)
    for table in TABLES:
        await _copy(source, target, table, moved)
    for table in TABLES:
        await _compare(source, target, table, compared)
    await target.write(_finish)


async def _mark(target: Engine) -> None:
    """Claim an empty database; one that a move was broken off in is ours already."""
    mark = (counters.c.Name == MARK) & (counters.c.Value == 0)
    if await target.read(select(counters.c.Name).where(mark)):
        return
    if await rows_of(target):
        raise DatabaseUnusable("the database to move to holds rows already: name an empty one")
    await target.write(lambda connection: insert(connection, counters, {"Name": MARK, "Value": 0}))


async def _copy(source: Engine, target: Engine, table: Table, moved: Progress) -> None:
    """Go on behind the last row that is there: rows go in the order of their primary key, a batch a transaction."""
    primary_key = list(table.primary_key)
    last = await target.read(select(*primary_key).order_by(*(column.desc() for column in primary_key)).limit(1))
    after = tuple(last[0].values()) if last and table is not counters else None
    moved(await _count(target, table) if after else 0)
    while rows := await _batch(source, table, after):
        await _insert(target, table, rows)
        after = tuple(rows[-1][column.name] for column in primary_key)
        moved(len(rows))


async def _insert(target: Engine, table: Table, rows: list[dict[str, Any]]) -> None:
    await target.write(lambda connection: insert(connection, table, rows))


async def _compare(source: Engine, target: Engine, table: Table, compared: Progress) -> None:
    primary_key = list(table.primary_key)
    after: tuple[Any, ...] | None = None
    while rows := await _batch(source, table, after):
        there = await _batch(target, table, after)
        if rows != there:
            raise DatabaseUnusable(f"table {table.name} differs: something else wrote to it. Begin with an empty one")
        after = tuple(rows[-1][column.name] for column in primary_key)
        compared(len(rows))
    if await _batch(target, table, after):
        raise DatabaseUnusable(f"table {table.name} holds more: something else wrote to it. Begin with an empty one")


async def _batch(engine: Engine, table: Table, after: tuple[Any, ...] | None) -> list[dict[str, Any]]:
    primary_key = list(table.primary_key)
    query = select(table).order_by(*primary_key).limit(AT_ONCE)
    if table is counters:
        query = query.where(counters.c.Name != MARK)
    return await engine.read(query if after is None else query.where(tuple_(*primary_key) > after))


async def _count(engine: Engine, table: Table) -> int:
    return int((await engine.read(select(func.count().label("n")).select_from(table)))[0]["n"])


async def _finish(connection: Connection) -> None:
    """Let the sequences go on behind what was copied, and remove the mark."""
    for table in WITH_SEQUENCE:
        highest = (await connection.execute(select(func.max(table.c.Id)))).scalar_one()
        if highest and connection.dialect.name == "postgresql":
            sequence = text("SELECT setval(pg_get_serial_sequence(:table, 'Id'), :highest)")
            await connection.execute(sequence, {"table": table.name, "highest": highest})
    await connection.execute(counters.delete().where(counters.c.Name == MARK))

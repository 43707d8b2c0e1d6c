"""A transaction that a test holds open while others want the same rows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from db import Database


def is_on_sqlite(database: Database) -> bool:
    """Tell whether a database is a SQLite file."""
    return database.engine.writer.dialect.name == "sqlite"


@asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[Any]:
    """Open a transaction until the block ends, on SQLAlchemy's connection, which is awaited as storage's is."""
    async with database.engine.writer.begin() as connection:
        yield connection

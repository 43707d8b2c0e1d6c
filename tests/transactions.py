"""A transaction that a test holds open while others want the same rows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from db import Database
from storage.connection import Connection


def is_on_sqlite(database: Database) -> bool:
    return database._engine._writer.engine.dialect.name == "sqlite"


@asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[Any]:
    """A connection in a transaction, which ends where the block does: of ours, or SQLAlchemy's, which awaits alike."""
    engine = database._engine._writer.engine
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            yield connection
    else:
        with engine.begin() as own:
            yield Connection(own)

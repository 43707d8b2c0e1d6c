"""A database as an earlier version left it."""

from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

MIGRATIONS = Path(__file__).parents[2] / "storage" / "migrations"


async def downgrade(url: str, version: str) -> None:
    """Take a database back to the schema of a version."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    def take_back(connection: Connection) -> None:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, version)

    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(take_back)
    await engine.dispose()

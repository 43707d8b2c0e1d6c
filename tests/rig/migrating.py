"""A database as an earlier version left it."""

from collections.abc import Callable
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

MIGRATIONS = Path(__file__).parents[2] / "storage" / "migrations"


async def downgrade(url: str, version: str) -> None:
    """Take a database back to the schema of a version."""
    await _done(url, alembic.command.downgrade, version)


async def upgrade(url: str, version: str) -> None:
    """Bring an empty database to the schema of a version."""
    await _done(url, alembic.command.upgrade, version)


async def _done(url: str, command: Callable[[alembic.config.Config, str], None], version: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    def do(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command(config, version)

    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(do)
    await engine.dispose()

"""What `python server.py check` asks of a database: it is read as it is, and no schema is brought up to date."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import Executable, exc, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from common.at_rest import read_only
from common.errors import SeriesGatewayError
from common.settings import ServerSettings
from storage.engine import PROMISES, revision, revisions
from storage.keys import Key, key_of
from storage.schema import api_keys, changes, conflicts, gateways, webhooks
from storage.webhooks import select_all

USED = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
ENCRYPTED = "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"


class CannotInspect(SeriesGatewayError):
    """The database cannot be opened or read. The text is the driver's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(getattr(error, "orig", None) or str(error) or type(error).__name__))
        self.kind = type(error).__name__


@dataclass
class Inspection:
    """A connection that only reads. Everything raises CannotInspect."""

    _connection: AsyncConnection

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ServerSettings) -> AsyncIterator["Inspection"]:
        """Open the database as it is."""
        url, arguments = make_url(settings.database_url), {"timeout": settings.database_timeout_s}
        if file := settings.sqlite_path:
            opened, _, query = read_only(file).partition("?")
            url = url.set(database=opened, query=dict(parse_qsl(query)) | {"uri": "true"})
        else:
            arguments["command_timeout"] = settings.database_timeout_s
        engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
        try:
            async with engine.connect() as connection:
                yield cls(connection)
        except (exc.DBAPIError, OSError, TimeoutError) as error:
            raise CannotInspect(error) from error
        finally:
            await engine.dispose()

    # --- what it holds ---

    async def schemas(self) -> tuple[str | None, list[str]]:
        """Return the database's schema (None: none yet), and those that this version knows, the oldest first."""
        return await self._connection.run_sync(revision), revisions()

    async def keys(self) -> list[Key]:
        """Return every key that was ever made."""
        return [key_of(row) for row in await self._rows(select(api_keys))]

    async def webhooks(self) -> list[dict[str, Any]]:
        """Return each webhook, and how many changes it does not know, those without a number included."""
        unnumbered = select(func.count()).where(changes.c.Number.is_(None)).scalar_subquery()
        last = select(func.coalesce(func.max(changes.c.Number), 0)).scalar_subquery()
        return await self._rows(select_all().add_columns((last + unnumbered - webhooks.c.Position).label("Behind")))

    async def open_conflicts(self) -> int:
        """Count the open conflicts."""
        waiting = select(func.count()).select_from(conflicts).where(conflicts.c.Resolution.is_(None))
        return int((await self._connection.execute(waiting)).scalar_one())

    async def gateways(self) -> list[dict[str, Any]]:
        """Return what each gateway said last, and when, in order of GatewayID."""
        return await self._rows(select(gateways).order_by(gateways.c.GatewayID))

    # --- of PostgreSQL ---

    async def version(self) -> int:
        """Return PostgreSQL's version as a number: 150004 is 15.4."""
        return int(await self._one("SHOW server_version_num"))

    async def promises(self) -> dict[str, str]:
        """Return the settings that decide what is left after a power cut, as this user's sessions have them."""
        return {name: str(await self._one(f"SHOW {name}")) for name in PROMISES}

    async def connections(self) -> tuple[int, int]:
        """Return how many connections there may be, and how many there are."""
        return int(await self._one("SHOW max_connections")), int(await self._one(USED))

    async def round_trip_s(self) -> float:
        """Measure how long it takes to ask for nothing."""
        began = time.perf_counter()
        await self._one("SELECT 1")
        return time.perf_counter() - began

    async def clock(self) -> datetime:
        """Return PostgreSQL's time."""
        now: datetime = await self._one("SELECT clock_timestamp()")
        return now

    async def is_encrypted(self) -> bool:
        """Return whether this connection is encrypted."""
        return bool(await self._one(ENCRYPTED))

    async def _rows(self, query: Executable) -> list[dict[str, Any]]:
        return [{**row} for row in (await self._connection.execute(query)).mappings()]

    async def _one(self, query: str) -> Any:
        return (await self._connection.execute(text(query))).scalar_one()

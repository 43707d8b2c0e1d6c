"""Which gateways are refused: this process heard it, and lets every server process know, by the database."""

import contextlib
import math
from datetime import UTC, datetime

from api.follower import Follower
from db import Database
from storage.engine import DatabaseUnavailable

WRITE_S = 5.0  # between two writes: strangers, who are refused too, choose how often they ask, not how often we write
MOST = 256  # names in one write, as many as the server knows gateways


class Refusals:
    """Heartbeats that this process did not let in, until they are written down."""

    def __init__(self, database: Database, follower: Follower) -> None:
        self._database = database
        self._follower = follower
        self._news: dict[str, tuple[datetime, str]] = {}

    def note(self, gateway_id: str, why: str) -> None:
        """Remember that a heartbeat under this name was not let in, whoever sent it."""
        if gateway_id in self._news or len(self._news) < MOST:
            self._news[gateway_id] = (datetime.now(UTC), why)

    async def run(self) -> None:
        """Write them down every WRITE_S, until the follower's end."""
        while not self._follower.ended:
            await self._follower.beyond(math.inf, WRITE_S)
            await self.write()

    async def write(self) -> None:
        """Write down what came since the last time; what cannot be written comes again."""
        news, self._news = self._news, {}
        if news:
            with contextlib.suppress(DatabaseUnavailable):
                await self._database.heartbeats.refuse(news)

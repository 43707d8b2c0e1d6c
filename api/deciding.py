"""Studies that are due are decided: any server process may, and none is in another's way."""

import math
from datetime import UTC, datetime, timedelta

from api.follower import Follower
from db import DUE_AT_ONCE, Database
from storage.engine import DatabaseUnavailable

LOOK_S = 1.0  # between two looks at what is due
LISTENS_FIRST = timedelta(seconds=25)  # gateways that were refused speak every 5 s, and wait 10 s for an answer


async def decide_due(database: Database, follower: Follower) -> None:
    """Decide about studies as they fall due, until the follower's end.

    What gateways said before the server started, its database was away or its clock was set forward may be out of
    date: all of them are heard first, or LISTENS_FIRST has passed.
    """
    since, has_listened = datetime.now(UTC), False
    while not follower.ended:
        decided = 0
        if (leapt_at := database.leaps.last()) is not None and leapt_at > since:
            since, has_listened = leapt_at, False
        try:
            has_listened = has_listened or await _has_listened(database, since)
            if has_listened:
                decided = await database.decide_due()
        except DatabaseUnavailable:  # they stay due
            since, has_listened = datetime.now(UTC), False
        if decided:
            follower.stored()
        if decided < DUE_AT_ONCE:
            await follower.beyond(math.inf, LOOK_S)


async def _has_listened(database: Database, since: datetime) -> bool:
    return datetime.now(UTC) - since > LISTENS_FIRST or await database.heartbeats.have_spoken(since)

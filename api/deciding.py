"""Studies that are due are decided: any server process may, and none is in another's way."""

import contextlib
import math

from api.follower import Follower
from db import DUE_AT_ONCE, Database
from storage.engine import DatabaseUnavailable

LOOK_S = 1.0  # between two looks at what is due


async def decide_due(database: Database, follower: Follower) -> None:
    """Decide about studies as they fall due, until the follower's end."""
    while not follower.ended:
        decided = 0
        with contextlib.suppress(DatabaseUnavailable):  # they stay due
            decided = await database.decide_due()
        if decided:
            follower.stored()
        if decided < DUE_AT_ONCE:
            await follower.beyond(math.inf, LOOK_S)

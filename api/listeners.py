"""Clients that vanish are let go: uvicorn waits for ever for the rest of a request, and writes to the dead."""

import asyncio
import math

from api.follower import Follower
from common.connections import notice_dead_clients

STARTING_S = 10.0  # how long uvicorn takes at most to open its listener, once the application has started
LOOK_S = 0.2


async def notice_the_dead(follower: Follower) -> None:
    """Look for listeners as long as the server starts, or until the follower's end."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + STARTING_S
    while not follower.ended and loop.time() < ends_at:
        notice_dead_clients()
        await follower.beyond(math.inf, LOOK_S)

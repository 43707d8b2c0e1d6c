"""The wall clock beside the event loop's: what is told to others is UTC, what is waited for is loop time."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from common.outgoing import RETRY_AFTER_MAX_S

CLOCK_S = 1.0  # so long the wall clock is taken to run with the loop's


def wall_clock(monotonic: Callable[[], float]) -> Callable[[float], datetime]:
    """Tells the UTC time of a point of loop time. The same within CLOCK_S: so what was in order stays in order."""
    looked_at, there = -math.inf, datetime.now(UTC)

    def at(point: float) -> datetime:
        nonlocal looked_at, there
        if (now := monotonic()) >= looked_at + CLOCK_S:
            looked_at, there = now, datetime.now(UTC)
        return there + timedelta(seconds=point - looked_at)

    return at


def from_wall_clock(at: float) -> float:
    """Seconds from now until `at` (since 1970), never more than was ever asked for: the clock may have been set."""
    return min(max(at - time.time(), 0.0), RETRY_AFTER_MAX_S)

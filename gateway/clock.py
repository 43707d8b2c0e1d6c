"""Relate the wall clock to the event loop's clock: times that are reported are UTC, waits are in loop time."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from common.outgoing import RETRY_AFTER_MAX_S

RECALIBRATE_S = 1.0  # how often the offset between loop time and wall-clock time is refreshed
SET_BACK = timedelta(minutes=1)  # what lies further ahead of a later time than this was told by a clock since set back
PAUSED_S = 0.1  # if a wait ends this late, the process was stopped, or its machine was paused
SETTLE_S = 0.5  # time after a pause in which senders continue, and no series is taken for idle


def wall_clock(monotonic: Callable[[], float]) -> Callable[[float], datetime]:
    """Return a function that converts loop time to UTC.

    The offset stays the same for RECALIBRATE_S, so that times close to each other keep their order.
    """
    looked_at, there = -math.inf, datetime.now(UTC)

    def at(point: float) -> datetime:
        nonlocal looked_at, there
        if (now := monotonic()) >= looked_at + RECALIBRATE_S:
            looked_at, there = now, datetime.now(UTC)
        return there + timedelta(seconds=point - looked_at)

    return at


def from_wall_clock(at: float) -> float:
    """Return the seconds from now until `at` (since 1970). They are bounded, since the clock may have been set."""
    return min(max(at - time.time(), 0.0), RETRY_AFTER_MAX_S)


def later(before: datetime, since: datetime) -> datetime:
    """Return the later of two times, of which `since` was read after the other. If the clock was set back, that is it.

    So a time that a wrong clock has told lasts only until the next one.
    """
    return since if before - since > SET_BACK else max(before, since)


class Onward:
    """Reads the wall clock, and never goes back by less than SET_BACK: then it waits until the clock has caught up.

    Who compares two readings would take the second one for the earlier.
    """

    def __init__(self) -> None:
        self._last = datetime.now(UTC)

    def now(self) -> datetime:
        """Return the time. No reading is the same as the one before."""
        now = datetime.now(UTC)
        waits = timedelta() <= self._last - now <= SET_BACK
        self._last = self._last + timedelta(microseconds=1) if waits else now
        return self._last


class Pauses:
    """Notices that the process or its machine was paused. Then senders may continue before any series is due."""

    def __init__(self) -> None:
        self._waits_until = math.inf
        self._over_at: float | None = None

    def deadline(self, due_at: float | None, now: float) -> float | None:
        """Return until when to wait for what is due; None if nothing is."""
        if due_at is not None and self._over_at is not None:
            due_at = max(due_at, self._over_at)
        self._waits_until = math.inf if due_at is None or due_at < now else due_at
        return due_at

    def woke(self, now: float) -> None:
        """Note when the wait ended. If that is long after its deadline, there was a pause."""
        if self._over_at is None and now > self._waits_until + PAUSED_S:
            self._over_at = now + SETTLE_S

    def over(self, now: float) -> bool:
        """Tell if no pause is being made up for, so that due series may be handled."""
        if self._over_at is not None and now < self._over_at:
            return False
        self._over_at = None
        return True

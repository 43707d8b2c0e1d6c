"""When the server's clock was set forward: what came before it seems long ago, so silences count from then.

A server process sees it by its monotonic clock. What was set while none ran shows in the first heartbeats: the clock of
a gateway is further from the server's than it was, or less.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from time import monotonic

LEAP = timedelta(seconds=20)  # heartbeats are on their way for up to 10 s
SEEN_WITHIN = timedelta(minutes=1)  # all gateways that run have spoken so soon after the start


class Leaps:
    """What one process knows of its wall clock."""

    def __init__(self) -> None:
        self._since, self._offset_s = _now()
        self._leapt_at: datetime | None = None

    def last(self) -> datetime | None:
        """Return when the clock was set forward last, by the time that it was set to; None: never since the start."""
        now, offset_s = _now()
        if offset_s - self._offset_s > LEAP.total_seconds():
            self._since = self._leapt_at = now
        self._offset_s = offset_s
        return self._leapt_at

    def last_by(self, set_at: Collection[datetime]) -> datetime | None:
        """Return the same, also by when gateways' clocks and this one were set: what they saw at the start was before.

        What one sees later, when this process sees for itself, is of its own clock.
        """
        since = self.since()
        at_the_start = [at for at in set_at if since <= at <= since + SEEN_WITHIN]
        return max([*at_the_start, *([self._leapt_at] if self._leapt_at else [])], default=None)

    def since(self) -> datetime:
        """Return since when this process has run by this clock."""
        self.last()
        return self._since


def _now() -> tuple[datetime, float]:
    now = datetime.now(UTC)
    return now, now.timestamp() - monotonic()


def were_set(behind_s: float, before_s: float | None) -> bool:
    """Return whether one of two clocks was set, by how far one was behind the other, and was before."""
    return abs(behind_s - (before_s or 0.0)) > LEAP.total_seconds()

"""When a source usually sends, by hour of the week, and how much of that has passed without an image. Pure.

Hours are counted since 1970, in UTC. The same hour of the week before is 168 hours earlier, so no time zone is asked
for; where clocks change, a source's rhythm is an hour off for as many weeks as are looked at.
"""

from collections.abc import Container
from datetime import UTC, datetime

WEEK = 168  # hours
WEEKS = 4  # weeks that a rhythm rests on
KNOWN_WEEKS = 2  # the fewest weeks that make a rhythm
USUAL = 0.75  # share of the weeks known in which a source has sent in a usual hour
UNUSUAL = 3  # hours missed, from which on a silence is unusual
KEPT_HOURS = (WEEKS + 1) * WEEK
"""How far back hours are looked at: of a week ago, four weeks."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def hour_of(at: datetime) -> int:
    """Return which hour that is."""
    return (at - EPOCH).days * 24 + (at - EPOCH).seconds // 3600


def missed_hours(sent: Container[int], first: int, last: int, now: int) -> int:
    """Count the usual hours of a source that passed whole since its last image, within a week before the hour `now`.

    `sent`: the hours in which it sent, KEPT_HOURS back; `first` and `last`: of its first image and its last.
    """
    return sum(_is_usual(hour, sent, first) for hour in range(max(last + 1, now - WEEK), now))


def _is_usual(hour: int, sent: Container[int], first: int) -> bool:
    """Return whether a source sent in this hour of most weeks before."""
    known = [before for week in range(1, WEEKS + 1) if (before := hour - week * WEEK) >= first]
    return len(known) >= KNOWN_WEEKS and sum(before in sent for before in known) >= USUAL * len(known)

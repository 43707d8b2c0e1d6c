"""When a server decides about studies that are due: not before it has listened to what gateways say now."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from api.deciding import LISTENS_FIRST, decide_due
from storage.engine import DatabaseUnavailable


class Seconds:
    """A follower that ends after so many looks, each a second after the other."""

    def __init__(self, clock: Any, looks: int) -> None:
        self._clock = clock
        self.left = looks

    @property
    def ended(self) -> bool:
        return self.left <= 0

    async def beyond(self, *_: float) -> None:
        self.left -= 1
        self._clock.shift(timedelta(seconds=1))

    def stored(self) -> None:
        pass


class Database:
    """A database of which the seconds are written down at which it was asked to decide."""

    def __init__(self, speaks_at: float, away: tuple[float, float] = (-1, -1), leaps_at: float = 99) -> None:
        self.heartbeats = self.leaps = self
        self._leaps_at = leaps_at
        self.began = datetime.now(UTC)
        self.decided: list[float] = []
        self._speaks_at, self._away = speaks_at, away

    def _at(self) -> float:
        at = (datetime.now(UTC) - self.began).total_seconds()
        if self._away[0] <= at < self._away[1]:
            raise DatabaseUnavailable("away")
        return at

    def last(self) -> datetime | None:
        leapt_at = self.began + timedelta(seconds=self._leaps_at)
        return leapt_at if datetime.now(UTC) >= leapt_at else None

    async def have_spoken(self, since: datetime) -> bool:
        return self._at() >= (since - self.began).total_seconds() + self._speaks_at

    async def decide_due(self) -> int:
        self.decided.append(self._at())
        return 0


@pytest.mark.parametrize(
    ("database", "decided"),
    [
        ({"speaks_at": 0}, [*range(40)]),
        ({"speaks_at": 5}, [*range(5, 40)]),
        ({"speaks_at": 99}, [*range(int(LISTENS_FIRST.total_seconds()) + 1, 40)]),
        ({"speaks_at": 5, "away": (10, 20)}, [*range(5, 10), *range(24, 40)]),
        ({"speaks_at": 5, "leaps_at": 10}, [*range(5, 10), *range(15, 40)]),
    ],
)
async def test_nothing_is_decided_before_gateways_have_said_what_they_hold_now(
    database: dict[str, Any], decided: list[float]
) -> None:
    with time_machine.travel(datetime(2026, 6, 1, tzinfo=UTC), tick=False) as clock:
        asked: Any = Database(**database)
        follower: Any = Seconds(clock, 40)
        await decide_due(asked, follower)
    assert asked.decided == decided

"""A gateway's row: its heartbeat, its clock, refusals, its end."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from common.errors import SeriesGatewayError
from models import GatewayState
from storage.ahead import is_far
from storage.connection import Connection
from storage.engine import Engine, insert
from storage.leaps import SEEN_WITHIN, Leaps, were_set
from storage.schema import gateways

FORGOTTEN_AFTER = timedelta(days=1)  # how long a gateway that says nothing is remembered
MAX_GATEWAYS = 256  # known at once: those that spoke last
SPEAKS_WITHIN = timedelta(seconds=15)  # a gateway that runs; the live page calls it silent beyond
LATE_WITHIN = timedelta(minutes=1)
CLOCKS_AGREE = timedelta(seconds=5)  # how much of a difference is that of the way, and not of the clocks
CLOCK = select(gateways.c.BehindS, gateways.c.ClockSetAt).where(  # made once, as in revisions.py
    gateways.c.GatewayID == bindparam("name")
)
Refusals = Mapping[str, tuple[datetime, str]]
"""When a heartbeat under a gateway's name was not let in, and why."""


class Clock(NamedTuple):
    """A gateway's clock, beside the server's."""

    behind: timedelta = timedelta()
    """Below 0: it is ahead."""
    set_at: datetime | None = None
    """When one of the two was set last, by the server's."""


async def keep(connection: Connection, state: GatewayState, came_at: datetime, now: datetime) -> list[str]:
    """Keep a heartbeat in place of the one before, unless it is late; return the studies that it names no more.

    It came before `now`: it may have waited for the database.
    """
    known = select(gateways.c.State, gateways.c.BehindS).where(gateways.c.GatewayID == state.GatewayID)
    row = (await connection.execute(known)).one_or_none()
    before = (row and row.State) or {}
    if is_late(state, before):
        return []
    behind = behind_s(state, came_at)
    says = {"At": now, "State": state.model_dump(mode="json"), "BehindS": behind}
    says |= {"ClockSetAt": now} if row and were_set(behind, row.BehindS) else {}
    await insert(connection, gateways, {"GatewayID": state.GatewayID} | says, or_update=says)
    return sorted({*(before.get("OpenStudies") or ())} - {*(state.OpenStudies or ())})


def is_late(state: GatewayState, said: Mapping[str, Any]) -> bool:
    """Return whether a gateway has said something newer since its start: a heartbeat that waited was overtaken.

    Beyond LATE_WITHIN it is no heartbeat that is late, but the gateway's clock that was set back.
    """
    try:
        since, at = (datetime.fromisoformat(str(said[name])) for name in ("StartedAt", "At"))
        return since == state.StartedAt and timedelta() < at - state.At < LATE_WITHIN
    except (KeyError, ValueError, TypeError):  # of another version
        return False


def behind_s(state: GatewayState, now: datetime) -> float:
    """Return how far a gateway's clock is behind as it says this; below 0: ahead. 0 if that may be the way here."""
    behind = now - state.At
    return behind.total_seconds() if abs(behind) > CLOCKS_AGREE else 0.0


async def clock_of(connection: Connection, gateway_id: str | None) -> Clock:
    """Return a gateway's clock as it was when that was last heard of; the server's own if it never was."""
    row = (await connection.execute(CLOCK, {"name": gateway_id})).one_or_none() if gateway_id is not None else None
    return Clock(timedelta(seconds=row.BehindS or 0.0), row.ClockSetAt) if row else Clock()


async def forget_gone(connection: Connection, now: datetime, leaps: Leaps) -> None:
    """Forget the gateways that have said nothing for FORGOTTEN_AFTER, and beyond MAX_GATEWAYS those silent longest.

    None is silent for long if the server has just started, or its clock was set meanwhile. One that has spoken later
    than now, by a clock that was set back since, counts as heard now.
    """
    times = (
        await connection.execute(select(gateways.c.ClockSetAt).where(gateways.c.ClockSetAt.is_not(None)))
    ).scalars()
    set_at = leaps.last_by(list(times))
    if now - leaps.since() > SEEN_WITHIN and (set_at is None or now - set_at > FORGOTTEN_AFTER):
        await connection.execute(gateways.delete().where(gateways.c.At < now - FORGOTTEN_AFTER))
    await connection.execute(gateways.update().where(is_far(gateways.c.At, now, timedelta())).values(At=now))
    latest = select(gateways.c.GatewayID).order_by(gateways.c.At.desc(), gateways.c.GatewayID)
    await connection.execute(gateways.delete().where(gateways.c.GatewayID.in_(latest.offset(MAX_GATEWAYS))))


class StillHeard(SeriesGatewayError):
    """A gateway is not gone: it would be back with its next heartbeat."""


class Heartbeats:
    """The gateways of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def refuse(self, refusals: Refusals) -> None:
        """Write down whose heartbeats are not let in; a name that is no gateway's is left out."""

        async def write(connection: Connection) -> None:
            for gateway_id, (at, why) in sorted(refusals.items()):
                of_gateway = gateways.update().where(gateways.c.GatewayID == gateway_id)
                await connection.execute(of_gateway.values(RefusedAt=at, Refused=why))

        await self._engine.write(write)

    async def refused(self, since: datetime) -> dict[str, str]:
        """Return the gateways that any server process has refused since then, and not let in after, and why."""
        lately = (gateways.c.RefusedAt > since) & (gateways.c.RefusedAt > gateways.c.At)
        rows = await self._engine.read(select(gateways.c.GatewayID, gateways.c.Refused).where(lately))
        return {row["GatewayID"]: row["Refused"] for row in rows}

    async def have_spoken(self, since: datetime) -> bool:
        """Return whether all gateways that have not stopped were heard since then."""
        stopped = gateways.c.State["Stopped"].label("Stopped")
        return all(row["Stopped"] for row in await self._engine.read(select(stopped).where(gateways.c.At < since)))

    async def dismiss(self, gateway_id: str, now: datetime) -> bool:
        """Forget a gateway that is gone, until it says something; return whether it was known. Raises StillHeard."""
        found = False

        async def forget(connection: Connection) -> None:
            nonlocal found
            this = gateways.c.GatewayID == gateway_id
            row = (await connection.execute(select(gateways.c.At, gateways.c.State).where(this))).one_or_none()
            if row is None:  # or a try of ours whose answer was lost has done it
                return
            found = True
            if row.At > now - SPEAKS_WITHIN and not row.State.get("Stopped"):
                raise StillHeard(f"{gateway_id} is not gone: it was heard of within {SPEAKS_WITHIN.seconds} s")
            await connection.execute(gateways.delete().where(this, gateways.c.At == row.At))

        await self._engine.write(forget)
        return found

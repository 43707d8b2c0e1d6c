"""What gateways are to do: given with each answer to a heartbeat until that says it is done, a day at most."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, select

from common.errors import SeriesGatewayError
from models import MAX_ORDERS, GatewayState, Order, OrderKind, SeriesReport
from storage.ahead import APART, is_far
from storage.connection import Connection
from storage.engine import Engine
from storage.merge import Word
from storage.schema import gateways, orders

EXPIRE_AFTER = timedelta(days=1)
KEPT_FOR = timedelta(days=7)
MAX_WAITING = 1000  # orders that wait at one gateway
WITHDRAWN = "withdrawn: the series was then declared incomplete"
TAKEN_BACK = "done, and then taken back: the series was declared incomplete"
TAKEN_BACKS = (WITHDRAWN, TAKEN_BACK)

CLOSES = orders.c.Kind == "declare"

Row = Mapping[str, Any]


class TooManyOrders(SeriesGatewayError):
    """A gateway has not taken the orders that it was given."""


class Orders:
    """What the gateways of one database were ordered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def listed(self, gateway_id: str, limit: int) -> list[dict[str, Any]]:
        """Return the latest orders of one gateway, the latest first."""
        of_gateway = select(orders).where(orders.c.GatewayID == gateway_id)
        return await self._engine.read(of_gateway.order_by(orders.c.Id.desc()).limit(limit))


def state_of(order: Row, now: datetime) -> str:
    """Return what has become of an order: waiting, done, failed, expired."""
    if order["DoneAt"] is not None:
        return "failed" if order["Problem"] not in (None, TAKEN_BACK) else "done"
    return "waiting" if now - EXPIRE_AFTER < order["At"] <= now + APART else "expired"


def _waits(now: datetime) -> ColumnElement[bool]:
    """Hold of orders that are to be given. Nobody knows how old one is that lies ahead: it could close too much."""
    return and_(
        orders.c.DoneAt.is_(None), orders.c.At > now - EXPIRE_AFTER, not_(is_far(orders.c.At, now, timedelta()))
    )


async def give(  # noqa: PLR0913 - what an order is made of
    connection: Connection,
    gateway_id: str,
    kind: OrderKind,
    about: Mapping[str, Any],
    *,
    by: str,
    because: str | None,
    now: datetime,
    settles: bool = False,
) -> dict[str, Any] | None:
    """Order something of a gateway; return the order's row, None if too many wait there.

    `about`: the column and value that say which series or dead letter. The same, if it waits already, is that one.
    """
    mine = (orders.c.GatewayID == gateway_id) & _waits(now)
    same = and_(mine, orders.c.Kind == kind, *(orders.c[name] == value for name, value in about.items()))
    if (before := (await connection.execute(select(orders).where(same))).mappings().first()) is not None:
        return {**before}
    waiting = select(func.count()).select_from(orders).where(mine)
    if (await connection.execute(waiting)).scalar_one() >= MAX_WAITING:
        return None
    row = {"GatewayID": gateway_id, "Kind": kind, "By": by, "Because": because, "At": now, "Settles": settles, **about}
    made = (await connection.execute(orders.insert().values(row).returning(orders))).mappings().one()
    old = orders.c.At < now - KEPT_FOR  # deleted only now: else SQLite could give the same Id again
    await connection.execute(orders.delete().where(old))
    return {**made}


async def waiting(connection: Connection, gateway_id: str, now: datetime) -> list[Order]:
    """Return what a gateway is told now: as many of the first that wait as one answer holds."""
    query = select(orders).where(orders.c.GatewayID == gateway_id, _waits(now)).order_by(orders.c.Id).limit(MAX_ORDERS)
    return [_order({**row}, now) for row in (await connection.execute(query)).mappings()]


def _order(row: Row, now: datetime) -> Order:
    age_s = max(0.0, (now - row["At"]).total_seconds())
    named = {name: row[name] for name in ("Kind", "SeriesInstanceUID", "DeadLetter")}
    if row["Kind"] == "count":
        named |= {name: row[name] for name in ("StudyInstanceUID", "CallingAETitle")}
    return Order(Number=row["Id"], AgeS=round(age_s, 3), **named)


async def acknowledge(connection: Connection, state: GatewayState, now: datetime) -> list[dict[str, Any]]:
    """Write down what a gateway says became of its orders; return those that waited until now."""
    ended: list[dict[str, Any]] = []
    for done in state.OrdersDone:
        this = (orders.c.Id == done.Number) & (orders.c.GatewayID == state.GatewayID) & orders.c.DoneAt.is_(None)
        update = orders.update().where(this).values(DoneAt=now, Problem=done.Problem)
        ended += [{**row} for row in (await connection.execute(update.returning(orders))).mappings()]
    return ended


async def withdraw(connection: Connection, series_instance_uid: str, now: datetime) -> int:
    """Take back the orders that close a series; return how many these were."""
    return await _take_back(connection, orders.c.SeriesInstanceUID == series_instance_uid, now)


async def withdraw_study(connection: Connection, study_instance_uid: str, now: datetime) -> None:
    """Take back the orders that close series since their study was declared complete."""
    await _take_back(connection, orders.c.StudyInstanceUID == study_instance_uid, now)


async def _take_back(connection: Connection, of_word: ColumnElement[bool], now: datetime) -> int:
    """End the orders that still wait, and note it of those that were obeyed: their reports may be under way yet.

    Orders without a reason are of a series that was purged.
    """
    waits = of_word & CLOSES & orders.c.DoneAt.is_(None)
    ended = (await connection.execute(orders.update().where(waits).values(DoneAt=now, Problem=WITHDRAWN))).rowcount
    obeyed = (
        of_word & CLOSES & orders.c.DoneAt.is_not(None) & orders.c.Problem.is_(None) & orders.c.Because.is_not(None)
    )
    return ended + (await connection.execute(orders.update().where(obeyed).values(Problem=TAKEN_BACK))).rowcount


async def forget_why(connection: Connection, series_instance_uids: Sequence[str]) -> None:
    """Delete what was said of series that are purged. The orders stay: SQLite could give a deleted Id again."""
    of_series = orders.c.SeriesInstanceUID.in_(series_instance_uids)
    await connection.execute(orders.update().where(of_series).values(Because=None))


async def forget_old_whys(connection: Connection, before: datetime, now: datetime) -> None:
    """Delete what was said in giving old orders, also of what was never stored: a dead letter, a series."""
    old = orders.c.At < min(before, now - KEPT_FOR)
    await connection.execute(orders.update().where(old, orders.c.Because.is_not(None)).values(Because=None))


async def made_for(connection: Connection, report: SeriesReport) -> Row | None:
    """Return the order that a gateway's report obeys."""
    if report.Verdict != "declared":
        return None
    query = select(orders).where(orders.c.SeriesInstanceUID == report.SeriesInstanceUID, CLOSES)
    row = (await connection.execute(query.order_by(orders.c.Id.desc()).limit(1))).mappings().first()
    return None if row is None else {**row}


def word_of(order: Row) -> Word | None:
    """Return what a person has said by an order; None if that was taken back, or the series purged."""
    if order["Because"] is None or order["Problem"] in TAKEN_BACKS:
        return None
    return Word("complete", order["By"], order["Because"], order["At"])


async def running(
    connection: Connection, series_instance_uid: str, *, alone: bool = False
) -> dict[str, tuple[datetime, bool]]:
    """Return the gateways that have not ended: when each was heard of last, and whether it had this series open then.

    `alone`: nobody else may order anything of them until this transaction ends.
    """
    query = select(gateways.c.GatewayID, gateways.c.At, gateways.c.State).order_by(gateways.c.GatewayID)
    query = query.with_for_update() if alone else query
    return {
        gateway: (at, any(series["SeriesInstanceUID"] == series_instance_uid for series in state.get("Arriving", ())))
        for gateway, at, state in (await connection.execute(query)).all()
        if not state.get("Stopped")
    }


async def waits_since(connection: Connection, series_instance_uid: str, at: datetime) -> set[str]:
    """Return the gateways that were told before `at` to close a series, and have not said what became of it."""
    of_series = (orders.c.SeriesInstanceUID == series_instance_uid) & CLOSES & orders.c.DoneAt.is_(None)
    told = select(orders.c.GatewayID).where(of_series, orders.c.At < at)
    return set((await connection.execute(told)).scalars())


async def closed_nowhere(connection: Connection, order: Row) -> bool:
    """Return whether all gateways that had a series open when this was ordered say that they had nothing to close."""
    same = (orders.c.SeriesInstanceUID == order["SeriesInstanceUID"]) & (orders.c.At == order["At"])
    others = select(func.count()).select_from(orders).where(same, orders.c.Settles, orders.c.Problem.is_(None))
    return bool(order["Settles"]) and not (await connection.execute(others)).scalar_one()

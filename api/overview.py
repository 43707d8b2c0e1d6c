"""What the live page shows: gateways and what arrives at them, what was stored last, what is wrong; and the table.

The page is told by server-sent events. One look at the database a second serves all who watch a process, and is
compared with the one before: what travels is what changed. Nobody watches, nobody looks.
"""

import asyncio
import contextlib
import json
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from fastapi.sse import format_sse_event

from api.answers import (
    GatewayList,
    GatewayOrder,
    GatewayOrders,
    GivenOrders,
    Problem,
    WantedOrder,
)
from api.follower import STREAM_S, Follower
from api.listing import KNOWN_ONLY
from api.stored import add_stored, shown
from api.stream import DOCUMENTED, Events
from common import metrics
from common.version import version
from db import Database
from models import GatewayState
from storage.engine import DatabaseUnavailable
from storage.heartbeats import StillHeard
from storage.orders import TooManyOrders, state_of

EVERY_S = 1.0
STALE_S = 30.0  # what was seen before is then not counted on from

LATEST = 200  # series that a page is told of at first, and at most at once
REFUSED_LATELY = timedelta(seconds=30)  # a gateway that is refused asks again every five seconds
MOST_ORDERS = 100

log = structlog.get_logger()

Responses = Mapping[int | str, dict[str, Any]]


def add_overview(app: FastAPI, *, responses: Responses, dependencies: Sequence[Dependency]) -> None:
    """Add what gateways say of themselves, and what the page asks for. `app.state` has database and overview."""
    described: dict[str, Any] = {"responses": {**responses}, "dependencies": dependencies, "tags": ["Overview"]}
    app.put("/gateways/{GatewayID}", **described)(hear)
    refused: Responses = {code: {"model": Problem} for code in (404, 409)}
    ordered = described | {"responses": {**responses, **refused}}
    app.post("/gateways/{GatewayID}/orders", status_code=201, **ordered)(order)
    app.delete("/gateways/{GatewayID}", status_code=204, **ordered)(dismiss)
    described["dependencies"] = [*dependencies, KNOWN_ONLY]
    app.get("/gateways", **described)(list_gateways)
    app.get("/gateways/{GatewayID}/orders", **described)(list_orders)
    add_stored(app, responses=responses, dependencies=dependencies)
    told = {"responses": {**responses, **DOCUMENTED}}
    app.get("/overview/stream", response_class=Events, **described | told)(stream)


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


Db = Annotated[Database, Depends(_database)]


async def hear(GatewayID: str, state: GatewayState, database: Db) -> GivenOrders:
    """A gateway's heartbeat: what it says of itself, in place of what it said before. The answer: what it is to do."""
    if GatewayID != state.GatewayID:
        problem = {"loc": ("body", "GatewayID"), "msg": "is not the one in the path", "type": "value_error"}
        raise RequestValidationError([problem])
    orders, ended = await database.heard(state)
    metrics.heartbeats.inc()
    for one in ended:
        log.info("order.ended", gateway=GatewayID, number=one["Id"], kind=one["Kind"], done=one["Problem"] is None)
    return GivenOrders(Orders=orders)


async def order(GatewayID: str, wanted: WantedOrder, database: Db, request: Request) -> GatewayOrder:
    """Have a gateway post a dead letter again, or give it up: it takes the order with its next heartbeat.

    The same order, while it waits, is one. One that is not taken within a day expires.
    """
    who = request.state.who
    try:
        row = await database.order(GatewayID, wanted.Kind, wanted.DeadLetter, who, wanted.Because)
    except TooManyOrders as error:
        raise HTTPException(409, str(error)) from None
    if row is None:
        raise HTTPException(404, "no gateway of this name was heard of within a day")
    told = {"gateway": GatewayID, "number": row["Id"], "kind": row["Kind"]}
    request.state.done |= told | {"dead_letter": wanted.DeadLetter}
    log.info("order.given", **told)
    return _as_told(row)


async def dismiss(GatewayID: str, database: Db, request: Request) -> None:
    """Forget a gateway that is gone: what it said last, so that nobody is told of it any more.

    Should it say something again, it is back. One that was heard of within 15 s, and has not stopped, is not gone.
    """
    try:
        known = await database.heartbeats.dismiss(GatewayID, datetime.now(UTC))
    except StillHeard as error:
        raise HTTPException(409, str(error)) from None
    if not known:
        raise HTTPException(404, "no gateway of this name was heard of within a day")
    request.state.done["gateway"] = GatewayID
    log.info("gateway.dismissed", gateway=GatewayID)


async def list_orders(GatewayID: str, database: Db) -> GatewayOrders:
    """What a gateway was ordered to do within a week, the latest first, 100 at most, and what became of it."""
    return GatewayOrders(orders=[_as_told(row) for row in await database.orders.listed(GatewayID, MOST_ORDERS)])


def _as_told(row: Mapping[str, Any]) -> GatewayOrder:
    return GatewayOrder.model_validate({**row, "Number": row["Id"], "State": state_of(row, datetime.now(UTC))})


async def list_gateways(database: Db) -> GatewayList:
    """Gateways that were heard of within a day, at most the latest 256, and what each said last."""
    return GatewayList(gateways=await database.gateways())


async def stream(request: Request) -> Events:
    """Events `overview`, one a second: everything at first (`Full`), then what changed since the one before."""
    overview: Overview = request.app.state.overview

    async def told() -> AsyncIterator[bytes]:
        with metrics.watchers.track_inprogress(), contextlib.suppress(DatabaseUnavailable):  # the page asks again
            async for frame in overview.frames():
                yield format_sse_event(data_str=frame, event="overview")

    return Events(told())


# --- watching ---------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """A gateway at the last look."""

    at: datetime
    state: dict[str, Any]
    """Without what arrives there."""
    arriving: dict[str, dict[str, Any]]
    """By Key."""


@dataclass
class Overview:
    """What a process's watchers are shown."""

    database: Database
    follower: Follower
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _looked_at: float = -math.inf
    _looks: int = 0
    _gateways: dict[str, _Seen] = field(default_factory=dict)
    _latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))
    _last: int = 0
    _ever_stored: int = 0
    """Series, those that were purged included."""
    _totals: dict[str, Any] = field(default_factory=dict)
    _silent: dict[str, float] = field(default_factory=dict)
    _news: str = ""
    _whole: str | None = None
    _looking: asyncio.Task[None] | None = None
    _refused: dict[str, str] = field(default_factory=dict)
    """Gateways that a server process does not let in, and why."""

    async def frames(self) -> AsyncGenerator[str, None]:
        """JSON, until the end or for STREAM_S. Raises DatabaseUnavailable."""
        loop = asyncio.get_running_loop()
        ends_at, seen = loop.time() + STREAM_S, -1
        while not self.follower.ended and loop.time() < ends_at:
            if seen == self._looks:
                await asyncio.sleep(max(0.0, self._looked_at + EVERY_S - loop.time()))
            async with self._lock:
                if loop.time() >= self._looked_at + EVERY_S:
                    await self._looked()
            if seen != self._looks:
                frame = self._news if seen == self._looks - 1 else self._everything()
                seen = self._looks  # before others look while this one is told
                yield frame

    async def _looked(self) -> None:
        """Look once for all who watch; who leaves meanwhile does not break it off."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look")
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        """Read, and only then change anything: who watches may go in between."""
        latest = self.database.latest
        began = asyncio.get_running_loop().time()
        since = self._last if began < self._looked_at + STALE_S else 0
        last = await self.database.last_change()
        rows = await latest.newest(LATEST, before=last + 1, since=since)
        ever = self._ever_stored + await latest.new_series(since, last) if since else await latest.ever_stored()
        series = ever - await latest.purged()
        heard = await latest.heard()
        changed = [id for id, at in heard.items() if id not in self._gateways or self._gateways[id].at != at]
        said = await latest.said_by(changed) if changed else []
        conflicts = await latest.open_conflicts()
        changed_series = [one.model_dump(mode="json") for one in await shown(self.database, rows)]
        webhooks = [_webhook(row, last) for row in await self.database.webhooks.all()]
        now = datetime.now(UTC)
        refused = await self.database.heartbeats.refused(now - REFUSED_LATELY)

        self._refused = refused
        self._totals = {"Series": series, "Conflicts": conflicts, "Webhooks": webhooks}
        self._silent = {id: round(max(0.0, (now - at).total_seconds()), 1) for id, at in heard.items()}
        gone = self._gateways.keys() - heard.keys()
        for id in gone:
            del self._gateways[id]
        news = {row["GatewayID"]: self._hear(row) for row in said}
        if not since:
            self._latest.clear()
        self._latest.extendleft(reversed(changed_series))
        self._last, self._ever_stored = last, ever
        self._looked_at, self._looks, self._whole = began, self._looks + 1, None
        self._news = self._frame(news, changed_series, Forgotten=sorted(gone))

    def _hear(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Take what a gateway said; what of it is new."""
        state = {**row["State"]}
        state.pop("Sources", None)  # the page shows no waits
        arriving = {(key := _key(one)): {"Key": key, **one} for one in state.pop("Arriving", [])}
        before = self._gateways.get(row["GatewayID"])
        known = before.arriving if before else {}
        self._gateways[row["GatewayID"]] = _Seen(row["At"], state, arriving)
        return {
            "SeenAt": row["At"].isoformat(),
            "State": state,
            "Arriving": [one for key, one in arriving.items() if known.get(key) != one],
            "Gone": [key for key in known if key not in arriving],
        }

    def _everything(self) -> str:
        """For whoever has not seen the look before the last."""
        if self._whole is None:
            gateways = {
                id: {
                    "SeenAt": seen.at.isoformat(),
                    "State": seen.state,
                    "Arriving": [*seen.arriving.values()],
                    "Gone": [],
                }
                for id, seen in self._gateways.items()
            }
            self._whole = self._frame(gateways, list(self._latest), Full=True)
        return self._whole

    def _frame(self, gateways: Mapping[str, Any], latest: Sequence[Any], **more: Any) -> str:
        frame = {
            "At": datetime.now(UTC).isoformat(),
            "Version": version(),
            "Gateways": gateways,
            "Silent": self._silent,
            "Refused": self._refused,
        }
        return json.dumps(frame | {"Stored": latest, "Totals": self._totals} | more, separators=(",", ":"))


def _key(series: Mapping[str, Any]) -> str:
    """Of an open series: one Series Instance UID under two patients is two."""
    return json.dumps([series.get(name) for name in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")])


def _webhook(row: Mapping[str, Any], last: int) -> dict[str, Any]:
    """Without the path of its URL, which may hold a secret."""
    behind = max(0, last - row["Position"])
    return {"Id": row["Id"], "Host": urlsplit(row["Url"]).hostname, "Behind": behind} | {
        name: row[name] for name in ("Attempts", "Ended", "Dead")
    }

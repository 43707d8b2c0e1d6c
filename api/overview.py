"""What the live page shows: gateways and what arrives at them, what was stored last, what is wrong.

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
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event

from api.answers import StoredStudy
from api.follower import STREAM_S, Follower
from api.parameters import KNOWN_ONLY
from api.routing import READS, answers
from api.stored import shown
from api.stream import DOCUMENTED, Events
from common import metrics
from common.version import version
from db import Database
from storage.engine import DatabaseUnavailable

EVERY_S = 1.0
STALE_S = 30.0  # what was seen before is then not counted on from

LATEST = 200  # series that a page is told of at first, and at most at once
MAX_STUDIES = 1000  # studies that are kept in mind, so that nobody is told of one twice
UNCOMMITTED = timedelta(seconds=5)  # by how much a study may be younger by its own time than when it is seen
REFUSED_LATELY = timedelta(seconds=30)  # a gateway that is refused asks again every five seconds

router = APIRouter(tags=["Overview"])


@router.get(
    "/overview/stream",
    response_class=Events,
    responses=answers(408, 413) | DOCUMENTED,
    dependencies=[READS, KNOWN_ONLY],
)
async def stream(request: Request) -> Events:
    """Tell events `overview`, one a second: everything at first (`Full`), then what changed since the one before."""
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
    looks: int = 0
    """How often the database was looked at for all who watch."""
    _gateways: dict[str, _Seen] = field(default_factory=dict)
    _latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))
    _studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By StudyInstanceUID, those told of last at the end."""
    _last: int = 0
    _ever_stored: int = 0
    """Series, those that were purged included."""
    _seen_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When studies were looked at last, by this process's clock."""
    _totals: dict[str, Any] = field(default_factory=dict)
    _silent: dict[str, float] = field(default_factory=dict)
    _news: str = ""
    _whole: str | None = None
    _looking: asyncio.Task[None] | None = None
    _refused: dict[str, str] = field(default_factory=dict)
    """Gateways that a server process does not let in, and why."""

    async def frames(self) -> AsyncGenerator[str, None]:
        """Yield JSON, until the end or for STREAM_S. Raises DatabaseUnavailable."""
        loop = asyncio.get_running_loop()
        ends_at, seen = loop.time() + STREAM_S, -1
        while not self.follower.ended and loop.time() < ends_at:
            if seen == self.looks:
                await asyncio.sleep(max(0.0, self._looked_at + EVERY_S - loop.time()))
            async with self._lock:
                if loop.time() >= self._looked_at + EVERY_S:
                    await self._looked()
            if seen != self.looks:
                frame = self._news if seen == self.looks - 1 else self._everything()
                seen = self.looks  # before others look while this one is told
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
        stored, studies = await shown(self.database, rows)
        lately = await self.database.study_views.changed(self._seen_at - UNCOMMITTED, LATEST) if since else []
        studies += map(StoredStudy.model_validate, lately)
        changed_series = [one.model_dump(mode="json") for one in stored]
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
        self._last, self._ever_stored, self._seen_at = last, ever, now
        self._looked_at, self.looks, self._whole = began, self.looks + 1, None
        self._news = self._frame(news, changed_series, self._learn(studies), Forgotten=sorted(gone))

    def _hear(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Take what a gateway said; return what of it is new."""
        state = {**row["State"]}
        state.pop("Sources", None)  # the page shows no waits
        arriving = {(name := _open_series_name(one)): {"Key": name, **one} for one in state.pop("Arriving", [])}
        before = self._gateways.get(row["GatewayID"])
        known = before.arriving if before else {}
        self._gateways[row["GatewayID"]] = _Seen(row["At"], state, arriving)
        return {
            "SeenAt": row["At"].isoformat(),
            "State": state,
            "Arriving": [one for name, one in arriving.items() if known.get(name) != one],
            "Gone": [name for name in known if name not in arriving],
        }

    def _learn(self, studies: Sequence[StoredStudy]) -> list[dict[str, Any]]:
        """Take how studies stand; return those of which that is new."""
        news = []
        for one in studies:
            told = one.model_dump(mode="json")
            if self._studies.pop(one.StudyInstanceUID, None) != told:
                news.append(told)
            self._studies[one.StudyInstanceUID] = told
        for uid in list(self._studies)[:-MAX_STUDIES]:
            del self._studies[uid]
        return news

    def _everything(self) -> str:
        """Return the frame of a watcher who has not seen the look before the last: all that is known."""
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
            of_latest = dict.fromkeys(one["StudyInstanceUID"] for one in self._latest)
            studies = [self._studies[uid] for uid in of_latest if uid in self._studies]
            self._whole = self._frame(gateways, list(self._latest), studies, Full=True)
        return self._whole

    def _frame(self, gateways: Mapping[str, Any], latest: Sequence[Any], studies: Sequence[Any], **more: Any) -> str:
        """Return one event as JSON."""
        frame = {
            "At": datetime.now(UTC).isoformat(),
            "Version": version(),
            "Gateways": gateways,
            "Silent": self._silent,
            "Refused": self._refused,
        }
        return json.dumps(
            frame | {"Stored": latest, "Studies": studies, "Totals": self._totals} | more, separators=(",", ":")
        )


def _open_series_name(series: Mapping[str, Any]) -> str:
    """Return the name of an open series: one Series Instance UID under two patients is two."""
    return json.dumps([series.get(name) for name in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")])


def _webhook(row: Mapping[str, Any], last: int) -> dict[str, Any]:
    """Return what is shown of a webhook: not the path of its URL, which may hold a secret."""
    behind = max(0, last - row["Position"])
    return {"Id": row["Id"], "Host": urlsplit(row["Url"]).hostname, "Behind": behind} | {
        name: row[name] for name in ("Attempts", "Ended", "Dead")
    }

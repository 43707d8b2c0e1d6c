"""GET /changes, and the same as a stream: every revision of every series, and the verdicts of studies, in order."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from pydantic import Field

from api.answers import ChangePage
from api.parameters import IN_DIGITS, KNOWN_ONLY, Limit
from api.routing import READS, Changes, Db, answers
from api.stream import DOCUMENTED, Events
from common import metrics
from db import Database
from models import Subjects
from storage.engine import DatabaseUnavailable

Number = Annotated[int, IN_DIGITS, Field(ge=0, lt=2**63)]
Since = Number | Literal["now"]
Subject = Annotated[Subjects, Query(description="What is told of: each revision of a series, each verdict of a study.")]
router = APIRouter(dependencies=[READS, KNOWN_ONLY])


@router.get("/changes", responses=answers())
async def list_changes(
    database: Db,
    since: Annotated[
        Since, Query(description="`last` of the page before; 0 for the beginning, `now` for the end.")
    ] = 0,
    limit: Limit = 100,
    subject: Subject = "series",
) -> ChangePage:
    """List what changed behind a number, in order: each revision of each series once, those of one series in order.

    Of studies, which are told of where `subject` asks for them, each verdict that came or went.
    """
    place = await _place(database, since)
    found = await database.changes(since=place, limit=limit + 1, subject=subject)
    page = found[:limit]
    return ChangePage(changes=page, last=page[-1].Number if page else place, done=len(found) <= limit)


async def _place(database: Database, since: Since) -> int:
    """Return the number behind which changes are told."""
    return await database.last_change() if since == "now" else since


@router.get("/changes/stream", responses=answers() | DOCUMENTED, response_class=Events)
async def stream_changes(
    database: Db,
    follower: Changes,
    since: Annotated[Since, Query(description="As in /changes.")] = 0,
    last_event_id: Annotated[
        Number | None, Header(description="Sent by whoever reconnects; wins over `since`.")
    ] = None,
    subject: Subject = "series",
) -> Events:
    """Tell the same as server-sent events, those to come included: `id` is the number, `data` the change."""
    place = await _place(database, since) if last_event_id is None else last_event_id

    async def told() -> AsyncIterator[bytes]:
        with metrics.watchers.track_inprogress(), contextlib.suppress(DatabaseUnavailable):  # the client asks again
            async for events in follower.events(place, subject):
                yield events

    return Events(told())

"""Who sends, and how verdicts about it fared: GET /sources, the same for Prometheus, and GET /completions."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from api.answers import Completions, LearntSource, SourceDay, SourcePage, SourceSent, SourceVerdict, StudyCompletions
from api.parameters import KNOWN_ONLY, Limit
from api.routing import READS, Db, answers
from common import metrics
from db import Database
from storage.rhythm import UNUSUAL
from storage.sources import Sent

MAX_MEASURED = 100  # sources that Prometheus is told of: who sends chooses its names
MEASURED_FOR = timedelta(weeks=5)  # since their last image: then they are gone
EPOCH = date(1970, 1, 1)
router = APIRouter(responses=answers(), dependencies=[READS, KNOWN_ONLY])


@router.get("/completions")
async def list_completions(database: Db) -> Completions:
    """Count how verdicts have fared, by source, policy and verdict: series, and those that got more images after."""
    return Completions(completions=await database.completions())


@router.get("/completions/studies")
async def list_study_completions(database: Db) -> StudyCompletions:
    """Count how verdicts of studies have fared: those told so, and those that images or series came to after."""
    return StudyCompletions(completions=await database.study_views.completions())


@router.get("/sources")
async def list_sources(
    database: Db,
    Unusual: Annotated[bool | None, Query(description="Only those that are unusually silent, or are not.")] = None,
    after: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
    limit: Limit = 100,
) -> SourcePage:
    """List who sends, in order of Source: when each sent last, how much a day, how its verdicts fared, what is learnt.

    Unusually silent is who has missed three of its usual hours (`MissedHours`).
    """
    now = datetime.now(UTC)
    found = [one for one in await database.sources.all(now) if after is None or one.Source > after]
    matching = [one for one in found if Unusual is None or Unusual == _is_unusual(one)]
    page = matching[:limit]
    sources = await _described(database, page, now)
    return SourcePage(sources=sources, next=page[-1].Source if len(matching) > limit else None)


async def _described(database: Database, page: Sequence[Sent], now: datetime) -> list[SourceSent]:
    """Return sources with what else is known of them: days, verdicts, and what gateways have learnt."""
    names = [one.Source for one in page]
    days: dict[str, list[SourceDay]] = {name: [] for name in names}
    verdicts: dict[str, list[SourceVerdict]] = {name: [] for name in names}
    learnt: dict[str, list[LearntSource]] = {name: [] for name in names}
    for row in await database.sources.days(names) if names else ():
        day = EPOCH + timedelta(days=row["Day"])
        days[row["Source"]].append(SourceDay.model_validate({**row, "Day": day}))
    for row in await database.sources.verdicts(names) if names else ():
        verdicts[row["Source"]].append(SourceVerdict.model_validate(row))
    for gateway, heard in await database.sources.heard():
        if heard.Source in learnt and heard.WaitS:
            one = LearntSource(GatewayID=gateway, LearntFrom=heard.LearntFrom, WaitS=heard.WaitS)
            learnt[heard.Source].append(one)
    return [
        SourceSent(
            **one._asdict(),
            SilentForS=_silent_s(one, now),
            Unusual=_is_unusual(one),
            Days=days[one.Source],
            Verdicts=verdicts[one.Source],
            Learnt=learnt[one.Source],
        )
        for one in page
    ]


def _is_unusual(one: Sent) -> bool:
    """Return whether a source is unusually silent."""
    return one.MissedHours >= UNUSUAL


def _silent_s(one: Sent, now: datetime) -> float:
    """Return the seconds since a source sent last."""
    return round((now - one.LastReceivedAt).total_seconds(), 3)


async def measure_sources(database: Database) -> None:
    """Let Prometheus read of each source how long it has been silent: of those known longest, MAX_MEASURED."""
    now = datetime.now(UTC)
    sources = [one for one in await database.sources.all(now) if one.LastReceivedAt > now - MEASURED_FOR]
    metrics.source_silent_seconds.clear()  # of those that are gone
    metrics.source_missed_seconds.clear()
    for one in sorted(sources, key=lambda one: one.FirstReceivedAt)[:MAX_MEASURED]:
        metrics.source_silent_seconds.labels(one.Source).set(_silent_s(one, now))
        metrics.source_missed_seconds.labels(one.Source).set(3600 * one.MissedHours)

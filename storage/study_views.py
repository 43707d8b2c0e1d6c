"""What is shown of studies: on the live page, in a study's timeline, and as figures for Prometheus."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, literal, select, tuple_

from storage.answers import StudyCompletion
from storage.engine import Engine
from storage.schema import LACKS_SOMETHING, series, studies, study_completions, timeline

COUNTED = 1000  # studies at most that are counted: beyond it, it is many
LATELY = timedelta(days=1)  # for how long an incomplete study is waited for
SERIES_OF_TIMELINE = 1000  # series whose events one timeline has
SHOWN = (
    *("StudyInstanceUID", "Verdict", "Withdrawn", "Basis", "NumSeries", "NumInstances", "Unsettled", "Incomplete"),
    *("MissingSeries", "ExpectedSeries", "ExpectedInstances", "Gaps", "FalseCompletions", "UpdatedAt"),
)
PLACE = (timeline.c.At, timeline.c.Id)


@dataclass
class StudyViews:
    """The studies of one database, as people and Prometheus see them."""

    _engine: Engine

    async def shown(self, uids: Collection[str]) -> list[dict[str, Any]]:
        """Return what the live page shows of these studies."""
        return await self._engine.read(_select_shown().where(studies.c.StudyInstanceUID.in_(uids))) if uids else []

    async def changed(self, since: datetime, limit: int) -> list[dict[str, Any]]:
        """Return the same of those that changed since then, the last changed first."""
        return await self._engine.read(select_changed(since, limit))

    async def events(self, uid: str, after: Sequence[Any] | None, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` events of a study and its series, in order of time, behind a time and an Id."""
        return await self._engine.read(select_events(uid, after, limit))

    async def completions(self) -> list[StudyCompletion]:
        """Count how verdicts have fared, by source, policy and verdict."""
        return [StudyCompletion.model_validate(row) for row in await self._engine.read(select(study_completions))]

    async def count_open(self) -> int:
        """Count the studies without a verdict, up to COUNTED."""
        return int((await self._engine.read(select_open()))[0]["n"])

    async def incomplete_since(self, now: datetime) -> datetime | None:
        """Return when the last image came of the study that has been incomplete longest; None if there is none.

        One that has not changed for a day is waited for no more.
        """
        row = (await self._engine.read(select_incomplete_since(now - LATELY)))[0]
        since: datetime | None = row["since"]
        return since


# --- its SQL ----------------------------------------------------------------------------------------------------


def _select_shown() -> Select[Any]:
    return select(*(studies.c[name] for name in SHOWN))


def select_changed(since: datetime, limit: int) -> Select[Any]:
    query = _select_shown().where(studies.c.UpdatedAt >= since)
    return query.order_by(studies.c.UpdatedAt.desc(), studies.c.StudyInstanceUID.desc()).limit(limit)


def select_open() -> Select[Any]:
    some = select(studies.c.StudyInstanceUID).where(studies.c.Verdict.is_(None)).limit(COUNTED).subquery()
    return select(func.count().label("n")).select_from(some)


def select_incomplete_since(since: datetime) -> Select[Any]:
    of_lately = select(
        func.coalesce(studies.c.LastReceivedAt, studies.c.UpdatedAt, type_=studies.c.UpdatedAt.type).label("at")
    )
    some = of_lately.where(LACKS_SOMETHING, studies.c.UpdatedAt >= since)
    some = some.order_by(studies.c.UpdatedAt, studies.c.StudyInstanceUID).limit(COUNTED)
    return select(func.min(some.subquery().c.at).label("since"))


def select_events(uid: str, after: Sequence[Any] | None, limit: int) -> Select[Any]:
    """Return the query for events of the first SERIES_OF_TIMELINE series: a study may have any number."""
    of_study = select(series.c.SeriesInstanceUID).where(series.c.StudyInstanceUID == uid)
    of_study = of_study.order_by(series.c.SeriesInstanceUID).limit(SERIES_OF_TIMELINE)
    query = select(timeline).where(timeline.c.SeriesInstanceUID.in_(select(of_study.subquery()))).order_by(*PLACE)
    if after is not None:
        place = tuple_(*(literal(value, column.type) for value, column in zip(after, PLACE, strict=True)))
        query = query.where(tuple_(*PLACE) > place)
    return query.limit(limit)

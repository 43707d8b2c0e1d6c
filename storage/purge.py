"""Forgets series that have not changed since a time, and old changes of those that stay: a batch a transaction.

A series goes with all that refers to it, the last one of a study with that; what stays is its tombstone, and what was
told of a study that stays, which is handed on to another of its series. A report that comes at the same moment waits
for the same lock, of the series' row: either the series has then changed and stays, or it is gone and the report makes
it anew. Webhooks are told first: a change that one of them does not know keeps its series.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
)

from storage import history, merge, studies
from storage.connection import Connection
from storage.engine import Engine, insert
from storage.orders import forget_old_whys, forget_why
from storage.schema import (
    IS_IN_CONFLICT,
    IS_OF_STUDY,
    changes,
    conflicts,
    counters,
    dead_changes,
    instances,
    purged,
    series,
    timeline,
    webhooks,
)
from storage.studies import ComesAgain

SERIES_AT_ONCE = 100
IMAGES_AT_ONCE = 5000  # images in a batch of several series
CHANGES_AT_ONCE = 1000
BY_SERIES = (instances, conflicts, timeline, changes, purged, series)  # in the order in which they can go
COUNTED = (
    *("StudyInstanceUID", "Modality", "Verdict", "NumInstances"),
    *("ExpectedInstances", "ExpectedFrom", "FalseCompletions"),
)
PLACE = (series.c.UpdatedAt, series.c.SeriesInstanceUID)

Place = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class SeriesBatch:
    """What became of a few series."""

    after: Place | None
    """Where to go on; None: that was all."""
    series: int = 0
    """How many went."""
    images: int = 0
    """How many these had."""
    in_conflict: int = 0
    """How many stay since a conflict is open."""
    untold: int = 0
    """How many stay since a webhook does not know one of their changes."""


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """What became of a few changes."""

    after: int | None
    """Where to go on; None: that was all."""
    changes: int = 0
    """How many went."""


@dataclass
class Purger:
    """Removes what is old from one database."""

    _engine: Engine

    async def old(self, before: datetime) -> int:
        """Count the series that have not changed since then."""
        query = select(func.count().label("n")).select_from(series).where(series.c.UpdatedAt < before)
        return int((await self._engine.read(query))[0]["n"])

    async def series(self, before: datetime, after: Place | None, *, dry: bool) -> SeriesBatch:
        """Remove the next series behind `after` that have not changed since `before`; if `dry`, only look."""
        if dry:
            found = await self._engine.read(select_old(before, after))
            batch = _batch(found)
            stays = await self._engine.read(select_stays(_uids(batch), dry=True))
            return _became(found, batch, stays)
        return await self._engine.write(lambda connection: purge_series(connection, before, after))

    async def changes(self, before: datetime, after: int, *, dry: bool) -> ChangeBatch:
        """Remove those of the next changes behind `after` that are older than `before` and outdated.

        That are those of series that stay, which every webhook knows, and behind which a later revision is told.
        """
        found = await self._engine.read(select_next_changes(after))
        if not any(row["At"] < before for row in found):  # they are in order of time, as good as
            return ChangeBatch(after=None)
        until = found[-1]["Number"]
        outdated = are_outdated(before, after, until)
        if dry:
            counted = select(func.count().label("n")).select_from(changes).where(outdated)
            count = int((await self._engine.read(counted))[0]["n"])
        else:
            count = await self._engine.write(lambda connection: _delete_changes(connection, outdated))
        return ChangeBatch(after=until, changes=count)


async def purge_series(connection: Connection, before: datetime, after: Place | None) -> SeriesBatch:
    """Remove one batch, in one transaction; with the first one go the reasons of old orders.

    1. Lock the rows: each has then the last word of every report that has been stored.
    2. Only then look what keeps some of them: a new statement sees what was committed meanwhile.
    3. Hand on what was told of studies that stay, and take the others out of their studies.
    4. Delete all that refers to them, and leave their tombstones.
    """
    found = [{**row} for row in (await connection.execute(select_old(before, after).with_for_update())).mappings()]
    batch = _batch(found)
    stays = [{**row} for row in (await connection.execute(select_stays(_uids(batch), dry=False))).mappings()]
    kept = {row["SeriesInstanceUID"] for row in stays}
    now = datetime.now(UTC)
    if after is None:
        await forget_old_whys(connection, before, now)
    gone = [series.c[name] for name in (*COUNTED, "SeriesInstanceUID")]
    goes = [row["SeriesInstanceUID"] for row in batch if row["SeriesInstanceUID"] not in kept]
    found_gone = select(*gone).where(series.c.SeriesInstanceUID.in_(goes))
    of_studies = [merge.truthful({**row}) for row in (await connection.execute(found_gone)).mappings()]
    remembered = ("SeriesInstanceUID", "NumInstances", "StudyInstanceUID")
    tombstones = [{"At": now, **{name: row[name] for name in remembered}} for row in of_studies]
    if tombstones:
        await _hand_on(connection, of_studies)
        await studies.forget(connection, of_studies, now)
        for table in BY_SERIES:
            of_series = table.c.SeriesInstanceUID.in_(_uids(tombstones))
            await connection.execute(table.delete().where(of_series))
        await forget_why(connection, _uids(tombstones))
        await connection.execute(purged.insert(), tombstones)
        more = {"Value": counters.c.Value + len(tombstones)}
        await insert(connection, counters, {"Name": "purged", "Value": len(tombstones)}, or_update=more)
    return _became(found, batch, stays)


async def _hand_on(connection: Connection, gone: Sequence[dict[str, Any]]) -> None:
    """Let what was told of studies stand at a series of theirs that stays; of a study without any it goes, too."""
    at_gone = changes.c.SeriesInstanceUID.in_(_uids(gone)) & IS_OF_STUDY
    told_of = (await connection.execute(select(changes.c.StudyInstanceUID).where(at_gone).distinct())).scalars()
    heirs = await _heirs(connection, {*told_of, *(row["StudyInstanceUID"] for row in gone)}, _uids(gone))
    for study, heir in heirs.items():
        of_study = at_gone & (changes.c.StudyInstanceUID == study)
        await connection.execute(changes.update().where(of_study).values(SeriesInstanceUID=heir))
        of_it = timeline.c.SeriesInstanceUID.in_(_uids([row for row in gone if row["StudyInstanceUID"] == study]))
        events = timeline.update().where(of_it, timeline.c.Event == "study.told")
        await connection.execute(events.values(SeriesInstanceUID=heir))


async def _heirs(connection: Connection, studies_of: Collection[str], gone: Sequence[str]) -> dict[str, str]:
    """Return a series of each study that stays, locked against other purges; nothing of a study without any."""
    first = func.min(series.c.SeriesInstanceUID).label("first")
    stays = series.c.StudyInstanceUID.in_(studies_of) & series.c.SeriesInstanceUID.not_in(gone)
    some = select(series.c.StudyInstanceUID, first).where(stays).group_by(series.c.StudyInstanceUID)
    while True:  # the first one may be purged, or moved to another study, while it is waited for
        wanted = {row.StudyInstanceUID: row.first for row in await connection.execute(some)}
        these = series.c.SeriesInstanceUID.in_(wanted.values())
        locked = select(series.c.StudyInstanceUID, series.c.SeriesInstanceUID).where(these)
        locked = locked.order_by(series.c.SeriesInstanceUID).with_for_update(read=True, key_share=True)
        if {row.StudyInstanceUID: row.SeriesInstanceUID for row in await connection.execute(locked)} == wanted:
            return wanted


async def _delete_changes(connection: Connection, outdated: ColumnElement[bool]) -> int:
    return (await connection.execute(changes.delete().where(outdated))).rowcount


def _batch(found: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the first of them, as many as have not too many images together; the first one in any case."""
    sizes = accumulate(row["NumInstances"] for row in found)
    return found[: max(1, sum(size <= IMAGES_AT_ONCE for size in sizes))]


def _became(
    found: Sequence[dict[str, Any]], batch: Sequence[dict[str, Any]], stays: Sequence[dict[str, Any]]
) -> SeriesBatch:
    kept = {row["SeriesInstanceUID"] for row in stays}
    went = [row["NumInstances"] for row in batch if row["SeriesInstanceUID"] not in kept]
    ends = len(batch) == len(found) < SERIES_AT_ONCE
    in_conflict = sum(bool(row["in_conflict"]) for row in stays)
    return SeriesBatch(
        after=None if ends else (batch[-1]["UpdatedAt"], batch[-1]["SeriesInstanceUID"]),
        series=len(went),
        images=sum(went),
        in_conflict=in_conflict,
        untold=len(stays) - in_conflict,
    )


def _uids(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["SeriesInstanceUID"] for row in rows]


async def recall(connection: Connection, series_instance_uid: str, now: datetime) -> ComesAgain | None:
    """Take the tombstone of a series that comes again, and let its timeline begin with that; None: there is none.

    A report that is stored at `now` may have waited for the purge: it began before it.
    """
    row = (await connection.execute(RECALL, {"series": series_instance_uid})).one_or_none()
    if row is None:
        return None
    event = {"At": min(row.At, now), "GatewayID": None, "Revision": 1, "Event": "series.purged"}
    event |= {"Details": {"Images": row.NumInstances}}
    await history.add(connection, series_instance_uid, [event], is_new=True)
    return ComesAgain(row.StudyInstanceUID, row.NumInstances)


# --- its SQL ----------------------------------------------------------------------------------------------------

# Made once, as those of revisions.py.
_TOMBSTONE = purged.c.SeriesInstanceUID == bindparam("series")
RECALL = purged.delete().where(_TOMBSTONE).returning(purged.c.At, purged.c.NumInstances, purged.c.StudyInstanceUID)


def select_old(before: datetime, after: Place | None) -> Select[Any]:
    """Return the query for the next series, in the order of the index of their last change."""
    query = select(*PLACE, series.c.NumInstances).where(series.c.UpdatedAt < before)
    query = query.order_by(*PLACE).limit(SERIES_AT_ONCE)
    if after is None:
        return query
    place = (literal(value, column.type) for value, column in zip(after, PLACE, strict=True))
    return query.where(tuple_(*PLACE) > tuple_(*place))


def select_stays(series_instance_uids: Sequence[str], *, dry: bool) -> Select[Any]:
    """Return the query for those of them that stay, and whether that is for a conflict.

    A change without a number is known to nobody. If `dry` it is none that keeps: a purge would number it first.
    """
    unknown = _is_untold() if dry else or_(changes.c.Number.is_(None), _is_untold())
    is_untold = exists().where(changes.c.SeriesInstanceUID == series.c.SeriesInstanceUID, unknown).correlate(series)
    query = select(series.c.SeriesInstanceUID, IS_IN_CONFLICT.label("in_conflict"))
    return query.where(series.c.SeriesInstanceUID.in_(series_instance_uids), or_(IS_IN_CONFLICT, is_untold))


def _is_untold() -> ColumnElement[bool]:
    """Hold of a change if there is a webhook that comes to it later, or that it was given up for."""
    given_up = exists().where(dead_changes.c.Webhook == webhooks.c.Id, dead_changes.c.Number == changes.c.Number)
    behind = or_(changes.c.Number.is_(None), webhooks.c.Position < changes.c.Number)
    return exists().where(or_(behind, given_up.correlate(webhooks, changes))).correlate(changes)


def select_next_changes(after: int) -> Select[Any]:
    query = select(changes.c.Number, changes.c.At).where(changes.c.Number > after)
    return query.order_by(changes.c.Number).limit(CHANGES_AT_ONCE)


def are_outdated(before: datetime, after: int, until: int) -> ColumnElement[bool]:
    """Hold of an old change of a series that stays, which all webhooks know and behind which a revision is told."""
    later = changes.alias("later")
    of_same = (later.c.SeriesInstanceUID == changes.c.SeriesInstanceUID) & (later.c.Subject == changes.c.Subject)
    tells_revision = later.c.Kinds.is_distinct_from(literal_column("'conflict'"))
    is_later = or_(later.c.Number.is_(None), later.c.Number > changes.c.Number)  # without one it will get a higher one
    superseded = exists().where(of_same, is_later, tells_revision).correlate(changes)
    stays = exists().where(series.c.SeriesInstanceUID == changes.c.SeriesInstanceUID, series.c.UpdatedAt >= before)
    within = (changes.c.Number > after) & (changes.c.Number <= until) & (changes.c.At < before)
    return within & superseded & stays.correlate(changes) & not_(_is_untold())

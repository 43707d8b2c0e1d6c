"""What is old goes, whole, and nothing that is needed; beside reports of the same series; on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import sqlite

from common.settings import ServerSettings
from db import Database
from models import GatewayState, OrderDone
from storage import history, purge
from storage.connection import Connection
from storage.engine import Engine
from storage.move import TABLES, move
from storage.purge import CHANGES_AT_ONCE, ChangeBatch, SeriesBatch
from storage.schema import changes, metadata, orders, series, timeline
from tests.rig.factories import arriving, make_report, make_state
from tests.rig.old_series import OLD, aged, stored, uid
from tests.rig.transactions import is_on_sqlite, transaction

BEFORE = datetime(2021, 1, 1, tzinfo=UTC)


async def executed(database: Database, statement: Any) -> None:
    await database.engine.write(lambda connection: connection.execute(statement))


async def purged_of(database: Database, *, dry: bool = False, before: datetime = BEFORE) -> SeriesBatch:
    """All batches, together."""
    batches = [await database.purger.series(before, None, dry=dry)]
    while (after := batches[-1].after) is not None:
        batches.append(await database.purger.series(before, after, dry=dry))
    return SeriesBatch(
        None,
        *(sum(getattr(batch, name) for batch in batches) for name in ("series", "images", "in_conflict", "untold")),
    )


async def outdated_of(database: Database, *, dry: bool = False) -> int:
    after: int | None = 0
    count = 0
    while after is not None:
        batch: ChangeBatch = await database.purger.changes(BEFORE, after, dry=dry)
        after, count = batch.after, count + batch.changes
    return count


async def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    return {table.name: await database.engine.read(select(table).order_by(*table.primary_key)) for table in TABLES}


async def names_of(database: Database, n: int) -> list[str]:
    """The tables that know this series."""
    found = await contents(database)
    return sorted(name for name, rows in found.items() if any(row.get("SeriesInstanceUID") == uid(n) for row in rows))


# --- what goes --------------------------------------------------------------------------------------------------


async def test_an_old_series_goes_with_all_that_refers_to_it_and_no_other_is_touched(database: Database) -> None:
    await stored(database, 1, 2)
    for n in (1, 2):
        await stored(database, n, sop="2", PatientID="P2")
        (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
        await database.resolve(conflict.Digest, "dismiss", "op")
    await aged(database, 1)
    before = await contents(database)
    assert await purged_of(database) == SeriesBatch(None, series=1, images=1)
    assert await names_of(database, 1) == ["purged"]
    after = await contents(database)
    for name in ("series", "instances", "conflicts", "timeline", "changes"):
        assert after[name] == [row for row in before[name] if row["SeriesInstanceUID"] != uid(1)], name
    (tombstone,) = after["purged"]
    assert (tombstone["NumInstances"], tombstone["At"] > OLD) == (1, True)


async def test_what_was_said_of_a_series_goes_with_it_and_an_order_that_waits_says_it_no_more(
    database: Database,
) -> None:
    await stored(database, 1)
    await database.heard(state := GatewayState.model_validate(make_state("g", Arriving=[arriving(uid(1), 1)])))
    await database.declare(uid(1), "complete", "somebody", "Mr Smith has left")
    await aged(database, 1)
    assert (await purged_of(database)).series == 1
    assert "Smith" not in str(await database.orders.listed("g", 9))
    (order,), _ = await database.heard(state)
    record, created = await database.store(make_report("2", series=uid(1)).model_copy(update={"Verdict": "declared"}))
    assert (record.Verdict, created, "Smith" in str(record)) == ("declared", True, False)
    done = state.model_copy(update={"OrdersDone": [OrderDone(Number=order.Number, Problem="it was not open here")]})
    assert await database.heard(done) == ([], [one for one in await database.orders.listed("g", 9) if one["DoneAt"]])


async def test_what_was_said_in_ordering_goes_with_its_age_though_nothing_of_it_was_stored(database: Database) -> None:
    await database.heard(GatewayState.model_validate(make_state("g", Arriving=[arriving("1.9", 1)])))
    await database.declare("1.9", "complete", "somebody", "Mr Smith has left")
    await database.order("g", "discard", 7, "somebody", "Mr Smith, sent twice")
    for age in (timedelta(days=6), timedelta(days=8)):
        at = datetime.now(UTC) - age
        given = orders.update().values(At=at)
        await database.engine.write(partial(Connection.execute, statement=given))
        await purged_of(database, before=at + timedelta(hours=1))
        found = await database.orders.listed("g", 9)
        assert (len(found), str(found).count("Smith")) == (2, 2 if age.days == 6 else 0)


async def test_a_series_that_changed_just_then_stays_and_one_before_goes(database: Database) -> None:
    await stored(database, 1, 2)
    at = OLD + timedelta(microseconds=1)
    await aged(database, 1, 2)
    await executed(database, series.update().where(series.c.SeriesInstanceUID == uid(2)).values(UpdatedAt=at))
    assert (await purged_of(database, before=at)).series == 1
    assert await database.get(uid(2)) is not None


async def test_batches_end_with_the_last_series_and_hold_few_images(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "SERIES_AT_ONCE", 3)
    monkeypatch.setattr(purge, "IMAGES_AT_ONCE", 4)
    sizes = [1, 1, 2, 9, 1, 1, 1, 1]
    for n, size in enumerate(sizes):
        await database.store(make_report(*map(str, range(size)), series=uid(n)))
    await aged(database, *range(len(sizes)))
    batches = [await database.purger.series(BEFORE, None, dry=False)]
    while (after := batches[-1].after) is not None:
        batches.append(await database.purger.series(BEFORE, after, dry=False))
    assert [(batch.series, batch.images) for batch in batches] == [(3, 4), (1, 9), (3, 3), (1, 1)]


# --- what stays -------------------------------------------------------------------------------------------------


async def add_webhook(database: Database, position: int) -> int:
    id, _ = await database.webhooks.add("http://127.0.0.1:9/", position, {})
    return id


async def test_a_series_with_an_open_conflict_stays(database: Database) -> None:
    await stored(database, 1, 2)
    await stored(database, 1, sop="2", PatientID="P2")
    await aged(database, 1, 2)
    assert await purged_of(database) == SeriesBatch(None, series=1, images=1, in_conflict=1)
    assert "conflicts" in await names_of(database, 1)


async def test_a_series_stays_whose_change_a_webhook_was_not_told(database: Database) -> None:
    await stored(database, 1, 2, 3)
    await aged(database, 1, 2, 3)
    await add_webhook(database, position=9)
    await add_webhook(database, position=1)
    assert await purged_of(database) == SeriesBatch(None, series=1, images=1, untold=2)
    assert [await database.get(uid(n)) is None for n in (1, 2, 3)] == [True, False, False]


async def test_a_series_stays_whose_change_was_given_up_until_that_is_told_again(database: Database) -> None:
    await stored(database, 1, 2)
    await aged(database, 1, 2)
    id = await add_webhook(database, position=2)
    await database.webhooks.bury(id, 1, "HTTP 500")
    assert await purged_of(database) == SeriesBatch(None, series=1, images=1, untold=1)
    assert await database.webhooks.replay(id) == 1
    assert (await purged_of(database)).untold == 1
    assert await database.webhooks.remove(id)
    assert (await purged_of(database)).series == 1


async def test_a_series_stays_whose_change_has_no_number_yet(database: Database) -> None:
    await stored(database, 1)
    await executed(database, series.update().values(UpdatedAt=OLD))
    assert await purged_of(database, dry=True) == SeriesBatch(None, series=1, images=1)  # a purge gives it one
    assert await purged_of(database) == SeriesBatch(None, untold=1)
    await add_webhook(database, position=0)
    assert await purged_of(database, dry=True) == SeriesBatch(None, untold=1)


async def test_a_dry_run_counts_what_a_purge_then_does_and_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "SERIES_AT_ONCE", 4)
    await stored(database, *range(10))
    await stored(database, 7, 9, sop="2")
    await stored(database, 3, sop="2", PatientID="P2")
    await aged(database, *range(10))
    await stored(database, 7, sop="3")
    before = await contents(database)
    counted = await purged_of(database, dry=True), await outdated_of(database, dry=True)
    assert await contents(database) == before
    assert counted == (SeriesBatch(None, series=8, images=9, in_conflict=1), 2)
    assert (await purged_of(database), await outdated_of(database)) == counted


# --- what comes again -------------------------------------------------------------------------------------------


async def test_a_series_that_comes_again_is_new_and_says_when_it_was_purged(database: Database) -> None:
    await database.store(make_report("1", "2", "3", series=uid(1)))
    await aged(database, 1)
    began = datetime.now(UTC)
    await purged_of(database)
    record, created = await database.store(make_report("3", series=uid(1)))
    assert (created, record.NumInstances, record.Revision) == (True, 1, 1)
    first, second = await database.timeline(uid(1))
    assert (first.Event, first.Details) == ("series.purged", {"Images": 3})
    assert began <= first.At < second.At
    assert "purged" not in await names_of(database, 1)
    await database.store(make_report("4", series=uid(1)))
    assert [event.Event for event in await database.timeline(uid(1))].count("series.purged") == 1
    await aged(database, 1)
    await purged_of(database)
    assert [row["NumInstances"] for row in (await contents(database))["purged"]] == [2]


async def test_numbers_go_on_behind_a_purged_change_and_any_place_goes_on(database: Database) -> None:
    await stored(database, 1, 2, 3)
    await aged(database, 1, 3)
    await purged_of(database)
    assert await database.last_change() == 3
    assert [change.Number for change in await database.changes(since=0, limit=9)] == [2]
    await stored(database, 3)
    for since in range(4):
        told = [(change.Number, change.Kinds) for change in await database.changes(since=since, limit=9)]
        assert told[-1] == (4, ["created"]), since


async def test_the_number_of_series_that_the_page_counts_on_goes_down(database: Database) -> None:
    await stored(database, 1, 2, 3)
    await aged(database, 1, 3)
    latest = database.latest
    assert (await latest.ever_stored(), await latest.purged()) == (3, 0)
    await purged_of(database)
    assert (await latest.ever_stored(), await latest.purged()) == (3, 2)


# --- old changes of those that stay -----------------------------------------------------------------------------


async def test_outdated_changes_go_and_the_last_revision_of_each_series_stays(database: Database) -> None:
    await stored(database, 1, 2)
    await stored(database, 1, sop="2")
    await stored(database, 1, sop="3", PatientID="P2")  # a conflict is no revision
    await stored(database, 3)
    await aged(database, 1, 2, 3)
    await executed(database, series.update().where(series.c.SeriesInstanceUID == uid(1)).values(UpdatedAt=BEFORE))
    assert await outdated_of(database) == 1
    assert [row["SeriesInstanceUID"] for row in await database.latest.newest(9)] == [uid(3), uid(1), uid(2)]
    assert [change.Number for change in await database.changes(since=0, limit=9)] == [2, 3, 4, 5]


async def test_a_change_that_a_webhook_was_not_told_stays(database: Database) -> None:
    for sop in range(4):
        await stored(database, 1, sop=str(sop))
    await aged(database, 1)
    await executed(database, series.update().values(UpdatedAt=BEFORE))
    behind, ahead = await add_webhook(database, position=2), await add_webhook(database, position=4)
    await database.webhooks.bury(ahead, 1, "HTTP 500")
    assert await outdated_of(database) == 1
    assert [change.Number for change in await database.changes(since=0, limit=9)] == [1, 3, 4]
    for id in (behind, ahead):
        await database.webhooks.remove(id)
    assert await outdated_of(database) == 2


async def test_the_walk_through_changes_ends_where_they_are_young(database: Database) -> None:
    await stored(database, 1)
    assert await database.purger.changes(BEFORE, 0, dry=False) == ChangeBatch(after=None)
    await aged(database, 1)
    assert await database.purger.changes(BEFORE, 0, dry=False) == ChangeBatch(after=1)
    assert CHANGES_AT_ONCE > 1


# --- beside reports ---------------------------------------------------------------------------------------------


async def test_reports_of_the_very_series_lose_no_image_and_nobody_deadlocks(database: Database) -> None:
    numbers = range(24)
    for round_ in range(6):
        await stored(database, *numbers, sop=f"{round_}0")
        await aged(database, *numbers)
        reports = [make_report(f"{round_}1", series=uid(n)) for n in numbers]
        answers = await asyncio.gather(
            *(database.store(report) for report in reports[:12]),
            purged_of(database),
            purged_of(database),
            *(database.store(report) for report in reports[12:]),
        )
        assert len(answers) == len(reports) + 2
        for report in reports:
            known = await database.instances(report.SeriesInstanceUID)
            record = await database.get(report.SeriesInstanceUID)
            assert record is not None
            assert record.NumInstances == len(known)
            assert {f"{report.SeriesInstanceUID}.{round_}1"} <= set(known)
            events = [event.Event for event in await database.timeline(report.SeriesInstanceUID)]
            if record.Revision == 1:
                assert events[0] == "series.purged"
            else:
                assert f"{report.SeriesInstanceUID}.{round_}0" in known
        assert (await contents(database))["purged"] == []


async def waits_for_lock(database: Database) -> None:
    """Until somebody waits for a lock of PostgreSQL; on SQLite one waits for the only writer at once."""
    async with asyncio.timeout(120):
        while not is_on_sqlite(database):
            if await database.engine.read(text("SELECT 1 FROM pg_locks WHERE NOT granted")):
                return
            await asyncio.sleep(0.01)


async def test_a_report_that_waits_for_the_purge_of_its_series_makes_it_anew(database: Database) -> None:
    await stored(database, 1)
    await aged(database, 1)
    async with transaction(database) as connection:
        assert (await purge.purge_series(connection, BEFORE, None)).series == 1
        storing = asyncio.create_task(database.store(make_report("2", series=uid(1))))
        await waits_for_lock(database)
    record, created = await storing
    assert (created, record.NumInstances) == (True, 1)
    assert [event.Event for event in await database.timeline(uid(1))] == ["series.purged", "report.stored"]


@pytest.mark.parametrize("locked_first", [True, False])
async def test_a_purge_that_waits_for_a_report_leaves_its_series(database: Database, locked_first: bool) -> None:
    await stored(database, 1)
    await aged(database, 1)
    async with transaction(database) as connection:
        this = series.c.SeriesInstanceUID == uid(1)
        change = series.update().where(this).values(UpdatedAt=datetime.now(UTC))
        if locked_first:
            await connection.execute(select(series).where(this).with_for_update())
        else:
            await connection.execute(change)
        purging = asyncio.create_task(purged_of(database))
        await waits_for_lock(database)
        await connection.execute(change)
    assert await purging == SeriesBatch(None)
    assert await database.get(uid(1)) is not None


async def test_a_purge_that_waits_for_a_report_goes_on_behind_its_series(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "SERIES_AT_ONCE", 2)
    await stored(database, *range(4))
    await aged(database, *range(4))
    async with transaction(database) as connection:
        change = series.update().where(series.c.SeriesInstanceUID == uid(1)).values(UpdatedAt=datetime.now(UTC))
        await connection.execute(change)
        purging = asyncio.create_task(purged_of(database))
        await waits_for_lock(database)
    assert (await purging).series == 3
    assert await database.get(uid(1)) is not None


async def test_two_purges_at_the_same_time_each_end_when_all_is_gone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "SERIES_AT_ONCE", 3)
    await stored(database, *range(10))
    await aged(database, *range(10))
    first, second = await asyncio.gather(purged_of(database), purged_of(database))
    assert first.series + second.series == 10


async def test_a_report_finds_the_row_gone_between_its_two_statements(database: Database) -> None:
    """On PostgreSQL: the insert sees the row that a purge has locked and not yet deleted."""
    await stored(database, 1)
    await aged(database, 1)
    async with transaction(database) as connection:
        this = series.c.SeriesInstanceUID == uid(1)
        await connection.execute(select(series).where(this).with_for_update())
        storing = asyncio.create_task(database.store(make_report("2", series=uid(1))))
        await waits_for_lock(database)
        assert (await purge.purge_series(connection, BEFORE, None)).series == 1
    record, created = await storing
    assert (created, record.NumInstances) == (True, 1)
    assert [event.Event for event in await database.timeline(uid(1))] == ["series.purged", "report.stored"]


# --- what it costs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "indexes"),
    [
        (purge.select_old(BEFORE, None), ["series_by_update"]),
        (purge.select_old(BEFORE, (OLD, "1")), ["series_by_update"]),
        (purge.select_stays(["1", "2"], dry=False), ["sqlite_autoindex_series_1", "changes_by_series"]),
        (purge.select_next_changes(5), ["changes_by_number"]),
        (select(changes.c.Id).where(purge.are_outdated(BEFORE, 5, 9)), ["changes_by_number", "changes_by_series"]),
    ],
)
async def test_a_purge_goes_along_indexes(tmp_path: Any, query: Any, indexes: list[str]) -> None:
    async with Database.open(ServerSettings(database_url=f"sqlite+aiosqlite:///{tmp_path}/s.db")) as database:
        compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
        explained = text(f"EXPLAIN QUERY PLAN {str(compiled).replace(':', '-')}")
        steps = " ".join(row["detail"] for row in await database.engine.read(explained))
    for index in indexes:
        assert index in steps, steps
    assert "SCAN series" not in steps
    assert "SCAN changes" not in steps
    assert "SCAN later" not in steps


# --- the rest ---------------------------------------------------------------------------------------------------


@pytest.mark.peer("postgresql")
async def test_a_move_takes_tombstones_along(tmp_path: Any, postgresql_url: str) -> None:
    source = ServerSettings(database_url=f"sqlite+aiosqlite:///{tmp_path}/s.db")
    async with Engine.open(source) as one, Engine.open(ServerSettings(database_url=postgresql_url)) as two:
        database, target = Database(one), Database(two)
        await stored(database, 1, 2)
        await aged(database, 1)
        await purged_of(database)
        await move(one, two, lambda _: None, lambda _: None)
        assert await contents(target) == await contents(database)
        assert await target.latest.purged() == 1
        await target.store(make_report("5", series=uid(1)))
        assert (await target.timeline(uid(1)))[0].Event == "series.purged"
        assert await target.last_change() == 3


def entries(first: int, count: int) -> list[dict[str, Any]]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        {"At": at + timedelta(seconds=n), "Event": "pacs.answered", "Details": {"Count": n}}
        for n in range(first, first + count)
    ]


async def test_a_long_timeline_keeps_its_first_and_last_events_and_says_how_many_stood_between(
    database: Database,
) -> None:
    count = 0
    for round_ in range(20):
        await stored(database, 1, sop="1", Timeline=entries(200 * round_, 200))
        count += 200
        events = await database.timeline(uid(1))
        assert len(events) <= history.MOST
        dropped = [event for event in events if event.Event == "timeline.shortened"]
        assert len(dropped) <= 1
        known = len(events) - len(dropped) + sum(int(event.Details["Dropped"] or 0) for event in dropped)
        assert known == count + 1  # the server's own, of the first report
    told = [event.Details["Count"] for event in events if event.Event == "pacs.answered"]
    (at,) = (n for n, event in enumerate(events) if event.Event == "timeline.shortened")
    assert at == history.FIRST
    assert told[:500] == list(range(500))
    assert told[500:] == list(range(4000 - len(told) + 500, 4000))
    (mark,) = dropped
    assert str(mark.Details["Until"]).startswith(f"{events[at + 1].At - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}")


async def test_a_timeline_of_an_earlier_version_is_shortened_by_the_next_report(database: Database) -> None:
    await stored(database, 1)
    rows = [
        {"SeriesInstanceUID": uid(1), "At": OLD + timedelta(seconds=n), "Revision": 1, "Event": "x.y", "Details": {}}
        for n in range(40_000)
    ]
    await database.engine.write(lambda connection: connection.execute(timeline.insert(), rows))
    await stored(database, 1, sop="2")
    events = await database.timeline(uid(1))
    assert len(events) == history.FIRST + 1 + history.LAST
    assert events[history.FIRST].Details["Dropped"] == 40_002 - history.FIRST - history.LAST


def test_a_move_leaves_no_table_behind() -> None:
    assert {*TABLES} == {*metadata.sorted_tables}

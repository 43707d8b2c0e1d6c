"""The database contract, on a real file of SQLite and on a real PostgreSQL."""

import asyncio
import contextlib
import random
import re
import sqlite3
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import alembic.autogenerate
import alembic.command
import alembic.config
import alembic.migration
import pytest
import sqlalchemy
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from api.operations import operations
from api.told import uid_of
from common import metrics
from common.settings import ServerSettings
from db import CONFLICTS_BYTES, Database
from gateway.pieces import pieces
from models import MAX_VALUE, SeriesRecord, SeriesReport
from storage.connection import Connection
from storage.engine import BUSY_TIMEOUT_MS, DatabaseUnavailable, DatabaseUnusable, Engine
from storage.listing import Listing, select_listed
from storage.move import move
from storage.schema import instances, metadata
from tests.rig.factories import SERIES, STUDY, make_report
from tests.rig.migrating import downgrade
from tests.rig.transactions import is_on_sqlite, transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a SQLite file."""
    return tmp_path / "series.db"


def sqlite(path: Path) -> ServerSettings:
    return ServerSettings(database_url=f"sqlite+aiosqlite:///{path}")


async def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in await database.engine.read(text(query))]


async def test_the_seeds_columns_come_first(database: Database) -> None:
    def columns(connection: sqlalchemy.Connection) -> list[tuple[str, str]]:
        return [(column["name"], str(column["type"])) for column in inspect(connection).get_columns("series")]

    async with transaction(database) as connection:
        found = await connection.run_sync(columns)
        keys = await connection.run_sync(lambda c: inspect(c).get_pk_constraint("series")["constrained_columns"])
    assert [name for name, _ in found][:5] == [
        "SeriesInstanceUID",
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "NumInstances",
    ]
    assert [kind.split()[0] for _, kind in found][:5] == ["TEXT"] * 4 + ["INTEGER"]
    assert keys == ["SeriesInstanceUID"]


async def test_migrations_make_exactly_the_tables_the_code_uses(database: Database) -> None:
    def differences(connection: sqlalchemy.Connection) -> list[Any]:
        context = alembic.migration.MigrationContext.configure(connection)
        return list(alembic.autogenerate.compare_metadata(context, metadata))

    async with transaction(database) as connection:
        assert await connection.run_sync(differences) == []


async def test_migrations_make_the_same_file_as_the_code_would(path: Path, tmp_path: Path) -> None:
    async with Database.open(sqlite(path)):
        pass
    engine = create_engine(f"sqlite:///{tmp_path / 'expected.db'}")
    metadata.create_all(engine)
    engine.dispose()
    query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL ORDER BY name"
    made = []
    for file in (path, tmp_path / "expected.db"):
        connection = sqlite3.connect(file)
        made.append([" ".join(sql.split()).replace(" ,", ",") for (sql,) in connection.execute(query)])
        connection.close()
    assert made[0] == made[1]


async def test_new_series_is_stored_and_read_back(database: Database) -> None:
    record, created = await database.store(make_report("1", "2"))
    assert created
    assert (record.NumInstances, record.Revision, record.Modality, record.Verdict) == (2, 1, "CT", "idle")
    assert await database.get(SERIES) == record
    assert await database.get("9.9") is None


async def test_repeating_a_report_changes_nothing(database: Database) -> None:
    first, _ = await database.store(make_report("1", "2"))
    again, created = await database.store(make_report("2", "1"))
    assert (again, created) == (first, False)


async def test_late_images_make_the_next_revision(database: Database) -> None:
    await database.store(make_report("1", "2"))
    record, _ = await database.store(make_report("2", "3"))
    assert (record.NumInstances, record.Revision) == (3, 2)


async def test_union_does_not_depend_on_order_or_repetition(database: Database) -> None:
    rng = random.Random(7)
    parts = [make_report(*rng.sample([str(n) for n in range(40)], 8)) for _ in range(20)]
    wanted = {uid for part in parts for uid in part.SOPInstanceUIDs or ()}
    await asyncio.gather(*(database.store(part) for part in rng.sample(parts * 3, 60)))
    record = await database.get(SERIES)
    assert record is not None
    assert record.NumInstances == len(wanted)


async def test_count_without_uids_is_a_floor_and_never_lowers(database: Database) -> None:
    def counted(n: int) -> SeriesReport:
        return make_report().model_copy(update={"SOPInstanceUIDs": None, "NumInstances": n})

    assert (await database.store(counted(5)))[0].NumInstances == 5
    assert (await database.store(counted(3)))[0].NumInstances == 5
    assert (await database.store(make_report("1", "2")))[0].NumInstances == 5
    assert (await database.store(make_report(*map(str, range(7)))))[0].NumInstances == 7
    assert (await database.store(counted(40)))[0].NumInstances == 40


@pytest.mark.parametrize("change", [{"patient_id": "P2"}, {"study": "1.9"}])
async def test_contradicting_report_is_kept_aside_and_overwrites_nothing(
    database: Database, change: dict[str, str]
) -> None:
    before, _ = await database.store(make_report("1"))
    for _ in range(2):  # a repeat is kept once
        after, _ = await database.store(make_report("2", "3", **change))
        assert after == before.model_copy(update={"Conflicts": 1})
    assert await rows(database, "SELECT count(*) FROM conflicts") == [(1,)]
    assert await rows(database, "SELECT count(*) FROM instances") == [(1,)]


async def test_missing_patient_contradicts_nobody_and_is_filled(database: Database) -> None:
    await database.store(make_report("1", patient_id=None))
    record, _ = await database.store(make_report("2", patient_id="P1"))
    assert (record.PatientID, record.NumInstances, record.Conflicts) == ("P1", 2, 0)
    record, _ = await database.store(make_report("3", patient_id=None))
    assert (record.PatientID, record.NumInstances, record.Conflicts) == ("P1", 3, 0)


async def test_stored_attributes_stay_and_gaps_are_filled(database: Database) -> None:
    await database.store(make_report("1"))
    later = make_report("2").model_copy(update={"Attributes": {"Modality": ["MR"], "SeriesNumber": ["4"]}})
    record, _ = await database.store(later)
    assert record.Attributes == {"Modality": ["CT"], "SeriesNumber": ["4"]}


async def test_pages_follow_each_other_without_gap_or_repeat(database: Database) -> None:
    for n in range(25):
        await database.store(make_report("1", series=f"1.{n}", patient_id="P1" if n % 2 else "P2"))
    seen: list[SeriesRecord] = []
    listing = Listing(PatientID="P1")
    while page := await database.page(after=[seen[-1].SeriesInstanceUID] if seen else None, limit=4, listing=listing):
        seen += page
    assert sorted(r.SeriesInstanceUID for r in seen) == sorted(f"1.{n}" for n in range(1, 25, 2))
    assert [r.SeriesInstanceUID for r in seen] == sorted(r.SeriesInstanceUID for r in seen)


async def test_filters_match_exactly(database: Database) -> None:
    await database.store(make_report("1", series="1.1").model_copy(update={"Source": "CT1 CT"}))
    for column, value in (
        ("PatientID", "P1"),
        ("StudyInstanceUID", make_report().StudyInstanceUID),
        ("Modality", "CT"),
        ("Verdict", "idle"),
        ("Source", "CT1 CT"),
    ):
        exactly, less = (replace(Listing(), **{column: cast("Any", text)}) for text in (value, value[:-1]))
        assert len(await database.page(after=None, limit=9, listing=exactly)) == 1
        assert await database.page(after=None, limit=9, listing=less) == []


BORN = datetime(2026, 1, 1, tzinfo=UTC)
LISTINGS: list[tuple[Listing, str]] = [
    (Listing(newest=True), "series_by_update"),
    (Listing(UpdatedSince=BORN), "series_by_update"),
    (Listing(UpdatedSince=BORN, UpdatedUntil=BORN, newest=True), "series_by_update"),
    (Listing(Modality="CT", newest=True), "series_by_modality_and_update"),
    (Listing(Modality="CT", UpdatedSince=BORN), "series_by_modality_and_update"),
    (Listing(Verdict="idle"), "series_by_verdict"),
    (Listing(Verdict="idle", newest=True), "series_by_verdict"),
    (Listing(Source="CT1 CT", UpdatedSince=BORN), "series_by_source"),
    (Listing(Incomplete=True), "incomplete_series"),
    (Listing(Incomplete=True, newest=True, UpdatedSince=BORN), "incomplete_series"),
    (Listing(Incomplete=True, Modality="CT"), "incomplete_series"),
    (Listing(Incomplete=True, Source="CT1 CT", StudyDate=("20260101", None), newest=True), "incomplete_series"),
    (Listing(Conflicts=True, newest=True), "series_in_conflict"),
    (Listing(Conflicts=True, Verdict="idle"), "series_in_conflict"),
    (Listing(Doubtful=True), "doubtful_series"),
    (Listing(Doubtful=True, newest=True, UpdatedSince=BORN), "doubtful_series"),
    (Listing(StudyDate=("20260101", "20260131")), "studies_by_date"),
    (Listing(StudyDate=("20260101", None), Modality="CT"), "studies_by_modality_and_date"),
    (Listing(StudyDate=("20180101", None), Modality="CT", newest=True), "series_by_modality_and_update"),
    (Listing(StudyDate=("20180101", "20261231"), newest=True), "series_by_update"),
    (Listing(), "sqlite_autoindex_series_1"),
]


@pytest.mark.parametrize("place", [True, False])
@pytest.mark.parametrize(("listing", "index"), LISTINGS)
async def test_a_listing_goes_along_an_index_and_sorts_nothing(
    path: Path, listing: Listing, index: str, place: bool
) -> None:
    behind = [BORN if name == "UpdatedAt" else "1" for name in listing.order] if place else None
    query = select_listed(listing, behind, 101)
    compiled = query.compile(dialect=dialect())
    async with Database.open(ServerSettings(database_url=f"sqlite+aiosqlite:///{path}")) as database:
        explained = text(re.sub(r"\?", "'2'", f"EXPLAIN QUERY PLAN {compiled}"))
        steps = [row["detail"] for row in await database.engine.read(explained)]
    assert len(steps) == 1, steps
    assert f" INDEX {index}" in steps[0], steps


async def test_pages_in_every_order_follow_each_other_while_rows_change(database: Database) -> None:
    for n in range(12):
        report = judged("1", expected=1 + n % 3).model_copy(
            update={
                "SeriesInstanceUID": f"1.{n}",
                "Attributes": {"Modality": ["CT"], "StudyDate": [f"2026010{n % 3}"]},
                "Doubtful": ["the UID has letters"] * (n % 3 == 1),
            }
        )
        await database.store(report)
    for listing, wanted in (
        (Listing(newest=True), [f"1.{n}" for n in reversed(range(12))]),
        (Listing(Incomplete=True), [f"1.{n}" for n in range(12) if n % 3]),
        (Listing(Incomplete=False), [f"1.{n}" for n in range(12) if not n % 3]),
        (Listing(StudyDate=("20260101", "20260102")), sorted((f"1.{n}" for n in range(12) if n % 3), key=by_date)),
        (Listing(Conflicts=True), []),
        (Listing(Conflicts=False), [f"1.{n}" for n in range(12)]),
        (Listing(Doubtful=True), [f"1.{n}" for n in range(12) if n % 3 == 1]),
        (Listing(Doubtful=False), [f"1.{n}" for n in range(12) if n % 3 != 1]),
    ):
        seen: list[str] = []
        after = None
        while page := await database.page(after=after, limit=5, listing=listing):
            seen += [record.SeriesInstanceUID for record in page]
            known = page[-1].model_dump() | {"StudyDate": page[-1].Attributes["StudyDate"][0]}
            after = [known[name] for name in listing.order]
        assert seen == wanted, listing


def by_date(uid: str) -> tuple[int, str]:
    return int(uid.removeprefix("1.")) % 3, uid


async def test_sqlite_is_durable_with_foreign_keys_and_readers_cannot_write(path: Path) -> None:
    async with Database.open(sqlite(path)) as database:
        async with transaction(database) as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("busy_timeout", BUSY_TIMEOUT_MS),
            ):
                assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value
            with pytest.raises(IntegrityError):
                await connection.execute(instances.insert().values(SeriesInstanceUID="none", SOPInstanceUID="1"))
        with pytest.raises(DatabaseUnavailable):
            await Database(Engine(database.engine.readers, database.engine.readers)).store(make_report("1"))


async def test_a_new_series_is_written_once_and_what_was_written_is_not_read(database: Database) -> None:
    await database.store(make_report("1", series=f"{SERIES}.1"))
    asked: list[str] = []
    engine: Any = database.engine.writer.engine
    listening = (getattr(engine, "sync_engine", engine), "before_cursor_execute", lambda *given: asked.append(given[2]))
    event.listen(*listening)
    try:
        await database.store(make_report("1", "2"))
    finally:
        event.remove(*listening)
    of_table = r"(UPDATE|INSERT|SELECT)\b(?:.*?\b(?:INTO|FROM))?\s+(\w+)"
    told = Counter(found.groups() for one in asked if (found := re.match(of_table, one, re.DOTALL)))
    assert told["SELECT", "series"] == told["INSERT", "series"] == told["INSERT", "instances"] == 1
    assert told["UPDATE", "series"] == told["SELECT", "instances"] == told["SELECT", "timeline"] == 0


async def test_failed_report_leaves_nothing_behind(database: Database) -> None:
    await database.store(make_report("1"))
    on_sqlite = is_on_sqlite(database)
    fault = ["CREATE TRIGGER fault BEFORE UPDATE ON series BEGIN SELECT RAISE(ABORT, 'injected'); END"]
    if not on_sqlite:
        fault = [
            "CREATE FUNCTION fault() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'injected'; END $$ LANGUAGE plpgsql",
            "CREATE TRIGGER fault BEFORE UPDATE ON series EXECUTE FUNCTION fault()",
        ]
    await executed(database, *fault)
    with pytest.raises(DatabaseUnavailable):
        await database.store(make_report("2", "3"))
    assert await rows(database, "SELECT count(*) FROM instances") == [(1,)]
    await executed(database, "DROP TRIGGER fault" + ("" if on_sqlite else " ON series"))
    assert (await database.store(make_report("2", "3")))[0].NumInstances == 3


async def executed(database: Database, *statements: str) -> None:
    async def execute(connection: Connection) -> None:
        for statement in statements:
            await connection.execute(text(statement))

    await database.engine.write(execute)


async def test_records_survive_reopening(database_url: str) -> None:
    settings = ServerSettings(database_url=database_url)
    async with Database.open(settings) as database:
        record, _ = await database.store(make_report("1"))
    async with Database.open(settings) as database:
        assert await database.get(SERIES) == record


async def test_unknown_schema_is_refused_with_the_cure(database_url: str) -> None:
    settings = ServerSettings(database_url=database_url)
    async with Database.open(settings) as database:
        await executed(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnusable, match=r"9999.*newer"):
        async with Database.open(settings):
            pass


async def test_file_that_is_no_database_is_refused_with_the_cure(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DatabaseUnusable, match="is it such a file"):
        async with Database.open(sqlite(path)):
            pass


async def test_missing_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="folder does not exist"):
        async with Database.open(sqlite(tmp_path / "missing" / "series.db")):
            pass


async def test_a_new_file_is_its_owners_only(path: Path) -> None:
    async with Database.open(sqlite(path)) as database:
        await database.store(make_report("1"))
        files = [file for file in path.parent.iterdir() if file.suffix != ".lock"]
        assert {file.stat().st_mode & 0o077 for file in files} == {0}
        assert len(files) == 3


async def test_a_second_process_on_sqlite_is_refused_with_the_cure(path: Path) -> None:
    async with Database.open(sqlite(path)):
        with pytest.raises(DatabaseUnusable, match=r"used by another.*postgresql\+asyncpg"):
            async with Database.open(sqlite(path)):
                pass
    async with Database.open(sqlite(path)):
        pass


async def test_a_postgresql_that_is_not_there_is_refused_without_showing_the_password() -> None:
    settings = ServerSettings(database_url="postgresql+asyncpg://me:secret@127.0.0.1:1/series")
    with pytest.raises(DatabaseUnusable, match="is it running there") as raised:
        async with Database.open(settings):
            pass
    assert "secret" not in str(raised.value)


async def test_what_an_earlier_version_claimed_is_mended_in_the_file(database_url: str) -> None:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        for n in range(3):
            await database.store(judged("1", verdict="verified", expected=1, SeriesInstanceUID=f"1.{n}"))
        await executed(database, 'UPDATE series SET "ExpectedInstances" = 7 WHERE "SeriesInstanceUID" = \'1.0\'')
        await executed(database, 'UPDATE series SET "ExpectedInstances" = 0 WHERE "SeriesInstanceUID" = \'1.1\'')
    await downgrade(database_url, "0004")
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        query = 'SELECT "Verdict", "ExpectedInstances", "ExpectedFrom" FROM series ORDER BY "SeriesInstanceUID"'
        assert await rows(database, query) == [("idle", 7, "pacs"), ("idle", None, None), ("verified", 1, "pacs")]
        assert {c.AfterCapped for c in await database.completions()} == {0}


@pytest.mark.peer("postgresql")
async def test_a_file_with_text_that_is_no_unicode_is_moved(path: Path, postgresql_url: str) -> None:
    async with Database.open(sqlite(path)) as database:
        await database.store(make_report("1"))
        await database.store(make_report("2", patient_id="P2"))
        await executed(database, """UPDATE series SET "Attributes" = '{"StudyID": ["a\\udfffb"]}'""")
        report = make_report("2", patient_id="P2").model_dump_json().replace('"CT"', '"\\udfff"')
        kept = text('UPDATE conflicts SET "Report" = :report').bindparams(report=report)
        await database.engine.write(lambda connection: connection.execute(kept))
    async with Engine.open(sqlite(path)) as source, Engine.open(ServerSettings(database_url=postgresql_url)) as target:
        await move(source, target, lambda _: None, lambda _: None)
        moved = Database(target)
        record = await moved.get(SERIES)
        assert record is not None
        assert record.Attributes == {"StudyID": ["a\ufffdb"]}
        (conflict,) = await moved.conflicts(after=None, limit=9, resolved=False)
        assert conflict.Report.Attributes == {"Modality": ["\ufffd"]}


async def test_a_report_that_nobody_looked_at_is_stored_as_text_that_others_can_bear(database: Database) -> None:
    report = make_report("1").model_copy(
        update={
            "Attributes": {"SeriesDescription": ["a\udfffb"], "Modality": ["x" * 20_000], "AccessionNumber": ["\ud800"]}
        }
    )
    record, _ = await database.store(report)
    assert record.Attributes == {
        "SeriesDescription": ["a\ufffdb"],
        "Modality": ["x" * MAX_VALUE],
        "AccessionNumber": ["\ufffd"],
    }
    assert await database.get(SERIES) == record


# --- many at once -----------------------------------------------------------------------------------------------


def part(numbers: list[int], gateway: str = "one") -> SeriesReport:
    return make_report(*map(str, numbers)).model_copy(update={"GatewayID": gateway})


async def test_overlapping_reports_at_the_same_time_are_united_exactly(database: Database) -> None:
    rng = random.Random(1)
    for round_ in range(8):
        series = f"{STUDY}.{round_}"
        parts = [rng.sample(range(100), 20) for _ in range(64)]
        reports = [make_report(*map(str, numbers), series=series) for numbers in parts]
        answers = await asyncio.gather(*(database.store(report) for report in reports))
        wanted = len({number for numbers in parts for number in numbers})
        record = await database.get(series)
        assert record is not None
        assert (record.NumInstances, len(await database.instances(series))) == (wanted, wanted)
        assert sum(created for _, created in answers) == 1
        assert max(answer.Revision for answer, _ in answers) == record.Revision


@pytest.mark.peer("postgresql")
async def test_a_broken_connection_loses_and_doubles_nothing(postgresql_url: str) -> None:
    """PostgreSQL ends every connection again and again while reports come; then it leaves them alone."""
    others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    settings = ServerSettings(database_url=postgresql_url, database_pool_size=4)
    killer = create_async_engine(postgresql_url)
    done = asyncio.Event()

    async def kill() -> None:
        for _ in range(40):
            if done.is_set():
                return
            async with killer.connect() as connection:
                await connection.execute(others)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await done.wait()

    async with Database.open(settings) as database:
        killing = asyncio.create_task(kill())
        reports = [make_report(str(n), str(n + 1)) for n in range(120)]
        answers = await asyncio.gather(*(database.store(one) for one in reports), return_exceptions=True)
        done.set()
        await killing
        await killer.dispose()
        assert [answer for answer in answers if not isinstance(answer, tuple | DatabaseUnavailable)] == []
        stored = {n for n, answer in enumerate(answers) if isinstance(answer, tuple)}
        assert stored
        known = await database.instances(SERIES)
        assert {f"{SERIES}.{n + more}" for n in stored for more in (0, 1)} <= set(known)
        record = await database.get(SERIES)
        assert record is not None
        assert record.NumInstances == len(known)


async def test_changes_are_numbered_without_gap_in_the_order_of_each_series(database: Database) -> None:
    seen: list[tuple[str, int]] = []
    numbers: list[int] = []
    done = asyncio.Event()

    async def follow() -> None:
        since = 0
        while not done.is_set() or await database.last_change() > since:
            for change in await database.changes(since=since, limit=7):
                since = change.Number
                numbers.append(change.Number)
                seen.append((uid_of(change), change.Revision))

    async def send(series: str) -> None:
        for n in range(10):
            await database.store(make_report(str(n), series=series))

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        await asyncio.gather(*(send(f"{STUDY}.{n}") for n in range(12)))
        done.set()
        await following
    assert numbers == list(range(1, 121))
    for n in range(12):
        assert [revision for series, revision in seen if series == f"{STUDY}.{n}"] == list(range(1, 11))


async def test_a_change_tells_what_the_record_was_then(database: Database) -> None:
    await database.store(make_report("1", "2"))
    await database.store(make_report("1", "2"))  # no news
    await database.store(make_report("3"))
    first, second = await database.changes(since=0, limit=10)
    assert (first.Revision, first.NumInstances, first.StudyInstanceUID, first.Verdict) == (1, 2, STUDY, "idle")
    assert (second.Number, second.Revision, second.NumInstances) == (2, 2, 3)
    assert await database.changes(since=2, limit=10) == []
    assert await database.last_change() == 2


async def test_a_change_says_all_that_a_consumer_decides_by(database: Database) -> None:
    await database.store(judged("1", verdict=None, expected=3))
    await database.store(judged("1", "2", expected=3))
    await database.store(judged("3", verdict="verified", expected=3, revision=2))
    await database.store(judged("1", "2", "3", "4", verdict="verified", expected=4, revision=3))
    told = await database.changes(since=0, limit=10)
    assert [change.Kinds for change in told] == [
        *(["created"], ["revised"]),
        *[["revised", "verified", "contradicted"]] * 2,
    ]
    assert [(change.NumInstances, change.ExpectedInstances, change.Missing) for change in told] == [
        *((1, 3, 2), (2, 3, 1)),
        *((3, 3, 0), (4, 4, 0)),
    ]
    assert {(change.Modality, change.Source) for change in told} == {("CT", "CT1 CT")}
    for change in told:
        assert not {"P1", "Test^One"} & set(change.model_dump_json().split('"'))


async def test_a_change_says_what_is_doubtful_of_its_series_so_far(database: Database) -> None:
    await database.store(make_report("1").model_copy(update={"Doubtful": ["a"]}))
    await database.store(make_report("2").model_copy(update={"Doubtful": ["b"]}))
    assert [change.Doubtful for change in await database.changes(since=0, limit=10)] == [["a"], ["a", "b"]]
    await executed(database, "UPDATE series SET \"Doubtful\" = '[]'")
    assert await database.page(after=None, limit=5, listing=Listing(Doubtful=True)) == []


async def test_a_conflict_is_told_once_and_is_no_revision(database: Database) -> None:
    digest = await conflicted(database)
    await database.store(make_report("2", "3", patient_id="P2"))
    first, conflict = await database.changes(since=0, limit=10)
    assert (conflict.Kinds, conflict.Revision) == (["conflict"], first.Revision)
    assert (conflict.NumInstances, conflict.Verdict) == (first.NumInstances, first.Verdict)
    (shown,) = await database.latest.newest(10)
    assert shown["Number"] == first.Number
    assert await database.latest.new_series(0, conflict.Number) == 1
    await database.resolve(digest, "dismiss", "op")
    await database.store(make_report("2", "3", patient_id="P2"))
    assert await database.last_change() == conflict.Number


async def test_a_change_of_an_earlier_version_names_no_kinds(database: Database) -> None:
    await database.store(make_report("1"))
    await executed(database, 'UPDATE changes SET "Modality" = NULL, "ExpectedInstances" = NULL, "Kinds" = NULL')
    (change,) = await database.changes(since=0, limit=10)
    assert (change.Kinds, change.Modality, change.Missing) == ([], None, 0)


# --- instances --------------------------------------------------------------------------------------------------


async def test_what_is_known_of_each_instance_is_stored_with_it(database: Database) -> None:
    report = make_report("1", "2").model_copy(
        update={"InstanceAttributes": {"SOPClassUID": ["1.2.3"], "InstanceNumber": ["7", "x"], "Rows": [None, "512"]}}
    )
    await database.store(report)
    query = 'SELECT "SOPClassUID", "InstanceNumber", "Rows" FROM instances ORDER BY "SOPInstanceUID"'
    assert await rows(database, query) == [("1.2.3", 7, None), ("1.2.3", None, 512)]


async def test_hostile_lengths_and_bytes_are_stored(database: Database) -> None:
    long = "ü" * 1024
    report = SeriesReport.model_validate(
        make_report("1").model_dump()
        | {"PatientID": "ß" * 256, "PatientName": long, "Basis": "a\0b", "GatewayID": "\0"}
        | {"Attributes": {"StudyDate": [long], "AccessionNumber": [long * 9], "Modality": [long, "\0"]}}
    )
    record, _ = await database.store(report)
    assert (record.PatientName, record.Basis) == (long, "ab")


# --- conflicts --------------------------------------------------------------------------------------------------


async def conflicted(database: Database) -> str:
    """A series of patient P1 with one image, and a conflict: two images of P2; the conflict's digest."""
    await database.store(make_report("1"))
    await database.store(make_report("2", "3", patient_id="P2"))
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    assert (conflict.Report.PatientID, conflict.Report.NumInstances) == ("P2", 2)
    return conflict.Digest


async def test_a_dismissed_conflict_changes_nothing_and_is_not_raised_again(database: Database) -> None:
    digest = await conflicted(database)
    record = await database.resolve(digest, "dismiss", "op")
    assert record is not None
    assert (record.PatientID, record.NumInstances, record.Conflicts, record.Revision) == ("P1", 1, 0, 1)
    again, _ = await database.store(make_report("2", "3", patient_id="P2"))
    assert again == record
    (resolved,) = await database.conflicts(after=None, limit=9, resolved=True)
    assert (resolved.Resolution, resolved.ResolvedBy, resolved.Before) == ("dismiss", "op", None)
    assert await database.conflicts(after=None, limit=9, resolved=False) == []


async def test_a_merged_conflict_adds_its_images_and_keeps_the_patient(database: Database) -> None:
    digest = await conflicted(database)
    record = await database.resolve(digest, "merge", "op")
    assert record is not None
    assert (record.PatientID, record.NumInstances, record.Conflicts, record.Revision) == ("P1", 3, 0, 2)
    later, _ = await database.store(make_report("4", patient_id="P2"))
    assert (later.PatientID, later.NumInstances, later.Conflicts) == ("P1", 4, 0)
    third, _ = await database.store(make_report("5", patient_id="P3"))
    assert (third.NumInstances, third.Conflicts) == (4, 1)


async def test_a_corrected_conflict_takes_the_other_patient_and_keeps_the_one_before(database: Database) -> None:
    digest = await conflicted(database)
    record = await database.resolve(digest, "correct", "op")
    assert record is not None
    assert record == await database.get(SERIES)
    assert (record.PatientID, record.NumInstances, record.Conflicts) == ("P2", 3, 0)
    (resolved,) = await database.conflicts(after=None, limit=9, resolved=True)
    before = {"PatientID": "P1", "PatientName": "Test^One", "StudyInstanceUID": STUDY}
    assert resolved.Before == before | {"Attributes": {"Modality": ["CT"]}}
    later, _ = await database.store(make_report("4", patient_id="P1"))
    assert (later.PatientID, later.NumInstances, later.Conflicts) == ("P2", 4, 0)
    assert "conflict.resolved" in [event.Event for event in await database.timeline(SERIES)]
    changes = [change for change in await database.changes(since=0, limit=9) if change.Kinds != ["conflict"]]
    assert [change.Revision for change in changes] == list(range(1, later.Revision + 1))


async def test_a_page_of_conflicts_is_measured_in_bytes(database: Database) -> None:
    await database.store(make_report("1"))
    of_other = {f"{which}Description": ["山" * 10_000] for which in ("Series", "Study", "Requested", "Performed")}
    for n in range(40):  # 1.6 million characters
        await database.store(make_report("2", patient_id=f"P{n + 2}").model_copy(update={"Attributes": of_other}))
    page = await database.conflicts(after=None, limit=100, resolved=False)
    assert CONFLICTS_BYTES / 3 < sum(len(conflict.model_dump_json().encode()) for conflict in page) < CONFLICTS_BYTES


async def test_a_page_of_conflicts_has_no_more_bytes_than_one_large_report_or_some(database: Database) -> None:
    await database.store(make_report("1"))
    for n, most in enumerate((CONFLICTS_BYTES * 3 // 7, CONFLICTS_BYTES * 3 // 7, CONFLICTS_BYTES * 3 // 2, 300)):
        uids = [f"1.{n}.{at:050}" for at in range(1, most // 60)]
        await database.store(make_report("2", patient_id=f"P{n + 2}").model_copy(update={"SOPInstanceUIDs": uids}))
    pages, after = [], None
    while page := await database.conflicts(after=after, limit=9, resolved=False):
        pages.append([len(conflict.model_dump_json().encode()) for conflict in page])
        after = page[-1].Digest
        assert await database.has_conflicts(after=after, resolved=False) == (sum(map(len, pages)) < 4)
    assert sum(map(len, pages)) == 4
    assert all(sum(page) < CONFLICTS_BYTES * 1.2 or len(page) == 1 for page in pages)
    assert len(pages) < 4


async def test_a_corrected_record_is_of_one_patient_in_every_attribute(database: Database) -> None:
    of_one = {"PatientSex": ["M"], "PatientBirthDate": ["19500101"], "AccessionNumber": ["A"], "Modality": ["CT"]}
    await database.store(make_report("1").model_copy(update={"Attributes": of_one}))
    of_other = {"Attributes": {"PatientSex": ["F"], "Modality": ["MR"]}, "PatientName": None}
    await database.store(make_report("2", patient_id="P2", study="1.9").model_copy(update=of_other))
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    record = await database.resolve(conflict.Digest, "correct", "op")
    assert record is not None
    assert (record.PatientID, record.PatientName, record.StudyInstanceUID) == ("P2", None, "1.9")
    assert record.Attributes == {"PatientSex": ["F"], "Modality": ["CT"]}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
async def test_a_record_corrected_by_pieces_is_of_their_patient_whichever_comes_last(
    database: Database, order: tuple[int, ...]
) -> None:
    of_one = {"PatientSex": ["M"], "PatientBirthDate": ["19500101"], "AccessionNumber": ["A"], "Modality": ["CT"]}
    await database.store(make_report("1").model_copy(update={"Attributes": of_one}))
    of_other = {"PatientSex": ["F"], "StudyDate": ["20260101"]}
    large = make_report(*map(str, range(2, 10_003)), patient_id="P2", study="1.9")
    large = large.model_copy(update={"Attributes": of_other, "Undecoded": {"StudyID": "AAAA"}})
    parts = pieces(large.model_dump_json(exclude_none=True))
    conflicts: dict[int, str] = {}
    for at, part in enumerate(parts):
        await database.store(SeriesReport.model_validate_json(part))
        known = {each.Digest for each in await database.conflicts(after=None, limit=9, resolved=False)}
        conflicts[at] = (known - {*conflicts.values()}).pop()
    for at in order[:2]:
        record = await database.resolve(conflicts[at], "correct", "op")
        assert record is not None
        assert (record.PatientID, record.StudyInstanceUID) == ("P2", "1.9")
        assert record.Attributes == of_other | {"Modality": ["CT"]}
        assert record.Undecoded == {"StudyID": "AAAA"}


async def test_a_merge_of_a_report_without_patient_lets_no_other_patient_in(database: Database) -> None:
    await database.store(make_report("1"))
    await database.store(make_report("2", patient_id=None, study="1.9"))
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    await database.resolve(conflict.Digest, "merge", "op")
    record, _ = await database.store(make_report("3", patient_id="ZZZ", study="1.9"))
    assert (record.NumInstances, record.Conflicts) == (2, 1)


async def test_no_patient_and_one_called_none_are_two_conflicts(database: Database) -> None:
    await database.store(make_report("1"))
    for patient in (None, "None"):
        record, _ = await database.store(make_report("2", patient_id=patient, study="1.9"))
    assert record.Conflicts == 2


async def test_repeating_a_report_of_before_does_not_undo_a_verdict(database: Database) -> None:
    first = judged("1", "2", verdict="verified", expected=2)
    await database.store(first)
    second, _ = await database.store(judged("3", verdict="verified", expected=3, revision=2))
    again, _ = await database.store(first)
    assert again == second
    assert (again.Verdict, again.ExpectedInstances) == ("verified", 3)


async def test_attributes_of_an_instance_that_come_later_are_filled_in(database: Database) -> None:
    await database.store(make_report("1", "2"))
    later = {"InstanceAttributes": {"SOPClassUID": ["1.2.3"], "Rows": ["512"]}}
    await database.store(make_report("1").model_copy(update=later))
    other = {"InstanceAttributes": {"SOPClassUID": ["9.9"], "Rows": ["9"]}}
    await database.store(make_report("1").model_copy(update=other))
    query = 'SELECT "SOPClassUID", "Rows" FROM instances ORDER BY "SOPInstanceUID"'
    assert await rows(database, query) == [("1.2.3", 512), (None, None)]


async def test_what_was_committed_and_not_answered_is_done_once(database: Database) -> None:
    """The connection breaks after COMMIT: each write is tried again and must find what it has done."""
    keys = database.keys

    def twice(monkeypatch: pytest.MonkeyPatch) -> None:
        write = Engine.write

        async def again(self: Engine, do: Any) -> Any:
            await write(self, do)
            return await write(self, do)

        monkeypatch.setattr(Engine, "write", again)

    digest = await conflicted(database)
    with pytest.MonkeyPatch.context() as patch:
        twice(patch)
        key, secret = await keys.create("a", ["admin"])
        assert await keys.recognize(secret) == key
        assert await keys.revoke(key.id)
        assert await keys.recognize(secret) is None
        record = await database.resolve(digest, "merge", "op")
        assert record is not None
        assert record.NumInstances == 3
        await operations(database)["add_webhook"](url="http://127.0.0.1:9/", from_start=True)
    assert len(await keys.all()) == 1
    assert await rows(database, "SELECT count(*) FROM webhooks") == [(1,)]


async def test_a_conflict_is_resolved_once(database: Database) -> None:
    digest = await conflicted(database)
    assert await database.resolve(digest, "dismiss", "op") is not None
    assert await database.resolve(digest, "merge", "op") is None
    assert await database.resolve("0" * 64, "merge", "op") is None


# --- evidence ---------------------------------------------------------------------------------------------------


def judged(
    *sops: str, verdict: str | None = "idle", expected: int | None = None, revision: int = 1, **more: Any
) -> SeriesReport:
    """A gateway's report with what it rests on."""
    at = f"2026-01-01T00:00:0{revision}Z"
    fields: dict[str, Any] = {
        "Revision": revision,
        "Verdict": verdict,
        "Basis": "as told",
        "Source": "CT1 CT",
        "IdlePolicy": "adaptive",
        "GatewayID": "one",
        "Timeline": [{"At": at, "Event": "series.reported", "Details": {"Images": len(sops)}}],
    }
    if expected is not None:
        fields |= {"ExpectedInstances": expected, "ExpectedFrom": "pacs"}
    return SeriesReport.model_validate(make_report(*sops).model_dump() | fields | more)


async def told(database: Database) -> list[str]:
    return [event.Event for event in await database.timeline(SERIES)]


async def test_called_ae_title_is_the_first_that_was_told_in_the_record_and_in_its_changes(database: Database) -> None:
    before = await database.last_change()
    record, _ = await database.store(judged("1"))
    assert record.CalledAETitle is None
    for sop, called in (("2", "ARCHIVE"), ("3", "OTHER"), ("4", None)):
        record, _ = await database.store(judged(sop, CalledAETitle=called))
        assert record.CalledAETitle == "ARCHIVE"
    changes = await database.changes(since=before, limit=10)
    assert [change.CalledAETitle for change in changes] == [None, "ARCHIVE", "ARCHIVE", "ARCHIVE"]


async def test_verified_stands_only_where_the_union_is_what_the_pacs_said(database: Database) -> None:
    record, _ = await database.store(judged("1", "2", verdict="verified", expected=2))
    assert (record.Verdict, record.Missing) == ("verified", 0)
    await database.store(judged("9", GatewayID="two"))
    record, _ = await database.store(judged("1", "2", "3", verdict="verified", expected=3, revision=2))
    assert (record.NumInstances, record.Verdict, record.Basis) == (4, "idle", "as told; 4 are known")


async def test_equal_answers_of_a_pacs_verify_nothing_that_no_gateway_verified(database: Database) -> None:
    record, _ = await database.store(judged("1", "2", expected=4))
    assert (record.Verdict, record.Missing) == ("idle", 2)
    for _ in range(2):
        record, _ = await database.store(judged("3", "4", expected=4, GatewayID="two"))
        assert (record.Verdict, record.ExpectedInstances, record.Missing) == ("idle", 4, 0)


async def test_a_tag_never_replaces_what_a_pacs_said(database: Database) -> None:
    verified, _ = await database.store(judged("1", "2", verdict="verified", expected=2))
    again, _ = await database.store(judged("1", "2", expected=5, ExpectedFrom="tags", revision=2))
    assert again == verified
    await database.store(judged("3", expected=5, revision=3))
    record, _ = await database.store(judged("4", expected=9, ExpectedFrom="tags", revision=4))
    assert (record.ExpectedInstances, record.ExpectedFrom, record.Missing) == (5, "pacs", 1)


async def test_an_expectation_that_the_union_has_outgrown_is_none(database: Database) -> None:
    await database.store(judged("1", "2", expected=2))
    record, _ = await database.store(judged("3", revision=2))
    assert (record.NumInstances, record.ExpectedInstances, record.ExpectedFrom) == (3, None, None)
    record, _ = await database.store(judged("4", expected=3, revision=3))
    assert (record.NumInstances, record.ExpectedInstances, record.Missing) == (4, None, 0)
    record, _ = await database.store(judged("5", expected=7, ExpectedFrom="tags", revision=4))
    assert (record.ExpectedInstances, record.ExpectedFrom, record.Missing) == (7, "tags", 2)


async def test_verified_gives_way_where_the_pacs_then_has_more(database: Database) -> None:
    await database.store(judged("1", "2", verdict="verified", expected=2))
    record, _ = await database.store(judged("1", "2", verdict="capped", expected=3, revision=2, Basis="open too long"))
    assert (record.Verdict, record.Basis, record.Missing) == ("capped", "open too long", 1)
    record, _ = await database.store(judged("1", "2", "3", verdict="verified", expected=3, revision=3))
    assert record.Verdict == "verified"
    record, _ = await database.store(judged("1", verdict=None, expected=4, GatewayID="two"))
    assert (record.Verdict, record.Basis, record.Missing) == ("idle", "as told; then 4, 3 are known", 1)


async def test_a_row_of_an_earlier_version_claims_no_more_than_is_known(database: Database) -> None:
    await database.store(judged("1", "2", verdict="verified", expected=2))
    await executed(database, 'UPDATE series SET "ExpectedInstances" = 5, "ExpectedFrom" = \'tags\'')
    record = await database.get(SERIES)
    assert record is not None
    assert (record.Verdict, record.Missing) == ("idle", 3)
    await executed(database, 'UPDATE series SET "ExpectedInstances" = 1')
    for record in (await database.get(SERIES), *await database.page(after=None, limit=1)):
        assert record is not None
        assert (record.Verdict, record.ExpectedInstances, record.ExpectedFrom) == ("idle", None, None)
    record, _ = await database.store(judged("1", "2", verdict="verified", expected=2))
    assert (record.Verdict, record.ExpectedInstances) == ("verified", 2)


async def figures(database: Database) -> dict[str, tuple[int, int, int]]:
    """Series, False and AfterCapped by verdict."""
    return {c.Verdict: (c.Series, c.False_, c.AfterCapped) for c in await database.completions()}


async def test_a_part_adds_to_the_union_and_completes_nothing(database: Database) -> None:
    for _ in range(2):
        record, _ = await database.store(judged("1", "2", verdict=None, expected=4))
    assert (record.NumInstances, record.Verdict, record.Missing, record.Revision) == (2, None, 2, 1)
    assert await figures(database) == {}
    (change,) = await database.changes(since=0, limit=9)
    assert (change.NumInstances, change.Verdict) == (2, None)


async def test_a_part_that_adds_nothing_leaves_the_verdict(database: Database) -> None:
    before, _ = await database.store(judged("1", "2"))
    after, _ = await database.store(judged("1", verdict=None, Basis="a part"))
    assert after == before


async def test_two_gateways_with_a_part_each_complete_a_series_once(database: Database) -> None:
    """And so whichever repeats what."""
    mine, yours = [str(n) for n in range(20)], [str(n) for n in range(20, 40)]
    parts = [judged(*mine, verdict=None, expected=40), judged(*yours, verdict=None, expected=40, GatewayID="two")]
    for part in parts * 2:
        record, _ = await database.store(part)
    assert (record.NumInstances, record.Verdict, record.Missing) == (40, None, 0)
    verdicts = [judged(*mine, verdict="verified", expected=40)]
    verdicts += [judged(*yours, verdict="verified", expected=40, GatewayID="two")]
    for report in (*verdicts, *parts, *verdicts):
        record, _ = await database.store(report)
        assert (record.Verdict, record.Basis, record.ExpectedInstances) == ("verified", "as told", 40)
        assert await figures(database) == {"verified": (1, 0, 0)}
    told = [change.Verdict for change in await database.changes(since=0, limit=9)]
    assert told == [None, None, "verified"]


async def test_the_first_verdict_behind_a_part_counts_with_its_source(database: Database) -> None:
    await database.store(judged("1", verdict=None, Source=None, IdlePolicy=None))
    for _ in range(2):
        record, _ = await database.store(judged("1"))
        (completion,) = await database.completions()
        assert (completion.Source, completion.IdlePolicy) == ("CT1 CT", "adaptive")
        assert (record.Verdict, record.Basis, completion.Series) == ("idle", "as told", 1)


async def test_a_late_part_contradicts_a_verdict_once(database: Database) -> None:
    await database.store(judged("1"))
    late = [judged("2", verdict=None, revision=2), judged("2", "3", revision=2)]
    for report, verdict in zip((late[0], *late), (None, None, "idle"), strict=True):
        record, _ = await database.store(report)
        assert (record.Verdict, record.FalseCompletions) == (verdict, 1)
    assert await figures(database) == {"idle": (2, 1, 0)}


async def test_images_after_capped_count_in_a_column_of_their_own(database: Database) -> None:
    await database.store(judged("1", verdict="capped"))
    assert await figures(database) == {"capped": (1, 0, 0)}
    for report in (judged("2", verdict=None, revision=2), judged("2", "3", verdict="capped", revision=2)):
        for _ in range(2):
            record, _ = await database.store(report)
            assert record.FalseCompletions == 0
    assert await figures(database) == {"capped": (2, 0, 1)}
    await database.store(judged("4", revision=3))
    assert await figures(database) == {"capped": (2, 0, 2), "idle": (1, 0, 0)}


async def test_late_images_count_as_a_false_completion_of_the_verdict_before(database: Database) -> None:
    await database.store(judged("1"))
    record, _ = await database.store(judged("2", revision=2))
    assert record.FalseCompletions == 1
    (completion,) = await database.completions()
    assert (completion.Source, completion.IdlePolicy, completion.Verdict) == ("CT1 CT", "adaptive", "idle")
    assert (completion.Series, completion.False_) == (2, 1)


@pytest.mark.parametrize("verdict", ["capped", "drained"])
async def test_images_after_a_verdict_that_claims_nothing_are_no_false_completion(
    database: Database, verdict: str
) -> None:
    await database.store(judged("1", verdict=verdict))
    record, _ = await database.store(judged("2", revision=2))
    assert record.FalseCompletions == 0


async def test_figures_of_more_sources_than_are_kept_stand_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.revisions.MAX_COMPLETIONS", 3)
    for n in range(6):
        report = make_report("1", series=f"1.{n}").model_copy(update={"Source": f"NAME{n} CT"})
        await database.store(report)
    figures = {completion.Source: completion.Series for completion in await database.completions()}
    assert figures == {"NAME0 CT": 1, "NAME1 CT": 1, "NAME2 CT": 1, "": 3}


async def test_an_expected_series_that_outgrew_what_a_tag_said_is_expected_no_more(database: Database) -> None:
    first = make_report("1", "2").model_copy(
        update={"Verdict": "expected", "ExpectedInstances": 2, "ExpectedFrom": "tags"}
    )
    await database.store(first)
    more = make_report("3").model_copy(update={"Verdict": "expected", "Revision": 2})
    record, _ = await database.store(more)
    assert (record.Verdict, record.NumInstances, record.ExpectedInstances) == ("idle", 3, None)


async def test_a_series_sent_again_is_no_false_completion(database: Database) -> None:
    await database.store(judged("1"))
    record, _ = await database.store(judged("1", revision=2))
    assert (record.FalseCompletions, record.Verdict) == (0, "idle")


async def test_repeating_a_report_adds_nothing_to_the_timeline(database: Database) -> None:
    for _ in range(3):
        await database.store(judged("1"))
    assert await told(database) == ["series.reported", "report.stored"]
    await database.store(judged("2", revision=2))
    events = await told(database)
    assert sorted(events) == sorted([*["series.reported", "report.stored"] * 2, "verdict.contradicted"])
    assert await database.instances(SERIES) == [f"{SERIES}.1", f"{SERIES}.2"]


@pytest.mark.parametrize("version", ["0001", "0002"])
async def test_a_database_of_an_earlier_version_is_brought_up_to_date_and_keeps_its_rows(
    database_url: str, version: str
) -> None:
    settings = ServerSettings(database_url=database_url)
    report = make_report("1").model_copy(update={"Attributes": {"Modality": ["CT"], "StudyDate": ["20260101"]}})
    async with Database.open(settings) as database:
        stored, _ = await database.store(report)
    await downgrade(database_url, version)
    async with Database.open(settings) as database:
        assert await database.get(SERIES) == stored
        assert await rows(database, 'SELECT "StudyDate", "FoldedName" FROM series') == [("20260101", "test^one")]
        (change,) = await database.changes(since=0, limit=9)
        assert (change.SeriesInstanceUID, change.Revision) == (SERIES, 1)


async def test_a_transaction_that_is_given_up_is_counted(database: Database) -> None:
    before = metrics.total(metrics.database_failures)
    with pytest.raises(DatabaseUnavailable):
        await database.engine.read(text("SELECT * FROM nowhere"))
    with pytest.raises(DatabaseUnavailable):
        await database.engine.write(lambda connection: connection.execute(text("DELETE FROM nowhere")))
    assert metrics.total(metrics.database_failures) == before + 2

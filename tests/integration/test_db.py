"""The database contract, on real files."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from db import BUSY_TIMEOUT_MS, Database, DatabaseUnavailable, DatabaseUnusable, instances, metadata
from models import SeriesRecord, SeriesReport
from tests.factories import SERIES, make_report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "series.db"


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with Database.open(url(path)) as database:
        yield database


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_the_seeds_columns_come_first(path: Path) -> None:
    async def create() -> None:
        async with Database.open(url(path)):
            pass

    asyncio.run(create())
    columns = [(name, kind, pk) for _, name, kind, _, _, pk in rows(path, "PRAGMA table_info(series)")]
    assert columns[:5] == [
        ("SeriesInstanceUID", "TEXT", 1),
        ("PatientID", "TEXT", 0),
        ("PatientName", "TEXT", 0),
        ("StudyInstanceUID", "TEXT", 0),
        ("NumInstances", "INTEGER", 0),
    ]


async def test_migrations_make_exactly_the_tables_the_code_uses(path: Path, database: Database, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'expected.db'}")
    metadata.create_all(engine)
    engine.dispose()
    query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL ORDER BY name"
    migrated, defined = (
        [" ".join(sql.split()).replace(" ,", ",") for (sql,) in rows(p, query)]
        for p in (path, tmp_path / "expected.db")
    )
    assert migrated == defined


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
    database: Database, path: Path, change: dict[str, str]
) -> None:
    before, _ = await database.store(make_report("1"))
    for _ in range(2):  # a repeat is kept once
        after, _ = await database.store(make_report("2", "3", **change))
        assert after == before.model_copy(update={"Conflicts": 1})
    assert rows(path, "SELECT count(*) FROM conflicts") == [(1,)]
    assert rows(path, "SELECT count(*) FROM instances") == [(1,)]


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
    while page := await database.page(after=seen[-1].SeriesInstanceUID if seen else None, limit=4, PatientID="P1"):
        seen += page
    assert sorted(r.SeriesInstanceUID for r in seen) == sorted(f"1.{n}" for n in range(1, 25, 2))
    assert [r.SeriesInstanceUID for r in seen] == sorted(r.SeriesInstanceUID for r in seen)


async def test_filters_match_exactly(database: Database) -> None:
    await database.store(make_report("1", series="1.1"))
    for column, value in (
        ("PatientID", "P1"),
        ("StudyInstanceUID", make_report().StudyInstanceUID),
        ("Modality", "CT"),
    ):
        assert len(await database.page(after=None, limit=9, **{column: value})) == 1
        assert await database.page(after=None, limit=9, **{column: value[:-1]}) == []


async def test_sqlite_is_durable_with_foreign_keys_and_readers_cannot_write(database: Database) -> None:
    async with database._writer.connect() as connection:
        for pragma, value in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("busy_timeout", BUSY_TIMEOUT_MS),
        ):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value
        with pytest.raises(IntegrityError):
            await connection.execute(instances.insert().values(SeriesInstanceUID="none", SOPInstanceUID="1"))
    with pytest.raises(DatabaseUnavailable):
        await Database(database._readers, database._readers).store(make_report("1"))


async def test_failed_report_leaves_nothing_behind(database: Database, path: Path) -> None:
    await database.store(make_report("1"))
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TRIGGER fault BEFORE UPDATE ON series BEGIN SELECT RAISE(ABORT, 'injected'); END",
    )
    connection.commit()
    with pytest.raises(DatabaseUnavailable):
        await database.store(make_report("2", "3"))
    connection.execute("DROP TRIGGER fault")
    connection.commit()
    connection.close()
    assert rows(path, "SELECT count(*) FROM instances") == [(1,)]


async def test_records_survive_reopening(path: Path) -> None:
    async with Database.open(url(path)) as database:
        record, _ = await database.store(make_report("1"))
    async with Database.open(url(path)) as database:
        assert await database.get(SERIES) == record


async def test_unknown_schema_is_refused_with_the_cure(path: Path) -> None:
    async with Database.open(url(path)):
        pass
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseUnusable, match=r"9999.*newer"):
        async with Database.open(url(path)):
            pass


async def test_file_that_is_no_database_is_refused_with_the_cure(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DatabaseUnusable, match="Check that it is a SQLite file"):
        async with Database.open(url(path)):
            pass


async def test_missing_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="folder does not exist"):
        async with Database.open(url(tmp_path / "missing" / "series.db")):
            pass


# --- evidence ---------------------------------------------------------------------------------------------------


def judged(
    *sops: str, verdict: str = "idle", expected: int | None = None, revision: int = 1, **more: Any
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


async def test_verified_stands_only_where_the_union_is_what_the_pacs_said(database: Database) -> None:
    record, _ = await database.store(judged("1", "2", verdict="verified", expected=2))
    assert (record.Verdict, record.Missing) == ("verified", 0)
    await database.store(judged("9", GatewayID="two"))
    record, _ = await database.store(judged("1", "2", "3", verdict="verified", expected=3, revision=2))
    assert (record.NumInstances, record.Verdict, record.Basis) == (4, "idle", "as told; 4 are known")


async def test_the_second_half_verifies_where_the_pacs_told_both_gateways_the_same(database: Database) -> None:
    record, _ = await database.store(judged("1", "2", expected=4))
    assert (record.Verdict, record.Missing) == ("idle", 2)
    again, _ = await database.store(judged("1", "2", expected=4))
    assert again.Verdict == "idle"
    record, _ = await database.store(judged("3", "4", expected=4, GatewayID="two"))
    assert (record.Verdict, record.Missing, record.FalseCompletions) == ("verified", 0, 0)


async def test_one_answer_repeated_is_not_two(database: Database) -> None:
    for _ in range(2):
        record, _ = await database.store(judged("1", "2", expected=2))
    assert record.Verdict == "idle"


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


async def test_a_database_of_the_version_before_is_brought_up_to_date_and_keeps_its_rows(path: Path) -> None:
    async with Database.open(url(path)) as database:
        stored, _ = await database.store(make_report("1"))
    engine = create_engine(f"sqlite:///{path}")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0001")
    engine.dispose()
    async with Database.open(url(path)) as database:
        assert await database.get(SERIES) == stored

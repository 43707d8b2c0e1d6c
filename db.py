"""The server's only SQL: one row per series, one per series and SOP Instance UID, and what contradicted them."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    event,
    exc,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import RowMapping, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

from models import Completion, GatewayError, SeriesEvent, SeriesRecord, SeriesReport

BUSY_TIMEOUT_MS = 5000
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}")
READERS = 4
FINAL_VERDICTS = ("verified", "expected", "idle")  # those that say that the series is over


class DatabaseUnavailable(GatewayError):
    """The database cannot answer now; nothing was changed, and trying again may help."""


class DatabaseUnusable(GatewayError):
    """The database cannot be opened at all. The text says why and names the cure."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC timestamp; SQLite stores none with a zone, so it is added when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


metadata = MetaData()
series = Table(
    "series",
    metadata,
    Column("SeriesInstanceUID", Text, primary_key=True),
    Column("PatientID", Text),
    Column("PatientName", Text),
    Column("StudyInstanceUID", Text, nullable=False),
    Column("NumInstances", Integer, nullable=False),
    Column("Modality", Text),
    Column("Attributes", JSON, nullable=False),
    Column("Undecoded", JSON, nullable=False),
    Column("Revision", Integer, nullable=False),
    Column("Verdict", Text),
    Column("ExpectedInstances", Integer),
    Column("FirstReceivedAt", UtcDateTime),
    Column("LastReceivedAt", UtcDateTime),
    Column("UpdatedAt", UtcDateTime, nullable=False),
    Column("Conflicts", Integer, nullable=False),
    Column("ExpectedFrom", Text),
    Column("Basis", Text),
    Column("FalseCompletions", Integer, nullable=False, server_default="0"),
    Column("Source", Text),
    Column("IdlePolicy", Text),
    Index("series_by_patient", "PatientID", "SeriesInstanceUID"),
    Index("series_by_study", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("series_by_modality", "Modality", "SeriesInstanceUID"),
)


def _of_series() -> Column[str]:
    return Column("SeriesInstanceUID", Text, ForeignKey("series.SeriesInstanceUID"), primary_key=True)


instances = Table(
    "instances",
    metadata,
    _of_series(),
    Column("SOPInstanceUID", Text, primary_key=True),
    sqlite_with_rowid=False,
)
conflicts = Table(
    "conflicts",
    metadata,
    _of_series(),
    Column("Digest", Text, primary_key=True),  # of the contradicting identity and instances: a repeat is kept once
    Column("Report", JSON, nullable=False),
    Column("ReceivedAt", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)


timeline = Table(
    "timeline",
    metadata,
    Column("Id", Integer, primary_key=True),
    Column("SeriesInstanceUID", Text, ForeignKey("series.SeriesInstanceUID"), nullable=False),
    Column("At", UtcDateTime, nullable=False),
    Column("GatewayID", Text),
    Column("Revision", Integer, nullable=False),
    Column("Event", Text, nullable=False),
    Column("Details", JSON, nullable=False),
    Index("timeline_by_series", "SeriesInstanceUID", "At", "Id"),
)
completions = Table(
    "completions",
    metadata,
    Column("Source", Text, primary_key=True),
    Column("IdlePolicy", Text, primary_key=True),
    Column("Verdict", Text, primary_key=True),
    Column("Series", Integer, nullable=False),
    Column("False", Integer, nullable=False),
    sqlite_with_rowid=False,
)


class Database:
    """Series in SQLite: one connection writes, one transaction a report; others only read."""

    def __init__(self, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self._writer = writer
        self._readers = readers

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Database"]:
        """Open the database at `url`, bringing its schema up to date. Raises DatabaseUnusable."""
        if not Path(make_url(url).database or "").parent.is_dir():
            raise DatabaseUnusable(f"DATABASE_URL={url}: its folder does not exist. Make it, or name another file.")
        database = cls(_engine(url, writes=True), _engine(url, writes=False))
        try:
            await database._migrate(url)
            yield database
        finally:
            await database._readers.dispose()
            await database._writer.dispose()

    async def store(self, report: SeriesReport) -> tuple[SeriesRecord, bool]:
        """Take the union of a report and what is known, in one transaction; the stored record, and whether it is new.

        The result does not depend on repetition or order. A report that names another PatientID or
        StudyInstanceUID than the record is kept in `conflicts` and changes nothing else.
        """
        now = datetime.now(UTC)
        uid = report.SeriesInstanceUID
        async with _translated(), self._writer.begin() as connection:
            inserted = await connection.execute(insert(series).on_conflict_do_nothing(), _new_row(report, now))
            known = await _row(connection, uid)
            if _contradicts(report, known):
                await _keep_conflict(connection, report, now)
            else:
                await _add_instances(connection, report)
                changes = _changes(report, known, await _union(connection, report, known), now)
                await _update(connection, uid, changes)
                await _keep_evidence(connection, report, known, changes)
            return _record(await _row(connection, uid)), inserted.rowcount == 1

    async def get(self, series_instance_uid: str) -> SeriesRecord | None:
        """The record of one series, None where it is not known."""
        async with _translated(), self._readers.connect() as connection:
            row = (await connection.execute(_by_uid(series_instance_uid))).mappings().one_or_none()
            return row and _record(row)

    async def instances(self, series_instance_uid: str) -> list[str]:
        """The SOP Instance UIDs known of a series, in order; none where it is not known."""
        query = select(instances.c.SOPInstanceUID).where(instances.c.SeriesInstanceUID == series_instance_uid)
        async with _translated(), self._readers.connect() as connection:
            return list((await connection.execute(query.order_by(instances.c.SOPInstanceUID))).scalars())

    async def timeline(self, series_instance_uid: str) -> list[SeriesEvent]:
        """What happened to a series, in order of time."""
        query = select(timeline).where(timeline.c.SeriesInstanceUID == series_instance_uid)
        async with _translated(), self._readers.connect() as connection:
            rows = (await connection.execute(query.order_by(timeline.c.At, timeline.c.Id))).mappings()
            return [SeriesEvent.model_validate(dict(row)) for row in rows]

    async def completions(self) -> list[Completion]:
        """How verdicts have fared, by source, policy and verdict."""
        async with _translated(), self._readers.connect() as connection:
            rows = (await connection.execute(select(completions))).mappings()
            return [Completion.model_validate(dict(row)) for row in rows]

    async def page(self, *, after: str | None, limit: int, **equal: str | None) -> list[SeriesRecord]:
        """Up to `limit` records in order of SeriesInstanceUID behind `after`, with the given columns `equal`."""
        query = select(series).order_by(series.c.SeriesInstanceUID).limit(limit)
        for column, value in equal.items():
            if value is not None:
                query = query.where(series.c[column] == value)
        if after is not None:
            query = query.where(series.c.SeriesInstanceUID > after)
        async with _translated(), self._readers.connect() as connection:
            rows = (await connection.execute(query)).mappings()
            return [_record(row) for row in rows]

    async def ping(self) -> None:
        """Raises DatabaseUnavailable where the database cannot be read."""
        async with _translated(), self._readers.connect() as connection:
            await connection.execute(select(series.c.NumInstances).limit(1))

    async def _migrate(self, url: str) -> None:
        try:
            async with self._writer.begin() as connection:
                await connection.run_sync(_upgrade)
        except alembic.util.CommandError as error:
            raise DatabaseUnusable(
                f"DATABASE_URL={url} has a schema this version does not know ({error}). Run the version that wrote it, "
                "or a newer one, or name another file."
            ) from error
        except exc.DBAPIError as error:
            raise DatabaseUnusable(
                f"DATABASE_URL={url} cannot be opened: {error.orig}. Check that it is a SQLite file and that "
                "this user may write it and its folder."
            ) from error


def _engine(url: str, *, writes: bool) -> AsyncEngine:
    size = 1 if writes else READERS
    engine = create_async_engine(make_url(url), pool_size=size, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below is the only one
        try:
            for pragma in (*PRAGMAS, f"query_only={'OFF' if writes else 'ON'}"):
                connection.cursor().execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _upgrade(connection: Connection) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Database errors as DatabaseUnavailable: the edge to the driver, whose texts can hold patient data."""
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError) as error:
        raise DatabaseUnavailable(type(error).__name__) from error


def _by_uid(series_instance_uid: str) -> Select[Any]:
    return select(series).where(series.c.SeriesInstanceUID == series_instance_uid)


async def _row(connection: AsyncConnection, series_instance_uid: str) -> RowMapping:
    row: RowMapping = (await connection.execute(_by_uid(series_instance_uid))).mappings().one()
    return row


def _record(row: RowMapping) -> SeriesRecord:
    missing = max(0, (row["ExpectedInstances"] or 0) - row["NumInstances"])
    return SeriesRecord.model_validate({**row, "Missing": missing})


def _new_row(report: SeriesReport, now: datetime) -> dict[str, Any]:
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "PatientID": report.PatientID,
        "PatientName": report.PatientName,
        "StudyInstanceUID": report.StudyInstanceUID,
        "NumInstances": 0,
        "Modality": _modality(report.Attributes),
        "Attributes": report.Attributes,
        "Undecoded": report.Undecoded,
        "Revision": 0,  # becomes 1 with the update that follows in the same transaction
        "FirstReceivedAt": report.FirstReceivedAt,
        "LastReceivedAt": report.LastReceivedAt,
        "UpdatedAt": now,
        "Conflicts": 0,
        "FalseCompletions": 0,
    }


def _modality(attributes: dict[str, list[str]]) -> str | None:
    return next(iter(attributes.get("Modality", ())), None)


def _contradicts(report: SeriesReport, known: RowMapping) -> bool:
    """Another study, or another patient where both name one."""
    return report.StudyInstanceUID != known["StudyInstanceUID"] or (
        report.PatientID is not None and known["PatientID"] is not None and report.PatientID != known["PatientID"]
    )


async def _add_instances(connection: AsyncConnection, report: SeriesReport) -> None:
    if report.SOPInstanceUIDs:
        rows = [
            {"SeriesInstanceUID": report.SeriesInstanceUID, "SOPInstanceUID": uid}
            for uid in set(report.SOPInstanceUIDs)
        ]
        await connection.execute(insert(instances).on_conflict_do_nothing(), rows)


async def _union(connection: AsyncConnection, report: SeriesReport, known: RowMapping) -> int:
    """Distinct instances, or the count reported without UIDs where that is more; never less than was known."""
    of_series = instances.c.SeriesInstanceUID == report.SeriesInstanceUID
    counted = (await connection.execute(select(func.count()).select_from(instances).where(of_series))).scalar_one()
    floor = report.NumInstances if report.SOPInstanceUIDs is None else 0
    return max(int(known["NumInstances"]), int(counted), floor)


def _changes(report: SeriesReport, known: RowMapping, union: int, now: datetime) -> dict[str, Any]:
    """The columns that a report changes: what is stored stays, what was empty is filled. Empty if it is no news."""
    attributes = {**report.Attributes, **known["Attributes"]}
    changes: dict[str, Any] = {
        "PatientID": known["PatientID"] or report.PatientID,
        "PatientName": known["PatientName"] or report.PatientName,
        "NumInstances": union,
        "Modality": _modality(attributes),
        "Attributes": attributes,
        "Undecoded": {**report.Undecoded, **known["Undecoded"]},
        "FalseCompletions": known["FalseCompletions"] + _contradicts_verdict(report, known, union),
        **_settled(report, known, union),
    }
    if all(known[column] == value for column, value in changes.items()):
        return {}
    first = [at for at in (known["FirstReceivedAt"], report.FirstReceivedAt) if at]
    last = [at for at in (known["LastReceivedAt"], report.LastReceivedAt) if at]
    return changes | {
        "FirstReceivedAt": min(first, default=None),
        "LastReceivedAt": max(last, default=None),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def _contradicts_verdict(report: SeriesReport, known: RowMapping, union: int) -> bool:
    """Whether a gateway has more images after it had said that the series was over."""
    return report.Revision > 1 and union > known["NumInstances"] and known["Verdict"] in FINAL_VERDICTS


def _settled(report: SeriesReport, known: RowMapping, union: int) -> dict[str, Any]:
    """Verdict and what it rests on. `verified` stands only where the union here is what the PACS said twice."""
    added = union > known["NumInstances"]
    settled = {column: known[column] for column in ("Verdict", "Basis", "Source", "IdlePolicy")}
    if added or known["Verdict"] is None or report.Verdict == "verified":
        settled = {column: getattr(report, column) for column in settled}
    # Two gateways with a part each: neither had all, and the PACS told both the same.
    told_both = added and known["ExpectedFrom"] == "pacs" and known["ExpectedInstances"] == report.ExpectedInstances
    twice = report.Verdict == "verified" or (report.ExpectedFrom == "pacs" and told_both)
    if twice and union == report.ExpectedInstances:
        settled["Verdict"] = "verified"
    elif report.Verdict == "verified":
        settled |= {"Verdict": "idle", "Basis": f"{report.Basis}; {union} are known"}
    expected_by = report.ExpectedInstances is not None
    return settled | {
        "ExpectedInstances": report.ExpectedInstances if expected_by else known["ExpectedInstances"],
        "ExpectedFrom": report.ExpectedFrom if expected_by else known["ExpectedFrom"],
    }


async def _keep_evidence(
    connection: AsyncConnection, report: SeriesReport, known: RowMapping, changes: dict[str, Any]
) -> None:
    """Add to the series' timeline, and count verdicts and those that turned out to be wrong."""
    mine = (timeline.c.SeriesInstanceUID == report.SeriesInstanceUID) & (timeline.c.Revision == report.Revision)
    told = select(timeline.c.At, timeline.c.Event).where(mine & (timeline.c.GatewayID == report.GatewayID))
    before = {(row.At, row.Event) for row in await connection.execute(told)} if report.Timeline else set()
    entries = [
        {"At": e.At, "GatewayID": report.GatewayID, "Revision": report.Revision, "Event": e.Event, "Details": e.Details}
        for e in report.Timeline
        if (e.At, e.Event) not in before
    ]
    if changes:
        added = changes["NumInstances"] - known["NumInstances"]
        stored = {"Added": added, "Known": changes["NumInstances"], "Verdict": changes["Verdict"]}
        own = {"At": changes["UpdatedAt"], "GatewayID": None, "Revision": changes["Revision"]}
        entries.append(own | {"Event": "report.stored", "Details": stored})
        if _contradicts_verdict(report, known, changes["NumInstances"]):
            wrong = {"Verdict": known["Verdict"], "IdlePolicy": known["IdlePolicy"], "Added": added}
            entries.append(own | {"Event": "verdict.contradicted", "Details": wrong})
            await _count(connection, known, "False")
        if added and changes["Verdict"] in FINAL_VERDICTS:
            await _count(connection, changes, "Series")
    if entries:
        rows = [{"SeriesInstanceUID": report.SeriesInstanceUID, **entry} for entry in entries]
        await connection.execute(timeline.insert(), rows)


async def _count(connection: AsyncConnection, of: RowMapping | dict[str, Any], column: str) -> None:
    """One more verdict, or wrong verdict, of a source and policy."""
    row = {"Source": of["Source"] or "", "IdlePolicy": of["IdlePolicy"] or "", "Verdict": of["Verdict"]}
    statement = insert(completions).values(row | {"Series": 0, "False": 0} | {column: 1})
    more = {column: completions.c[column] + 1}
    await connection.execute(statement.on_conflict_do_update(index_elements=list(row), set_=more))


async def _update(connection: AsyncConnection, series_instance_uid: str, changes: dict[str, Any]) -> None:
    if changes:
        of_series = series.c.SeriesInstanceUID == series_instance_uid
        await connection.execute(series.update().where(of_series).values(changes))


async def _keep_conflict(connection: AsyncConnection, report: SeriesReport, now: datetime) -> None:
    content = "\n".join([*map(str, report.key), *sorted(report.SOPInstanceUIDs or ())])
    row = {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "Digest": hashlib.sha256(content.encode()).hexdigest(),
        "Report": report.model_dump(mode="json"),
        "ReceivedAt": now,
    }
    await connection.execute(insert(conflicts).on_conflict_do_nothing(), row)
    of_series = conflicts.c.SeriesInstanceUID == report.SeriesInstanceUID
    count = select(func.count()).select_from(conflicts).where(of_series)
    await _update(connection, report.SeriesInstanceUID, {"Conflicts": (await connection.execute(count)).scalar_one()})

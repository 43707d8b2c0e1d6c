"""What was acknowledged and not yet delivered, on disk. The gateway's only SQL.

Rules. `instances` is a log of what was kept and not yet reported: replaying it rebuilds the open series. Closing a
series moves its instances into a report in one transaction. A report is waiting until it is delivered (kept without
content for a while, as history) or dead (kept with content until an operator replays or discards it).
"""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import structlog

import metrics
from header import INSTANCE_KEYWORDS, InstanceValues, instance_values
from models import DeadReport, GatewayError, Instance, SeriesKey, SeriesReport

KEY = "study_instance_uid, series_instance_uid, patient_id"
LEARNT_SOURCES = 1000
HISTORY_REPORTS = 10_000
HISTORY_AGE_S = 7 * 86400.0
PRUNE_EVERY = 100  # deliveries
VACUUM_PAGES = 2000
MEASURED_FOR_S = 0.1  # so long the sizes of the journal and of what is free on its disk are taken for unchanged

SCHEMA = """
CREATE TABLE open_series (
    id INTEGER PRIMARY KEY,
    study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL, patient_id TEXT,
    sop_class_uid TEXT NOT NULL, transfer_syntax_uid TEXT NOT NULL,  -- these four: as of the first instance
    calling_ae_title TEXT NOT NULL, peer_address TEXT NOT NULL,
    content TEXT NOT NULL  -- JSON: attributes, and the bytes of those that are undecoded
);
CREATE TABLE instances (
    series_id INTEGER NOT NULL REFERENCES open_series,
    sop_instance_uid TEXT NOT NULL,
    received_at REAL NOT NULL,  -- seconds since 1970, UTC
    PRIMARY KEY (series_id, sop_instance_uid)
) WITHOUT ROWID;
CREATE TABLE reports (
    id INTEGER PRIMARY KEY,
    study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL, patient_id TEXT,
    revision INTEGER NOT NULL, verdict TEXT, instances INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'dead', 'delivered', 'discarded')),
    report TEXT,  -- the JSON that is posted; null in the history
    attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at REAL NOT NULL DEFAULT 0,
    answer TEXT,  -- the last problem, the refusal, or why it was discarded
    changed_at REAL NOT NULL
);
CREATE INDEX reports_by_state ON reports (state, id);
CREATE TABLE server (  -- one row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    paused_until REAL NOT NULL,  -- no post before, seconds since 1970
    probed_at REAL NOT NULL
);
INSERT INTO server VALUES (1, 0, 0);
"""
SCHEMA_2 = """
CREATE TABLE learnt (  -- the idle policy's, by source
    calling_ae_title TEXT NOT NULL, modality TEXT NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (calling_ae_title, modality)
);
"""
SCHEMA_3 = """
ALTER TABLE instances ADD COLUMN attributes TEXT;  -- JSON: the values of INSTANCE_KEYWORDS; null of earlier versions
"""
SCHEMA_4 = """
ALTER TABLE reports ADD COLUMN reported_at REAL;  -- seconds since 1970, UTC; null of earlier versions
ALTER TABLE reports ADD COLUMN traceparent TEXT;  -- W3C Trace Context, where traces are exported
"""
SCHEMAS = (SCHEMA, SCHEMA_2, SCHEMA_3, SCHEMA_4)  # each leads from the version before to its own
SCHEMA_VERSION = len(SCHEMAS)

# One statement however many there are: each statement costs a switch of threads.
INSERT_INSTANCES = """
INSERT OR IGNORE INTO instances SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)
"""

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()


class JournalUnavailable(GatewayError):
    """Nothing can be written now; nothing was. Trying again may help."""


class JournalUnusable(GatewayError):
    """The journal cannot be opened at all. The text says why and names the cure."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A report to deliver: its place in line, not its content."""

    id: int
    key: SeriesKey
    revision: int
    instances: int
    attempts: int
    next_attempt_at: float
    """Wall-clock seconds since 1970; so is `reported_at`."""
    reported_at: float
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the journal may hold; beyond it nothing more is taken in."""

    max_instances: int
    max_bytes: int
    min_free_bytes: int


@dataclass(slots=True)
class _OpenSeries:
    """What the log holds of a series, beside its instances."""

    id: int
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)


class Journal:
    """One SQLite file with one writer. SQL runs in one thread; every method returns after its transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection, bounds: Bounds, thread: Executor) -> None:
        self._path = path
        self._connection = connection
        self._bounds = bounds
        self._thread = thread
        self._open: dict[SeriesKey, _OpenSeries] = {}
        self._deliveries = 0
        self._used_bytes = 0
        self._measured_at = 0.0
        self._free = 0
        self._free_until = 0.0
        self.failing: str | None = None
        """Why the last write failed; None after one that succeeded."""
        self.open_instances: int = self._one("SELECT count(*) FROM instances")
        self.waiting_instances: int = self._one(
            "SELECT coalesce(sum(instances), 0) FROM reports WHERE state = 'waiting'"
        )
        self.dead_letters: int = self._one("SELECT count(*) FROM reports WHERE state = 'dead'")

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, bounds: Bounds) -> AsyncIterator["Journal"]:
        """Open for this process alone; a corrupt file is set aside, a missing one made. Raises JournalUnusable."""
        with (
            exclusive(path),
            closing(_connect_or_set_aside(path)) as connection,
            ThreadPoolExecutor(1, thread_name_prefix="journal") as thread,
        ):
            yield cls(path, connection, bounds, thread)

    # --- what comes in ---

    async def keep(self, instances: Sequence[Instance]) -> None:
        """Log instances, all in one transaction with one fsync. Raises JournalUnavailable; then none is kept."""
        with metrics.commit_seconds.time():
            await self._write(self._keep, instances)
        metrics.commit_instances.observe(len(instances))

    async def close(
        self,
        reports: Sequence[SeriesReport],
        learnt: Mapping[tuple[str, str], str] = MappingProxyType({}),
        traceparents: Sequence[str | None] = (),
    ) -> list[Waiting]:
        """Move the reports' instances from the log into the reports, in one transaction. Raises JournalUnavailable.

        `learnt`: what the idle policy has learnt, by calling AE title and modality. `traceparents`: of each report.
        """
        return await self._write(self._close, reports, learnt, traceparents or [None] * len(reports))

    def learnt(self) -> dict[tuple[str, str], str]:
        """What the idle policy had learnt, oldest first."""
        rows = self._connection.execute("SELECT * FROM learnt ORDER BY rowid")
        return {(row["calling_ae_title"], row["modality"]): row["content"] for row in rows}

    def replay(self) -> Iterator[Instance]:
        """Every instance of the log; call it once, before anything is kept.

        The first of each series carries the series' attributes, and each its own.
        """
        for series in self._connection.execute("SELECT * FROM open_series").fetchall():
            opened = self._open[_key(series)] = _OpenSeries(series["id"], *_unpack(series["content"]))
            attributes, undecoded = opened.attributes, opened.undecoded
            query = "SELECT * FROM instances WHERE series_id = ? ORDER BY received_at"
            for row in self._connection.execute(query, (opened.id,)):
                yield _instance(series, row, attributes, undecoded)
                attributes, undecoded = _identity(attributes), {}

    def revisions(self) -> dict[SeriesKey, int]:
        """The last revision reported of each series, as far back as the history goes."""
        query = f"SELECT {KEY}, max(revision) AS revision FROM reports GROUP BY {KEY} ORDER BY max(id)"
        return {_key(row): row["revision"] for row in self._connection.execute(query)}

    # --- what goes out ---

    def waiting(self) -> list[Waiting]:
        """Reports to deliver, oldest first."""
        return [
            _waiting(row)
            for row in self._connection.execute("SELECT * FROM reports WHERE state = 'waiting' ORDER BY id")
        ]

    async def report(self, waiting: Waiting) -> str:
        """The JSON to post."""
        return str(await self._run(self._one, "SELECT report FROM reports WHERE id = ?", waiting.id))

    async def delayed(self, waiting: Waiting, problem: str) -> None:
        """Note a failed try, and when the next one is due."""
        schedule: dict[str, Any] = {"attempts": waiting.attempts, "next_attempt_at": waiting.next_attempt_at}
        await self._write(self._update, waiting.id, **schedule, answer=problem)

    def paused_until(self) -> float:
        """When the server may be asked again, wall-clock seconds since 1970."""
        return float(self._one("SELECT paused_until FROM server"))

    async def pause(self, until: float) -> None:
        """Note when the server may be asked again."""
        await self._write(self._execute, "UPDATE server SET paused_until = ?", until)

    async def delivered(self, waiting: Waiting) -> None:
        """The server has it: it becomes history."""
        await self._write(self._end, waiting, state="delivered", report=None, answer=None)

    async def refused(self, waiting: Waiting, answer: str) -> None:
        """No retry will help: it becomes a dead letter with the server's answer."""
        await self._write(self._end, waiting, state="dead", answer=answer)

    # --- dead letters ---

    async def last_dead(self, most: int) -> list[DeadReport]:
        """The latest dead letters, the latest first. Raises JournalUnavailable."""
        columns = "series_instance_uid, instances, answer, changed_at"
        query = f"SELECT {columns} FROM reports WHERE state = 'dead' ORDER BY id DESC LIMIT ?"
        return [_dead_report(row) for row in await self._run(self._all, query, most)]

    async def replay_dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        """Put dead letters (None: all) back in line; returns those that were dead."""
        return await self._write(self._replay_dead, ids)

    async def discard_dead(self, ids: Sequence[int] | None, reason: str) -> list[int]:
        """Give dead letters (None: all) up, with the reason in the history; returns those that were dead."""
        return await self._write(self._discard_dead, ids, reason)

    # --- pressure ---

    @property
    def used_bytes(self) -> int:
        """Size of the file, without what is free in it."""
        return self._used_bytes

    def saturated(self) -> str | None:
        """Why nothing more is taken in, None where something is."""
        if self.open_instances + self.waiting_instances >= self._bounds.max_instances:
            return f"max_pending_instances={self._bounds.max_instances} reached"
        if self._used_bytes >= self._bounds.max_bytes:
            return f"journal_max_bytes={self._bounds.max_bytes} reached"
        if self._free_bytes() < self._bounds.min_free_bytes:
            return f"less than min_free_bytes={self._bounds.min_free_bytes} free"
        return self.failing

    def _free_bytes(self) -> int:
        """Of the journal's disk; asked once in MEASURED_FOR_S, for it is asked for every instance."""
        if time.monotonic() >= self._free_until:
            disk = os.statvfs(self._path.parent)
            self._free, self._free_until = disk.f_bavail * disk.f_frsize, time.monotonic() + MEASURED_FOR_S
        return self._free

    async def probe(self) -> None:
        """Try a write, so that a journal that failed is found to work again."""
        await self._write(self._execute, "UPDATE server SET probed_at = ?", time.time())

    # --- in the journal's thread ---

    async def _write(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the journal's thread; that it can write is known then. Raises JournalUnavailable."""
        result = await self._run(do, *args, **kwargs)
        self.failing = None
        return result

    async def _run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the journal's thread: the edge to SQLite. Raises JournalUnavailable."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: do(*args, **kwargs))
        except sqlite3.Error as error:
            self.failing = f"journal: {error}"
            metrics.journal_failures.inc()
            raise JournalUnavailable(self.failing) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _keep(self, instances: Sequence[Instance]) -> None:
        changed: dict[SeriesKey, _OpenSeries] = {}  # copies: they hold once they are committed
        rows: list[tuple[int, str, float, InstanceValues]] = []
        news = [i for i in instances if (series := self._open.get(i.key)) is None or _has_news(i, series)]
        with self._transaction() if news else nullcontext():  # one statement needs none
            for instance in news:
                series = changed.get(instance.key) or self._open.get(instance.key)
                changed[instance.key] = self._learn(instance, series)
            for series in changed.values():
                self._execute("UPDATE open_series SET content = ? WHERE id = ?", _pack(series), series.id)
            for instance in instances:
                series = changed.get(instance.key) or self._open[instance.key]
                at = instance.received_at.timestamp()
                rows.append((series.id, instance.sop_instance_uid, at, instance_values(instance)))
            inserted = self._connection.execute(INSERT_INSTANCES, (json.dumps(rows),)).rowcount
        self._open |= changed
        self.open_instances += inserted
        if time.monotonic() >= self._measured_at + MEASURED_FOR_S:
            self._measure()

    def _learn(self, instance: Instance, series: _OpenSeries | None) -> _OpenSeries:
        """The series with what this instance adds: the first value of an attribute stays, as in the collector."""
        if series is None:
            series = _OpenSeries(self._insert_series(instance))
        news = {k: v for k, v in instance.attributes.items() if v and k not in series.attributes}
        undecoded = {k: v for k, v in instance.undecoded.items() if k in news}
        return _OpenSeries(series.id, series.attributes | news, series.undecoded | undecoded)

    def _insert_series(self, first: Instance) -> int:
        values = (
            *first.key,
            first.sop_class_uid,
            first.transfer_syntax_uid,
            first.calling_ae_title,
            first.peer_address,
        )
        cursor = self._connection.execute(
            f"INSERT INTO open_series ({KEY}, sop_class_uid, transfer_syntax_uid, calling_ae_title, peer_address, "
            "content) VALUES (?, ?, ?, ?, ?, ?, ?, '')",
            values,
        )
        return int(cursor.lastrowid or 0)

    def _close(
        self,
        reports: Sequence[SeriesReport],
        learnt: Mapping[tuple[str, str], str],
        traceparents: Sequence[str | None],
    ) -> list[Waiting]:
        waiting, moved = [], 0
        emptied: list[SeriesKey] = []
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO learnt VALUES (?, ?, ?)",
                [(*source, content) for source, content in learnt.items()],
            )
            self._execute(
                "DELETE FROM learnt WHERE rowid IN (SELECT rowid FROM learnt ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                LEARNT_SOURCES,
            )
            for report, traceparent in zip(reports, traceparents, strict=True):
                waiting.append(self._insert_report(report, traceparent))
                if (series := self._open.get(report.key)) is None or report.key in emptied:
                    continue  # all of it stands in an earlier report
                moved += self._connection.execute(
                    "DELETE FROM instances WHERE series_id = ? "
                    "AND sop_instance_uid IN (SELECT value FROM json_each(?))",
                    (series.id, json.dumps(report.SOPInstanceUIDs)),
                ).rowcount
                # An instance kept since the report was made stays in the log, and with it its series.
                if self._connection.execute(
                    "DELETE FROM open_series WHERE id = ?1 AND NOT EXISTS "
                    "(SELECT 1 FROM instances WHERE series_id = ?1)",
                    (series.id,),
                ).rowcount:
                    emptied.append(report.key)
        for key in emptied:
            del self._open[key]
        self.open_instances -= moved
        self.waiting_instances += sum(report.NumInstances for report in reports)
        self._measure()
        return waiting

    def _insert_report(self, report: SeriesReport, traceparent: str | None) -> Waiting:
        content, now = report.model_dump_json(exclude_none=True), time.time()
        cursor = self._connection.execute(
            f"INSERT INTO reports ({KEY}, revision, verdict, instances, report, changed_at, reported_at, traceparent) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*report.key, report.Revision, report.Verdict, report.NumInstances, content, now, now, traceparent),
        )
        id = int(cursor.lastrowid or 0)
        return Waiting(id, report.key, report.Revision, report.NumInstances, 0, 0.0, now, traceparent)

    def _update(self, report_id: int, before: str = "waiting", **columns: Any) -> bool:
        """Change a report that is in the state `before`; whether it was."""
        assignments = ", ".join(f"{column} = :{column}" for column in columns)
        cursor = self._connection.execute(
            f"UPDATE reports SET {assignments}, changed_at = :now WHERE id = :id AND state = :before",
            columns | {"id": report_id, "now": time.time(), "before": before},
        )
        return cursor.rowcount == 1

    def _end(self, waiting: Waiting, **columns: Any) -> None:
        if self._update(waiting.id, **columns):
            self.waiting_instances -= waiting.instances
            self.dead_letters += columns["state"] == "dead"
        self._deliveries += 1
        if self._deliveries % PRUNE_EVERY == 0:
            self._prune()
        self._measure()

    def _prune(self) -> None:
        """Bound the history by age and number; another time will do, too."""
        ended = "state IN ('delivered', 'discarded')"
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                f"DELETE FROM reports WHERE {ended} AND (changed_at < ? OR id <= (SELECT id FROM reports "
                f"WHERE {ended} ORDER BY id DESC LIMIT 1 OFFSET ?))",
                (time.time() - HISTORY_AGE_S, HISTORY_REPORTS),
            )

    def _replay_dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        with self._transaction():
            dead = self._dead(ids)
            for waiting in dead:
                self._update(waiting.id, "dead", state="waiting", attempts=0, next_attempt_at=0.0, answer=None)
        self.waiting_instances += sum(waiting.instances for waiting in dead)
        self.dead_letters -= len(dead)
        return dead

    def _discard_dead(self, ids: Sequence[int] | None, reason: str) -> list[int]:
        with self._transaction():
            dead = self._dead(ids)
            for waiting in dead:
                self._update(waiting.id, "dead", state="discarded", report=None, answer=reason)
        self.dead_letters -= len(dead)
        return [waiting.id for waiting in dead]

    def _dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        query = "SELECT * FROM reports WHERE state = 'dead' AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))"
        rows = self._connection.execute(f"{query} ORDER BY id", (ids and json.dumps(ids),))
        return [replace(_waiting(row), attempts=0, next_attempt_at=0.0) for row in rows]

    def _execute(self, statement: str, *parameters: Any) -> None:
        self._connection.execute(statement, parameters)

    def _measure(self) -> None:
        """How much of the file is used; what is free in it goes back to the file system, some pages at a time.

        What was done before is committed: that this fails must not make it look undone.
        """
        self._measured_at = time.monotonic()
        with contextlib.suppress(sqlite3.Error):
            free = self._one("PRAGMA freelist_count")
            self._used_bytes = (self._one("PRAGMA page_count") - free) * self._one("PRAGMA page_size")
            if free > VACUUM_PAGES:
                # execute() would step it once, which frees one page; this steps it to its end.
                self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def _all(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        return self._connection.execute(query, parameters).fetchall()

    def _one(self, query: str, *parameters: Any) -> Any:
        (value,) = self._connection.execute(query, parameters).fetchone()
        return value


# --- reading beside a running gateway ------------------------------------------------------------------------


def read(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Rows of a read-only query, beside a running gateway or not. Raises JournalUnusable."""
    if not path.exists():
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path}: no journal there. Name the one that the gateway uses.")
    at_rest = "" if Path(f"{path}-wal").exists() else "&immutable=1"  # else SQLite leaves files beside it
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{at_rest}", uri=True, timeout=5)
        ) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, parameters)]
    except sqlite3.Error as error:
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} cannot be read: {error}") from error


# --- opening -------------------------------------------------------------------------------------------------


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the journal's lock file, which the kernel frees at exit. Raises JournalUnusable where another holds it."""
    try:
        with open(f"{path}.lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalUnusable(
                    f"GATEWAY_JOURNAL_PATH={path} is used by another gateway. Stop it, or give each gateway its own."
                ) from None
            yield
    except OSError as error:
        raise JournalUnusable(
            f"GATEWAY_JOURNAL_PATH={path} cannot be locked: {error.strerror}. Make its folder, writable by this user."
        ) from error


def _connect_or_set_aside(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(OSError):  # SQLite says it better
        path.touch(mode=0o600)  # patients' names are nobody else's business; SQLite's other files take its mode
    try:
        return _connect(path)
    except sqlite3.OperationalError as error:  # cannot be opened: nobody's fault but the path's
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:  # opened, and not a sound database
        aside = f"{path}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(f"{path}{suffix}"):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        log.error("journal.set_aside", journal=str(path), moved_to=aside, reason=str(error))
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has to come before the first table
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}")
        (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise JournalUnusable(
                f"GATEWAY_JOURNAL_PATH={path} was written by a newer version (schema {version}, known "
                f"{SCHEMA_VERSION}). Run that version until the journal is empty, or name another file."
            )
        steps = "".join(SCHEMAS[version:])
        connection.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


# --- rows ----------------------------------------------------------------------------------------------------


def _key(row: sqlite3.Row) -> SeriesKey:
    return SeriesKey(row["study_instance_uid"], row["series_instance_uid"], row["patient_id"])


def _waiting(row: sqlite3.Row) -> Waiting:
    reported_at = row["reported_at"] or row["changed_at"]
    schedule = row["attempts"], row["next_attempt_at"], reported_at
    return Waiting(row["id"], _key(row), row["revision"], row["instances"], *schedule, row["traceparent"])


def _dead_report(row: sqlite3.Row) -> DeadReport:
    return DeadReport(
        SeriesInstanceUID=row["series_instance_uid"],
        Instances=row["instances"],
        Answer=(row["answer"] or "")[:256],
        At=datetime.fromtimestamp(row["changed_at"], UTC),
    )


def _has_news(instance: Instance, series: _OpenSeries) -> bool:
    return any(values and k not in series.attributes for k, values in instance.attributes.items())


def _pack(series: _OpenSeries) -> str:
    return json.dumps([series.attributes, {k: base64.b64encode(v).decode() for k, v in series.undecoded.items()}])


def _unpack(content: str) -> tuple[dict[str, tuple[str, ...]], dict[str, bytes]]:
    """The series' attributes; those that each instance has of its own stand beside it."""
    attributes, undecoded = ({k: v for k, v in d.items() if k not in INSTANCE_KEYWORDS} for d in json.loads(content))
    return {k: tuple(v) for k, v in attributes.items()}, {k: base64.b64decode(v) for k, v in undecoded.items()}


def _identity(attributes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The part of the attributes that `Instance.key` reads."""
    return {k: attributes[k] for k in ("PatientID",) if k in attributes}


@lru_cache(maxsize=4096)  # the images of different series differ in little
def _own_attributes(values: str | None) -> Mapping[str, tuple[str, ...]]:
    """What an instance has of its own: those of INSTANCE_KEYWORDS."""
    return {k: (v,) for k, v in zip(INSTANCE_KEYWORDS, json.loads(values or "[]"), strict=False) if v}


def _instance(
    series: sqlite3.Row, row: sqlite3.Row, attributes: dict[str, tuple[str, ...]], undecoded: dict[str, bytes]
) -> Instance:
    own = _own_attributes(row["attributes"])
    return Instance(
        study_instance_uid=series["study_instance_uid"],
        series_instance_uid=series["series_instance_uid"],
        sop_instance_uid=row["sop_instance_uid"],
        sop_class_uid=own.get("SOPClassUID", ("",))[0],
        transfer_syntax_uid=series["transfer_syntax_uid"],
        calling_ae_title=series["calling_ae_title"],
        peer_address=series["peer_address"],
        received_at=datetime.fromtimestamp(row["received_at"], UTC),
        attributes={**attributes, **own},
        undecoded=undecoded,
    )

"""The journal on disk: everything that was acknowledged and not yet delivered. It has the gateway's only SQL.

- `instances` is a log of instances that are kept and not yet reported. Replaying it restores the open series.
- Closing a series moves its instances into a report, in one transaction.
- A report is `waiting` until it is `delivered` (then it stays for a while as history, without content) or `dead` (then
  it stays with its content until an operator replays or discards it).
- A part, which is a report without a verdict, moves nothing: its instances stay in the log, and a newer report of the
  series replaces it.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import structlog

from common import metrics
from common.at_rest import real
from common.attributes import news
from common.errors import SeriesGatewayError
from common.threads import Worker
from dicom.header import InstanceValues, instance_values
from gateway import journal_rows as rows
from gateway.idle import MAX_SOURCES
from gateway.journal_file import connect_or_set_aside, exclusive
from gateway.journal_reader import JournalUnusable
from gateway.journal_rows import KEY, MAX_REVISION, WAITING_COLUMNS, Waiting
from models import MAX_DOUBTS, DeadReport, Instance, SeriesKey, SeriesReport

OF_KEY = "study_instance_uid = ? AND series_instance_uid = ? AND patient_id IS ?"
MOVED = "CASE WHEN typeof(instances) = 'integer' AND verdict IS NOT NULL THEN min(max(instances, 0), 2147483647) END"
"""How many instances a report took out of the log: `Waiting.moved` in SQL."""
HISTORY_REPORTS = 10_000  # most delivered or discarded reports that are kept
HISTORY_AGE_S = 7 * 86400.0  # and for how long
PRUNE_EVERY = 100  # deliveries after which the history is shortened
VACUUM_PAGES = 2000  # pages that are given back to the file system at once
MEASURED_FOR_S = 0.1  # how often the size of the journal and the free space on its disk are measured


INSERT_INSTANCE = "INSERT OR IGNORE INTO instances VALUES (?, ?, ?, ?)"
# One statement for several instances, since each statement costs a switch of threads.
INSERT_INSTANCES = """
INSERT OR IGNORE INTO instances SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)
"""

COUNT_SOURCE = """
INSERT INTO sources VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET
    last_image_at = max(min(last_image_at, ?), excluded.last_image_at),
    series = series + excluded.series, images = images + excluded.images
"""
FORGET_SOURCES = """
DELETE FROM sources WHERE name IN (SELECT name FROM sources ORDER BY series DESC, last_image_at DESC LIMIT -1 OFFSET ?)
"""

Learnt = Mapping[tuple[str, str, str], str | None]
"""What the idle policy has learnt, by calling AE title, modality and station; None for a forgotten source."""
P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()


class JournalUnavailable(SeriesGatewayError):
    """The journal cannot be read or written now, and nothing was changed. Trying again may help."""


class JournalFailed(SeriesGatewayError):
    """The journal could not be written as the gateway ended, so series stay open in it until the next start."""

    exit_code = 3  # as of a drain that left something


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the journal may hold. Beyond that no more images are accepted."""

    max_instances: int
    max_bytes: int
    min_free_bytes: int


@dataclass(slots=True)
class _OpenSeries:
    """A series in the log, without its instances."""

    id: int
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()


class Journal:
    """One SQLite file with one writer. SQL runs in one thread, and every method returns after its transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection, bounds: Bounds, thread: Worker) -> None:
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
            f"SELECT coalesce(sum({MOVED}), 0) FROM reports WHERE state = 'waiting'"
        )
        self.dead_letters: int = self._one("SELECT count(*) FROM reports WHERE state = 'dead'")
        self.identity = f"{self._one('PRAGMA application_id'):08x}"
        """A random identifier of the file, by which the server knows a gateway again."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, bounds: Bounds) -> AsyncIterator["Journal"]:
        """Open for this process alone; create a missing file, set a corrupt one aside. Raises JournalUnusable."""
        with exclusive(path):
            path = real(path)
            with _opened(path, bounds) as journal:
                yield journal

    # --- what comes in ---

    async def keep(self, instances: Sequence[Instance]) -> None:
        """Log instances in one transaction with one fsync. If it raises JournalUnavailable, none is kept."""
        began = time.perf_counter()
        await self._write(self._keep, instances)
        metrics.commit_seconds.observe(time.perf_counter() - began)
        metrics.commit_instances.observe(len(instances))

    async def file_reports(
        self,
        reports: Sequence[SeriesReport],
        learnt: Learnt = MappingProxyType({}),
        traceparents: Sequence[str | None] = (),
        trust: Mapping[str, int] = MappingProxyType({}),
    ) -> list[Waiting]:
        """File reports and move their instances out of the log, in one transaction. Raises JournalUnavailable.

        The instances of a part stay in the log. `learnt` is what the idle policy has learnt or forgotten;
        `traceparents` has one entry for each report; `trust` is by AE title of a PACS.
        """
        return await self._write(self._file_reports, reports, learnt, traceparents or [None] * len(reports), trust)

    async def set_aside(self, key: SeriesKey, sop_instance_uids: Sequence[str], revision: int, reason: str) -> None:
        """Move instances of which no report can be made from the log into a dead letter. Raises JournalUnavailable."""
        await self._write(self._set_aside, key, list(sop_instance_uids), revision, reason)

    def learnt(self) -> dict[tuple[str, str, str], str]:
        """Return what the idle policy has learnt, the oldest first."""
        columns = ("calling_ae_title", "modality", "station", "content")
        found = [[rows.text(row[c]) for c in columns] for row in self._all("SELECT * FROM learnt ORDER BY rowid")]
        return {(title, modality, station): content for title, modality, station, content in found}

    def trust(self) -> dict[str, int]:
        """Return the trust in each PACS, by AE title."""
        return {rows.text(row["ae_title"]): rows.count(row["trust"]) for row in self._all("SELECT * FROM pacs")}

    def replay(self) -> Iterator[Instance]:
        """Yield every instance of the log. Call it once, before anything is kept.

        The first instance of each series has the series' attributes; each has its own. Damaged ones are left out.
        """
        now = datetime.now(UTC)
        for series in self._all("SELECT * FROM open_series"):
            key, unreadable = rows.key(series), rows.Unreadable("open_series", series["id"])
            attributes, undecoded, doubtful = unreadable.unless(rows.unpack, series["content"]) or ({}, {}, ())
            attributes = rows.of_patient(attributes, key.patient_id)
            opened = self._open[key] = _OpenSeries(series["id"], attributes, undecoded, doubtful)
            query = "SELECT * FROM instances WHERE series_id = ? ORDER BY received_at"
            for row in self._connection.execute(query, (opened.id,)):
                own = unreadable.unless(rows.own_attributes, row["attributes"]) or {}
                instance = rows.instance(series, row, {**attributes, **own}, now)
                yield replace(instance, undecoded=undecoded, doubtful=doubtful)
                attributes, undecoded, doubtful = rows.identity(attributes), {}, ()

    def revisions(self) -> dict[SeriesKey, int]:
        """Return the last reported revision of each series in the history. Parts do not count as revisions."""
        last = "max(CASE WHEN typeof(revision) = 'integer' THEN revision END) AS revision"
        query = f"SELECT {KEY}, {last} FROM reports WHERE verdict IS NOT NULL GROUP BY {KEY} ORDER BY max(id)"
        return {rows.key(row): rows.count(row["revision"], MAX_REVISION) for row in self._all(query)}

    async def undelivered(self, key: SeriesKey) -> list[str]:
        """Return the SOP Instance UIDs in undelivered reports of a series. Raises JournalUnavailable.

        These images are known here, even if the server does not know them yet.
        """
        report = "CASE WHEN json_valid(report) THEN report ELSE '{}' END"
        query = (
            f"SELECT DISTINCT value FROM reports, json_each({report}, '$.SOPInstanceUIDs') "
            f"WHERE {OF_KEY} AND state IN ('waiting', 'dead') AND json_each.type = 'text'"
        )
        return [rows.text(row["value"]) for row in await self._run(self._all, query, *map(rows.storable, key))]

    # --- what goes out ---

    def waiting(self) -> list[Waiting]:
        """Return the reports that wait for delivery, the oldest first."""
        return [
            rows.waiting(row)
            for row in self._all(f"SELECT {WAITING_COLUMNS} FROM reports WHERE state = 'waiting' ORDER BY id")
        ]

    async def report(self, waiting: Waiting) -> str | None:
        """Return a report's JSON, empty if the row has none; None if the report is not waiting any more."""
        query = "SELECT report FROM reports WHERE id = ? AND state = 'waiting'"
        found = await self._run(self._all, query, waiting.id)
        return rows.text(found[0]["report"]) if found else None

    async def delayed(self, waiting: Waiting, problem: str) -> None:
        """Note a failed attempt, and when the next one is due."""
        schedule: dict[str, Any] = {"attempts": waiting.attempts, "next_attempt_at": waiting.next_attempt_at}
        await self._write(self._update, waiting.id, **schedule, answer=problem)

    def paused_until(self) -> float:
        """Return when the server may be asked again, wall-clock seconds since 1970."""
        return max((rows.seconds(row["paused_until"]) for row in self._all("SELECT * FROM server")), default=0.0)

    async def pause(self, until: float) -> None:
        """Note when the server may be asked again."""
        await self._write(self._execute, "UPDATE server SET paused_until = ?", until)

    async def delivered(self, waiting: Waiting) -> None:
        """Note that the server has a report, which becomes history."""
        await self._write(self._end, waiting, state="delivered", report=None, answer=None)

    async def refused(self, waiting: Waiting, answer: str) -> None:
        """Make a report a dead letter, with the server's answer, since trying again would not help."""
        await self._write(self._end, waiting, state="dead", answer=answer)

    # --- dead letters ---

    async def last_dead(self, most: int) -> list[DeadReport]:
        """Return up to `most` dead letters, the latest first. Raises JournalUnavailable."""
        columns = "id, series_instance_uid, instances, answer, changed_at"
        query = f"SELECT {columns} FROM reports WHERE state = 'dead' ORDER BY id DESC LIMIT ?"
        now = datetime.now(UTC)
        found = [rows.dead_report(row, now) for row in await self._run(self._all, query, most)]
        return [report for report in found if report is not None]

    async def dead(self, ids: Sequence[int] | None) -> list[int]:
        """Return which of these reports (None for all) are dead letters. Raises JournalUnavailable."""
        return [waiting.id for waiting in await self._run(self._dead, ids)]

    async def replay_dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        """Make the reports of dead letters (None for all) again, and let them wait for delivery; return those."""
        return await self._write(self._replay_dead, ids)

    async def discard_dead(self, ids: Sequence[int] | None, reason: str) -> list[int]:
        """Give up dead letters (None for all), with the reason in the history; return the ids of those."""
        return await self._write(self._discard_dead, ids, reason)

    # --- pressure ---

    @property
    def used_bytes(self) -> int:
        """Return the bytes of the file that are in use."""
        return self._used_bytes

    def saturated(self) -> str | None:
        """Return why no more images are accepted; None if they are."""
        if self.open_instances + self.waiting_instances >= self._bounds.max_instances:
            return f"max_pending_instances={self._bounds.max_instances} reached"
        if self._used_bytes >= self._bounds.max_bytes:
            return f"journal_max_bytes={self._bounds.max_bytes} reached"
        try:
            free = self._free_bytes()
        except OSError as error:  # the folder is missing, and may come back
            return f"the journal's folder: {error.strerror}"
        if free < self._bounds.min_free_bytes:
            return f"less than min_free_bytes={self._bounds.min_free_bytes} free"
        return self.failing

    def _free_bytes(self) -> int:
        """Return the free space on the journal's disk. It is cached for MEASURED_FOR_S, since every instance asks."""
        if time.monotonic() >= self._free_until:
            disk = os.statvfs(self._path.parent)
            self._free, self._free_until = disk.f_bavail * disk.f_frsize, time.monotonic() + MEASURED_FOR_S
        return self._free

    async def probe(self) -> None:
        """Try to write, to find out if a failing journal works again."""
        await self._write(self._execute, "UPDATE server SET probed_at = ?", time.time())

    # --- in the journal's thread ---

    async def _write(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a write in the journal's thread. If it succeeds, the journal works again. Raises JournalUnavailable."""
        result = await self._run(do, *args, **kwargs)
        self.failing = None
        return result

    async def _run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the journal's thread. Every error of SQLite becomes JournalUnavailable."""
        try:
            return await self._thread.run(do, *args, **kwargs)
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
        changed: dict[SeriesKey, _OpenSeries] = {}  # copies, used once they are committed
        kept: list[tuple[int, str, float, InstanceValues]] = []
        teaching = [i for i in instances if (series := self._open.get(i.key)) is None or _has_news(i, series)]
        with self._transaction() if teaching else nullcontext():  # a single statement needs no transaction
            for instance in teaching:
                series = changed.get(instance.key) or self._open.get(instance.key)
                changed[instance.key] = self._learn(instance, series)
            for series in changed.values():
                self._execute(
                    "UPDATE open_series SET content = ? WHERE id = ?",
                    rows.pack(series.attributes, series.undecoded, series.doubtful),
                    series.id,
                )
            for instance in instances:
                series = changed.get(instance.key) or self._open[instance.key]
                at = instance.received_at.timestamp()
                kept.append((series.id, instance.sop_instance_uid, at, instance_values(instance)))
            inserted = self._insert(kept)
        self._open |= changed
        self.open_instances += inserted
        if time.monotonic() >= self._measured_at + MEASURED_FOR_S:
            self._measure()

    def _insert(self, kept: Sequence[tuple[int, str, float, InstanceValues]]) -> int:
        """Insert instances in one statement; return how many were not there yet."""
        if len(kept) > 1:
            return self._connection.execute(INSERT_INSTANCES, (json.dumps(kept),)).rowcount
        ((*columns, values),) = kept
        return self._connection.execute(INSERT_INSTANCE, (*columns, json.dumps(values))).rowcount

    def _learn(self, instance: Instance, series: _OpenSeries | None) -> _OpenSeries:
        """Return the series with what an instance adds. The first value of an attribute counts, as in the collector."""
        if series is None:
            series = _OpenSeries(self._insert_series(instance))
        more = news(instance.attributes, series.attributes)
        undecoded = {k: v for k, v in instance.undecoded.items() if k in more}
        doubtful = tuple(dict.fromkeys((*series.doubtful, *instance.doubtful)))[:MAX_DOUBTS]
        return _OpenSeries(series.id, series.attributes | more, series.undecoded | undecoded, doubtful)

    def _insert_series(self, first: Instance) -> int:
        values = (
            *first.key,
            first.sop_class_uid,
            first.transfer_syntax_uid,
            first.calling_ae_title,
            first.peer_address,
            first.called_ae_title,
        )
        cursor = self._connection.execute(
            f"INSERT INTO open_series ({KEY}, sop_class_uid, transfer_syntax_uid, calling_ae_title, peer_address, "
            "called_ae_title, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
            [*map(rows.storable, values)],
        )
        return int(cursor.lastrowid or 0)

    def _file_reports(
        self,
        reports: Sequence[SeriesReport],
        learnt: Learnt,
        traceparents: Sequence[str | None],
        trust: Mapping[str, int],
    ) -> list[Waiting]:
        waiting, moved = [], 0
        emptied: list[SeriesKey] = []
        with self._transaction():
            self._learn_sources(learnt, trust)
            self._count_sources(reports)
            for report, traceparent in zip(reports, traceparents, strict=True):
                waiting.append(self._insert_report(report, traceparent))
                if report.Verdict is None or report.key in emptied:
                    continue  # it is a part, or an earlier report took all instances
                moved += self._move(report.key, report.SOPInstanceUIDs or [], emptied)
        for key in emptied:
            del self._open[key]
        self.open_instances -= moved
        self.waiting_instances += sum(one.moved for one in waiting)
        self._measure()
        return waiting

    def _learn_sources(self, learnt: Learnt, trust: Mapping[str, int]) -> None:
        many = self._connection.executemany
        sources = [([*map(rows.storable, source)], rows.storable(content)) for source, content in learnt.items()]
        forgotten = [source for source, content in sources if content is None]
        many("DELETE FROM learnt WHERE calling_ae_title = ? AND modality = ? AND station = ?", forgotten)
        known = [(*source, content) for source, content in sources if content is not None]
        many("INSERT OR REPLACE INTO learnt (calling_ae_title, modality, station, content) VALUES (?, ?, ?, ?)", known)
        many("INSERT OR REPLACE INTO pacs VALUES (?, ?)", [(rows.storable(title), n) for title, n in trust.items()])

    def _count_sources(self, reports: Sequence[SeriesReport]) -> None:
        """Note who has sent, and when: at the latest now. Beyond MAX_SOURCES, those with the fewest series go first."""
        ended = [report for report in reports if report.Verdict is not None and report.Source]
        sent = [
            (r.Source, r.LastReceivedAt.timestamp(), int(r.Revision == 1), r.NumInstances, time.time())
            for r in ended
            if r.LastReceivedAt is not None
        ]
        self._connection.executemany(COUNT_SOURCE, sent)
        self._execute(FORGET_SOURCES, MAX_SOURCES)

    def _move(self, key: SeriesKey, sop_instance_uids: Sequence[str], emptied: list[SeriesKey]) -> int:
        """Take instances out of the log, and their series with the last one; return how many they were.

        An instance that was kept after the report was made stays in the log, and so does its series.
        """
        series = self._open.get(key)
        if series is None:
            return 0
        moved = self._connection.execute(
            "DELETE FROM instances WHERE series_id = ? AND sop_instance_uid IN (SELECT value FROM json_each(?))",
            (series.id, json.dumps(sop_instance_uids)),
        ).rowcount
        if self._connection.execute(
            "DELETE FROM open_series WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM instances WHERE series_id = ?1)",
            (series.id,),
        ).rowcount:
            emptied.append(key)
        return moved

    def _insert_report(self, report: SeriesReport, traceparent: str | None) -> Waiting:
        content, now = report.model_dump_json(exclude_none=True), time.time()
        cursor = self._connection.execute(
            f"INSERT INTO reports ({KEY}, revision, verdict, instances, report, changed_at, reported_at, traceparent) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*report.key, report.Revision, report.Verdict, report.NumInstances, content, now, now, traceparent),
        )
        id = int(cursor.lastrowid or 0)
        self._supersede(report, id)
        part = report.Verdict is None
        return Waiting(id, report.key, report.Revision, report.NumInstances, 0, 0.0, now, traceparent, part)

    def _supersede(self, report: SeriesReport, id: int) -> None:
        """Delete earlier undelivered parts of the series, since this report contains everything in them."""
        parts = f"{OF_KEY} AND id < ? AND verdict IS NULL AND state ="
        self._execute(f"DELETE FROM reports WHERE {parts} 'waiting'", *report.key, id)
        if report.Verdict is not None:
            dead = self._connection.execute(f"DELETE FROM reports WHERE {parts} 'dead'", (*report.key, id))
            self.dead_letters -= dead.rowcount

    def _set_aside(self, key: SeriesKey, sop_instance_uids: list[str], revision: int, reason: str) -> None:
        emptied: list[SeriesKey] = []
        now, revision = time.time(), rows.count(revision, MAX_REVISION, 1)
        content = rows.unmade(key, sop_instance_uids, revision)
        with self._transaction():
            self._execute(
                f"INSERT INTO reports ({KEY}, revision, verdict, instances, state, report, answer, changed_at, "
                "reported_at) VALUES (?, ?, ?, ?, 'idle', ?, 'dead', ?, ?, ?, ?)",
                *(rows.storable(part) for part in key),
                revision,
                len(sop_instance_uids),
                content,
                rows.storable(reason),
                now,
                now,
            )
            moved = self._move(key, sop_instance_uids, emptied)
        for gone in emptied:
            del self._open[gone]
        self.open_instances -= moved
        self.dead_letters += 1
        self._measure()

    def _update(self, report_id: int, before: str = "waiting", **columns: Any) -> bool:
        """Change a report if it is in the state `before`; return if it was."""
        assignments = ", ".join(f"{column} = :{column}" for column in columns)
        cursor = self._connection.execute(
            f"UPDATE reports SET {assignments}, changed_at = :now WHERE id = :id AND state = :before",
            {k: rows.storable(v) for k, v in columns.items()} | {"id": report_id, "now": time.time(), "before": before},
        )
        return cursor.rowcount == 1

    def _end(self, waiting: Waiting, **columns: Any) -> None:
        if self._update(waiting.id, **columns):
            self.waiting_instances -= waiting.moved
            self.dead_letters += columns["state"] == "dead"
        self._deliveries += 1
        if self._deliveries % PRUNE_EVERY == 0:
            self._prune()
        self._measure()

    def _prune(self) -> None:
        """Shorten the history to its limits. If that fails, the next time will do."""
        ended = "state IN ('delivered', 'discarded')"
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                f"DELETE FROM reports WHERE {ended} AND (changed_at < ? OR id <= (SELECT id FROM reports "
                f"WHERE {ended} ORDER BY id DESC LIMIT 1 OFFSET ?))",
                (time.time() - HISTORY_AGE_S, HISTORY_REPORTS),
            )

    def _replay_dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        with self._transaction():
            replayed = [again for dead in self._dead(ids) if (again := self._made_anew(dead)) is not None]
        self.waiting_instances += sum(waiting.moved for waiting in replayed)
        self.dead_letters -= len(replayed)
        return replayed

    def _made_anew(self, dead: Waiting) -> Waiting | None:
        """Make a dead letter's report again, and let it wait. If that fails, note why, and return None."""
        again: dict[str, Any] = {"state": "waiting", "attempts": 0, "next_attempt_at": 0.0, "answer": None}
        try:
            report = rows.made(self._one("SELECT report FROM reports WHERE id = ?", dead.id))
            again |= {"report": report.model_dump_json(exclude_none=True), "instances": report.NumInstances}
        except Exception as error:  # whatever the row holds, only this report is affected
            self._update(dead.id, "dead", answer=rows.why_unmade(error))
            return None
        self._update(dead.id, "dead", **again)
        return replace(dead, instances=report.NumInstances)

    def _discard_dead(self, ids: Sequence[int] | None, reason: str) -> list[int]:
        with self._transaction():
            dead = self._dead(ids)
            for waiting in dead:
                self._update(waiting.id, "dead", state="discarded", report=None, answer=reason)
        self.dead_letters -= len(dead)
        return [waiting.id for waiting in dead]

    def _dead(self, ids: Sequence[int] | None) -> list[Waiting]:
        chosen = "state = 'dead' AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))"
        found = self._all(f"SELECT {WAITING_COLUMNS} FROM reports WHERE {chosen} ORDER BY id", ids and json.dumps(ids))
        return [replace(rows.waiting(row), attempts=0, next_attempt_at=0.0) for row in found]

    def _execute(self, statement: str, *parameters: Any) -> None:
        self._connection.execute(statement, parameters)

    def _measure(self) -> None:
        """Measure how much of the file is in use; give free pages back to the file system, some at a time.

        Errors are ignored: what was done before is committed, and must not look as if it had failed.
        """
        self._measured_at = time.monotonic()
        with contextlib.suppress(sqlite3.Error):
            free = self._one("PRAGMA freelist_count")
            self._used_bytes = (self._one("PRAGMA page_count") - free) * self._one("PRAGMA page_size")
            if free > VACUUM_PAGES:
                # execute() would run only one step, which frees one page; executescript() runs all.
                self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def _all(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        return self._connection.execute(query, parameters).fetchall()

    def _one(self, query: str, *parameters: Any) -> Any:
        (value,) = self._connection.execute(query, parameters).fetchone()
        return value


# --- opening -------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, bounds: Bounds) -> Iterator[Journal]:
    with (
        closing(connect_or_set_aside(path)) as connection,
        Worker("journal") as thread,
    ):
        try:
            journal = Journal(path, connection, bounds, thread)
        except sqlite3.Error as error:
            raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} is no journal: {error}. Use another file.") from error
        yield journal


def _has_news(instance: Instance, series: _OpenSeries) -> bool:
    more = len(series.doubtful) < MAX_DOUBTS and any(d not in series.doubtful for d in instance.doubtful)
    return more or bool(news(instance.attributes, series.attributes))

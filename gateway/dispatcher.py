"""Post reports by HTTP until the server has them: `SeriesDispatcher`."""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from pydantic import AwareDatetime, BaseModel

from common import metrics
from common.logs import places
from common.outgoing import backoff_s
from common.tracing import named
from gateway.clock import from_wall_clock
from gateway.held_studies import HeldStudies
from gateway.journal import Journal, JournalUnavailable
from gateway.journal_rows import Waiting
from gateway.pieces import may_be_large, pieces
from gateway.server_client import MAX_REFUSAL, SeriesRejected, ServerUnavailable, post_report
from gateway.spans import GatewaySpans
from models import SeriesKey, SeriesRecord

RETRY_BASE_S = 0.25  # half of the longest pause after a first attempt
PROBE_S = 1.0  # longest pause if every report fails, but perhaps each for its own reason
JOURNAL_RETRY_S = 1.0  # pause before a failing journal is tried again
MAX_ERRORS = 3  # bugs in a row with one report after which it becomes a dead letter
EARLY_S = 1e-6  # the loop may run a timer this much too early; what is due then must not wait for another round

log = structlog.get_logger()


class _Posted(BaseModel):
    """The fields of a report that are needed once its row is stored."""

    StudyInstanceUID: str
    PatientID: str | None = None
    LastReceivedAt: AwareDatetime | None = None


class SeriesDispatcher:
    """Posts the journal's waiting reports until the server has them.

    - Reports of one series are posted in order; those of different series at the same time, up to `concurrency`.
    - A report that fails waits for its own next attempt, and only later reports of its series wait with it.
    - If the server itself fails (it refuses connections or our key, answers 429, 502, 503 or 504, or every report
      fails), all posts pause. Then a single one is tried.
    """

    def __init__(  # noqa: PLR0913 - one parameter a part
        self,
        http: httpx.AsyncClient,
        journal: Journal,
        *,
        concurrency: int,
        retry_max_s: float,
        spans: GatewaySpans | None = None,
        held: HeldStudies | None = None,
    ) -> None:
        self._http = http
        self._spans = spans
        self._journal = journal
        self._concurrency = concurrency
        self._retry_max_s = retry_max_s
        self._lines: dict[SeriesKey, deque[Waiting]] = {}
        self._undelivered: dict[int, float] = {}  # by report: when it was made, loop time; in the order of `submit`
        self._now: Callable[[], float] = time.monotonic  # the loop's, once a report is there
        self._of_studies: Counter[str] = Counter()  # how many of these a study has
        self._held = HeldStudies() if held is None else held
        # One entry for each series that has waiting reports and none being posted. The number breaks ties.
        self._due: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()
        self._errors: dict[int, int] = {}  # by report: how many attempts in a row met a bug
        self._posting = 0
        self._failures = 0  # failed attempts in a row; a failure of the whole server counts `concurrency` times
        self._paused_at = 0.0
        self._paused_until = 0.0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()  # set when the next report is delivered or refused; then there is a new one
        self.last_problem: str | None = None
        """Why the last attempt failed; None if it succeeded."""

    @property
    def undelivered(self) -> int:
        """Return how many reports the server has not acknowledged."""
        return len(self._undelivered)

    @property
    def oldest_undelivered_s(self) -> float:
        """Return the age of the oldest undelivered report; 0 if there is none."""
        reported_at = next(iter(self._undelivered.values()), None)
        return 0.0 if reported_at is None else self._now() - reported_at

    def submit(self, waiting: Waiting) -> None:
        """Take a report for delivery, after earlier ones of the same series."""
        line = self._lines.setdefault(waiting.key, deque())
        while len(line) > 1 and line[-1].part:  # replaced by this report in the journal; the first may be under way
            self._end(line.pop())
        line.append(waiting)
        self._now = asyncio.get_running_loop().time
        self._undelivered[waiting.id] = self._now() - max(time.time() - waiting.reported_at, 0.0)
        self._of_studies[waiting.key.study_instance_uid] += 1
        self._held.take(waiting.key.study_instance_uid)
        if len(line) == 1:
            self._schedule(waiting.key, from_wall_clock(waiting.next_attempt_at))

    def pause(self, seconds: float) -> None:
        """Post nothing for so many seconds."""
        self._paused_until = asyncio.get_running_loop().time() + seconds

    def hurry(self) -> None:
        """Try every report now, whenever its next attempt is due, since an operator asked for it."""
        now = asyncio.get_running_loop().time()
        self._due = [(now, number, key) for _, number, key in sorted(self._due)]
        self._paused_until = now
        self._changed.set()

    async def drain(self, timeout_s: float, study_instance_uid: str | None = None) -> int:
        """Wait until every report, or every one of a study, is delivered or refused; return how many are not.

        This takes at most `timeout_s`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._left(study_instance_uid):
                    await self._ended.wait()
        return self._left(study_instance_uid)

    def _left(self, study_instance_uid: str | None) -> int:
        return self.undelivered if study_instance_uid is None else self._of_studies[study_instance_uid]

    def _end(self, waiting: Waiting) -> None:
        """Forget a report that is delivered, refused or replaced, and tell those who wait for that."""
        study = waiting.key.study_instance_uid
        self._undelivered.pop(waiting.id, None)
        self._of_studies[study] -= 1
        if not self._of_studies[study]:
            del self._of_studies[study]
        self._held.let_go(study)
        self._ended.set()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Post reports when they are due, until cancelled."""
        async with asyncio.TaskGroup() as posts:
            while True:
                key = await self._next_due()
                self._posting += 1
                posts.create_task(self._deliver(key), name=f"post {key.series_instance_uid}")

    async def _next_due(self) -> SeriesKey:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            free = self._posting < (1 if self._failures >= self._concurrency else self._concurrency)
            deadline = max(self._due[0][0], self._paused_until) if self._due and free else None
            if deadline is not None and deadline <= loop.time() + EARLY_S:
                return heapq.heappop(self._due)[2]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()

    def _schedule(self, key: SeriesKey, delay_s: float) -> None:
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + delay_s, next(self._numbers), key))
        self._changed.set()

    async def _deliver(self, key: SeriesKey) -> None:
        """Try the first report of a series once. Whatever happens, other series are not affected."""
        line = self._lines[key]
        try:
            delay_s = await self._attempt(line)
        except Exception as error:  # a bug; see _erred
            delay_s = await self._erred(line, error)
        self._posting -= 1
        if delay_s is None:
            done = line.popleft()
            self._errors.pop(done.id, None)
            self._end(done)
        if line:
            self._schedule(key, delay_s or 0.0)
        else:
            del self._lines[key]
        self._changed.set()

    async def _attempt(self, line: deque[Waiting]) -> float | None:
        """Try the first report once; return the seconds until its next attempt, or None if it needs none."""
        begun = asyncio.get_running_loop().time()
        try:
            await self._try(line[0])
        except ServerUnavailable as error:
            self._errors.pop(line[0].id, None)
            line[0], delay_s = await self._delayed(line[0], error, begun)
            return delay_s
        except JournalUnavailable as error:  # posting again does no harm
            log.error("report.unmarked", series_instance_uid=line[0].key.series_instance_uid, reason=str(error))
            return JOURNAL_RETRY_S
        return None

    async def _erred(self, line: deque[Waiting], error: Exception) -> float | None:
        """Handle a bug in an attempt: delay the report, and make it a dead letter after MAX_ERRORS in a row.

        The error's kind and place are logged and stored, but not its text, which may hold patient data.
        """
        waiting, at = line[0], "; ".join(places(error))
        errors = self._errors[waiting.id] = self._errors.get(waiting.id, 0) + 1
        self.last_problem = at
        event = log.bind(series_instance_uid=waiting.key.series_instance_uid, revision=waiting.revision)
        event.error("report.failed", attempt=waiting.attempts + 1, reason=at)
        delay_s = backoff_s(waiting.attempts + 1, self._retry_max_s, RETRY_BASE_S)
        try:
            if errors >= MAX_ERRORS:
                await self._journal.refused(waiting, at[:MAX_REFUSAL])
                metrics.dispatch_attempts.labels("rejected").inc()
                event.error("report.rejected", reason=at, instances=waiting.instances, dead_letter=waiting.id)
                return None
            metrics.dispatch_attempts.labels("delayed").inc()
            line[0] = replace(waiting, attempts=waiting.attempts + 1, next_attempt_at=time.time() + delay_s)
            await self._journal.delayed(line[0], at[:MAX_REFUSAL])
        except Exception as again:  # this must not affect other series either
            event.error("report.unmarked", reason=places(again)[0])
            delay_s = max(delay_s, JOURNAL_RETRY_S)
        return delay_s

    async def _try(self, waiting: Waiting) -> None:
        """Post a report and mark it delivered or dead. Raises ServerUnavailable or JournalUnavailable."""
        report = await self._journal.report(waiting)
        if report is None:  # a part that was replaced by a newer report
            return
        event = log.bind(
            series_instance_uid=waiting.key.series_instance_uid,
            revision=waiting.revision,
            instances=waiting.instances,
            **named(waiting.traceparent),
        )
        try:
            with metrics.dispatch_seconds.time():
                record = await self._post(report, waiting.traceparent)
        except SeriesRejected as error:
            metrics.dispatch_attempts.labels("rejected").inc()
            await self._journal.refused(waiting, str(error))
            event.error("report.rejected", reason=str(error), dead_letter=waiting.id)
            return
        self._failures = 0
        self.last_problem = None
        metrics.dispatch_attempts.labels("delivered").inc()
        await self._journal.delivered(waiting)
        latency_s = row_latency_s(report, record, datetime.now(UTC))
        if latency_s is not None:
            metrics.row_latency_seconds.observe(latency_s)
            event = event.bind(row_latency_s=round(latency_s, 3))
        event.info(
            "report.delivered", stored=record.NumInstances, attempt=waiting.attempts + 1, **_amiss(waiting, record)
        )
        if record.Conflicts:
            event.warning("series.conflicted", conflicts=record.Conflicts)

    async def _delayed(self, waiting: Waiting, error: ServerUnavailable, begun: float) -> tuple[Waiting, float]:
        """Note a failed attempt; return the report with its next attempt, and the seconds until then."""
        attempts = waiting.attempts + 1
        metrics.dispatch_attempts.labels("delayed").inc()
        self.last_problem = str(error)
        delay_s = max(error.retry_after_s, backoff_s(attempts, self._retry_max_s, RETRY_BASE_S))
        waiting = replace(waiting, attempts=attempts, next_attempt_at=time.time() + delay_s)
        log.warning(
            "report.delayed",
            **named(waiting.traceparent),
            series_instance_uid=waiting.key.series_instance_uid,
            revision=waiting.revision,
            attempt=attempts,
            reason=str(error),
            retry_in_s=round(delay_s, 3),
        )
        with contextlib.suppress(JournalUnavailable):  # in that case a restart only tries sooner
            await self._journal.delayed(waiting, str(error))
            if begun >= self._paused_at:  # an attempt that began before the pause tells nothing new
                await self._failed(error)
        return waiting, delay_s

    async def _failed(self, error: ServerUnavailable) -> None:
        self._failures += self._concurrency if error.whole_server else 1
        if self._failures < self._concurrency:
            return
        longest_s = self._retry_max_s if error.whole_server else PROBE_S
        pause_s = backoff_s(self._failures // self._concurrency, longest_s, RETRY_BASE_S)
        if error.whole_server and error.retry_after_s > pause_s:
            pause_s = error.retry_after_s
            await self._journal.pause(time.time() + pause_s)
        self._paused_at = asyncio.get_running_loop().time()
        self.pause(pause_s)

    async def _post(self, report: str, traceparent: str | None) -> SeriesRecord:
        """Post a report once, in its trace; in pieces if it is large. Raises ServerUnavailable or SeriesRejected."""
        headers: dict[str, str] = {}
        with self._spans.post(traceparent, headers) if self._spans else nullcontext():
            *parts, last = await asyncio.to_thread(pieces, report) if may_be_large(report) else [report]
            for part in parts:
                await post_report(self._http, part, headers)
            return await post_report(self._http, last, headers)


def _amiss(waiting: Waiting, record: SeriesRecord) -> dict[str, Any]:
    """Return what is wrong with the row, as fields for the log; nothing if it is complete."""
    said: dict[str, Any] = {"part": waiting.part, "missing": record.Missing, "conflicts": record.Conflicts}
    if record.Missing:
        said["expected"] = record.ExpectedInstances
    return {name: value for name, value in said.items() if value}


def row_latency_s(report: str, record: SeriesRecord, now: datetime) -> float | None:
    """Return the seconds from a report's last image to its row; None if that is not known.

    The report's own time is used, since the row's may be that of another image. There is none for a report that the
    server has kept aside as a conflict, since the row is not about it.
    """
    try:
        posted = _Posted.model_validate_json(report)
    except ValueError:  # the journal may have been written by another version
        return None
    patients = {posted.PatientID, record.PatientID} - {None}
    if posted.LastReceivedAt is None or posted.StudyInstanceUID != record.StudyInstanceUID or len(patients) > 1:
        return None
    return max((now - posted.LastReceivedAt).total_seconds(), 0.0)  # the clock may have been set back

"""The gateway process: images in by DICOM, one report per series out by HTTP.

`scp` puts every received instance on the inbox; `collect` commits it to the journal, then groups by series until each
is idle; `SeriesDispatcher` posts the reports until the server has them. What is committed outlives this process.
"""

import asyncio
import base64
import contextlib
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pydantic
import structlog

from control import changes, serve_control
from header import INSTANCE_LEVEL
from journal import Bounds, Journal, JournalUnavailable, Waiting
from models import GatewayError, Instance, SeriesKey, SeriesRecord, SeriesReport, SeriesVerdict
from scp import OUT_OF_RESOURCES, SUCCESS, Arrival, enqueue, serve_scp
from settings import GatewaySettings

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
RETRY_BASE_S = 0.25
RETRY_AFTER_MAX_S = 3600.0
RETRYABLE = {408, 425, 429}  # besides 5xx, RFC 9110 §15.5.9, RFC 8470, RFC 6585
WHOLE_SERVER = {429, 502, 503, 504}
PROBE_S = 1.0  # longest pause where every report fails, but each perhaps for a reason of its own
JOURNAL_RETRY_S = 1.0
DUE_AT_ONCE = 100  # reports made and journalled before the inbox is looked at again

CLOSED = None  # ends a queue
NOT_IN_ATTRIBUTES = {keyword for keyword, _ in INSTANCE_LEVEL.values()} | {
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}

log = structlog.get_logger()


class ServerUnavailable(GatewayError):
    """The server could not take a report now: try again, not before `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float = 0.0, *, whole_server: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.whole_server = whole_server
        """Other reports would fare alike."""


class SeriesRejected(GatewayError):
    """The server refused a report and no retry will change that."""


# --- collecting ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OpenSeries:
    """A series that is still receiving. `opened` and `last_seen` are loop time."""

    revision: int
    opened: float
    last_seen: float
    first_received_at: datetime
    last_received_at: datetime
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    sop_instance_uids: set[str] = field(default_factory=set)


class SeriesCollector:
    """Groups instances by series and decides when each is reported. Pure: the time is always passed in.

    A report closes the revision. A later instance of the series opens the next one, which carries only what came since.
    """

    def __init__(
        self,
        *,
        idle_timeout_s: float,
        max_open_s: float,
        gateway_id: str,
        revisions: Mapping[SeriesKey, int] = MappingProxyType({}),
    ) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._max_open_s = max_open_s
        self._gateway_id = gateway_id
        self._open: dict[SeriesKey, OpenSeries] = {}
        self._revisions = dict(revisions)
        # One entry per open series, never later than its deadline; the number breaks ties.
        self._deadlines: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()

    def observe(self, instance: Instance, now: float) -> None:
        """Count one instance under its series; a repeated one counts once but shows that the series is alive."""
        series = self._open.get(instance.key) or self._start(instance, now)
        series.last_seen = now
        series.last_received_at = max(series.last_received_at, instance.received_at)
        series.sop_instance_uids.add(instance.sop_instance_uid)
        for keyword, values in instance.attributes.items():
            if values and keyword not in series.attributes:
                series.attributes[keyword] = values
                if keyword in instance.undecoded:
                    series.undecoded[keyword] = instance.undecoded[keyword]

    def next_deadline(self) -> float | None:
        """When the next series falls due (loop time), None where none is open. Amortised O(log n)."""
        while self._deadlines:
            entry, number, key = self._deadlines[0]
            deadline = self._deadline(self._open[key])
            if deadline <= entry:
                return deadline
            heapq.heapreplace(self._deadlines, (deadline, number, key))
        return None

    def due(self, now: float) -> list[SeriesReport]:
        """Close and report series whose deadline has passed, at most DUE_AT_ONCE."""
        reports: list[SeriesReport] = []
        while len(reports) < DUE_AT_ONCE and (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, key = heapq.heappop(self._deadlines)
            idle = self._open[key].last_seen + self._idle_timeout_s <= now
            reports.append(self._close(key, "idle" if idle else "capped"))
        return reports

    def drain(self) -> list[SeriesReport]:
        """Close and report every open series, due or not."""
        self._deadlines.clear()
        return [self._close(key, "drained") for key in list(self._open)]

    def _start(self, instance: Instance, now: float) -> OpenSeries:
        series = OpenSeries(
            revision=self._revisions.pop(instance.key, 0) + 1,
            opened=now,
            last_seen=now,
            first_received_at=instance.received_at,
            last_received_at=instance.received_at,
        )
        self._open[instance.key] = series
        heapq.heappush(self._deadlines, (self._deadline(series), next(self._numbers), instance.key))
        return series

    def _deadline(self, series: OpenSeries) -> float:
        return min(series.last_seen + self._idle_timeout_s, series.opened + self._max_open_s)

    def _close(self, key: SeriesKey, verdict: SeriesVerdict) -> SeriesReport:
        series = self._open.pop(key)
        self._revisions[key] = series.revision
        if len(self._revisions) > REMEMBERED_REVISIONS:
            del self._revisions[next(iter(self._revisions))]
        return SeriesReport(
            SeriesInstanceUID=key.series_instance_uid,
            PatientID=key.patient_id,
            PatientName="\\".join(series.attributes.get("PatientName", ())),
            StudyInstanceUID=key.study_instance_uid,
            NumInstances=len(series.sop_instance_uids),
            SOPInstanceUIDs=sorted(series.sop_instance_uids),
            Attributes={k: list(v) for k, v in series.attributes.items() if k not in NOT_IN_ATTRIBUTES},
            Undecoded={k: base64.b64encode(v).decode() for k, v in series.undecoded.items()},
            Revision=series.revision,
            Verdict=verdict,
            GatewayID=self._gateway_id,
            FirstReceivedAt=series.first_received_at,
            LastReceivedAt=series.last_received_at,
        )


# --- dispatching --------------------------------------------------------------------------------------------


class SeriesDispatcher:
    """Posts the journal's waiting reports until the server has them: in order within a series, side by side across.

    A report that fails waits for its own next attempt, and only its series behind it. A server that fails (refuses
    connections, says 429, 502, 503 or 504, or fails every report) is left alone for a while, then asked with one post.
    """

    def __init__(self, http: httpx.AsyncClient, journal: Journal, *, concurrency: int, retry_max_s: float) -> None:
        self._http = http
        self._journal = journal
        self._concurrency = concurrency
        self._retry_max_s = retry_max_s
        self._lines: dict[SeriesKey, deque[Waiting]] = {}
        # One entry per series that has a report waiting and none being posted; the number breaks ties.
        self._due: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()
        self._posting = 0
        self._failures = 0  # in a row; one of the whole server counts as many as may be posted at once
        self._paused_at = 0.0
        self._paused_until = 0.0
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def undelivered(self) -> int:
        """Reports that the server has not acknowledged."""
        return sum(map(len, self._lines.values()))

    def submit(self, waiting: Waiting) -> None:
        """Take a report for delivery, behind earlier ones of the same series."""
        self._empty.clear()
        line = self._lines.setdefault(waiting.key, deque())
        line.append(waiting)
        if len(line) == 1:
            self._schedule(waiting.key, from_wall_clock(waiting.next_attempt_at))

    def pause(self, seconds: float) -> None:
        """Post nothing for so long."""
        self._paused_until = asyncio.get_running_loop().time() + seconds

    def hurry(self) -> None:
        """Try everything now, whatever its next attempt: an operator asks for it."""
        now = asyncio.get_running_loop().time()
        self._due = [(now, number, key) for _, number, key in sorted(self._due)]
        self._paused_until = now
        self._changed.set()

    async def drain(self, timeout_s: float) -> int:
        """Wait until every report taken is delivered or refused, at most so long; returns how many are not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        return self.undelivered

    async def run(self) -> None:
        """Post what is due, until cancelled."""
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
            if deadline is not None and deadline <= loop.time():
                return heapq.heappop(self._due)[2]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()

    def _schedule(self, key: SeriesKey, delay_s: float) -> None:
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + delay_s, next(self._numbers), key))
        self._changed.set()

    async def _deliver(self, key: SeriesKey) -> None:
        """One try of the first report in a series' line."""
        line = self._lines[key]
        begun = asyncio.get_running_loop().time()
        delay_s = 0.0
        try:
            await self._try(line[0])
            line.popleft()
        except ServerUnavailable as error:
            line[0], delay_s = await self._delayed(line[0], error, begun)
        except JournalUnavailable as error:  # posting again does no harm
            log.error("report.unmarked", series_instance_uid=key.series_instance_uid, reason=str(error))
            delay_s = JOURNAL_RETRY_S
        self._posting -= 1
        if line:
            self._schedule(key, delay_s)
        else:
            del self._lines[key]
        self._changed.set()
        if not self._lines:
            self._empty.set()

    async def _try(self, waiting: Waiting) -> None:
        """Post a report and mark it delivered or dead. Raises ServerUnavailable or JournalUnavailable."""
        event = log.bind(
            series_instance_uid=waiting.key.series_instance_uid, revision=waiting.revision, instances=waiting.instances
        )
        try:
            record = await self._post(await self._journal.report(waiting))
        except SeriesRejected as error:
            await self._journal.refused(waiting, str(error))
            event.error("report.rejected", reason=str(error), dead_letter=waiting.id)
            return
        self._failures = 0
        await self._journal.delivered(waiting)
        event.info("report.delivered", stored=record.NumInstances, attempt=waiting.attempts + 1)
        if record.Conflicts:
            event.warning("series.conflicted", conflicts=record.Conflicts)

    async def _delayed(self, waiting: Waiting, error: ServerUnavailable, begun: float) -> tuple[Waiting, float]:
        """Note a failed try: the report with its next attempt, and the seconds until then."""
        attempts = waiting.attempts + 1
        delay_s = max(error.retry_after_s, backoff_s(attempts, self._retry_max_s))
        waiting = replace(waiting, attempts=attempts, next_attempt_at=time.time() + delay_s)
        log.warning(
            "report.delayed",
            series_instance_uid=waiting.key.series_instance_uid,
            revision=waiting.revision,
            attempt=attempts,
            reason=str(error),
            retry_in_s=round(delay_s, 3),
        )
        with contextlib.suppress(JournalUnavailable):  # a restart then tries sooner
            await self._journal.delayed(waiting, str(error))
            if begun >= self._paused_at:  # else it says no more than what began the pause
                await self._failed(error)
        return waiting, delay_s

    async def _failed(self, error: ServerUnavailable) -> None:
        self._failures += self._concurrency if error.whole_server else 1
        if self._failures < self._concurrency:
            return
        longest_s = self._retry_max_s if error.whole_server else PROBE_S
        pause_s = backoff_s(self._failures // self._concurrency, longest_s)
        if error.whole_server and error.retry_after_s > pause_s:
            pause_s = error.retry_after_s
            await self._journal.pause(time.time() + pause_s)
        self._paused_at = asyncio.get_running_loop().time()
        self.pause(pause_s)

    async def _post(self, report: str) -> SeriesRecord:
        """One try. Raises ServerUnavailable or SeriesRejected; neither text holds patient data."""
        try:
            response = await self._http.post("series", content=report, headers={"Content-Type": "application/json"})
        except httpx.HTTPError as error:
            whole_server = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise ServerUnavailable(f"{type(error).__name__}: {error}", whole_server=whole_server) from error
        status = response.status_code
        if status >= 500 or status in RETRYABLE:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            raise ServerUnavailable(f"HTTP {status}", wait_s, whole_server=status in WHOLE_SERVER)
        if 400 <= status < 500:
            raise SeriesRejected(f"HTTP {status} {_problem(response)}")
        try:
            return SeriesRecord.model_validate_json(response.content)
        except pydantic.ValidationError:
            raise ServerUnavailable(f"HTTP {status} without a SeriesRecord: is GATEWAY_SERVER_URL right?") from None


def backoff_s(attempt: int, retry_max_s: float) -> float:
    """Full jitter: uniform between 0 and an exponentially growing bound, so that gateways do not retry in step."""
    return random.uniform(0, min(retry_max_s, RETRY_BASE_S * 2.0 ** min(attempt, 30)))  # noqa: S311 - not a secret


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110 §10.2.3: seconds or a date), at most an hour; 0 if none."""
    if header is None:
        return 0.0
    try:
        seconds = (
            float(header) if header.isdigit() else (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def from_wall_clock(at: float) -> float:
    """Seconds from now until `at` (since 1970), never more than was ever asked for: the clock may have been set."""
    return min(max(at - time.time(), 0.0), RETRY_AFTER_MAX_S)


def _problem(response: httpx.Response) -> str:
    """Which fields the server refused and why, from its 422 body; never the values."""
    try:
        return "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in response.json()["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


# --- the process --------------------------------------------------------------------------------------------


class Drain(NamedTuple):
    """On the inbox: report what is open now; `closed` takes how many series that were."""

    closed: asyncio.Future[int]


Inbox = asyncio.Queue[Arrival | Drain | None]


async def collect(inbox: Inbox, journal: Journal, collector: SeriesCollector, dispatcher: SeriesDispatcher) -> None:
    """Move instances from the inbox through the journal into their series, and reports to the dispatcher, until CLOSED.

    What is on the inbox together is committed together: one fsync serves every association that waits.
    """
    loop = asyncio.get_running_loop()
    reports: list[SeriesReport] = []  # made, and not yet in the journal
    closed = False
    while not closed:
        items = await _take(inbox, loop.time() + JOURNAL_RETRY_S if reports else collector.next_deadline())
        await _keep([item for item in items if isinstance(item, Arrival)], journal, collector)
        drains = [item for item in items if isinstance(item, Drain)]
        closed = CLOSED in items
        drained = collector.drain() if drains or closed else []
        reports += drained or collector.due(loop.time())
        reports = await _report(reports, journal, dispatcher)
        for drain in drains:
            drain.closed.set_result(len(drained))


async def _take(inbox: Inbox, deadline: float | None) -> list[Arrival | Drain | None]:
    """All that is in the inbox, waiting for the first until `deadline`: what has arrived is seen before what is due."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            first = await inbox.get()
            return [first, *(inbox.get_nowait() for _ in range(inbox.qsize()))]
    return []


async def _keep(arrivals: list[Arrival], journal: Journal, collector: SeriesCollector) -> None:
    """Commit, then count, then answer: 0x0000 means kept."""
    arrivals = [arrival for arrival in arrivals if not arrival.status.done()]  # done: its sender was told otherwise
    if not arrivals:
        return
    status = SUCCESS
    try:
        await journal.keep([arrival.instance for arrival in arrivals])
    except JournalUnavailable as error:
        log.error("instances.refused", count=len(arrivals), reason=str(error))
        status = OUT_OF_RESOURCES
    else:
        now = asyncio.get_running_loop().time()
        for arrival in arrivals:
            collector.observe(arrival.instance, now)
    for arrival in arrivals:
        if not arrival.status.done():
            arrival.status.set_result(status)


async def _report(reports: list[SeriesReport], journal: Journal, dispatcher: SeriesDispatcher) -> list[SeriesReport]:
    """Move closed series into the journal's outbox; returns those that it could not take now."""
    for first in range(0, len(reports), DUE_AT_ONCE):
        some = reports[first : first + DUE_AT_ONCE]
        try:
            waiting = await journal.close(some)
        except JournalUnavailable as error:
            log.error("series.unreported", count=len(reports) - first, reason=str(error))
            return reports[first:]
        for report, entry in zip(some, waiting, strict=True):
            log.info(
                "series.reported",
                verdict=report.Verdict,
                series_instance_uid=report.SeriesInstanceUID,
                revision=report.Revision,
                instances=report.NumInstances,
            )
            dispatcher.submit(entry)
    return []


async def watch(journal: Journal) -> None:
    """Say when the gateway stops and resumes taking instances; try a failing journal until it works again."""
    before: str | None = None
    while True:
        if journal.failing:
            with contextlib.suppress(JournalUnavailable):
                await journal.probe()
        reason = journal.saturated()
        if reason and not before:
            log.error("gateway.saturated", reason=reason)
        elif before and not reason:
            log.info("gateway.recovered")
        before = reason
        await asyncio.sleep(JOURNAL_RETRY_S)


async def run(settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True) -> int:
    """Run the gateway until `stop`, then drain; returns how many reports stay in the journal for the next start.

    With `listen` false it only drains what the journal holds. Raises CannotListen or JournalUnusable.
    """
    inbox: Inbox = asyncio.Queue(settings.inbox_size)
    bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
    async with (
        Journal.open(settings.journal_path, bounds) as journal,
        httpx.AsyncClient(base_url=str(settings.server_url), timeout=settings.request_timeout_s) as http,
        asyncio.TaskGroup() as tasks,
    ):
        dispatcher = SeriesDispatcher(
            http, journal, concurrency=settings.dispatch_concurrency, retry_max_s=settings.retry_max_s
        )
        collector = restore(settings, journal, dispatcher)
        background = [
            tasks.create_task(dispatcher.run(), name="dispatch"),
            tasks.create_task(watch(journal), name="watch"),
        ]
        collecting = tasks.create_task(collect(inbox, journal, collector, dispatcher), name="collect")
        if listen:
            await _listen(settings, stop, inbox, journal, dispatcher)
        else:
            dispatcher.hurry()
        await inbox.put(CLOSED)
        await collecting
        undelivered = await dispatcher.drain(settings.drain_timeout_s)
        for task in background:
            task.cancel()
    log.info("gateway.stopped", undelivered=undelivered)
    return undelivered


def restore(settings: GatewaySettings, journal: Journal, dispatcher: SeriesDispatcher) -> SeriesCollector:
    """Re-arm what an earlier run left: open series with a full time-out from now, reports in their order."""
    collector = SeriesCollector(
        idle_timeout_s=settings.idle_timeout_s,
        max_open_s=settings.max_open_s,
        gateway_id=settings.id,
        revisions=journal.revisions(),
    )
    now = asyncio.get_running_loop().time()
    for instance in journal.replay():
        collector.observe(instance, now)
    dispatcher.pause(from_wall_clock(journal.paused_until()))
    for waiting in journal.waiting():
        dispatcher.submit(waiting)
    log.info("journal.opened", open_instances=journal.open_instances, undelivered=dispatcher.undelivered)
    return collector


async def _listen(
    settings: GatewaySettings, stop: asyncio.Event, inbox: Inbox, journal: Journal, dispatcher: SeriesDispatcher
) -> None:
    """Take instances and the operator's requests until `stop`."""
    handle_store = enqueue(inbox, settings.inbox_timeout_s)

    async def status() -> dict[str, Any]:
        reason = journal.saturated()
        return {"running": True, "ready": reason is None, "reason": reason}

    async def drain() -> dict[str, Any]:
        request = Drain(asyncio.get_running_loop().create_future())
        await inbox.put(request)
        reported = await request.closed
        dispatcher.hurry()
        return {"reported": reported, "undelivered": await dispatcher.drain(settings.drain_timeout_s)}

    operations = {"status": status, "drain": drain, **changes(journal, dispatcher.submit)}
    async with (
        serve_control(settings.journal_path, operations),
        serve_scp(settings, handle_store, journal.saturated) as port,
    ):
        log.info("gateway.started", host=settings.scp_host, port=port, ae_title=settings.ae_title)
        await stop.wait()
        log.info("gateway.draining", drain_timeout_s=settings.drain_timeout_s)


if __name__ == "__main__":
    from commands import command_line

    command_line(run)()

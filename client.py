"""The gateway process: images in by DICOM, one report per series out by HTTP.

`scp` puts every received instance on the inbox; `collect` groups them by series until each is idle;
`SeriesDispatcher` posts the reports until the server has them.
"""

import asyncio
import base64
import contextlib
import heapq
import itertools
import random
import signal
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import click
import httpx
import pydantic
import structlog

from header import INSTANCE_LEVEL
from models import GatewayError, Instance, SeriesKey, SeriesRecord, SeriesReport, SeriesVerdict
from scp import OUT_OF_RESOURCES, CannotListen, enqueue, serve_scp
from settings import GatewaySettings, SettingsError, load
from telemetry import configure_logging

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
RETRY_BASE_S = 0.25
RETRY_AFTER_MAX_S = 3600.0
RETRYABLE = {408, 425, 429}  # besides 5xx, RFC 9110 §15.5.9, RFC 8470, RFC 6585

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

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


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

    def __init__(self, *, idle_timeout_s: float, max_open_s: float, gateway_id: str) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._max_open_s = max_open_s
        self._gateway_id = gateway_id
        self._open: dict[SeriesKey, OpenSeries] = {}
        self._revisions: dict[SeriesKey, int] = {}
        # One entry per open series, never later than its deadline; the number breaks ties.
        self._deadlines: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()
        self.held = 0
        """Instances in open series."""

    def observe(self, instance: Instance, now: float) -> None:
        """Count one instance under its series; a repeated one counts once but shows that the series is alive."""
        series = self._open.get(instance.key) or self._start(instance, now)
        series.last_seen = now
        series.last_received_at = max(series.last_received_at, instance.received_at)
        if instance.sop_instance_uid not in series.sop_instance_uids:
            series.sop_instance_uids.add(instance.sop_instance_uid)
            self.held += 1
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
        """Close and report every series whose deadline has passed."""
        reports = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
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
        self.held -= len(series.sop_instance_uids)
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
    """Posts reports until the server has them: in order within a series, side by side across series.

    A server that is down delays a report and never drops it; only its own series waits behind it.
    """

    def __init__(
        self, http: httpx.AsyncClient, tasks: asyncio.TaskGroup, *, concurrency: int, retry_max_s: float
    ) -> None:
        self._http = http
        self._tasks = tasks
        self._slots = asyncio.Semaphore(concurrency)
        self._retry_max_s = retry_max_s
        self._waiting: dict[SeriesKey, deque[SeriesReport]] = {}
        self._delivering: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.held = 0
        """Instances in reports that the server has not acknowledged."""

    def submit(self, report: SeriesReport) -> None:
        """Take a report for delivery, behind earlier ones of the same series."""
        self.held += report.NumInstances
        self._empty.clear()
        waiting = self._waiting.setdefault(report.key, deque())
        waiting.append(report)
        if len(waiting) == 1:
            task = self._tasks.create_task(
                self._deliver_series(report.key), name=f"dispatch {report.SeriesInstanceUID}"
            )
            self._delivering.add(task)
            task.add_done_callback(self._delivering.discard)

    async def drain(self) -> None:
        """Return when every report taken is delivered or refused."""
        await self._empty.wait()

    def cancel(self) -> int:
        """Give up what is not delivered; returns how many reports that were."""
        undelivered = sum(len(waiting) for waiting in self._waiting.values())
        for task in self._delivering:
            task.cancel()
        return undelivered

    async def _deliver_series(self, key: SeriesKey) -> None:
        waiting = self._waiting[key]
        while waiting:
            await self._deliver(waiting[0])
            self.held -= waiting.popleft().NumInstances
        del self._waiting[key]
        if not self._waiting:
            self._empty.set()

    async def _deliver(self, report: SeriesReport) -> None:
        """Post one report until the server has it or refuses it for good."""
        event = log.bind(
            series_instance_uid=report.SeriesInstanceUID, revision=report.Revision, instances=report.NumInstances
        )
        for attempt in itertools.count(1):
            try:
                async with self._slots:
                    record = await self._post(report)
            except ServerUnavailable as error:
                delay_s = max(error.retry_after_s, backoff_s(attempt, self._retry_max_s))
                event.warning("report.delayed", attempt=attempt, reason=str(error), retry_in_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)
            except SeriesRejected as error:
                event.error("report.rejected", reason=str(error))
                return
            else:
                event.info("report.delivered", stored=record.NumInstances, verdict=report.Verdict, attempt=attempt)
                if record.Conflicts:
                    event.warning("series.conflicted", conflicts=record.Conflicts)
                return

    async def _post(self, report: SeriesReport) -> SeriesRecord:
        """One try. Raises ServerUnavailable or SeriesRejected; neither text holds patient data."""
        try:
            response = await self._http.post(
                "series",
                content=report.model_dump_json(exclude_none=True),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise ServerUnavailable(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status >= 500 or status in RETRYABLE:
            raise ServerUnavailable(f"HTTP {status}", retry_after_s(response.headers.get("Retry-After")))
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


def _problem(response: httpx.Response) -> str:
    """Which fields the server refused and why, from its 422 body; never the values."""
    try:
        return "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in response.json()["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


# --- the process --------------------------------------------------------------------------------------------


async def collect(
    inbox: asyncio.Queue[Instance | None], collector: SeriesCollector, dispatcher: SeriesDispatcher
) -> None:
    """Move instances from the inbox into their series, and series that fall due to the dispatcher, until CLOSED."""
    loop = asyncio.get_running_loop()
    closed = False
    while not closed:
        for instance in await _take(inbox, collector.next_deadline()):
            if instance is CLOSED:
                closed = True
            else:
                collector.observe(instance, loop.time())
        _submit(dispatcher, collector.drain() if closed else collector.due(loop.time()))


async def _take(inbox: asyncio.Queue[Instance | None], deadline: float | None) -> list[Instance | None]:
    """All that is in the inbox, waiting for the first until `deadline`: what has arrived is seen before what is due."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            first = await inbox.get()
            return [first, *(inbox.get_nowait() for _ in range(inbox.qsize()))]
    return []


def _submit(dispatcher: SeriesDispatcher, reports: Iterable[SeriesReport]) -> None:
    for report in reports:
        log.info(
            "series.reported",
            verdict=report.Verdict,
            series_instance_uid=report.SeriesInstanceUID,
            revision=report.Revision,
            instances=report.NumInstances,
        )
        dispatcher.submit(report)


async def run(settings: GatewaySettings, stop: asyncio.Event) -> int:
    """Run the gateway until `stop`, then drain. Returns the exit code: 0 if every report was delivered."""
    inbox: asyncio.Queue[Instance | None] = asyncio.Queue(settings.inbox_size)
    collector = SeriesCollector(
        idle_timeout_s=settings.idle_timeout_s, max_open_s=settings.max_open_s, gateway_id=settings.id
    )
    async with (
        httpx.AsyncClient(base_url=str(settings.server_url), timeout=settings.request_timeout_s) as http,
        asyncio.TaskGroup() as tasks,
    ):
        dispatcher = SeriesDispatcher(
            http, tasks, concurrency=settings.dispatch_concurrency, retry_max_s=settings.retry_max_s
        )
        collecting = tasks.create_task(collect(inbox, collector, dispatcher), name="collect")
        put = enqueue(inbox, settings.inbox_timeout_s)

        async def handle_store(instance: Instance) -> int:
            """Keep one instance and return its C-STORE status (PS3.7 §9.1.1)."""
            if inbox.qsize() + collector.held + dispatcher.held >= settings.max_pending_instances:
                log.warning(
                    "instance.refused", sop_instance_uid=instance.sop_instance_uid, reason="max_pending_instances"
                )
                return OUT_OF_RESOURCES
            return await put(instance)

        async with serve_scp(settings, handle_store) as port:
            log.info("gateway.started", host=settings.scp_host, port=port, ae_title=settings.ae_title)
            await stop.wait()
            log.info("gateway.draining", drain_timeout_s=settings.drain_timeout_s)
        await inbox.put(CLOSED)
        await collecting
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await dispatcher.drain()
        except TimeoutError:
            undelivered = dispatcher.cancel()
            log.error(
                "gateway.stopped",
                reason=f"drain exceeded drain_timeout_s={settings.drain_timeout_s:g}",
                undelivered=undelivered,
            )
            return 1
    log.info("gateway.stopped", undelivered=0)
    return 0


async def _run_until_signalled(settings: GatewaySettings) -> int:
    """SIGTERM and Ctrl-C drain; a second one kills."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return await run(settings, stop)


def _flag(name: str) -> click.Option:
    field_info = GatewaySettings.model_fields[name]
    shown = "" if field_info.default_factory else f" [default: {field_info.default}]"
    return click.Option([f"--{name.replace('_', '-')}"], help=f"{field_info.description}{shown}", metavar="VALUE")


def main(**flags: str | None) -> None:
    """Receive DICOM images, report each series once it is idle. Every flag is also a GATEWAY_… variable."""
    configure_logging()
    try:
        settings = load(GatewaySettings, {name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    try:
        sys.exit(asyncio.run(_run_until_signalled(settings)))
    except* CannotListen as errors:
        problem = str(errors.exceptions[0])
    raise click.ClickException(problem)


cli = click.Command(
    "client.py", callback=main, help=main.__doc__, params=[_flag(n) for n in GatewaySettings.model_fields]
)

if __name__ == "__main__":
    cli()

"""The gateway process: images in by DICOM, one report per series out by HTTP.

`scp` puts every received instance on the inbox; `collect` commits it to the journal, then hands it to the
`SeriesCollector`, which says when a series is to be reported; the `SeriesDispatcher` posts the reports until the server
has them. What is committed outlives this process.
"""

# series-gateway: Tab completes this (console/shell_completion.py)

if __name__ == "__main__":  # most commands need none of what follows
    from functools import partial

    from common.start import later, program

    program("gateway.cli.commands", partial(later, "client", "run"))

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import structlog

from common import metrics
from common.control import Operation, serve_control
from common.logs import places
from common.settings import GatewaySettings
from common.tracing import named, open_spans
from common.version import version
from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from gateway.clock import from_wall_clock, wall_clock
from gateway.collector import DUE_AT_ONCE, Failure, SeriesCollector
from gateway.dispatcher import JOURNAL_RETRY_S, SeriesDispatcher
from gateway.heartbeat import Vitals, beat, last_beat
from gateway.idle import Adaptive, Fixed, IdlePolicy, Source
from gateway.journal import Bounds, Journal, JournalUnavailable
from gateway.metrics_port import serve_metrics
from gateway.operations import dead_letters
from gateway.orders import Orders, obedience
from gateway.pacs import Pacs, asking
from gateway.questions import Answer, Question
from gateway.recorder import Recorder
from gateway.server_client import server_client, stored_instances
from gateway.spans import GatewaySpans
from models import FINAL_VERDICTS, Association, GatewayState, Instance, SeriesKey, SeriesReport
from scp import Arrival, HandleStore, enqueue, serve_scp

CLOSED = None  # ends a queue
POLLS = 2  # rounds of the event loop after which what the sockets hold is on the inbox
PAUSED_S = 0.1  # a wait that ends so late was no wait: the process was stopped, or its machine paused
SETTLE_S = 0.5  # after that, in which senders that had to wait for us go on, and nothing is taken for idle

log = structlog.get_logger()


class Drain(NamedTuple):
    """On the inbox: report what is open now; `closed` takes how many series that were."""

    closed: asyncio.Future[int]


class Declare(NamedTuple):
    """On the inbox: report what is open of a series since before a time; `closed` takes how many reports that were."""

    series_instance_uid: str
    given_at: datetime
    closed: asyncio.Future[int]


class Released(NamedTuple):
    """On the inbox: an association ended."""

    association: Association


class Answered(NamedTuple):
    """On the inbox: what the PACS says of a series."""

    key: SeriesKey
    answer: Answer


Show = Callable[[Callable[[], GatewayState]], AbstractAsyncContextManager[None]]
"""What shows a gateway's state while it runs: the table on a terminal."""
Traced = tuple[SeriesReport, str | None]
"""A report and its trace, as GatewaySpans.report gives it."""
Declared = tuple[asyncio.Future[int], int]
"""Who wants to know when so many reports are in the journal."""
Item = Arrival | Released | Answered | Drain | Declare | None
Inbox = asyncio.Queue[Item]


async def collect(  # noqa: PLR0913, PLR0917 - what an image and its series meet
    inbox: Inbox,
    journal: Journal,
    collector: SeriesCollector,
    dispatcher: SeriesDispatcher,
    ask: Callable[[Question], None] | None = None,
    spans: GatewaySpans | None = None,
) -> None:
    """Move instances from the inbox through the journal into their series, and reports to the dispatcher, until CLOSED.

    What is on the inbox together is committed together: one fsync serves every association that waits.
    """
    loop = asyncio.get_running_loop()
    reports: list[Traced] = []  # made, and not yet in the journal
    declared: list[Declared] = []
    settled_at: float | None = None  # when a pause is over
    closed = False
    while not closed:
        deadline = loop.time() + JOURNAL_RETRY_S if reports else collector.next_deadline()
        if deadline is not None and settled_at is not None:
            deadline = max(deadline, settled_at)
        waits_until = math.inf if deadline is None or deadline < loop.time() else deadline
        items = await _take(inbox, deadline)
        now = loop.time()  # before the commit: what arrives meanwhile is seen before what falls due meanwhile
        if settled_at is None and now > waits_until + PAUSED_S:
            settled_at = now + SETTLE_S
        await _keep([item for item in items if isinstance(item, Arrival)], journal, collector)
        made, closing = _heed(items, collector, now)
        declared += closing
        drains = [item for item in items if isinstance(item, Drain)]
        closed = CLOSED in items
        drained = collector.drain(now) if drains or closed else []
        made += drained
        if settled_at is None or now >= settled_at:
            settled_at = None
            made += collector.due(now)
        await _set_aside(collector.failures(), journal)
        reports += [(report, spans.report(report) if spans else None) for report in made]
        reports = await _report(reports, journal, collector, dispatcher)
        for question in collector.questions():
            if ask is not None:
                ask(question)
        for drain in drains:
            drain.closed.set_result(len(drained))
        if not reports:  # they are on disk
            _tell(declared)
            declared = []


async def _take(inbox: Inbox, deadline: float | None) -> list[Item]:
    """All that is in the inbox, waiting for the first until `deadline`: what has arrived is seen before what is due."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            first = await inbox.get()
            return [first, *_waiting(inbox)]
    for _ in range(POLLS):  # a loop may fire timers before it reads its sockets
        await asyncio.sleep(0)
    return [*_waiting(inbox)]


def _waiting(inbox: Inbox) -> Iterator[Item]:
    return (inbox.get_nowait() for _ in range(inbox.qsize()))


def _heed(items: list[Item], collector: SeriesCollector, now: float) -> tuple[list[SeriesReport], list[Declared]]:
    """Let the collector know what happened beside images; what it reports at once, and what of that was declared."""
    made: list[SeriesReport] = []
    declared: list[Declared] = []
    for item in items:
        match item:
            case Released(association):
                collector.released(association, now)
            case Answered(key, answer):
                made += collector.answered(key, answer, now)
            case Declare(uid, given_at, closed):
                closing = collector.declare(uid, given_at, now)
                made += closing
                declared.append((closed, len(closing)))
    return made, declared


def _tell(declared: list[Declared]) -> None:
    for closed, count in declared:
        if not closed.done():  # who wanted to know has waited too long
            closed.set_result(count)


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
            metrics.instances_doubtful.inc(bool(arrival.instance.doubtful))
            collector.observe(arrival.instance, now)
    for arrival in arrivals:
        if not arrival.status.done():
            arrival.status.set_result(status)


async def _set_aside(failures: list[Failure], journal: Journal) -> None:
    """Say what could not be reported as it should; what could not be at all waits in the journal as a dead letter."""
    for key, revision, error, sop_instance_uids in failures:
        event = log.bind(series_instance_uid=key.series_instance_uid)
        if not sop_instance_uids:
            event.error("series.reduced", exc_info=error)
            continue
        event.error("series.set_aside", exc_info=error)
        try:
            await journal.set_aside(key, sop_instance_uids, revision, "; ".join(places(error)))
        except JournalUnavailable as problem:  # they stay open there, and are reported after the next start
            log.error("series.unreported", count=1, reason=str(problem))


async def _report(
    reports: list[Traced], journal: Journal, collector: SeriesCollector, dispatcher: SeriesDispatcher
) -> list[Traced]:
    """Move closed series into the journal's outbox; returns those that it could not take now."""
    for first in range(0, len(reports), DUE_AT_ONCE):
        some, traceparents = zip(*reports[first : first + DUE_AT_ONCE], strict=True)
        learnt, trust = collector.policy.news(), collector.trust_news()
        try:
            waiting = await journal.close(
                some, {(*source,): text for source, text in learnt.items()}, traceparents, trust
            )
        except JournalUnavailable as error:
            log.error("series.unreported", count=len(reports) - first, reason=str(error))
            return reports[first:]
        collector.kept(learnt, trust)
        for report, entry in zip(some, waiting, strict=True):
            _count(report)
            event = log.bind(
                series_instance_uid=report.SeriesInstanceUID,
                revision=report.Revision,
                instances=report.NumInstances,
                **named(entry.traceparent),
            )
            if report.Verdict is None:
                event.info("series.parted")
            else:
                event.info("series.reported", verdict=report.Verdict, basis=report.Basis)
                if report.Doubtful:
                    event.warning("series.doubtful", source=report.Source, reasons=report.Doubtful)
            dispatcher.submit(entry)
    return []


def _count(report: SeriesReport) -> None:
    metrics.series_reported.labels(report.Verdict or "part").inc()
    if report.Verdict is None:
        return
    for entry in report.Timeline:
        if entry.Event == "series.reopened" and entry.Details["Verdict"] in FINAL_VERDICTS:
            metrics.false_completions.labels(entry.Details["Verdict"]).inc()
    if report.LastReceivedAt is not None:
        added_s = (datetime.now(UTC) - report.LastReceivedAt).total_seconds()
        metrics.added_latency_seconds.observe(max(added_s, 0.0))  # clocks are set


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


async def run(settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True, show: Show | None = None) -> int:
    """Run the gateway until `stop`, then drain; returns how many reports stay in the journal for the next start.

    With `listen` false it only drains what the journal holds. Raises CannotCall, CannotListen, CannotServeMetrics or
    JournalUnusable.
    """
    loop = asyncio.get_running_loop()
    inbox: Inbox = asyncio.Queue(settings.inbox_size)
    bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
    async with (
        Journal.open(settings.journal_path, bounds) as journal,
        server_client(settings) as http,
        open_spans("series-gateway", partial(GatewaySpans, monotonic=loop.time)) as spans,
        asyncio.TaskGroup() as tasks,
        AsyncExitStack() as shown,
    ):
        dispatcher = SeriesDispatcher(
            http,
            journal,
            concurrency=settings.dispatch_concurrency,
            retry_max_s=settings.retry_max_s,
            spans=spans,
        )
        collector = restore(settings, journal, dispatcher)
        orders = Orders(obedience(partial(_declare, inbox), dead_letters(journal, dispatcher.submit)))
        vitals = Vitals(settings, inbox, journal, collector, dispatcher, orders)
        background = [
            tasks.create_task(dispatcher.run(), name="dispatch"),
            tasks.create_task(watch(journal), name="watch"),
            tasks.create_task(vitals.follow(), name="vitals"),
        ]
        if show is not None:
            await shown.enter_async_context(show(vitals.state))
        handle_store = enqueue(inbox, settings.inbox_timeout_s)

        async def keep_fetched(instance: Instance) -> int:
            metrics.instances_received.inc()
            return OUT_OF_RESOURCES if journal.saturated() else await handle_store(instance)

        pacs = Pacs(settings, partial(stored_instances, http), keep_fetched, undelivered=journal.undelivered)
        async with asking(pacs, lambda key, told: inbox.put(Answered(key, told))) as ask:
            collecting = tasks.create_task(collect(inbox, journal, collector, dispatcher, ask, spans), name="collect")
            if listen:
                await shown.enter_async_context(serve_metrics(settings))
                background.append(tasks.create_task(beat(vitals, http), name="heartbeat"))
                await _listen(settings, stop, inbox, journal, dispatcher, handle_store, spans, vitals)
            else:
                dispatcher.hurry()
        await inbox.put(CLOSED)
        await collecting
        undelivered = await dispatcher.drain(settings.drain_timeout_s)
        for task in background:
            task.cancel()
        if listen:
            await last_beat(vitals, http)
    log.info("gateway.stopped", undelivered=undelivered)
    return undelivered


async def _declare(inbox: Inbox, series_instance_uid: str, given_at: datetime) -> int:
    """Have the collector report what is open of a series since before then; how many reports are on disk for it."""
    request = Declare(series_instance_uid, given_at, asyncio.get_running_loop().create_future())
    await inbox.put(request)
    return await request.closed


def restore(settings: GatewaySettings, journal: Journal, dispatcher: SeriesDispatcher) -> SeriesCollector:
    """Re-arm what an earlier run left: open series with a full time-out from now, reports in their order."""
    loop = asyncio.get_running_loop()
    policy: IdlePolicy = Fixed(settings.idle_timeout_s)
    if settings.idle_policy == "adaptive":
        policy = Adaptive(settings.idle_timeout_s, settings.idle_max_s)
        for source, learnt in journal.learnt().items():
            try:
                policy.load(Source(*source), learnt)
            except Exception as error:  # of a version to come, or spoilt: it is learnt anew
                log.warning("habits.unreadable", source=" ".join(source), exc_info=error)
    collector = SeriesCollector(
        policy=policy,
        max_open_s=settings.max_open_s,
        gateway_id=settings.id,
        wall_clock=wall_clock(loop.time),
        pacs=settings.pacs_by_ae_title,
        patience_s=settings.missing_timeout_s,
        fetch=settings.fetch_missing != "off",
        remember_s=2 * settings.idle_max_s,
        revisions=journal.revisions(),
        trust=journal.trust(),
    )
    now = loop.time()
    for instance in journal.replay():
        collector.observe(instance, now)
    dispatcher.pause(from_wall_clock(journal.paused_until()))
    for waiting in journal.waiting():
        dispatcher.submit(waiting)
    log.info("journal.opened", open_instances=journal.open_instances, undelivered=dispatcher.undelivered)
    return collector


async def _listen(  # noqa: PLR0913, PLR0917 - what an association meets
    settings: GatewaySettings,
    stop: asyncio.Event,
    inbox: Inbox,
    journal: Journal,
    dispatcher: SeriesDispatcher,
    handle_store: HandleStore,
    spans: GatewaySpans | None,
    vitals: Vitals,
) -> None:
    """Take instances and the operator's requests until `stop`."""
    loop = asyncio.get_running_loop()

    def record_and_store(instance: Instance) -> Awaitable[int]:
        kept = asyncio.ensure_future(handle_store(instance))
        if recorder is not None:
            recorder.image(instance)
        if spans is not None:
            spans.image(instance, kept)
        return kept

    def observe(association: Association) -> None:
        if recorder is not None:
            recorder.association(association)
        if spans is not None:
            spans.association(association)
        if association.released_at is not None:
            try:
                inbox.put_nowait(Released(association))
            except asyncio.QueueFull:
                tasks.create_task(inbox.put(Released(association)), name="released")

    operations = _operations(settings, inbox, journal, dispatcher)
    with Recorder.open(settings.trace_path, loop.time) as recorder:
        async with (
            serve_control(settings.journal_path, operations),
            asyncio.TaskGroup() as tasks,
            serve_scp(settings, record_and_store, journal.saturated, observe) as port,
        ):
            vitals.port = port
            log.info(
                "gateway.started",
                host=settings.scp_host,
                port=port,
                ae_title=settings.ae_title,
                version=version(),
            )
            await stop.wait()
            log.info("gateway.draining", drain_timeout_s=settings.drain_timeout_s)


def _operations(
    settings: GatewaySettings, inbox: Inbox, journal: Journal, dispatcher: SeriesDispatcher
) -> Mapping[str, Operation]:
    """What the operator's commands ask for."""

    async def status() -> dict[str, Any]:
        reason = journal.saturated()
        return {"running": True, "ready": reason is None, "reason": reason}

    async def drain() -> dict[str, Any]:
        request = Drain(asyncio.get_running_loop().create_future())
        await inbox.put(request)
        reported = await request.closed
        dispatcher.hurry()
        return {"reported": reported, "undelivered": await dispatcher.drain(settings.drain_timeout_s)}

    return {"status": status, "drain": drain, **dead_letters(journal, dispatcher.submit)}

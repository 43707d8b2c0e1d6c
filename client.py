"""The gateway process: images come in by DICOM, one report for each series goes out by HTTP.

The way of an image, from `Gateway.store` on:

1. The SCP hands over each instance that it has received, and `store` puts it on the inbox.
2. `collect` commits it to the journal, and then answers its sender. What is committed survives this process.
3. `collect` hands it to the `SeriesCollector`, which decides when its series is reported.
4. The `SeriesDispatcher` posts the report until the server has it.
"""

# series-gateway: Tab completes this (console/shell_completion.py)

if __name__ == "__main__":  # most commands need nothing of what follows
    from functools import partial

    from common.start import later, program

    program("gateway.cli.commands", partial(later, "client", "run"))

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import httpx
import structlog

from common import metrics
from common.control import Operation, serve_control
from common.errors import printable
from common.logs import places
from common.settings import GatewaySettings
from common.tracing import named, open_spans
from common.version import version
from dicom.scu import PacsUnavailable
from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from gateway.clock import Pauses, from_wall_clock, wall_clock
from gateway.collector import DUE_AT_ONCE, Failure, SeriesCollector
from gateway.dispatcher import JOURNAL_RETRY_S, SeriesDispatcher
from gateway.heartbeat import Vitals, beat, last_beat
from gateway.held_studies import HeldStudies
from gateway.idle import Adaptive, Fixed, IdlePolicy, Source
from gateway.journal import Bounds, Journal, JournalFailed, JournalUnavailable
from gateway.journal_rows import Waiting
from gateway.metrics_port import serve_metrics
from gateway.operations import dead_letter_operations
from gateway.orders import Orders, obedience
from gateway.pacs import Asking, Pacs
from gateway.questions import Answer, Question
from gateway.recorder import Recorder
from gateway.server_client import post_counts, server_client, stored_instances
from gateway.spans import GatewaySpans
from models import FINAL_VERDICTS, Association, GatewayState, Instance, SeriesKey, SeriesReport
from scp import Arrival, enqueue, serve_scp

CLOSED = None  # the last item on the inbox
POLLS = 2  # rounds of the event loop after which everything that the sockets hold is on the inbox

log = structlog.get_logger()


class Drain(NamedTuple):
    """A request on the inbox to report all open series, or those of a study. `closed` gets their number."""

    closed: asyncio.Future[int]
    study_instance_uid: str | None = None


class Declare(NamedTuple):
    """A request on the inbox to report a series if it was open before a time. `closed` gets the number of reports."""

    series_instance_uid: str
    given_at: float
    closed: asyncio.Future[int]


class Released(NamedTuple):
    """A note on the inbox that an association ended."""

    association: Association


class Alarm(NamedTuple):
    """A note on the inbox that something may be due."""


class Answered(NamedTuple):
    """An answer of the PACS about a series, on the inbox."""

    key: SeriesKey
    answer: Answer


class Made(NamedTuple):
    """A report that is not in the journal yet, and its trace, as GatewaySpans.report returns it."""

    report: SeriesReport
    traceparent: str | None


Show = Callable[[Callable[[], GatewayState]], AbstractAsyncContextManager[None]]
"""Shows a gateway's state while it runs, such as the table on a terminal."""
Item = Arrival | Alarm | Released | Answered | Drain | Declare | None
Inbox = asyncio.Queue[Item]


async def run(settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True, show: Show | None = None) -> int:
    """Run a gateway until `stop`, then drain it; return how many reports stay in the journal for the next start.

    If `listen` is false, only drain what the journal holds. Raises CannotCall, CannotListen, CannotServeMetrics,
    JournalFailed or JournalUnusable.
    """
    bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
    spans_of = partial(GatewaySpans, monotonic=asyncio.get_running_loop().time)
    async with (
        Journal.open(settings.journal_path, bounds) as journal,
        server_client(settings) as http,
        open_spans("series-gateway", spans_of) as spans,
    ):
        held = HeldStudies()
        dispatcher = SeriesDispatcher(
            http,
            journal,
            concurrency=settings.dispatch_concurrency,
            retry_max_s=settings.retry_max_s,
            spans=spans,
            held=held,
        )
        collector = restore(settings, journal, dispatcher, held)
        gateway = Gateway(settings, journal, collector, dispatcher, spans, held)
        undelivered = await gateway.run(http, stop, listen=listen, show=show)
    log.info("gateway.stopped", undelivered=undelivered)
    if unfiled := gateway.unfiled:
        where, reason = str(settings.journal_path), journal.failing or "it works again"
        log.error("gateway.undrained", journal=where, series=unfiled, reason=reason)
        cure = "Mend its disk and start the gateway: it reports them then"
        raise JournalFailed(f"GATEWAY_JOURNAL_PATH={where}: {unfiled} series could not be reported ({reason}). {cure}.")
    return undelivered


@dataclass(eq=False)
class Gateway:
    """Moves images from the SCP to the dispatcher, and owns everything on that way. Methods are in its order."""

    settings: GatewaySettings
    journal: Journal
    collector: SeriesCollector
    dispatcher: SeriesDispatcher
    spans: GatewaySpans | None = None
    held: HeldStudies = field(default_factory=HeldStudies)
    recorder: Recorder | None = None
    ask: Callable[[Question], None] | None = None
    """Asks the PACS a question; None while no PACS can be asked."""
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        self.inbox = asyncio.Queue(self.settings.inbox_size)
        self._enqueue = enqueue(self.inbox, self.settings.inbox_timeout_s)
        self._unfiled: list[Made] = []
        self._declared: list[tuple[asyncio.Future[int], int]] = []
        """Futures that get a number of reports, once those reports are in the journal."""
        self._pauses = Pauses()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf  # uvloop forgets when a timer was due as it fires, and only then calls
        self.putting: asyncio.TaskGroup  # items that wait for room on the inbox; set while the gateway listens

    @property
    def unfiled(self) -> int:
        """Return how many reports could not be filed in the journal; their series are open in it."""
        return len(self._unfiled)

    # --- its life ---

    async def run(self, http: httpx.AsyncClient, stop: asyncio.Event, *, listen: bool, show: Show | None) -> int:
        """Take images until `stop`, then finish what was taken; return how many reports are not delivered.

        At the end it

        1. stops listening, and lets open associations end;
        2. stops asking the PACS;
        3. empties the inbox, and reports all open series;
        4. delivers reports, within `drain_timeout_s`;
        5. tells the server that it stops.
        """
        stored = partial(stored_instances, http)
        pacs = Pacs(self.settings, stored, self.store_fetched, undelivered=self.journal.undelivered)
        letters = dead_letter_operations(self.journal, self.dispatcher.submit)
        orders = Orders(obedience(self.declare, letters, partial(count_study, pacs, http, self.settings.id)))
        vitals = Vitals(self.settings, self.inbox, self.journal, self.collector, self.dispatcher, orders, self.held)
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as shown:
            shown.push_async_callback(orders.aclose)
            background = [
                tasks.create_task(self.dispatcher.run(), name="dispatch"),
                tasks.create_task(self.watch(), name="watch"),
                tasks.create_task(vitals.follow(), name="vitals"),
            ]
            if show is not None:
                await shown.enter_async_context(show(vitals.state))
            async with Asking(pacs, self.answered) as asking:
                self.ask = asking.ask
                collecting = tasks.create_task(self.collect(), name="collect")
                if listen:
                    await shown.enter_async_context(serve_metrics(self.settings))
                    background.append(tasks.create_task(beat(vitals, http), name="heartbeat"))
                    await self.listen(stop, vitals)
                else:
                    self.dispatcher.hurry()
            await self.inbox.put(CLOSED)
            await collecting
            undelivered = await self.dispatcher.drain(self.settings.drain_timeout_s)
            for task in background:
                task.cancel()
            if listen:
                await last_beat(vitals, http)
        return undelivered

    async def listen(self, stop: asyncio.Event, vitals: Vitals) -> None:
        """Take associations and the operator's requests until `stop`."""
        settings = self.settings
        with Recorder.open(settings.trace_path, asyncio.get_running_loop().time) as self.recorder:
            async with (
                serve_control(settings.journal_path, self.operations()),
                asyncio.TaskGroup() as self.putting,
                serve_scp(settings, self.store, self.journal.saturated, self.observe) as vitals.port,
            ):
                log.info(
                    "gateway.started",
                    host=settings.scp_host,
                    port=vitals.port,
                    ae_title=settings.ae_title,
                    version=version(),
                )
                await stop.wait()
                log.info("gateway.draining", drain_timeout_s=settings.drain_timeout_s)

    # --- onto the inbox ---

    def store(self, instance: Instance) -> asyncio.Future[int]:
        """Put an instance on the inbox; return a future that gets its C-STORE status once it is kept or refused."""
        status = asyncio.ensure_future(self._enqueue(instance))
        if self.recorder is not None:
            self.recorder.image(instance)
        if self.spans is not None:
            self.spans.image(instance, status)
        return status

    async def store_fetched(self, instance: Instance) -> int:
        """Put an instance that was fetched from the PACS on the inbox; return its C-STORE status."""
        metrics.instances_received.inc()
        return OUT_OF_RESOURCES if self.journal.saturated() else await self._enqueue(instance)

    def observe(self, association: Association) -> None:
        """Note that an association was established, or has ended."""
        if self.recorder is not None:
            self.recorder.association(association)
        if self.spans is not None:
            self.spans.association(association)
        if association.released_at is not None:
            try:
                self.inbox.put_nowait(Released(association))
            except asyncio.QueueFull:
                self.putting.create_task(self.inbox.put(Released(association)), name="released")

    # --- through the journal into the series ---

    async def collect(self) -> None:
        """Move images from the inbox through the journal into their series, and reports to the dispatcher.

        Each round does this, until CLOSED is on the inbox:

        1. Take everything on the inbox. If it is empty, wait for an item, or until a series is due.
        2. Commit the images together, with one fsync for all waiting associations; then count and answer them.
        3. Tell the collector what else happened. Close the series that somebody asked for, and those that are due.
        4. File the reports in the journal, and hand them to the dispatcher.
        5. Ask the PACS the collector's questions, and tell those who asked for reports that they are filed.
        """
        loop, closed = asyncio.get_running_loop(), False
        while not closed:
            items = await self._take()
            now = loop.time()  # before the commit, so that images which come during it are seen before a series is due
            self._pauses.woke(now)
            arrivals = [item for item in items if isinstance(item, Arrival)]
            await self._commit(arrivals)
            notes = [item for item in items if not isinstance(item, Arrival)] if len(arrivals) < len(items) else []
            made = self._heed(notes, now)
            closed = CLOSED in notes
            drains = [note for note in notes if isinstance(note, Drain)]
            drained = [self.collector.drain(now, drain.study_instance_uid) for drain in drains]
            left = self.collector.drain(now) if closed else []
            due = self.collector.due(now) if self._pauses.over(now) else []
            reports, failures = [*made, *chain(*drained), *left, *due], self.collector.failures()
            if reports or failures or self._unfiled:
                self._hold(reports, failures)
                await self._set_aside(failures)
                await self._file(reports)
            for question in self.collector.questions():
                if self.ask is not None:
                    self.ask(question)
            for drain, of_drain in zip(drains, drained, strict=True):
                drain.closed.set_result(len(of_drain))
            if not self._unfiled:
                self._tell_declared()

    async def _take(self) -> list[Item]:
        """Return everything on the inbox. If it is empty, wait until something comes, is due, or can be tried again."""
        now = asyncio.get_running_loop().time()
        due_at = now + JOURNAL_RETRY_S if self._unfiled else self.collector.next_deadline()
        self._set_alarm(self._pauses.deadline(due_at, now))
        first = await self.inbox.get()
        if isinstance(first, Alarm):
            for _ in range(POLLS):  # see what has arrived before what is due, since a loop may run timers first
                await asyncio.sleep(0)
        return [first, *self._waiting()]

    def _set_alarm(self, at: float | None) -> None:
        """Wake `_take` at this time, or before it: a timer for every image would cost more than to wake in vain."""
        if at is None or at >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = asyncio.get_running_loop().call_at(at, self._wake), at

    def _wake(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        with contextlib.suppress(asyncio.QueueFull):  # then it is awake
            self.inbox.put_nowait(Alarm())

    def _waiting(self) -> Iterator[Item]:
        return (self.inbox.get_nowait() for _ in range(self.inbox.qsize()))

    async def _commit(self, arrivals: list[Arrival]) -> None:
        """Commit images, count them, and then answer their senders: 0x0000 means that an image is kept.

        Their studies are held from before the commit. When `observe` has returned, the collector holds them. So there
        is no moment in which an image is in the journal and its study is not held.
        """
        arrivals = [arrival for arrival in arrivals if not arrival.status.done()]  # done: refused meanwhile
        if not arrivals:
            return
        status = SUCCESS
        for arrival in arrivals:
            self.held.take(arrival.instance.study_instance_uid)
        try:
            await self.journal.keep([arrival.instance for arrival in arrivals])
        except JournalUnavailable as error:
            log.error("instances.refused", count=len(arrivals), reason=str(error))
            status = OUT_OF_RESOURCES
        else:
            now = asyncio.get_running_loop().time()
            for arrival in arrivals:
                if arrival.instance.doubtful:
                    metrics.instances_doubtful.inc()
                self.collector.observe(arrival.instance, now)
        for arrival in arrivals:
            self.held.let_go(arrival.instance.study_instance_uid)
            if not arrival.status.done():
                arrival.status.set_result(status)

    def _heed(self, items: Sequence[Item], now: float) -> list[SeriesReport]:
        """Tell the collector everything that happened except images; return the reports that are due at once."""
        made: list[SeriesReport] = []
        for item in items:
            match item:
                case Released(association):
                    self.collector.released(association, now)
                case Answered(key, answer):
                    made += self.collector.answered(key, answer, now)
                case Declare(uid, given_at, closed):
                    reports = self.collector.declare(uid, given_at, now)
                    made += reports
                    self._declared.append((closed, len(reports)))
        return made

    # --- out ---

    def _hold(self, reports: list[SeriesReport], failures: list[Failure]) -> None:
        """Hold the studies of reports until the dispatcher does, and those of images that are set aside.

        This is called in the step of the event loop in which the collector made the reports and let go.
        """
        for report in reports:
            self.held.take(report.StudyInstanceUID)
        for failure in failures:
            if failure.set_aside:
                self.held.take(failure.key.study_instance_uid)

    async def _set_aside(self, failures: list[Failure]) -> None:
        """Log series whose full report failed, and file those that cannot be reported at all as dead letters."""
        for key, revision, error, sop_instance_uids in failures:
            event = log.bind(series_instance_uid=key.series_instance_uid)
            if not sop_instance_uids:
                event.error("series.reduced", exc_info=error)
                continue
            event.error("series.set_aside", exc_info=error)
            try:
                await self.journal.set_aside(key, sop_instance_uids, revision, "; ".join(places(error)))
            except (
                JournalUnavailable
            ) as problem:  # they stay open in the journal, and held, and are reported after the next start
                log.error("series.unreported", count=1, reason=str(problem))
            else:
                self.held.let_go(key.study_instance_uid)

    async def _file(self, reports: list[SeriesReport]) -> None:
        """File reports in the journal, in order, after those that could not be filed before."""
        self._unfiled += [Made(report, self.spans.report(report) if self.spans else None) for report in reports]
        while self._unfiled:
            some = self._unfiled[:DUE_AT_ONCE]
            learnt, trust = self.collector.policy.news(), self.collector.trust_news()
            by_source = {(*source,): text for source, text in learnt.items()}
            traceparents = [made.traceparent for made in some]
            try:
                filed = await self.journal.file_reports([made.report for made in some], by_source, traceparents, trust)
            except JournalUnavailable as error:
                log.error("series.unreported", count=len(self._unfiled), reason=str(error))
                return
            del self._unfiled[: len(some)]
            self.collector.kept(learnt, trust)
            for made, waiting in zip(some, filed, strict=True):
                _say_reported(made.report, waiting)
                self.dispatcher.submit(waiting)  # holds the study; then we let it go
                self.held.let_go(made.report.StudyInstanceUID)

    def _tell_declared(self) -> None:
        """Tell those who declared series that the reports are in the journal."""
        for closed, count in self._declared:
            if not closed.done():  # done: the caller has given up waiting
                closed.set_result(count)
        self._declared.clear()

    # --- beside that way ---

    async def answered(self, key: SeriesKey, answer: Answer) -> None:
        """Put an answer of the PACS on the inbox."""
        await self.inbox.put(Answered(key, answer))

    async def declare(self, series_instance_uid: str, age_s: float) -> int:
        """Report a series if it was open `age_s` ago; return how many reports of it are on disk."""
        loop = asyncio.get_running_loop()
        request = Declare(series_instance_uid, loop.time() - age_s, loop.create_future())
        await self.inbox.put(request)
        return await request.closed

    def operations(self) -> Mapping[str, Operation]:
        """Return the operations that the operator's commands may ask for, by name."""
        letters = dead_letter_operations(self.journal, self.dispatcher.submit)
        return {"status": self.status, "drain": self.drain, **letters}

    async def status(self) -> dict[str, Any]:
        """Return if images are accepted, and the reason if not."""
        reason = self.journal.saturated()
        return {"running": True, "ready": reason is None, "reason": reason}

    async def drain(self, study: str | None = None) -> dict[str, Any]:
        """Report all open series, or those of a study, and try to deliver all reports now.

        Return how many reports were made, how many stay, and if anything of the study was here.
        """
        request = Drain(asyncio.get_running_loop().create_future(), study)
        await self.inbox.put(request)
        reported = await request.closed
        known = study is None or reported > 0 or self.held.has(study)
        self.dispatcher.hurry()
        undelivered = await self.dispatcher.drain(self.settings.drain_timeout_s, study)
        return {"reported": reported, "undelivered": undelivered, "known": known}

    async def watch(self) -> None:
        """Log when the gateway stops and resumes accepting images; try a failing journal until it works again."""
        before: str | None = None
        while True:
            if self.journal.failing:
                with contextlib.suppress(JournalUnavailable):
                    await self.journal.probe()
            reason = self.journal.saturated()
            if reason and not before:
                log.error("gateway.saturated", reason=reason)
            elif before and not reason:
                log.info("gateway.recovered")
            before = reason
            await asyncio.sleep(JOURNAL_RETRY_S)


async def count_study(pacs: Pacs, http: httpx.AsyncClient, gateway_id: str, title: str, study: str) -> str | None:
    """Ask a PACS for the counts of a study, and post them; return why that was not possible, if so.

    Raises ServerUnavailable.
    """
    try:
        counts = await pacs.count_study(title, study)
    except PacsUnavailable as error:
        return f"{printable(title)}: {error}"
    return await post_counts(http, study, counts, gateway_id)


def _say_reported(report: SeriesReport, waiting: Waiting) -> None:
    """Log and count a report that was filed in the journal."""
    event = log.bind(
        series_instance_uid=report.SeriesInstanceUID,
        revision=report.Revision,
        instances=report.NumInstances,
        **named(waiting.traceparent),
    )
    metrics.series_reported.labels(report.Verdict or "part").inc()
    if report.Verdict is None:
        event.info("series.parted")
        return
    for entry in report.Timeline:
        if entry.Event == "series.reopened" and entry.Details["Verdict"] in FINAL_VERDICTS:
            metrics.false_completions.labels(entry.Details["Verdict"]).inc()
    if report.LastReceivedAt is not None:
        added_s = (datetime.now(UTC) - report.LastReceivedAt).total_seconds()
        metrics.added_latency_seconds.observe(max(added_s, 0.0))  # the clock may have been set back
    event.info("series.reported", verdict=report.Verdict, basis=report.Basis)
    if report.Doubtful:
        event.warning("series.doubtful", source=report.Source, reasons=report.Doubtful)


# --- what an earlier run left ---


def restore(
    settings: GatewaySettings, journal: Journal, dispatcher: SeriesDispatcher, held: HeldStudies
) -> SeriesCollector:
    """Restore what an earlier run left: open series, with a full time-out from now, and reports in their order.

    After it collector and dispatcher hold the study of every image in the journal. The first heartbeat comes later.
    """
    loop = asyncio.get_running_loop()
    collector = SeriesCollector(
        policy=_restored_policy(settings, journal),
        max_open_s=settings.max_open_s,
        gateway_id=settings.id,
        wall_clock=wall_clock(loop.time),
        pacs=settings.pacs_by_ae_title,
        patience_s=settings.missing_timeout_s,
        fetch=settings.fetch_missing != "off",
        remember_s=2 * settings.idle_max_s,
        revisions=journal.revisions(),
        trust=journal.trust(),
        extras={extra.name for extra in settings.extras},
        held=held,
    )
    now = loop.time()
    for instance in journal.replay():
        collector.observe(instance, now)
    dispatcher.pause(from_wall_clock(journal.paused_until()))
    for waiting in journal.waiting():
        dispatcher.submit(waiting)
    log.info("journal.opened", open_instances=journal.open_instances, undelivered=dispatcher.undelivered)
    return collector


def _restored_policy(settings: GatewaySettings, journal: Journal) -> IdlePolicy:
    """Return the idle policy with everything that an earlier run has learnt."""
    if settings.idle_policy != "adaptive":
        return Fixed(settings.idle_timeout_s)
    policy = Adaptive(settings.idle_timeout_s, settings.idle_max_s)
    for source, learnt in journal.learnt().items():
        try:
            policy.load(Source(*source), learnt)
        except Exception as error:  # it is damaged, or of a newer version: it is learnt again
            log.warning("habits.unreadable", source=" ".join(source), exc_info=error)
    return policy

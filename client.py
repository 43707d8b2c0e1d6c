"""The gateway process: images in by DICOM, one report per series out by HTTP.

`scp` puts every received instance on the inbox; `collect` commits it to the journal, then hands it to the
`SeriesCollector`, which says when a series is to be reported; the `SeriesDispatcher` posts the reports until the server
has them. What is committed outlives this process.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

from collector import DUE_AT_ONCE, SeriesCollector
from control import serve_control
from dispatcher import JOURNAL_RETRY_S, SeriesDispatcher, dead_letters, from_wall_clock
from idle import Adaptive, Fixed, IdlePolicy, Source
from journal import Bounds, Journal, JournalUnavailable
from models import Association, GatewayError, Instance, SeriesKey, SeriesReport
from pacs import Answer, Pacs, Question
from scp import OUT_OF_RESOURCES, SUCCESS, Arrival, HandleStore, enqueue, serve_scp
from settings import GatewaySettings, key_problem
from traces import Recorder

CLOSED = None  # ends a queue

log = structlog.get_logger()


class Drain(NamedTuple):
    """On the inbox: report what is open now; `closed` takes how many series that were."""

    closed: asyncio.Future[int]


class Released(NamedTuple):
    """On the inbox: an association ended."""

    association: Association


class Answered(NamedTuple):
    """On the inbox: what the PACS says of a series."""

    key: SeriesKey
    answer: Answer


class CannotCall(GatewayError):
    """The server cannot be called as the settings want it. The text names the setting, its problem and the cure."""


Inbox = asyncio.Queue[Arrival | Released | Answered | Drain | None]


async def collect(
    inbox: Inbox,
    journal: Journal,
    collector: SeriesCollector,
    dispatcher: SeriesDispatcher,
    ask: Callable[[Question], None] | None = None,
) -> None:
    """Move instances from the inbox through the journal into their series, and reports to the dispatcher, until CLOSED.

    What is on the inbox together is committed together: one fsync serves every association that waits.
    """
    loop = asyncio.get_running_loop()
    reports: list[SeriesReport] = []  # made, and not yet in the journal
    closed = False
    while not closed:
        items = await _take(inbox, loop.time() + JOURNAL_RETRY_S if reports else collector.next_deadline())
        await _keep([item for item in items if isinstance(item, Arrival)], journal, collector)
        drains = []
        for item in items:
            match item:
                case Released(association):
                    collector.released(association, loop.time())
                case Answered(key, answer):
                    reports += collector.answered(key, answer, loop.time())
                case Drain():
                    drains.append(item)
        closed = CLOSED in items
        drained = collector.drain(loop.time()) if drains or closed else []
        reports += drained or collector.due(loop.time())
        reports = await _report(reports, journal, collector, dispatcher)
        for question in collector.questions():
            if ask is not None:
                ask(question)
        for drain in drains:
            drain.closed.set_result(len(drained))


async def _take(inbox: Inbox, deadline: float | None) -> list[Arrival | Released | Answered | Drain | None]:
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


async def _report(
    reports: list[SeriesReport], journal: Journal, collector: SeriesCollector, dispatcher: SeriesDispatcher
) -> list[SeriesReport]:
    """Move closed series into the journal's outbox; returns those that it could not take now."""
    for first in range(0, len(reports), DUE_AT_ONCE):
        some = reports[first : first + DUE_AT_ONCE]
        try:
            waiting = await journal.close(some, {(*source,): text for source, text in collector.policy.news().items()})
        except JournalUnavailable as error:
            log.error("series.unreported", count=len(reports) - first, reason=str(error))
            return reports[first:]
        for report, entry in zip(some, waiting, strict=True):
            log.info(
                "series.reported",
                verdict=report.Verdict,
                basis=report.Basis,
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

    With `listen` false it only drains what the journal holds. Raises CannotCall, CannotListen or JournalUnusable.
    """
    loop = asyncio.get_running_loop()
    inbox: Inbox = asyncio.Queue(settings.inbox_size)
    bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
    async with (
        Journal.open(settings.journal_path, bounds) as journal,
        server_client(settings) as http,
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
        handle_store = enqueue(inbox, settings.inbox_timeout_s)
        asking: set[asyncio.Task[None]] = set()

        async def keep_fetched(instance: Instance) -> int:
            return OUT_OF_RESOURCES if journal.saturated() else await handle_store(instance)

        pacs = Pacs(settings, partial(stored_instances, http), keep_fetched)

        async def answer(question: Question) -> None:
            await inbox.put(Answered(question.key, await pacs.ask(question)))

        def ask(question: Question) -> None:
            task = tasks.create_task(answer(question), name="ask")
            asking.add(task)
            task.add_done_callback(asking.discard)

        collecting = tasks.create_task(collect(inbox, journal, collector, dispatcher, ask), name="collect")
        if listen:
            with Recorder.open(settings.trace_path, loop.time) if settings.trace_path else nullcontext() as recorder:
                await _listen(settings, stop, inbox, journal, dispatcher, handle_store, recorder)
        else:
            dispatcher.hurry()
        for task in asking:
            task.cancel()
        await inbox.put(CLOSED)
        await collecting
        undelivered = await dispatcher.drain(settings.drain_timeout_s)
        for task in background:
            task.cancel()
    log.info("gateway.stopped", undelivered=undelivered)
    return undelivered


def restore(settings: GatewaySettings, journal: Journal, dispatcher: SeriesDispatcher) -> SeriesCollector:
    """Re-arm what an earlier run left: open series with a full time-out from now, reports in their order."""
    loop = asyncio.get_running_loop()
    policy: IdlePolicy = Fixed(settings.idle_timeout_s)
    if settings.idle_policy == "adaptive":
        policy = Adaptive(settings.idle_timeout_s, settings.idle_max_s)
        for source, learnt in journal.learnt().items():
            policy.load(Source(*source), learnt)
    collector = SeriesCollector(
        policy=policy,
        max_open_s=settings.max_open_s,
        gateway_id=settings.id,
        wall_clock=lambda at: datetime.now(UTC) + timedelta(seconds=at - loop.time()),
        pacs=settings.pacs_by_ae_title,
        patience_s=settings.idle_max_s,
        fetch=settings.fetch_missing != "off",
        revisions=journal.revisions(),
    )
    now = loop.time()
    for instance in journal.replay():
        collector.observe(instance, now)
    dispatcher.pause(from_wall_clock(journal.paused_until()))
    for waiting in journal.waiting():
        dispatcher.submit(waiting)
    log.info("journal.opened", open_instances=journal.open_instances, undelivered=dispatcher.undelivered)
    return collector


def server_client(settings: GatewaySettings) -> httpx.AsyncClient:
    """What every request to the server goes through. Raises CannotCall."""
    try:
        tls = ssl.create_default_context(cafile=settings.server_ca)
    except OSError as error:  # ssl.SSLError is one
        cure = "Name a readable PEM file of the certificates that the server's is checked against."
        raise CannotCall(f"GATEWAY_SERVER_CA={settings.server_ca}: {error.strerror or error}. {cure}") from error
    if settings.exposes_key:
        log.warning("key.exposed", host=settings.server_url.host, cure="let GATEWAY_SERVER_URL begin with https://")
    return httpx.AsyncClient(
        base_url=str(settings.server_url),
        timeout=settings.request_timeout_s,
        verify=tls,
        auth=Bearer(settings.api_key.get_secret_value() if settings.api_key else None, settings.api_key_file),
    )


class Bearer(httpx.Auth):
    """Sends the key (RFC 6750 §2.1), if there is one; one from a file is read again when the server answers 401."""

    def __init__(self, key: str | None, file: Path | None) -> None:
        """Raises CannotCall."""
        self._file = file
        self._key = key if file is None else read_key(file)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        sent = self._key
        if sent is not None:
            request.headers["Authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code not in (401, 429) or self._file is None:  # 429: too many wrong keys from our address
            return
        await self._read_again(self._file)
        if self._key != sent:
            request.headers["Authorization"] = f"Bearer {self._key}"
            yield request

    async def _read_again(self, file: Path) -> None:
        try:
            key = await asyncio.to_thread(read_key, file)
        except CannotCall as error:
            log.error("key.refused", reason=str(error))
            return
        if key != self._key:
            log.info("key.reloaded")
        self._key = key


def read_key(file: Path) -> str:
    """The key in a file. Raises CannotCall."""
    try:
        key = file.read_text("ascii", "replace").strip()
        problem = key_problem(key)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        raise CannotCall(f"GATEWAY_API_KEY_FILE={file}: {problem}. Name a readable file with nothing but the key.")
    return key


async def stored_instances(http: httpx.AsyncClient, key: SeriesKey) -> list[str]:
    """SOP Instance UIDs that the server has of a series; none where it cannot say."""
    try:
        response = await http.get(f"series/{key.series_instance_uid}/instances")
        if response.status_code == 403:
            log.warning(
                "key.refused", reason="the key lacks the scope series:read: other gateways' images are not seen"
            )
        return [str(uid) for uid in response.raise_for_status().json()["SOPInstanceUIDs"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


async def _listen(  # noqa: PLR0913, PLR0917 - what an association meets
    settings: GatewaySettings,
    stop: asyncio.Event,
    inbox: Inbox,
    journal: Journal,
    dispatcher: SeriesDispatcher,
    handle_store: HandleStore,
    recorder: Recorder | None,
) -> None:
    """Take instances and the operator's requests until `stop`."""

    def record_and_store(instance: Instance) -> Awaitable[int]:
        if recorder is not None:
            recorder.image(instance)
        return handle_store(instance)

    async def status() -> dict[str, Any]:
        reason = journal.saturated()
        return {"running": True, "ready": reason is None, "reason": reason}

    async def drain() -> dict[str, Any]:
        request = Drain(asyncio.get_running_loop().create_future())
        await inbox.put(request)
        reported = await request.closed
        dispatcher.hurry()
        return {"reported": reported, "undelivered": await dispatcher.drain(settings.drain_timeout_s)}

    def observe(association: Association) -> None:
        if recorder is not None:
            recorder.association(association)
        if association.released_at is not None:
            try:
                inbox.put_nowait(Released(association))
            except asyncio.QueueFull:
                tasks.create_task(inbox.put(Released(association)), name="released")

    operations = {"status": status, "drain": drain, **dead_letters(journal, dispatcher.submit)}
    async with (
        serve_control(settings.journal_path, operations),
        asyncio.TaskGroup() as tasks,
        serve_scp(settings, record_and_store, journal.saturated, observe) as port,
    ):
        log.info("gateway.started", host=settings.scp_host, port=port, ae_title=settings.ae_title)
        await stop.wait()
        log.info("gateway.draining", drain_timeout_s=settings.drain_timeout_s)


if __name__ == "__main__":
    from commands import command_line

    command_line(run)()

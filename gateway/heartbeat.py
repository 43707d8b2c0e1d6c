"""Tell the gateway's state to Prometheus, to its terminal, and every second to the server, which gives orders."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from prometheus_client import Gauge

from common import metrics
from common.settings import GatewaySettings
from common.version import version
from gateway.clock import Onward
from gateway.collector import SeriesCollector
from gateway.dispatcher import SeriesDispatcher
from gateway.held_studies import HeldStudies
from gateway.journal import Journal, JournalUnavailable
from gateway.orders import Orders
from gateway.server_client import NoAnswer, ask
from models import MAX_ARRIVING, MAX_DEAD, MAX_SLOTS, SLOT_S, ArrivingSeries, DeadReport, GatewayState, HeardSource

BEAT_S = 1.0  # pause between two heartbeats
QUIET_BEAT_S = 5.0  # pause between two heartbeats if nothing has changed
HASTE_S = 0.25  # least pause between two heartbeats if the studies that are held have changed
BEAT_TIMEOUT_S = 10.0
LAST_BEAT_TIMEOUT_S = 2.0  # of the heartbeat that says that the gateway stops
MAX_LINE = 256  # models.Line
MAX_ANSWER_BYTES = 2**16  # longest answer to a heartbeat that is read
UNPROCESSABLE = 422
NEW: dict[str, Any] = {"OrdersDone": True, "OpenStudies": True, "Dead": {"__all__": {"Id"}}}
"""The fields that an older server, which gives no orders, refuses as unknown."""

log = structlog.get_logger()


class Vitals:
    """The state of one gateway. It is read from its parts when somebody asks for it."""

    def __init__(  # noqa: PLR0913, PLR0917 - one parameter for each part
        self,
        settings: GatewaySettings,
        inbox: asyncio.Queue[Any],
        journal: Journal,
        collector: SeriesCollector,
        dispatcher: SeriesDispatcher,
        orders: Orders,
        held: HeldStudies,
    ) -> None:
        self.orders = orders
        self.held = held
        self._settings = settings
        self._inbox = inbox
        self._journal = journal
        self._collector = collector
        self._dispatcher = dispatcher
        self._clock = Onward()
        self._started_at = self._clock.now()
        self._before = metrics.total(metrics.instances_received)
        self._slots: deque[int] = deque([0], MAX_SLOTS)
        self._slot = self._now_slot()
        self._dead: list[DeadReport] = []
        self.port = settings.scp_port
        """The DICOM port that is bound."""
        self._expose()

    def state(self) -> GatewayState:
        """Return the state at this moment."""
        reason, problem = self._journal.saturated(), self._dispatcher.last_problem
        return GatewayState.model_construct(
            GatewayID=self._settings.id,
            At=self._clock.now(),
            StartedAt=self._started_at,
            Stopped=False,
            AETitle=_line(self._settings.ae_title),
            Address=_line(f"{self._settings.scp_host}:{self.port}"),
            Reason=_line(reason) if reason else None,
            Associations=int(metrics.total(metrics.associations_open)),
            Refused=int(metrics.total(metrics.associations_refused)),
            Instances=int(metrics.total(metrics.instances_received)),
            Bytes=int(metrics.total(metrics.received_bytes)),
            Received=list(self._slots),
            InboxInstances=self._inbox.qsize(),
            InboxSize=self._inbox.maxsize,
            OpenSeries=self._collector.open_series,
            OpenInstances=self._journal.open_instances,
            UndeliveredReports=self._dispatcher.undelivered,
            OldestUndeliveredS=round(self._dispatcher.oldest_undelivered_s, 3),
            LastProblem=_line(problem) if problem and self._dispatcher.undelivered else None,
            DeadLetters=self._journal.dead_letters,
            Dead=self._dead,
            Arriving=[series for series in self._collector.arriving(MAX_ARRIVING) if _fits(series)],
            OpenStudies=self.held.listed(),
            OrdersDone=self.orders.done(),
            Version=version(),
            Journal=self._journal.identity,
            Sources=[source for source in self._collector.heard() if _fits(source)],
        )

    async def follow(self) -> None:
        """Refresh the counts every BEAT_S, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(BEAT_S)

    async def refresh(self) -> None:
        """Count the images since the last call, and look up dead letters while there are any."""
        count, slot = metrics.total(metrics.instances_received), self._now_slot()
        self._slots.extend([0] * min(slot - self._slot, MAX_SLOTS))
        self._slots[-1] += int(count - self._before)
        self._before, self._slot = count, slot
        if self._journal.dead_letters or self._dead:  # as many as before may be others
            with contextlib.suppress(JournalUnavailable):  # the state says so
                self._dead = await self._journal.last_dead(MAX_DEAD)

    @staticmethod
    def _now_slot() -> int:
        return int(asyncio.get_running_loop().time() / SLOT_S)

    def _expose(self) -> None:
        """Let Prometheus read the gauges from the gateway's parts when it asks."""
        metrics.inbox_size.set(self._inbox.maxsize)
        metrics.journal_max_bytes.set(self._settings.journal_max_bytes)
        metrics.max_pending_instances.set(self._settings.max_pending_instances)
        gauges: dict[Gauge, Callable[[], float]] = {
            metrics.inbox_instances: self._inbox.qsize,
            metrics.journal_bytes: lambda: self._journal.used_bytes,
            metrics.saturated: lambda: self._journal.saturated() is not None,
            metrics.open_series: lambda: self._collector.open_series,
            metrics.pending_instances: lambda: self._journal.open_instances + self._journal.waiting_instances,
            metrics.open_instances: lambda: self._journal.open_instances,
            metrics.undelivered_reports: lambda: self._dispatcher.undelivered,
            metrics.oldest_undelivered_seconds: lambda: self._dispatcher.oldest_undelivered_s,
            metrics.dead_letters: lambda: self._journal.dead_letters,
        }
        for gauge, read in gauges.items():
            gauge.set_function(read)


async def beat(vitals: Vitals, http: httpx.AsyncClient) -> None:
    """Send heartbeats and carry out the orders in their answers, until cancelled.

    A heartbeat is sent when the state has changed, or QUIET_BEAT_S after the last one. If the studies that are held
    have changed, it is sent at once, since the server may be about to say that one of them is over. A server that
    refuses heartbeats gets them only every QUIET_BEAT_S.
    """
    told: dict[str, Any] = {}
    told_at = refused = None
    loop = asyncio.get_running_loop()
    while True:
        vitals.held.changed.clear()
        state, knew = vitals.state(), vitals.orders.given
        news = state.model_dump(exclude={"At", "OldestUndeliveredS"})
        if news != told or told_at is None or loop.time() >= told_at + QUIET_BEAT_S:
            problem = await _tell(http, state, vitals.orders)
            if problem and not refused:
                log.warning("heartbeat.refused", reason=problem)
            whole = knew or not vitals.orders.given  # otherwise it left out fields that the server does know
            told, told_at, refused = news if whole else {}, loop.time(), problem
        await _pause(vitals, refused is not None)


async def _pause(vitals: Vitals, refused: bool) -> None:
    """Wait until the next heartbeat may be due: for less than a second if the server wants to know which studies."""
    if refused or not vitals.orders.given:
        await asyncio.sleep(QUIET_BEAT_S if refused else BEAT_S)
        return
    await asyncio.sleep(HASTE_S)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BEAT_S - HASTE_S):
            await vitals.held.changed.wait()


async def last_beat(vitals: Vitals, http: httpx.AsyncClient) -> None:
    """Tell the server that this gateway stops. If it does not answer, give up soon."""
    state = vitals.state().model_copy(update={"Stopped": True, "Arriving": []})
    await _tell(http, state, vitals.orders, LAST_BEAT_TIMEOUT_S)


async def _tell(
    http: httpx.AsyncClient, state: GatewayState, orders: Orders, timeout_s: float = BEAT_TIMEOUT_S
) -> str | None:
    """Send a heartbeat; carry out the orders in its answer, unless it is the last one. Return why it was refused.

    This takes at most `timeout_s`, however slow or long the answer is.
    """
    headers, knows = {"Content-Type": "application/json"}, orders.given
    try:
        path = f"gateways/{quote(state.GatewayID, safe='')}"
        content = state.model_dump_json(exclude=None if knows else NEW).encode()
        answer = await ask(
            http, "PUT", path, content=content, headers=headers, timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES
        )
    except NoAnswer as error:
        return str(error)
    except ValueError as error:  # a text in it is not valid Unicode; a heartbeat must not stop the gateway
        return type(error).__name__
    if not 200 <= answer.status < 300:
        orders.given &= answer.status != UNPROCESSABLE  # a newer server was replaced by an older one
        return f"HTTP {answer.status}"
    orders.told(state.OrdersDone if knows else [])
    if not state.Stopped:
        await orders.take(answer.content)
    return None


def _fits(one: ArrivingSeries | HeardSource) -> bool:
    """Tell if the server will accept an entry. One invalid entry would make it refuse the whole state."""
    try:
        type(one).model_validate(one.model_dump())
    except ValueError:
        return False
    return True


def _line(text: str) -> str:
    """Return a text as short as the server requires, in valid Unicode."""
    return text[:MAX_LINE].encode(errors="replace").decode()

"""What a gateway tells of itself: to Prometheus, to its terminal, and once a second to the server, that orders."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from prometheus_client import Gauge

from common import metrics
from common.settings import GatewaySettings
from common.version import version
from gateway.collector import SeriesCollector
from gateway.dispatcher import SeriesDispatcher
from gateway.journal import Journal, JournalUnavailable
from gateway.orders import Orders
from gateway.server_client import NoAnswer, ask
from models import MAX_ARRIVING, MAX_DEAD, MAX_SLOTS, SLOT_S, ArrivingSeries, DeadReport, GatewayState, HeardSource

BEAT_S = 1.0
QUIET_BEAT_S = 5.0  # between two that would say the same
BEAT_TIMEOUT_S = 10.0
LAST_BEAT_TIMEOUT_S = 2.0
MAX_LINE = 256  # models.Line
MAX_ANSWER_BYTES = 2**16  # of an answer to a heartbeat
UNPROCESSABLE = 422
NEW: dict[str, Any] = {"OrdersDone": True, "Dead": {"__all__": {"Id"}}}
"""What a server that gives no orders refuses as unknown."""

log = structlog.get_logger()


class Vitals:
    """The state of one gateway, read when it is asked for."""

    def __init__(  # noqa: PLR0913, PLR0917 - what there is to tell of
        self,
        settings: GatewaySettings,
        inbox: asyncio.Queue[Any],
        journal: Journal,
        collector: SeriesCollector,
        dispatcher: SeriesDispatcher,
        orders: Orders,
    ) -> None:
        self.orders = orders
        self._settings = settings
        self._inbox = inbox
        self._journal = journal
        self._collector = collector
        self._dispatcher = dispatcher
        self._started_at = datetime.now(UTC)
        self._before = metrics.total(metrics.instances_received)
        self._slots: deque[int] = deque([0], MAX_SLOTS)
        self._slot = self._now_slot()
        self._dead: list[DeadReport] = []
        self.port = settings.scp_port
        """The one that is bound."""
        self._expose()

    def state(self) -> GatewayState:
        """What there is to tell now."""
        reason, problem = self._journal.saturated(), self._dispatcher.last_problem
        return GatewayState.model_construct(
            GatewayID=self._settings.id,
            At=datetime.now(UTC),
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
            OrdersDone=self.orders.done(),
            Version=version(),
            Journal=self._journal.identity,
            Sources=[source for source in self._collector.heard() if _fits(source)],
        )

    async def follow(self) -> None:
        """Keep up with what happens, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(BEAT_S)

    async def refresh(self) -> None:
        """Count what came since the last time, and look up dead letters while there are any."""
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
        """Let Prometheus read what is a state, and no count of events, when it asks."""
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
    """Tell the server, and do what it answers, until cancelled. One that does not want to know it is told seldom."""
    told: dict[str, Any] = {}
    told_at = refused = None
    loop = asyncio.get_running_loop()
    while True:
        state = vitals.state()
        news = state.model_dump(exclude={"At", "OldestUndeliveredS"})
        if news != told or told_at is None or loop.time() >= told_at + QUIET_BEAT_S:
            problem = await _tell(http, state, vitals.orders)
            if problem and not refused:
                log.warning("heartbeat.refused", reason=problem)
            told, told_at, refused = news, loop.time(), problem
        await asyncio.sleep(QUIET_BEAT_S if refused else BEAT_S)


async def last_beat(vitals: Vitals, http: httpx.AsyncClient) -> None:
    """Tell the server that this gateway stops, if it listens."""
    state = vitals.state().model_copy(update={"Stopped": True, "Arriving": []})
    await _tell(http, state, vitals.orders, LAST_BEAT_TIMEOUT_S)


async def _tell(
    http: httpx.AsyncClient, state: GatewayState, orders: Orders, timeout_s: float = BEAT_TIMEOUT_S
) -> str | None:
    """One heartbeat, and what its answer orders, but of the last one; why it was not taken.

    No answer, however slow or long, takes more than `timeout_s`.
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
    except ValueError as error:  # something of it is no text; what it tells is not worth the gateway
        return type(error).__name__
    if not 200 <= answer.status < 300:
        orders.given &= answer.status != UNPROCESSABLE  # an earlier version, that was put in the place of a newer one
        return f"HTTP {answer.status}"
    orders.told(state.OrdersDone if knows else [])
    if not state.Stopped:
        await orders.take(answer.content)
    return None


def _fits(one: ArrivingSeries | HeardSource) -> bool:
    """Whether the server will take it: one that it refuses would cost the whole state."""
    try:
        type(one).model_validate(one.model_dump())
    except ValueError:
        return False
    return True


def _line(text: str) -> str:
    """As long as the server takes it, and of characters only."""
    return text[:MAX_LINE].encode(errors="replace").decode()

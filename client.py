"""The gateway process: images in by DICOM, one report per series out by HTTP.

`scp` puts every received instance on the inbox; `collect` commits it to the journal, then groups by series until each
is idle; `SeriesDispatcher` posts the reports until the server has them. What is committed outlives this process.
"""

import asyncio
import base64
import contextlib
import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pydantic
import structlog

from control import changes, serve_control
from header import COUNTS, INSTANCE_LEVEL
from idle import Adaptive, Fixed, IdlePolicy, Phase, Source
from journal import Bounds, Journal, JournalUnavailable, Waiting
from models import (
    MAX_TIMELINE,
    Association,
    GatewayError,
    Instance,
    SeriesKey,
    SeriesRecord,
    SeriesReport,
    SeriesVerdict,
    TimelineEntry,
)
from pacs import Answer, Pacs, Question
from scp import OUT_OF_RESOURCES, SUCCESS, Arrival, HandleStore, enqueue, serve_scp
from settings import GatewaySettings
from traces import Recorder

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
REMEMBERED_IMAGES = 100  # closed series whose images are known, to tell late images from a series sent again
ASK_AFTER_S = 0.3  # of silence, where there is a PACS to ask
ASK_AGAIN_MAX_S = 10.0
FETCHES = 2  # of one revision
MODALITY_LENGTH = 16  # a CS
RETRY_BASE_S = 0.25
RETRY_AFTER_MAX_S = 3600.0
RETRYABLE = {408, 425, 429}  # besides 5xx, RFC 9110 §15.5.9, RFC 8470, RFC 6585
WHOLE_SERVER = {429, 502, 503, 504}
PROBE_S = 1.0  # longest pause where every report fails, but each perhaps for a reason of its own
JOURNAL_RETRY_S = 1.0
DUE_AT_ONCE = 100  # reports made and journalled before the inbox is looked at again

CLOSED = None  # ends a queue
NOT_IN_ATTRIBUTES = {keyword for keyword, _ in (INSTANCE_LEVEL | COUNTS).values()} | {
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
    """A series that is still receiving. `opened`, `last_seen` and all that ends in `_at` are loop time."""

    revision: int
    source: Source
    opened: float
    last_seen: float
    first_received_at: datetime
    last_received_at: datetime
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    sop_instance_uids: set[str] = field(default_factory=set)
    carried: dict[Association, int] = field(default_factory=dict)
    """How many images each association brought."""
    carriers: set[Association] = field(default_factory=set)
    """Those of them that are open."""
    longest_s: dict[Phase, float] = field(default_factory=dict)
    timeline: list[TimelineEntry] = field(default_factory=list)
    entry: float = math.inf
    """The earliest of its entries in the heap of deadlines."""
    idle_hit: bool = False
    """The idle time-out has passed; the grace period runs."""
    ask_at: float = math.inf
    asked: int = 0
    asking: bool = False
    fetches: int = 0
    answer: Answer | None = None
    """The last one of the PACS."""


class _Closed(NamedTuple):
    """What is remembered of a reported series."""

    revision: int
    source: Source
    phase: Phase
    last_seen: float
    verdict: SeriesVerdict


class SeriesCollector:
    """Groups instances by series and decides when each is reported. Pure: the time is always passed in.

    A report closes the revision. A later instance of the series opens the next one, which carries only what came since.
    """

    def __init__(  # noqa: PLR0913 - one parameter a rule
        self,
        *,
        policy: IdlePolicy,
        max_open_s: float,
        gateway_id: str,
        wall_clock: Callable[[float], datetime],
        pacs: Container[str] = (),
        patience_s: float = 0.0,
        fetch: bool = False,
        revisions: Mapping[SeriesKey, int] = MappingProxyType({}),
    ) -> None:
        """`pacs`: calling AE titles that can be asked; `patience_s`: how long to wait for what they say is missing."""
        self.policy = policy
        self._max_open_s = max_open_s
        self._gateway_id = gateway_id
        self._wall_clock = wall_clock
        self._pacs = pacs
        self._patience_s = patience_s
        self._fetch = fetch
        self._open: dict[SeriesKey, OpenSeries] = {}
        self._closed: dict[SeriesKey, _Closed | int] = dict(revisions)  # of an earlier run, the revision only
        self._recent: dict[SeriesKey, set[str]] = {}  # what the last reported series held
        self._carried_last: dict[Association, SeriesKey] = {}  # by those that are open
        self._carried: dict[Association, set[SeriesKey]] = {}  # the same, of series that are open
        self._questions: list[Question] = []
        # At least one entry per open series that is not later than its deadline; the number breaks ties.
        self._deadlines: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()

    # --- what happens ---

    def observe(self, instance: Instance, now: float) -> None:
        """Count one instance under its series; a repeated one counts once but shows that the series is alive."""
        key = instance.key
        series = self._open.get(key)
        if series is None:
            series = self._open[key] = self._start(instance, now)
        else:
            phase = self._phase(key, series)
            began_at = instance.association.began_at if instance.association else None
            silence_s = (now if began_at is None else began_at) - series.last_seen  # it ended with the first bytes
            series.longest_s[phase] = max(series.longest_s.get(phase, 0.0), silence_s)
        series.last_seen = now
        series.last_received_at = max(series.last_received_at, instance.received_at)
        series.sop_instance_uids.add(instance.sop_instance_uid)
        for keyword, values in instance.attributes.items():
            if values and keyword not in series.attributes:
                series.attributes[keyword] = values
                if keyword in instance.undecoded:
                    series.undecoded[keyword] = instance.undecoded[keyword]
        series.idle_hit = False
        if series.source.calling_ae_title in self._pacs:
            series.ask_at = now + ASK_AFTER_S
        self._carry(instance.association, key, series, now)
        if series.entry == math.inf or series.ask_at < math.inf or self._phase(key, series) is Phase.COUNTED:
            self._schedule(key, series)  # else the deadline only moved on

    def released(self, association: Association, now: float) -> None:
        """An association ended: that shortens the wait of the series it carried, and is a reason to ask the PACS."""
        self._carried_last.pop(association, None)
        for key in self._carried.pop(association, ()):
            series = self._open[key]
            series.carriers.discard(association)
            if series.ask_at < math.inf and self._phase(key, series) in (Phase.RELEASED, Phase.COUNTED):
                series.ask_at = min(series.ask_at, now)
            self._schedule(key, series)

    def answered(self, key: SeriesKey, answer: Answer, now: float) -> list[SeriesReport]:
        """The PACS answered, or did not. A series that is verified by it is closed and reported at once."""
        series = self._open.get(key)
        if series is None:  # reported in the meantime
            return []
        self._note(
            series,
            "pacs.answered",
            now,
            PACS=answer.pacs,
            Count=answer.count,
            Known=answer.known,
            Missing=len(answer.missing),
            Fetched=answer.fetched,
            Problem=answer.problem,
        )
        series.answer = answer
        series.asking = False
        if answer.confirmed and answer.here == len(series.sop_instance_uids):
            return [self._close(key, "verified", now)]
        series.asked += 1
        again_s = 0.0 if answer.fetched else min(ASK_AFTER_S * 2.0**series.asked, ASK_AGAIN_MAX_S)
        series.ask_at = min(series.ask_at, now + again_s)
        self._schedule(key, series)
        return []

    # --- what is due ---

    def next_deadline(self) -> float | None:
        """When to look again (loop time): no series falls due before; None where none is open. O(1) amortised."""
        while self._deadlines:
            entry, _, key = self._deadlines[0]
            series = self._open.get(key)
            if series is not None and entry == series.entry:
                return entry
            heapq.heappop(self._deadlines)  # of a series reported since, or an earlier one was added
        return None

    def due(self, now: float) -> list[SeriesReport]:
        """Close and report series whose deadline has passed, at most DUE_AT_ONCE."""
        reports: list[SeriesReport] = []
        while len(reports) < DUE_AT_ONCE and (entry := self.next_deadline()) is not None and entry <= now:
            _, _, key = heapq.heappop(self._deadlines)
            series = self._open[key]
            if self._deadline(key, series) <= now:
                reports += self._decide(key, series, now)
            else:  # images came since
                self._schedule(key, series, again=True)
        return reports

    def questions(self) -> list[Question]:
        """What to ask since the last time."""
        questions, self._questions = self._questions, []
        return questions

    def drain(self, now: float) -> list[SeriesReport]:
        """Close and report every open series, due or not."""
        self._deadlines.clear()
        return [self._close(key, "drained", now) for key in list(self._open)]

    # --- deciding ---

    def _decide(self, key: SeriesKey, series: OpenSeries, now: float) -> list[SeriesReport]:
        """What to do about a series whose deadline has come: ask, wait for the grace period, fetch, or report it."""
        if series.ask_at <= now and not series.asking:
            self._ask(key, series, fetch=False)
        idle = self._idle_at(key, series) <= now
        if idle and series.idle_hit and not self._may_fetch(series):
            return [self._close(key, "expected" if self._phase(key, series) is Phase.COUNTED else "idle", now)]
        if not idle and series.opened + self._max_open_s <= now:
            return [self._close(key, "capped", now)]
        if idle and series.idle_hit:
            self._ask(key, series, fetch=True)
        elif idle:
            series.idle_hit = True
            self._note(series, "series.idle", now, **self._silence(key, series))
        self._schedule(key, series, again=True)
        return []

    def _may_fetch(self, series: OpenSeries) -> bool:
        return self._fetch and series.fetches < FETCHES and series.answer is not None and bool(series.answer.missing)

    def _ask(self, key: SeriesKey, series: OpenSeries, *, fetch: bool) -> None:
        series.ask_at = math.inf
        series.asking = True
        series.fetches += fetch
        here = frozenset(series.sop_instance_uids)
        self._questions.append(Question(key, series.source.calling_ae_title, here, fetch))

    def _silence(self, key: SeriesKey, series: OpenSeries) -> dict[str, str | float]:
        """What an idle decision rests on."""
        return {
            "IdleTimeoutS": round(self._timeout_s(key, series), 3),
            "Policy": self.policy.name,
            "Phase": self._phase(key, series).value,
            "LearntFrom": self.policy.known(series.source),
        }

    def _phase(self, key: SeriesKey, series: OpenSeries) -> Phase:
        expected = _count_in_tags(series.attributes)
        if expected is not None and len(series.sop_instance_uids) == expected:
            return Phase.COUNTED
        if not series.carriers and series.carried:
            return Phase.RELEASED
        if series.carriers and all(self._carried_last.get(association) != key for association in series.carriers):
            return Phase.MOVED
        return Phase.OPEN

    def _timeout_s(self, key: SeriesKey, series: OpenSeries) -> float:
        if series.answer is not None and series.answer.more and not self._fetch:
            return self._patience_s
        return self.policy.timeout_s(series.source, self._phase(key, series), series.longest_s)

    def _idle_at(self, key: SeriesKey, series: OpenSeries) -> float:
        """When the series is to be taken for idle, or its grace period ends. Bytes that still come are activity."""
        if series.asking:  # for at most pacs_timeout_s an answer
            return math.inf
        receiving = (a.receiving_at or 0.0 for a in series.carriers if self._carried_last.get(a) == key)
        timeout_s = self._timeout_s(key, series)
        grace_s = self.policy.grace_s(timeout_s) if series.idle_hit else 0.0
        return max(series.last_seen, *receiving, 0.0) + timeout_s + grace_s

    def _deadline(self, key: SeriesKey, series: OpenSeries) -> float:
        ask_at = math.inf if series.asking else series.ask_at
        return min(self._idle_at(key, series), series.opened + self._max_open_s, ask_at)

    def _schedule(self, key: SeriesKey, series: OpenSeries, *, again: bool = False) -> None:
        """Put the deadline on the heap, if it is earlier than what is there (`again`: nothing of it is)."""
        deadline = self._deadline(key, series)
        if again or deadline < series.entry:
            series.entry = deadline
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), key))

    # --- opening and closing ---

    def _start(self, instance: Instance, now: float) -> OpenSeries:
        closed = self._closed.pop(instance.key, 0)
        recent = self._recent.pop(instance.key, None)
        series = OpenSeries(
            revision=(closed.revision if isinstance(closed, _Closed) else closed) + 1,
            source=Source(instance.calling_ae_title.strip(), (instance.text("Modality") or "")[:MODALITY_LENGTH]),
            opened=now,
            last_seen=now,
            first_received_at=instance.received_at,
            last_received_at=instance.received_at,
        )
        if isinstance(closed, _Closed) and instance.sop_instance_uid not in (recent or {instance.sop_instance_uid}):
            late_s = now - closed.last_seen
            self.policy.learn(closed.source, {closed.phase: late_s})
            self._note(series, "series.reopened", now, LateByS=round(late_s, 3), Verdict=closed.verdict)
        return series

    def _carry(self, association: Association | None, key: SeriesKey, series: OpenSeries, now: float) -> None:
        """Note what brought an image; the series that it carried before may now be over sooner."""
        if association is None:
            return
        if association not in series.carried:
            series.carried[association] = 0
            title, address = association.calling_ae_title.strip(), association.peer_address
            number = association.number
            self._note(series, "association.joined", now, Association=number, CallingAETitle=title, PeerAddress=address)
        series.carried[association] += 1
        if association.released_at is not None:
            return
        before = self._carried_last.get(association, key)
        self._carried_last[association] = key
        self._carried.setdefault(association, set()).add(key)
        series.carriers.add(association)
        if before != key and before in self._open:
            self._schedule(before, self._open[before])

    def _close(self, key: SeriesKey, verdict: SeriesVerdict, now: float) -> SeriesReport:
        series = self._open[key]
        phase, silence = self._phase(key, series), self._silence(key, series)
        for association, images in series.carried.items():
            released = association not in series.carriers
            self._note(series, "images.counted", now, Association=association.number, Images=images, Released=released)
        for association in series.carriers:
            self._carried[association].discard(key)
        self._note(series, "series.reported", now, Verdict=verdict, Images=len(series.sop_instance_uids))
        del self._open[key]
        if verdict not in ("drained", "capped"):
            self.policy.learn(series.source, {phase: 0.0} | series.longest_s)
        self._closed[key] = _Closed(series.revision, series.source, phase, series.last_seen, verdict)
        self._recent[key] = series.sop_instance_uids
        for memory, size in ((self._closed, REMEMBERED_REVISIONS), (self._recent, REMEMBERED_IMAGES)):
            if len(memory) > size:
                del memory[next(iter(memory))]
        return self._report(key, series, verdict, _basis(verdict, series.answer, silence))

    def _report(self, key: SeriesKey, series: OpenSeries, verdict: SeriesVerdict, basis: str) -> SeriesReport:
        in_tags, answer = _count_in_tags(series.attributes), series.answer
        asked = answer is not None and answer.count is not None
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
            ExpectedInstances=answer.count if answer and asked else in_tags,
            ExpectedFrom="pacs" if asked else "tags" if in_tags else None,
            MissingSOPInstanceUIDs=list(answer.missing) if answer else [],
            Basis=basis,
            Source=" ".join(filter(None, series.source)),
            IdlePolicy=self.policy.name,
            Timeline=series.timeline,
            GatewayID=self._gateway_id,
            FirstReceivedAt=series.first_received_at,
            LastReceivedAt=series.last_received_at,
        )

    def _note(self, series: OpenSeries, event: str, now: float, **details: str | float | None) -> None:
        """Keep one thing that happened as evidence; of very many, the first and the last."""
        if len(series.timeline) == MAX_TIMELINE:
            del series.timeline[MAX_TIMELINE // 2]
        series.timeline.append(TimelineEntry(At=self._wall_clock(now), Event=event, Details=details))


def _count_in_tags(attributes: Mapping[str, Sequence[str]]) -> int | None:
    """How many images a tag says there are: a hint, senders fill it in loosely. None where none says so."""
    for keyword, _ in COUNTS.values():
        (text,) = attributes.get(keyword) or ("",)
        if text.isdecimal() and 0 < int(text) < 2**31:
            return int(text)
    return None


def _basis(verdict: SeriesVerdict, answer: Answer | None, silence: Mapping[str, str | float]) -> str:
    """What a verdict rests on, in words."""
    quiet = "quiet for {IdleTimeoutS:g} s ({Policy}, {Phase}, learnt from {LearntFrom} series)".format_map(silence)
    said = ""
    if answer is not None:
        said = f"; {answer.pacs}: {answer.problem or f'{answer.count} images, {answer.known} known'}"
    match verdict:
        case "verified":
            return f"{answer and answer.pacs} said {answer and answer.count} twice"
        case "expected":
            return f"as many images as a tag says, and {quiet}{said}"
        case "idle":
            return quiet + said
        case "capped":
            return f"open for max_open_s{said}"
    return f"an operator's request, or a stop{said}"


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


class Released(NamedTuple):
    """On the inbox: an association ended."""

    association: Association


class Answered(NamedTuple):
    """On the inbox: what the PACS says of a series."""

    key: SeriesKey
    answer: Answer


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

    With `listen` false it only drains what the journal holds. Raises CannotListen or JournalUnusable.
    """
    loop = asyncio.get_running_loop()
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


async def stored_instances(http: httpx.AsyncClient, key: SeriesKey) -> list[str]:
    """SOP Instance UIDs that the server has of a series; none where it cannot say."""
    try:
        response = await http.get(f"series/{key.series_instance_uid}/instances")
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

    operations = {"status": status, "drain": drain, **changes(journal, dispatcher.submit)}
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

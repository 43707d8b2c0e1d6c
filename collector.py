"""Which images make a series, and when it is reported: `SeriesCollector`. Pure: no I/O, and the time is passed in."""

import base64
import heapq
import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from header import COUNTS, INSTANCE_KEYWORDS, INSTANCE_LEVEL, InstanceValues, instance_values
from idle import IdlePolicy, Phase, Source
from models import (
    MAX_TIMELINE,
    ArrivingSeries,
    Association,
    Instance,
    InstanceKeyword,
    SeriesKey,
    SeriesReport,
    SeriesVerdict,
    TimelineEntry,
    WaitingFor,
    printable,
)
from pacs import Answer, Question

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
REMEMBERED_IMAGES = 100  # closed series whose images are known, to tell late images from a series sent again
ASK_AFTER_S = 0.3  # of silence, where there is a PACS to ask
ASK_AGAIN_MAX_S = 10.0
FETCHES = 2  # of one revision
MODALITY_LENGTH = 16  # a CS
IS_LENGTH = 12  # PS3.5 table 6.2-1
MARKS = 16  # of a series, that say when its images came
DUE_AT_ONCE = 100  # reports made and journalled before the inbox is looked at again
NOT_IN_ATTRIBUTES = {keyword for keyword, _ in (INSTANCE_LEVEL | COUNTS).values()} | {
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}


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
    sop_instance_uids: dict[str, InstanceValues] = field(default_factory=dict)
    """With what is known of each beside its UID."""
    marks: list[tuple[float, int]] = field(default_factory=list)
    """When how many images had come: the first, and then every `marked_every`."""
    marked_every: int = 1
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
        self._recent: dict[SeriesKey, Container[str]] = {}  # what the last reported series held
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
        series.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
        self._mark(series, now)
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

    # --- what is open ---

    @property
    def open_series(self) -> int:
        """How many series are open."""
        return len(self._open)

    def arriving(self, most: int) -> list[ArrivingSeries]:
        """Open series, those that images came to last first."""
        latest = heapq.nlargest(most, self._open.items(), key=lambda item: item[1].last_seen)
        return [self._arriving(key, series) for key, series in latest]

    def _arriving(self, key: SeriesKey, series: OpenSeries) -> ArrivingSeries:
        in_tags = _count_in_tags(series.attributes)
        return ArrivingSeries.model_construct(
            SeriesInstanceUID=key.series_instance_uid,
            Source=" ".join(filter(None, series.source)),
            Revision=series.revision,
            Instances=len(series.sop_instance_uids),
            Expected=series.answer.count if series.answer and series.answer.count is not None else in_tags,
            Waiting=self._waiting_for(key, series),
            FirstReceivedAt=series.first_received_at,
            LastReceivedAt=series.last_received_at,
        )

    def _waiting_for(self, key: SeriesKey, series: OpenSeries) -> WaitingFor:
        if series.asking or (series.answer is not None and series.answer.more):
            return "for the PACS"
        if series.idle_hit:
            return "to be reported"
        return "for images" if self._phase(key, series) is Phase.OPEN else "for silence"

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
            source=Source(
                printable(instance.calling_ae_title.strip()),
                printable(instance.text("Modality") or "")[:MODALITY_LENGTH],
            ),
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

    def _mark(self, series: OpenSeries, now: float) -> None:
        """Remember when images came, ever more coarsely."""
        count = len(series.sop_instance_uids)
        if series.marks and count < series.marks[-1][1] + series.marked_every:
            return
        series.marks.append((now, count))
        if len(series.marks) == 2 * MARKS:
            series.marks = series.marks[::2]
            series.marked_every *= 2

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
        self._note(series, "images.arrived", series.last_seen, Arrivals=_arrivals(series))
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
        uids = sorted(series.sop_instance_uids)
        asked = answer is not None and answer.count is not None
        return SeriesReport(
            SeriesInstanceUID=key.series_instance_uid,
            PatientID=key.patient_id,
            PatientName="\\".join(series.attributes.get("PatientName", ())),
            StudyInstanceUID=key.study_instance_uid,
            NumInstances=len(uids),
            SOPInstanceUIDs=uids,
            InstanceAttributes=_columns([series.sop_instance_uids[uid] for uid in uids]),
            Attributes={k: list(v) for k, v in series.attributes.items() if k not in NOT_IN_ATTRIBUTES},
            Undecoded={
                k: base64.b64encode(v).decode() for k, v in series.undecoded.items() if k not in INSTANCE_KEYWORDS
            },
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


def _arrivals(series: OpenSeries) -> str:
    """When how many images had come, in seconds after the first: `0:1 0.31:12 …`."""
    marks = series.marks[:: max(1, math.ceil(len(series.marks) / MARKS))]
    last = series.last_seen, len(series.sop_instance_uids)
    marks = marks if marks[-1][1] == last[1] else [*marks, last]
    return " ".join(f"{at - series.opened:.4g}:{count}" for at, count in marks)


def _columns(rows: Sequence[InstanceValues]) -> dict[InstanceKeyword, list[str | None]]:
    """Per keyword the values of all instances, a single one where it is that of all; nothing where none has any."""
    columns = zip(INSTANCE_KEYWORDS, zip(*rows, strict=True), strict=True)
    return {k: list(column if len(set(column)) > 1 else column[:1]) for k, column in columns if any(column)}


def _count_in_tags(attributes: Mapping[str, Sequence[str]]) -> int | None:
    """How many images a tag says there are: a hint, senders fill it in loosely. None where none says so."""
    for keyword, _ in COUNTS.values():
        text, *_ = attributes.get(keyword) or ("",)
        if text.isdecimal() and len(text) <= IS_LENGTH and 0 < int(text) < 2**31:
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

"""Which images make a series, and when it is reported: `SeriesCollector`. Pure: no I/O, and the time is passed in."""

import base64
import heapq
import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from dicom.header import COUNTS, INSTANCE_KEYWORDS, INSTANCE_LEVEL, InstanceValues, instance_values
from gateway.idle import IdlePolicy, Phase, Source, source_of
from gateway.questions import Answer, Question
from models import (
    FINAL_VERDICTS,
    MAX_DOUBTS,
    MAX_HEARD,
    MAX_TIMELINE,
    ArrivingSeries,
    Association,
    HeardSource,
    Instance,
    InstanceKeyword,
    SeriesKey,
    SeriesReport,
    SeriesVerdict,
    TimelineEntry,
    WaitingFor,
    fitting,
    fitting_bytes,
    news,
    valid_unicode,
)

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
REMEMBERED_IMAGES = 200_000  # of closed series, to tell late images from a series sent again
REMEMBERED_S = 800.0  # how long they are, by default
ASK_AFTER_S = 0.3  # of silence, where there is a PACS to ask
ASK_AGAIN_MAX_S = 10.0
GREW = 1.25  # times the idle time-out that a count has to stand if the PACS may still be receiving this series
RECEIVING_S = 10.0  # the least of it
GREW_S = 45.0  # the least of it if the count grew and its source has not shown yet what its longest pauses are
SHOWN_AFTER = 50  # series, until it has
TRUSTED_AFTER = 10  # series in a row that a PACS held from the start, until its answer counts at once
PARTS_S = 20.0  # the least time for the parts of others to come, once ours was posted
FETCHES = 2  # of one revision
IS_LENGTH = 12  # the same of an IS
TEXT_LENGTH = 256  # of a text in a report or a heartbeat: models.SeriesReport
MARKS = 16  # of a series, that say when its images came
DUE_AT_ONCE = 100  # reports made and journalled before the inbox is looked at again
IMAGES_IN_ACQUISITION = "ImagesInAcquisition"
IMAGES_IN_SERIES = "NumberOfSeriesRelatedInstances"
NOT_IN_ATTRIBUTES = {keyword for keyword, _ in (INSTANCE_LEVEL | COUNTS).values()} | {
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}


@dataclass(slots=True)
class Said:
    """What the PACS has said of an open series. Times are loop time."""

    answer: Answer
    """Its last one with a count."""
    here: int
    """How many images were here when it was asked."""
    since: float
    """When it first gave that count."""
    ahead: bool | None
    """Its first answer was ahead of what was here by more than the one image that may be on its way.

    None: of what was here when it was asked, and not of what was when it had answered. That cannot be told apart from
    images that it got and forwarded meanwhile.
    """
    grew: bool = False
    """Its count has grown since the first answer: it is itself still receiving."""

    @property
    def holds(self) -> bool:
        """Whether it held the whole series from the start, for all one can tell; else it may still be receiving."""
        return self.ahead is True and not self.grew


@dataclass(slots=True)
class OpenSeries:
    """A series that is still receiving. `opened`, `last_seen` and all that ends in `_at` are loop time."""

    key: SeriesKey
    revision: int
    source: Source
    opened: float
    last_seen: float
    first_received_at: datetime
    last_received_at: datetime
    called_ae_title: str = ""
    before: "_Closed | None" = None
    """The revision before, as long as no image has come that it did not have."""
    held_before: Mapping[str, None] = field(default_factory=dict)
    """The SOP Instance UIDs of earlier revisions, as far as they are remembered."""
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    doubtful: dict[str, None] = field(default_factory=dict)
    """What its images break of the standard, in the order in which it came."""
    sop_instance_uids: dict[str, InstanceValues] = field(default_factory=dict)
    """With what is known of each beside its UID."""
    parted: int = 0
    """How many of them stand in the last part that was posted."""
    marks: list[tuple[float, int]] = field(default_factory=list)
    """When how many images had come: the first, and then every `marked_every`."""
    marked_every: int = 1
    carried: dict[Association, int] = field(default_factory=dict)
    """How many images each association brought."""
    carriers: set[Association] = field(default_factory=set)
    """Those of them that are open."""
    aborted: bool = False
    """The one that ended last was aborted."""
    one_each: bool = True
    """No association that has ended brought more than one image, of whatever series."""
    followed: bool = False
    """Its source has sent an image of another series since its last one."""
    longest_s: dict[Phase, float] = field(default_factory=dict)
    """The longest silences that a new image has ended."""
    unproven_s: dict[Phase, float] = field(default_factory=dict)
    """The longest since then, that a repeated image has ended."""
    timeline: list[TimelineEntry] = field(default_factory=list)
    phase: Phase = Phase.OPEN
    """The one that its deadline was put on the heap for."""
    entry: float = math.inf
    """The earliest of its entries in the heap of deadlines."""
    idle_since: float = math.inf
    """When the idle time-out passed; since then the grace period runs."""
    silence: dict[str, str | float] = field(default_factory=dict)
    """What that rested on."""
    ask_at: float = math.inf
    asked: int = 0
    """Answers since the last image."""
    asking: bool = False
    asked_at: float = -math.inf
    """When the last question was asked."""
    asked_about: int = 0
    """How many images were here then."""
    fetches: int = 0
    said: Said | None = None
    problem: str | None = None
    """Why the last question to the PACS failed; None if it did not."""

    @property
    def idle_hit(self) -> bool:
        """Whether the idle time-out has passed."""
        return self.idle_since < math.inf


@dataclass(slots=True)
class _Closed:
    """What is remembered of a reported series."""

    revision: int
    source: Source
    phase: Phase
    last_seen: float
    closed_at: float
    verdict: SeriesVerdict
    taught: bool
    """Its silences were the sender's own."""
    held: Mapping[str, None]
    """The SOP Instance UIDs of all its revisions; empty where they are forgotten."""


@dataclass(slots=True)
class _Carrier:
    """What an open association has brought."""

    last: SeriesKey
    images: int = 0
    keys: set[SeriesKey] = field(default_factory=set)
    """Of series that are open."""


class Failure(NamedTuple):
    """A report that could not be made as it should."""

    key: SeriesKey
    revision: int
    error: Exception
    set_aside: Sequence[str] = ()
    """The images of a series of which not even the least report could be made; else that went in its place."""


class SeriesCollector:
    """Groups instances by series and decides when each is reported. Pure: the time is always passed in.

    A report closes the revision, but for one without Verdict: that is a part, and its series stays open. A later
    instance of the series opens the next revision, which carries only what came since.
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
        remember_s: float = REMEMBERED_S,
        revisions: Mapping[SeriesKey, int] = MappingProxyType({}),
        trust: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """`pacs`: calling AE titles that can be asked; `patience_s`: how long to wait for what they say is missing.

        `revisions` and `trust` (series in a row that a PACS held from the start) are of an earlier run.
        """
        self.policy = policy
        self._max_open_s = max_open_s
        self._gateway_id = gateway_id
        self._wall_clock = wall_clock
        self._pacs = pacs
        self._patience_s = patience_s
        self._fetch = fetch
        self._remember_s = remember_s
        self._open: dict[SeriesKey, OpenSeries] = {}
        self._closed: dict[SeriesKey, _Closed | int] = dict(revisions)  # of an earlier run, the revision only
        self._recent: dict[SeriesKey, _Closed] = {}  # those whose images are remembered, in the order of closing
        self._recent_images = 0
        self._trust = dict(trust)
        self._trust_news: dict[str, int] = {}
        self._carriers: dict[Association, _Carrier] = {}  # those that are open
        self._latest: dict[Source, SeriesKey] = {}  # of each source the open series that an image came to last
        self._heard: dict[Source, datetime] = {}  # when the last image of each came, the latest at the end
        self._questions: list[Question] = []
        self._failures: list[Failure] = []
        self._broken: list[tuple[OpenSeries, Exception]] = []
        # At least one entry per open series that is not later than its deadline; the number breaks ties.
        self._deadlines: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()

    # --- what happens ---

    def observe(self, instance: Instance, now: float) -> None:
        """Count one instance under its series; a repeated one counts once but shows that the series is alive."""
        try:
            self._observe(instance, now)
        except Exception as error:  # in depth, as in `_or_least`
            series = self._open.get(instance.key) or self._start(instance, now)
            series.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
            self._broken.append((series, error))

    def _observe(self, instance: Instance, now: float) -> None:
        key = instance.key
        series = self._open.get(key)
        if series is None:
            series = self._open[key] = self._start(instance, now)
        elif not series.fetches:  # a silence that we ended ourselves is not the sender's
            self._end_silence(series, instance, now)
        if series.before is not None and instance.sop_instance_uid not in series.before.held:
            self._contradict(series, series.before, instance, now)
        series.last_seen = now
        series.last_received_at = max(series.last_received_at, instance.received_at)
        self._note_source(series)
        series.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
        self._mark(series, now)
        for keyword, values in news(instance.attributes, series.attributes).items():
            series.attributes[keyword] = values
            if keyword in instance.undecoded:
                series.undecoded[keyword] = instance.undecoded[keyword]
        series.doubtful.update(dict.fromkeys(instance.doubtful))
        series.idle_since = math.inf
        self._carry(instance.association, series, now)
        self._follow(series)
        if series.source.calling_ae_title in self._pacs:
            series.asked = 0
            series.ask_at = self._ask_next(series, now)
        if series.entry == math.inf or series.ask_at < math.inf or self._phase(series) is not series.phase:
            self._schedule(series)  # else the deadline only moved on

    def released(self, association: Association, now: float) -> None:
        """An association ended: that shortens the wait of the series it carried, and is a reason to ask the PACS."""
        if (carrier := self._carriers.pop(association, None)) is None:
            return
        for series in [self._open[key] for key in carrier.keys]:
            series.carriers.discard(association)
            series.aborted = association.aborted
            series.one_each &= carrier.images == 1
            if series.ask_at < math.inf and not series.carriers:
                soon = self._stands_at(series) if self._is_all(series) else max(now, series.asked_at + ASK_AFTER_S)
                series.ask_at = min(series.ask_at, soon)
            self._schedule(series)

    def answered(self, key: SeriesKey, answer: Answer, now: float) -> list[SeriesReport]:
        """The PACS answered, or did not. A series that is verified by it is closed and reported at once."""
        series = self._open.get(key)
        if series is None or answer.revision != series.revision:  # what it is about was reported in the meantime
            return []
        return self._or_least(series, self._take_answer, answer, now)

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
        reports = self._least_of_broken()
        while len(reports) < DUE_AT_ONCE and (entry := self.next_deadline()) is not None and entry <= now:
            _, _, key = heapq.heappop(self._deadlines)
            series = self._open[key]
            reports += self._or_least(series, self._look, now)
        return reports

    def questions(self) -> list[Question]:
        """What to ask since the last time."""
        questions, self._questions = self._questions, []
        return questions

    def failures(self) -> list[Failure]:
        """What could not be reported as it should, since the last time."""
        failures, self._failures = self._failures, []
        return failures

    def trust_news(self) -> dict[str, int]:
        """How many series in a row which PACS held from the start, where that changed since it was last kept."""
        return dict(self._trust_news)

    def kept(self, learnt: Mapping[Source, str | None], trust: Mapping[str, int]) -> None:
        """This news of the policy's and of trust stands on disk."""
        self.policy.kept(learnt)
        for title in [title for title, series in trust.items() if self._trust_news.get(title) == series]:
            del self._trust_news[title]

    def drain(self, now: float) -> list[SeriesReport]:
        """Close and report every open series, due or not."""
        self._deadlines.clear()
        broken = self._least_of_broken()
        drained = (self._or_least(series, self._close, "drained", now) for series in list(self._open.values()))
        return broken + [report for reports in drained for report in reports]

    def declare(self, series_instance_uid: str, given_at: datetime, now: float) -> list[SeriesReport]:
        """Close and report what is open of a series since before `given_at`: a person has said that it is complete."""
        of_series = [series for key, series in self._open.items() if key.series_instance_uid == series_instance_uid]
        meant = [series for series in of_series if series.first_received_at <= given_at]
        return [report for series in meant for report in self._or_least(series, self._close, "declared", now)]

    # --- what is open ---

    @property
    def open_series(self) -> int:
        """How many series are open."""
        return len(self._open)

    def arriving(self, most: int) -> list[ArrivingSeries]:
        """Open series, those that images came to last first."""
        latest = heapq.nlargest(most, self._open.values(), key=lambda series: series.last_seen)
        return [self._arriving(series) for series in latest]

    def _arriving(self, series: OpenSeries) -> ArrivingSeries:
        return ArrivingSeries.model_construct(
            SeriesInstanceUID=series.key.series_instance_uid,
            StudyInstanceUID=series.key.study_instance_uid,
            PatientID=_shown(series.key.patient_id),
            PatientName=_shown("\\".join(series.attributes.get("PatientName", ()))),
            SeriesDescription=_shown("\\".join(series.attributes.get("SeriesDescription", ()))),
            Source=series.source.name,
            Revision=series.revision,
            Instances=len(series.sop_instance_uids),
            Expected=self._expected(series)[0],
            Waiting=self._waiting_for(series),
            FirstReceivedAt=series.first_received_at,
            LastReceivedAt=series.last_received_at,
        )

    def heard(self) -> list[HeardSource]:
        """The sources that were heard last since the start, and what was learnt of each."""
        return [
            HeardSource.model_construct(
                Source=source.name,
                LastReceivedAt=at,
                LearntFrom=self.policy.known(source),
                WaitS={phase.value: round(s, 3) for phase, s in self.policy.learnt_s(source).items()},
            )
            for source, at in self._heard.items()
        ]

    def _waiting_for(self, series: OpenSeries) -> WaitingFor:
        if series.asking or self._has_more(series):
            return "for the PACS"
        if series.idle_hit:
            return "to be reported"
        return "for images" if self._phase(series) is Phase.OPEN else "for silence"

    # --- deciding ---

    def _least_of_broken(self) -> list[SeriesReport]:
        """The least reports of series that could not be counted as they should."""
        broken, self._broken = self._broken, []
        return [report for series, error in broken for report in self._or_least(series, _fail, error)]

    def _or_least(
        self, series: OpenSeries, work: Callable[..., list[SeriesReport]], *arguments: Any
    ) -> list[SeriesReport]:
        """Do that; a mistake of ours about one series costs its evidence, and nothing of the others."""
        try:
            return work(series, *arguments)
        except Exception as error:
            self._forget(series)
            self._remember(series, Phase.OPEN, "idle", series.last_seen)
            return self._least_report(series, sorted(series.sop_instance_uids), "idle", error)

    def _look(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """Decide if the deadline has come; put the next one on the heap if the series stays open."""
        reports = self._decide(series, now) if self._deadline(series) <= now else []
        if self._open.get(series.key) is series:  # images came since, or it waits for something else now
            self._schedule(series, again=True)
        return reports

    def _decide(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """What to do about a series whose deadline has come: ask, wait for the grace period, fetch, or report it."""
        if series.ask_at <= now and not series.asking:
            self._ask(series, now, fetch=False)
        if self._idle_at(series) > now:
            return self._close(series, "capped", now) if series.opened + self._max_open_s <= now else []
        if not series.idle_hit:
            series.idle_since, series.silence = now, self._silence(series)
            self._note(series, "series.idle", now, **series.silence)
            return self._part(series, now)
        if self._is_verified(series):  # by an answer of before the PACS was trusted
            return self._close(series, "verified", now)
        not_asked_since = series.asked_at < self._stands_at(series)
        if self._may_fetch(series) or (self._is_all(series) and series.problem is None and not_asked_since):
            self._ask(series, now, fetch=self._may_fetch(series))
            return []
        return self._close(series, "expected" if self._phase(series) is Phase.COUNTED else "idle", now)

    def _part(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """What is here of a series that is larger at its PACS or the server: whoever holds the rest waits for it."""
        here, said = len(series.sop_instance_uids), series.said
        others_hold_some = said is not None and (self._has_more(series) or said.answer.known > said.here)
        if not others_hold_some or self._may_fetch(series) or series.parted == here:
            return []
        series.parted = here
        self._note(series, "series.parted", now, Images=here)
        return self._report(series, sorted(series.sop_instance_uids), None, "a part: the PACS has more")

    def _phase(self, series: OpenSeries) -> Phase:
        if series.revision == 1 and len(series.sop_instance_uids) == self._count_in_tags(series):
            return Phase.COUNTED
        if not series.carriers and series.carried:
            if series.aborted:
                return Phase.ABORTED
            if not series.one_each:
                return Phase.RELEASED
            return Phase.NEXT if series.followed else Phase.EACH
        if series.carriers and all(self._carriers[association].last != series.key for association in series.carriers):
            return Phase.MOVED
        return Phase.OPEN

    def _timeout_s(self, series: OpenSeries) -> float:
        return self.policy.timeout_s(series.source, self._phase(series), series.longest_s)

    def _idle_at(self, series: OpenSeries) -> float:
        """When the series is to be taken for idle, or its grace period ends. Bytes that still come are activity."""
        if series.asking:  # for at most pacs_timeout_s an answer
            return math.inf
        receiving = (a.receiving_at or 0.0 for a in series.carriers if self._carriers[a].last == series.key)
        quiet_since = max(series.last_seen, *receiving, 0.0)
        timeout_s = self._timeout_s(series)
        if not series.idle_hit:
            return quiet_since + timeout_s
        idle_at = quiet_since + timeout_s + self.policy.grace_s(timeout_s)
        in_vain = series.fetches >= FETCHES and series.said is not None and bool(series.said.answer.missing)
        if series.said and self._has_more(series) and not self._may_fetch(series) and not in_vain:
            grew_at = series.said.since if series.said.grew else quiet_since
            return max(idle_at, max(quiet_since, grew_at) + self._patience_s, series.idle_since + PARTS_S)
        if self._is_all(series) and series.problem is None:
            return max(idle_at, self._stands_at(series))
        return idle_at

    def _deadline(self, series: OpenSeries) -> float:
        ask_at = math.inf if series.asking else series.ask_at
        return min(self._idle_at(series), series.opened + self._max_open_s, ask_at)

    def _schedule(self, series: OpenSeries, *, again: bool = False) -> None:
        """Put the deadline on the heap, if it is earlier than what is there (`again`: nothing of it is)."""
        deadline, series.phase = self._deadline(series), self._phase(series)
        if again or deadline < series.entry:
            series.entry = deadline
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), series.key))

    def _silence(self, series: OpenSeries) -> dict[str, str | float]:
        """What an idle decision rests on."""
        return {
            "IdleTimeoutS": round(self._timeout_s(series), 3),
            "Policy": self.policy.name,
            "Phase": self._phase(series).value,
            "LearntFrom": self.policy.known(series.source),
        }

    # --- asking the PACS ---

    def _ask(self, series: OpenSeries, now: float, *, fetch: bool) -> None:
        series.ask_at = math.inf
        series.asking, series.asked_at = True, now
        series.fetches += fetch
        series.asked_about = len(series.sop_instance_uids)
        here = frozenset(series.sop_instance_uids)
        classes = frozenset(filter(None, (values[0] for values in series.sop_instance_uids.values())))
        title = series.source.calling_ae_title
        self._questions.append(Question(series.key, title, here, fetch, series.revision, classes, series.idle_hit))

    def _ask_next(self, series: OpenSeries, now: float) -> float:
        """When to ask again: at once at the first image, when what it said has stood, and else ever more seldom."""
        stands_at = self._stands_at(series) if self._is_all(series) and series.problem is None else -math.inf
        if stands_at > now:
            return stands_at
        never_asked = series.asked_at == -math.inf
        if never_asked or (not series.asked and stands_at > -math.inf):
            return min(now, series.ask_at)
        return now + min(ASK_AFTER_S * 2.0 ** max(series.asked - 1, 0), ASK_AGAIN_MAX_S)

    def _take_answer(self, series: OpenSeries, answer: Answer, now: float) -> list[SeriesReport]:
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
        series.asking = False
        series.problem = None if answer.confirmed else answer.problem
        if answer.count is not None:  # else what it said before still stands
            self._hear(series, answer, now)
            if self._is_verified(series):
                return self._close(series, "verified", now)
        series.asked += 1
        again_at = now if answer.fetched else self._ask_next(series, now)
        series.ask_at = min(series.ask_at, again_at)
        self._schedule(series)
        return []

    def _hear(self, series: OpenSeries, answer: Answer, now: float) -> None:
        """Remember since when the PACS says this, the most that it said, and whether it is itself still receiving."""
        count, said = answer.count or 0, series.said
        if said is None:
            came = len(series.sop_instance_uids) - series.asked_about
            lead = count - answer.known - 1
            ahead = True if lead > came else None if lead > 0 else False
            series.said = Said(answer, series.asked_about, now, ahead)
            return
        if count < (said.answer.count or 0):
            return  # what it has said before stands, as if this question had failed
        if count > (said.answer.count or 0):
            said.since, said.grew = now, True
            self._set_trust(series.source, 0)
        said.answer, said.here = answer, series.asked_about

    def _lacking(self, series: OpenSeries) -> int | None:
        """How many images the PACS has and we have not, as it said last; None where it did not say."""
        if series.said is None:
            return None
        answer = series.said.answer
        return (answer.count or 0) - answer.known - (len(series.sop_instance_uids) - series.said.here)

    def _is_all(self, series: OpenSeries) -> bool:
        """Whether as many are known as the PACS said last."""
        return self._lacking(series) == 0

    def _has_more(self, series: OpenSeries) -> bool:
        return (self._lacking(series) or 0) > 0

    def _is_verified(self, series: OpenSeries) -> bool:
        """Whether the last answer holds just what is known, and was asked for after what it says had stood."""
        if series.said is None or series.problem is not None or series.asked_at < self._stands_at(series):
            return False
        answer = series.said.answer
        return answer.confirmed and answer.here == series.sop_instance_uids.keys()

    def _may_fetch(self, series: OpenSeries) -> bool:
        return self._fetch and series.fetches < FETCHES and self._has_more(series)

    def _stands_at(self, series: OpenSeries) -> float:
        """When what the PACS says has stood for so long that a question from then on may verify it.

        At once where it has held its last TRUSTED_AFTER series, and this one, from the start; for the idle time-out
        where it has held those; else for longer, for it may itself be receiving: then it says what it has so far.
        """
        said = series.said
        if said is None:
            return math.inf
        trusted = self._trust.get(series.source.calling_ae_title, 0) >= TRUSTED_AFTER
        if trusted and said.ahead is not False and not said.grew:
            return said.since + (0.0 if said.ahead else self._timeout_s(series))
        unknown = said.grew and self.policy.known(series.source) < SHOWN_AFTER
        return said.since + max(GREW * self._timeout_s(series), GREW_S if unknown else RECEIVING_S)

    def _set_trust(self, source: Source, series: int) -> None:
        title = source.calling_ae_title
        if self._trust.get(title, 0) != series:
            self._trust[title] = self._trust_news[title] = series

    # --- opening and closing ---

    def _start(self, instance: Instance, now: float) -> OpenSeries:
        closed = self._closed.pop(instance.key, 0)
        before = closed if isinstance(closed, _Closed) and self._remembers(closed, now) else None
        if (recent := self._recent.pop(instance.key, None)) is not None:
            self._recent_images -= len(recent.held)
        modality, station = (instance.text(keyword) or "" for keyword in ("Modality", "StationName"))
        return OpenSeries(
            key=instance.key,
            revision=(closed.revision if isinstance(closed, _Closed) else closed) + 1,
            source=source_of(instance.calling_ae_title, modality, station),
            opened=now,
            last_seen=now,
            first_received_at=instance.received_at,
            last_received_at=instance.received_at,
            called_ae_title=instance.called_ae_title,
            before=before,
            held_before=before.held if before else {},
        )

    def _contradict(self, series: OpenSeries, before: _Closed, instance: Instance, now: float) -> None:
        """An image came that the revision before did not have: it was reported too early."""
        series.before, late_s = None, now - before.last_seen
        if not series.sop_instance_uids:  # else the series was sent again, and more with it
            self.policy.learn(before.source, {before.phase: late_s} if before.taught else {})
        if IMAGES_IN_ACQUISITION in instance.attributes:
            self.policy.learn_count(before.source, right=False)
        if before.verdict == "verified":
            self._set_trust(series.source, 0)
        self._note(series, "series.reopened", now, LateByS=round(late_s, 3), Verdict=before.verdict)

    def _end_silence(self, series: OpenSeries, instance: Instance, now: float) -> None:
        """Remember the silence that this image ends, by its phase. It ended with the image's first bytes."""
        phase = self._phase(series)
        began_at = instance.association.began_at if instance.association else None
        silence_s = (now if began_at is None else began_at) - series.last_seen
        series.unproven_s[phase] = max(series.unproven_s.get(phase, 0.0), silence_s)
        if instance.sop_instance_uid in series.sop_instance_uids:
            return  # sent again: whether the series goes on, the next new image says
        for phase, silence_s in series.unproven_s.items():
            series.longest_s[phase] = max(series.longest_s.get(phase, 0.0), silence_s)
        series.unproven_s.clear()

    def _note_source(self, series: OpenSeries) -> None:
        """Remember when its source was heard last; the one that was silent longest gives way."""
        before = self._heard.pop(series.source, series.last_received_at)
        self._heard[series.source] = max(before, series.last_received_at)
        if len(self._heard) > MAX_HEARD:
            del self._heard[next(iter(self._heard))]

    def _mark(self, series: OpenSeries, now: float) -> None:
        """Remember when images came, ever more coarsely."""
        count = len(series.sop_instance_uids)
        if series.marks and count < series.marks[-1][1] + series.marked_every:
            return
        series.marks.append((now, count))
        if len(series.marks) == 2 * MARKS:
            series.marks = series.marks[::2]
            series.marked_every *= 2

    def _carry(self, association: Association | None, series: OpenSeries, now: float) -> None:
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
            series.aborted = association.aborted
            return
        carrier = self._carriers.setdefault(association, _Carrier(series.key))
        before, carrier.last = carrier.last, series.key
        carrier.images += 1
        carrier.keys.add(series.key)
        series.carriers.add(association)
        if before != series.key and before in self._open:
            self._schedule(self._open[before])

    def _follow(self, series: OpenSeries) -> None:
        """The series that its source sent before may now be over sooner."""
        latest = self._latest.get(series.source)
        series.followed = False
        if latest == series.key:
            return
        self._latest[series.source] = series.key
        if latest is not None:
            self._open[latest].followed = True
            self._schedule(self._open[latest])

    def _close(self, series: OpenSeries, verdict: SeriesVerdict, now: float) -> list[SeriesReport]:
        phase, basis = self._phase(series), self._basis(series, verdict, now)
        for association, images in series.carried.items():
            released = association not in series.carriers
            ended_at = association.released_at if released and association.released_at is not None else now
            number = association.number
            self._note(
                series, "images.counted", min(now, ended_at), Association=number, Images=images, Released=released
            )
        self._note(series, "images.arrived", series.last_seen, Arrivals=_arrivals(series))
        self._note(series, "series.reported", now, Verdict=verdict, Images=len(series.sop_instance_uids))
        report = self._report(series, sorted(series.sop_instance_uids), verdict, basis)
        self._forget(series)
        self._learn(series, phase, verdict)
        self._remember(series, phase, verdict, now)
        return report

    def _forget(self, series: OpenSeries) -> None:
        """It is open no more."""
        self._open.pop(series.key, None)
        for association in series.carriers & self._carriers.keys():
            self._carriers[association].keys.discard(series.key)
        if self._latest.get(series.source) == series.key:
            del self._latest[series.source]

    def _learn(self, series: OpenSeries, phase: Phase, verdict: SeriesVerdict) -> None:
        """Silences that an image did end always teach; the last one does if its sender ended the series with it."""
        ended = verdict in FINAL_VERDICTS and verdict != "declared" and not series.fetches
        if silences := ({phase: 0.0} if ended else {}) | series.longest_s:
            self.policy.learn(series.source, silences)
        counted = _count(series.attributes, IMAGES_IN_ACQUISITION)
        if ended and counted is not None and series.revision == 1:
            self.policy.learn_count(series.source, right=counted == len(series.sop_instance_uids))
        if verdict == "verified" and series.said and series.said.holds:
            held = self._trust.get(series.source.calling_ae_title, 0) + 1
            self._set_trust(series.source, min(held, TRUSTED_AFTER))

    def _remember(self, series: OpenSeries, phase: Phase, verdict: SeriesVerdict, now: float) -> None:
        """Keep a closed series in mind: its revision for long, its images for a while."""
        held = {**series.held_before, **dict.fromkeys(series.sop_instance_uids)}
        taught = not series.fetches
        closed = _Closed(series.revision, series.source, phase, series.last_seen, now, verdict, taught, held)
        self._closed[series.key] = self._recent[series.key] = closed
        if len(self._closed) > REMEMBERED_REVISIONS:
            del self._closed[next(iter(self._closed))]  # its images are forgotten in their turn
        self._recent_images += len(held)
        while self._recent:
            key, oldest = next(iter(self._recent.items()))
            if self._recent_images <= REMEMBERED_IMAGES and self._remembers(oldest, now):
                break
            self._recent_images -= len(oldest.held)
            oldest.held = {}
            del self._recent[key]

    def _remembers(self, closed: _Closed, now: float) -> bool:
        return bool(closed.held) and now <= closed.closed_at + self._remember_s

    # --- reporting ---

    def _report(
        self, series: OpenSeries, uids: list[str], verdict: SeriesVerdict | None, basis: str
    ) -> list[SeriesReport]:
        """The report of these images; the least one where something that strangers said cannot be reported."""
        try:
            return [self._full_report(series, uids, verdict, basis)]
        except Exception as error:  # in depth: what they say is checked where it comes in
            return self._least_report(series, uids, verdict and "idle", error)

    def _least_report(
        self, series: OpenSeries, uids: list[str], verdict: SeriesVerdict | None, error: Exception
    ) -> list[SeriesReport]:
        """Identity, images, source and what is odd, and nothing else; none where that cannot be reported either."""
        try:
            report = SeriesReport(
                SeriesInstanceUID=series.key.series_instance_uid,
                PatientID=series.key.patient_id,
                StudyInstanceUID=series.key.study_instance_uid,
                NumInstances=len(uids),
                SOPInstanceUIDs=uids,
                Revision=series.revision,
                Verdict=verdict,
                Doubtful=list(series.doubtful)[:MAX_DOUBTS],
                Source=series.source.name[:64],
                CalledAETitle=series.called_ae_title[:64] or None,
                GatewayID=self._gateway_id,
                FirstReceivedAt=series.first_received_at,
                LastReceivedAt=series.last_received_at,
            )
        except Exception as worse:
            self._failures.append(Failure(series.key, series.revision, worse, uids))
            return []
        self._failures.append(Failure(series.key, series.revision, error))
        return [report]

    def _full_report(
        self, series: OpenSeries, uids: list[str], verdict: SeriesVerdict | None, basis: str
    ) -> SeriesReport:
        expected, expected_from = self._expected(series)
        attributes = {k: list(v) for k, v in series.attributes.items() if k not in NOT_IN_ATTRIBUTES}
        undecoded = {k: base64.b64encode(v).decode() for k, v in series.undecoded.items() if k not in INSTANCE_KEYWORDS}
        return SeriesReport(
            SeriesInstanceUID=series.key.series_instance_uid,
            PatientID=series.key.patient_id,
            PatientName="\\".join(series.attributes.get("PatientName", ())),
            StudyInstanceUID=series.key.study_instance_uid,
            NumInstances=len(uids),
            SOPInstanceUIDs=uids,
            InstanceAttributes=_columns([series.sop_instance_uids[uid] for uid in uids]),
            Attributes=fitting(attributes),
            Undecoded=fitting_bytes(undecoded),
            Doubtful=list(series.doubtful)[:MAX_DOUBTS],
            Revision=series.revision,
            Verdict=verdict,
            ExpectedInstances=expected,
            ExpectedFrom=expected_from,
            MissingSOPInstanceUIDs=self._missing(series),
            Basis=basis,
            Source=series.source.name,
            CalledAETitle=series.called_ae_title or None,
            IdlePolicy=self.policy.name,
            Timeline=series.timeline,
            GatewayID=self._gateway_id,
            FirstReceivedAt=series.first_received_at,
            LastReceivedAt=series.last_received_at,
        )

    def _expected(self, series: OpenSeries) -> tuple[int | None, Literal["pacs", "tags"] | None]:
        """How many images there should be, and who says so; never fewer than are known."""
        if series.said is not None:
            count, missing = series.said.answer.count or 0, len(self._missing(series))
            known = count - (self._lacking(series) or 0)  # it may have as many, and others
            return (max(count, known + missing), "pacs") if count >= known else (None, None)
        in_tags = self._count_in_tags(series)
        enough = in_tags is not None and in_tags >= len(series.sop_instance_uids)
        return (in_tags, "tags") if enough else (None, None)

    def _count_in_tags(self, series: OpenSeries) -> int | None:
        """How many images a tag that counts the series says there are; None where none does."""
        count = _count(series.attributes, IMAGES_IN_SERIES)
        if count is None and IMAGES_IN_ACQUISITION in series.attributes and self.policy.counts_series(series.source):
            count = _count(series.attributes, IMAGES_IN_ACQUISITION)
        return count

    def _missing(self, series: OpenSeries) -> list[str]:
        missing = series.said.answer.missing if series.said else ()
        return [uid for uid in missing if uid not in series.sop_instance_uids]

    def _basis(self, series: OpenSeries, verdict: SeriesVerdict, now: float) -> str:
        """What a verdict rests on, in words."""
        silence = series.silence if series.idle_hit else self._silence(series)
        quiet = "quiet for {IdleTimeoutS:g} s ({Policy}, {Phase}, learnt from {LearntFrom} series)".format_map(silence)
        said = "".join(f"; {evidence}" for evidence in self._evidence(series))
        match verdict:
            case "verified" if series.said:
                answer, since = series.said.answer, series.said.since
                return _cut(f"{answer.pacs} has said {answer.count} for {now - since:.2g} s, and they are all here")
            case "expected":
                return _cut(f"as many images as a tag says, and {quiet}{said}")
            case "idle":
                return _cut(quiet + said)
            case "capped":
                return _cut(f"open for max_open_s{said}")
            case "declared":
                return _cut(f"a person has declared it complete{said}")
        return _cut(f"an operator's request, or a stop{said}")

    def _evidence(self, series: OpenSeries) -> Iterator[str]:
        """What speaks for or against the end of a series, and decided nothing."""
        if series.said is not None:
            answer = series.said.answer
            yield f"{answer.pacs}: {answer.count} images, {answer.known} known"
        if series.problem is not None:
            yield f"{series.source.calling_ae_title}: {series.problem}"
        in_acquisition = _count(series.attributes, IMAGES_IN_ACQUISITION)
        if in_acquisition is not None and not self.policy.counts_series(series.source):
            yield f"a tag counts {in_acquisition} images in an acquisition"

    def _note(self, series: OpenSeries, event: str, now: float, **details: str | float | None) -> None:
        """Keep one thing that happened as evidence; of very many, the first and the last."""
        if len(series.timeline) == MAX_TIMELINE:
            del series.timeline[MAX_TIMELINE // 2]
        cut = {name: _cut(value) if isinstance(value, str) else value for name, value in details.items()}
        series.timeline.append(TimelineEntry(At=self._wall_clock(now), Event=event, Details=cut))


def _fail(_: OpenSeries, error: Exception) -> list[SeriesReport]:
    raise error


def _cut(text: str) -> str:
    """A text that others had a part in, as a report takes it."""
    return text.encode("utf-8", "replace").decode()[:TEXT_LENGTH]


def _arrivals(series: OpenSeries) -> str:
    """When how many images had come, in seconds after the first: `0:1 0.31:12 …`; as many as a report takes."""
    last = series.last_seen, len(series.sop_instance_uids)
    for step in itertools.count(max(1, math.ceil(len(series.marks) / MARKS))):
        marks = series.marks[::step]
        marks = marks if marks[-1][1] == last[1] else [*marks, last]
        text = " ".join(f"{at - series.opened:.4g}:{count}" for at, count in marks)
        if len(text) <= TEXT_LENGTH or len(marks) <= 2:
            return text
    raise AssertionError  # the loop has no end of its own


def _columns(rows: Sequence[InstanceValues]) -> dict[InstanceKeyword, list[str | None]]:
    """Per keyword the values of all instances, a single one where it is that of all; nothing where none has any."""
    columns = zip(INSTANCE_KEYWORDS, zip(*rows, strict=True), strict=True)
    return {k: list(column if len(set(column)) > 1 else column[:1]) for k, column in columns if any(column)}


def _count(attributes: Mapping[str, Sequence[str]], keyword: str) -> int | None:
    """The number of images that a tag says; None where it says none. Senders fill it in loosely."""
    text, *_ = attributes.get(keyword) or ("",)
    if text.isdecimal() and len(text) <= IS_LENGTH and 0 < int(text) < 2**31:
        return int(text)
    return None


def _shown(text: str | None) -> str | None:
    """As much of a text as a heartbeat tells, in valid Unicode."""
    return valid_unicode(text[:TEXT_LENGTH]) if text else None

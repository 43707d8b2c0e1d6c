"""A series that is still receiving: what has come of it, and what follows from that. Pure: the time is passed in.

`SeriesCollector` (collector.py) owns the open series and decides; what it decides by is asked here: in which phase the
silence of a series stands, when it is to be taken for idle, and what its PACS has said of it.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dicom.header import InstanceValues, instance_values
from gateway.closed_series import ClosedSeries
from gateway.idle import IdlePolicy, Phase, Source, source_of
from gateway.questions import Answer, Question
from models import (
    FINAL_VERDICTS,
    MAX_TIMELINE,
    Association,
    Instance,
    SeriesKey,
    SeriesVerdict,
    TimelineEntry,
    WaitingFor,
    news,
)

ASK_AFTER_S = 0.3  # of silence, where there is a PACS to ask
ASK_AGAIN_MAX_S = 10.0
GREW = 1.25  # times the idle time-out that a count has to stand if the PACS may still be receiving this series
RECEIVING_S = 10.0  # the least of it
GREW_S = 45.0  # the least of it if the count grew and its source has not shown yet what its longest pauses are
SHOWN_AFTER = 50  # series, until it has
TRUSTED_AFTER = 10  # series in a row that a PACS held from the start, until its answer counts at once
PARTS_S = 20.0  # the least time for the parts of others to come, once ours was posted
FETCHES = 2  # how often the missing images of one revision are fetched
IS_LENGTH = 12  # characters of an IS: PS3.5 table 6.2-1
TEXT_LENGTH = 256  # characters of a text in a report or a heartbeat: models.SeriesReport
MAX_ARRIVALS = 16  # points of a series' curve of arrivals in a report; at most twice as many are remembered
IMAGES_IN_ACQUISITION = "ImagesInAcquisition"
IMAGES_IN_SERIES = "NumberOfSeriesRelatedInstances"


class Trust:
    """Counts how many series in a row each PACS held from the start, by AE title; the count is kept in the journal."""

    def __init__(self, by_title: Mapping[str, int]) -> None:
        self._by_title = dict(by_title)
        self._news: dict[str, int] = {}

    def of(self, title: str) -> int:
        """Return the count of a PACS."""
        return self._by_title.get(title, 0)

    def set(self, title: str, series: int) -> None:
        """Change the count of a PACS."""
        if self.of(title) != series:
            self._by_title[title] = self._news[title] = series

    def news(self) -> dict[str, int]:
        """Return the counts that changed since they were last kept."""
        return dict(self._news)

    def kept(self, news: Mapping[str, int]) -> None:
        """Note that these counts stand on disk."""
        for title in [title for title, series in news.items() if self._news.get(title) == series]:
            del self._news[title]


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all series of a gateway."""

    policy: IdlePolicy
    max_open_s: float
    gateway_id: str
    wall_clock: Callable[[float], datetime]
    pacs: Container[str]
    """Calling AE titles that can be asked."""
    patience_s: float
    """How long to wait for what they say is missing."""
    fetch: bool
    """Whether what is missing is fetched."""
    trust: Trust


@dataclass(slots=True)
class OpenAssociation:
    """What an open association has brought."""

    last: SeriesKey
    """The series of its last image."""
    images: int = 0
    series: set[SeriesKey] = field(default_factory=set)
    """Those that it brought images of and that are open."""


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

    rules: Rules
    key: SeriesKey
    revision: int
    source: Source
    opened: float
    last_seen: float
    first_received_at: datetime
    last_received_at: datetime
    called_ae_title: str = ""

    previous: ClosedSeries | None = None
    """The revision before, as long as no image has come that it did not have."""
    held_before: Mapping[str, None] = field(default_factory=dict)
    """The SOP Instance UIDs of earlier revisions, as far as they are remembered."""

    # What has come.
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    doubtful: dict[str, None] = field(default_factory=dict)
    """What its images break of the standard, in the order in which it came."""
    sop_instance_uids: dict[str, InstanceValues] = field(default_factory=dict)
    """With what is known of each beside its UID."""
    images_in_part: int = 0
    """How many of them stand in the last part that was posted."""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """When how many images had come: the first, and then every `arrivals_step`."""
    arrivals_step: int = 1
    timeline: list[TimelineEntry] = field(default_factory=list)

    # What brought it.
    images_brought: dict[Association, int] = field(default_factory=dict)
    """How many images each association brought, open or not."""
    open_associations: dict[Association, OpenAssociation] = field(default_factory=dict)
    """Those of them that are open."""
    aborted: bool = False
    """The one that ended last was aborted."""
    one_each: bool = True
    """No association that has ended brought more than one image, of whatever series."""
    followed: bool = False
    """Its source has sent an image of another series since its last one."""

    # Its silence.
    longest_s: dict[Phase, float] = field(default_factory=dict)
    """The longest silences that a new image has ended."""
    unproven_s: dict[Phase, float] = field(default_factory=dict)
    """The longest since then, that a repeated image has ended."""
    idle_since: float = math.inf
    """When the idle time-out passed; since then the grace period runs."""
    idle_reasons: dict[str, str | float] = field(default_factory=dict)
    """What that rested on."""

    # Its place in the collector's heap of deadlines.
    scheduled_at: float = math.inf
    """The earliest of its entries."""
    scheduled_phase: Phase = Phase.OPEN
    """The phase that its deadline was put there for."""

    # What its PACS says.
    ask_at: float = math.inf
    answers_since_image: int = 0
    asking: bool = False
    asked_at: float = -math.inf
    """When the last question was asked."""
    asked_about: int = 0
    """How many images were here then."""
    fetches: int = 0
    said: Said | None = None
    problem: str | None = None
    """Why the last question to the PACS failed; None if it did not."""

    @classmethod
    def begin(
        cls, rules: Rules, first: Instance, now: float, revision: int, previous: ClosedSeries | None
    ) -> "OpenSeries":
        """Open the revision that an image begins; count the image by `add`."""
        modality, station = (first.text(keyword) or "" for keyword in ("Modality", "StationName"))
        return cls(
            rules=rules,
            key=first.key,
            revision=revision,
            source=source_of(first.calling_ae_title, modality, station),
            opened=now,
            last_seen=now,
            first_received_at=first.received_at,
            last_received_at=first.received_at,
            called_ae_title=first.called_ae_title,
            previous=previous,
            held_before=previous.held if previous else {},
        )

    # --- what comes ---

    def add(self, instance: Instance, now: float) -> None:
        """Count an image, and take over what it says of its series; a repeated one shows that the series is alive."""
        if self.previous is not None and instance.sop_instance_uid not in self.previous.held:
            self._contradict(self.previous, instance, now)
        self.last_seen = now
        self.last_received_at = max(self.last_received_at, instance.received_at)
        self.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
        self._mark_arrival(now)
        for keyword, values in news(instance.attributes, self.attributes).items():
            self.attributes[keyword] = values
            if keyword in instance.undecoded:
                self.undecoded[keyword] = instance.undecoded[keyword]
        self.doubtful.update(dict.fromkeys(instance.doubtful))
        self.idle_since = math.inf

    def _contradict(self, previous: ClosedSeries, instance: Instance, now: float) -> None:
        """Note that an image came which the revision before did not have: it was reported too early."""
        self.previous, late_s = None, now - previous.last_seen
        policy = self.rules.policy
        if not self.sop_instance_uids:  # else the series was sent again, and more with it
            policy.learn(previous.source, {previous.phase: late_s} if previous.taught else {})
        if IMAGES_IN_ACQUISITION in instance.attributes:
            policy.learn_count(previous.source, right=False)
        if previous.verdict == "verified":
            self.rules.trust.set(self.source.calling_ae_title, 0)
        self.note("series.reopened", now, LateByS=round(late_s, 3), Verdict=previous.verdict)

    def _mark_arrival(self, now: float) -> None:
        """Remember when images came, ever more coarsely."""
        count = len(self.sop_instance_uids)
        if self.arrivals and count < self.arrivals[-1][1] + self.arrivals_step:
            return
        self.arrivals.append((now, count))
        if len(self.arrivals) == 2 * MAX_ARRIVALS:
            self.arrivals = self.arrivals[::2]
            self.arrivals_step *= 2

    def end_silence(self, instance: Instance, now: float) -> None:
        """Remember the silence that this image ends, by its phase. It ended with the image's first bytes."""
        phase = self.phase()
        began_at = instance.association.began_at if instance.association else None
        silence_s = (now if began_at is None else began_at) - self.last_seen
        self.unproven_s[phase] = max(self.unproven_s.get(phase, 0.0), silence_s)
        if instance.sop_instance_uid in self.sop_instance_uids:
            return  # sent again: whether the series goes on, the next new image says
        for phase, silence_s in self.unproven_s.items():
            self.longest_s[phase] = max(self.longest_s.get(phase, 0.0), silence_s)
        self.unproven_s.clear()

    def brought_by(self, association: Association, now: float) -> None:
        """Note what brought an image."""
        if association not in self.images_brought:
            self.images_brought[association] = 0
            self.note(
                "association.joined",
                now,
                Association=association.number,
                CallingAETitle=association.calling_ae_title.strip(),
                PeerAddress=association.peer_address,
            )
        self.images_brought[association] += 1
        if association.released_at is not None:
            self.aborted = association.aborted

    def released(self, association: Association, images: int, now: float) -> None:
        """Note that an association which brought images has ended, and is a reason to ask the PACS sooner."""
        self.open_associations.pop(association, None)
        self.aborted = association.aborted
        self.one_each &= images == 1
        if self.ask_at < math.inf and not self.open_associations:
            soon = self.stands_at() if self.is_all() else max(now, self.asked_at + ASK_AFTER_S)
            self.ask_at = min(self.ask_at, soon)

    def note(self, event: str, now: float, **details: str | float | None) -> None:
        """Keep one thing that happened as evidence; of very many, the first and the last."""
        if len(self.timeline) == MAX_TIMELINE:
            del self.timeline[MAX_TIMELINE // 2]
        cut = {name: within_length(value) if isinstance(value, str) else value for name, value in details.items()}
        self.timeline.append(TimelineEntry(At=self.rules.wall_clock(now), Event=event, Details=cut))

    # --- its silence, and when that is over ---

    @property
    def idle_hit(self) -> bool:
        """Whether the idle time-out has passed."""
        return self.idle_since < math.inf

    def phase(self) -> Phase:
        """Return where its silence stands."""
        if self.revision == 1 and len(self.sop_instance_uids) == self.count_in_tags():
            return Phase.COUNTED
        if not self.open_associations and self.images_brought:
            if self.aborted:
                return Phase.ABORTED
            if not self.one_each:
                return Phase.RELEASED
            return Phase.NEXT if self.followed else Phase.EACH
        if self.open_associations and all(one.last != self.key for one in self.open_associations.values()):
            return Phase.MOVED
        return Phase.OPEN

    def deadline(self) -> float:
        """Return when to decide about it next."""
        ask_at = math.inf if self.asking else self.ask_at
        return min(self.idle_at(), self.opened + self.rules.max_open_s, ask_at)

    def idle_at(self) -> float:
        """Return when it is to be taken for idle, or its grace period ends. Bytes that still come are activity."""
        if self.asking:  # for at most pacs_timeout_s an answer
            return math.inf
        receiving = (a.receiving_at or 0.0 for a, one in self.open_associations.items() if one.last == self.key)
        quiet_since = max(self.last_seen, *receiving, 0.0)
        timeout_s = self.timeout_s()
        if not self.idle_hit:
            return quiet_since + timeout_s
        idle_at = quiet_since + timeout_s + self.rules.policy.grace_s(timeout_s)
        in_vain = self.fetches >= FETCHES and self.said is not None and bool(self.said.answer.missing)
        if self.said and self.has_more() and not self.may_fetch() and not in_vain:
            grew_at = self.said.since if self.said.grew else quiet_since
            return max(idle_at, max(quiet_since, grew_at) + self.rules.patience_s, self.idle_since + PARTS_S)
        if self.is_all() and self.problem is None:
            return max(idle_at, self.stands_at())
        return idle_at

    def timeout_s(self) -> float:
        """Return how long it may be quiet."""
        return self.rules.policy.timeout_s(self.source, self.phase(), self.longest_s)

    def begin_grace(self, now: float) -> None:
        """Note that the idle time-out has passed, and what that rests on."""
        self.idle_since, self.idle_reasons = now, self.reasons()
        self.note("series.idle", now, **self.idle_reasons)

    def reasons(self) -> dict[str, str | float]:
        """Return what an idle decision rests on now."""
        return {
            "IdleTimeoutS": round(self.timeout_s(), 3),
            "Policy": self.rules.policy.name,
            "Phase": self.phase().value,
            "LearntFrom": self.rules.policy.known(self.source),
        }

    def waiting_for(self) -> WaitingFor:
        """Return what it waits for, as a heartbeat says it."""
        if self.asking or self.has_more():
            return "for the PACS"
        if self.idle_hit:
            return "to be reported"
        return "for images" if self.phase() is Phase.OPEN else "for silence"

    def teach(self, phase: Phase, verdict: SeriesVerdict) -> None:
        """Let policy and trust learn from it. Silences that an image did end always teach; the last one does if its
        sender ended the series with it.
        """
        policy = self.rules.policy
        ended = verdict in FINAL_VERDICTS and verdict != "declared" and not self.fetches
        if silences := ({phase: 0.0} if ended else {}) | self.longest_s:
            policy.learn(self.source, silences)
        counted = count_in(self.attributes, IMAGES_IN_ACQUISITION)
        if ended and counted is not None and self.revision == 1:
            policy.learn_count(self.source, right=counted == len(self.sop_instance_uids))
        if verdict == "verified" and self.said and self.said.holds:
            title, trust = self.source.calling_ae_title, self.rules.trust
            trust.set(title, min(trust.of(title) + 1, TRUSTED_AFTER))

    # --- how many images there should be ---

    def count_in_tags(self) -> int | None:
        """Return how many images a tag that counts the series says there are; None where none does."""
        count = count_in(self.attributes, IMAGES_IN_SERIES)
        if count is None and IMAGES_IN_ACQUISITION in self.attributes and self.rules.policy.counts_series(self.source):
            count = count_in(self.attributes, IMAGES_IN_ACQUISITION)
        return count

    def missing(self) -> list[str]:
        """Return the SOP Instance UIDs that the PACS has named, and that have not come since."""
        missing = self.said.answer.missing if self.said else ()
        return [uid for uid in missing if uid not in self.sop_instance_uids]

    def lacking(self) -> int | None:
        """Return how many images the PACS has and we have not, as it said last; None where it did not say."""
        if self.said is None:
            return None
        answer = self.said.answer
        return (answer.count or 0) - answer.known - (len(self.sop_instance_uids) - self.said.here)

    def is_all(self) -> bool:
        """Decide whether as many are known as the PACS said last."""
        return self.lacking() == 0

    def has_more(self) -> bool:
        """Decide whether the PACS has images that we have not."""
        return (self.lacking() or 0) > 0

    # --- asking its PACS ---

    def ask(self, now: float, *, fetch: bool) -> Question:
        """Return what to ask the PACS now."""
        self.ask_at = math.inf
        self.asking, self.asked_at = True, now
        self.fetches += fetch
        self.asked_about = len(self.sop_instance_uids)
        here = frozenset(self.sop_instance_uids)
        classes = frozenset(filter(None, (values[0] for values in self.sop_instance_uids.values())))
        return Question(
            self.key, self.source.calling_ae_title, here, fetch, self.revision, classes, quiet=self.idle_hit
        )

    def ask_next(self, now: float) -> float:
        """Return when to ask again: at once at the first image, when what it said has stood, else ever more seldom."""
        stands_at = self.stands_at() if self.is_all() and self.problem is None else -math.inf
        if stands_at > now:
            return stands_at
        never_asked = self.asked_at == -math.inf
        if never_asked or (not self.answers_since_image and stands_at > -math.inf):
            return min(now, self.ask_at)
        return now + min(ASK_AFTER_S * 2.0 ** max(self.answers_since_image - 1, 0), ASK_AGAIN_MAX_S)

    def ask_sooner(self, at: float) -> None:
        """Ask the PACS then, if that is sooner than what was intended."""
        self.ask_at = min(self.ask_at, at)

    def take_answer(self, answer: Answer, now: float) -> None:
        """Note what the PACS answered, or that it did not."""
        self.note(
            "pacs.answered",
            now,
            PACS=answer.pacs,
            Count=answer.count,
            Known=answer.known,
            Missing=len(answer.missing),
            Fetched=answer.fetched,
            Problem=answer.problem,
        )
        self.asking = False
        self.problem = None if answer.confirmed else answer.problem
        if answer.count is not None:  # else what it said before still stands
            self._take_count(answer, answer.count, now)

    def _take_count(self, answer: Answer, count: int, now: float) -> None:
        """Remember since when the PACS says this, the most that it said, and whether it is itself still receiving."""
        said = self.said
        if said is None:
            came = len(self.sop_instance_uids) - self.asked_about
            lead = count - answer.known - 1
            ahead = True if lead > came else None if lead > 0 else False
            self.said = Said(answer, self.asked_about, now, ahead)
            return
        if count < (said.answer.count or 0):
            return  # what it has said before stands, as if this question had failed
        if count > (said.answer.count or 0):
            said.since, said.grew = now, True
            self.rules.trust.set(self.source.calling_ae_title, 0)
        said.answer, said.here = answer, self.asked_about

    def is_verified(self) -> bool:
        """Decide whether the last answer holds just what is known, and was asked for after what it says had stood."""
        if self.said is None or self.problem is not None or self.asked_at < self.stands_at():
            return False
        answer = self.said.answer
        return answer.confirmed and answer.here == self.sop_instance_uids.keys()

    def stands_at(self) -> float:
        """Return when what the PACS says has stood for so long that a question from then on may verify it.

        At once where it has held its last TRUSTED_AFTER series, and this one, from the start; for the idle time-out
        where it has held those; else for longer, for it may itself be receiving: then it says what it has so far.
        """
        said = self.said
        if said is None:
            return math.inf
        trusted = self.rules.trust.of(self.source.calling_ae_title) >= TRUSTED_AFTER
        if trusted and said.ahead is not False and not said.grew:
            return said.since + (0.0 if said.ahead else self.timeout_s())
        unknown = said.grew and self.rules.policy.known(self.source) < SHOWN_AFTER
        return said.since + max(GREW * self.timeout_s(), GREW_S if unknown else RECEIVING_S)

    def may_fetch(self) -> bool:
        """Decide whether what only the PACS has is to be fetched."""
        return self.rules.fetch and self.fetches < FETCHES and self.has_more()

    def should_ask_again(self) -> bool:
        """Decide whether a last question may verify or complete an idle series."""
        not_asked_since = self.asked_at < self.stands_at()
        return self.may_fetch() or (self.is_all() and self.problem is None and not_asked_since)

    def is_a_part(self) -> bool:
        """Decide whether others hold some of it, and what is here has not been told them yet."""
        said = self.said
        others_hold_some = said is not None and (self.has_more() or said.answer.known > said.here)
        return others_hold_some and not self.may_fetch() and self.images_in_part != len(self.sop_instance_uids)


def within_length(text: str) -> str:
    """Return a text that others had a part in as a report takes it."""
    return text.encode("utf-8", "replace").decode()[:TEXT_LENGTH]


def count_in(attributes: Mapping[str, Sequence[str]], keyword: str) -> int | None:
    """Return the number of images that a tag says; None where it says none. Senders fill it in loosely."""
    text, *_ = attributes.get(keyword) or ("",)
    if text.isdecimal() and len(text) <= IS_LENGTH and 0 < int(text) < 2**31:
        return int(text)
    return None

"""A series that still receives images: what has come, and what follows from that. No I/O; the time is passed in.

`SeriesCollector` (collector.py) owns the open series and decides about them. This module gives it the facts: the phase
of a series' silence, when the series counts as idle, and what its PACS has said.
"""

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from common.attributes import news
from dicom.header import InstanceValues, instance_values
from gateway.clock import later
from gateway.closed_series import ClosedSeries
from gateway.idle import IdlePolicy, Phase, Source, source_of
from gateway.questions import Answer, Question
from gateway.tag_counts import IMAGES_IN_SERIES, TAG_COUNTS, class_of_one_frame, count_in, tag_counts
from models import (
    FINAL_VERDICTS,
    MAX_TIMELINE,
    Association,
    CountsOfStudy,
    Instance,
    SeriesKey,
    SeriesVerdict,
    TimelineEntry,
    WaitingFor,
)

ASK_AFTER_S = 0.3  # silence after which the PACS is asked
ASK_AGAIN_MAX_S = 10.0  # longest pause between two questions
GREW = 1.25  # a count must stay the same for this many idle time-outs if the PACS may still be receiving the series, …
RECEIVING_S = 10.0  # … and at least for this long, …
GREW_S = 45.0  # … or this long if the count grew and the longest pauses of its source are not known yet
SHOWN_AFTER = 50  # series after which the longest pauses of a source are known
TRUSTED_AFTER = 10  # series in a row that a PACS had from the start, after which its answer counts at once
PARTS_S = 20.0  # least wait for the parts of other gateways, once ours was posted
FETCHES = 2  # how often missing images of one revision are fetched
TEXT_LENGTH = 256  # characters of a text in a report or a heartbeat: models.SeriesReport
MAX_ARRIVALS = 16  # points of a series' curve of arrivals in a report; at most twice as many are remembered


class Trust:
    """Counts, by AE title, how many series in a row a PACS had completely from the start. The journal keeps it."""

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
        """Note that these counts are on disk."""
        for title in [title for title, series in news.items() if self._news.get(title) == series]:
            del self._news[title]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for all series of a gateway."""

    policy: IdlePolicy
    max_open_s: float
    gateway_id: str
    wall_clock: Callable[[float], datetime]
    pacs: Container[str]
    """The calling AE titles that can be asked."""
    patience_s: float
    """How long to wait for images that the PACS says are missing."""
    fetch: bool
    """If true, missing images are fetched."""
    trust: Trust
    extras: Container[str] = ()
    """The names of a site's own attributes."""


@dataclass(slots=True)
class OpenAssociation:
    """An open association, and what it has brought."""

    last: SeriesKey
    """The series of its last image."""
    images: int = 0
    series: set[SeriesKey] = field(default_factory=set)
    """The open series of which it brought images."""


@dataclass(slots=True)
class Said:
    """What the PACS has said about an open series. Times are loop time."""

    answer: Answer
    """Its last answer with a count."""
    here: int
    """How many images were here when it was asked."""
    since: float
    """When it first gave that count."""
    ahead: bool | None
    """True if its first answer counted more images than were here, not counting one that may be on its way.

    None if it counted more than were here when it was asked, but not more than were here when it answered. It may have
    received and forwarded those in between, so this proves nothing.
    """
    grew: bool = False
    """True if its count has grown since the first answer, so the PACS is itself still receiving."""

    @property
    def holds(self) -> bool:
        """Tell if the PACS seems to have had the whole series from the start. If not, it may still be receiving it."""
        return self.ahead is True and not self.grew


@dataclass(slots=True)
class OpenSeries:
    """A series that still receives images. `opened`, `last_seen` and all names that end in `_at` are loop time."""

    rules: Rules
    key: SeriesKey
    revision: int
    source: Source
    opened: float
    last_seen: float
    first_received_at: datetime
    last_received_at: datetime
    began_at: float
    """When its first image came. If that was before a restart, by the wall clock, but never after `opened`."""
    called_ae_title: str = ""

    previous: ClosedSeries | None = None
    """The previous revision, until an image comes that it did not have."""
    held_before: Mapping[str, None] = field(default_factory=dict)
    """The SOP Instance UIDs of earlier revisions, if they are remembered."""

    # The images that have come.
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecoded: dict[str, bytes] = field(default_factory=dict)
    doubtful: dict[str, None] = field(default_factory=dict)
    """How its images violate the standard, in the order in which that was found."""
    sop_instance_uids: dict[str, InstanceValues] = field(default_factory=dict)
    """The images, with the values that are kept of each."""
    sop_class_uid: str | None = None
    """The SOP Class of all images; '' if there are several, or images with several frames."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The numbers of images by tags that may count something else, by name (tag_counts.py)."""
    images_in_part: int = 0
    """How many images the last part that was posted has."""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Points of time, and how many images had come by then: the first one, and then every `arrivals_step`."""
    arrivals_step: int = 1
    timeline: list[TimelineEntry] = field(default_factory=list)

    # The associations that brought them.
    images_brought: dict[Association, int] = field(default_factory=dict)
    """How many images each association brought, whether it is open or not."""
    open_associations: dict[Association, OpenAssociation] = field(default_factory=dict)
    """The ones that are open."""
    aborted: bool = False
    """True if the one that ended last was aborted."""
    one_each: bool = True
    """True if no association that has ended brought more than one image, of any series."""
    followed: bool = False
    """True if its source has sent an image of another series since."""

    # Its silence.
    longest_s: dict[Phase, float] = field(default_factory=dict)
    """The longest silence in each phase that was ended by a new image."""
    unproven_s: dict[Phase, float] = field(default_factory=dict)
    """The longest silence in each phase since then that was ended by a repeated image."""
    idle_since: float = math.inf
    """When the idle time-out passed, and the grace period began."""
    idle_reasons: dict[str, str | float] = field(default_factory=dict)
    """The reasons for that decision."""

    # Its place in the collector's heap of deadlines.
    scheduled_at: float = math.inf
    """The time of its earliest entry."""
    scheduled_phase: Phase = Phase.OPEN
    """The phase for which that entry was made."""

    # What its PACS has said.
    ask_at: float = math.inf
    answers_since_image: int = 0
    asking: bool = False
    asked_at: float = -math.inf
    """When the last question was asked."""
    asked_about: int = 0
    """How many images were here when it was asked."""
    fetches: int = 0
    said: Said | None = None
    study_counts: CountsOfStudy | None = None
    """The counts of the study that it gave last."""
    problem: str | None = None
    """Why the last question to the PACS failed; None if it did not."""

    @classmethod
    def begin(
        cls, rules: Rules, first: Instance, now: float, revision: int, previous: ClosedSeries | None
    ) -> "OpenSeries":
        """Open a revision that begins with an image. The image itself is added by `add`."""
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
            began_at=now - (0.0 if first.association else _age_s(first, rules.wall_clock(now))),
            called_ae_title=first.called_ae_title,
            previous=previous,
            held_before=previous.held if previous else {},
        )

    # --- what comes ---

    def add(self, instance: Instance, now: float) -> None:
        """Add an image and what it says about its series. A repeated one only shows that the series is still sent."""
        if self.previous is not None and instance.sop_instance_uid not in self.previous.held:
            self._contradict(self.previous, instance, now)
        self.last_seen = now
        self.last_received_at = later(self.last_received_at, instance.received_at)
        self.first_received_at = min(self.first_received_at, self.last_received_at)  # the clock may have been set back
        values = self.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
        self._mark_arrival(now)
        self._learn(instance, values)
        self.doubtful.update(dict.fromkeys(instance.doubtful))
        self.idle_since = math.inf

    def _learn(self, instance: Instance, values: InstanceValues) -> None:
        """Add the attributes that are new, and compute anew what tags count if that may have changed."""
        more = news(instance.attributes, self.attributes)
        self.attributes |= more
        self.undecoded |= {keyword: instance.undecoded[keyword] for keyword in more if keyword in instance.undecoded}
        before, own = self.sop_class_uid, class_of_one_frame(values)
        self.sop_class_uid = own if before in (None, own) else ""
        if more or self.sop_class_uid != before:
            self.counts = tag_counts(self.attributes, self.sop_class_uid)

    def _contradict(self, previous: ClosedSeries, instance: Instance, now: float) -> None:
        """Note that an image came which the previous revision did not have, so that one was reported too early."""
        self.previous, late_s = None, now - previous.last_seen
        policy = self.rules.policy
        if not self.sop_instance_uids:  # otherwise the series was sent again, with more images
            policy.learn(previous.source, {previous.phase: late_s} if previous.taught else {})
        for count in tag_counts(instance.attributes, class_of_one_frame(instance_values(instance))):
            policy.learn_count(previous.source, count, right=False)
        if previous.verdict == "verified":
            self.rules.trust.set(self.source.calling_ae_title, 0)
        self.note("series.reopened", now, LateByS=round(late_s, 3), Verdict=previous.verdict)

    def _mark_arrival(self, now: float) -> None:
        """Remember when images came. The more images there are, the coarser the steps."""
        count = len(self.sop_instance_uids)
        if self.arrivals and count < self.arrivals[-1][1] + self.arrivals_step:
            return
        self.arrivals.append((now, count))
        if len(self.arrivals) == 2 * MAX_ARRIVALS:
            self.arrivals = self.arrivals[::2]
            self.arrivals_step *= 2

    def end_silence(self, instance: Instance, now: float) -> None:
        """Remember the silence that this image ended, by its phase. It ended with the image's first bytes."""
        phase = self.phase()
        began_at = instance.association.began_at if instance.association else None
        silence_s = (now if began_at is None else began_at) - self.last_seen
        self.unproven_s[phase] = max(self.unproven_s.get(phase, 0.0), silence_s)
        if instance.sop_instance_uid in self.sop_instance_uids:
            return  # a repeated image; only a new one shows that the series went on after this silence
        for phase, silence_s in self.unproven_s.items():
            self.longest_s[phase] = max(self.longest_s.get(phase, 0.0), silence_s)
        self.unproven_s.clear()

    def brought_by(self, association: Association, now: float) -> None:
        """Note which association brought an image."""
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
        """Note that an association which brought images has ended. That is a reason to ask the PACS sooner."""
        self.open_associations.pop(association, None)
        self.aborted = association.aborted
        self.one_each &= images == 1
        if self.ask_at < math.inf and not self.open_associations:
            soon = self.stands_at() if self.is_all() else max(now, self.asked_at + ASK_AFTER_S)
            self.ask_at = min(self.ask_at, soon)

    def note(self, event: str, now: float, **details: str | float | None) -> None:
        """Add an event to the timeline. If there are too many, the ones in the middle are dropped."""
        if len(self.timeline) == MAX_TIMELINE:
            del self.timeline[MAX_TIMELINE // 2]
        cut = {name: within_length(value) if isinstance(value, str) else value for name, value in details.items()}
        self.timeline.append(TimelineEntry(At=self.rules.wall_clock(now), Event=event, Details=cut))

    # --- its silence, and when that is over ---

    @property
    def idle_hit(self) -> bool:
        """Tell if the idle time-out has passed."""
        return self.idle_since < math.inf

    def phase(self) -> Phase:
        """Return the phase of its silence."""
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
        """Return when it counts as idle or, once it is idle, when its grace period ends.

        1. While the PACS is being asked, never.
        2. Before it is idle: the idle time-out after the last image, or after bytes of one that is coming.
        3. After that, in addition the grace period, but longer
           - if its PACS has more images, which may still come or be part of other gateways' reports;
           - if all images are here, until the count of the PACS has stayed the same for long enough.
        """
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
        """Begin the grace period: note that the idle time-out has passed, and why."""
        self.idle_since, self.idle_reasons = now, self.reasons()
        self.note("series.idle", now, **self.idle_reasons)

    def reasons(self) -> dict[str, str | float]:
        """Return the reasons for an idle decision at this moment."""
        return {
            "IdleTimeoutS": round(self.timeout_s(), 3),
            "Policy": self.rules.policy.name,
            "Phase": self.phase().value,
            "LearntFrom": self.rules.policy.known(self.source),
        }

    def waiting_for(self) -> WaitingFor:
        """Return what it waits for, in the words of a heartbeat."""
        if self.asking or self.has_more():
            return "for the PACS"
        if self.idle_hit:
            return "to be reported"
        return "for images" if self.phase() is Phase.OPEN else "for silence"

    def teach(self, phase: Phase, verdict: SeriesVerdict) -> None:
        """Let the idle policy and the trust in the PACS learn from a reported series.

        The policy learns all silences that an image ended. It learns the last silence only if the sender ended the
        series with it, and not, for example, a person.
        """
        policy = self.rules.policy
        ended = verdict in FINAL_VERDICTS and verdict != "declared" and not self.fetches
        if silences := ({phase: 0.0} if ended else {}) | self.longest_s:
            policy.learn(self.source, silences)
        for count, images in self.counts.items() if ended and self.revision == 1 else ():
            policy.learn_count(self.source, count, right=images == len(self.sop_instance_uids))
        if verdict == "verified" and self.said and self.said.holds:
            title, trust = self.source.calling_ae_title, self.rules.trust
            trust.set(title, min(trust.of(title) + 1, TRUSTED_AFTER))

    # --- how many images there should be ---

    def count_in_tags(self) -> int | None:
        """Return the number of images by tags that count the series; None if there are no such tags."""
        count = count_in(self.attributes, IMAGES_IN_SERIES)
        if count is not None or not self.counts:
            return count
        policy = self.rules.policy
        return next((images for name, images in self.counts.items() if policy.counts_series(self.source, name)), None)

    def other_counts(self) -> list[str]:
        """Return, in words, what tags count that is not known to be the number of images of a series."""
        of_series = self.rules.policy.counts_series
        counts = [count for count in TAG_COUNTS if count.name in self.counts and not of_series(self.source, count.name)]
        return [count.meaning.format(self.counts[count.name]) for count in counts]

    def missing(self) -> list[str]:
        """Return the SOP Instance UIDs that the PACS named as missing and that have not come since."""
        missing = self.said.answer.missing if self.said else ()
        return [uid for uid in missing if uid not in self.sop_instance_uids]

    def lacking(self) -> int | None:
        """Return how many images the PACS has that we do not have, by its last answer; None without an answer."""
        if self.said is None:
            return None
        answer = self.said.answer
        return (answer.count or 0) - answer.known - (len(self.sop_instance_uids) - self.said.here)

    def is_all(self) -> bool:
        """Tell if as many images are known as the PACS last said it has."""
        return self.lacking() == 0

    def has_more(self) -> bool:
        """Tell if the PACS has images that we do not have."""
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
        """Return when to ask the PACS again.

        1. If all images are here: when its count has stayed the same for long enough.
        2. If it was never asked: at once.
        3. Otherwise after a pause, which doubles with each answer that came without a new image.
        """
        stands_at = self.stands_at() if self.is_all() and self.problem is None else -math.inf
        if stands_at > now:
            return stands_at
        never_asked = self.asked_at == -math.inf
        if never_asked or (not self.answers_since_image and stands_at > -math.inf):
            return min(now, self.ask_at)
        return now + min(ASK_AFTER_S * 2.0 ** max(self.answers_since_image - 1, 0), ASK_AGAIN_MAX_S)

    def ask_sooner(self, at: float) -> None:
        """Ask the PACS at this time, if that is sooner than planned."""
        self.ask_at = min(self.ask_at, at)

    def take_answer(self, answer: Answer, now: float) -> None:
        """Take an answer of the PACS, or note its failure."""
        of_study = (
            {"StudySeries": answer.study.Series, "StudyInstances": answer.study.Instances} if answer.study else {}
        )
        self.study_counts = answer.study or self.study_counts
        self.note(
            "pacs.answered",
            now,
            PACS=answer.pacs,
            Count=answer.count,
            Known=answer.known,
            Missing=len(answer.missing),
            Fetched=answer.fetched,
            Problem=answer.problem,
            **of_study,
        )
        self.asking = False
        self.problem = None if answer.confirmed else answer.problem
        if answer.count is not None:  # otherwise its previous answer still counts
            self._take_count(answer, answer.count, now)

    def _take_count(self, answer: Answer, count: int, now: float) -> None:
        """Remember the largest count of the PACS, since when it gives that, and if it is itself still receiving."""
        said = self.said
        if said is None:
            came = len(self.sop_instance_uids) - self.asked_about
            lead = count - answer.known - 1
            ahead = True if lead > came else None if lead > 0 else False
            self.said = Said(answer, self.asked_about, now, ahead)
            return
        if count < (said.answer.count or 0):
            return  # a smaller count is ignored, as if this question had failed
        if count > (said.answer.count or 0):
            said.since, said.grew = now, True
            self.rules.trust.set(self.source.calling_ae_title, 0)
        said.answer, said.here = answer, self.asked_about

    def is_verified(self) -> bool:
        """Tell if the PACS has exactly the known images, and said so after its count had been stable long enough."""
        if self.said is None or self.problem is not None or self.asked_at < self.stands_at():
            return False
        answer = self.said.answer
        return answer.confirmed and answer.here == self.sop_instance_uids.keys()

    def stands_at(self) -> float:
        """Return when the count of the PACS has stayed the same for so long that an answer from then on may verify it.

        1. Without an answer: never.
        2. If the PACS is trusted, and had this series from the start: at once.
        3. If it is trusted, and this cannot be told: after the idle time-out.
        4. Otherwise later, since the PACS may itself still be receiving, and then counts only what it has so far.
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
        """Tell if the images that only the PACS has may be fetched."""
        return self.rules.fetch and self.fetches < FETCHES and self.has_more()

    def should_ask_again(self) -> bool:
        """Tell if another question may verify an idle series, or fetch its missing images."""
        not_asked_since = self.asked_at < self.stands_at()
        return self.may_fetch() or (self.is_all() and self.problem is None and not_asked_since)

    def is_a_part(self) -> bool:
        """Tell if others have images of it, and the images here were not reported as a part yet."""
        said = self.said
        others_hold_some = said is not None and (self.has_more() or said.answer.known > said.here)
        return others_hold_some and not self.may_fetch() and self.images_in_part != len(self.sop_instance_uids)


def _age_s(instance: Instance, now: datetime) -> float:
    return max((now - instance.received_at).total_seconds(), 0.0)


def within_length(text: str) -> str:
    """Return a text in valid Unicode, and as short as a report requires."""
    return text.encode("utf-8", "replace").decode()[:TEXT_LENGTH]

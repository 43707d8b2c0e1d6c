"""Decide which images make a series, and when it is reported: `SeriesCollector`. No I/O; the time is passed in.

`OpenSeries` holds what has come of a series, and computes when it counts as over. reporting.py makes its report.
closed_series.py remembers reported series, which late images are compared with.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from dicom.header import instance_values
from gateway import reporting
from gateway.clock import later
from gateway.closed_series import REMEMBERED_S, ClosedSeries, ClosedSeriesMemory
from gateway.held_studies import HeldStudies
from gateway.idle import IdlePolicy, Phase, Source
from gateway.open_series import OpenAssociation, OpenSeries, Rules, Trust
from gateway.questions import Answer, Question
from models import MAX_HEARD, ArrivingSeries, Association, HeardSource, Instance, SeriesKey, SeriesReport, SeriesVerdict

DUE_AT_ONCE = 100  # most reports that are made and filed before the inbox is read again


class Failure(NamedTuple):
    """A full report that could not be made."""

    key: SeriesKey
    revision: int
    error: Exception
    set_aside: Sequence[str] = ()
    """The images, if not even the minimal report could be made. Empty if it was made instead."""


class SeriesCollector:
    """Groups instances by series, and decides when each series is reported. The time is always passed in.

    A report with a verdict closes the series. A later instance opens its next revision, which has only what came since.
    A report without a verdict is a part; its series stays open.
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
        extras: Container[str] = (),
        held: HeldStudies | None = None,
    ) -> None:
        """Begin with no open series.

        `pacs` are the calling AE titles that can be asked; `patience_s` is how long to wait for images that they say
        are missing. `revisions` and `trust` are of an earlier run; `trust` counts series in a row that a PACS had
        completely from the start. `extras` are the names of a site's own attributes. `held` holds the studies of open
        series.
        """
        self.policy = policy
        self._rules = Rules(policy, max_open_s, gateway_id, wall_clock, pacs, patience_s, fetch, Trust(trust), extras)
        self._held = HeldStudies() if held is None else held
        self._open: dict[SeriesKey, OpenSeries] = {}
        self._closed = ClosedSeriesMemory(remember_s, revisions)
        self._associations: dict[Association, OpenAssociation] = {}  # open ones only
        self._latest: dict[Source, SeriesKey] = {}  # the open series that each source sent to last
        self._heard: dict[Source, datetime] = {}  # when the last image of each source came, the latest at the end
        self._questions: list[Question] = []
        self._failures: list[Failure] = []
        self._broken: list[tuple[OpenSeries, Exception]] = []
        # Each open series has at least one entry that is not later than its deadline. The number breaks ties.
        self._deadlines: list[tuple[float, int, SeriesKey]] = []
        self._numbers = itertools.count()

    # --- what happens ---

    def observe(self, instance: Instance, now: float) -> None:
        """Add an instance to its series. A repeated one counts once, but shows that the series is still being sent."""
        try:
            self._observe(instance, now)
        except Exception as error:  # a bug of ours, as in `_or_least`
            series = self._open.get(instance.key) or self._begin(instance, now)
            series.sop_instance_uids.setdefault(instance.sop_instance_uid, instance_values(instance))
            self._broken.append((series, error))

    def _observe(self, instance: Instance, now: float) -> None:
        series = self._open.get(instance.key)
        if series is None:
            series = self._begin(instance, now)
        elif not series.fetches:  # a silence that our own fetching ended says nothing about the sender
            series.end_silence(instance, now)
        series.add(instance, now)
        self._note_source(series)
        self._note_association(instance.association, series, now)
        self._note_latest(series)
        if series.source.calling_ae_title in self._rules.pacs:
            series.answers_since_image = 0
            series.ask_at = series.ask_next(now)
        first = series.scheduled_at == math.inf
        if first or series.ask_at < math.inf or series.phase() is not series.scheduled_phase:
            self._schedule(series)  # otherwise the deadline is only later than before

    def _begin(self, instance: Instance, now: float) -> OpenSeries:
        revision, previous = self._closed.take(instance.key, now)
        series = self._open[instance.key] = OpenSeries.begin(self._rules, instance, now, revision + 1, previous)
        self._held.take(instance.study_instance_uid)
        return series

    def _note_source(self, series: OpenSeries) -> None:
        """Remember when its source was last heard. Beyond MAX_HEARD, the longest silent one is dropped."""
        before = self._heard.pop(series.source, series.last_received_at)
        self._heard[series.source] = later(before, series.last_received_at)
        if len(self._heard) > MAX_HEARD:
            del self._heard[next(iter(self._heard))]

    def _note_association(self, association: Association | None, series: OpenSeries, now: float) -> None:
        """Note which association brought an image. The series that it brought before may now be over sooner."""
        if association is None:
            return
        series.brought_by(association, now)
        if association.released_at is not None:
            return
        one = self._associations.setdefault(association, OpenAssociation(series.key))
        before, one.last = one.last, series.key
        one.images += 1
        one.series.add(series.key)
        series.open_associations[association] = one
        if before != series.key and before in self._open:
            self._schedule(self._open[before])

    def _note_latest(self, series: OpenSeries) -> None:
        """Note which series its source sends now. The series that it sent before may now be over sooner."""
        latest = self._latest.get(series.source)
        series.followed = False
        if latest == series.key:
            return
        self._latest[series.source] = series.key
        if latest is not None:
            self._open[latest].followed = True
            self._schedule(self._open[latest])

    def released(self, association: Association, now: float) -> None:
        """Note that an association ended. That shortens the wait of its series, and is a reason to ask the PACS."""
        if (one := self._associations.pop(association, None)) is None:
            return
        for series in [self._open[key] for key in one.series]:
            series.released(association, one.images, now)
            self._schedule(series)

    def answered(self, key: SeriesKey, answer: Answer, now: float) -> list[SeriesReport]:
        """Take an answer of the PACS, or its failure. If it verifies the series, close and report that at once."""
        series = self._open.get(key)
        if series is None or answer.revision != series.revision:  # the revision was reported in the meantime
            return []
        return self._or_least(series, self._take_answer, answer, now)

    def _take_answer(self, series: OpenSeries, answer: Answer, now: float) -> list[SeriesReport]:
        series.take_answer(answer, now)
        if answer.count is not None and series.is_verified():
            return self._close(series, "verified", now)
        series.answers_since_image += 1
        series.ask_sooner(now if answer.fetched else series.ask_next(now))
        self._schedule(series)
        return []

    # --- what is due ---

    def next_deadline(self) -> float | None:
        """Return the loop time before which no series is due; None if no series is open. O(1) amortised."""
        while self._deadlines:
            scheduled_at, _, key = self._deadlines[0]
            series = self._open.get(key)
            if series is not None and scheduled_at == series.scheduled_at:
                return scheduled_at
            heapq.heappop(self._deadlines)  # its series was reported, or has an earlier entry
        return None

    def due(self, now: float) -> list[SeriesReport]:
        """Close and report series whose deadline has passed, at most DUE_AT_ONCE."""
        reports = self._least_of_broken()
        while len(reports) < DUE_AT_ONCE and (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, key = heapq.heappop(self._deadlines)
            reports += self._or_least(self._open[key], self._look, now)
        return reports

    def drain(self, now: float, study_instance_uid: str | None = None) -> list[SeriesReport]:
        """Close and report every open series, or every one of a study, due or not."""
        broken = self._least_of_broken()
        every = study_instance_uid is None
        meant = [one for one in self._open.values() if every or one.key.study_instance_uid == study_instance_uid]
        return broken + [report for one in meant for report in self._or_least(one, self._close, "drained", now)]

    def declare(self, series_instance_uid: str, given_at: float, now: float) -> list[SeriesReport]:
        """Close and report a series that was open before `given_at`, since a person declared it complete."""
        of_series = [series for key, series in self._open.items() if key.series_instance_uid == series_instance_uid]
        meant = [series for series in of_series if series.began_at <= given_at]
        return [report for series in meant for report in self._or_least(series, self._close, "declared", now)]

    def _schedule(self, series: OpenSeries, *, again: bool = False) -> None:
        """Put the deadline on the heap, if it is earlier than the series' entry, or if there is none (`again`)."""
        deadline, series.scheduled_phase = series.deadline(), series.phase()
        if again or deadline < series.scheduled_at:
            series.scheduled_at = deadline
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), series.key))

    # --- deciding ---

    def _look(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """Decide about a series if its deadline has come; put its next deadline on the heap if it stays open."""
        reports = self._decide(series, now) if series.deadline() <= now else []
        if self._open.get(series.key) is series:  # images came since, or it now waits for something else
            self._schedule(series, again=True)
        return reports

    def _decide(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """Decide what to do about a series whose deadline has come.

        1. Ask the PACS, if it is time for that.
        2. While the series is not idle, keep waiting, but not beyond `max_open_s`.
        3. Once it is idle, begin its grace period. If other gateways have the rest of it, report a part.
        4. After the grace period, report it, unless another question to the PACS may verify it or fetch images.
        """
        if series.ask_at <= now and not series.asking:
            self._questions.append(series.ask(now, fetch=False))
        if series.idle_at() > now:
            return self._close(series, "capped", now) if series.opened + self._rules.max_open_s <= now else []
        if not series.idle_hit:
            series.begin_grace(now)
            return self._part(series, now) if series.is_a_part() else []
        if series.is_verified():  # by an answer that came before the PACS was trusted
            return self._close(series, "verified", now)
        if series.should_ask_again():
            self._questions.append(series.ask(now, fetch=series.may_fetch()))
            return []
        return self._close(series, "expected" if series.phase() is Phase.COUNTED else "idle", now)

    def _part(self, series: OpenSeries, now: float) -> list[SeriesReport]:
        """Report the images here of a series that has more elsewhere, since other gateways may wait for them."""
        series.images_in_part = len(series.sop_instance_uids)
        series.note("series.parted", now, Images=series.images_in_part)
        return self._report(series, None, "a part: the PACS has more")

    def _close(self, series: OpenSeries, verdict: SeriesVerdict, now: float) -> list[SeriesReport]:
        """Report a revision, learn from it, and remember it."""
        phase, basis = series.phase(), reporting.basis_of(series, verdict, now)
        reporting.note_end(series, verdict, now)
        reports = self._report(series, verdict, basis)
        self._forget(series)
        series.teach(phase, verdict)
        self._remember(series, phase, verdict, now)
        return reports

    def _forget(self, series: OpenSeries) -> None:
        """Remove a series from the open ones."""
        if self._open.pop(series.key, None) is not None:
            self._held.let_go(series.key.study_instance_uid)
        for association in series.open_associations.values():
            association.series.discard(series.key)
        if self._latest.get(series.source) == series.key:
            del self._latest[series.source]

    def _remember(self, series: OpenSeries, phase: Phase, verdict: SeriesVerdict, now: float) -> None:
        held = {**series.held_before, **dict.fromkeys(series.sop_instance_uids)}
        taught = not series.fetches
        closed = ClosedSeries(series.revision, series.source, phase, series.last_seen, now, verdict, taught, held)
        self._closed.add(series.key, closed, now)

    # --- where something of ours goes wrong ---

    def _report(self, series: OpenSeries, verdict: SeriesVerdict | None, basis: str) -> list[SeriesReport]:
        """Make the full report, or the minimal one if that fails because of something that a stranger sent."""
        try:
            return [reporting.full_report(series, verdict, basis)]
        except Exception as error:  # a second line of defence: input is checked where it comes in
            return self._least_report(series, verdict and "idle", error)

    def _least_report(self, series: OpenSeries, verdict: SeriesVerdict | None, error: Exception) -> list[SeriesReport]:
        """Make the minimal report. If even that fails, return none, and note the images to be set aside."""
        try:
            report = reporting.least_report(series, verdict)
        except Exception as worse:
            self._failures.append(Failure(series.key, series.revision, worse, sorted(series.sop_instance_uids)))
            return []
        self._failures.append(Failure(series.key, series.revision, error))
        return [report]

    def _or_least(
        self, series: OpenSeries, work: Callable[..., list[SeriesReport]], *arguments: Any
    ) -> list[SeriesReport]:
        """Run `work` on a series. If it raises, report the series minimally, so that no other series is affected."""
        try:
            return work(series, *arguments)
        except Exception as error:
            self._forget(series)
            self._remember(series, Phase.OPEN, "idle", series.last_seen)
            return self._least_report(series, "idle", error)

    def _least_of_broken(self) -> list[SeriesReport]:
        """Make the minimal reports of series for which `observe` failed."""
        broken, self._broken = self._broken, []
        return [report for series, error in broken for report in self._or_least(series, _fail, error)]

    # --- what others want to know ---

    def questions(self) -> list[Question]:
        """Return the questions that came up since the last call."""
        questions, self._questions = self._questions, []
        return questions

    def failures(self) -> list[Failure]:
        """Return the failures since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def trust_news(self) -> dict[str, int]:
        """Return, by PACS, how many series in a row it had completely from the start; only changes since `kept`."""
        return self._rules.trust.news()

    def kept(self, learnt: Mapping[Source, str | None], trust: Mapping[str, int]) -> None:
        """Note that these changes of the policy and of trust are on disk."""
        self.policy.kept(learnt)
        self._rules.trust.kept(trust)

    @property
    def open_series(self) -> int:
        """Return how many series are open."""
        return len(self._open)

    @property
    def remembered_images(self) -> int:
        """Return how many images of closed series are remembered."""
        return self._closed.images

    def arriving(self, most: int) -> list[ArrivingSeries]:
        """Return up to `most` open series, the latest images first."""
        latest = heapq.nlargest(most, self._open.values(), key=lambda series: series.last_seen)
        return [reporting.arriving(series) for series in latest]

    def heard(self) -> list[HeardSource]:
        """Return the sources that were heard since the start, and what was learnt about each."""
        return [
            HeardSource.model_construct(
                Source=source.name,
                LastReceivedAt=at,
                LearntFrom=self.policy.known(source),
                WaitS={phase.value: round(s, 3) for phase, s in self.policy.learnt_s(source).items()},
            )
            for source, at in self._heard.items()
        ]


def _fail(_: OpenSeries, error: Exception) -> list[SeriesReport]:
    raise error

"""Plays what gateways report of a trace through the rules for studies, in virtual time, and judges what these say.

First every gateway's collector takes its part of the trace (bench/simulation.py): that says when each series is
reported, and when its PACS was asked. Then each policy decides about the studies from these reports.
"""

import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

from bench.simulation import EPOCH, Candidate, Run, SimulatedPacs, new_images
from bench.study_sites import StudyPlace
from bench.traces import Event
from models import FINAL_VERDICTS
from storage.study_silence import MAX_KINDS, Study, ended, learn, timeout_s

HEARD_S = 1.0  # until the server knows of a series that has begun: a heartbeat
TOLD_S = 0.1  # until it has a report
MAX_OPEN_S = 86_400.0  # SERVER_STUDY_MAX_OPEN_S
TRUSTED_AFTER = 10


# --- what is known of a trace ----------------------------------------------------------------------------------


class Counts(NamedTuple):
    """What a PACS says of a study."""

    series: int
    images: int


class Report(NamedTuple):
    """What a gateway tells the server of a series, and when."""

    t: float
    study: str
    series: str
    source: str
    kind: str
    group: str
    final: bool
    images: int
    """New ones."""
    first: float
    last: float
    counts: Counts | None


@dataclass
class Heard:
    """One run, as the server hears of it."""

    reports: list[Report]
    open: dict[str, list[tuple[float, float]]]
    """By study: from when to when the server knows that a gateway has a series of it open."""
    series: Mapping[str, Sequence[Sequence[float]]]
    """By study: when the new images of each of its series came."""
    counts: Callable[[str, float], Counts] | None
    """What the PACS says of a study then; without a PACS None."""
    required: Mapping[str, frozenset[str]]
    """The kinds of series that a group of studies needs."""

    @cached_property
    def images(self) -> dict[str, list[float]]:
        """When the new images of each study came, in order."""
        return {study: sorted(t for times in some for t in times) for study, some in self.series.items()}


def heard(place: StudyPlace, candidate: Candidate) -> Heard:
    """Play a run through a collector for each gateway, and keep what the server hears."""
    events = place.sorted()
    firsts = {e.series: e for e in reversed(events) if e.event == "image"}
    times = new_images(events)
    of_study: dict[str, list[str]] = defaultdict(list)
    for series in times:
        of_study[_study(firsts[series])].append(series)
    pacs = SimulatedPacs(events, place.growing, place.whole)

    def count(study: str, at: float) -> Counts:
        each = [n for series in of_study[study] if (n := pacs.count(series, at))]
        return Counts(len(each), sum(each))

    reports: list[Report] = []
    for gateway in sorted({event.gateway for event in events}):
        run = Run([e for e in events if e.gateway == gateway], candidate, place.growing, place.whole)
        run.play()
        reports += _reports(run, firsts, times, count)
    reports.sort(key=lambda report: report.t)
    is_open: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for report in reports:
        is_open[report.study].append((report.first + HEARD_S, report.t))
    of_series = {study: [times[one] for one in some] for study, some in of_study.items()}
    return Heard(reports, is_open, of_series, count if candidate.asks else None, place.required)


def _reports(
    run: Run, firsts: Mapping[str, Event], times: Mapping[str, Sequence[float]], count: Callable[[str, float], Counts]
) -> Iterator[Report]:
    asked: dict[str, list[float]] = defaultdict(list)
    for at, series in run.answers:
        asked[series].append(at)
    for at, report in run.reports:
        event = firsts[report.SeriesInstanceUID]
        first, last = (
            (each - EPOCH).total_seconds() for each in (report.FirstReceivedAt, report.LastReceivedAt) if each
        )
        before = [t for t in asked[event.series] if t <= at]
        yield Report(
            at + TOLD_S,
            _study(event),
            event.series,
            " ".join(filter(None, (event.ae, event.modality, event.station))),
            event.kind,
            event.group,
            report.Verdict in FINAL_VERDICTS,
            sum(first - 1e-3 <= t <= last + 1e-3 for t in times[event.series]),
            first,
            last,
            count(_study(event), before[-1]) if before else None,
        )


def _study(event: Event) -> str:
    return event.study or event.series


# --- outcomes --------------------------------------------------------------------------------------------------


@dataclass
class StudyOutcome:
    """What a policy said of studies, over all runs."""

    studies: int = 0
    false: int = 0
    """Verdicts that a later new image contradicted."""
    false_verified: int = 0
    verified: int = 0
    capped: int = 0
    latencies_s: list[float] = field(default_factory=list)
    """From each study's last new image to the first verdict after it."""

    def __iadd__(self, other: "StudyOutcome") -> "StudyOutcome":
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self

    @property
    def false_per_1000(self) -> float:
        return 1000 * self.false / self.studies

    def latency_s(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_s * 2, n=100)[percent - 1]  # twice, for it needs two


Told = list[tuple[float, str]]
"""The verdicts about a study, and when they were told."""


def outcome_of(last: float, told: Told) -> StudyOutcome:
    """Judge what was told of one study, whose last new image came then."""
    standing = [at for at, _ in told if at >= last]
    if not standing:
        raise AssertionError(f"a study whose last image came at {last} got no verdict after it")
    false = [verdict for at, verdict in told if at < last and verdict != "capped"]
    return StudyOutcome(
        studies=1,
        false=len(false),
        false_verified=false.count("verified"),
        verified=told[-1][1] == "verified",
        capped=any(verdict == "capped" for _, verdict in told),
        latencies_s=[standing[0] - last],
    )


# --- policies --------------------------------------------------------------------------------------------------


def stable(silence_s: float, heard: Heard) -> dict[str, Told]:
    """Take a study to be complete once nothing has come to it for so long, as Orthanc's StableAge does."""
    return {
        study: [(at + silence_s, "idle") for at, then in pairwise([*times, math.inf]) if then - at > silence_s]
        for study, times in heard.images.items()
    }


def mercure(heard: Heard) -> dict[str, Told]:
    """Take a series for complete after 60 s, a study 900 s after its last such series, 5400 s after it began by force.

    It begins anew with what comes after that.
    """
    told = {}
    for study, some in heard.series.items():
        spans = sorted(span for times in some for span in _spans(times, 60.0))
        told[study] = list(_mercure(spans))
    return told


def _mercure(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, str]]:
    """`spans`: from when to when a series was open."""
    began, complete = spans[0][1], -math.inf
    for n, (_, closed) in enumerate(spans):
        complete = max(complete, closed)
        then = spans[n + 1][0] if n + 1 < len(spans) else math.inf
        due = min(complete + 900.0, max(began + 5400.0, complete))
        if due < then:
            yield due, "idle"
            began, complete = (spans[n + 1][1], -math.inf) if n + 1 < len(spans) else (0.0, 0.0)


def _spans(times: Sequence[float], idle_s: float) -> Iterator[tuple[float, float]]:
    first = times[0]
    for at, then in pairwise([*times, math.inf]):
        if then - at > idle_s:
            yield first, at + idle_s
            first = then


@dataclass
class Row:
    """What the server keeps of a study."""

    source: str
    group: str
    first: float
    last: float
    kinds: set[str] = field(default_factory=set)
    series: dict[str, bool] = field(default_factory=dict)
    """If the last verdict of each is final."""
    images: int = 0
    counts: Counts | None = None
    ahead: bool = False
    """The PACS had more series than had begun here when it was first asked."""
    grew: bool = False
    told: Told = field(default_factory=list)
    verdict: str | None = None

    @property
    def known(self) -> Counts:
        return Counts(len(self.series), self.images)

    @property
    def so_far(self) -> Study:
        return Study(self.kinds, self.group)


class Server:
    """Decides about studies by the rules of ours: a model of storage/study_rules.py."""

    def __init__(self, heard: Heard, *, required: bool = False) -> None:
        self._heard = heard
        self._required = heard.required if required else {}
        self._rows: dict[str, Row] = {}
        self._learnt: dict[str, dict[str, Any]] = defaultdict(dict)
        self._trust: dict[str, int] = defaultdict(int)
        self._due: list[tuple[float, str]] = []

    def play(self) -> dict[str, Told]:
        """Take all reports, and return what is told of each study."""
        for report in self._heard.reports:
            self._until(report.t)
            self._take(report)
        self._until(math.inf)
        return {study: row.told for study, row in self._rows.items()}

    def _until(self, t: float) -> None:
        while self._due and self._due[0][0] < t:
            at, study = heapq.heappop(self._due)
            self._decide(study, at)

    def _take(self, report: Report) -> None:
        row = self._rows.get(report.study)
        if row is None:
            row = self._rows[report.study] = Row(report.source, report.group, report.first, report.first)
        learnt = self._learnt[row.source]
        if report.first > row.last:
            self._learnt[row.source] = learn(learnt, report.first - row.last, row.so_far, report.kind)
        if report.images and row.verdict is not None:
            self._trust[row.source] = 0 if row.verdict == "verified" else self._trust[row.source]
            row.verdict = None
        row.first, row.last = min(row.first, report.first), max(row.last, report.last)
        row.series[report.series] = report.final
        row.images += report.images
        if len(row.kinds) < MAX_KINDS:
            row.kinds.add(report.kind)
        if report.counts:
            self._count(report.study, row, report.counts, report.t)
        self._decide(report.study, report.t)

    def _count(self, study: str, row: Row, counts: Counts, t: float) -> None:
        if row.counts is None:
            row.ahead = counts.series > len(row.series) + self._open(study, t)
        elif counts > row.counts:
            row.grew = True
            if row.ahead:
                self._trust[row.source] = 0
        row.counts = counts

    def _open(self, study: str, t: float) -> int:
        return sum(since <= t < until for since, until in self._heard.open[study])

    def _decide(self, study: str, t: float) -> None:
        row = self._rows[study]
        if row.verdict is not None:
            return
        if t >= row.first + MAX_OPEN_S:
            self._tell(row, t, "capped")
        elif all(row.series.values()) and not self._open(study, t):
            verdict, due = self._verdict(study, row, t)
            if verdict is not None:
                self._tell(row, t, verdict)
            else:
                heapq.heappush(self._due, (min(due, row.first + MAX_OPEN_S), study))

    def _verdict(self, study: str, row: Row, t: float) -> tuple[str | None, float]:
        """Return a verdict, or when to decide again."""
        silent_s = timeout_s(self._learnt[row.source], row.so_far)
        needed = self._required.get(row.group)
        if row.counts == row.known and self._trust[row.source] >= TRUSTED_AFTER and row.ahead and not row.grew:
            return "verified", t
        if needed and needed <= row.kinds:
            return "expected", t
        if needed:
            return None, math.inf
        if t < row.last + silent_s:
            return None, row.last + silent_s
        if self._heard.counts is None:
            return "idle", t
        self._count(study, row, self._heard.counts(study, t), t)
        if row.counts == row.known:
            if row.ahead and not row.grew:
                self._trust[row.source] += 1
            return "verified", t
        return None, t + silent_s

    def _tell(self, row: Row, t: float, verdict: str) -> None:
        row.verdict = verdict
        if not row.told:
            self._learnt[row.source] = ended(self._learnt[row.source], row.so_far)
        row.told.append((t, verdict))


def judge(heard: Heard, policy: Callable[[Heard], dict[str, Told]]) -> StudyOutcome:
    """Say what a policy does on one run."""
    outcome = StudyOutcome()
    for study, told in policy(heard).items():
        outcome += outcome_of(heard.images[study][-1], told)
    return outcome


def ours(heard: Heard) -> dict[str, Told]:
    """Decide by what is learnt of a source's silences, and by its PACS, if that can be asked."""
    return Server(heard).play()


def ours_required(heard: Heard) -> dict[str, Told]:
    """The same, where somebody has said which series a study needs."""
    return Server(heard, required=True).play()


POLICIES: dict[str, Callable[[Heard], dict[str, Told]]] = {
    **{f"fixed {seconds} s": partial(stable, seconds) for seconds in (60, 300, 900)},
    "mercure": mercure,
    "ours": ours,
    "ours, required series": ours_required,
}

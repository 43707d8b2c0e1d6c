"""Plays one trace through the gateway's collector in virtual time, and judges what it said about each series."""

import heapq
import itertools
import math
import multiprocessing
import os
import random
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from bench.traces import Event
from common.settings import GatewaySettings
from gateway.collector import SeriesCollector
from gateway.idle import IdlePolicy
from gateway.questions import Answer, Question
from models import Association, Instance, SeriesReport

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ANSWER_S = 0.05  # the simulated PACS takes to answer; a real Orthanc took 0.02 to 0.1 s
AHEAD_S = 0.05, 1.0  # how long a PACS that forwards as it receives has an image before it has come here
COUNTED = ("idle", "expected", "verified")  # verdicts that say that a series is over


@contextmanager
def all_cores(runs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` with a process for each core, or without one for a single run."""
    if runs == 1:
        yield map
        return
    with ProcessPoolExecutor(min(runs, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def shipped(setting: str) -> float:
    """The default of a setting in seconds, so that what is measured is what ships."""
    return float(GatewaySettings.model_fields[setting].default)


MAX_OPEN_S, MISSING_TIMEOUT_S = shipped("max_open_s"), shipped("missing_timeout_s")


@dataclass(frozen=True)
class Candidate:
    """A policy to judge, made anew for every run."""

    name: str
    make: Callable[[], IdlePolicy]
    asks: bool = False


@dataclass
class Verdicts:
    """What a policy said of series, or of studies, over all runs."""

    false: int = 0
    """Verdicts that a later new image contradicted."""
    false_verified: int = 0
    """Those of them that said `verified`."""
    verified: int = 0
    """How many have `verified` as their last verdict."""
    capped: int = 0
    """How many were reported as capped."""
    latencies_s: list[float] = field(default_factory=list)
    """From the last new image of each to the first verdict after it."""

    def __iadd__(self, other: Self) -> Self:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self

    @property
    def judged(self) -> int:
        """Return how many got verdicts: each has one latency."""
        return len(self.latencies_s)

    @property
    def false_per_1000(self) -> float:
        return 1000 * self.false / self.judged

    def latency_s(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_s * 2, n=100)[percent - 1]  # twice, for it needs two


@dataclass
class Outcome(Verdicts):
    """What a policy did with series."""

    series: int = 0
    after_capped: int = 0
    """New images of those that were capped, which came after it."""
    questions: int = 0

    @property
    def mean_s(self) -> float:
        return statistics.fmean(self.latencies_s)


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Return all of them as one."""
    together = Outcome()
    for outcome in outcomes:
        together += outcome
    return together


class SimulatedPacs:
    """Answers with how many images of a series it has at that moment."""

    def __init__(self, events: Sequence[Event], growing: Collection[str], whole: Collection[str] = ()) -> None:
        """It receives the series `growing` while it forwards them, and has all of the others from the start.

        Those of the growing that are `whole` it forwards once it has all of their images.
        """
        rng = random.Random(len(events))
        self._has: dict[str, list[float]] = {}
        for series, times in new_images(events).items():
            came = [times[0]] * len(times) if series in whole else times
            grows = series in growing
            self._has[series] = sorted(at - rng.uniform(*AHEAD_S) if grows else -math.inf for at in came)

    def count(self, series: str, at: float) -> int:
        """Return how many it has."""
        return bisect_right(self._has[series], at)


def new_images(events: Iterable[Event]) -> dict[str, list[float]]:
    """Return when each image of each series came first: one that is sent again contradicts nothing."""
    seen: set[tuple[str, str]] = set()
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.event == "image" and (event.series, event.sop) not in seen:
            seen.add((event.series, event.sop))
            times[event.series].append(event.t)
    return times


class Run:
    """One trace through one collector, in virtual time."""

    def __init__(
        self,
        events: Sequence[Event],
        candidate: Candidate,
        growing: Collection[str] = (),
        whole: Collection[str] = (),
    ) -> None:
        self._events, self._asks = events, candidate.asks
        self._pacs = SimulatedPacs(events, growing, whole)
        self._associations: dict[int, Association] = {}
        self._seen: dict[str, set[str]] = defaultdict(set)
        self._answers: list[tuple[float, int, Question, Answer]] = []
        self._numbers = itertools.count()
        self._collector = SeriesCollector(
            policy=candidate.make(),
            max_open_s=MAX_OPEN_S,
            gateway_id="simulated",
            wall_clock=lambda at: EPOCH + timedelta(seconds=at),
            pacs={event.ae for event in events} if candidate.asks else (),
            patience_s=MISSING_TIMEOUT_S,
        )
        self.reports: list[tuple[float, SeriesReport]] = []
        self.answers: list[tuple[float, str]] = []
        """When the PACS said something of which series."""
        self._now = -math.inf

    def judge(self) -> Outcome:
        """Play the trace to its end and say what came of it."""
        self.play()
        verdicts: dict[str, list[tuple[float, str | None]]] = defaultdict(list)
        for at, report in self.reports:
            verdicts[report.SeriesInstanceUID].append((at, report.Verdict))
        outcomes = [verdicts_of(times, verdicts[series]) for series, times in new_images(self._events).items()]
        return total([*outcomes, Outcome(questions=len(self.answers))])

    def play(self) -> None:
        """Play the trace to its end."""
        for event in self._events:
            self._until(event.t)
            self._happen(event)
        self._until(math.inf)

    def _until(self, t: float) -> None:
        """Let pass what falls due before `t`."""
        while True:
            deadline = self._collector.next_deadline()
            answer_at = self._answers[0][0] if self._answers else math.inf
            due_at = min(math.inf if deadline is None else deadline, answer_at)
            if due_at >= t or due_at == math.inf:
                break
            self._now = now = max(self._now, due_at)  # what was due already is due at once
            if answer_at == due_at:
                _, _, question, answer = heapq.heappop(self._answers)
                self._reported(self._collector.answered(question.key, answer, now), now)
            self._reported(self._collector.due(now), now)
            self._ask(now)
        self._now = t

    def _reported(self, reports: Iterable[SeriesReport], now: float) -> None:
        for failure in self._collector.failures():
            raise failure.error
        self.reports += [(now, report) for report in reports]

    def _happen(self, event: Event) -> None:
        if event.event == "opened":
            self._associations[event.association] = Association(event.association, event.ae, "", event.t)
        elif event.event == "image":
            self._seen[event.series].add(event.sop)
            self._collector.observe(self._instance(event), event.t)
        elif event.association in self._associations:
            association = self._associations.pop(event.association)
            association.released_at, association.aborted = event.t, event.event == "aborted"
            self._collector.released(association, event.t)
        self._ask(event.t)

    def _instance(self, event: Event) -> Instance:
        station = {"StationName": (event.station,)} if event.station else {}
        return Instance(
            study_instance_uid=event.study or event.series,
            series_instance_uid=event.series,
            sop_instance_uid=event.sop,
            sop_class_uid="",
            transfer_syntax_uid="",
            calling_ae_title=event.ae,
            peer_address="",
            received_at=EPOCH + timedelta(seconds=event.t),
            attributes={"Modality": (event.modality,)} | station,
            association=self._associations.get(event.association),
        )

    def _ask(self, now: float) -> None:
        """Let the PACS answer what the collector wants to know."""
        if not self._asks:
            return
        for question in self._collector.questions():
            series = question.key.series_instance_uid
            known, count = len(self._seen[series]), self._pacs.count(series, now + ANSWER_S / 2)
            self.answers.append((now + ANSWER_S, series))
            answer = Answer(
                "simulated", question.here, known, count, confirmed=count == known, revision=question.revision
            )
            heapq.heappush(self._answers, (now + ANSWER_S, next(self._numbers), question, answer))


def verdicts_of(times: Sequence[float], reports: Sequence[tuple[float, str | None]]) -> Outcome:
    """Judge one series: when its new images came, and when what was said. A report without verdict is a part."""
    verdicts = [(at, verdict) for at, verdict in reports if verdict is not None]
    last = times[-1]
    standing = [at for at, _ in verdicts if at >= last]
    if not standing:
        raise AssertionError(f"a series whose last image came at {last} got no verdict after it")
    false = [verdict for at, verdict in verdicts if at < last and verdict in COUNTED]
    capped = [at for at, verdict in verdicts if verdict == "capped"]
    return Outcome(
        series=1,
        false=len(false),
        false_verified=false.count("verified"),
        verified=verdicts[-1][1] == "verified",
        capped=bool(capped),
        after_capped=sum(at > capped[0] for at in times) if capped else 0,
        latencies_s=[standing[0] - last],
    )


def judge(runs: Iterable[Sequence[Event]], candidate: Candidate, growing: Collection[str] = ()) -> Outcome:
    """Return what a policy does, over some runs."""
    return total(Run(events, candidate, growing).judge() for events in runs)

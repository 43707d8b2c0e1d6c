"""`make completion`: how often each idle policy is wrong about the end of a series, and how long it makes one wait.

In virtual time, with the collector and the policies of the gateway, on traces: those recorded from real senders
(bench/traces/*.jsonl), made-up ones with known trouble, or, with TRACES=folder, somebody else's. The truth is that a
series is complete after its last image in the file.
"""

import argparse
import heapq
import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import track

from bench.processes import ROOT
from bench.traces import BadTrace, Event, read_trace, synthetic
from collector import SeriesCollector
from idle import Adaptive, Estimator, Fixed, IdlePolicy, Phase, Quantile, Source
from models import Association, Instance, SeriesKey, SeriesReport
from pacs import Answer, Question

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ANSWER_S = 0.05  # of the simulated PACS; a real Orthanc took 0.02 to 0.1 s
MAX_OPEN_S = 900.0
CEILING_S = 60.0
IDLE_TIMEOUT_S = 2.0
TUNING, JUDGING = range(100, 104), range(200, 206)  # seeds of made-up runs
STUDIES = 40  # of each kind, in each run
COUNTED = ("idle", "expected", "verified")  # verdicts that say that a series is over


class NoHint(Adaptive):
    """Does not look at associations."""

    def timeout_s(self, source: Source, phase: Phase, longest_s: dict[Phase, float]) -> float:  # type: ignore[override]
        return super().timeout_s(source, Phase.OPEN, longest_s)

    def learn(self, source: Source, longest_s: dict[Phase, float]) -> None:  # type: ignore[override]
        super().learn(source, {Phase.OPEN: max(longest_s.values())})


@dataclass
class Rfc6298:
    """Mean plus four mean deviations, both as exponential moving averages (RFC 6298 §2)."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        if self.count == 0:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            self.deviation += (abs(self.mean - seconds) - self.deviation) / 4
            self.mean += (seconds - self.mean) / 8
        self.count += 1

    def bound_s(self) -> float:
        return self.mean + 4 * self.deviation

    def dump(self) -> object:
        return [self.mean, self.deviation, self.count]

    def load(self, dumped: object) -> None:
        raise NotImplementedError


def adaptive(estimator: Callable[[], Estimator], kind: type[Adaptive] = Adaptive) -> Callable[[], IdlePolicy]:
    return lambda: kind(IDLE_TIMEOUT_S, CEILING_S, estimator)


def fixed(seconds: float) -> Callable[[], IdlePolicy]:
    return lambda: Fixed(seconds)


@dataclass(frozen=True)
class Candidate:
    """A policy to judge, made anew for every run."""

    name: str
    make: Callable[[], IdlePolicy]
    asks: bool = False


DEFAULT = "adaptive"
CANDIDATES = [
    *(Candidate(f"fixed {seconds:g} s", fixed(seconds)) for seconds in (1, 2, 5, 60, 300)),
    Candidate("EMA, no release hint", adaptive(Rfc6298, NoHint)),
    Candidate("EMA", adaptive(Rfc6298)),
    Candidate("quantile, no release hint", adaptive(Quantile, NoHint)),
    Candidate(DEFAULT, adaptive(Quantile)),
    Candidate("fixed 5 s + PACS", fixed(5), asks=True),
    Candidate("adaptive + PACS", adaptive(Quantile), asks=True),
]


@dataclass
class Outcome:
    """What a policy did, over all runs."""

    series: int = 0
    false: int = 0
    """Verdicts that a later image contradicted."""
    latencies_s: list[float] = field(default_factory=list)
    """From each series' last image to the report that holds it."""
    questions: int = 0

    @property
    def false_per_1000(self) -> float:
        return 1000 * self.false / self.series

    def latency_s(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_s * 2, n=100)[percent - 1]  # twice, for it needs two


class Run:
    """One trace through one collector, in virtual time."""

    def __init__(self, events: list[Event], candidate: Candidate) -> None:
        self._events = events
        self._associations: dict[int, Association] = {}
        self._truth: dict[str, set[str]] = defaultdict(set)
        self._sources = {event.ae for event in events}
        for event in events:
            if event.event == "image":
                self._truth[event.series].add(event.sop)
        self._seen: dict[str, set[str]] = defaultdict(set)
        self._answers: list[tuple[float, int, SeriesKey, Answer]] = []
        self._numbers = itertools.count()
        self._collector = SeriesCollector(
            policy=candidate.make(),
            max_open_s=MAX_OPEN_S,
            gateway_id="simulated",
            wall_clock=lambda at: EPOCH + timedelta(seconds=at),
            pacs=self._sources if candidate.asks else (),
            patience_s=CEILING_S,
        )
        self._reports: list[tuple[float, SeriesReport]] = []
        self._questions = 0

    def judge(self, outcome: Outcome) -> None:
        """Play the trace to its end and add what came of it."""
        for event in self._events:
            self._until(event.t)
            self._happen(event)
        self._until(math.inf)
        last = {event.series: event.t for event in self._events if event.event == "image"}
        outcome.series += len(last)
        outcome.questions += self._questions
        final = {report.SeriesInstanceUID: at for at, report in self._reports}
        outcome.latencies_s += [final[series] - at for series, at in last.items()]
        outcome.false += sum(
            at < last[report.SeriesInstanceUID] for at, report in self._reports if report.Verdict in COUNTED
        )

    def _until(self, t: float) -> None:
        """Let pass what falls due before `t`."""
        while True:
            deadline = self._collector.next_deadline()
            answer_at = self._answers[0][0] if self._answers else math.inf
            now = min(math.inf if deadline is None else deadline, answer_at)
            if now >= t or now == math.inf:
                return
            if answer_at == now:
                _, _, key, answer = heapq.heappop(self._answers)
                self._reported(self._collector.answered(key, answer, now), now)
            self._reported(self._collector.due(now), now)
            for question in self._collector.questions():
                self._ask(question, now)

    def _reported(self, reports: Iterable[SeriesReport], now: float) -> None:
        self._reports += [(now, report) for report in reports]

    def _happen(self, event: Event) -> None:
        if event.event == "opened":
            self._associations[event.association] = Association(event.association, event.ae, "", event.t)
        elif event.event == "released" and event.association in self._associations:
            association = self._associations.pop(event.association)
            association.released_at = event.t
            self._collector.released(association, event.t)
        elif event.event == "image":
            self._seen[event.series].add(event.sop)
            self._collector.observe(self._instance(event), event.t)

    def _instance(self, event: Event) -> Instance:
        return Instance(
            study_instance_uid="1.2.3",
            series_instance_uid=event.series,
            sop_instance_uid=event.sop,
            sop_class_uid="",
            transfer_syntax_uid="",
            calling_ae_title=event.ae,
            peer_address="",
            received_at=EPOCH + timedelta(seconds=event.t),
            attributes={"Modality": (event.modality,)},
            association=self._associations.get(event.association),
        )

    def _ask(self, question: Question, now: float) -> None:
        """A PACS that has all of the series from the beginning."""
        self._questions += 1
        series = question.key.series_instance_uid
        count, known = len(self._truth[series]), len(self._seen[series])
        same = count == known
        answer = Answer("simulated", question.here, known, count, same, revision=question.revision)
        heapq.heappush(self._answers, (now + ANSWER_S, next(self._numbers), question.key, answer))


def judge(runs: list[list[Event]], candidate: Candidate) -> Outcome:
    outcome = Outcome()
    for events in runs:
        Run(events, candidate).judge(outcome)
    return outcome


def table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [
        "| policy | false completions per 1000 series | added latency, median | p99 | questions per series |",
        "|---|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        shown = f"**{name}**" if name == DEFAULT else name
        lines.append(
            f"| {shown} | {outcome.false_per_1000:.1f} | {outcome.latency_s(50):.2f} s | {outcome.latency_s(99):.2f} s "
            f"| {outcome.questions / outcome.series:.1f} |"
        )
    return lines


def points(outcomes: dict[str, Outcome]) -> dict[str, tuple[float, float, float]]:
    return {name: (o.false_per_1000, o.latency_s(50), o.latency_s(99)) for name, o in outcomes.items()}


def load_traces(folder: Path) -> list[list[Event]]:
    """Every *.jsonl of a folder. Raises BadTrace."""
    paths = sorted(folder.glob("*.jsonl"))
    runs = [read_trace(path) for path in paths]
    runs = [events for events in runs if any(event.event == "image" for event in events)]
    if not runs:
        raise BadTrace(f"TRACES={folder}: no *.jsonl with an image in it. A gateway records one: GATEWAY_TRACE_PATH.")
    return runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make completion", description=__doc__)
    parser.add_argument("--traces", type=Path, help="judge the *.jsonl of this folder, and write no document")
    parser.add_argument("--tuning", action="store_true", help="the made-up runs that the constants were chosen on")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    sets: dict[str, list[list[Event]]] = {}
    try:
        if options.traces:
            sets[f"traces of {options.traces}"] = load_traces(options.traces)
        else:
            seeds = TUNING if options.tuning else JUDGING
            sets["made up"] = [synthetic(seed, STUDIES) for seed in seeds]
            sets["recorded"] = load_traces(ROOT / "bench" / "traces")
    except BadTrace as error:
        console.print(f"completion: {error}")
        return 1
    results: dict[str, dict[str, Outcome]] = {}
    for name, runs in sets.items():
        results[name] = {}
        for candidate in track(CANDIDATES, f"{name}: {len(runs)} runs", console=console, transient=True):
            results[name][candidate.name] = judge(runs, candidate)
        console.print(f"{name}: {results[name][DEFAULT].series} series in {len(runs)} runs")
        console.print("\n".join(table(results[name])), markup=False)
    if not options.traces and not options.tuning:
        from bench.chart import write_completion  # noqa: PLC0415 - matplotlib is slow to import

        write_completion({name: (table(some), points(some)) for name, some in results.items()})
    default = next(iter(results.values()))[DEFAULT]
    console.print(
        f"completion: default {DEFAULT} false={default.false_per_1000:.1f} p50={default.latency_s(50):.2f} "
        f"p99={default.latency_s(99):.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

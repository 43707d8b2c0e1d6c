"""Plays what gateways report of a trace through the rules for studies, in virtual time, and judges what these say.

First every gateway's collector takes its part of the trace (bench/simulation.py): that says when each series is
reported, and when its PACS was asked. Then each policy decides about the studies from these reports.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

from bench.simulation import EPOCH, Candidate, Run, SimulatedPacs, Verdicts, new_images
from bench.study_sites import StudyPlace
from bench.traces import Event
from common.required import Required, missing_of, required_of
from models import FINAL_VERDICTS, CountsOfStudy, SeriesReport
from storage import study_rules
from storage.rows import SeriesRow, StudyRow
from storage.study_rules import Evidence
from storage.study_silence import ended, learn, sure_s, timeout_s

HEARD_S = 1.0  # until the server knows that a series has begun, or is no longer open: a heartbeat
TOLD_S = 0.1  # until it has a report
ASKED_S = 1.5  # until it has an answer of the PACS that it wants: a heartbeat, and the question
MAX_OPEN = timedelta(days=1)  # SERVER_STUDY_MAX_OPEN_S


# --- what is known of a trace ----------------------------------------------------------------------------------


class Told(NamedTuple):
    """A verdict about a study, and when it was told."""

    t: float
    verdict: str


class Came(NamedTuple):
    """A report of a gateway, when it comes to the server."""

    t: float
    report: SeriesReport
    event: Event
    """The first image of the series."""
    images: int
    """New ones."""


Count = Callable[[str, float], CountsOfStudy]
"""Says what the PACS has of a study at a time."""


@dataclass
class Heard:
    """One run, as the server hears of it."""

    reports: list[Came]
    open: dict[str, list[tuple[float, float]]]
    """By study: from when to when a gateway has a series of it that it has not reported."""
    series: Mapping[str, Sequence[Sequence[float]]]
    """By study: when the new images of each of its series came."""
    count: Count | None
    """None without a PACS."""
    required: tuple[Required, ...]
    """What somebody has said of the site's studies."""

    @cached_property
    def images(self) -> dict[str, list[float]]:
        """Return when the new images of each study came, in order."""
        return {study: sorted(t for times in some for t in times) for study, some in self.series.items()}


def heard(place: StudyPlace, candidate: Candidate) -> Heard:
    """Play a run through a collector for each gateway, and keep what the server hears."""
    return heard_of(place.sorted(), candidate, place)


def heard_of(events: Sequence[Event], candidate: Candidate, place: StudyPlace | None = None) -> Heard:
    """Do the same with any trace: nobody can be asked about it."""
    growing, whole = (place.growing, place.whole) if place else (set(), set())
    firsts = {e.series: e for e in reversed(events) if e.event == "image"}
    times = new_images(events)
    of_study: dict[str, list[str]] = defaultdict(list)
    for series in times:
        of_study[_study(firsts[series])].append(series)
    pacs = SimulatedPacs(events, growing, whole)

    def count(study: str, at: float) -> CountsOfStudy:
        each = [n for series in of_study[study] if (n := pacs.count(series, at))]
        return CountsOfStudy(Series=len(each), Instances=sum(each), At=_at(at))

    reports: list[Came] = []
    for gateway in sorted({event.gateway for event in events}):
        run = Run([e for e in events if e.gateway == gateway], candidate, growing, whole)
        run.play()
        reports += _reports(run, gateway, firsts, times, count)
    reports.sort(key=lambda came: came.t)
    is_open: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for came in reports:
        is_open[_study(came.event)].append((_seconds(came.report.FirstReceivedAt), came.t))
    of_series = {study: [times[one] for one in some] for study, some in of_study.items()}
    required = place.required if place else ()
    return Heard(reports, is_open, of_series, count if candidate.asks else None, required)


def _reports(
    run: Run, gateway: str, firsts: Mapping[str, Event], times: Mapping[str, Sequence[float]], count: Count
) -> Iterator[Came]:
    asked: dict[str, list[float]] = defaultdict(list)
    for at, series in run.answers:
        asked[series].append(at)
    for at, report in run.reports:
        event = firsts[report.SeriesInstanceUID]
        first, last = _seconds(report.FirstReceivedAt) - 1e-3, _seconds(report.LastReceivedAt) + 1e-3
        before = [t for t in asked[event.series] if t <= at]
        said = [count(_study(event), t) for t in before[:1] + before[-1:]]
        own = report.model_copy(update={"GatewayID": f"gateway {gateway}"} | (_asked(report, *said) if said else {}))
        yield Came(at + TOLD_S, own, event, sum(first <= t <= last for t in times[event.series]))


def _asked(report: SeriesReport, first: CountsOfStudy, last: CountsOfStudy) -> dict[str, Any]:
    """Return what a gateway adds to a report whose PACS it has asked."""
    n = next(n for n, event in enumerate(report.Timeline) if event.Event == "pacs.answered")
    answered = report.Timeline[n]
    details = answered.Details | {"StudySeries": first.Series, "StudyInstances": first.Instances}
    timeline = [*report.Timeline]
    timeline[n] = answered.model_copy(update={"Details": details})
    return {"Timeline": timeline, "StudyCounts": last}


def _study(event: Event) -> str:
    return event.study or event.series


def _at(t: float) -> datetime:
    return EPOCH + timedelta(seconds=t)


def _seconds(at: datetime | None) -> float:
    return (at - EPOCH).total_seconds() if at else 0.0


# --- outcomes --------------------------------------------------------------------------------------------------


@dataclass
class StudyOutcome(Verdicts):
    """What a policy said of studies."""

    studies: int = 0


def together(outcomes: Iterable[StudyOutcome]) -> StudyOutcome:
    """Return all of them as one."""
    total = StudyOutcome()
    for outcome in outcomes:
        total += outcome
    return total


def outcome_of(last: float, told: Sequence[Told]) -> StudyOutcome:
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


def stable(silence_s: float, heard: Heard) -> dict[str, list[Told]]:
    """Take a study to be complete once nothing has come to it for so long, as Orthanc's StableAge does."""
    return {
        study: [Told(at + silence_s, "idle") for at, then in pairwise([*times, math.inf]) if then - at > silence_s]
        for study, times in heard.images.items()
    }


def mercure(heard: Heard) -> dict[str, list[Told]]:
    """Take a series for complete after 60 s, a study 900 s after its last such series, 5400 s after it began by force.

    It begins anew with what comes after that.
    """
    told = {}
    for study, some in heard.series.items():
        spans = sorted(span for times in some for span in _spans(times, 60.0))
        told[study] = list(_mercure(spans))
    return told


def _mercure(spans: Sequence[tuple[float, float]]) -> Iterator[Told]:
    """`spans`: from when to when a series was open."""
    began, complete = spans[0][1], -math.inf
    for n, (_, closed) in enumerate(spans):
        complete = max(complete, closed)
        then = spans[n + 1][0] if n + 1 < len(spans) else math.inf
        due = min(complete + 900.0, max(began + 5400.0, complete))
        if due < then:
            yield Told(due, "idle")
            began, complete = (spans[n + 1][1], -math.inf) if n + 1 < len(spans) else (0.0, 0.0)


def _spans(times: Sequence[float], idle_s: float) -> Iterator[tuple[float, float]]:
    first = times[0]
    for at, then in pairwise([*times, math.inf]):
        if then - at > idle_s:
            yield first, at + idle_s
            first = then


class Server:
    """Decides about studies by the server's own rules, with a model of what stands around them."""

    def __init__(self, heard: Heard, *, required: bool = False) -> None:
        self._heard = heard
        self._required = heard.required if required else ()
        self._rows: dict[str, StudyRow] = {}
        self._series: dict[str, SeriesRow] = {}
        self._descriptions: dict[str, set[str]] = defaultdict(set)
        self._learnt: dict[str, dict[str, Any]] = defaultdict(dict)
        """By source."""
        self._trust: dict[tuple[str | None, bool], int] = defaultdict(int)
        """By PACS, and of studies of an earlier day by themselves."""
        self._told: dict[str, list[Told]] = defaultdict(list)
        self._due: list[tuple[float, str, bool]] = []
        """When to look at which study, and if the PACS answers then."""

    def play(self) -> dict[str, list[Told]]:
        """Take all reports, and return what is told of each study."""
        for came in self._heard.reports:
            self._until(came.t)
            self._take(came)
        self._until(math.inf)
        return self._told

    def _until(self, t: float) -> None:
        while self._due and self._due[0][0] < t:
            at, study, answers = heapq.heappop(self._due)
            if answers and self._heard.count is not None:
                self._counted(study, self._heard.count(study, at), None)
            self._decide(study, at)

    def _take(self, came: Came) -> None:
        """Take a report, as storage/studies.py does."""
        report, study = came.report, _study(came.event)
        row = self._rows.setdefault(study, _new_study(study, came.t))
        before = self._series.get(report.SeriesInstanceUID)
        after = self._series[report.SeriesInstanceUID] = _series_row(came, before)
        columns = study_rules.counted(row, before, after)
        columns |= study_rules.described({**row, **columns}, after)
        if came.images:
            silence_s = study_rules.silence_s(row, report.FirstReceivedAt)
            so_far, name = study_rules.learnt_of(row), row["Source"] or after["Source"] or ""
            self._learnt[name] = learn(self._learnt[name], silence_s, so_far, study_rules.kind_of_series(after))
            columns |= study_rules.reopened(row, _at(came.t))
            if columns.get("FalseCompletions", 0) > row["FalseCompletions"] and row["Policy"] == "verified":
                self._trust[study_rules.trusted_for(row)] = 0
        self._descriptions[study].add(came.event.description)
        self._rows[study] = _with(row, columns)
        if report.StudyCounts is not None:
            self._counted(study, report.StudyCounts, report)
            self._said(study, study_rules.had_less(self._rows[study], study_rules.first_counts(report)))
        self._decide(study, came.t, reporting=True)
        heapq.heappush(self._due, (came.t + HEARD_S, study, False))  # its gateway names it no more

    def _counted(self, study: str, counts: CountsOfStudy, report: SeriesReport | None) -> None:
        row = self._rows[study]
        pacs, ahead = study_rules.asked_whom(report) if report else (None, False)
        said = study_rules.taken(row, counts, by=report.GatewayID if report else None, pacs=pacs, ahead=ahead)
        self._said(study, said)

    def _said(self, study: str, said: Mapping[str, Any]) -> None:
        row = self._rows[study]
        if study_rules.disappoints(row, said):
            self._trust[study_rules.trusted_for(row)] = 0
        self._rows[study] = _with(row, said)

    def _decide(self, study: str, t: float, *, reporting: bool = False) -> None:
        row = self._rows[study]
        if not reporting and (row["DueAt"] is None or _seconds(row["DueAt"]) > t) and row["Unsettled"]:
            return
        decision = study_rules.decide(row, self._evidence(study, row, t))
        after = self._rows[study] = _with(row, decision.columns)
        self._trust[study_rules.trusted_for(after)] += decision.trusted
        if after["Verdict"] is not None and after["Verdict"] != row["Verdict"]:
            if not self._told[study] and after["Verdict"] in FINAL_VERDICTS:
                name = after["Source"] or ""
                self._learnt[name] = ended(self._learnt[name], study_rules.learnt_of(after))
            self._told[study].append(Told(t, after["Verdict"]))
        if decision.ask:
            heapq.heappush(self._due, (t + ASKED_S, study, True))
        if after["DueAt"] is not None and after["DueAt"] != row["DueAt"]:
            heapq.heappush(self._due, (max(t + 1e-3, _seconds(after["DueAt"])), study, False))

    def _evidence(self, study: str, row: StudyRow, t: float) -> Evidence:
        learnt, so_far = self._learnt[row["Source"] or ""], study_rules.learnt_of(row)
        wanted = required_of(self._required, [(row["Source"], row["StudyDescription"])])
        spans = self._heard.open[study]
        return Evidence(
            _at(t),
            timedelta(seconds=timeout_s(learnt, so_far)),
            self._trust[study_rules.trusted_for(row)],
            MAX_OPEN,
            bool(wanted),
            missing_of(wanted, self._descriptions[study]),
            held="held" if any(first + HEARD_S <= t < until + HEARD_S for first, until in spans) else None,
            held_elsewhere="held" if any(first + HEARD_S <= t < until for first, until in spans) else None,
            sure=timedelta(seconds=sure_s(learnt, so_far)),
        )


def _new_study(study: str, t: float) -> StudyRow:
    blank = dict.fromkeys(StudyRow.__annotations__)
    return cast("StudyRow", {**blank, "CountGrew": False, **study_rules.new_study(study, _at(t))})


def _series_row(came: Came, before: SeriesRow | None) -> SeriesRow:
    """Return the row of a series with a report."""
    report, event = came.report, came.event
    said = {"SeriesDescription": [event.description], "StudyDescription": [event.study_description]}
    blank = before or cast("SeriesRow", dict.fromkeys(SeriesRow.__annotations__) | {"NumInstances": 0})
    return cast(
        "SeriesRow",
        {
            **blank,
            "NumInstances": blank["NumInstances"] + came.images,
            "Modality": event.modality,
            "Attributes": said,
            "Verdict": report.Verdict,
            "FirstReceivedAt": blank["FirstReceivedAt"] or report.FirstReceivedAt,
            "LastReceivedAt": report.LastReceivedAt,
            "FalseCompletions": 0,
            "Source": " ".join(filter(None, (event.ae, event.modality, event.station))),
            "StudyDate": "19700101" if event.stored else None,
        },
    )


def _with(row: StudyRow, columns: Mapping[str, Any]) -> StudyRow:
    return cast("StudyRow", {**row, **columns})


def judge(heard: Heard, policy: Callable[[Heard], dict[str, list[Told]]]) -> StudyOutcome:
    """Return what a policy does on one run."""
    return together(outcome_of(heard.images[study][-1], told) for study, told in policy(heard).items())


def ours(heard: Heard) -> dict[str, list[Told]]:
    """Decide by what is learnt of a source's silences, and by its PACS, if that can be asked."""
    return Server(heard).play()


def ours_required(heard: Heard) -> dict[str, list[Told]]:
    """The same, where somebody has said which series a study needs."""
    return Server(heard, required=True).play()


POLICIES: dict[str, Callable[[Heard], dict[str, list[Told]]]] = {
    **{f"fixed {seconds} s": partial(stable, seconds) for seconds in (60, 300, 900)},
    "mercure": mercure,
    "ours": ours,
    "ours, required series": ours_required,
}

"""The instrument that judges verdicts of studies: sites are what they are said to be, and verdicts are judged right."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from bench import studies, study_sites
from bench.studies import SERIES
from bench.study_simulation import (
    POLICIES,
    Heard,
    StudyOutcome,
    Told,
    heard,
    heard_of,
    judge,
    mercure,
    ours,
    ours_required,
    outcome_of,
    stable,
    together,
)
from bench.study_sites import StudyKind, StudyPlace
from bench.traces import Event, read_trace, write_trace
from gateway.recorder import Recorder
from models import Instance
from storage.study_silence import PRIOR_S

SEED = 300  # neither one that constants are chosen on nor one that is published
FEW = 12  # studies
KINDS = {
    kind.name: replace(kind, studies=1 if kind.play == study_sites.stored_then_live else FEW)
    for kind in (*study_sites.KINDS, *study_sites.ASKED)
}


@cache
def run(name: str) -> StudyPlace:
    return KINDS[name].make(SEED)


@cache
def heard_at(name: str) -> Heard:
    return heard(run(name), SERIES[KINDS[name].pacs != ""])


def images(place: StudyPlace) -> dict[str, list[Event]]:
    """By study."""
    found = defaultdict(list)
    for event in place.sorted():
        if event.event == "image":
            found[event.study].append(event)
    return found


def series(of_study: list[Event]) -> list[tuple[str, float, float]]:
    """The description of each, and when its first and its last image came, in order."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in of_study:
        found[event.series].append(event)
    return sorted(((some[0].description, some[0].t, some[-1].t) for some in found.values()), key=lambda one: one[1])


# --- sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_seed_makes_the_same_run_and_each_image_has_its_study(kind: StudyKind) -> None:
    assert kind.make(SEED).sorted() == run(kind.name).sorted() != kind.make(SEED + 1).sorted()
    for study, some in images(run(kind.name)).items():
        assert study
        assert len({(event.study_description, event.stored) for event in some}) == 1
        assert all(event.description for event in some)


@pytest.mark.parametrize("kind", study_sites.ASKED, ids=lambda kind: kind.name)
def test_the_same_comes_with_a_pacs_and_without_one(kind: StudyKind) -> None:
    assert run(kind.name).sorted() == run(kind.name.split(";")[0]).sorted()
    every = {event.series for some in images(run(kind.name)).values() for event in some}
    if kind.pacs == "holds" or kind.play == study_sites.migrated:
        assert not run(kind.name).growing
    elif kind.play != study_sites.stored_then_live:
        assert run(kind.name).growing == every
    assert bool(run(kind.name).whole) == (kind.pacs == "series by series")


def test_reconstructions_come_ten_to_thirty_minutes_after_the_acquisition() -> None:
    waited = []
    for some in images(run("CT, reconstructions 10 to 30 min later")).values():
        parts = series(some)
        waited += [then[1] - before[2] for before, then in pairwise(parts) if then[0].endswith("thin")]
    assert len(waited) > FEW / 4
    assert all(600 <= one <= 1801 for one in waited)


def test_a_magnetic_resonance_exam_is_about_eight_series_over_forty_minutes() -> None:
    some = [series(some) for some in images(run("MR, eight series over 40 min")).values()]
    assert all(7 <= len(parts) <= 11 for parts in some)
    assert all(14 * 60 < parts[-1][1] - parts[0][1] < 100 * 60 for parts in some)


def test_reports_come_minutes_to_hours_later() -> None:
    late = [
        then[1] - before[2]
        for some in images(run("late reports and key images")).values()
        for before, then in pairwise(series(some))
        if then[0] == "Report"
    ]
    assert late
    assert max(late) > 900
    assert all(one <= 7200 for one in late)


def test_two_gateways_have_series_of_the_same_study() -> None:
    through = [{event.gateway for event in some} for some in images(run("two gateways")).values()]
    assert all(gateways == {"GW0", "GW1"} for gateways in through)


def test_a_run_can_be_written_as_a_trace_and_read_again(tmp_path: Path) -> None:
    for name in ("two gateways", "migration"):
        events = run(name).sorted()
        write_trace(tmp_path / "site.jsonl", events)
        assert read_trace(tmp_path / "site.jsonl") == events


# --- who is right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([(12.0, "idle")], StudyOutcome(latencies_s=[2.0])),
        ([(5.0, "idle"), (12.0, "idle")], StudyOutcome(false=1, latencies_s=[2.0])),
        (
            [(5.0, "verified"), (12.0, "verified")],
            StudyOutcome(false=1, false_verified=1, verified=1, latencies_s=[2.0]),
        ),
        ([(5.0, "capped"), (12.0, "idle")], StudyOutcome(capped=1, latencies_s=[2.0])),
        ([(11.0, "idle"), (900.0, "verified")], StudyOutcome(verified=1, latencies_s=[1.0])),
    ],
)
def test_a_verdict_is_judged_by_the_last_new_image(told: list[tuple[float, str]], expected: StudyOutcome) -> None:
    expected.studies = 1
    assert outcome_of(10.0, [Told(*one) for one in told]) == expected


def test_a_study_without_a_verdict_in_the_end_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="no verdict"):
        outcome_of(10.0, [Told(5.0, "idle")])


def trace(*times: float, study: str = "1.9", apart: bool = True) -> list[Event]:
    """One image at each time, in a series each or in one."""
    events = []
    for n, t in enumerate(times):
        uid = f"{study}.{n if apart else 0}"
        image = Event(t, "image", n, "CT1", "CT", uid, f"{uid}.{n}", study=study, description="abcdef"[n % 6])
        events += [Event(t, "opened", n, "CT1"), image, Event(t, "released", n, "CT1")]
    return events


def all_told(policy: str, *times: float) -> list[Told]:
    (told,) = POLICIES[policy](heard_of(trace(*times), SERIES[False])).values()
    return told


def test_fixed_tells_after_each_silence_that_is_long_enough() -> None:
    assert all_told("fixed 300 s", 0, 100, 500) == [(400.0, "idle"), (800.0, "idle")]


def test_mercure_waits_for_its_last_series_and_by_force_from_the_first() -> None:
    assert all_told("mercure", 0, 500) == [(500 + 60 + 900.0, "idle")]
    assert all_told("mercure", 0, 2000) == [(960.0, "idle"), (2960.0, "idle")]
    forced = all_told("mercure", *range(0, 6000, 800))
    assert forced[0] == (60 + 5400.0, "idle")


def test_ours_waits_as_for_a_new_source_and_begins_anew_with_what_comes_later() -> None:
    told = all_told("ours", 0, 100, 100 + PRIOR_S + 600)
    assert [verdict for _, verdict in told] == ["idle", "idle"]
    assert told[0].t == pytest.approx(100 + PRIOR_S, abs=0.1)
    assert told[1].t > 100 + 2 * PRIOR_S


def test_a_trace_without_studies_has_one_for_each_series() -> None:
    events = [replace(event, study="") for event in trace(0, 100, 500)]
    assert len(ours(heard_of(events, SERIES[False]))) == 3


# --- policies on sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [kind.name for kind in study_sites.ASKED])
def test_no_study_is_falsely_verified_and_all_are_verified_in_the_end(name: str) -> None:
    outcome = judge(heard_at(name), ours)
    assert (outcome.false_verified, outcome.verified) == (0, outcome.studies)
    if name.endswith("holds all"):
        assert outcome.false == 0


def test_ours_is_seldom_wrong_where_fixed_waits_are_and_says_the_same_each_time() -> None:
    run = heard_at("CT, reconstructions 10 to 30 min later")
    outcome = judge(run, ours)
    assert outcome == judge(run, ours)
    assert outcome.false * 4 < judge(run, POLICIES["fixed 900 s"]).false
    assert judge(run, mercure).false <= judge(run, lambda run: stable(60, run)).false


def test_required_series_end_the_wait_where_somebody_has_named_them() -> None:
    run = heard_at("CT, reconstructions 10 to 30 min later")
    assert judge(run, ours_required).false == 0
    assert judge(run, ours_required).latency_s(50) < judge(run, ours).latency_s(50)


def test_tables_have_a_row_for_each_policy_and_site() -> None:
    outcome = judge(heard_at("two gateways"), ours)
    results = {site: dict.fromkeys(POLICIES, outcome) for site in ("one", "two")}
    by_policy, by_site = studies.tables(results, list(POLICIES))
    assert len(by_policy) == len(POLICIES) + 2
    assert [line.split(" | ")[0] for line in by_site[2:]] == ["| one", "| two"]
    assert together([outcome, outcome]).studies == 2 * outcome.studies


# --- recording --------------------------------------------------------------------------------------------------


def test_what_a_gateway_records_names_the_study_and_shows_no_description(tmp_path: Path) -> None:
    attributes = {
        "Modality": ("CT",),
        "StudyDate": ("20200101",),
        "StudyDescription": ("Thorax of Doe",),
        "SeriesDescription": ("Lung 1.0",),
    }
    instance = Instance("1.9", "1.9.1", "1.9.1.1", "1.2", "1.2", "CT1", "::1", datetime.now(UTC), attributes)
    with Recorder.open(tmp_path / "trace.jsonl", lambda: 0.0) as recorder:
        assert recorder is not None
        recorder.image(instance)
        recorder.image(replace(instance, attributes={"Modality": ("CT",)}))
    first, second = read_trace(tmp_path / "trace.jsonl")
    assert (first.study, first.stored, second.stored) == ("1.9", True, False)
    assert first.description != first.study_description
    assert second.description == second.study_description == ""
    assert "Doe" not in (tmp_path / "trace.jsonl").read_text()

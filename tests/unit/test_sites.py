"""The instrument of `make policies`: sites are what they are said to be, and verdicts are judged right."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from bench import completion, sites
from bench.simulation import AHEAD_S, Candidate, Outcome, Run, SimulatedPacs, judge, new_images, total, verdicts_of
from bench.traces import Event, Sender, read_trace, write_trace
from gateway.idle import Fixed, IdlePolicy, Phase, Source

SEEDS = range(300, 304)  # neither those that constants are chosen on nor those that are published
KINDS = {kind.name: kind for kind in (*sites.KINDS, *sites.ASKED)}
Gaps = list[float]


@cache
def runs(name: str) -> list[sites.Place]:
    return [KINDS[name].make(seed) for seed in SEEDS]


def images(place: sites.Place) -> list[Event]:
    return [event for event in place.sorted() if event.event == "image"]


def by_series(place: sites.Place) -> list[list[float]]:
    """When the images of each series came for the first time."""
    return list(new_images(place.sorted()).values())


def gaps(series: list[float]) -> Gaps:
    return [later - earlier for earlier, later in pairwise(series)]


def all_gaps(name: str) -> Gaps:
    return [gap for place in runs(name) for series in by_series(place) for gap in gaps(series)]


def by_association(place: sites.Place) -> list[list[Event]]:
    carried = defaultdict(list)
    for event in images(place):
        carried[event.association].append(event)
    return list(carried.values())


def sizes(name: str) -> list[int]:
    return [len(series) for place in runs(name) for series in by_series(place)]


# --- any site --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_seed_makes_the_same_run_and_another_seed_another(kind: sites.Kind) -> None:
    first, second = runs(kind.name)[:2]
    assert kind.make(SEEDS[0]).sorted() == first.sorted() != second.sorted()


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_image_comes_on_an_association_that_is_open_and_every_association_ends(kind: sites.Kind) -> None:
    is_open: dict[int, str] = {}
    seen: set[int] = set()
    for event in runs(kind.name)[0].sorted():
        if event.event == "opened":
            assert event.association not in seen
            seen.add(event.association)
            is_open[event.association] = event.ae
        elif event.event == "image":
            assert is_open[event.association] == event.ae
            assert event.series
            assert event.sop.startswith(event.series)
        else:
            del is_open[event.association]
    assert not is_open


@pytest.mark.parametrize("kind", [KINDS["WAN"], KINDS["mammography"]], ids=lambda kind: kind.name)
def test_a_run_can_be_written_as_a_trace_and_read_again(kind: sites.Kind, tmp_path: Path) -> None:
    events = kind.make(1).sorted()
    write_trace(tmp_path / "site.jsonl", events)
    assert read_trace(tmp_path / "site.jsonl") == events


def test_kinds_have_names_of_their_own_and_there_are_fast_slow_and_changing_ones() -> None:
    assert len(KINDS) == len(sites.KINDS) + len(sites.ASKED)
    speeds = Counter(kind.speed for kind in sites.KINDS)
    assert min(speeds["fast"], speeds["slow"]) >= 6
    assert speeds["changing"] >= 2


@pytest.mark.parametrize("kind", [k for k in sites.KINDS if k.speed == "fast"], ids=lambda kind: kind.name)
def test_silences_of_fast_sites_are_seldom_longer_than_a_minute(kind: sites.Kind) -> None:
    for place in runs(kind.name):
        series = by_series(place)
        long = sum(max(gaps(times), default=0) > 60 for times in series)
        assert long <= len(series) * 0.13  # a line that aborts, and images that come late


# --- scanners --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", ["study", "job", "image"])
def test_ct_pushes_series_of_its_sizes_one_in_eight_interrupted(each: str) -> None:
    name = f"CT, an association {'an' if each == 'image' else 'a'} {each}"
    assert all(1 <= size <= 2 or 25 <= size <= 140 for size in sizes(name))
    reconstructions = [series for place in runs(name) for series in by_series(place) if len(series) > 2]
    pauses = [[gap for gap in gaps(series) if gap > 1.4 / 5] for series in reconstructions]
    assert all(len(some) <= 1 and all(2 < pause < 40.3 for pause in some) for some in pauses)
    assert 0.08 < statistics.fmean(map(len, pauses)) < 0.17
    carried = [some for place in runs(name) for some in by_association(place)]
    series_each = [len({event.series for event in some}) for some in carried]
    assert {"study": min(series_each) >= 3, "job": set(series_each) == {1}, "image": max(map(len, carried)) == 1}[each]


def test_an_mr_console_sends_four_to_eight_series_and_one_in_five_by_volumes() -> None:
    places = runs("MR console")
    pauses = [[gap for gap in gaps(series) if gap > 0.1] for place in places for series in by_series(place)]
    assert all(4 - 40 / 20 * 1.4 < pause < 12.1 for some in pauses for pause in some)  # a volume takes its time, too
    assert {len(some) for some in pauses} == {0, *range(3, 14)}
    assert 0.14 < statistics.fmean(bool(some) for some in pauses) < 0.26
    starts = [sorted(series[0] for series in by_series(place)) for place in places]
    between = [gap for some in starts for gap in gaps(some)]
    assert statistics.fmean(gap < 45 for gap in between) < 0.05  # an exam may begin sooner


@pytest.mark.parametrize(
    ("device", "least", "most", "low", "high", "median"),
    [("ultrasound", 3, 40, 2, 400, (24, 32)), ("angiography", 4, 16, 40, 330, (95, 125))],
)
@pytest.mark.parametrize("how", ["one open association", "an association each"])
def test_objects_come_as_somebody_takes_them(
    device: str, least: int, most: int, low: int, high: int, median: tuple[int, int], how: str
) -> None:
    name = f"{device}, {how}"
    assert (min(sizes(name)), max(sizes(name))) == (least, most)
    between = all_gaps(name)
    assert low <= min(between) <= max(between) <= high
    assert median[0] < statistics.median(between) < median[1]
    carried = [len(some) for place in runs(name) for some in by_association(place)]
    assert (set(carried) == {1}) == (how == "an association each")


@pytest.mark.parametrize("device", ["ultrasound", "angiography"])
def test_what_is_sent_at_the_end_has_no_long_gaps(device: str) -> None:
    assert max(all_gaps(f"{device}, all at the end")) < 3


def test_mammography_has_four_or_five_views_and_a_big_object_of_each_behind_it() -> None:
    for place in runs("mammography"):
        studies = defaultdict(list)
        for event in images(place):
            studies[event.series].append(event.t)
        views = list(studies.values())
        assert {len(times) for times in views} == {4, 5}
        if place.seed % 2 == 0:
            assert all(30 <= gap <= 90 for times in views for gap in gaps(times))
            continue
        for first, second in zip(views[::2], views[1::2], strict=True):
            assert all(30 <= gap <= 90 for gap in gaps(first))
            assert all(12 <= later - view <= 30 for view, later in zip(first, second, strict=True))


def test_radiography_has_one_to_three_views_a_minute_or_more_apart() -> None:
    assert set(sizes("radiography")) == {1, 2, 3}
    between = all_gaps("radiography")
    assert 60 <= min(between) <= max(between) <= 180


def test_pet_comes_a_bed_at_a_time_or_all_at_once_and_more_series_minutes_later() -> None:
    for place in runs("PET/CT"):
        modalities = defaultdict(set)
        for event in images(place):
            modalities[event.modality].add(event.series)
        assert set(modalities) == {"CT", "PT"}
        pauses = [gap for series in by_series(place) for gap in gaps(series) if gap > 1]
        if place.seed % 3 == 0:
            assert not pauses
        else:
            assert all(85 < pause < 180 for pause in pauses)
            assert len(pauses) > 60


# --- archives and lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in sites.KINDS if k.name.startswith("PACS")], ids=lambda kind: kind.name)
def test_a_pacs_has_one_title_and_the_stations_of_its_scanners(kind: sites.Kind) -> None:
    place = kind.make(1)
    assert {event.ae for event in images(place)} == {"PACS"}
    assert len({event.station for event in images(place)}) > 3


def test_an_archive_sends_some_studies_again_and_nothing_new_with_them() -> None:
    again = 0
    for place in runs("PACS, an association a series"):
        times: dict[str, list[float]] = defaultdict(list)
        for event in images(place):
            times[event.sop].append(event.t)
        assert max(map(len, times.values())) == 2
        repeated = [later - first for first, *laters in times.values() for later in laters]
        assert min(repeated) >= 60
        again += len(repeated)
    assert 0.04 < again / sum(sizes("PACS, an association a series")) < 0.25


def test_one_series_in_ten_has_a_tenth_of_its_images_late() -> None:
    late = [
        sum(2 <= gap <= 91 and gap > 7.5 for gap in gaps(series))
        for place in runs("PACS, a tenth late")
        for series in by_series(place)
        if len(series) > 1
    ]
    assert 0.04 < statistics.fmean(map(bool, late)) < 0.15


@pytest.mark.parametrize(
    ("name", "low", "high"), [("PACS, an association a series", 15, 60), ("PACS, migration", 60, 150)]
)
def test_an_archive_forwards_at_its_rate_with_a_stall_now_and_then(name: str, low: int, high: int) -> None:
    between = all_gaps(name)
    stalls = [gap for gap in between if gap > 1.4 / low + 1e-6]
    assert all(gap >= 0.6 / high - 1e-6 for gap in between)
    assert all(1 < gap < 6.1 for gap in stalls)
    assert 0 < len(stalls) < len(between) / 150


def test_interleaved_series_come_in_turn() -> None:
    place = KINDS["PACS, interleaved"].make(1)
    changes = [a.series != b.series for some in by_association(place) for a, b in pairwise(some)]
    assert statistics.fmean(changes) > 0.3


@pytest.mark.parametrize("pause_s", [0, 6])
def test_a_pacs_that_receives_has_an_image_every_one_or_two_seconds(pause_s: int) -> None:
    name = "receives, pauses of 6 s" if pause_s else "PACS, receives, an association an image"
    between = all_gaps(name)
    assert all(1 <= gap <= 2 or 1 <= gap - pause_s <= 2 for gap in between)
    assert any(gap > 6 for gap in between) == bool(pause_s)
    for place in runs(name):
        assert place.growing == {event.series for event in images(place)}


def test_ten_old_studies_come_before_live_ones() -> None:
    for place in runs("ten old studies, then live ones"):
        series = {event.series for event in images(place)}
        assert 0.05 < len(place.growing) / len(series) < 0.4
        assert images(place)[0].series not in place.growing


def test_a_line_aborts_one_association_in_twelve_and_its_series_begins_again_a_minute_later() -> None:
    ends = Counter(event.event for place in runs("WAN") for event in place.events)
    assert 1 / 20 < ends["aborted"] / ends["opened"] < 1 / 8
    for place in runs("WAN"):
        carried = {some[0].association: some for some in by_association(place)}
        for end in (event for event in place.events if event.event == "aborted"):
            broken = carried[end.association]
            again = min((s for s in carried.values() if s[0].t > end.t), key=lambda some: some[0].t)
            assert 60 < again[0].t - end.t < 70
            assert [e.sop for e in again[: len(broken)]] == [e.sop for e in broken][: len(again)]


def test_a_line_is_slow_and_stalls() -> None:
    for place in runs("WAN"):
        for some in by_association(place):
            between = gaps([event.t for event in some])
            assert all(0.6 / 4 <= gap <= 1.4 / 0.3 + 60 for gap in between)
    assert any(10 < gap < 60 for gap in all_gaps("WAN"))


# --- mixtures --------------------------------------------------------------------------------------------------


def test_a_router_has_one_title_for_all_with_or_without_stations() -> None:
    named, unnamed = (KINDS[f"neutral router, {some}station names"].make(1) for some in ("", "no "))
    for place in (named, unnamed):
        assert {event.ae for event in place.events} == {"ROUTER"}
        assert {event.modality for event in images(place)} >= {"CT", "MR", "US", "MG", "XA", "DX", "PT"}
    assert len({event.station for event in images(named)}) > 8
    assert {event.station for event in images(unnamed)} == {""}


def test_new_sources_send_a_few_studies_each() -> None:
    place = KINDS["new sources all the time"].make(1)
    assert len({event.ae for event in place.events}) == 60


def test_an_upgrade_makes_an_association_an_image_at_a_fifth_of_the_speed() -> None:
    for place in runs("upgrade"):
        carried = by_association(place)
        jobs = [some for some in carried if len(some) > 2]
        assert max(some[-1].t for some in jobs) < min(some[0].t for some in carried[-1000:])
        assert {len(some) for some in carried[-1000:]} == {1}
        before = statistics.median(gap for some in jobs for gap in gaps([event.t for event in some]))
        after = statistics.median(gap for series in by_series(place)[-60:] for gap in gaps(series))
        assert 2.5 < after / before < 10


# --- who is right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([(12.0, "idle")], Outcome(latencies_s=[2.0])),
        ([(5.0, "idle"), (12.0, "idle")], Outcome(false=1, latencies_s=[2.0])),
        ([(1.0, "idle"), (5.0, "expected"), (12.0, "verified")], Outcome(false=2, verified=1, latencies_s=[2.0])),
        ([(5.0, "verified"), (12.0, "idle")], Outcome(false=1, false_verified=1, latencies_s=[2.0])),
        ([(5.0, "capped"), (12.0, "idle")], Outcome(capped=1, after_capped=1, latencies_s=[2.0])),
        ([(1.0, "capped"), (5.0, "capped"), (12.0, "idle")], Outcome(capped=1, after_capped=2, latencies_s=[2.0])),
        ([(5.0, None), (11.0, None), (12.0, "idle")], Outcome(latencies_s=[2.0])),
        ([(12.0, "idle"), (900.0, "idle")], Outcome(latencies_s=[2.0])),
    ],
)
def test_a_verdict_is_judged_by_the_last_new_image(reports: list[tuple[float, str | None]], expected: Outcome) -> None:
    expected.series = 1
    assert verdicts_of([0.0, 4.0, 10.0], reports) == expected


def test_a_series_without_a_verdict_in_the_end_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="no verdict"):
        verdicts_of([0.0], [(5.0, None)])


def image(t: float, sop: str, series: str = "1.2", station: str = "") -> Event:
    return Event(t, "image", 1, "CT1", "CT", series, f"{series}.{sop}", station=station)


def after(seconds: float) -> Candidate:
    return Candidate("fixed", lambda: Fixed(seconds))


def test_an_image_that_is_sent_again_contradicts_nothing_and_is_waited_for_by_nobody() -> None:
    run = [Event(0.0, "opened", 1, "CT1"), image(0.0, "1"), image(1.0, "2"), image(60.0, "2"), image(61.0, "1")]
    outcome = judge([run], after(5.0))
    assert (outcome.false, outcome.latencies_s) == (0, [5.0])


def test_images_of_a_series_that_drips_for_ever_come_after_capped() -> None:
    run = [Event(0.0, "opened", 1, "CT1"), *(image(100.0 * n, str(n + 1)) for n in range(50))]
    outcome = judge([run], after(200.0))
    assert (outcome.false, outcome.capped, outcome.after_capped) == (0, 1, 13)


@dataclass
class Watching:
    """A policy that remembers what it was asked about."""

    asked: set[tuple[Source, Phase]] = field(default_factory=set)
    fixed: Fixed = field(default_factory=lambda: Fixed(5.0))

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        self.asked.add((source, phase))
        return 5.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.fixed, name)


def watched(events: list[Event]) -> set[tuple[Source, Phase]]:
    watching = Watching()
    make: Callable[[], IdlePolicy] = lambda: watching  # type: ignore[assignment, return-value]  # noqa: E731
    judge([events], Candidate("watching", make))
    return watching.asked


@pytest.mark.parametrize("how", ["released", "aborted"])
def test_the_policy_is_told_station_and_how_an_association_ended(how: str) -> None:
    end = Event(2.0, how, 1, "CT1")  # type: ignore[arg-type]
    run = [Event(0.0, "opened", 1, "CT1"), image(0.0, "1", station="ROOM2"), image(1.0, "2", station="ROOM2"), end]
    asked = watched(run)
    assert {source.station for source, _ in asked} == {"ROOM2"}
    assert (Phase(how)) in {phase for _, phase in asked}


def test_outcomes_add_up() -> None:
    assert total([Outcome(series=1, false=2, latencies_s=[1.0]), Outcome(series=2, latencies_s=[2.0, 3.0])]) == Outcome(
        series=3, false=2, latencies_s=[1.0, 2.0, 3.0]
    )


# --- PACS ------------------------------------------------------------------------------------------------------


def test_a_pacs_has_all_from_the_start_or_each_image_a_moment_before_it_forwards_it() -> None:
    events = [image(float(n), str(n), series) for n in range(10, 20) for series in ("1.2", "1.3")]
    pacs = SimulatedPacs(events, {"1.3"})
    assert pacs.count("1.2", 0.0) == 10
    assert pacs.count("1.3", 10.0 - AHEAD_S[1] - 0.001) == 0
    for n in range(10, 20):
        assert n - 9 <= pacs.count("1.3", float(n)) <= n - 8
        assert pacs.count("1.3", n - AHEAD_S[0]) >= n - 9


def test_a_pacs_is_asked_once_a_question_and_a_held_series_is_verified() -> None:
    run = [Event(0.0, "opened", 1, "CT1"), *(image(n / 10, str(n)) for n in range(20))]
    run.append(Event(2.0, "released", 1, "CT1"))
    outcome = Run(run, Candidate("fixed", lambda: Fixed(5.0), asks=True)).judge()
    assert (outcome.series, outcome.verified, outcome.false_verified, outcome.false) == (1, 1, 0, 0)
    assert outcome.questions >= 1


# --- what is chosen and shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "trials", "candidates"),
    [
        ([], {"made up", "recorded", "sites", "PACS"}, 11),
        (["sites"], {"sites"}, 3),
        (["sites", "default"], {"sites"}, 1),
        (["PACS"], {"PACS"}, 1),
        (["ultrasound", "sites"], {"sites"}, 3),
        (["ultrasound"], {"sites"}, 3),
        (["default"], {"made up", "recorded", "sites", "PACS"}, 2),
        (["nothing of that name"], set(), 0),
    ],
)
def test_words_choose_trials_rows_and_the_default(words: list[str], trials: set[str], candidates: int) -> None:
    chosen = list(completion.chosen(completion.own_trials([1]), words))
    assert {trial.name for trial in chosen} == trials
    assert max((len(trial.candidates) for trial in chosen), default=0) == candidates
    if words == ["ultrasound"]:
        (of_sites,) = chosen
        assert list(of_sites.rows) == [name for name in KINDS if name.startswith("ultrasound")]
        assert set(of_sites.groups) == {"slow sites", "all sites"}


def test_what_ships_is_what_is_measured() -> None:
    policy = completion.CANDIDATES[completion.DEFAULT].make()
    source = Source("CT1", "CT")
    policy.learn(source, {Phase.OPEN: 1e6})
    assert policy.timeout_s(source, Phase.OPEN, {Phase.OPEN: 1e6}) == completion.CEILING_S == 400.0


def test_a_sender_is_known_by_what_a_receiver_sees() -> None:
    place = sites.Place(1, "a test")
    place.associated(Sender("AE", "CT", "ROOM1"), place.pushed(1.0, 2, 10))
    assert {(e.ae, e.modality, e.station) for e in place.events if e.event == "image"} == {("AE", "CT", "ROOM1")}

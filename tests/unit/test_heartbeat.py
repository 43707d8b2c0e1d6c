"""What a gateway tells of itself, in virtual time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from common import metrics
from common.settings import GatewaySettings
from common.version import version
from gateway.dispatcher import SeriesDispatcher
from gateway.heartbeat import HASTE_S, QUIET_BEAT_S, Vitals, beat, last_beat
from gateway.held_studies import HeldStudies
from gateway.idle import Adaptive, Fixed
from gateway.journal import Journal
from gateway.orders import Orders
from models import MAX_DEAD, MAX_HEARD, MAX_OPEN_STUDIES, MAX_SLOTS, SLOT_S, GatewayState, Order, OrderDone
from tests.rig.factories import SERIES, STUDY, collector_of, make_instance, make_report, make_state, memory_journal

pytestmark = pytest.mark.virtual_time
SETTINGS = GatewaySettings(id="gateway 1", ae_title="GW")


class Watched:
    """A gateway's parts, and a server that keeps the heartbeats it gets."""

    def __init__(self, journal: Journal, answer: httpx.Response | Exception) -> None:
        self.beats: list[tuple[float, GatewayState]] = []
        self.bodies: list[dict[str, Any]] = []
        self.ordered: list[str | None] = []
        self.answer = answer
        self.once: httpx.Response | None = None
        self.wait_s = 0.0
        self.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(self._take))
        self.journal = journal
        self.inbox: asyncio.Queue[object] = asyncio.Queue(10)
        self.held = HeldStudies()
        self.collector = collector_of(Fixed(2.0), held=self.held)
        self.dispatcher = SeriesDispatcher(self.http, journal, concurrency=1, retry_max_s=1.0, held=self.held)
        orders = Orders({"declare": self._declare})
        self.vitals = Vitals(SETTINGS, self.inbox, journal, self.collector, self.dispatcher, orders, self.held)

    async def _declare(self, order: Order) -> str:
        self.ordered.append(order.SeriesInstanceUID)
        return "it was not open here"

    async def _take(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.raw_path) == ("PUT", b"/gateways/gateway%201")
        state = GatewayState.model_validate_json(request.content)
        self.bodies.append(json.loads(request.content))
        self.beats.append((asyncio.get_running_loop().time(), state))
        await asyncio.sleep(self.wait_s)
        if self.once is not None:
            answer, self.once = self.once, None
            return answer
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def watched(answer: httpx.Response | Exception = httpx.Response(204)) -> AsyncIterator[Watched]:  # noqa: B008
    with memory_journal() as journal:
        gateway = Watched(journal, answer)
        tasks = [asyncio.create_task(do) for do in (gateway.vitals.follow(), beat(gateway.vitals, gateway.http))]
        yield gateway
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await gateway.http.aclose()


async def test_a_quiet_gateway_is_heard_now_and_then() -> None:
    async with watched() as gateway:
        await asyncio.sleep(3 * QUIET_BEAT_S + 0.5)
        times = [at for at, _ in gateway.beats]
    assert [round(at - times[0]) for at in times] == [0, 5, 10, 15]


async def test_news_are_told_within_a_second() -> None:
    async with watched() as gateway:
        await asyncio.sleep(0.5)
        gateway.collector.observe(make_instance("1"), asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        (_, before), (_, after) = gateway.beats
    assert (before.OpenSeries, before.Arriving) == (0, [])
    assert after.OpenSeries == 1
    (series,) = after.Arriving
    assert (series.SeriesInstanceUID, series.Source, series.Instances) == (SERIES, "TEST CT", 1)
    assert series.Waiting == "for images"
    assert (series.StudyInstanceUID, series.PatientID, series.PatientName) == (STUDY, "P1", "Test^One")


async def test_a_report_that_only_grows_older_is_no_news() -> None:
    async with watched() as gateway:
        for waiting in await gateway.journal.file_reports([make_report("1")]):
            gateway.dispatcher.submit(waiting)
        await asyncio.sleep(2 * QUIET_BEAT_S + 0.5)
        ages = [state.OldestUndeliveredS for _, state in gateway.beats]
    assert len(ages) in (3, 4)  # of which the first may have come before the report
    assert ages[-1] > ages[-2] > 0


async def test_the_state_is_that_of_journal_dispatcher_and_inbox() -> None:
    async with watched() as gateway:
        await gateway.journal.keep([make_instance("1"), make_instance("2")])
        for waiting in await gateway.journal.file_reports([make_report("1")]):
            gateway.dispatcher.submit(waiting)
        gateway.inbox.put_nowait("an arrival")
        gateway.journal.failing = "journal: disk I/O error"
        gateway.dispatcher.last_problem = "HTTP 503"
        await asyncio.sleep(1.5)
        _, state = gateway.beats[-1]
    assert (state.GatewayID, state.AETitle, state.InboxInstances, state.InboxSize) == ("gateway 1", "GW", 1, 10)
    assert (state.OpenInstances, state.UndeliveredReports, state.LastProblem) == (1, 1, "HTTP 503")
    assert state.Reason == "journal: disk I/O error"
    assert not state.Stopped
    assert state.Version == version()


async def test_what_is_counted_and_what_nobody_waits_for_is_told_and_measured() -> None:
    """The whole state, which Prometheus reads from the same parts."""
    async with watched() as gateway:
        before = gateway.vitals.state()
        gateway.vitals.port = 6668
        gateway.inbox.put_nowait("an arrival")
        gateway.collector.observe(make_instance("2"), 0.0)
        await gateway.journal.keep([make_instance(str(n)) for n in range(5)])
        first, second = await gateway.journal.file_reports([make_report("0", "1"), make_report("2", series="1.2")])
        gateway.dispatcher.submit(replace(first, reported_at=time.time() - 60.0))
        await gateway.journal.refused(second, "HTTP 422")
        metrics.instances_received.inc(3)
        metrics.received_bytes.inc(1000)
        metrics.associations_refused.labels("limit").inc(2)
        await gateway.vitals.refresh()
        state = gateway.vitals.state()
        measured = {
            gauge: metrics.total(gauge)
            for gauge in (
                *(metrics.inbox_instances, metrics.inbox_size, metrics.journal_bytes, metrics.journal_max_bytes),
                *(metrics.saturated, metrics.open_series, metrics.pending_instances, metrics.max_pending_instances),
                *(metrics.open_instances, metrics.undelivered_reports, metrics.dead_letters),
            )
        }
        oldest_s = metrics.total(metrics.oldest_undelivered_seconds)
        gateway.journal.failing = "journal: disk full"
        assert metrics.total(metrics.saturated) == 1
    assert (state.Instances - before.Instances, state.Bytes - before.Bytes, state.Refused - before.Refused) == (
        *(3, 1000),
        2,
    )
    assert (state.Address, state.StartedAt, state.Journal) == (
        f"{SETTINGS.scp_host}:6668",
        before.StartedAt,
        gateway.journal.identity,
    )
    assert (state.OpenSeries, state.OpenInstances, state.UndeliveredReports, state.DeadLetters) == (1, 3, 1, 1)
    assert [dead.SeriesInstanceUID for dead in state.Dead] == ["1.2"]
    assert [source.Source for source in state.Sources] == ["TEST CT"]
    assert (state.Reason, state.LastProblem) == (None, None)
    assert 60.0 <= state.OldestUndeliveredS < 3600.0
    assert 60.0 <= oldest_s < 3600.0
    assert measured == {
        metrics.inbox_instances: 1,
        metrics.inbox_size: 10,
        metrics.journal_bytes: gateway.journal.used_bytes,
        metrics.journal_max_bytes: SETTINGS.journal_max_bytes,
        metrics.saturated: 0,
        metrics.open_series: 1,
        metrics.pending_instances: 3 + 2,
        metrics.max_pending_instances: SETTINGS.max_pending_instances,
        metrics.open_instances: 3,
        metrics.undelivered_reports: 1,
        metrics.dead_letters: 1,
    }


async def test_a_problem_that_is_over_is_told_no_more() -> None:
    async with watched() as gateway:
        gateway.dispatcher.last_problem = "HTTP 503"
        assert gateway.vitals.state().LastProblem is None  # nothing waits any more


async def test_dead_letters_are_named_until_they_are_gone() -> None:
    async with watched() as gateway:
        for n in range(MAX_DEAD + 1):
            (waiting,) = await gateway.journal.file_reports([make_report("1", series=f"1.2.{n}")])
            await gateway.journal.refused(waiting, "HTTP 422 body.PatientID: too long")
        await asyncio.sleep(2.5)
        _, dead = gateway.beats[-1]
        await gateway.journal.discard_dead(None, "test")
        await asyncio.sleep(2.5)
        _, gone = gateway.beats[-1]
    assert (dead.DeadLetters, len(dead.Dead)) == (MAX_DEAD + 1, MAX_DEAD)
    assert (dead.Dead[0].Answer, dead.Dead[0].Instances) == ("HTTP 422 body.PatientID: too long", 1)
    assert (gone.DeadLetters, gone.Dead) == (0, [])


async def test_dead_letters_are_those_that_there_are_though_they_are_as_many_as_before() -> None:
    async with watched() as gateway:
        reports = [make_report("1", series=f"1.2.{n}") for n in range(2)]
        first, second = await gateway.journal.file_reports(reports)
        await gateway.journal.refused(first, "HTTP 422")
        await asyncio.sleep(2.5)
        await gateway.journal.discard_dead(None, "test")
        await gateway.journal.refused(second, "HTTP 413")
        await asyncio.sleep(2.5)
        _, state = gateway.beats[-1]
    assert [(one.SeriesInstanceUID, one.Answer) for one in state.Dead] == [("1.2.1", "HTTP 413")]


async def test_a_replayed_dead_letter_is_undelivered_again() -> None:
    async with watched() as gateway:
        (waiting,) = await gateway.journal.file_reports([make_report("1")])
        await gateway.journal.refused(waiting, "HTTP 422")
        (again,) = await gateway.journal.replay_dead([waiting.id])
        assert gateway.journal.dead_letters == 0
        assert again.reported_at == waiting.reported_at


async def test_what_came_is_counted_in_slots_of_time() -> None:
    async with watched() as gateway:
        await asyncio.sleep(SLOT_S - asyncio.get_running_loop().time() % SLOT_S + 0.1)
        for count in (3, 0, 4):
            metrics.instances_received.inc(count)
            await asyncio.sleep(SLOT_S)
        await gateway.vitals.refresh()
        assert gateway.vitals.state().Received[-4:] == [3, 0, 4, 0]
        await asyncio.sleep(2 * MAX_SLOTS * SLOT_S)
        assert gateway.vitals.state().Received == [0] * MAX_SLOTS


@pytest.mark.parametrize(
    "answer",
    [*map(httpx.Response, (300, 304, 401, 404)), httpx.ConnectError("refused")],
    ids=lambda answer: str(getattr(answer, "status_code", answer)),
)
async def test_a_server_that_does_not_take_them_is_told_seldom_and_logged_once(
    answer: httpx.Response | Exception,
) -> None:
    with capture_logs() as logs:
        async with watched(answer) as gateway:
            for n in range(20):
                gateway.collector.observe(make_instance(str(n)), asyncio.get_running_loop().time())
                await asyncio.sleep(1)
            refused = len(gateway.beats)
            gateway.answer = httpx.Response(204)
            await asyncio.sleep(QUIET_BEAT_S + 0.1)
            for n in range(20, 30):
                gateway.collector.observe(make_instance(str(n)), asyncio.get_running_loop().time())
                await asyncio.sleep(1)
            taken = len(gateway.beats) - refused
    assert [line["event"] for line in logs] == ["heartbeat.refused"]
    assert refused <= 5
    assert taken >= 9


async def test_counts_do_not_wait_for_a_slow_server() -> None:
    async with watched() as gateway:
        await asyncio.sleep(SLOT_S - asyncio.get_running_loop().time() % SLOT_S + 0.1)
        gateway.wait_s = 9.0
        for _ in range(4):
            metrics.instances_received.inc(5)
            await asyncio.sleep(SLOT_S)
        assert gateway.vitals.state().Received[-5:-1] == [5, 5, 5, 5]


async def test_words_that_are_too_long_do_not_silence_a_gateway() -> None:
    async with watched() as gateway:
        gateway.journal.failing = "journal: " + "x" * 1000
        await asyncio.sleep(1.5)
        _, state = gateway.beats[-1]  # it fits the model
    assert state.Reason is not None
    assert len(state.Reason) == 256


async def test_a_server_that_never_finishes_its_answer_holds_up_nothing() -> None:
    async with watched() as gateway:
        gateway.wait_s = 1e6
        began = asyncio.get_running_loop().time()
        await last_beat(gateway.vitals, gateway.http)
        assert asyncio.get_running_loop().time() - began < 3
        gateway.wait_s = 0.0
        await asyncio.sleep(60)
        assert gateway.beats


def ordering(*orders: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"Orders": [{"AgeS": 0.0, **order} for order in orders]})


async def test_what_became_of_an_order_is_said_in_the_next_heartbeat_and_once_it_was_heard_no_more() -> None:
    async with watched(ordering({"Number": 7, "Kind": "declare", "SeriesInstanceUID": SERIES})) as gateway:
        await asyncio.sleep(0.5)
        assert gateway.ordered == [SERIES]
        gateway.answer = httpx.ConnectError("refused")
        await asyncio.sleep(10)
        lost = [state for at, state in gateway.beats if state.OrdersDone]
        gateway.answer = ordering()
        await asyncio.sleep(20)
        (*_, heard), quiet = lost + [s for _, s in gateway.beats if s.OrdersDone], gateway.beats[-1][1]
    assert len(lost) >= 1
    assert heard.OrdersDone == [OrderDone(Number=7, Problem="it was not open here")]
    assert quiet.OrdersDone == []
    assert gateway.ordered == [SERIES]


async def test_a_server_that_gives_no_orders_hears_of_nothing_that_it_does_not_know() -> None:
    """An earlier version's refuses a state with a field that it does not know."""
    async with watched() as gateway:
        (waiting,) = await gateway.journal.file_reports([make_report("1")])
        await gateway.journal.refused(waiting, "HTTP 422")
        await asyncio.sleep(2.5)
        before = gateway.bodies[-1]
        gateway.answer = ordering({"Number": 1, "Kind": "discard", "DeadLetter": 77})
        await asyncio.sleep(12)
        with_orders = gateway.bodies[-2:]
        gateway.answer = httpx.Response(422)
        await asyncio.sleep(12)
        after = gateway.bodies[-1]
    assert [len(before["Dead"]), "OrdersDone" in before, "Id" in before["Dead"][0]] == [1, False, False]
    assert [body["Dead"][0]["Id"] for body in with_orders] == [waiting.id] * 2
    assert any(body["OrdersDone"] for body in gateway.bodies if "OrdersDone" in body)
    assert ["OrdersDone" in after, "Id" in after["Dead"][0]] == [False, False]


async def test_what_was_not_said_is_said_later_and_not_done_again() -> None:
    """An earlier version stood in the server's place for a moment."""
    order = {"Number": 7, "Kind": "declare", "SeriesInstanceUID": SERIES}
    async with watched(ordering(order)) as gateway:
        await asyncio.sleep(0.5)
        gateway.answer = httpx.Response(422)
        await asyncio.sleep(12)
        said = len(gateway.beats)
        gateway.once, gateway.answer = ordering(order), ordering()
        await asyncio.sleep(12)
        done = [state.OrdersDone for _, state in gateway.beats[said:]]
    assert gateway.ordered == [SERIES]
    assert done[0] == []
    assert done[1] == [OrderDone(Number=7, Problem="it was not open here")]


async def test_the_last_word_is_that_it_stopped() -> None:
    async with watched() as gateway:
        gateway.collector.observe(make_instance("1"), 0.0)
        await asyncio.sleep(0.1)
        await last_beat(gateway.vitals, gateway.http)
        _, state = gateway.beats[-1]
    assert (state.Stopped, state.Arriving) == (True, [])


async def test_a_series_that_the_server_would_refuse_hides_no_other() -> None:
    async with watched() as gateway:
        now = asyncio.get_running_loop().time()
        for series in ("no\\UID", "1.2\ud800", SERIES):
            gateway.collector.observe(make_instance("1", series=series), now)
        await asyncio.sleep(1.5)
        _, state = gateway.beats[-1]
    assert state.OpenSeries == 3
    assert [series.SeriesInstanceUID for series in state.Arriving] == [SERIES]


@pytest.mark.parametrize("text", ["\ud800", "x" * 1000, "\0"])
async def test_no_text_of_ours_silences_a_gateway(text: str) -> None:
    async with watched() as gateway:
        gateway.journal.failing = text
        gateway.dispatcher.last_problem = text
        (waiting,) = await gateway.journal.file_reports([make_report("1")])
        gateway.dispatcher.submit(waiting)
        (dead,) = await gateway.journal.file_reports([make_report("1", series="1.7")])
        await gateway.journal.refused(dead, text)
        gateway.journal.failing = text
        await asyncio.sleep(2.5)
        _, state = gateway.beats[-1]
    assert state.Reason is not None
    assert len(state.Dead) == 1


async def test_a_state_that_is_no_text_is_told_of_and_not_worth_the_gateway() -> None:
    with capture_logs() as logs:
        async with watched() as gateway:
            gateway.vitals._settings = SETTINGS.model_copy(update={"id": "gateway\ud8001"})
            await asyncio.sleep(1.5)
            await last_beat(gateway.vitals, gateway.http)
            gateway.vitals._settings = SETTINGS
            await asyncio.sleep(QUIET_BEAT_S + 1)
            assert gateway.beats
    assert [line["event"] for line in logs] == ["heartbeat.refused"]


async def test_the_sources_that_were_heard_last_are_told_with_what_was_learnt_of_them() -> None:
    collector = collector_of(Adaptive(2.0, 60.0))
    for n in range(MAX_HEARD + 2):
        instance = replace(make_instance("1", series=f"1.{n}"), calling_ae_title=f"CT{n:02}")
        collector.observe(instance, float(n))
    collector.observe(replace(make_instance("2", series="1.2"), calling_ae_title="CT02"), 100.0)
    heard = collector.heard()
    assert [one.Source for one in heard] == [*(f"CT{n:02} CT" for n in range(3, MAX_HEARD + 2)), "CT02 CT"]
    assert {len(one.WaitS) for one in heard} == {0}
    assert len(collector.due(1e6)) == MAX_HEARD + 2
    state = GatewayState.model_validate(make_state("one", Sources=[one.model_dump() for one in collector.heard()]))
    assert {(one.LearntFrom, bool(one.WaitS)) for one in state.Sources} == {(1, True)}
    assert all(0 < seconds <= 60 for one in state.Sources for seconds in one.WaitS.values())


async def test_a_source_that_the_server_would_refuse_is_left_out_of_the_heartbeat() -> None:
    async with watched() as gateway:
        gateway.collector.observe(replace(make_instance("1"), calling_ae_title="C" * 100), 0.0)
        gateway.collector.observe(make_instance("1", series="1.2"), 0.0)
        await asyncio.sleep(1.5)
        _, state = gateway.beats[-1]
    assert [one.Source for one in state.Sources] == ["TEST CT"]


# --- open studies ---


async def test_a_study_that_comes_or_goes_is_told_at_once() -> None:
    async with watched(ordering()) as gateway:
        await asyncio.sleep(7.3)  # quiet: the next heartbeat would come seconds later
        for change in (gateway.held.take, gateway.held.let_go):
            change(STUDY)
            at = asyncio.get_running_loop().time()
            await asyncio.sleep(1.9)
            told = next(state for beat_at, state in gateway.beats if beat_at >= at)
            assert told.OpenStudies == ([STUDY] if change == gateway.held.take else [])
            assert min(beat_at for beat_at, _ in gateway.beats if beat_at >= at) <= at + HASTE_S


async def test_studies_that_come_and_go_all_the_time_make_no_more_heartbeats_than_that() -> None:
    async with watched(ordering()) as gateway:
        await asyncio.sleep(2.0)
        before = len(gateway.beats)
        for n in range(1000):
            gateway.held.take(f"1.{n}")
            await asyncio.sleep(0.01)
        assert len(gateway.beats) - before <= 10 / HASTE_S + 1


async def test_a_study_that_went_and_came_back_is_no_news() -> None:
    async with watched(ordering()) as gateway:
        gateway.held.take(STUDY)
        await asyncio.sleep(2.0)
        before = len(gateway.beats)
        for _ in range(20):
            gateway.held.let_go(STUDY)
            gateway.held.take(STUDY)
            await asyncio.sleep(0.1)
        assert len(gateway.beats) - before <= 1


async def test_more_studies_than_fit_are_told_as_null() -> None:
    async with watched(ordering()) as gateway:
        for n in range(MAX_OPEN_STUDIES + 1):
            gateway.held.take(f"1.{n}")
        await asyncio.sleep(2.0)
        _, state = gateway.beats[-1]
        gateway.held.let_go("1.0")
        await asyncio.sleep(2.0)
        _, fewer = gateway.beats[-1]
    assert state.OpenStudies is None
    assert len(fewer.OpenStudies or ()) == MAX_OPEN_STUDIES


async def test_a_server_that_gives_orders_hears_of_studies_soon_after_its_first_answer() -> None:
    async with watched(ordering()) as gateway:
        gateway.held.take(STUDY)
        await asyncio.sleep(1.5)
        first, second = gateway.bodies[:2]
    assert "OpenStudies" not in first  # an older server refuses it
    assert second["OpenStudies"] == [STUDY]


async def test_a_server_that_gives_no_orders_is_told_nothing_of_studies_and_not_more_often() -> None:
    async with watched() as gateway:
        for n in range(100):
            gateway.held.take(f"1.{n}")
            await asyncio.sleep(0.1)
        assert len(gateway.bodies) <= 11
        assert not [body for body in gateway.bodies if "OpenStudies" in body]

"""`Gateway.collect`: from the inbox through the journal into the series, in virtual time on a journal in memory."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from client import CLOSED, Declare, Gateway, restore
from common.metrics import instances_doubtful, total
from common.settings import GatewaySettings, load
from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from gateway import reporting
from gateway.collector import SeriesCollector
from gateway.dispatcher import SeriesDispatcher
from gateway.held_studies import HeldStudies
from gateway.idle import Adaptive, Fixed, Phase, Source
from gateway.journal import Journal, JournalUnavailable
from gateway.journal_rows import Waiting
from gateway.open_series import OpenSeries
from gateway.questions import Question
from models import Instance
from scp import HandleStore, enqueue
from tests.rig.factories import SERIES, collector_of, make_instance, make_report, memory_journal

pytestmark = pytest.mark.virtual_time
IDLE_S = 1.0


@dataclass
class Taken:
    """Stands where the dispatcher is: what it was given, and when."""

    waiting: list[tuple[float, Waiting]] = field(default_factory=list)

    def submit(self, waiting: Waiting) -> None:
        self.waiting.append((asyncio.get_running_loop().time(), waiting))

    @property
    def reports(self) -> list[tuple[str, int, int]]:
        """Series, revision and number of images of each."""
        return [(w.key.series_instance_uid, w.revision, w.instances) for _, w in self.waiting]


@dataclass
class Way:
    """The way of an image, from the SCP's hand to the dispatcher's."""

    store: HandleStore
    inbox: asyncio.Queue[Any]
    journal: Journal
    collector: SeriesCollector
    taken: Taken
    task: asyncio.Task[None]

    async def close(self) -> None:
        await self.inbox.put(CLOSED)
        await self.task


def gateway_of(journal: Journal, collector: SeriesCollector, taken: Taken) -> Gateway:
    return Gateway(load(GatewaySettings, {"id": "test"}), journal, collector, cast(SeriesDispatcher, taken))


@contextlib.asynccontextmanager
async def way(
    collector: SeriesCollector | None = None, ask: Callable[[Question], None] | None = None, prepare: Any = None
) -> Any:
    with memory_journal() as journal:
        if prepare is not None:
            prepare(journal)
        taken = Taken()
        gateway = gateway_of(journal, collector or collector_of(Fixed(IDLE_S)), taken)
        gateway.ask = ask
        task = asyncio.create_task(gateway.collect())
        yield Way(enqueue(gateway.inbox, 5.0), gateway.inbox, journal, gateway.collector, taken, task)
        task.cancel()
        await asyncio.wait([task])


def slow_commits(seconds: float, series: str = SERIES) -> Callable[[Journal], None]:
    """A disk that stalls at the images of one series."""

    def prepare(journal: Journal) -> None:
        keep = journal.keep

        async def slow(instances: Sequence[Instance]) -> None:
            if any(instance.series_instance_uid == series for instance in instances):
                await asyncio.sleep(seconds)
            await keep(instances)

        journal.keep = slow  # type: ignore[method-assign]

    return prepare


async def test_an_image_is_answered_when_it_is_kept_and_its_series_reported_when_idle() -> None:
    async with way() as w:
        assert await w.store(make_instance("1")) == SUCCESS
        assert w.journal.open_instances == 1
        await asyncio.sleep(2 * IDLE_S)
        assert w.taken.reports == [(SERIES, 1, 1)]
        assert w.journal.open_instances == 0


async def test_a_declared_series_is_reported_when_asked_and_only_then_is_that_said() -> None:
    async with way(collector_of(Fixed(3600.0))) as w:
        await w.store(make_instance("1"))
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await w.inbox.put(Declare(SERIES, asyncio.get_running_loop().time(), closed))
        assert await closed == 1
        assert w.taken.reports == [(SERIES, 1, 1)]
        assert w.journal.open_instances == 0


async def test_a_declaration_is_not_done_before_its_report_is_on_disk() -> None:
    """Else a restart would open the series again, for its whole time-out, and nobody would order it closed."""
    async with way(collector_of(Fixed(3600.0))) as w:
        await w.store(make_instance("1"))
        close = w.journal.file_reports

        async def full(*_: Any) -> None:
            raise JournalUnavailable("disk full")

        w.journal.file_reports = full
        asked: list[asyncio.Future[int]] = []
        for _ in range(2):
            asked.append(asyncio.get_running_loop().create_future())
            await w.inbox.put(Declare(SERIES, asyncio.get_running_loop().time(), asked[-1]))
        await asyncio.sleep(60)
        assert not any(one.done() for one in asked)
        asked[0].cancel()  # nobody waits for it any more
        w.journal.file_reports = close
        await asyncio.sleep(60)
        assert asked[1].result() == 0  # the first one closed it
        assert w.taken.reports == [(SERIES, 1, 1)]
        await w.close()


async def test_what_arrived_while_a_commit_stalled_is_seen_before_what_fell_due_meanwhile() -> None:
    async with way(prepare=slow_commits(1.5 * IDLE_S, "1.9")) as w:
        await w.store(make_instance("1"))
        stalls = w.store(make_instance("1", series="1.9"))
        await asyncio.sleep(0.3)
        assert await w.store(make_instance("2")) == SUCCESS  # its commit waits for the other's
        assert await stalls == SUCCESS
        await asyncio.sleep(3 * IDLE_S)
        assert set(w.taken.reports) == {("1.9", 1, 1), (SERIES, 1, 2)}


async def test_a_sender_that_had_to_wait_for_a_stalled_disk_is_not_taken_for_idle() -> None:
    async with way(prepare=slow_commits(3 * IDLE_S)) as w:
        for sop in ("1", "2", "3"):
            assert await w.store(make_instance(sop)) == SUCCESS
        await asyncio.sleep(3 * IDLE_S)
        assert w.taken.reports == [(SERIES, 1, 3)]


async def test_a_commit_that_fails_is_refused_and_not_counted() -> None:
    async with way() as w:

        async def full(_: Sequence[Instance]) -> None:
            raise JournalUnavailable("disk full")

        w.journal.keep = full
        with capture_logs() as logs:
            assert await w.store(make_instance("1")) == OUT_OF_RESOURCES
        assert w.collector.open_series == 0
        assert logs[0]["event"] == "instances.refused"


async def test_an_image_that_its_sender_was_refused_is_not_kept() -> None:
    async with way(prepare=slow_commits(9.0, "1.9")) as w:
        stalls = w.store(make_instance("1", series="1.9"))
        await asyncio.sleep(0.1)
        assert await w.store(make_instance("1")) == OUT_OF_RESOURCES  # it waited behind the stall for too long
        await stalls
        await w.close()
        assert [series for series, _, _ in w.taken.reports] == ["1.9"]


async def test_reports_that_the_journal_cannot_take_are_tried_again_in_their_order() -> None:
    async with way() as w:
        close, failures = w.journal.file_reports, iter([True, True])

        async def failing(*arguments: Any) -> list[Waiting]:
            if next(failures, False):
                raise JournalUnavailable("locked")
            taken: list[Waiting] = await close(*arguments)
            return taken

        w.journal.file_reports = failing
        for n in range(3):
            await w.store(make_instance("1", series=f"1.{n}"))
            await asyncio.sleep(0.1)
        await asyncio.sleep(10.0)
        assert w.taken.reports == [("1.0", 1, 1), ("1.1", 1, 1), ("1.2", 1, 1)]


async def test_closed_drains_what_is_open() -> None:
    async with way() as w:
        await w.store(make_instance("1"))
        await w.close()
        assert w.taken.reports == [(SERIES, 1, 1)]


async def test_the_pacs_is_asked_what_the_collector_wants_to_know() -> None:
    questions: list[Question] = []
    async with way(collector_of(Fixed(IDLE_S), pacs={"TEST"}), questions.append) as w:
        await w.store(make_instance("1"))
        await asyncio.sleep(0.1)
    assert [(question.calling_ae_title, question.revision) for question in questions] == [("TEST", 1)]


def poisoned(monkeypatch: pytest.MonkeyPatch, series: str, owner: Any, name: str) -> None:
    """A mistake of ours that shows at one series: what strangers say is checked where it comes in."""
    works = getattr(owner, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        (of,) = (argument for argument in arguments if isinstance(argument, OpenSeries))
        if of.key.series_instance_uid == series:
            raise ValueError("never shown")
        return works(*arguments, **named)

    monkeypatch.setattr(owner, name, fail)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (reporting, "full_report"),
        (SeriesCollector, "_decide"),
        *((OpenSeries, name) for name in ("teach", "deadline", "_mark_arrival", "ask_next")),
    ],
)
async def test_a_series_whose_report_cannot_be_made_is_reported_with_the_least(
    monkeypatch: pytest.MonkeyPatch, logs: list[Any], owner: Any, name: str
) -> None:
    poisoned(monkeypatch, "1.9", owner, name)
    async with way(collector_of(Fixed(IDLE_S), pacs={"TEST"})) as w:
        for series in ("1.8", "1.9", "1.10"):
            await w.store(make_instance("1", series=series))
        await w.close()
        assert sorted(w.taken.reports) == [("1.10", 1, 1), ("1.8", 1, 1), ("1.9", 1, 1)]
        assert w.journal.open_instances == 0
    reduced = [entry for entry in logs if entry["event"] == "series.reduced"]
    assert [entry["series_instance_uid"] for entry in reduced] == ["1.9"]


async def test_an_image_after_the_least_report_is_of_the_same_series_and_makes_its_next_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with way() as w:
        poisoned(monkeypatch, SERIES, SeriesCollector, "_decide")
        await w.store(make_instance("1"))
        await asyncio.sleep(3 * IDLE_S)
        monkeypatch.undo()
        await w.store(make_instance("2"))
        await asyncio.sleep(3 * IDLE_S)
    assert w.taken.reports == [(SERIES, 1, 1), (SERIES, 2, 1)]


async def test_a_series_of_which_not_even_that_can_be_made_is_set_aside_and_the_others_go_on(logs: list[Any]) -> None:
    async with way() as w:
        for series in ("1.8", "not\\a UID", "1.10"):
            await w.store(make_instance("1", series=series))
        await asyncio.sleep(3 * IDLE_S)
        assert sorted(w.taken.reports) == [("1.10", 1, 1), ("1.8", 1, 1)]
        assert w.journal.open_instances == 0
        assert w.journal.dead_letters == 1
    assert [e["series_instance_uid"] for e in logs if e["event"] == "series.set_aside"] == ["not\\a UID"]


async def test_what_is_doubtful_of_a_series_is_said_once_and_counted(logs: list[Any]) -> None:
    before = total(instances_doubtful)
    async with way() as w:
        for sop, doubtful in (("1", ("odd",)), ("2", ()), ("3", ("odd", "odder"))):
            await w.store(replace(make_instance(sop), doubtful=doubtful))
        await asyncio.sleep(3 * IDLE_S)
    said = [(e["series_instance_uid"], e["reasons"]) for e in logs if e["event"] == "series.doubtful"]
    assert said == [(SERIES, ["odd", "odder"])]
    assert total(instances_doubtful) - before == 2


# --- what an earlier run left ---


def restored(journal: Journal, dispatcher: SeriesDispatcher, **flags: str) -> SeriesCollector:
    return restore(load(GatewaySettings, {"id": "test", **flags}), journal, dispatcher, HeldStudies())


async def test_a_restart_arms_what_was_open_and_delivers_what_was_not_in_its_order() -> None:
    with memory_journal() as journal:
        await journal.keep([make_instance("1"), make_instance("1", series="1.9")])
        (waiting,) = await journal.file_reports([make_report("1", series="1.9")])
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0)
        collector = restored(journal, dispatcher)
        assert [series.SeriesInstanceUID for series in collector.arriving(9)] == [SERIES]
        assert dispatcher.undelivered == 1
        assert waiting.key.series_instance_uid == "1.9"
        collector.observe(make_instance("2", series="1.9"), 0.0)
        assert {(s.SeriesInstanceUID, s.Revision) for s in collector.arriving(9)} == {(SERIES, 1), ("1.9", 2)}


@pytest.mark.parametrize(("fetch_missing", "fetch"), [("off", False), ("get", True), ("move", True)])
async def test_what_is_set_are_the_rules_of_every_series(fetch_missing: str, fetch: bool) -> None:
    flags = {"max_open_s": "5000", "missing_timeout_s": "77", "idle_max_s": "99", "idle_timeout_s": "3"}
    more = {"pacs": "TEST@127.0.0.1:104", "fetch_missing": fetch_missing}
    with memory_journal() as journal:
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0)
        collector = restored(journal, dispatcher, **flags, **more)
        fixed = restored(journal, dispatcher, idle_policy="fixed", idle_timeout_s="3")
    rules = collector._rules
    assert (rules.max_open_s, rules.patience_s, rules.fetch, rules.gateway_id) == (5000.0, 77.0, fetch, "test")
    assert "TEST" in rules.pacs
    assert collector._closed._remember_s == 2 * 99
    assert isinstance(rules.policy, Adaptive)
    assert (rules.policy.idle_timeout_s, rules.policy.ceiling_s) == (3.0, 99.0)
    assert fixed.policy == Fixed(3.0)


async def test_a_restart_forgets_no_pause_that_the_server_asked_for() -> None:
    with memory_journal() as journal:
        await journal.pause(time.time() + 100.0)
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0)
        restored(journal, dispatcher)
        assert dispatcher._paused_until >= asyncio.get_running_loop().time() + 90.0


async def test_a_restart_takes_over_habits_and_trust_and_survives_habits_that_cannot_be_read() -> None:
    source, spoilt = Source("CT1", "CT", "ROOM1"), ("CT2", "CT", "")
    policy = Adaptive(2.0, 400.0)
    policy.learn(source, {Phase.OPEN: 30.0})
    learnt = {(*of,): text for of, text in policy.news().items()}
    with memory_journal() as journal, capture_logs() as logs:
        await journal.file_reports([make_report("1")], learnt | {spoilt: '{"open": "nonsense"}'}, [None], {"PACS": 7})
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0)
        collector = restored(journal, dispatcher)
        assert journal.trust() == {"PACS": 7}
    assert collector.policy.known(source) == 1
    assert collector.policy.timeout_s(source, Phase.OPEN, {}) > 30.0
    assert [entry["source"] for entry in logs if entry["event"] == "habits.unreadable"] == ["CT2 CT "]


async def test_what_was_posted_as_a_part_is_open_again_after_a_restart_with_the_same_revision() -> None:
    with memory_journal() as journal:
        await journal.keep([make_instance("1")])
        await journal.file_reports([make_report("1").model_copy(update={"Verdict": None})])
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0)
        (series,) = restored(journal, dispatcher).arriving(9)
        assert (series.Revision, series.Instances) == (1, 1)

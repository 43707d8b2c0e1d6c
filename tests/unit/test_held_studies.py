"""The studies that a gateway holds: no image that it acknowledged is ever left out, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Gateway, restore
from common.settings import GatewaySettings, load
from dicom.statuses import SUCCESS
from gateway import reporting
from gateway.dispatcher import SeriesDispatcher
from gateway.held_studies import HeldStudies
from gateway.idle import Fixed
from gateway.journal import Journal
from gateway.journal_rows import Waiting
from models import MAX_OPEN_STUDIES, Instance, SeriesKey, SeriesReport
from tests.rig.factories import SERIES, STUDY, collector_of, make_instance, make_report, memory_journal
from tests.rig.journals import MemoryJournal

pytestmark = pytest.mark.virtual_time
IDLE_S = 1.0
STALL_S = 0.4
SETTINGS = load(GatewaySettings, {"id": "test"})


class SlowJournal(MemoryJournal):
    """Takes its time over every write, and gives the dispatcher what it filed."""

    def __init__(self) -> None:
        super().__init__()
        self.commit_s = STALL_S
        self.ended: list[str] = []
        self.refusing = False

    async def file_reports(self, *args: Any) -> list[Waiting]:
        filed = await super().file_reports(*args)
        await asyncio.sleep(STALL_S)
        return filed

    async def set_aside(self, key: SeriesKey, sop_instance_uids: Sequence[str], revision: int, reason: str) -> None:
        await asyncio.sleep(STALL_S)
        await super().set_aside(key, sop_instance_uids, revision, reason)

    async def report(self, waiting: Waiting) -> str:
        await asyncio.sleep(STALL_S)
        return next(r.model_dump_json() for r in self.reports if r.key == waiting.key)

    async def delivered(self, waiting: Waiting) -> None:
        await asyncio.sleep(STALL_S)

    async def refused(self, waiting: Waiting, answer: str) -> None:
        await asyncio.sleep(STALL_S)


class Way:
    """A gateway on a slow journal, before a slow server that answers with `status`."""

    def __init__(self, status: int = 503) -> None:
        self.status = status
        self.held = HeldStudies()
        self.journal = SlowJournal()
        self.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(self._answer))
        journal = cast(Journal, self.journal)
        self.dispatcher = SeriesDispatcher(self.http, journal, concurrency=1, retry_max_s=1.0, held=self.held)
        self.collector = collector_of(Fixed(IDLE_S), held=self.held)
        self.gateway = Gateway(SETTINGS, journal, self.collector, self.dispatcher, held=self.held)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(STALL_S)
        if self.status == 422:
            return httpx.Response(422, json={"detail": [{"loc": ["body"], "type": "x"}]})
        return httpx.Response(self.status, text="{}")


@asynccontextmanager
async def way(status: int = 503) -> AsyncIterator[Way]:
    it = Way(status)
    tasks = [asyncio.create_task(do) for do in (it.gateway.collect(), it.dispatcher.run())]
    yield it
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await it.http.aclose()


async def moments(it: Way, until: float) -> list[bool]:
    """If STUDY is held, at many moments until a time; each step on its way takes several of them."""
    loop, seen = asyncio.get_running_loop(), []
    while loop.time() < until:
        seen.append(it.held.listed() == [STUDY])
        await asyncio.sleep(STALL_S / 10)
    return seen


async def test_a_study_is_held_from_the_commit_of_its_image_until_the_server_has_its_report() -> None:
    async with way() as it:
        assert it.held.listed() == []
        status = it.gateway.store(make_instance("1"))
        await asyncio.sleep(STALL_S / 2)
        assert not status.done()  # its commit is under way
        seen = await moments(it, 10.0)  # its series is open, closed, filed, and posted in vain
        assert status.result() == SUCCESS
        assert it.dispatcher.undelivered == 1
        assert all(seen)


async def test_a_commit_that_failed_holds_nothing() -> None:
    async with way() as it:
        it.journal.unavailable = "disk full"
        await it.gateway.store(make_instance("1"))
        assert it.held.listed() == []


async def test_a_dead_letter_is_held_no_more() -> None:
    async with way(422) as it:
        await it.gateway.store(make_instance("1"))
        assert it.held.listed() == [STUDY]
        await asyncio.sleep(20)
        assert it.held.listed() == []


async def test_what_is_set_aside_is_held_until_it_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> SeriesReport:
        raise ValueError

    monkeypatch.setattr(reporting, "full_report", fails)
    monkeypatch.setattr(reporting, "least_report", fails)
    async with way() as it:
        await it.gateway.store(make_instance("1"))
        it.journal.unavailable = "disk full"
        assert all(await moments(it, 10.0))  # in the journal it is open, and the next start reports it
    async with way() as it:
        await it.gateway.store(make_instance("1"))
        await asyncio.sleep(10)
        assert it.journal.set_aside_uids
        assert it.held.listed() == []


async def test_right_after_a_restart_everything_that_the_server_does_not_have_is_held_but_dead_letters() -> None:
    with memory_journal() as journal:
        await journal.keep([make_instance("1", study="1.1", series="1.1.1")])
        reports = [make_report("1", study=f"1.{n}", series=f"1.{n}.1") for n in (2, 3, 4)]
        waiting, dead, delivered = await journal.file_reports(reports)
        await journal.refused(dead, "HTTP 422")
        await journal.delivered(delivered)
        held = HeldStudies()
        dispatcher = SeriesDispatcher(httpx.AsyncClient(), journal, concurrency=1, retry_max_s=1.0, held=held)
        restore(SETTINGS, journal, dispatcher, held)
        assert held.listed() == ["1.1", "1.2"]
        assert waiting.key.study_instance_uid == "1.2"


def test_a_part_that_a_newer_report_replaces_is_let_go() -> None:
    async def submit() -> list[str] | None:
        held = HeldStudies()
        dispatcher = SeriesDispatcher(
            httpx.AsyncClient(), cast(Journal, None), concurrency=1, retry_max_s=1.0, held=held
        )
        key = SeriesKey(STUDY, SERIES, "P1")
        for id in range(1, 4):
            dispatcher.submit(Waiting(id, key, 1, 1, 0, 0.0, 0.0, part=True))
        held.let_go(STUDY)
        held.let_go(STUDY)  # the first may be under way, and is held as the last one is
        return held.listed()

    assert asyncio.run(submit()) == []


def test_no_more_are_named_than_a_heartbeat_takes_and_none_that_it_does_not() -> None:
    held = HeldStudies()
    for n in range(MAX_OPEN_STUDIES):
        held.take(f"1.{n}")
    assert len(held.listed() or ()) == MAX_OPEN_STUDIES
    held.take("2")
    assert held.listed() is None
    held.let_go("2")
    assert held.listed() is not None
    odd = HeldStudies()
    odd.take("no\\UID")
    assert odd.listed() is None


STEPS = st.lists(st.tuples(st.sampled_from(["1.1", "1.2", "1.3"]), st.booleans()), max_size=60)


@given(steps=STEPS)
def test_a_study_is_named_while_it_is_held_by_anybody_and_changes_are_told(steps: list[tuple[str, bool]]) -> None:
    held, holds = HeldStudies(), {"1.1": 0, "1.2": 0, "1.3": 0}
    for study, more in steps:
        if not more and not holds[study]:
            continue
        before = held.listed()
        held.changed.clear()
        holds[study] += 1 if more else -1
        (held.take if more else held.let_go)(study)
        assert held.listed() == sorted(study for study, count in holds.items() if count)
        assert held.changed.is_set() == (held.listed() != before)


def test_a_collector_holds_the_studies_of_its_open_series(monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldStudies()
    collector = collector_of(Fixed(IDLE_S), held=held)
    images: list[Instance] = [make_instance(str(n), study=f"1.{n % 2}", series=f"1.{n % 2}.{n % 4}") for n in range(8)]
    for image in images:
        collector.observe(image, 0.0)
    assert held.listed() == ["1.0", "1.1"]
    collector.drain(0.5, "1.0")
    assert held.listed() == ["1.1"]
    collector.observe(images[1], 0.9)
    assert len(collector.due(IDLE_S)) == 1  # one of its two series stays open
    assert held.listed() == ["1.1"]
    monkeypatch.setattr(reporting, "basis_of", None)  # a bug of ours
    assert len(collector.due(9.0)) == 1
    assert held.listed() == []

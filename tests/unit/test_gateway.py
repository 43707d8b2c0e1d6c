"""`client.Gateway` on a journal that fails and stalls, in virtual time: what is answered when, and in which order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from client import CLOSED, Gateway
from common import metrics
from common.settings import GatewaySettings, load
from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from gateway.dispatcher import JOURNAL_RETRY_S, SeriesDispatcher
from gateway.idle import Adaptive, Fixed, IdlePolicy
from gateway.journal import Journal
from gateway.journal_rows import Waiting
from gateway.questions import Answer, Question
from models import Association
from tests.rig.factories import SERIES, collector_of, make_instance
from tests.rig.journals import MemoryJournal

pytestmark = pytest.mark.virtual_time
IDLE_S = 1.0


@dataclass
class Dispatched:
    """Stands where the dispatcher is: the reports that it was given."""

    waiting: list[Waiting] = field(default_factory=list)
    hurried: bool = False

    def submit(self, waiting: Waiting) -> None:
        self.waiting.append(waiting)

    def hurry(self) -> None:
        self.hurried = True

    async def drain(self, timeout_s: float, study_instance_uid: str | None = None) -> int:
        return len([one for one in self.waiting if study_instance_uid in (None, one.key.study_instance_uid)])

    @property
    def series(self) -> list[str]:
        return [waiting.key.series_instance_uid for waiting in self.waiting]


@dataclass
class Rig:
    gateway: Gateway
    journal: MemoryJournal
    dispatched: Dispatched
    collecting: asyncio.Task[None]

    async def close(self) -> None:
        await self.gateway.inbox.put(CLOSED)
        await self.collecting


@contextlib.asynccontextmanager
async def rig(
    idle_s: float = IDLE_S, inbox_size: int = 100, policy: IdlePolicy | None = None, **collector: Any
) -> AsyncIterator[Rig]:
    """A gateway that collects."""
    journal, dispatched = MemoryJournal(), Dispatched()
    settings = load(GatewaySettings, {"id": "test", "inbox_size": str(inbox_size)})
    gateway = Gateway(
        settings,
        cast(Journal, journal),
        collector_of(policy or Fixed(idle_s), **collector),
        cast(SeriesDispatcher, dispatched),
    )
    collecting = asyncio.create_task(gateway.collect())
    yield Rig(gateway, journal, dispatched, collecting)
    collecting.cancel()
    await asyncio.wait([collecting])


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def events(logs: list[Any], *names: str) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"] in names]


# --- an image ---


async def test_an_image_is_answered_only_after_its_commit() -> None:
    async with rig() as r:
        r.journal.commit_s = 0.5
        status = r.gateway.store(make_instance("1"))
        await asyncio.sleep(0.4)
        assert not status.done()
        assert r.gateway.collector.open_series == 0  # nor is it counted before
        assert await status == SUCCESS
        assert len(r.journal.commits) == 1


async def test_a_commit_that_fails_is_out_of_resources_and_not_counted(logs: list[Any]) -> None:
    async with rig() as r:
        r.journal.unavailable = "disk full"
        assert await r.gateway.store(make_instance("1")) == OUT_OF_RESOURCES
        assert r.gateway.collector.open_series == 0
        r.journal.unavailable = None
        assert await r.gateway.store(make_instance("2")) == SUCCESS  # and the next one is taken
        await r.close()
    assert [report.NumInstances for report in r.journal.reports] == [1]
    assert events(logs, "instances.refused") == ["instances.refused"]


async def test_an_image_that_was_refused_while_it_waited_is_not_kept() -> None:
    async with rig() as r:
        r.journal.commit_s = r.gateway.settings.inbox_timeout_s + 1.0
        first = r.gateway.store(make_instance("1"))
        await asyncio.sleep(0.1)
        assert await r.gateway.store(make_instance("2")) == OUT_OF_RESOURCES  # behind the stall for too long
        await asyncio.wait([first])
        await r.close()
    assert r.journal.commits == [[make_instance("1").sop_instance_uid]]


async def test_images_that_wait_together_are_committed_together() -> None:
    async with rig() as r:
        r.journal.commit_s = 0.1
        statuses = [r.gateway.store(make_instance(str(n))) for n in range(20)]
        assert set(await asyncio.gather(*statuses)) == {SUCCESS}
    assert [len(commit) for commit in r.journal.commits] == [20]


async def test_an_image_of_the_pacs_is_kept_as_one_that_was_sent_unless_nothing_is_taken() -> None:
    before = metrics.total(metrics.instances_received)
    async with rig() as r:
        assert await r.gateway.store_fetched(make_instance("1")) == SUCCESS
        r.journal.reason = "min_free_bytes"
        assert await r.gateway.store_fetched(make_instance("2")) == OUT_OF_RESOURCES
        assert len(r.journal.open) == 1
    assert metrics.total(metrics.instances_received) == before + 2


# --- what happens beside images ---


async def test_an_end_of_an_association_reaches_the_collector_although_the_inbox_is_full() -> None:
    association = Association(1, "TEST", "127.0.0.1", 0.0)
    async with rig(idle_s=3600.0, inbox_size=1) as r:
        r.journal.commit_s = 1.0
        async with asyncio.TaskGroup() as r.gateway.putting:
            r.gateway.store(replace(make_instance("1"), association=association))
            await asyncio.sleep(0.1)  # its commit has begun
            r.gateway.store(replace(make_instance("2"), association=association))
            association.released_at = 0.2
            r.gateway.observe(association)
        await r.close()
    (report,) = r.journal.reports
    (counted,) = [entry.Details for entry in report.Timeline if entry.Event == "images.counted"]
    assert (counted["Images"], counted["Released"]) == (2, True)


async def test_what_the_pacs_answers_closes_the_series_that_it_verifies() -> None:
    async with rig(idle_s=5.0, pacs={"TEST"}) as r, asyncio.TaskGroup() as answering:

        def ask(question: Question) -> None:
            here = question.here
            answer = Answer("PACS", here, known=len(here), count=2, confirmed=len(here) == 2, revision=1)
            answering.create_task(r.gateway.answered(question.key, answer))

        r.gateway.ask = ask
        await r.gateway.store(make_instance("1"))
        await r.gateway.store(make_instance("2"))
        await asyncio.sleep(60.0)
    (report,) = r.journal.reports
    assert (report.Verdict, report.ExpectedInstances) == ("verified", 2)


async def test_a_declared_series_is_told_done_when_its_report_is_filed() -> None:
    async with rig(idle_s=3600.0) as r:
        await r.gateway.store(make_instance("1"))
        r.journal.unavailable = "disk full"
        declaring = asyncio.create_task(r.gateway.declare(SERIES, 0.0))
        await asyncio.sleep(60)
        assert not declaring.done()
        r.journal.unavailable = None
        assert await declaring == 1
        assert await r.gateway.declare(SERIES, 0.0) == 0


async def test_a_drain_reports_what_is_open_and_hurries_what_waits() -> None:
    async with rig(idle_s=3600.0) as r:
        await r.gateway.store(make_instance("1"))
        assert await r.gateway.operations()["drain"]() == {"reported": 1, "undelivered": 1, "known": True}
        assert r.dispatched.hurried
        assert await r.gateway.store(make_instance("2")) == SUCCESS  # and it goes on


async def test_the_status_says_why_nothing_is_taken() -> None:
    async with rig() as r:
        assert await r.gateway.status() == {"running": True, "ready": True, "reason": None}
        r.journal.reason = "min_free_bytes"
        assert await r.gateway.status() == {"running": True, "ready": False, "reason": "min_free_bytes"}


# --- reports ---


async def test_reports_wait_for_a_journal_that_is_down_and_keep_their_order(logs: list[Any]) -> None:
    async with rig() as r:
        for n in range(3):
            await r.gateway.store(make_instance("1", series=f"1.{n}"))
            await asyncio.sleep(0.1)
        r.journal.unavailable = "locked"
        await asyncio.sleep(10.0)
        assert r.dispatched.waiting == []
        r.journal.unavailable = None
        await asyncio.sleep(2 * JOURNAL_RETRY_S)
        assert r.dispatched.series == ["1.0", "1.1", "1.2"]
        assert r.journal.open == set()
    assert len(events(logs, "series.unreported")) >= 3


async def test_a_report_made_while_the_journal_is_down_goes_behind_those_that_wait() -> None:
    async with rig() as r:
        await r.gateway.store(make_instance("1", series="1.1"))
        await r.gateway.store(make_instance("1", series="1.2"))
        r.journal.unavailable = "locked"
        await asyncio.sleep(5.0)
        r.journal.unavailable = None
        await r.gateway.store(make_instance("2", series="1.1"))  # revision 2, made after revision 1 and filed after it
        await r.close()
    assert [(one.SeriesInstanceUID, one.Revision) for one in r.journal.reports if one.SeriesInstanceUID == "1.1"] == [
        ("1.1", 1),
        ("1.1", 2),
    ]


async def test_closed_drains_what_is_open_and_what_waits_on_the_inbox() -> None:
    async with rig(idle_s=3600.0) as r:
        r.journal.commit_s = 0.1
        statuses = [r.gateway.store(make_instance(str(n))) for n in range(3)]
        await r.close()
        assert {status.result() for status in statuses} == {SUCCESS}
    assert [(report.NumInstances, report.Verdict) for report in r.journal.reports] == [(3, "drained")]
    assert r.dispatched.series == [SERIES]


async def test_a_drain_while_the_journal_fails_ends_and_leaves_the_images_to_the_next_start(logs: list[Any]) -> None:
    async with rig(idle_s=3600.0) as r:
        await r.gateway.store(make_instance("1"))
        r.journal.unavailable = "disk full"
        await r.close()
    assert len(r.journal.open) == 1
    assert r.dispatched.waiting == []
    assert events(logs, "series.unreported") == ["series.unreported"]


async def test_an_image_that_comes_too_late_is_counted_as_a_false_completion_and_the_waits_are_measured() -> None:
    false, waits = metrics.total(metrics.false_completions), added_latencies()
    async with rig() as r:
        await r.gateway.store(make_instance("1"))
        await asyncio.sleep(2 * IDLE_S)
        await r.gateway.store(make_instance("2"))
        await r.close()
    assert [report.Revision for report in r.journal.reports] == [1, 2]
    assert metrics.total(metrics.false_completions) == false + 1
    assert added_latencies() == waits + 2


def added_latencies() -> float:
    (family,) = metrics.added_latency_seconds.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


async def test_what_was_learnt_is_filed_once_with_the_reports() -> None:
    async with rig(policy=Adaptive(IDLE_S, 100.0)) as r:
        await r.gateway.store(make_instance("1"))
        await asyncio.sleep(1000.0)
        await r.gateway.store(replace(make_instance("1", series="1.9"), calling_ae_title="OTHER"))
        await r.close()
    assert r.journal.learnt == [{"TEST", ""}, set()]  # a series that is drained teaches nothing


# --- a journal that fails ---


async def test_saturation_is_said_when_it_begins_and_when_it_ends_and_a_failing_journal_is_tried(
    logs: list[Any],
) -> None:
    async with rig() as r:
        watching = asyncio.create_task(r.gateway.watch())
        await asyncio.sleep(3 * JOURNAL_RETRY_S)
        assert r.journal.probes == 0
        r.journal.failing = r.journal.unavailable = "disk full"
        await asyncio.sleep(3 * JOURNAL_RETRY_S)
        assert r.journal.probes >= 2
        r.journal.unavailable = None
        await asyncio.sleep(3 * JOURNAL_RETRY_S)
        watching.cancel()
    said = [entry for entry in logs if entry["event"].startswith("gateway.")]
    assert [entry["event"] for entry in said] == ["gateway.saturated", "gateway.recovered"]
    assert said[0]["reason"] == "disk full"


async def test_a_drain_of_a_study_reports_its_series_and_no_other() -> None:
    async with rig(idle_s=3600.0) as r:
        for study, series in (("1.1", "1.1.1"), ("1.1", "1.1.2"), ("1.2", "1.2.1")):
            await r.gateway.store(make_instance("1", study=study, series=series))
        drain = r.gateway.operations()["drain"]
        assert await drain(study="1.1") == {"reported": 2, "undelivered": 2, "known": True}
        assert sorted(r.dispatched.series) == ["1.1.1", "1.1.2"]
        assert {report.Verdict for report in r.journal.reports} == {"drained"}
        assert await drain(study="1.9") == {"reported": 0, "undelivered": 0, "known": False}
        assert await drain() == {"reported": 1, "undelivered": 3, "known": True}


async def test_drains_at_the_same_time_report_each_series_once() -> None:
    async with rig(idle_s=3600.0) as r:
        for study in ("1.1", "1.2"):
            await r.gateway.store(make_instance("1", study=study, series=f"{study}.1"))
        drain = r.gateway.operations()["drain"]
        done = await asyncio.gather(drain(study="1.1"), drain(), drain(study="1.2"))
        assert [one["reported"] for one in done] == [1, 1, 0]
        assert sorted(r.dispatched.series) == ["1.1.1", "1.2.1"]

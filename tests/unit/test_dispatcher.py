"""SeriesDispatcher against a scripted server, in virtual time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from api.patience import Patience, WholeBodies
from common import metrics
from common.outgoing import RETRY_AFTER_MAX_S, backoff_s, retry_after_s
from gateway.clock import from_wall_clock
from gateway.dispatcher import RETRY_BASE_S, SeriesDispatcher, row_latency_s
from gateway.journal import Journal, JournalUnavailable
from gateway.journal_rows import Waiting
from gateway.operations import dead_letter_operations
from models import SeriesKey, SeriesRecord, SeriesReport
from tests.rig.factories import RECEIVED_AT, InMemory, make_instance, make_report, memory_journal, stored

pytestmark = pytest.mark.virtual_time
Answer = Callable[[SeriesReport], Awaitable[httpx.Response]]


class Line:
    """A dispatcher that works off a journal, against `answer`."""

    def __init__(self, journal: InMemory, dispatcher: SeriesDispatcher) -> None:
        self.journal = journal
        self.dispatcher = dispatcher

    async def report(self, *reports: SeriesReport) -> None:
        """Move reports into the journal and its outbox."""
        for report in reports:
            for sop in report.SOPInstanceUIDs or ():
                instance = replace(make_instance(series=report.SeriesInstanceUID), sop_instance_uid=sop)
                await self.journal.keep([instance])
            for waiting in await self.journal.file_reports([report]):
                self.dispatcher.submit(waiting)

    def states(self) -> list[str]:
        return [row["state"] for row in self.journal.connection.execute("SELECT state FROM reports ORDER BY id")]


@asynccontextmanager
async def dispatching(answer: Answer, concurrency: int = 4, spans: Any = None) -> AsyncIterator[Line]:
    """At the end everything is delivered."""

    async def handle(request: httpx.Request) -> httpx.Response:
        return await answer(SeriesReport.model_validate_json(request.content))

    async with (
        httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle)) as http,
        asyncio.TaskGroup() as tasks,
    ):
        with memory_journal() as journal:
            dispatcher = SeriesDispatcher(http, journal, concurrency=concurrency, retry_max_s=30.0, spans=spans)
            running = tasks.create_task(dispatcher.run())
            yield Line(journal, dispatcher)
            assert await dispatcher.drain(1e6) == 0
            assert journal.waiting_instances == 0
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


class Server:
    """Answers from a script, then stores."""

    def __init__(self, *script: httpx.Response | Exception) -> None:
        self.script = list(script)
        self.times: list[float] = []
        self.reports: list[SeriesReport] = []

    async def __call__(self, report: SeriesReport) -> httpx.Response:
        self.times.append(asyncio.get_running_loop().time())
        if self.script:
            answer = self.script.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        self.reports.append(report)
        return stored(report)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(408),
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(200, content=b"<html>a captive portal</html>"),
        httpx.Response(302, headers={"Location": "http://elsewhere/"}),
    ],
    ids=lambda f: type(f).__name__ if isinstance(f, Exception) else str(f.status_code),
)
async def test_what_may_pass_is_tried_again_until_stored(failure: httpx.Response | Exception) -> None:
    server = Server(failure, failure, failure)
    async with dispatching(server) as line:
        await line.report(make_report("1", "2"))
        assert line.journal.waiting_instances == 2
    assert len(server.times) == 4
    assert [r.NumInstances for r in server.reports] == [2]


TOO_LARGE = str(WholeBodies(FastAPI(), Patience(), 5)._too_large().detail)
REFUSED = {"loc": ["body", "NumInstances"], "msg": "Marked^Name is bad", "type": "int_type"}


@pytest.mark.parametrize(
    ("status", "detail", "kept"),
    [
        (400, "There was an error parsing the body", "Bad Request"),
        (413, TOO_LARGE, "Request Entity Too Large"),
        (422, [REFUSED], "body.NumInstances: int_type"),
        (422, [REFUSED | {"input": 1, "url": "https://errors.pydantic.dev"}], "body.NumInstances: int_type"),
    ],
)
async def test_refusal_that_no_retry_cures_is_a_dead_letter_with_the_answer(
    status: int, detail: Any, kept: str
) -> None:
    server = Server(httpx.Response(status, json={"detail": detail}))
    async with dispatching(server) as line:
        await line.report(make_report("1"), make_report("2"))
        await line.dispatcher.drain(60)
        assert line.states() == ["dead", "delivered"]
        (answer,) = line.journal.connection.execute("SELECT answer FROM reports WHERE state = 'dead'").fetchone()
    assert answer == f"HTTP {status} {kept}"
    assert len(server.times) == 2


STRANGERS_WORDS = [
    b"<html>404 page not found",
    b'{"message": "no route"}',
    b"",
    b"[1]",
    b'{"type": "about:blank", "title": "Gone", "detail": "The resource moved away."}',  # RFC 9457
    b'{"detail": "Not found."}',  # Django's
    b'{"detail": "Not Found"}',  # of our server at another path
    b'{"detail": "Method Not Allowed"}',
    b'{"detail": []}',
    b'{"detail": {}}',
    b'{"detail": null}',
    b'{"detail": ["too large"]}',
    b'{"detail": [{"loc": "body", "type": "x"}]}',
    b'{"detail": [{"loc": ["body"]}]}',
]


@pytest.mark.parametrize("content", STRANGERS_WORDS)
@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (400, "correct that"),
        (404, "GATEWAY_SERVER_URL"),
        (405, "routes"),
        (410, "GATEWAY_SERVER_URL"),
        (413, "client_max_body_size"),
        (421, "host name"),
        (422, "correct that"),
        (451, "correct that"),
    ],
)
async def test_what_a_proxy_refuses_says_nothing_of_the_report_and_is_tried_again(
    status: int, cure: str, content: bytes
) -> None:
    answer = httpx.Response(status, content=content)
    with capture_logs() as logs:
        async with dispatching(Server(answer, answer)) as line:
            await line.report(make_report("1"))
            await line.dispatcher.drain(600)
            assert line.states() == ["delivered"]
    delayed = [entry for entry in logs if entry["event"] == "report.delayed"]
    assert len(delayed) == 2
    assert all(cure in entry["reason"] and f"HTTP {status}" in entry["reason"] for entry in delayed)


@pytest.mark.parametrize("detail", [[REFUSED], TOO_LARGE, "There was an error parsing the body"])
@pytest.mark.parametrize("status", [404, 405, 410, 421, 451])
async def test_a_status_that_our_server_has_for_no_report_says_nothing_of_it(status: int, detail: Any) -> None:
    async with dispatching(Server(httpx.Response(status, json={"detail": detail}))) as line:
        await line.report(make_report("1"))
        await line.dispatcher.drain(600)
        assert line.states() == ["delivered"]


async def test_a_large_report_travels_in_parts_of_which_the_last_one_has_the_verdict() -> None:
    server = Server()
    async with dispatching(server) as line:
        await line.report(make_report(*map(str, range(1, 12_002))))
        await line.dispatcher.drain(60)
        assert line.states() == ["delivered"]
    assert [len(report.SOPInstanceUIDs or ()) for report in server.reports] == [5000, 5000, 2001]
    assert [report.Verdict for report in server.reports] == [None, None, "idle"]
    assert len({uid for report in server.reports for uid in report.SOPInstanceUIDs or ()}) == 12_001


async def test_a_part_that_fails_is_posted_again_with_what_comes_behind_it() -> None:
    server = Server(httpx.Response(200, json=stored(make_report("1")).json()), httpx.Response(503))
    async with dispatching(server) as line:
        await line.report(make_report(*map(str, range(1, 7_002))))
        await line.dispatcher.drain(60)
        assert line.states() == ["delivered"]
    assert [len(report.SOPInstanceUIDs or ()) for report in server.reports] == [5000, 2001]


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (
            httpx.Response(422, json={"detail": [{"loc": ["body", "Marked^Name", 3], "type": "Marked"}]}),
            "body.3: refused",
        ),
        (httpx.Response(422, content=rb'{"detail": [{"loc": ["Marked"], "type": "\ud800"}]}'), ": refused"),
        (httpx.Response(422, json={"detail": [{"loc": [{}], "type": "Marked"}]}), "Unprocessable Entity"),
        (httpx.Response(413, json={"detail": f"{TOO_LARGE} Marked"}), "Request Entity Too Large"),
        (
            httpx.Response(413, json={"detail": TOO_LARGE}, extensions={"reason_phrase": b"Marked"}),
            "Request Entity Too Large",
        ),
    ],
    ids=["field", "surrogate", "place", "text", "reason"],
)
async def test_no_word_of_a_servers_own_is_kept_of_a_refusal(answer: httpx.Response, kept: str) -> None:
    with capture_logs() as logs:
        async with dispatching(Server(answer)) as line:
            await line.report(make_report("1"))
            await line.dispatcher.drain(60)
            ((stored,),) = line.journal.connection.execute("SELECT answer FROM reports").fetchall()
    assert stored == f"HTTP {answer.status_code} {kept}"
    assert "Marked" not in str(logs)


async def test_no_word_of_a_broken_answer_is_logged() -> None:
    with capture_logs() as logs:
        async with dispatching(Server(httpx.RemoteProtocolError("illegal status line: Marked^Name"))) as line:
            await line.report(make_report("1"))
            await line.dispatcher.drain(60)
            assert line.dispatcher.last_problem is None  # cured
    assert [entry["reason"] for entry in logs if entry["event"] == "report.delayed"] == ["RemoteProtocolError"]


@pytest.mark.parametrize("set_by_s", [0.0, 365 * 86400.0, -365 * 86400.0, 3600.0, -1.0])
async def test_the_age_is_that_of_the_oldest_undelivered_report_whatever_the_clock_is_set_to(
    monkeypatch: pytest.MonkeyPatch, set_by_s: float
) -> None:
    async with dispatching(Server()) as line:
        assert line.dispatcher.oldest_undelivered_s == 0
        line.dispatcher.pause(60)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        await line.report(make_report("1"))
        monkeypatch.setattr(time, "time", lambda: now + set_by_s)
        await asyncio.sleep(10)
        await line.report(make_report("1", series="1.2"))
        assert line.dispatcher.undelivered == 2
        assert line.dispatcher.oldest_undelivered_s == pytest.approx(10, abs=0.1)
        line.dispatcher.hurry()
        await line.dispatcher.drain(1)
        monkeypatch.undo()
    assert (line.dispatcher.undelivered, line.dispatcher.oldest_undelivered_s) == (0, 0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "HTTP 401: GATEWAY_API_KEY is missing, wrong, expired or revoked"),
        (403, "HTTP 403: the key lacks the scope series:write"),
    ],
)
async def test_key_that_the_server_refuses_holds_up_all_reports_and_kills_none(status: int, reason: str) -> None:
    server = Server(*[httpx.Response(status, json={"detail": "no"})] * 20)
    with capture_logs() as logs:
        async with dispatching(server) as line:
            for n in range(50):
                await line.report(make_report("1", series=f"1.{n + 1}"))
            await line.dispatcher.drain(1e6)
            assert line.states() == ["delivered"] * 50
    assert {entry["reason"] for entry in logs if entry["event"] == "report.delayed"} == {reason}
    assert server.times[20] - server.times[0] > 30  # not one post a second, as where reports fail each for itself


async def test_replayed_dead_letter_is_posted_again() -> None:
    server = Server(httpx.Response(422, json={"detail": [REFUSED]}))
    async with dispatching(server) as line:
        await line.report(make_report("1", "2"))
        await line.dispatcher.drain(60)
        (replayed,) = await line.journal.replay_dead(None)
        line.dispatcher.submit(replayed)
    assert [r.NumInstances for r in server.reports] == [2]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_retry_after_is_honoured(status: int) -> None:
    server = Server(httpx.Response(status, headers={"Retry-After": "120"}))
    async with dispatching(server) as line:
        await line.report(make_report("1"))
    assert server.times[1] - server.times[0] >= 120


async def test_hurry_does_not_wait_for_the_next_attempt() -> None:
    server = Server(httpx.Response(503, headers={"Retry-After": "120"}), httpx.Response(500))
    async with dispatching(server, concurrency=1) as line:
        for n in range(3):
            await line.report(make_report("1", series=f"1.{n + 1}"))
        assert await line.dispatcher.drain(1) == 3
        hurried_at = asyncio.get_running_loop().time()
        line.dispatcher.hurry()
        assert await line.dispatcher.drain(60) == 0
    assert server.times[1] == hurried_at


async def test_a_drain_ends_with_the_last_report_and_nothing_is_kept_of_it() -> None:
    async with dispatching(Server(httpx.Response(500))) as line:
        for n in range(3):
            await line.report(make_report("1", series=f"1.{n + 1}"))
        began = asyncio.get_running_loop().time()
        assert await line.dispatcher.drain(3600.0) == 0
        assert asyncio.get_running_loop().time() - began < 60.0
        assert not line.dispatcher._lines
        assert not line.dispatcher._due
        await line.report(make_report("2", series="1.1"))
        assert line.dispatcher.undelivered == 1
        assert await line.dispatcher.drain(3600.0) == 0


def attempts() -> dict[str, float]:
    outcomes = ("delivered", "delayed", "rejected")
    return {outcome: metrics.total(metrics.dispatch_attempts.labels(outcome)) for outcome in outcomes}


async def test_attempts_are_counted_by_what_became_of_them() -> None:
    before = attempts()
    server = Server(httpx.Response(503), httpx.Response(422, json={"detail": [REFUSED]}))
    async with dispatching(server, spans=FailingSpans(True)) as line:
        await line.report(make_report("1"), make_report("2"))
        await line.dispatcher.drain(1e6)
    after = attempts()
    # The first one met a bug, then a server that is away, and was refused in the end; the second was delivered.
    assert {outcome: after[outcome] - before[outcome] for outcome in after} == {
        "delivered": 1,
        "delayed": 2,
        "rejected": 1,
    }


async def test_a_report_that_a_bug_sets_aside_is_counted_as_refused() -> None:
    before = attempts()
    async with dispatching(Server(), spans=FailingSpans(True, True, True)) as line:
        await line.report(make_report("1"))
        await line.dispatcher.drain(1e6)
        assert line.states() == ["dead"]
        assert str(line.dispatcher.last_problem).startswith("KeyError at tests/unit/test_dispatcher.py:")
    after = attempts()
    assert {outcome: after[outcome] - before[outcome] for outcome in after} == {
        "delivered": 0,
        "delayed": 2,
        "rejected": 1,
    }


async def test_reports_of_one_series_arrive_in_order_though_the_first_fails() -> None:
    server = Server(httpx.Response(500), httpx.Response(500))
    async with dispatching(server) as line:
        for revision in (1, 2, 3):
            await line.report(make_report("1").model_copy(update={"Revision": revision}))
    assert [r.Revision for r in server.reports] == [1, 2, 3]


async def test_a_failing_series_does_not_hold_up_others() -> None:
    good = asyncio.Event()

    async def answer(report: SeriesReport) -> httpx.Response:
        if report.SeriesInstanceUID == "1.1" and not good.is_set():
            return httpx.Response(500)
        good.set()
        return stored(report)

    async with dispatching(answer, concurrency=1) as line:
        await line.report(make_report("1", series="1.1"))
        await line.report(make_report("1", series="1.2"))
    assert good.is_set()


async def test_no_more_posts_at_once_than_allowed() -> None:
    at_once = peak = 0

    async def answer(report: SeriesReport) -> httpx.Response:
        nonlocal at_once, peak
        at_once += 1
        peak = max(peak, at_once)
        await asyncio.sleep(1)  # virtual
        at_once -= 1
        return stored(report)

    async with dispatching(answer, concurrency=3) as line:
        for n in range(20):
            await line.report(make_report("1", series=f"1.{n + 1}"))
    assert peak == 3


async def test_a_server_that_is_down_is_asked_with_one_post_at_a_time_and_ever_more_seldom() -> None:
    server = Server(*[httpx.ConnectError("refused")] * 40)
    async with dispatching(server) as line:
        for n in range(200):
            await line.report(make_report("1", series=f"1.{n + 1}"))
    gaps = [later - earlier for earlier, later in pairwise(server.times[4:40])]
    assert sum(gaps) > 60  # 36 tries; each of the 200 for itself would have made thousands
    assert all(gaps)
    assert len(server.reports) == 200


async def test_after_an_outage_posts_go_side_by_side_again() -> None:
    at_once = peak = 0

    async def answer(report: SeriesReport) -> httpx.Response:
        nonlocal at_once, peak
        if asyncio.get_running_loop().time() - began < 60:
            raise httpx.ConnectError("refused")
        at_once += 1
        peak = max(peak, at_once)
        await asyncio.sleep(1)  # virtual
        at_once -= 1
        return stored(report)

    began = asyncio.get_running_loop().time()
    async with dispatching(answer, concurrency=3) as line:
        for n in range(10):
            await line.report(make_report("1", series=f"1.{n + 1}"))
    assert peak == 3


async def test_a_server_that_fails_every_report_is_not_hammered() -> None:
    server = Server(*[httpx.Response(500)] * 100)
    async with dispatching(server) as line:
        for n in range(50):
            await line.report(make_report("1", series=f"1.{n + 1}"))
    assert server.times[99] - server.times[0] > 30


async def test_retry_after_of_a_whole_server_holds_for_every_report_and_over_a_restart() -> None:
    server = Server(httpx.Response(503, headers={"Retry-After": "120"}))
    async with dispatching(server, concurrency=1) as line:
        await line.report(make_report("1", series="1.1"), make_report("1", series="1.2"))
        assert await line.dispatcher.drain(60) == 2
        assert 100 < from_wall_clock(line.journal.paused_until()) <= 120
    assert server.times[1] - server.times[0] >= 120


async def test_report_that_cannot_be_marked_delivered_is_posted_again_and_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    failures = [JournalUnavailable("disk full")]
    delivered = Journal.delivered

    async def fails_once(self: Journal, waiting: Waiting) -> None:
        if failures:
            raise failures.pop()
        await delivered(self, waiting)

    monkeypatch.setattr(Journal, "delivered", fails_once)
    async with dispatching(server) as line:
        await line.report(make_report("1"), make_report("2").model_copy(update={"Revision": 2}))
    assert [r.Revision for r in server.reports] == [1, 1, 2]


def test_time_to_a_wall_clock_deadline_is_bounded_whatever_the_clock_says() -> None:
    assert from_wall_clock(time.time() + 10**6) == RETRY_AFTER_MAX_S
    assert from_wall_clock(0) == 0


def test_backoff_is_jittered_and_bounded() -> None:
    delays = [backoff_s(attempt, 30.0, RETRY_BASE_S) for attempt in range(1, 200)]
    assert len(set(delays)) > 190
    assert all(0 <= delay <= 30 for delay in delays)
    assert max(backoff_s(1, 30.0, RETRY_BASE_S) for _ in range(100)) <= 0.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *((None, 0), ("7", 7), ("0", 0), ("-3", 0), ("soon", 0), ("999999", RETRY_AFTER_MAX_S), ("", 0), ("²", 0)),
        *(("9" * 5000, RETRY_AFTER_MAX_S), ("1e3", 0), ("nan", 0), ("٣", 3), ("1, 2", 0), ("\ud800", 0)),
    ],
)
def test_retry_after_in_seconds(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after_s(format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s(format_datetime(later - timedelta(days=1), usegmt=True)) == 0


@pytest.mark.parametrize(
    "zone", ["+99999999999999", "-99999999999999", "+2500", "X" * 5000, "+", "\0", "²"], ids=lambda zone: zone[:8]
)
@pytest.mark.parametrize("year", ["0001", "2026", "9999", "99999999999999999999"])
def test_a_date_that_is_none_asks_for_no_time(year: str, zone: str) -> None:
    assert 0 <= retry_after_s(f"Thu, 01 Jan {year} 00:00:00 {zone}") <= RETRY_AFTER_MAX_S


def test_a_date_without_a_zone_of_its_own_is_in_utc() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after_s(f"{later:%a, %d %b %Y %H:%M:%S} -0000") <= 100


@pytest.mark.parametrize(("status", "whole"), [(429, True), (502, True), (503, True), (504, True), (500, False)])
async def test_what_a_proxy_says_of_its_backend_holds_for_every_report(status: int, whole: bool) -> None:
    """They wait for up to retry_max_s, where a report that fails for itself holds up others for 1 s at most."""
    server = Server(*[httpx.Response(status)] * 40)
    async with dispatching(server) as line:
        for n in range(200):
            await line.report(make_report("1", series=f"1.{n + 1}"))
    gaps = [later - earlier for earlier, later in pairwise(server.times[4:40])]
    assert (sum(gaps) > 60) == whole


# --- in depth --------------------------------------------------------------------------------------------------

NO_TEXT = "UPDATE reports SET report = CAST(x'4d61726b6564eda080' AS TEXT) WHERE series_instance_uid = '1.1'"


async def test_a_report_that_cannot_be_posted_costs_no_other_and_is_set_aside_in_the_end() -> None:
    server = Server()
    with capture_logs() as logs:
        async with dispatching(server) as line:
            line.dispatcher.pause(1)
            for series in ("1.1", "1.2"):
                await line.report(make_report("1", series=series), make_report("2", series=series))
            line.journal.connection.execute(NO_TEXT)
            assert await line.dispatcher.drain(1e6) == 0
            assert line.states() == ["dead", "dead", "delivered", "delivered"]
            answers = line.journal.connection.execute("SELECT answer FROM reports WHERE state = 'dead'").fetchall()
            assert line.journal.dead_letters == 2
    failed = [entry for entry in logs if entry["event"] == "report.failed"]
    assert [entry["attempt"] for entry in failed] == [1, 2, 3] * 2
    assert {entry["log_level"] for entry in failed} == {"error"}
    for text in {entry["reason"] for entry in failed} | {answer for (answer,) in answers}:
        assert text.startswith("UnicodeEncodeError at gateway/server_client.py:")
    assert "Marked" not in str(logs)
    rejected = [entry["dead_letter"] for entry in logs if entry["event"] == "report.rejected"]
    assert rejected == [1, 2]


class FailingSpans:
    """Fails as it is told to."""

    def __init__(self, *failures: bool) -> None:
        self.failures = list(failures)

    @contextlib.contextmanager
    def post(self, traceparent: str | None, headers: dict[str, str]) -> Any:
        if self.failures and self.failures.pop(0):
            raise KeyError("Marked^Name")
        yield


async def test_only_errors_in_a_row_set_a_report_aside() -> None:
    server = Server(httpx.Response(503))
    spans = FailingSpans(True, True, False, True, True)
    with capture_logs() as logs:
        async with dispatching(server, spans=spans) as line:
            await line.report(make_report("1"))
            assert await line.dispatcher.drain(1e6) == 0
            assert line.states() == ["delivered"]
    assert [entry["event"] for entry in logs].count("report.failed") == 4
    assert "Marked" not in str(logs)


async def test_a_report_that_fails_is_tried_again_later_not_at_once() -> None:
    spans = FailingSpans(True, True)
    async with dispatching(Server(), spans=spans) as line:
        began = asyncio.get_running_loop().time()
        await line.report(make_report("1"))
        await line.dispatcher.drain(1e6)
        took_s = asyncio.get_running_loop().time() - began
        (attempts,) = line.journal.connection.execute("SELECT attempts FROM reports").fetchone()
    assert took_s > 0
    assert attempts == 2


async def test_a_row_without_content_is_dead_and_nothing_is_posted() -> None:
    server = Server()
    async with dispatching(server) as line:
        line.dispatcher.pause(1)
        await line.report(make_report("1"))
        line.journal.connection.execute("UPDATE reports SET report = NULL")
        await line.dispatcher.drain(60)
        assert line.states() == ["dead"]
    assert server.times == []


async def test_a_part_that_a_newer_report_stands_for_is_not_posted() -> None:
    server = Server(httpx.Response(500))
    part = make_report("1").model_copy(update={"Verdict": None})
    async with dispatching(server) as line:
        await line.report(part)
        await asyncio.sleep(0)
        await line.report(part)
        await line.report(make_report("1", "2"))
        await line.dispatcher.drain(1e6)
        assert line.states() == ["delivered"]
        assert (line.journal.open_instances, line.journal.waiting_instances) == (0, 0)
    assert [report.NumInstances for report in server.reports] == [2]


async def test_parts_that_newer_ones_stand_for_are_not_counted_as_undelivered() -> None:
    server = Server(httpx.Response(503))
    part = make_report("1").model_copy(update={"Verdict": None})
    async with dispatching(server) as line:
        for _ in range(6):
            await line.report(part)
        assert line.dispatcher.undelivered <= 2  # the first may be under way


async def test_an_operator_is_told_which_dead_letters_cannot_be_made_into_reports() -> None:
    server = Server(httpx.Response(422, json={"detail": [REFUSED]}))
    async with dispatching(server) as line:
        await line.report(make_report("1"))
        await line.dispatcher.drain(60)
        await line.journal.set_aside(SeriesKey("no\\UID", "1.2", None), ["1.2.3"], 1, "KeyError at collector.py:1")
        operations = dead_letter_operations(line.journal, line.dispatcher.submit)
        assert await operations["replay"]([1, 2, 77]) == {"replayed": [1], "unmade": [2]}
        await line.dispatcher.drain(60)
        assert line.states() == ["delivered", "dead"]
        assert await operations["replay"](None) == {"replayed": [], "unmade": [2]}
        (reason,) = line.journal.connection.execute("SELECT answer FROM reports WHERE state = 'dead'").fetchone()
    assert reason == "no report can be made from it: StudyInstanceUID: string_pattern_mismatch"


# --- latency ---------------------------------------------------------------------------------------------------

NOW = RECEIVED_AT + timedelta(seconds=1346)


def answered(**change: Any) -> SeriesRecord:
    record = SeriesRecord.model_validate_json(stored(make_report("1")).content)
    return record.model_copy(update={"LastReceivedAt": RECEIVED_AT} | change)


def posted(received_s: float | None = 1345, **change: Any) -> str:
    at = None if received_s is None else RECEIVED_AT + timedelta(seconds=received_s)
    return make_report("1").model_copy(update={"LastReceivedAt": at} | change).model_dump_json(exclude_none=True)


@pytest.mark.parametrize(
    ("report", "record", "seconds"),
    [
        (posted(), answered(), 1),  # sent again: the row's time is that of the first
        (posted(), answered(LastReceivedAt=None), 1),
        (posted(1347), answered(), 0),  # clocks are set
        (posted(None), answered(), None),
        (posted(), answered(PatientID="P2"), None),  # kept aside: the row is another patient's
        (posted(), answered(StudyInstanceUID="1.9"), None),
        (posted(), answered(PatientID=None), 1),
        (posted(PatientID=None), answered(), 1),
        (posted(), answered(Conflicts=3), 1),  # of others
        ("no JSON", answered(), None),
        ("5", answered(), None),
    ],
)
def test_latency_is_from_the_reports_own_last_image_to_its_row(
    report: str, record: SeriesRecord, seconds: float | None
) -> None:
    assert row_latency_s(report, record, NOW) == seconds


async def test_an_image_sent_again_is_measured_by_its_own_time() -> None:
    async def answer(report: SeriesReport) -> httpx.Response:
        record = SeriesRecord.model_validate_json(stored(report).content)
        return httpx.Response(200, content=record.model_copy(update={"LastReceivedAt": RECEIVED_AT}).model_dump_json())

    def measured() -> float:
        samples = next(iter(metrics.row_latency_seconds.collect())).samples
        return next(sample.value for sample in samples if sample.name.endswith("_count"))

    before = measured()
    with capture_logs() as logs:
        async with dispatching(answer) as line:
            again = make_report("1").model_copy(update={"LastReceivedAt": datetime.now(UTC)})
            await line.report(again)
            await line.report(make_report("1").model_copy(update={"LastReceivedAt": None}))
    first, second = [entry for entry in logs if entry["event"] == "report.delivered"]
    assert 0 <= first["row_latency_s"] < 600
    assert "row_latency_s" not in second
    assert measured() == before + 1


async def test_what_the_row_lacks_or_is_in_conflict_with_is_logged_and_nothing_where_all_is_well() -> None:
    amiss: dict[str, Any] = {"ExpectedInstances": 12, "Missing": 5, "Conflicts": 1}
    rows = iter([amiss, {"ExpectedInstances": 1}])

    async def answer(report: SeriesReport) -> httpx.Response:
        record = SeriesRecord.model_validate_json(stored(report).content)
        return httpx.Response(200, content=record.model_copy(update=next(rows)).model_dump_json())

    with capture_logs() as logs:
        async with dispatching(answer) as line:
            await line.report(make_report("1"))
            await line.report(make_report("1"))
    first, second = [entry for entry in logs if entry["event"] == "report.delivered"]
    assert (first["expected"], first["missing"], first["conflicts"]) == (12, 5, 1)
    assert not {"expected", "missing", "conflicts", "part"} & second.keys()


async def test_a_drain_of_a_study_waits_for_its_reports_and_for_no_others() -> None:
    async def answer(report: SeriesReport) -> httpx.Response:
        await asyncio.sleep(5.0 if report.StudyInstanceUID == "1.1" else 15.0)
        return stored(report)

    async with dispatching(answer) as line:
        await line.report(*(make_report("1", study=study, series=f"{study}.1") for study in ("1.1", "1.2")))
        began = asyncio.get_running_loop().time()
        assert await line.dispatcher.drain(1.0, "1.1") == 1
        assert await line.dispatcher.drain(60.0, "1.1") == 0
        assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)
        assert (await line.dispatcher.drain(0.1, "1.9"), line.dispatcher.undelivered) == (0, 1)

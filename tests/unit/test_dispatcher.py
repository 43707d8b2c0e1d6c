"""SeriesDispatcher against a scripted server, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from client import RETRY_AFTER_MAX_S, SeriesDispatcher, backoff_s, retry_after_s
from models import SeriesRecord, SeriesReport
from tests.factories import RECEIVED_AT, make_report

pytestmark = pytest.mark.virtual_time
Answer = Callable[[SeriesReport], Awaitable[httpx.Response]]


def stored(report: SeriesReport) -> httpx.Response:
    record = SeriesRecord(
        **report.model_dump(include={"SeriesInstanceUID", "PatientID", "PatientName", "StudyInstanceUID", "Verdict"}),
        NumInstances=report.NumInstances,
        Modality="CT",
        Attributes={},
        Undecoded={},
        Revision=1,
        ExpectedInstances=None,
        FirstReceivedAt=None,
        LastReceivedAt=None,
        UpdatedAt=RECEIVED_AT,
        Conflicts=0,
    )
    return httpx.Response(200, content=record.model_dump_json())


@asynccontextmanager
async def dispatching(answer: Answer, concurrency: int = 4) -> AsyncIterator[SeriesDispatcher]:
    async def handle(request: httpx.Request) -> httpx.Response:
        return await answer(SeriesReport.model_validate_json(request.content))

    async with (
        httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle)) as http,
        asyncio.TaskGroup() as tasks,
    ):
        dispatcher = SeriesDispatcher(http, tasks, concurrency=concurrency, retry_max_s=30.0)
        yield dispatcher
        await dispatcher.drain()


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
    async with dispatching(server) as dispatcher:
        dispatcher.submit(make_report("1", "2"))
        assert dispatcher.held == 2
    assert len(server.times) == 4
    assert [r.NumInstances for r in server.reports] == [2]
    assert dispatcher.held == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_refusal_that_no_retry_cures_is_not_retried(status: int) -> None:
    server = Server(httpx.Response(status, json={"detail": [{"loc": ["body", "NumInstances"], "msg": "bad"}]}))
    async with dispatching(server) as dispatcher:
        dispatcher.submit(make_report("1"))
    assert len(server.times) == 1
    assert dispatcher.held == 0


async def test_retry_after_is_honoured() -> None:
    server = Server(httpx.Response(503, headers={"Retry-After": "120"}))
    async with dispatching(server) as dispatcher:
        dispatcher.submit(make_report("1"))
    assert server.times[1] - server.times[0] >= 120


async def test_reports_of_one_series_arrive_in_order_though_the_first_fails() -> None:
    server = Server(httpx.Response(500), httpx.Response(500))
    async with dispatching(server) as dispatcher:
        for revision in (1, 2, 3):
            dispatcher.submit(make_report("1").model_copy(update={"Revision": revision}))
    assert [r.Revision for r in server.reports] == [1, 2, 3]


async def test_a_failing_series_does_not_hold_up_others() -> None:
    good = asyncio.Event()

    async def answer(report: SeriesReport) -> httpx.Response:
        if report.SeriesInstanceUID == "1.1" and not good.is_set():
            return httpx.Response(500)
        good.set()
        return stored(report)

    async with dispatching(answer, concurrency=1) as dispatcher:
        dispatcher.submit(make_report("1", series="1.1"))
        dispatcher.submit(make_report("1", series="1.2"))
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

    async with dispatching(answer, concurrency=3) as dispatcher:
        for n in range(20):
            dispatcher.submit(make_report("1", series=f"1.{n + 1}"))
    assert peak == 3


async def test_cancel_counts_what_is_not_delivered() -> None:
    async with dispatching(Server(*[httpx.Response(503)] * 10_000)) as dispatcher:
        dispatcher.submit(make_report("1", series="1.1"))
        dispatcher.submit(make_report("2", series="1.1"))
        dispatcher.submit(make_report("1", series="1.2"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await dispatcher.drain()
        assert dispatcher.cancel() == 3
        dispatcher._empty.set()  # what the gateway does here is exit


def test_backoff_is_jittered_and_bounded() -> None:
    delays = [backoff_s(attempt, 30.0) for attempt in range(1, 200)]
    assert len(set(delays)) > 190
    assert all(0 <= delay <= 30 for delay in delays)
    assert max(backoff_s(1, 30.0) for _ in range(100)) <= 0.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("7", 7), ("0", 0), ("-3", 0), ("soon", 0), ("999999", RETRY_AFTER_MAX_S), ("", 0), ("²", 0)],
)
def test_retry_after_in_seconds(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after_s(format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s(format_datetime(later - timedelta(days=1), usegmt=True)) == 0

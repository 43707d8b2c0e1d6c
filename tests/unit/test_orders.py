"""Orders of the server: done once, answered until it has heard that, and no danger whatever they hold."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.errors import SeriesGatewayError
from gateway.operations import dead_letter_operations
from gateway.orders import ORDER_TIMEOUT_S, Orders, obedience
from models import MAX_ORDERS, Order
from tests.rig.factories import SERIES, STUDY, make_report, memory_journal

pytestmark = pytest.mark.virtual_time


def answer(*orders: Any) -> bytes:
    return json.dumps({"Orders": [{"AgeS": 0.0, **one} if isinstance(one, dict) else one for one in orders]}).encode()


def declare(number: int) -> dict[str, Any]:
    return {"Number": number, "Kind": "declare", "SeriesInstanceUID": f"1.{number}"}


async def nobody(title: str, study: str) -> str | None:
    raise AssertionError("asked")


class Obedient:
    """Does what declares want, and says it; or fails as it is told to."""

    def __init__(self) -> None:
        self.closed: list[str | None] = []
        self.fails: list[BaseException | float] = []
        self.orders = Orders({"declare": self._close})

    async def _close(self, order: Order) -> None:
        match self.fails.pop() if self.fails else None:
            case float(seconds):
                await asyncio.sleep(seconds)
            case BaseException() as error:
                raise error
        self.closed.append(order.SeriesInstanceUID)

    @property
    def said(self) -> dict[int, str | None]:
        return {done.Number: done.Problem for done in self.orders.done()}


async def test_an_order_that_comes_again_before_the_server_has_heard_is_not_done_again() -> None:
    it = Obedient()
    for _ in range(3):
        await it.orders.take(answer(declare(1), declare(2)))
    assert it.closed == ["1.1", "1.2"]
    assert it.said == {1: None, 2: None}
    it.orders.told(it.orders.done())
    assert it.said == {}


@pytest.mark.parametrize(
    "order",
    [
        {"Kind": "explode"},
        {"Kind": "declare"},
        {"Kind": "replay", "SeriesInstanceUID": SERIES},
        {"Kind": "discard", "DeadLetter": "all"},
        {"Kind": "declare", "SeriesInstanceUID": "no\\UID"},
        {"Kind": "declare", "SeriesInstanceUID": SERIES, "AgeS": 1e300},
        {"Kind": "declare", "SeriesInstanceUID": SERIES, "AgeS": -1},
        {},
    ],
)
async def test_what_is_not_understood_is_a_problem_to_tell_and_holds_up_nothing(order: dict[str, Any]) -> None:
    it = Obedient()
    await it.orders.take(answer({"Number": 1, **order}, declare(2)))
    assert it.closed == ["1.2"]
    assert (sorted(it.said), it.said[2]) == ([1, 2], None)
    assert it.said[1]


async def test_a_field_of_a_later_version_is_no_reason_not_to_do_it() -> None:
    it = Obedient()
    await it.orders.take(answer(declare(1) | {"Later": True}))
    assert it.closed == ["1.1"]


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"Orders": 7}', b'{"Orders": {}}', b"\xff", b"[" * 60_000, b'{"Orders": null}'],
)
async def test_an_answer_without_orders_is_one_of_a_server_that_gives_none(content: bytes) -> None:
    it = Obedient()
    await it.orders.take(answer())
    assert it.orders.given
    await it.orders.take(content)
    assert not it.orders.given


@pytest.mark.parametrize("number", [0, -1, 2**63, 1.5, "1", None, True, [1]])
async def test_an_order_without_a_number_cannot_be_answered_and_is_not_done(number: Any) -> None:
    it = Obedient()
    await it.orders.take(answer(declare(1) | {"Number": number}, 7, None))
    assert (it.closed, it.said) == ([], {})


async def test_no_more_is_done_of_one_answer_than_a_server_gives() -> None:
    it = Obedient()
    await it.orders.take(answer(*map(declare, range(1, 3 * MAX_ORDERS))))
    assert len(it.closed) == len(it.said) == MAX_ORDERS


@pytest.mark.parametrize("failure", [SeriesGatewayError("disk full"), 2 * ORDER_TIMEOUT_S])
async def test_what_cannot_be_done_now_is_done_when_it_comes_again(failure: BaseException | float) -> None:
    it = Obedient()
    it.fails.append(failure)
    with capture_logs() as logs:
        await it.orders.take(answer(declare(1)))
    assert ([line["event"] for line in logs], it.said) == (["order.delayed"], {})
    await it.orders.take(answer(declare(1)))
    assert (it.closed, it.said) == (["1.1"], {1: None})


async def test_a_bug_costs_that_order_and_the_log_says_where() -> None:
    it = Obedient()
    it.fails.append(RuntimeError("a patient's name"))
    with capture_logs() as logs:
        await it.orders.take(answer(declare(1), declare(2)))
    assert "order.failed" in [line["event"] for line in logs]
    assert (it.closed, it.said[2]) == (["1.2"], None)
    assert "patient" not in (it.said[1] or "patient")


async def test_a_declaration_is_as_old_as_the_server_says() -> None:
    asked: list[tuple[str, float]] = []

    async def declare_series(uid: str, age_s: float) -> int:
        asked.append((uid, age_s))
        return len(asked) - 1

    orders = Orders(obedience(declare_series, {}, nobody))
    await orders.take(answer(*({**declare(n), "AgeS": 90.0} for n in (1, 2))))
    assert asked == [("1.1", 90.0), ("1.2", 90.0)]
    assert {done.Number: done.Problem for done in orders.done()} == {1: "it was not open here", 2: None}


async def test_dead_letters_are_replayed_and_discarded_by_their_id_and_nothing_else_is() -> None:
    with memory_journal() as journal:
        dead = await journal.file_reports([make_report("1", series=f"1.{n}") for n in range(3)])
        for one in dead:
            await journal.refused(one, "HTTP 422")
        (alive,) = await journal.file_reports([make_report("1", series="1.9")])
        submitted: list[int] = []
        operations = dead_letter_operations(journal, lambda waiting: submitted.append(waiting.id))
        orders = Orders(obedience(None, operations, nobody))  # type: ignore[arg-type]
        kinds = ["replay", "discard", "replay", "discard", "discard"]
        letters = [dead[0].id, dead[1].id, dead[0].id, alive.id, 77]
        with capture_logs() as logs:
            given = enumerate(zip(kinds, letters, strict=True), 1)
            await orders.take(answer(*({"Number": n, "Kind": k, "DeadLetter": id} for n, (k, id) in given)))
        nothing = "it is not a dead letter here"
        said = {done.Number: done.Problem for done in orders.done()}
        assert said == {1: None, 2: None, 3: nothing, 4: nothing, 5: nothing}
        assert submitted == [dead[0].id]
        assert await journal.dead(None) == [dead[2].id]
    assert [line["kind"] for line in logs if line["event"] == "order.done"] == kinds


# --- counts of a study ---


def count(number: int, **change: Any) -> dict[str, Any]:
    about = {"SeriesInstanceUID": SERIES, "StudyInstanceUID": STUDY, "CallingAETitle": "PACS1"}
    return {"Number": number, "Kind": "count", **about, **change}


class Counting:
    """Asks a PACS that answers when it may; closes series meanwhile."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.may_answer = asyncio.Event()
        self.closed: list[str] = []
        self.outcome: str | SeriesGatewayError | None = None
        self.orders = Orders(obedience(self._declare, {}, self._count))

    async def _declare(self, uid: str, age_s: float) -> int:
        self.closed.append(uid)
        return 1

    async def _count(self, title: str, study: str) -> str | None:
        self.asked.append((title, study))
        await self.may_answer.wait()
        if isinstance(self.outcome, SeriesGatewayError):
            raise self.outcome
        return self.outcome

    async def answer(self) -> dict[int, str | None]:
        """Let the PACS answer; what is said then."""
        self.may_answer.set()
        await asyncio.sleep(0.01)
        return {done.Number: done.Problem for done in self.orders.done()}


async def test_a_slow_pacs_holds_up_neither_heartbeats_nor_other_orders_and_is_asked_once() -> None:
    it = Counting()
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        await it.orders.take(answer(count(1), declare(2)))
    assert asyncio.get_running_loop().time() == began
    assert it.closed == ["1.2"]
    await asyncio.sleep(10 * ORDER_TIMEOUT_S)
    assert [done.Number for done in it.orders.done()] == [2]
    assert await it.answer() == {2: None, 1: None}
    await it.orders.take(answer(count(1)))
    assert it.asked == [("PACS1", STUDY)]


async def test_why_a_study_was_not_counted_is_told_and_fits() -> None:
    it = Counting()
    it.outcome = "PACS1: " + "x" * 1000
    await it.orders.take(answer(count(1)))
    (problem,) = (await it.answer()).values()
    assert str(problem).startswith("PACS1: x")
    assert len(str(problem)) == 256


async def test_counts_that_the_server_could_not_take_are_asked_for_again_when_the_order_comes_again() -> None:
    it = Counting()
    it.outcome = SeriesGatewayError("HTTP 503")
    await it.orders.take(answer(count(1)))
    assert await it.answer() == {}
    it.outcome = None
    await it.orders.take(answer(count(1)))
    assert await it.answer() == {1: None}
    assert len(it.asked) == 2


@pytest.mark.parametrize("change", [{"StudyInstanceUID": None}, {"CallingAETitle": None}, {"SeriesInstanceUID": None}])
async def test_an_order_that_does_not_say_what_to_count_has_a_problem(change: dict[str, Any]) -> None:
    it = Counting()
    await it.orders.take(answer(count(1, **change)))
    (problem,) = (await it.answer()).values()
    assert problem
    assert it.asked == []


async def test_no_more_studies_are_counted_at_once_than_one_answer_may_order() -> None:
    it = Counting()
    for first in range(1, 10 * MAX_ORDERS, MAX_ORDERS):
        await it.orders.take(answer(*(count(n) for n in range(first, first + MAX_ORDERS))))
    await asyncio.sleep(0.01)
    assert len(it.asked) == MAX_ORDERS


async def test_what_is_under_way_is_given_up_at_the_end() -> None:
    it = Counting()
    await it.orders.take(answer(count(1)))
    await asyncio.sleep(0.01)
    await it.orders.aclose()
    assert await it.answer() == {}

"""Carry out the server's orders. They come in the answer to a heartbeat; the next heartbeat tells their outcome.

1. The server repeats an order in each answer until a heartbeat has told it the outcome.
2. An order that was carried out and comes again is not carried out again. After a restart it may be, which does no
   harm: a series that is not open cannot be closed, and a report that is no dead letter is not replayed or discarded.
3. An order that cannot be carried out now is left until it comes again. One that is not understood has failed.
4. An order that takes long, since a PACS is asked, is carried out beside the heartbeats, and is not begun again
   meanwhile. The others hold up the next heartbeat.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import structlog

from common.control import Operation
from common.errors import SeriesGatewayError
from models import MAX_ORDERS, Order, OrderDone

ORDER_TIMEOUT_S = 5.0  # for one order; no heartbeat is sent in that time
BESIDE = {"count"}  # kinds of orders that are carried out beside the heartbeats; what they do has bounds of its own
MAX_NUMBER = 2**63 - 1
MAX_PROBLEM = 256  # characters: models.Line

Do = Callable[[Order], Awaitable[str | None]]
"""Carries out an order; returns why there was nothing to do, if so. Raises SeriesGatewayError if later it may work."""
CountStudy = Callable[[str, str], Awaitable[str | None]]
log = structlog.get_logger()


class Orders:
    """The orders of one gateway, and their outcomes until the server knows them."""

    def __init__(self, do: Mapping[str, Do]) -> None:
        self._do = do
        self._done: dict[int, OrderDone] = {}
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self.given = False
        """True if the server's last answer could hold orders. An older server gives none, and knows fewer fields."""

    def done(self) -> list[OrderDone]:
        """Return the outcomes that the server does not know yet."""
        return list(islice(self._done.values(), MAX_ORDERS))

    def told(self, done: Sequence[OrderDone]) -> None:
        """Note that the server knows these outcomes."""
        for one in done:
            self._done.pop(one.Number, None)

    async def aclose(self) -> None:
        """Give up the orders that are under way. The server gives them again after the next start."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, content: bytes) -> None:
        """Carry out the orders in an answer to a heartbeat, whatever the answer contains."""
        try:
            orders = json.loads(content)["Orders"]
            numbers = [(_number(one), one) for one in orders[:MAX_ORDERS]]
        except (ValueError, LookupError, TypeError, RecursionError):
            self.given = False
            return
        self.given = True
        for number, order in numbers:
            if number is not None and number not in self._done and number not in self._under_way:
                await self._take_one(number, order)

    async def _take_one(self, number: int, content: Any) -> None:
        event = log.bind(number=number)
        try:
            order = Order.model_validate(content)
        except ValueError:
            event.warning("order.refused", reason="not an order that this version knows")
            self._done[number] = OrderDone(Number=number, Problem="not an order that this version of the gateway knows")
            return
        if order.Kind not in BESIDE:
            await self._carry_out(order, ORDER_TIMEOUT_S)
        elif len(self._under_way) < MAX_ORDERS:  # otherwise it is left until it comes again
            task = self._under_way[number] = asyncio.create_task(self._carry_out(order), name=f"order {number}")
            task.add_done_callback(lambda _: self._under_way.pop(number))

    async def _carry_out(self, order: Order, timeout_s: float | None = None) -> None:
        """Carry out an order, and note its outcome, unless it is to come again."""
        number, event = order.Number, log.bind(number=order.Number)
        try:
            async with asyncio.timeout(timeout_s):
                problem = await self._do[order.Kind](order)
        except (SeriesGatewayError, TimeoutError) as error:
            event.warning("order.delayed", kind=order.Kind, reason=str(error) or f"took more than {ORDER_TIMEOUT_S} s")
            return
        except Exception as error:  # a bug of ours must not stop the gateway
            event.error("order.failed", kind=order.Kind, exc_info=error)
            problem = "it failed; see the gateway's log"
        event.info("order.done", kind=order.Kind, problem=problem)
        self._done[number] = OrderDone(Number=number, Problem=problem and problem[:MAX_PROBLEM])


def _number(order: Any) -> int | None:
    """Return the number of an order, by which its outcome is told; None if it has no valid one."""
    number = order.get("Number") if isinstance(order, dict) else None
    return number if type(number) is int and 0 < number <= MAX_NUMBER else None


def obedience(
    declare: Callable[[str, float], Awaitable[int]], letters: Mapping[str, Operation], count: CountStudy
) -> Mapping[str, Do]:
    """Return a function for each kind of order. `letters` are the operations on dead letters (operations.py).

    `declare` reports a series if it was open so many seconds ago, and returns the number of reports. `count` asks a
    PACS, named by its AE title, about a study, posts its answer, and returns why that was not possible, if so.
    """

    async def close(order: Order) -> str | None:
        return None if await declare(order.SeriesInstanceUID or "", order.AgeS) else "it was not open here"

    async def replay(order: Order) -> str | None:
        done = await letters["replay"]([order.DeadLetter])
        if done["replayed"]:
            return None
        return "no report can be made from it" if done.get("unmade") else "it is not a dead letter here"

    async def discard(order: Order) -> str | None:
        done = await letters["discard"]([order.DeadLetter], f"order {order.Number} of the server")
        return None if done["discarded"] else "it is not a dead letter here"

    async def count_study(order: Order) -> str | None:
        if order.StudyInstanceUID is None or order.CallingAETitle is None:
            return "it names no study, or no PACS"
        return await count(order.CallingAETitle, order.StudyInstanceUID)

    return {"declare": close, "replay": replay, "discard": discard, "count": count_study}

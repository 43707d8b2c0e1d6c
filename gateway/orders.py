"""What the server wants of this gateway: the answer to a heartbeat says it, the next one says what became of it.

1. The server repeats an order in each answer until a heartbeat that it took says what became of it.
2. One that is done, and comes again before that, is not done again. After a restart it may be, which does no harm: a
   series that is not open is not closed, and what is no dead letter is neither replayed nor discarded.
3. One that could not be done now is left for the next answer. One that is not understood is a problem to tell.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import structlog

from common.control import Operation
from common.errors import GatewayError
from models import MAX_ORDERS, Order, OrderDone

ORDER_TIMEOUT_S = 5.0  # for one order; meanwhile no heartbeat goes out
MAX_NUMBER = 2**63 - 1

Do = Callable[[Order], Awaitable[str | None]]
"""Does an order; why there was nothing to do. Raises GatewayError where it may be possible later."""
log = structlog.get_logger()


class Orders:
    """What was ordered of one gateway, and what became of it until the server knows."""

    def __init__(self, do: Mapping[str, Do]) -> None:
        self._do = do
        self._done: dict[int, OrderDone] = {}
        self.given = False
        """The server's last answer was one that gives orders: an earlier version's does not, and knows less."""

    def done(self) -> list[OrderDone]:
        """What the server is to be told."""
        return list(islice(self._done.values(), MAX_ORDERS))

    def told(self, done: Sequence[OrderDone]) -> None:
        """The server knows this."""
        for one in done:
            self._done.pop(one.Number, None)

    async def take(self, content: bytes) -> None:
        """Do what an answer to a heartbeat orders, whatever it holds."""
        try:
            orders = json.loads(content)["Orders"]
            numbers = [(_number(one), one) for one in orders[:MAX_ORDERS]]
        except (ValueError, LookupError, TypeError, RecursionError):
            self.given = False
            return
        self.given = True
        for number, order in numbers:
            if number is not None and number not in self._done:
                await self._take_one(number, order)

    async def _take_one(self, number: int, content: Any) -> None:
        event = log.bind(number=number)
        try:
            order = Order.model_validate(content)
        except ValueError:
            event.warning("order.refused", reason="not an order that this version knows")
            self._done[number] = OrderDone(Number=number, Problem="not an order that this version of the gateway knows")
            return
        try:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                problem = await self._do[order.Kind](order)
        except (GatewayError, TimeoutError) as error:
            event.warning("order.delayed", kind=order.Kind, reason=str(error) or f"took more than {ORDER_TIMEOUT_S} s")
            return
        except Exception as error:  # a bug of ours, which is no reason to end
            event.error("order.failed", kind=order.Kind, exc_info=error)
            problem = "it failed: the gateway's log says where"
        event.info("order.done", kind=order.Kind, problem=problem)
        self._done[number] = OrderDone(Number=number, Problem=problem)


def _number(order: Any) -> int | None:
    """By which an order can be answered at all."""
    number = order.get("Number") if isinstance(order, dict) else None
    return number if type(number) is int and 0 < number <= MAX_NUMBER else None


def obedience(declare: Callable[[str, datetime], Awaitable[int]], letters: Mapping[str, Operation]) -> Mapping[str, Do]:
    """How each kind of order is done, with what operators ask of dead letters (operations.py).

    `declare` reports what is open of a series since before a time; how many reports that were.
    """

    async def close(order: Order) -> str | None:
        given_at = datetime.now(UTC) - timedelta(seconds=order.AgeS)
        return None if await declare(order.SeriesInstanceUID or "", given_at) else "it was not open here"

    async def replay(order: Order) -> str | None:
        done = await letters["replay"]([order.DeadLetter])
        if done["replayed"]:
            return None
        return "no report can be made of it" if done.get("unmade") else "it is no dead letter here"

    async def discard(order: Order) -> str | None:
        done = await letters["discard"]([order.DeadLetter], f"order {order.Number} of the server")
        return None if done["discarded"] else "it is no dead letter here"

    return {"declare": close, "replay": replay, "discard": discard}

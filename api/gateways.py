"""What gateways say of themselves, and what they are ordered to do."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from fastapi import APIRouter, HTTPException, Request
from fastapi.exceptions import RequestValidationError

from api.answers import GatewayList, GatewayOrder, GatewayOrders, GivenOrders, Problem, WantedOrder
from api.parameters import KNOWN_ONLY
from api.routing import DECIDES, READS, WRITES, Db, Responses, answers
from common import metrics
from models import GatewayState
from storage.heartbeats import StillHeard
from storage.orders import TooManyOrders, state_of

MOST_ORDERS = 100  # orders that one answer lists
REFUSED: Responses = answers(408, 413) | {code: {"model": Problem} for code in (404, 409)}
log = structlog.get_logger()
router = APIRouter(tags=["Overview"])


@router.put("/gateways/{GatewayID}", responses=answers(408, 413), dependencies=[WRITES])
async def hear(GatewayID: str, state: GatewayState, database: Db) -> GivenOrders:
    """Take a gateway's heartbeat: what it says of itself, in place of what it said before. Answers what it is to do."""
    if GatewayID != state.GatewayID:
        problem = {"loc": ("body", "GatewayID"), "msg": "is not the one in the path", "type": "value_error"}
        raise RequestValidationError([problem])
    orders, ended = await database.heard(state)
    metrics.heartbeats.inc()
    for one in ended:
        log.info("order.ended", gateway=GatewayID, number=one["Id"], kind=one["Kind"], done=one["Problem"] is None)
    return GivenOrders(Orders=orders)


@router.post("/gateways/{GatewayID}/orders", status_code=201, responses=REFUSED, dependencies=[DECIDES])
async def order(GatewayID: str, wanted: WantedOrder, database: Db, request: Request) -> GatewayOrder:
    """Have a gateway post a dead letter again, or give it up: it takes the order with its next heartbeat.

    The same order, while it waits, is one. One that is not taken within a day expires.
    """
    who = request.state.who
    try:
        row = await database.order(GatewayID, wanted.Kind, wanted.DeadLetter, who, wanted.Because)
    except TooManyOrders as error:
        raise HTTPException(409, str(error)) from None
    if row is None:
        raise HTTPException(404, "no gateway of this name was heard of within a day")
    told = {"gateway": GatewayID, "number": row["Id"], "kind": row["Kind"]}
    request.state.done |= told | {"dead_letter": wanted.DeadLetter}
    log.info("order.given", **told)
    return _as_told(row)


@router.delete("/gateways/{GatewayID}", status_code=204, responses=REFUSED, dependencies=[DECIDES])
async def dismiss(GatewayID: str, database: Db, request: Request) -> None:
    """Forget a gateway that is gone: what it said last, so that nobody is told of it any more.

    Should it say something again, it is back. One that was heard of within 15 s, and has not stopped, is not gone.
    """
    try:
        known = await database.heartbeats.dismiss(GatewayID, datetime.now(UTC))
    except StillHeard as error:
        raise HTTPException(409, str(error)) from None
    if not known:
        raise HTTPException(404, "no gateway of this name was heard of within a day")
    request.state.done["gateway"] = GatewayID
    log.info("gateway.dismissed", gateway=GatewayID)


@router.get("/gateways/{GatewayID}/orders", responses=answers(408, 413), dependencies=[READS, KNOWN_ONLY])
async def list_orders(GatewayID: str, database: Db) -> GatewayOrders:
    """List what a gateway was ordered to do within a week, the latest first, 100 at most, and what became of it."""
    return GatewayOrders(orders=[_as_told(row) for row in await database.orders.listed(GatewayID, MOST_ORDERS)])


def _as_told(row: Mapping[str, Any]) -> GatewayOrder:
    """Return the row of an order as it is answered."""
    return GatewayOrder.model_validate({**row, "Number": row["Id"], "State": state_of(row, datetime.now(UTC))})


@router.get("/gateways", responses=answers(408, 413), dependencies=[READS, KNOWN_ONLY])
async def list_gateways(database: Db) -> GatewayList:
    """List gateways that were heard of within a day, at most the latest 256, and what each said last."""
    return GatewayList(gateways=await database.gateways())

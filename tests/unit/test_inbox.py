"""`scp.enqueue`: who has no status in time is refused, each at its own time, in virtual time."""

import asyncio
from typing import Any

import pytest

from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from scp import Arrival, enqueue
from tests.rig.factories import make_instance

pytestmark = pytest.mark.virtual_time


async def test_each_instance_is_refused_at_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    refused: dict[str, tuple[int, float]] = {}
    inbox: asyncio.Queue[Any] = asyncio.Queue(3)
    store = enqueue(inbox, 5.0)

    async def sent(sop: str) -> None:
        refused[sop] = (await store(make_instance(sop)), loop.time() - began)

    began = loop.time()
    async with asyncio.TaskGroup() as senders:
        for sop in "12345":  # the last two find no room on the inbox
            senders.create_task(sent(sop))
            await asyncio.sleep(1)
        kept: Arrival = inbox.get_nowait()
        assert kept.instance.sop_instance_uid == make_instance("1").sop_instance_uid
        await asyncio.sleep(0.5)
        inbox.get_nowait().status.set_result(SUCCESS)
    assert refused == {
        "1": (OUT_OF_RESOURCES, 5.0),
        "2": (SUCCESS, 5.5),
        "3": (OUT_OF_RESOURCES, 7.0),
        "4": (OUT_OF_RESOURCES, 8.0),
        "5": (OUT_OF_RESOURCES, 9.0),
    }


async def test_after_a_pause_the_time_begins_anew() -> None:
    inbox: asyncio.Queue[Any] = asyncio.Queue(3)
    store, loop = enqueue(inbox, 5.0), asyncio.get_running_loop()
    for _ in range(2):
        status = store(make_instance())
        inbox.get_nowait().status.set_result(SUCCESS)
        assert await status == SUCCESS
        await asyncio.sleep(20)
    began = loop.time()
    assert await store(make_instance()) == OUT_OF_RESOURCES
    assert loop.time() - began == 5.0

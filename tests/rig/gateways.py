"""A whole gateway in this process: client.run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from client import run
from common.settings import GatewaySettings, load
from models import GatewayState

WITHIN_S = 120.0


class Gateway:
    """A gateway that runs; `undelivered` says what it had left when it had ended."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.undelivered: int | None = None
        self.shown: asyncio.Future[Callable[[], GatewayState]] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def show(self, state: Callable[[], GatewayState]) -> AsyncIterator[None]:
        self.shown.set_result(state)
        yield

    async def run(self) -> None:
        self.undelivered = await run(self.settings, self.stop, show=self.show)

    async def started(self) -> int:
        """The port that it listens on."""
        state = await self.shown
        while True:
            if port := int(state().Address.rpartition(":")[2]):
                return port
            await asyncio.sleep(0.01)

    async def asked(self, path: str) -> Any:
        """What the server answers, once it has it."""
        async with httpx.AsyncClient(base_url=str(self.settings.server_url)) as http:
            while True:
                answer = await http.get(path)
                if answer.status_code != HTTPStatus.NOT_FOUND:
                    return answer.json()
                await asyncio.sleep(0.02)

    async def heard(self) -> dict[str, Any]:
        """What it has said of itself to the server, once it has."""
        while True:
            states = [one["State"] for one in (await self.asked("/gateways"))["gateways"]]
            for state in states:
                if state["GatewayID"] == self.settings.id:
                    return dict(state)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, url: str, **flags: str) -> AsyncIterator[Gateway]:
    """A gateway that listens, told to stop at the end."""
    own = {"scp_port": "0", "server_url": url, "journal_path": f"{folder}/journal.db"}
    idle = {"idle_policy": "fixed", "idle_timeout_s": "0.2"}
    gateway = Gateway(load(GatewaySettings, own | idle | flags))
    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.run())
        try:
            await gateway.started()
            yield gateway
        finally:
            gateway.stop.set()

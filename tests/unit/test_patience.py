"""A body that does not come is waited for so long and no longer. In virtual time."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from api.patience import SILENCE_S, STOP_S, WHOLE_S, Patience, WholeBodies

pytestmark = pytest.mark.virtual_time
LATER = 10.0  # when the server is told to stop


class Stopping:
    """A follower whose end comes at LATER."""

    ended = False

    async def beyond(self, number: float, timeout_s: float) -> None:
        await asyncio.sleep(LATER)
        self.ended = number == math.inf


class Client:
    """Sends pieces of a body at these times, and then nothing."""

    def __init__(self, *times: float) -> None:
        self.sent: list[Message] = []
        self._times = [*times]

    async def receive(self) -> Message:
        loop = asyncio.get_running_loop()
        if not self._times:
            await asyncio.Event().wait()
        await asyncio.sleep(max(0.0, self._times[0] - loop.time()))
        self._times.pop(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def asked(client: Client, path: str = "/read", patience: Patience | None = None) -> tuple[int, float]:
    """The status of the answer, and when it was whole."""
    app = FastAPI()
    app.add_middleware(WholeBodies, max_bytes=2**20, patience=patience or Patience())

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        async def forever() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.Event().wait()

        return StreamingResponse(forever())

    scope: Scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    scope.update({"asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "server": None})
    await app(scope, client.receive, client.send)
    return int(client.sent[0]["status"]), asyncio.get_running_loop().time()


async def test_a_body_that_falls_silent_is_408() -> None:
    client = Client(0, 5)
    assert await asked(client) == (408, 5 + SILENCE_S)
    assert (b"connection", b"close") in client.sent[0]["headers"]


async def test_a_body_that_drips_is_408() -> None:
    assert await asked(Client(*range(0, 10_000, 5))) == (408, WHOLE_S)


async def test_a_stop_ends_the_wait_sooner_and_asks_to_try_again() -> None:
    patience, client = Patience(), Client(0, 5, LATER)
    stopping = asyncio.create_task(patience.run(Stopping()))  # type: ignore[arg-type]
    assert await asked(client, patience=patience) == (503, LATER + STOP_S)
    assert b"retry-after" in dict(client.sent[0]["headers"])
    await stopping
    assert await asked(Client(), patience=patience) == (503, LATER + STOP_S)  # one that comes still later, at once


async def test_an_answer_that_has_begun_ends_with_the_wait() -> None:
    assert await asked(Client(), "/stream") == (200, SILENCE_S)

"""How much of a request's body is taken, and how long its rest is waited for: silence holds up nothing, nor a stop."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.follower import Follower

SILENCE_S = 10.0  # how long the next piece of a body is waited for
WHOLE_S = 300.0  # how long a whole body is waited for, from its headers on
STOP_S = 1.0  # how long bodies are still waited for once the server is told to stop
LOOK_S = 60.0  # how often is looked whether it was
RETRY_AFTER_S = 2
WITH_BODY = ("POST", "PUT")  # of other methods no body is read: who receives there waits for the client to go


@dataclass
class Patience:
    """What waits for the rest of a body, and until when all of it has to be there."""

    ends_at: float = math.inf
    """Of the loop's time."""
    _waiting: set[asyncio.Timeout] = field(default_factory=set)

    async def run(self, follower: Follower) -> None:
        """Let bodies no longer be waited for once the follower has ended."""
        while not follower.ended:
            await follower.beyond(math.inf, LOOK_S)
        self.ends_at = asyncio.get_running_loop().time() + STOP_S
        for timeout in self._waiting:
            with suppress(RuntimeError):  # it ends by itself in this very moment
                timeout.reschedule(min(timeout.when() or math.inf, self.ends_at))

    @asynccontextmanager
    async def until(self, deadline: float) -> AsyncIterator[None]:
        """Bound a wait. Raises TimeoutError at the deadline, or sooner when the server stops."""
        async with asyncio.timeout_at(min(deadline, self.ends_at)) as timeout:
            self._waiting.add(timeout)
            try:
                yield
            finally:
                self._waiting.discard(timeout)

    def problem(self) -> HTTPException:
        """Return the answer to a request whose body did not come in time; its connection is of no use any more."""
        if self.ends_at < math.inf:
            headers = {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}
            return HTTPException(503, "the server stops; send the request again", headers)
        return HTTPException(408, "the rest of the body did not come in time", {"Connection": "close"})


class WholeBodies:
    """ASGI middleware: a body is read in time and within its bound, or not at all."""

    def __init__(self, app: ASGIApp, patience: Patience, max_bytes: int) -> None:
        self._app = app
        self._patience = patience
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._max_bytes:
            problem = self._too_large()
            await JSONResponse({"detail": problem.detail}, problem.status_code, problem.headers)(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        ends_at, whole, answered = loop.time() + WHOLE_S, False, False
        left = self._max_bytes

        async def receive_in_time() -> Message:
            nonlocal whole, left
            if whole:  # what comes now is that the client goes
                return await receive()
            try:
                async with self._patience.until(min(ends_at, loop.time() + SILENCE_S)):
                    message = await receive()
            except TimeoutError:
                if not answered:
                    raise self._patience.problem() from None
                return {"type": "http.disconnect"}
            whole = not message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0 and not answered:
                raise self._too_large()
            return message

        async def send_answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self._app(scope, receive_in_time, send_answer)

    def _too_large(self) -> HTTPException:
        problem = f"the body has more than {self._max_bytes} bytes: SERVER_MAX_BODY_BYTES takes no larger one"
        return HTTPException(413, problem, {"Connection": "close"})


def _announced(scope: Scope) -> int:
    """Return what Content-Length says, which uvicorn has checked; 0 if a body comes without (RFC 9112 §6.3)."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else 0

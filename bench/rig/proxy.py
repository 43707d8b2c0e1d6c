"""An HTTP proxy between gateway and server that does to chosen requests what networks and dying servers do."""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto

REPORT = b"POST /series "
CANNED = "HTTP/1.1 {}\r\nContent-Length: 0\r\n{}Connection: close\r\n\r\n"


class Mischief(Enum):
    """What happens to one request."""

    ERROR_500 = auto()
    ERROR_429 = auto()
    HANG = auto()
    """Never an answer."""
    HALF_CLOSE = auto()
    """The server stores it; half of its answer comes back, then the connection closes."""
    CUT_REQUEST = auto()
    """The connection closes before the server sees anything."""
    CUT_ANSWER = auto()
    """The server stores it and nobody hears."""


class Proxy:
    """Works off `mischief`, one request each, and forwards the rest. Its hooks run in its own thread."""

    def __init__(self) -> None:
        self.port = 0
        self.upstream_port = 0
        self.mischief: deque[Mischief] = deque()
        self._serving: set[asyncio.Task[None] | None] = set()
        """Held here, since nothing else holds one whose gateway is gone and whose server has not answered."""
        self.on_request: Callable[[], None] | None = None
        """Called once, when a report has come in and the server has not seen it; then it is forgotten."""
        self.on_answer: Callable[[], None] | None = None
        """Called once, when the server has answered a report and the gateway has not heard; then it is forgotten."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self._serving.add(asyncio.current_task())
        try:
            while request := await _message(reader):
                _once(self, "on_request", request)
                if not await self._handle(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._serving.discard(asyncio.current_task())
            writer.close()

    async def _handle(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; false where the connection ends with it."""
        mischief = self.mischief.popleft() if self.mischief else None
        match mischief:
            case Mischief.ERROR_500:
                writer.write(CANNED.format("500 Internal Server Error", "").encode())
                return False
            case Mischief.ERROR_429:
                writer.write(CANNED.format("429 Too Many Requests", "Retry-After: 1\r\n").encode())
                return False
            case Mischief.CUT_REQUEST:
                return False
            case Mischief.HANG:
                await asyncio.sleep(60)
                return False
        answer = await self._forward(request)
        _once(self, "on_answer", request)
        if mischief is Mischief.CUT_ANSWER:
            return False
        writer.write(answer if mischief is None else answer[: len(answer) // 2])
        await writer.drain()
        return mischief is None

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()


def _once(proxy: Proxy, name: str, request: bytes) -> None:
    hook = getattr(proxy, name)
    if hook is not None and request.startswith(REPORT):
        setattr(proxy, name, None)
        hook()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a Content-Length; empty at the end of the stream."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@contextmanager
def proxy() -> Iterator[Proxy]:
    """A running proxy on a free port, on a loop in a thread of its own."""
    serving, started = Proxy(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
        serving.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), name="proxy")
    thread.start()
    started.wait()
    try:
        yield serving
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

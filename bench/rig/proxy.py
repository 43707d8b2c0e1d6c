"""An HTTP proxy between gateway and server that does to chosen requests what networks and dying servers do."""

import asyncio
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any
from weakref import WeakSet

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
        """Held here, since nothing else holds one whose gateway is gone and whose server has not answered."""
        self.on_request: Callable[[], None] | None = None
        """Called once, when a report has come in and the server has not seen it; then it is forgotten."""
        self.on_answer: Callable[[], None] | None = None
        """Called once, when the server has answered a report and the gateway has not heard; then it is forgotten."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection, request after request."""
        try:
            while request := await _message(reader):
                _once(self, "on_request", request)
                if not await self._handle(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass

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
    """Reads one HTTP message with a Content-Length; returns nothing at the end of the stream."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@contextmanager
def served(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> Iterator[int]:
    """Serves connections on a free loopback port, on a loop in a thread of its own; yields the port.

    A connection is closed when `serve` has ended, at the latest when the proxy does.
    """
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    serving: set[asyncio.Task[None]] = set()
    transports: WeakSet[asyncio.WriteTransport] = WeakSet()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            serving.remove(task)
            writer.close()

        transports.add(writer.transport)
        task = loop.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(ended)

    async def main() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await stop.wait()
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(3):  # turns until `connected` was called for what had been accepted: else that is left open
            await asyncio.sleep(0)
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for transport in transports:
            transport.abort()  # what is still to be written has nobody who waits for it

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), name="proxy")
    thread.start()
    try:
        yield ports.get()
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@contextmanager
def proxy() -> Iterator[Proxy]:
    """A running proxy on a free port."""
    serving = Proxy()
    with served(serving.serve) as serving.port:
        yield serving

"""The Unix socket `<file>.sock`, on which a command asks a running gateway or server to do something.

The file is the gateway's journal or the server's SQLite database. Only one process may write to it, so commands ask
that process. A request and its answer are one line of JSON each.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import SeriesGatewayError

if TYPE_CHECKING:
    import asyncio

MAX_LINE_BYTES = 2**20  # of a request
STARTS_WITHIN_S = 10.0  # how long a process is waited for that has the file, and does not answer yet
ASKED_EVERY_S = 0.2

T = TypeVar("T")

Operation = Callable[..., Awaitable[dict[str, Any]]]


class NotRunning(SeriesGatewayError):
    """No process listens on the file's socket."""


class FileInUse(SeriesGatewayError):
    """Another process has the file, whether it answers on the socket or not."""


class RequestFailed(SeriesGatewayError):
    """The request could not be carried out. The text says why."""


class EndedMeanwhile(RequestFailed):
    """The process ended before it answered, so whether it has carried out the request is not known."""


@asynccontextmanager
async def serve_control(path: Path, operations: Mapping[str, Operation]) -> AsyncIterator[None]:
    """Answer requests of the form `{"do": operation, …arguments}`. Only the user of this process can connect."""
    import asyncio

    async def serve(reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(json.dumps(await _answer(operations, reader)).encode() + b"\n")
            await writer.drain()

    with _address(path) as address:
        _remove(address)  # a killed process left it behind; we hold the file's lock, so nobody else uses it
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(serve, address, limit=MAX_LINE_BYTES)
        finally:
            os.umask(before)
        try:
            yield
        finally:
            server.close()
            with contextlib.suppress(OSError):  # its disk has failed: the next process removes it
                _remove(address)


async def _answer(operations: Mapping[str, Operation], reader: "asyncio.StreamReader") -> dict[str, Any]:
    """Read one request and carry it out; return the answer. Every error becomes an answer, too."""
    try:
        arguments = json.loads(await reader.readline())
        return await operations[arguments.pop("do")](**arguments)
    except SeriesGatewayError as error:
        return {"error": str(error)}
    except Exception as error:  # the line may hold anything
        return {"error": f"this process does not know the request ({type(error).__name__}): is it another version?"}


def request(path: Path, timeout_s: float, do: str, **arguments: Any) -> dict[str, Any]:
    """Ask the process that owns the file at `path` to do an operation; return its answer.

    Raises NotRunning, or RequestFailed, of which EndedMeanwhile says that the answer has not come whole.
    """
    ended = f"the running process ended before it answered `{do}`, which it may have done: start it, look, ask again"
    with _address(path) as address, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except PermissionError as error:
            raise RequestFailed(
                f"{path}.sock may not be opened. Run this as the user that the running process runs as."
            ) from error
        except OSError as error:
            raise NotRunning from error
        try:
            sock.sendall(json.dumps({"do": do} | arguments).encode() + b"\n")
            with sock.makefile() as lines:
                line = lines.readline()
            if not line.endswith("\n"):
                raise EndedMeanwhile(ended)
            answer: dict[str, Any] = json.loads(line)
        except ConnectionError as error:
            raise EndedMeanwhile(ended) from error
        except (OSError, ValueError) as error:
            raise RequestFailed(f"the running process did not answer `{do}`: {type(error).__name__}") from error
    if "error" in answer:
        raise RequestFailed(str(answer["error"]))
    return answer


def asked_or_done(
    ask: Callable[[], T],
    do: Callable[[], Coroutine[Any, Any, T]],
    run: Callable[[Coroutine[Any, Any, T | None]], T | None],
) -> T:
    """Ask the process that has the file, or, where none runs, have `run` do it here; return the answer.

    Where none answers (`ask` raises NotRunning) and one has the file (`do` raises FileInUse), that process starts or
    ends: for STARTS_WITHIN_S it, or the next one, is only asked, since who took the file would keep the next one out.
    """
    ends_at = time.monotonic() + STARTS_WITHIN_S

    async def done() -> T | None:
        try:
            return await do()
        except FileInUse:
            if time.monotonic() > ends_at:
                raise
            return None

    is_first = True
    while True:
        with suppress(NotRunning):
            return ask()
        if (is_first or time.monotonic() > ends_at) and (answer := run(done())) is not None:
            return answer
        is_first = False
        time.sleep(ASKED_EVERY_S)


def _remove(address: str) -> None:
    Path(address).unlink(missing_ok=True)


@contextmanager
def _address(file: Path) -> Iterator[str]:
    """Yield a short address of the file's socket, by way of a descriptor of its folder.

    A Unix address holds at most 107 bytes, and a path can be longer. The socket is beside the file itself, not beside a
    link to it.
    """
    file = Path(os.path.realpath(file))
    try:
        folder = os.open(file.parent, os.O_PATH)
    except OSError as error:
        raise NotRunning from error
    try:
        yield f"/proc/self/fd/{folder}/{file.name}.sock"
    finally:
        os.close(folder)

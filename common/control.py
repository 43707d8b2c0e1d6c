"""The Unix socket `<file>.sock` on which a gateway or server, the only one that may write that file, is asked to.

One JSON line each way; the file is the gateway's journal, or the server's SQLite database.
"""

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import GatewayError

if TYPE_CHECKING:
    import asyncio

MAX_LINE_BYTES = 2**20

Operation = Callable[..., Awaitable[dict[str, Any]]]


class NotRunning(GatewayError):
    """Nobody listens on the file's socket."""


class RequestFailed(GatewayError):
    """What was asked could not be done. The text says why."""


@asynccontextmanager
async def serve_control(path: Path, operations: Mapping[str, Operation]) -> AsyncIterator[None]:
    """Take requests, `{"do": operation, …arguments}`, from the user whom this process runs as."""
    import asyncio

    async def serve(reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(json.dumps(await _answer(operations, reader)).encode() + b"\n")
            await writer.drain()

    with _address(path) as address:
        _remove(address)  # a killed process leaves it; the file's lock says that it is ours
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(serve, address, limit=MAX_LINE_BYTES)
        finally:
            os.umask(before)
        try:
            yield
        finally:
            server.close()
            _remove(address)


async def _answer(operations: Mapping[str, Operation], reader: "asyncio.StreamReader") -> dict[str, Any]:
    """Do what one line asks: the edge to whoever may open the socket."""
    try:
        arguments = json.loads(await reader.readline())
        return await operations[arguments.pop("do")](**arguments)
    except GatewayError as error:
        return {"error": str(error)}
    except Exception as error:  # what stands in that line may be anything
        return {"error": f"not a request that this process knows ({type(error).__name__}): is it another version?"}


def request(path: Path, timeout_s: float, do: str, **arguments: Any) -> dict[str, Any]:
    """Ask the process that runs on the file at `path`. Raises NotRunning or RequestFailed."""
    with _address(path) as address, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except PermissionError as error:
            raise RequestFailed(
                f"{path}.sock may not be opened. Run this as the user whom that process runs as."
            ) from error
        except OSError as error:
            raise NotRunning from error
        try:
            sock.sendall(json.dumps({"do": do} | arguments).encode() + b"\n")
            with sock.makefile() as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise RequestFailed(f"the running process did not answer {do}: {type(error).__name__}") from error
    if "error" in answer:
        raise RequestFailed(str(answer["error"]))
    return answer


def _remove(address: str) -> None:
    Path(address).unlink(missing_ok=True)


@contextmanager
def _address(file: Path) -> Iterator[str]:
    """The socket's path by way of its folder's descriptor: a Unix address holds 107 bytes, a path may be longer.

    It stands beside the file itself, whichever link leads there.
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

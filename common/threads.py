"""Run blocking work beside the event loop, without delaying the end of the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def in_thread(do: Callable[[], T], name: str) -> T:
    """Run a blocking function in a daemon thread; return its result or raise its error.

    An executor's thread would delay the end of the process if it hangs. A daemon thread does not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = do()
        except StopIteration as problem:  # a future does not accept it
            error = RuntimeError("StopIteration").with_traceback(problem.__traceback__)
        except Exception as problem:  # raised by the caller's await
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future

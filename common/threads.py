"""Run blocking work beside the event loop, without delaying the end of the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(do: Callable[[], T], name: str) -> T:
    """Run a blocking function in a daemon thread; return its result or raise its error.

    An executor's thread would delay the end of the process if it hangs. A daemon thread does not.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    threading.Thread(target=_work, args=(future, do), name=name, daemon=True).start()
    return await future


class Worker:
    """One thread that runs functions for the event loop, in the order in which they were given."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name)
        self._ended = False

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread once it has run everything that it was given."""
        self._ended = True
        self._work.put(None)
        self._thread.join()

    def run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Give the thread a function to run; return a future of its result. Cancelling that does not stop it."""
        if self._ended:
            raise RuntimeError(f"the thread {self._thread.name} has ended")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work.put((future, partial(do, **kwargs) if kwargs else do, args))
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            _work(*work)


def _work(future: "asyncio.Future[T]", do: Callable[..., T], args: tuple[Any, ...] = ()) -> None:
    """Run a function, and settle its future in the event loop."""
    result: T | None = None
    error: Exception | None = None
    try:
        result = do(*args)
    except StopIteration as problem:  # a future does not accept it
        error = RuntimeError("StopIteration").with_traceback(problem.__traceback__)
    except Exception as problem:  # raised by the caller's await
        error = problem
    with contextlib.suppress(RuntimeError):  # the loop has ended
        future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: "asyncio.Future[T]", result: T | None, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(cast(T, result))

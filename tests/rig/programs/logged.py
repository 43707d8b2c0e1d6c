"""Logs with ours, and then does what its first argument names, with the others. A patient is called MARKED."""

import asyncio
import functools
import gc
import importlib
import logging
import sys
from collections.abc import Callable

import structlog
import uvicorn

from common import logs

MARKED = "Marked^Name"
OURS, UVICORNS = structlog.get_logger(), logging.getLogger("uvicorn.error")
LOG_IT: dict[str, Callable[[BaseException], None]] = {  # each is called where the error is handled
    "structlog, exception": lambda error: OURS.exception("server.failed"),
    "structlog, error": lambda error: OURS.error("server.failed", exc_info=error),
    "logging, exception": lambda error: UVICORNS.exception("server.failed"),
    "logging, error": lambda error: UVICORNS.error("server.failed", exc_info=error),
}


def in_uvicorn() -> None:
    uvicorn.Config("x:y")  # this gives its loggers handlers
    logs.configure_logging()
    UVICORNS.info("Started server process [%d]", 7)
    access = logging.getLogger("uvicorn.access")
    access.info('%s - "%s %s HTTP/%s" %d', "::1", "GET", f"/series?q={MARKED}", "1.1", 200)


def with_a_cause(log_it: str) -> None:
    def inner() -> None:
        raise KeyError(MARKED)

    try:
        try:
            inner()
        except KeyError as cause:
            raise ValueError(f"cannot store {MARKED}") from cause
    except ValueError as error:
        LOG_IT[log_it](error)


def in_a_task_that_nobody_awaits() -> None:
    async def fail() -> None:
        raise ValueError(MARKED)

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()

    asyncio.run(main())


def in_callbacks(loop: str) -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(functools.partial(fail, MARKED))
        asyncio.get_running_loop().call_soon(fail, MARKED)
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop) as runner:
        runner.run(main())


def caught_and_not_caught() -> None:
    try:
        raise ValueError(MARKED)  # noqa: TRY301
    except ValueError:
        OURS.exception("server.failed")
    raise KeyError(MARKED)


if __name__ == "__main__":
    do, *arguments = sys.argv[1:]
    logs.configure_logging(worker=3)
    globals()[do](*arguments)

"""The gateway as a process: signals, workers, the event loop, and the table on its terminal."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar, cast

import click
import structlog

from common.errors import GatewayError
from common.logs import configure_logging, uncaught
from common.settings import GatewaySettings
from console.live import can_draw
from dicom.listening import CannotListen
from gateway.cli.lines import Lines
from gateway.cli.terminal import live
from gateway.cli.workers import supervise
from gateway.journal import Bounds, Journal
from gateway.operations import dead_letter_operations
from models import GatewayState

SHOW_CURSOR = "\x1b[?25h"
T = TypeVar("T")
Show = Callable[[Callable[[], GatewayState]], AbstractAsyncContextManager[None]]
"""Shows a state for as long as it is entered."""


class Run(Protocol):
    """`client.run`."""

    def __call__(
        self, settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True, show: Show | None = None
    ) -> Coroutine[Any, Any, int]: ...


def run_gateway(settings: GatewaySettings, run: Run) -> None:
    """Until it is told to stop; with several workers, them. Ends the process where those failed."""
    configure_logging()
    if settings.workers > 1:
        sys.exit(_supervise(settings, run))
    run_main(_until_signalled(settings, run, show=_on_terminal(settings)), settings)


def run_drain(settings: GatewaySettings, run: Run) -> int:
    """Deliver what the journal holds, and end; how many reports stay."""
    configure_logging()
    return run_main(run(settings, asyncio.Event(), listen=False), settings)


def change_dead_letters(settings: GatewaySettings, do: str, **arguments: Any) -> dict[str, Any]:
    """What a running gateway would be asked to do, done on the journal of a stopped one."""

    async def alone() -> dict[str, Any]:
        bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
        async with Journal.open(settings.journal_path, bounds) as journal:
            return await dead_letter_operations(journal, submit=lambda waiting: None)[do](**arguments)

    configure_logging()
    return run_main(alone(), settings)


def _on_terminal(settings: GatewaySettings) -> Show | None:
    """What shows the gateway where stderr is a terminal: lines for a person, and the table where it can be drawn."""
    if not sys.stderr.isatty():
        return None
    *before, others = structlog.get_config()["processors"]
    lines = Lines(
        others,
        journal_path=settings.journal_path,
        drain_timeout_s=settings.drain_timeout_s,
        beside_table=can_draw(),
    )
    structlog.configure(processors=[*before, lines])
    return partial(live, lines=lines)


async def _until_signalled(
    settings: GatewaySettings,
    run: Run,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
    show: Show | None = None,
) -> int:
    """SIGTERM and Ctrl-C drain; a second one kills.

    The handler stays for that: a loop that reads both at once would drop the second one of a signal without a handler.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            _end_by(number)
        stop.set()

    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    return await run(settings, stop, show=show)


def _end_by(number: signal.Signals) -> None:
    """End as a program without a handler does: what is not done yet stands in the journal."""
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)  # which the table hides
        sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _supervise(settings: GatewaySettings, run: Run) -> int:
    try:
        return supervise(settings, partial(_work, run))
    except CannotListen as error:
        raise click.ClickException(settings.as_typed(str(error))) from None


def _work(run: Run, settings: GatewaySettings, number: int) -> None:
    """One worker's process: ends on SIGTERM (Ctrl-C reaches the supervisor too), or with the supervisor."""
    configure_logging(worker=number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        threading.Thread(target=_end_with, args=(supervisor.sentinel,), daemon=True, name="supervisor").start()
    try:
        run_main(_until_signalled(settings, run, (signal.SIGTERM,)), settings)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:  # multiprocessing would print its text
        uncaught(error)
        sys.exit(1)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed (it is not made for every platform), else asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], import_module("uvloop").new_event_loop)


def run_main(main: Coroutine[Any, Any, T], settings: GatewaySettings) -> T:
    """asyncio.run on uvloop, with what the operator can cure as one line instead of a traceback."""
    try:
        with asyncio.Runner(loop_factory=_new_event_loop()) as runner:
            return runner.run(main)
    except* GatewayError as errors:
        problem = errors.exceptions[0]
        while isinstance(problem, BaseExceptionGroup):  # task groups nest
            problem = problem.exceptions[0]
    raise click.ClickException(settings.as_typed(str(problem)))

"""Run the gateway as a process: signals, workers, the event loop, and the table on its terminal."""

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

from common.errors import SeriesGatewayError
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
"""Shows a state as long as the context is open."""


class Run(Protocol):
    """The type of `client.run`."""

    def __call__(
        self, settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True, show: Show | None = None
    ) -> Coroutine[Any, Any, int]: ...


def run_gateway(settings: GatewaySettings, run: Run) -> None:
    """Run the gateway, or its workers, until a signal. With workers, exit the process with their exit code."""
    configure_logging()
    if settings.workers > 1:
        sys.exit(_supervise(settings, run))
    run_main(_until_signalled(settings, run, show=_on_terminal(settings)), settings)


async def drained(settings: GatewaySettings, run: Run) -> int:
    """Deliver what the journal of a stopped gateway holds; return how many reports stay."""
    configure_logging()
    return await run(settings, asyncio.Event(), listen=False)


async def changed_dead_letters(settings: GatewaySettings, do: str, **arguments: Any) -> dict[str, Any]:
    """Change dead letters in the journal of a stopped gateway, as a running one would; return the answer."""
    configure_logging()
    bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
    async with Journal.open(settings.journal_path, bounds) as journal:
        return await dead_letter_operations(journal, submit=lambda waiting: None)[do](**arguments)


def _on_terminal(settings: GatewaySettings) -> Show | None:
    """Set up lines for people, and the table if it can be drawn. Return None if stderr is not a terminal."""
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
    """Run the gateway until SIGTERM or Ctrl-C, which drains it. A second signal ends it at once.

    The handler stays in place for the second signal: if the loop reads both at the same time, and had no handler any
    more, the second one would be lost.
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
    """End by the signal's default action. What is not done yet is in the journal."""
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)  # the table hides it
        sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _supervise(settings: GatewaySettings, run: Run) -> int:
    try:
        return supervise(settings, partial(_work, run))
    except CannotListen as error:
        raise click.ClickException(settings.as_typed(str(error))) from None


def _work(run: Run, settings: GatewaySettings, number: int) -> None:
    """Run one worker's process until SIGTERM, or until the supervisor ends. Ctrl-C is handled by the supervisor."""
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
    except Exception as error:  # multiprocessing would print its text, which may hold patient data
        uncaught(error)
        sys.exit(1)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop if it is installed, which is not possible on every platform; None for asyncio's."""
    if find_spec("uvloop") is None:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], import_module("uvloop").new_event_loop)


def run_main(main: Coroutine[Any, Any, T], settings: GatewaySettings) -> T:
    """Run a coroutine on uvloop. Errors that the operator can fix are shown as one line, without a traceback."""
    try:
        with asyncio.Runner(loop_factory=_new_event_loop()) as runner:
            return runner.run(main)
    except* SeriesGatewayError as errors:
        problem = errors.exceptions[0]
        while isinstance(problem, BaseExceptionGroup):  # task groups nest
            problem = problem.exceptions[0]
    failed = click.ClickException(settings.as_typed(str(problem)))
    failed.exit_code = getattr(problem, "exit_code", failed.exit_code)  # type: ignore[misc]  # click says how
    raise failed

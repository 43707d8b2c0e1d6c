"""`python server.py on-complete … -- COMMAND`: run a command for each complete series or study, on any machine."""

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import click
import structlog

from api.cli.backlog import Backlog, Lock
from api.cli.remote import Remote
from api.cli.runner import Order, Runner, unknown_places
from common.errors import SeriesGatewayError
from common.logs import configure_logging
from console.tables import show

LOOK_S = 1.0  # pause between two attempts to take the lock

log = structlog.get_logger()


def list_failed(state: Path, as_json: bool) -> None:
    """Print the changes that were given up."""
    with _backlog(_existing(state)) as backlog:
        show(backlog.failed(), as_json)


def replay(state: Path) -> None:
    """Let the changes that were given up be tried again, by the on-complete that works on the file."""
    with _backlog(_existing(state)) as backlog:
        click.echo(f"{backlog.replay()} will be tried again by on-complete with this --state")


def _existing(state: Path) -> Path:
    if not state.exists():
        raise SeriesGatewayError(f"{state} does not exist: give --state the file that on-complete works on")
    return state


def follow(remote: Remote, state: Path, order: Order, *, once: bool) -> int:
    """Work until told to stop, or with `once` until all is done; return the exit code. Raises SeriesGatewayError."""
    if unknown := unknown_places(order.command, order.places):
        raise SeriesGatewayError(f"{{{unknown[0]}}} is not known: docs/jobs.md lists the names that are replaced")
    configure_logging()
    with _backlog(state) as backlog:
        if not backlog.belongs_to(order.subject):
            other = "studies (--study)" if order.subject == "series" else "series"
            raise SeriesGatewayError(f"{state} has jobs for {other}: give --state another file")
        return asyncio.run(_follow(remote, state, backlog, order, once=once))


@contextlib.contextmanager
def _backlog(state: Path) -> Iterator[Backlog]:
    try:
        with Backlog.open(state) as backlog:
            yield backlog
    except sqlite3.Error as error:
        raise SeriesGatewayError(f"{state} cannot be used: {error}") from None
    except BaseExceptionGroup as group:  # of scripts whose outcome could not be stored
        if group.subgroup(sqlite3.Error):
            raise SeriesGatewayError(f"{state} cannot be written") from None
        raise


async def _follow(remote: Remote, state: Path, backlog: Backlog, order: Order, *, once: bool) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with remote.http:
        lock = Lock(state)
        if not await _taken(lock, stop, once=once):
            return 0
        runner = Runner(order, remote, backlog, lock.fd)
        async with _shown(runner):
            await runner.run(stop, once=once)
        lock.release()
    return 1 if once and runner.given_up else 0


async def _taken(lock: Lock, stop: asyncio.Event, *, once: bool) -> bool:
    """Take the lock; wait for another on-complete, or scripts that a killed one left. Return False if told to stop."""
    told = False
    while not stop.is_set():
        if lock.try_to_take():
            return True
        if once:
            raise SeriesGatewayError(
                "another on-complete works on this --state, or a script of one that was killed still runs"
            )
        if not told:
            log.warning("backlog.locked", reason="another on-complete, or a script of one that was killed, still runs")
            told = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await stop.wait()
    return False


def _shown(runner: Runner) -> AbstractAsyncContextManager[None]:
    from console.live import can_draw

    if not can_draw():
        return nullcontext()
    from api.cli.terminal import live

    return live(runner)

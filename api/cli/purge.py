"""`python server.py purge`: delete old series batch by batch, in the server that runs on the SQLite file, or here."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from api.operations import operations
from common.control import EndedMeanwhile, NotRunning, RequestFailed, asked_or_done, request
from common.errors import SeriesGatewayError
from common.settings import ServerSettings
from common.times import stamp
from console.tables import show
from db import Database

TIMEOUT_S = 120.0  # for one batch, since a series may have a hundred thousand images
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
COUNTED = ("series", "images", "changes", "in_conflict", "untold")

Do = Callable[..., Awaitable[dict[str, Any]]]


def purge(
    settings: ServerSettings,
    before: datetime,
    run: Callable[[Coroutine[Any, Any, bool | None]], bool | None],
    *,
    dry: bool,
    as_json: bool,
) -> None:
    """Delete what is older, and print how much that was and what stays. Raises click.ClickException."""
    purged = partial(_purged, before=before, dry=dry, as_json=as_json)

    def ask() -> bool | None:
        if settings.sqlite_path is None:
            raise NotRunning
        try:
            old = request(settings.sqlite_path, TIMEOUT_S, "count_old", before=before.isoformat())["series"]
        except RequestFailed as error:
            raise click.ClickException(str(error)) from None
        return run(purged(partial(_asked, settings.sqlite_path), old))

    async def here() -> bool | None:
        async with Database.open(settings) as database:
            do = operations(database)
            return await purged(lambda operation, **given: do[operation](**given), await database.purger.old(before))

    asked_or_done(ask, here, run)


async def _purged(do: Do, old: int, *, before: datetime, dry: bool, as_json: bool) -> bool:
    """Delete by `do`, and print how much that was. Raises SeriesGatewayError."""
    counted: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    ended = False
    try:
        await _purge(partial(do, before=before.isoformat(), dry=dry), old, counted)
        ended = True
    except (NotRunning, EndedMeanwhile):
        raise SeriesGatewayError("the server was stopped in the meantime; run the same command again") from None
    finally:
        _tell(before, counted, dry=dry, ended=ended, as_json=as_json)
    return ended


async def _asked(path: Path, operation: str, **given: Any) -> dict[str, Any]:
    """Ask the server; return its answer. Ctrl-C waits for it."""
    return request(path, TIMEOUT_S, operation, **given)


async def _purge(do: Do, old: int, counted: Counter[str]) -> None:
    """Purge batch by batch. Pause after each for as long as it took, so that others can use the database."""
    on_a_terminal = sys.stderr.isatty()
    with Progress(*COLUMNS, console=Console(stderr=True), disable=not on_a_terminal, redirect_stdout=False) as progress:
        for operation, begin in (("purge_series", None), ("purge_changes", 0)):
            total = old if operation == "purge_series" else None
            task = progress.add_task(operation.removeprefix("purge_"), total=total)
            after: Any = begin
            while True:
                began = time.monotonic()
                batch = await do(operation, after=after)
                after = batch.pop("after")
                counted.update(batch)
                progress.advance(task, sum(batch.values()) - batch.get("images", 0))
                if after is None:
                    break
                await asyncio.sleep(time.monotonic() - began)


def _tell(before: datetime, counted: Counter[str], *, dry: bool, ended: bool, as_json: bool) -> None:
    told = {"before": stamp(before), "ended": ended} | ({"dry_run": True} if dry else {})
    went = {"series": counted["series"], "images": counted["images"], "changes_of_others": counted["changes"]}
    kept = {"kept_in_conflict": counted["in_conflict"], "kept_untold": counted["untold"]}
    show(told | went | kept, as_json)
    if counted["in_conflict"]:
        click.echo("Some stay because of open conflicts: settle them (GET /conflicts, or the live page).", err=True)
    if counted["untold"]:
        click.echo(
            "Some stay because a webhook was not sent their changes: see `webhooks list`; wait, or `replay`, `discard` "
            "or `remove` it.",
            err=True,
        )
    if not ended:
        click.echo("The purge was interrupted. The numbers say what is deleted; run it again to continue.", err=True)

"""`python server.py export`: write stored series as CSV or JSON Lines, page by page."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from api import table
from api.answers import SeriesPage
from api.cli.remote import Remote, Unreadable
from models import SeriesRecord

PAGE = 1000  # series in one request
TRIES = 5  # most attempts for a page
WAIT_S = 2.0  # pause after the first failed attempt; it doubles after each further one


def export(remote: Remote, query: dict[str, Any], form: str, output: Path | None) -> int:
    """Write every matching series; return how many. Raises Unreadable or OSError, and then leaves no file."""
    with _written(output) as file:
        return asyncio.run(_export(remote, query, form, file))


async def _export(remote: Remote, query: dict[str, Any], form: str, file: TextIO) -> int:
    count, after = 0, None
    file.write(table.head() if form == "csv" else "")
    async with remote.http:
        with _shown() as show:
            while True:
                page = await _page(remote, query | ({"after": after} if after else {}))
                file.write(_text(page.series, form))
                count, after = count + len(page.series), page.next
                show(count)
                if after is None:
                    return count


async def _page(remote: Remote, query: dict[str, Any]) -> SeriesPage:
    """Return one page; try up to TRIES times. Raises Unreadable."""
    for tried in range(1, TRIES + 1):
        try:
            return await remote.get("series", SeriesPage, limit=PAGE, **query)
        except Unreadable as error:
            if tried == TRIES or not error.may_pass:
                raise
            await asyncio.sleep(max(WAIT_S * 2 ** (tried - 1), error.retry_after_s))
    raise AssertionError  # unreachable: the last attempt returns or raises


def _text(records: list[SeriesRecord], form: str) -> str:
    if form == "csv":
        return table.lines(records)
    return "".join(f"{record.model_dump_json()}\n" for record in records)


@contextmanager
def _written(output: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a file that only its owner can read, which gets its name once it is complete."""
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(f"{output.name}.part")
    part.unlink(missing_ok=True)
    try:
        with open(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="", encoding="utf-8"
        ) as file:
            yield file
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _shown() -> Iterator[Callable[[int], None]]:
    """Show a counter on a terminal. The total is not known beforehand."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.completed:,} series"))
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), redirect_stdout=False) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.update(task, completed=count)

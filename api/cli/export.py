"""`python server.py export`: write stored series or studies as CSV or JSON Lines, page by page."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from api import table
from api.answers import SeriesPage, StudyPage
from api.cli.remote import Remote, Unreadable
from common.at_rest import name_for_good
from models import SeriesRecord
from storage.answers import StudyRecord

PAGE = 1000  # series or studies in one request
TRIES = 5  # most attempts for a page
WAIT_S = 2.0  # pause after the first failed attempt; it doubles after each further one
P = TypeVar("P", SeriesPage, StudyPage)
R = TypeVar("R", SeriesRecord, StudyRecord)


@dataclass(frozen=True)
class Kind(Generic[P, R]):
    """What is exported: its page of the API, and its columns."""

    name: str
    page: type[P]
    columns: table.Table[R]
    records: Callable[[P], list[R]]


SERIES: Kind[SeriesPage, SeriesRecord] = Kind("series", SeriesPage, table.SERIES, lambda page: page.series)
STUDIES: Kind[StudyPage, StudyRecord] = Kind("studies", StudyPage, table.STUDIES, lambda page: page.studies)


def export(remote: Remote, kind: Kind[P, R], query: dict[str, Any], form: str, output: Path | None) -> int:
    """Write all that matches; return how many. Raises Unreadable or OSError, and then leaves no file."""
    with _written(output) as file:
        return asyncio.run(_export(remote, kind, query, form, file))


async def _export(remote: Remote, kind: Kind[P, R], query: dict[str, Any], form: str, file: TextIO) -> int:
    count, after = 0, None
    file.write(kind.columns.head() if form == "csv" else "")
    async with remote.http:
        with _shown(kind.name) as show:
            while True:
                page = await _page(remote, kind, query | ({"after": after} if after else {}))
                records = kind.records(page)
                file.write(kind.columns.lines(records) if form == "csv" else _json_lines(records))
                count, after = count + len(records), page.next
                show(count)
                if after is None:
                    return count


async def _page(remote: Remote, kind: Kind[P, R], query: dict[str, Any]) -> P:
    """Return one page; try up to TRIES times. Raises Unreadable."""
    for tried in range(1, TRIES + 1):
        try:
            return await remote.get(kind.name, kind.page, limit=PAGE, **query)
        except Unreadable as error:
            if tried == TRIES or not error.may_pass:
                raise
            await asyncio.sleep(max(WAIT_S * 2 ** (tried - 1), error.retry_after_s))
    raise AssertionError  # unreachable: the last attempt returns or raises


def _json_lines(records: list[R]) -> str:
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
        name_for_good(part, output)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _shown(name: str) -> Iterator[Callable[[int], None]]:
    """Show a counter on a terminal. The total is not known beforehand."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(), TextColumn(f"{{task.completed:,}} {name}"))
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), redirect_stdout=False) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.update(task, completed=count)

"""`python server.py move`, with bars on a terminal."""

from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.settings import ServerSettings
from storage.engine import Engine
from storage.move import move, rows_of


async def move_to(settings: ServerSettings, to: ServerSettings) -> None:
    """Copy a database to another, and compare. Raises DatabaseUnusable."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    async with Engine.open(settings) as source, Engine.open(to) as target:
        total = await rows_of(source)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            copied = progress.add_task("rows copied", total=total)
            compared = progress.add_task("rows compared", total=total)
            await move(source, target, partial(progress.advance, copied), partial(progress.advance, compared))

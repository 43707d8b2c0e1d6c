"""The status that `on-complete` shows on a terminal below its log lines: its progress, and the scripts that run."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from api.cli.runner import Runner
from api.told import uid_of
from common.errors import printable
from console.live import below_the_log, one_line, terminal

LINES_BESIDE = 8  # lines of the terminal that are left for log lines and what is around the table
WITH_BAR = 80  # columns of the terminal from which on there is a bar beside the counts


@asynccontextmanager
async def live(runner: Runner) -> AsyncIterator[None]:
    """Show the runner's status twice a second, as long as the context is open. Scripts' output is printed above it."""
    console = terminal()
    runner.show = lambda output: console.print(Text("\n".join(map(printable, output.splitlines())))) if output else None
    async with below_the_log(console, lambda: render(runner, *console.size)):
        yield


def render(runner: Runner, width: int, height: int) -> RenderableType:
    """Return what fits on a terminal of this size. A full bar is green only if nothing failed."""
    waiting, failed = runner.backlog.counts()
    waiting -= len(runner.running)
    ended, open_ = runner.ended + runner.given_up, len(runner.running) + waiting
    bar = ProgressBar(max(1, ended + open_), ended, width=24, finished_style="red" if failed else "green")
    counts = Text()
    if failed:
        counts.append(f"{failed:,} failed (--failed)  ", "red")
    counts.append(f"{runner.ended:,} done  {len(runner.running):,} running  {waiting:,} waiting")
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(*([bar] if width >= WITH_BAR else []), one_line(counts))
    lines: list[RenderableType] = [head]
    if runner.problem:
        lines.append(one_line(Text(printable(f"server: {runner.problem}"), "yellow")))
    if runner.running:
        lines.append(_scripts(runner, max(1, height - LINES_BESIDE)))
    return Group(*lines)


def _scripts(runner: Runner, room: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(runner.order.subject, overflow="ellipsis", no_wrap=True)
    for name in ("revision", "images", "verdict", "runs"):
        table.add_column(name, justify="right" if name != "verdict" else "left", no_wrap=True)
    for one in list(runner.running.values())[:room]:
        change, seconds = one.change, time.monotonic() - one.since
        uid, verdict = printable(uid_of(change)), str(change.Verdict)
        table.add_row(Text(uid), str(change.Revision), f"{change.NumInstances:,}", verdict, f"{seconds:.0f} s")
    return table

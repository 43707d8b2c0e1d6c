"""The table that a gateway shows on a terminal below its log lines: its state, and the open series."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime

from rich.console import Group, JustifyMethod, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from common.errors import printable
from console.live import below_the_log, one_line, terminal
from console.machine import in_units
from gateway.cli.lines import UID_CHARACTERS, Lines, counted, seconds, shortened
from models import ArrivingSeries, GatewayState

RATE_OVER_S = 3.0  # time over which images a second are counted
LOG_LINES = 6  # log lines that are left above the table, if there is room
LEAST_LINES = 7  # lines that the table always gets: the head, one series, and how many more there are
WITH_SOURCE = 60  # columns of the terminal from which on the source of a series is shown
WITH_WAITS = 45  # columns from which on it is shown how long a series has been quiet, and what it waits for


@asynccontextmanager
async def live(state: Callable[[], GatewayState], lines: Lines) -> AsyncIterator[None]:
    """Give `lines` the state, and show the table as long as the context is open. It is removed at the end."""
    console = terminal()
    rate = Rate()
    lines.state = state

    def draw() -> RenderableType:
        now = state()
        return render(now, rate(now.Instances, time.monotonic()), *console.size)

    try:
        async with below_the_log(console, draw) if lines.beside_table else nullcontext():
            yield
    finally:
        last = state()
        lines.state = lambda: last


class Rate:
    """Computes images a second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, instances: int, now: float) -> float:
        self._seen.append((now, instances))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        (then, before) = self._seen[0]
        return (instances - before) / (now - then) if now > then else 0.0


def render(state: GatewayState, per_s: float, width: int, height: int) -> RenderableType:
    """Return what fits on a terminal of this size. If there is little room, problems are shown first."""
    room = max(1, height - LOG_LINES, min(height - 1, LEAST_LINES))
    lines: list[RenderableType] = [*_head(state, per_s)[-room:]]
    if len(lines) < room:
        lines.insert(0, Rule(style="dim"))
    rows = room - len(lines) - 1  # the table's own head
    if state.OpenSeries > rows:
        rows -= 1  # one for "more"
    series = sorted(state.Arriving, key=lambda one: one.LastReceivedAt, reverse=True)[: max(rows, 0)]
    if series:
        lines.append(_series(series, state.At, width))
        if more := state.OpenSeries - len(series):
            lines.append(one_line(Text(f"  and {more:,} more open series", style="dim")))
    return Group(*lines)


def _head(state: GatewayState, per_s: float) -> list[Text]:
    up = str(state.At - state.StartedAt).partition(".")[0]
    first = Text.assemble((printable(f"{state.AETitle} {state.Address}"), "bold"), f"  up {up}")
    second = Text(
        f"{counted(state.Associations, 'association')}  {per_s:,.0f} images/s  {counted(state.Instances, 'image')}, "
        f"{in_units(state.Bytes)}  inbox {state.InboxInstances:,}/{state.InboxSize:,}"
    )
    late = f", oldest {seconds(state.OldestUndeliveredS)}" if state.UndeliveredReports else ""
    third = Text(f"{state.OpenSeries:,} series open, {counted(state.OpenInstances, 'image')}  ")
    third.append(f"{counted(state.UndeliveredReports, 'report')} undelivered{late}", "yellow" if late else "")
    if state.DeadLetters:
        third.append(f"  {counted(state.DeadLetters, 'dead letter')}", style="red")
    lines = [first, second, third]
    if state.Reason:
        lines.append(Text(printable(f"ACCEPTS NO IMAGES: {state.Reason}"), style="bold red"))
    if state.LastProblem:
        lines.append(Text(printable(f"server: {state.LastProblem}"), style="yellow"))
    return [one_line(line) for line in lines]


def _series(series: Sequence[ArrivingSeries], now: datetime, width: int) -> Table:
    """Return a table of series with the columns for which there is room."""
    counts = [f"{one.Instances:,}{'' if one.Expected is None else f'/{one.Expected:,}'}" for one in series]
    longest = max(map(len, ["images", *counts]))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("series", "from", "images", "quiet", "waits"):
        justify: JustifyMethod = "right" if name in ("images", "quiet") else "left"
        if _has_room(name, width):
            table.add_column(name, justify=justify, no_wrap=True, max_width=24 if name == "from" else None)
    for one, count in zip(series, counts, strict=True):
        cells: dict[str, str | Text] = {
            "series": shortened(one.SeriesInstanceUID, min(UID_CHARACTERS, max(3, width - longest - 4))),
            "from": Text(printable(one.Source)),
            "images": count,
            "quiet": seconds(max(0.0, (now - one.LastReceivedAt).total_seconds())),
            "waits": one.Waiting + (f" (revision {one.Revision})" if one.Revision > 1 else ""),
        }
        table.add_row(*(cell for name, cell in cells.items() if _has_room(name, width)))
    return table


def _has_room(column: str, width: int) -> bool:
    return width >= {"from": WITH_SOURCE, "quiet": WITH_WAITS, "waits": WITH_WAITS}.get(column, 0)

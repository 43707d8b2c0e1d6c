"""What a gateway on a terminal shows below its log lines: itself, the series that are open, the last verdicts."""

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from common.errors import printable
from console.live import below_the_log
from console.machine import in_units
from models import ArrivingSeries, GatewayState

RATE_OVER_S = 3.0
VERDICTS = 4
REMEMBERED = 1000  # reports whose delivery is awaited
UID_CHARACTERS = 28
LOG_LINES = 6  # at least, above the table
COLOURS = {
    "verified": "green",
    "declared": "green",
    "expected": "green",
    "idle": "default",
    "capped": "yellow",
    "drained": "default",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One report, once the server has it or has refused it."""

    series_instance_uid: str
    instances: int
    verdict: str
    seconds: float | None
    """From the last image until then; None where nobody knows when that was."""
    stored: bool = True


class Verdicts:
    """The last few, read from the log events that pass through (a structlog processor)."""

    def __init__(self) -> None:
        self.last: deque[Verdict] = deque(maxlen=VERDICTS)
        self._reported: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    def __call__(self, _: Any, __: str, event: Any) -> Any:
        series = str(event.get("series_instance_uid")), event.get("revision", 0)
        if event["event"] == "series.reported":
            self._reported[series] = dict(event)
            if len(self._reported) > REMEMBERED:
                self._reported.popitem(last=False)
        elif event["event"] in ("report.delivered", "report.rejected") and series in self._reported:
            said = self._reported.pop(series)
            stored = event["event"] == "report.delivered"
            seconds = event.get("row_latency_s")
            self.last.append(Verdict(series[0], said["instances"], str(said["verdict"]), seconds, stored))
        return event


@asynccontextmanager
async def live(state: Callable[[], GatewayState], verdicts: Verdicts) -> AsyncIterator[None]:
    """Show the state, twice a second, until left; nothing of it stays on the terminal then."""
    console = Console(stderr=True)
    rate = Rate()

    def draw() -> RenderableType:
        now = state()
        return render(now, rate(now.Instances, time.monotonic()), verdicts.last, console.height)

    async with below_the_log(console, draw):
        yield


class Rate:
    """Images a second, over the last few."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, instances: int, now: float) -> float:
        self._seen.append((now, instances))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        (then, before) = self._seen[0]
        return (instances - before) / (now - then) if now > then else 0.0


def render(state: GatewayState, per_s: float, verdicts: Sequence[Verdict], height: int) -> RenderableType:
    """What fits below the log lines on a terminal of this height."""
    head, tail = _head(state, per_s), [_verdict(verdict) for verdict in verdicts]
    room = max(1, height - LOG_LINES - len(head) - len(tail) - 3)  # a rule, the table's own head, one for "more"
    series = sorted(state.Arriving, key=lambda one: one.LastReceivedAt, reverse=True)
    lines: list[RenderableType] = [Rule(style="dim"), *head]
    if series:
        lines.append(_series(series[:room], state.At))
    if (more := state.OpenSeries - min(len(series), room)) > 0:
        lines.append(Text(f"  and {more:,} more open series", style="dim"))
    return Group(*lines, *tail)


def _head(state: GatewayState, per_s: float) -> list[Text]:
    up = str(state.At - state.StartedAt).partition(".")[0]
    first = Text.assemble((printable(f"{state.AETitle} {state.Address}"), "bold"), f"  up {up}")
    second = Text(
        f"{_count(state.Associations, 'association')}  {per_s:,.0f} images/s  {_count(state.Instances, 'image')}, "
        f"{in_units(state.Bytes)}  inbox {state.InboxInstances:,}/{state.InboxSize:,}"
    )
    late = f", oldest {_seconds(state.OldestUndeliveredS)}" if state.UndeliveredReports else ""
    third = Text(f"{state.OpenSeries:,} series open, {_count(state.OpenInstances, 'image')}  ")
    third.append(f"{_count(state.UndeliveredReports, 'report')} undelivered{late}", "yellow" if late else "")
    if state.DeadLetters:
        third.append(f"  {_count(state.DeadLetters, 'dead letter')}", style="red")
    lines = [first, second, third]
    if state.Reason:
        lines.append(Text(printable(f"TAKES NOTHING IN: {state.Reason}"), style="bold red"))
    if state.LastProblem:
        lines.append(Text(printable(f"server: {state.LastProblem}"), style="yellow"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _series(series: Sequence[ArrivingSeries], now: datetime) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("series", no_wrap=True)
    table.add_column("from", no_wrap=True, max_width=24)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("quiet", justify="right", no_wrap=True)
    table.add_column("waits", no_wrap=True)
    for one in series:
        expected = "" if one.Expected is None else f"/{one.Expected:,}"
        quiet = _seconds(max(0.0, (now - one.LastReceivedAt).total_seconds()))
        again = f" (revision {one.Revision})" if one.Revision > 1 else ""
        uid = shortened(one.SeriesInstanceUID)
        table.add_row(
            uid,
            Text(printable(one.Source)),
            f"{one.Instances:,}{expected}",
            quiet,
            one.Waiting + again,
        )
    return table


def _verdict(verdict: Verdict) -> Text:
    uid, images = shortened(verdict.series_instance_uid), _count(verdict.instances, "image")
    if not verdict.stored:
        return Text(f"✗ series {uid} {images} refused by the server: a dead letter", "red", no_wrap=True)
    took = "" if verdict.seconds is None else f" in {_seconds(verdict.seconds)}"
    text = f"✓ series {uid} {images} {verdict.verdict}{took}"
    return Text(text, COLOURS.get(verdict.verdict, "default"), no_wrap=True, overflow="ellipsis")


def shortened(uid: str) -> str:
    """Cut in the middle: a UID's ends are what tells it from others."""
    uid = printable(uid)
    if len(uid) <= UID_CHARACTERS:
        return uid
    return f"{uid[: UID_CHARACTERS // 2 - 1]}…{uid[-UID_CHARACTERS // 2 :]}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.0f} h"
    )

"""What a gateway's log says on a terminal: beside the table a short line for each series, and how it stops."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import structlog

from common.errors import printable
from models import GatewayState

REMEMBERED = 1000  # reports whose delivery is awaited
UID_CHARACTERS = 28
LONG_S = 100  # seconds from which on minutes are said
SURE = ("verified", "declared", "expected")  # verdicts with evidence, or a person's word, that this was all


class Lines:
    """Writes log events as a person reads them (structlog's last processor)."""

    def __init__(
        self, others: Callable[[Any, str, Any], Any], *, journal_path: Path, drain_timeout_s: float, beside_table: bool
    ) -> None:
        """`others` writes what is no line of ours; beside the table it gets warnings and errors only."""
        self._others = others
        self._journal_path = journal_path
        self._drain_timeout_s = drain_timeout_s
        self._reported: OrderedDict[tuple[str, int], str] = OrderedDict()
        self.beside_table = beside_table
        self.state: Callable[[], GatewayState] | None = None
        """The gateway's, once it runs; its last one after that."""

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        """Raises structlog.DropEvent."""
        if text := self._text(event):
            return f"{str(event['timestamp'])[11:19]}Z {text}"
        if self.beside_table and event["level"] in ("debug", "info"):
            raise structlog.DropEvent
        return self._others(logger, method, event)

    def _text(self, event: Mapping[str, Any]) -> str | None:
        """The line for an event that has one; no patient data in it."""
        name = event["event"]
        if self.state is not None and name == "gateway.draining":
            return stopping(self.state(), self._drain_timeout_s)
        if self.state is not None and name == "gateway.stopped":
            return stopped(self.state(), event["undelivered"], self._journal_path)
        if not self.beside_table:
            return None
        series = str(event.get("series_instance_uid")), event.get("revision", 0)
        if name == "series.reported":
            self._reported[series] = str(event["verdict"])
            if len(self._reported) > REMEMBERED:
                self._reported.popitem(last=False)
        elif name == "report.delivered" and not event.get("part"):
            return delivered(event, self._reported.pop(series, None))
        elif name == "report.rejected":
            self._reported.pop(series, None)
            return refused(event)
        return None


def delivered(event: Mapping[str, Any], verdict: str | None) -> str:
    """Say what the server has now of a series; green is what is known to be all. No verdict: of an earlier run."""
    missing, conflicts = event.get("missing"), event.get("conflicts")
    words = [f"{_images(event)}{',' if missing else ''} {verdict or 'reported before this start'}"]
    if verdict and (took_s := event.get("row_latency_s")) is not None:
        words.append(f"in {seconds(took_s)}")
    if conflicts:
        words.append("- a conflict: another patient or study is stored")
    text = _series(event, " ".join(words))
    if missing or conflicts or verdict == "capped":
        return _coloured(f"! {text}", "yellow")
    return _coloured(f"✓ {text}", "green") if verdict in SURE else f"{'✓' if verdict else '·'} {text}"


def _images(event: Mapping[str, Any]) -> str:
    """As the row counts them."""
    if not (missing := event.get("missing")):
        return counted(event["stored"], "image")
    expected = event.get("expected")
    return f"{event['stored']:,}{'' if expected is None else f' of {expected:,}'}, {missing:,} missing"


def refused(event: Mapping[str, Any]) -> str:
    """Say why a report is a dead letter."""
    images = counted(event["instances"], "image")
    reason = printable(str(event["reason"]))
    return _coloured(f"✗ {_series(event, images)} refused, dead letter {event['dead_letter']}: {reason}", "red")


def stopping(state: GatewayState, drain_timeout_s: float) -> str:
    """Say what a stop waits for, and how long at most."""
    at_most = f"at most {drain_timeout_s:g} s for"
    waits = [f"{at_most} {counted(state.Associations, 'association')} to end"] if state.Associations else []
    if state.OpenSeries or state.UndeliveredReports or state.Associations:
        posts = f"{state.OpenSeries:,} open series ({counted(state.OpenInstances, 'image')})"
        waits.append(f"{at_most} the server to take {posts} and {counted(state.UndeliveredReports, 'waiting report')}")
    if not waits:
        return "stopping: nothing is open, nothing waits"
    return f"stopping: {', then '.join(waits)} (GATEWAY_DRAIN_TIMEOUT_S); another Ctrl-C ends it now, and loses nothing"


def stopped(state: GatewayState, undelivered: int, journal_path: Path) -> str:
    """Say where what was not delivered is, and what becomes of it."""
    journal = printable(str(journal_path.absolute()))
    kept = [counted(state.OpenInstances, "image")] if state.OpenInstances else []
    kept += [counted(undelivered, "report")] if undelivered else []
    text = f"{' and '.join(kept)} kept in {journal}, posted at the next start" if kept else "all reports are delivered"
    if state.DeadLetters:
        text += f"; {counted(state.DeadLetters, 'dead letter')} in {journal}: client.py dead-letters list"
    return text


def _series(event: Mapping[str, Any], words: str) -> str:
    again = f" (revision {event['revision']})" if event.get("revision", 1) > 1 else ""
    return f"{shortened(str(event['series_instance_uid']))} {words}{again}"


def _coloured(text: str, colour: str) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def shortened(uid: str, characters: int = UID_CHARACTERS) -> str:
    """Cut in the middle: a UID's ends are what tells it from others."""
    uid = printable(uid)
    if len(uid) <= characters:
        return uid
    return f"{uid[: (characters - 1) // 2]}…{uid[-(characters // 2) :]}"


def counted(number: int, noun: str) -> str:
    """The number and its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(seconds: float) -> str:
    """Seconds, minutes or hours, as short as possible."""
    return (
        f"{seconds:.1f} s"
        if seconds < LONG_S
        else f"{seconds / 60:.0f} min"
        if seconds < 60 * LONG_S
        else f"{seconds / 3600:.0f} h"
    )

"""The log lines of a gateway on a terminal: a short line for each series, and for each step of a stop."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import structlog

from common.errors import printable
from models import GatewayState

REMEMBERED = 1000  # reports that wait for delivery, whose verdicts are remembered
UID_CHARACTERS = 28
LONG_S = 100  # from this many seconds on, minutes are shown
SURE = ("verified", "declared", "expected")  # verdicts by evidence, or by a person's word


class Lines:
    """Formats log events for people. It is structlog's last processor."""

    def __init__(
        self, others: Callable[[Any, str, Any], Any], *, journal_path: Path, drain_timeout_s: float, beside_table: bool
    ) -> None:
        """Set up. `others` formats all other events; beside a table it gets only warnings and errors."""
        self._others = others
        self._journal_path = journal_path
        self._drain_timeout_s = drain_timeout_s
        self._reported: OrderedDict[tuple[str, int], str] = OrderedDict()
        self.beside_table = beside_table
        self.state: Callable[[], GatewayState] | None = None
        """Returns the gateway's state, once it runs; after its end, the last one."""

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        """Format an event. Raises structlog.DropEvent if it is not shown."""
        if text := self._text(event):
            return f"{str(event['timestamp'])[11:19]}Z {text}"
        if self.beside_table and event["level"] in ("debug", "info"):
            raise structlog.DropEvent
        return self._others(logger, method, event)

    def _text(self, event: Mapping[str, Any]) -> str | None:
        """Return the line for an event, without patient data; None if the event has no line of ours."""
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
    """Say what the server now has of a series. It is green if the series is known to be complete.

    The verdict is None if an earlier run made the report.
    """
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
    """Say how many images the server's row has."""
    if not (missing := event.get("missing")):
        return counted(event["stored"], "image")
    expected = event.get("expected")
    return f"{event['stored']:,}{'' if expected is None else f' of {expected:,}'}, {missing:,} missing"


def refused(event: Mapping[str, Any]) -> str:
    """Say why a report became a dead letter."""
    images = counted(event["instances"], "image")
    reason = printable(str(event["reason"]))
    return _coloured(f"✗ {_series(event, images)} refused, dead letter {event['dead_letter']}: {reason}", "red")


def stopping(state: GatewayState, drain_timeout_s: float) -> str:
    """Say what a stop waits for, and for how long at most."""
    at_most = f"at most {drain_timeout_s:g} s for"
    waits = [f"{at_most} {counted(state.Associations, 'association')} to end"] if state.Associations else []
    if state.OpenSeries or state.UndeliveredReports or state.Associations:
        posts = f"{state.OpenSeries:,} open series ({counted(state.OpenInstances, 'image')})"
        waits.append(f"{at_most} the server to take {posts} and {counted(state.UndeliveredReports, 'waiting report')}")
    if not waits:
        return "stopping: nothing is open, nothing waits"
    return f"stopping: {', then '.join(waits)} (GATEWAY_DRAIN_TIMEOUT_S); Ctrl-C again ends it now and loses nothing"


def stopped(state: GatewayState, undelivered: int, journal_path: Path) -> str:
    """Say where everything is that was not delivered, and what happens to it."""
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
    """Shorten a UID in the middle, since its ends distinguish it from others."""
    uid = printable(uid)
    if len(uid) <= characters:
        return uid
    return f"{uid[: (characters - 1) // 2]}…{uid[-(characters // 2) :]}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or the plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(seconds: float) -> str:
    """Format a length of time in seconds, minutes or hours."""
    return (
        f"{seconds:.1f} s"
        if seconds < LONG_S
        else f"{seconds / 60:.0f} min"
        if seconds < 60 * LONG_S
        else f"{seconds / 3600:.0f} h"
    )

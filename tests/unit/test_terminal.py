"""What stands on the terminal, rendered without one."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from gateway.cli.terminal import Rate, Verdict, Verdicts, render, shortened
from models import ArrivingSeries, GatewayState

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
UID = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012345"


def state(**changes: Any) -> GatewayState:
    values: dict[str, Any] = {
        "GatewayID": "g",
        "At": NOW,
        "StartedAt": NOW - timedelta(hours=1, seconds=5),
        "AETitle": "STORESCP",
        "Address": "127.0.0.1:6667",
        "Associations": 1,
        "Refused": 0,
        "Instances": 12345,
        "Bytes": 3 * 2**30,
        "InboxInstances": 7,
        "InboxSize": 1000,
        "OpenSeries": 0,
        "OpenInstances": 0,
        "UndeliveredReports": 0,
        "DeadLetters": 0,
    }
    return GatewayState(**(values | changes))


def arriving(n: int, quiet_s: float = 1.0, **changes: Any) -> ArrivingSeries:
    values: dict[str, Any] = {
        "SeriesInstanceUID": f"1.2.{n}",
        "Source": "CT1 CT",
        "Revision": 1,
        "Instances": 40,
        "FirstReceivedAt": NOW - timedelta(minutes=1),
        "LastReceivedAt": NOW - timedelta(seconds=quiet_s),
    }
    return ArrivingSeries(**(values | changes))


def shown(
    state: GatewayState, verdicts: Sequence[Verdict] = (), *, height: int = 30, width: int = 80, colours: bool = False
) -> list[str]:
    console = Console(width=width, height=height, force_terminal=colours, color_system="standard" if colours else None)
    with console.capture() as capture:
        console.print(render(state, 12.4, verdicts, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_head_says_who_since_when_and_how_much() -> None:
    _, who, much, rest = shown(state())
    assert who == "STORESCP 127.0.0.1:6667  up 1:00:05"
    assert much == "1 association  12 images/s  12,345 images, 3 GiB  inbox 7/1,000"
    assert rest == "0 series open, 0 images  0 reports undelivered"


def test_what_is_wrong_is_said_in_colour() -> None:
    wrong = state(
        Reason="journal_max_bytes=65536 reached",
        UndeliveredReports=3,
        OldestUndeliveredS=250.0,
        DeadLetters=1,
        LastProblem="ConnectError: All connection attempts failed",
    )
    text = "\n".join(shown(wrong))
    assert "3 reports undelivered, oldest 4 min  1 dead letter\n" in text
    assert "TAKES NOTHING IN: journal_max_bytes=65536 reached\n" in text
    assert "server: ConnectError" in text
    assert any("\x1b[1;31mTAKES NOTHING IN" in line for line in shown(wrong, colours=True))


def test_series_stand_in_the_order_of_their_last_image() -> None:
    series = [
        arriving(1, 5.0),
        arriving(2, 0.2, Expected=1200, Instances=1000, Waiting="for the PACS", Revision=2),
        arriving(3, 400.0),
    ]
    lines = shown(state(OpenSeries=3, Arriving=series))[4:]
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["series", "from", "images", "quiet", "waits"],
        ["1.2.2", "CT1 CT", "1,000/1,200", "0.2 s", "for the PACS (revision 2)"],
        ["1.2.1", "CT1 CT", "40", "5.0 s", "for images"],
        ["1.2.3", "CT1 CT", "40", "7 min", "for images"],
    ]


@pytest.mark.parametrize("height", [5, 10, 16, 24, 40])
def test_no_more_is_shown_than_fits_and_the_rest_is_counted(height: int) -> None:
    lines = shown(state(OpenSeries=700, Arriving=[arriving(n) for n in range(500)]), height=height)
    rows = sum(line.startswith("1.2.") for line in lines)
    assert rows >= 1
    assert len(lines) <= max(height - 6, 7)
    assert lines[-1] == f"  and {700 - rows} more open series"


def test_no_line_is_wider_than_a_narrow_terminal() -> None:
    series = [arriving(1, SeriesInstanceUID=UID, Source="A_LONG_AE_TITLE1 MR")]
    verdicts = [Verdict(UID, 50, "verified", 0.8)]
    lines = shown(state(OpenSeries=1, Arriving=series, Reason="x" * 200), verdicts, width=50)
    assert max(map(len, lines)) <= 50


def test_a_name_with_markup_stays_a_name() -> None:
    lines = shown(state(OpenSeries=1, Arriving=[arriving(1, Source="[red]CT1[/nope] CT")], AETitle="[bold]"))
    assert any("[red]CT1[/nope] CT" in line for line in lines)
    assert lines[1].startswith("[bold] 127")


def test_what_others_say_does_not_move_the_cursor() -> None:
    wild = "\x1b[2J\x9b\x07"
    series = [arriving(1, Source=f"CT1 {wild}")]
    lines = shown(state(OpenSeries=1, Arriving=series, Reason=wild, LastProblem=wild), [Verdict(wild, 1, "idle", 0.1)])
    assert "".join(lines).count("\ufffd[2J\ufffd\ufffd") == 4
    assert not set(wild[::5]) & set("".join(lines))


def test_a_uid_is_cut_in_the_middle() -> None:
    assert shortened("1.2.3") == "1.2.3"
    short = shortened(UID)
    assert len(short) == 28
    assert (short[:5], short[13], short[-5:]) == (UID[:5], "…", UID[-5:])


def event(name: str, revision: int = 1, **fields: Any) -> dict[str, Any]:
    return {"event": name, "series_instance_uid": "1.2.3", "revision": revision, **fields}


def test_a_verdict_is_shown_once_the_server_has_it() -> None:
    verdicts = Verdicts()
    reported = event("series.reported", verdict="verified", instances=50)
    assert verdicts(None, "info", reported) is reported
    assert list(verdicts.last) == []
    verdicts(None, "info", event("report.delivered", row_latency_s=0.81))
    assert list(verdicts.last) == [Verdict("1.2.3", 50, "verified", 0.81)]
    assert shown(state(), verdicts.last)[-1] == "✓ series 1.2.3 50 images verified in 0.8 s"


def test_a_refused_report_is_shown_as_a_dead_letter() -> None:
    verdicts = Verdicts()
    verdicts(None, "info", event("series.reported", verdict="idle", instances=1))
    verdicts(None, "error", event("report.rejected", reason="HTTP 422"))
    assert shown(state(), verdicts.last)[-1] == "✗ series 1.2.3 1 image refused by the server: a dead letter"


def test_only_the_last_verdicts_and_a_bounded_number_of_reports_are_remembered() -> None:
    verdicts = Verdicts()
    for n in range(1, 2001):
        verdicts(None, "info", event("series.reported", n, verdict="idle", instances=n))
    for n in range(1, 2001):
        verdicts(None, "info", event("report.delivered", n))
    verdicts(None, "info", event("report.delivered", 7))  # of a report made before the start
    assert [verdict.instances for verdict in verdicts.last] == [1997, 1998, 1999, 2000]
    assert shown(state(), verdicts.last)[-1] == "✓ series 1.2.3 2,000 images idle"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate(0, 0.0) == 0.0
    for n in range(1, 21):
        seen = rate(50 * n, n / 2)
    assert seen == pytest.approx(100)
    for n in range(21, 41):
        seen = rate(1000, n / 2)
    assert seen == 0.0

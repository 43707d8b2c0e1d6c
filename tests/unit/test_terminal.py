"""What stands on the terminal, rendered without one."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from rich.console import Console

from gateway.cli.lines import Lines, shortened
from gateway.cli.terminal import Rate, render
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


def shown(state: GatewayState, *, height: int = 30, width: int = 80, colours: bool = False) -> list[str]:
    console = Console(width=width, height=height, force_terminal=colours, color_system="standard" if colours else None)
    with console.capture() as capture:
        console.print(render(state, 12.4, width, height))
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
    assert "ACCEPTS NO IMAGES: journal_max_bytes=65536 reached\n" in text
    assert "server: ConnectError" in text
    assert any("\x1b[1;31mACCEPTS NO IMAGES" in line for line in shown(wrong, colours=True))


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


@pytest.mark.parametrize("height", [8, 10, 16, 24, 40, 200])
def test_as_many_series_are_shown_as_there_is_room_and_the_rest_is_counted(height: int) -> None:
    lines = shown(state(OpenSeries=700, Arriving=[arriving(n) for n in range(500)]), height=height)
    rows = sum(line.startswith("1.2.") for line in lines)
    assert rows >= 1
    assert len(lines) == max(height - 6, 7)
    assert lines[-1] == f"  and {700 - rows} more open series"


def test_where_all_series_fit_none_is_counted_as_more() -> None:
    lines = shown(state(OpenSeries=20, Arriving=[arriving(n) for n in range(20)]), height=31)
    assert len(lines) == 31 - 6
    assert "more" not in lines[-1]


@pytest.mark.parametrize("height", range(1, 13))
@pytest.mark.parametrize("width", [1, 20, 44, 59, 80])
def test_nothing_is_larger_than_the_smallest_terminal_and_of_it_the_worst_is_shown(height: int, width: int) -> None:
    series = [arriving(n, SeriesInstanceUID=f"{UID}{n}", Source="A_LONG_AE_TITLE1 MR") for n in range(9)]
    wrong = state(OpenSeries=9, Arriving=series, Reason="x" * 200, LastProblem="nothing listens there")
    lines = shown(wrong, height=height, width=width)
    assert len(lines) <= max(1, height - 1)
    assert max(map(len, lines)) <= width
    if width == 80:
        assert any(line == "server: nothing listens there" for line in lines)


def test_twenty_columns_have_a_series_by_both_its_ends_and_its_images() -> None:
    lines = shown(state(OpenSeries=1, Arriving=[arriving(1, SeriesInstanceUID=UID, Expected=50)]), width=20)
    assert lines[-2:] == ["series      images", "1.2.…12345   40/50"]


def test_a_name_with_markup_stays_a_name() -> None:
    lines = shown(state(OpenSeries=1, Arriving=[arriving(1, Source="[red]CT1[/nope] CT")], AETitle="[bold]"))
    assert any("[red]CT1[/nope] CT" in line for line in lines)
    assert lines[1].startswith("[bold] 127")


def test_what_others_say_does_not_move_the_cursor() -> None:
    wild = "\x1b[2J\x9b\x07"
    series = [arriving(1, Source=f"CT1 {wild}")]
    lines = shown(state(OpenSeries=1, Arriving=series, Reason=wild, LastProblem=wild))
    assert "".join(lines).count("\ufffd[2J\ufffd\ufffd") == 3
    assert not set(wild[::5]) & set("".join(lines))


def test_a_uid_is_cut_in_the_middle() -> None:
    assert shortened("1.2.3") == "1.2.3"
    short = shortened(UID)
    assert len(short) == 28
    assert (short[:5], short[13], short[-5:]) == (UID[:5], "…", UID[-5:])


# --- log lines --------------------------------------------------------------------------------------------------


def event(name: str, **fields: Any) -> dict[str, Any]:
    level = {"report.rejected": "error", "report.delayed": "warning"}.get(name, "info")
    about = {"event": name, "level": level, "timestamp": "2026-01-01T12:00:05.123456Z"}
    return about | {"series_instance_uid": UID, "revision": 1, "instances": 50} | fields


def said(*events: dict[str, Any], beside_table: bool = True, now: GatewayState | None = None) -> list[str]:
    """What is written of these events, the others as their names; no colours."""
    lines = Lines(
        lambda _, __, event: event["event"],
        journal_path=Path("/data/journal.db"),
        drain_timeout_s=30.0,
        beside_table=beside_table,
    )
    if now is not None:
        lines.state = lambda: now
    written = []
    for each in events:
        with suppress(structlog.DropEvent):
            written.append(lines(None, "info", each))
    return written


def in_words(text: str) -> str:
    """With the names of its colours."""
    names = {"31": "<red>", "32": "<green>", "33": "<yellow>", "0": "<>"}
    return re.sub(r"\x1b\[(\d+)m", lambda code: names[code[1]], text)


UID_SHOWN = f"{UID[:13]}…{UID[-14:]}"


@pytest.mark.parametrize(
    ("verdict", "fields", "expected"),
    [
        ("verified", {"row_latency_s": 0.81}, "<green>✓ {} 50 images verified in 0.8 s<>"),
        ("expected", {"row_latency_s": 0.81}, "<green>✓ {} 50 images expected in 0.8 s<>"),
        ("idle", {"row_latency_s": 250.0}, "✓ {} 50 images idle in 4 min"),
        ("drained", {}, "✓ {} 50 images drained"),
        ("capped", {}, "<yellow>! {} 50 images capped<>"),
        ("idle", {"stored": 51}, "✓ {} 51 images idle"),
        (
            "idle",
            {"stored": 7, "expected": 12, "missing": 5, "row_latency_s": 3.0},
            "<yellow>! {} 7 of 12, 5 missing, idle in 3.0 s<>",
        ),
        ("verified", {"stored": 7, "missing": 5}, "<yellow>! {} 7, 5 missing, verified<>"),
        (
            "verified",
            {"conflicts": 1},
            "<yellow>! {} 50 images verified - a conflict: another patient or study is stored<>",
        ),
    ],
)
def test_a_series_is_one_line_and_green_only_where_it_is_known_to_be_all(
    verdict: str, fields: dict[str, Any], expected: str
) -> None:
    events = event("series.reported", verdict=verdict), event("report.delivered", **({"stored": 50} | fields))
    assert [in_words(text) for text in said(*events)] == [f"12:00:05Z {expected.format(UID_SHOWN)}"]


def test_of_a_report_made_before_this_start_the_verdict_is_not_known() -> None:
    written = said(event("report.delivered", stored=51, revision=2, row_latency_s=3e5))
    assert written == [f"12:00:05Z · {UID_SHOWN} 51 images reported before this start (revision 2)"]


def test_a_refused_report_is_said_with_its_dead_letter_and_why() -> None:
    (text,) = said(event("report.rejected", reason="HTTP 422 NumInstances: \x1b[2J", dead_letter=7, instances=1))
    expected = f"12:00:05Z <red>✗ {UID_SHOWN} 1 image refused, dead letter 7: HTTP 422 NumInstances: \ufffd[2J<>"
    assert in_words(text) == expected


def test_beside_the_table_other_events_are_written_from_warnings_on() -> None:
    events = [event(name) for name in ("association.ended", "report.delayed", "series.parted", "gateway.started")]
    assert said(*events) == ["report.delayed"]
    assert said(*events, beside_table=False) == [each["event"] for each in events]


def test_a_part_of_a_series_is_no_line_and_takes_none_from_its_report() -> None:
    reported = event("series.reported", verdict="idle")
    part, whole = event("report.delivered", stored=5, part=True), event("report.delivered", stored=50)
    (text,) = said(event("series.parted"), reported, part, whole)
    assert text.endswith("50 images idle")


def test_a_bounded_number_of_reports_is_remembered() -> None:
    reported = [event("series.reported", revision=n, verdict="idle") for n in range(2000)]
    lines = said(*reported, *(event("report.delivered", revision=n, stored=n) for n in (999, 1000)))
    assert ["before this start" in line for line in lines] == [True, False]


def test_no_colour_is_written_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    (text,) = said(event("series.reported", verdict="verified"), event("report.delivered", stored=50))
    assert text == f"12:00:05Z ✓ {UID_SHOWN} 50 images verified"


@pytest.mark.parametrize("beside_table", [True, False])
@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"Associations": 0}, "stopping: nothing is open, nothing waits"),
        (
            {"Associations": 0, "OpenSeries": 3, "OpenInstances": 60, "UndeliveredReports": 1},
            "stopping: at most 30 s for the server to take 3 open series (60 images) and 1 waiting report "
            "(GATEWAY_DRAIN_TIMEOUT_S); Ctrl-C again ends it now and loses nothing",
        ),
        (
            {"Associations": 2},
            "stopping: at most 30 s for 2 associations to end, then at most 30 s for the server to take 0 open series "
            "(0 images) and 0 waiting reports (GATEWAY_DRAIN_TIMEOUT_S); Ctrl-C again ends it now and loses nothing",
        ),
    ],
)
def test_a_stop_says_what_it_waits_for_and_how_long_at_most(
    now: dict[str, Any], expected: str, beside_table: bool
) -> None:
    written = said(event("gateway.draining"), beside_table=beside_table, now=state(**now))
    assert written == [f"12:00:05Z {expected}"]


@pytest.mark.parametrize(
    ("undelivered", "now", "expected"),
    [
        (0, {}, "all reports are delivered"),
        (4, {}, "4 reports kept in /data/journal.db, posted at the next start"),
        (0, {"OpenInstances": 1}, "1 image kept in /data/journal.db, posted at the next start"),
        (1, {"OpenInstances": 60}, "60 images and 1 report kept in /data/journal.db, posted at the next start"),
        (
            0,
            {"DeadLetters": 2},
            "all reports are delivered; 2 dead letters in /data/journal.db: client.py dead-letters list",
        ),
    ],
)
def test_the_last_line_says_where_what_was_not_delivered_is(
    undelivered: int, now: dict[str, Any], expected: str
) -> None:
    written = said(event("gateway.stopped", undelivered=undelivered), now=state(**now))
    assert written == [f"12:00:05Z {expected}"]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate(0, 0.0) == 0.0
    for n in range(1, 21):
        seen = rate(50 * n, n / 2)
    assert seen == pytest.approx(100)
    for n in range(21, 41):
        seen = rate(1000, n / 2)
    assert seen == 0.0

"""`make play`: everything it promises to show is there to be seen, and nothing is left of it at its end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.play import SHOWS
from bench.rig.processes import ROOT, Process, running, without_settings
from tests.rig.terminals import on_a_terminal

PLAY = [sys.executable, "-m", "bench.play", "--pause-s", "0.05"]
PATIENCE_S = 600.0
LIVE_PAGE = r"live page is (http://127\.0\.0\.1:\d+)"

Row = dict[str, Any]
SEEN: dict[str, Callable[[Row], object]] = {
    "a series that its PACS verified": lambda row: row["Verdict"] == "verified",
    "a series that a tag counts": lambda row: row["Verdict"] == "expected",
    "a series judged by silence": lambda row: row["Verdict"] == "idle" and not row["FalseCompletions"],
    "a verdict that was too early": lambda row: row["FalseCompletions"],
    "an image that the PACS kept back": lambda row: row["Verdict"] == "idle" and row["Missing"] == 1,
    "another patient": lambda row: row["Conflicts"],
}


def wait_until(seen: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.1)


def get(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(url, trust_env=False, timeout=30).raise_for_status().json()
    return found


def rows(url: str) -> list[Row]:
    series: list[Row] = get(f"{url}/series?limit=1000")["series"]
    return series


def arriving(url: str) -> list[Row]:
    return [series for gateway in get(f"{url}/gateways")["gateways"] for series in gateway["State"]["Arriving"]]


def live_page(play: Process) -> str:
    return play.wait_for(lambda line: str(found[1]) if (found := re.search(LIVE_PAGE, line)) else None)


@pytest.mark.slow
def test_play_shows_every_verdict_a_late_image_a_missing_one_and_a_conflict(tmp_path: Path) -> None:
    with running(Process("play", PLAY, ROOT, TMPDIR=str(tmp_path))) as play:
        url = live_page(play)
        assert "<title>" in httpx.get(url, trust_env=False).text
        wait_until(lambda: arriving(url), "series that arrive")
        for what, is_seen in SEEN.items():
            wait_until(lambda is_seen=is_seen: [row for row in rows(url) if is_seen(row)], what)  # type: ignore[misc]
        sources = {source.split()[0] for row in get(f"{url}/overview/series")["series"] if (source := row["Source"])}
        assert sources == set(SHOWS)
        (conflict, *_) = get(f"{url}/conflicts")["conflicts"]
        assert conflict["Report"]["PatientID"].endswith("-2")
        play.look()
        left = psutil.Process(play.popen.pid).children(recursive=True)
        assert len(left) == 2
        assert play.stop() == 0
    assert not [process for process in left if process.is_running()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_play_and_not_first_its_server(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    with (
        running(Process("another", PLAY, ROOT, TMPDIR=str(tmp_path / "another"))) as another,
        on_a_terminal(PLAY, ROOT, TMPDIR=str(tmp_path)) as terminal,
    ):
        url = terminal.wait_for(LIVE_PAGE).removeprefix("live page is ")
        assert url != live_page(another)  # neither takes the other's port
        left = psutil.Process(terminal.process.pid).children(recursive=True)
        for process in left:  # as Ctrl-C does to all that were started on a terminal
            if "bench.play" not in process.cmdline():
                process.send_signal(signal.SIGINT)
        before = len(rows(url))
        wait_until(lambda: len(rows(url)) > before + 5, "series that go on coming")
        terminal.type("\x03\x03")
        assert terminal.ended() == 0
        assert not [process for process in left if process.is_running()]
        assert [path.name for path in tmp_path.iterdir()] == ["another"]
        another.look()
    assert terminal.written.rstrip().endswith("nothing of it is left")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_play_that_is_told_to_end_while_it_starts_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running(Process("play", PLAY, ROOT, TMPDIR=str(tmp_path))) as play:
        play.wait_for(lambda line: "starts" in line or None)
        left = psutil.Process(play.popen.pid).children(recursive=True)
        play.popen.send_signal(number)
        assert play.popen.wait(PATIENCE_S) == 0
    assert not [process for process in left if process.is_running()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_process_that_dies_ends_play_with_what_it_said_last(tmp_path: Path) -> None:
    with running(Process("play", PLAY, ROOT, TMPDIR=str(tmp_path))) as play:
        live_page(play)
        (gateway,) = [
            child for child in psutil.Process(play.popen.pid).children() if str(ROOT / "client.py") in child.cmdline()
        ]
        gateway.kill()
        assert play.popen.wait(PATIENCE_S) == 1
    assert any("gateway ended with exit code -9" in line for line in play.lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_play_needs_nobody_to_read_what_it_says(tmp_path: Path) -> None:
    environment = without_settings() | {"TMPDIR": str(tmp_path)}
    reading, writing = os.pipe()
    with subprocess.Popen(PLAY, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.DEVNULL) as play:
        os.close(writing)
        assert os.read(reading, 1)
        os.close(reading)
        play.wait(PATIENCE_S)
    assert list(tmp_path.iterdir()) == []

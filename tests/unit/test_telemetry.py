"""Whoever writes a log line, it comes the same way, and holds no text of an exception: that may be a patient's."""

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from common import logs
from common.logs import places
from common.settings import GatewaySettings
from gateway.metrics_port import CannotServeMetrics, serve_metrics
from tests.rig.programs.logged import LOG_IT, MARKED

ROOT = Path(__file__).parents[2]
LOGGED = ("-m", "tests.rig.programs.logged")
FILE = "tests/rig/programs/logged.py"


def lines_of(code: str, *, exit_code: int = 0) -> list[dict[str, Any]]:
    """What a process writes that logs with ours and runs `code`, parsed."""
    before = f"from common import logs\nlogs.configure_logging(worker=3)\nMARKED = {MARKED!r}\n"
    return written_by("-c", f"{before}{code}", exit_code=exit_code)


def logged(*what: str) -> list[dict[str, Any]]:
    """What the program of that name writes, parsed."""
    return written_by(*LOGGED, *what)


def written_by(*arguments: str, exit_code: int = 0) -> list[dict[str, Any]]:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert MARKED not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def places_of(line: dict[str, Any]) -> list[str]:
    """The kinds and places of a line's exception, without line numbers."""
    return [re.sub(r":\d+", ":", place) for place in line["exception"]]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What Python shows on a terminal."""
    master, slave = pty.openpty()
    try:
        env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")} | environment
        with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=slave, stderr=slave) as process:
            process.wait(60)
        return os.read(master, 65536).decode()
    finally:
        os.close(slave)
        os.close(master)


def test_our_events_are_one_json_object_a_line() -> None:
    (line,) = lines_of("import structlog; structlog.get_logger().info('series.stored', instances=3)")
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "series.stored", "instances": 3, "level": "info", "worker": 3}


@pytest.mark.parametrize("name", ["uvicorn.error", "sqlalchemy.pool", "pynetdicom.acse", "asyncio"])
def test_lines_of_libraries_come_the_same_way(name: str) -> None:
    (line,) = lines_of(f"import logging; logging.getLogger({name!r}).warning('slow: %s', 7)")
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "slow: 7", "logger": name, "level": "warning", "worker": 3}


def test_uvicorn_keeps_no_handler_of_its_own() -> None:
    (line,) = logged("in_uvicorn")
    assert (line["event"], line["logger"]) == ("Started server process [7]", "uvicorn.error")


@pytest.mark.parametrize("log_it", LOG_IT)
def test_of_an_exception_only_kinds_and_places_are_written(log_it: str) -> None:
    (line,) = logged("with_a_cause", log_it)
    assert line["event"] == "server.failed"
    assert places_of(line) == [f"ValueError at {FILE}:", f"KeyError at {FILE}: < {FILE}:"]
    assert "exc_info" not in line


def test_a_task_that_nobody_awaited_is_told_without_its_exceptions_text() -> None:
    (line,) = logged("in_a_task_that_nobody_awaits")
    assert (line["logger"], line["event"]) == ("asyncio", "Task exception was never retrieved")
    assert places_of(line) == [f"ValueError at {FILE}:"]


@pytest.mark.parametrize(
    ("code", "exit_code", "event"),
    [
        ("raise ValueError(MARKED)", 1, "process.failed"),
        (
            "import threading\ndef f(): raise ValueError(MARKED)\nthreading.Thread(target=f).start()",
            0,
            "process.failed",
        ),
        ("import warnings; warnings.warn(MARKED)", 0, "warning.raised"),
        ("class X:\n    def __del__(self): raise ValueError(MARKED)\nX()", 0, "process.failed"),
        ("raise ExceptionGroup(MARKED, [ValueError(MARKED), KeyError(MARKED)])", 1, "process.failed"),
    ],
)
def test_what_nobody_caught_is_one_line_too(code: str, exit_code: int, event: str) -> None:
    (line,) = lines_of(code, exit_code=exit_code)
    assert line["event"] == event
    assert line.get("category") == "UserWarning" or line["exception"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_callback_that_fails_is_told_without_its_arguments(loop: str) -> None:
    pytest.importorskip(loop)
    lines = logged("in_callbacks", loop)
    assert [line["event"] for line in lines] == ["Exception"] * 2
    assert {line["exception"][0].partition(" at ")[0] for line in lines} == {"ValueError"}


def test_on_a_terminal_an_exception_has_no_text_either() -> None:
    shown = on_a_terminal(*LOGGED, "caught_and_not_caught")
    assert MARKED not in shown
    for expected in ("server.failed", f"ValueError at {FILE}:", "process.failed", f"KeyError at {FILE}:"):
        assert expected in shown


def test_a_log_line_on_a_terminal_does_not_move_its_cursor() -> None:
    code = "from common import logs\nlogs.configure_logging()\nlogs.log.info('x.seen', ae_title='CT\\x1b[2J\\x9b1')"
    shown = on_a_terminal("-c", code)
    assert "CT\ufffd[2J\ufffd1" in shown


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_colours_unless_it_cannot_show_them_or_is_not_to(
    environment: dict[str, str], coloured: bool
) -> None:
    code = "from common import logs\nlogs.configure_logging()\nlogs.log.warning('x.seen', seconds=3)"
    shown = on_a_terminal("-c", code, **environment)
    assert ("\x1b" in shown) is coloured
    assert "x.seen" in shown


def test_ctrl_c_is_no_failure() -> None:
    assert lines_of("raise KeyboardInterrupt", exit_code=-2) == []


def test_an_exception_raised_out_of_its_group_is_named_once() -> None:
    inner = ValueError("Secret^Name")
    group = ExceptionGroup("", [inner])
    inner.__context__ = group
    assert places(inner) == ["ValueError", "ExceptionGroup"]


def test_the_places_of_a_group_name_what_is_in_it() -> None:
    group = ExceptionGroup(MARKED, [ValueError(MARKED), KeyError(MARKED)])
    assert places(group) == ["ExceptionGroup", "ValueError", "KeyError"]


def test_a_chain_of_exceptions_that_leads_back_to_itself_ends() -> None:
    first, second = ValueError(), KeyError()
    first.__context__, second.__context__ = second, first
    assert 0 < len(places(first)) < 20


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    with capture_logs() as logs:
        async with serve_metrics(GatewaySettings(metrics_port=0)):
            yield logs[0]["port"]


async def test_silent_peers_of_the_metrics_port_cost_little_and_bar_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.metrics_port.SCRAPE_TIMEOUT_S", 0.2)
    async with served() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for reader, writer in silent:
            assert await reader.read() == b""  # let go, each
            writer.close()
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://127.0.0.1:{port}/metrics")
    assert "gateway_instances_received_total" in answer.text


@pytest.mark.parametrize("sent", [b"x" * 100_000, b"GET /metrics HTTP/1.1", b"", b"\x00\r\n\r\n"])
async def test_nonsense_at_the_metrics_port_ends_its_connection_only(sent: bytes) -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://127.0.0.1:{port}/metrics")).status_code == 200


async def test_a_port_that_is_taken_names_the_setting_and_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = GatewaySettings(metrics_port=taken.getsockname()[1])
        with pytest.raises(CannotServeMetrics, match=r"GATEWAY_METRICS_PORT=.*port 0 takes a free one"):
            async with serve_metrics(settings):
                pass


@pytest.mark.parametrize("error", [OSError("no space"), BrokenPipeError(), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_lost_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

    monkeypatch.setattr("sys.stderr", Full())
    assert logs.STDERR.write("a line\n") == len("a line\n")
    logs.STDERR.flush()

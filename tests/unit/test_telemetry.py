"""Whoever writes a log line, it comes the same way, and holds no text of an exception: that may be a patient's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from telemetry import places

ROOT = Path(__file__).parents[2]
MARKED = "Marked^Name"


def lines_of(code: str, *, exit_code: int = 0) -> list[dict[str, Any]]:
    """What a process writes that logs with ours and runs `code`, parsed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import telemetry\ntelemetry.configure_logging(worker=3)\nMARKED = {MARKED!r}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert MARKED not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


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
    code = """
import logging, uvicorn
uvicorn.Config("x:y")  # this gives its loggers handlers
telemetry.configure_logging()
logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "::1", "GET", f"/series?q={MARKED}", "1.1", 200)
"""
    (line,) = lines_of(code)
    assert (line["event"], line["logger"]) == ("Started server process [7]", "uvicorn.error")


@pytest.mark.parametrize(
    "log_it",
    [
        "structlog.get_logger().exception('server.failed')",
        "structlog.get_logger().error('server.failed', exc_info=error)",
        "logging.getLogger('uvicorn.error').exception('server.failed')",
        "logging.getLogger('uvicorn.error').error('server.failed', exc_info=error)",
    ],
)
def test_of_an_exception_only_kinds_and_places_are_written(log_it: str) -> None:
    code = f"""
import logging, structlog
def inner(): raise KeyError(MARKED)
try:
    try: inner()
    except KeyError as cause: raise ValueError(f"cannot store {{MARKED}}") from cause
except ValueError as error: {log_it}
"""
    (line,) = lines_of(code)
    assert line["event"] == "server.failed"
    assert line["exception"] == ["ValueError at <string>:9", "KeyError at <string>:6 < <string>:8"]
    assert "exc_info" not in line


def test_a_task_that_nobody_awaited_is_told_without_its_exceptions_text() -> None:
    code = """
import asyncio, gc
async def fail(): raise ValueError(MARKED)
async def main():
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
asyncio.run(main())
"""
    (line,) = lines_of(code)
    assert (line["logger"], line["event"]) == ("asyncio", "Task exception was never retrieved")
    assert line["exception"] == ["ValueError at <string>:6"]


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
        ("raise ExceptionGroup(MARKED, [ValueError(MARKED), KeyError(MARKED)])", 1, "process.failed"),
    ],
)
def test_what_nobody_caught_is_one_line_too(code: str, exit_code: int, event: str) -> None:
    (line,) = lines_of(code, exit_code=exit_code)
    assert line["event"] == event
    assert line.get("category") == "UserWarning" or line["exception"]


def test_ctrl_c_is_no_failure() -> None:
    assert lines_of("raise KeyboardInterrupt", exit_code=-2) == []


def test_the_places_of_a_group_name_what_is_in_it() -> None:
    group = ExceptionGroup(MARKED, [ValueError(MARKED), KeyError(MARKED)])
    assert places(group) == ["ExceptionGroup", "ValueError", "KeyError"]


def test_a_chain_of_exceptions_that_leads_back_to_itself_ends() -> None:
    first, second = ValueError(), KeyError()
    first.__context__, second.__context__ = second, first
    assert 0 < len(places(first)) < 20

"""What a test starts as a fork says and does what the same command does from a shell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.rig import warm
from bench.rig.processes import ROOT, gateway, server, without_settings

CLIENT, SERVER = [sys.executable, str(ROOT / "client.py")], [sys.executable, str(ROOT / "server.py")]
SERVING = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT), "server:app"]


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ([*CLIENT, "--version"], {}),
        ([*CLIENT, "status"], {"GATEWAY_JOURNAL_PATH": "elsewhere.db"}),
        ([*CLIENT, "--scp-port", "no"], {}),
        ([*SERVER, "keys", "--help"], {"TERM": "dumb", "COLUMNS": "60"}),
        ([*SERVER, "keys", "create", "x"], {}),
        (
            [*SERVER, "purge", "--before", "2999-01-01"],
            {"DATABASE_URL": "sqlite+aiosqlite:///here.db", "TZ": "Asia/Tokyo"},
        ),
        ([*SERVING], {"DATABASE_URL": "mysql://x"}),
    ],
    ids=lambda value: " ".join(value[1:])[-30:] if isinstance(value, list) else "",
)
def test_it_says_the_same_and_ends_the_same(tmp_path: Path, command: list[str], settings: dict[str, str]) -> None:
    environment = without_settings() | settings
    cold = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    fork = warm.run(command, cwd=tmp_path, env=environment)
    assert (fork.returncode, fork.stdout, fork.stderr) == (cold.returncode, cold.stdout, cold.stderr)


def test_signals_end_it_and_its_exit_code_tells_so(tmp_path: Path) -> None:
    with server(tmp_path) as (serving, url), gateway(tmp_path, url) as (receiving, _):
        assert isinstance(serving.popen, warm.Fork)
        receiving.popen.send_signal(signal.SIGINT)
        assert receiving.popen.wait() == 0
        serving.kill()
        assert (serving.popen.returncode, serving.stop()) == (-signal.SIGKILL, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ([sys.executable, "-c", ""], {}),
        ([sys.executable, "-S", *CLIENT[1:], "--version"], {}),
        ([*CLIENT, "--version"], {"PYTHONWARNINGS": "error"}),
        (["sh", "-c", "exit"], {}),
    ],
)
def test_another_command_or_another_python_is_no_fork(command: list[str], variables: dict[str, str]) -> None:
    child = warm.popen(command, env=os.environ | variables)
    assert isinstance(child, subprocess.Popen)
    child.communicate()

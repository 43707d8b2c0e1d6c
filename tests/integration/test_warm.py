"""What a test starts as a fork says and does what the same command does from a shell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.rig import warm
from bench.rig.processes import ROOT, start_gateway, start_server, without_settings

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
    server, url = start_server(tmp_path)
    gateway, _ = start_gateway(tmp_path, url)
    assert isinstance(server.popen, warm.Fork)
    gateway.popen.send_signal(signal.SIGINT)
    assert gateway.popen.wait() == 0
    server.kill()
    assert (server.popen.returncode, server.stop()) == (-signal.SIGKILL, -signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.kill(server.popen.pid, 0)


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

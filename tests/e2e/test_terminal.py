"""The gateway on a real terminal: the table below the log lines, Ctrl-C, and Tab in real shells."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.rig.processes import ROOT, gateway, server
from console.shell_completion import MARK
from tests.e2e.test_commands import NOWHERE, client_json
from tests.e2e.test_main_job import new_series, send
from tests.terminals import on_a_terminal, plain, screen

GATEWAY = [sys.executable, str(ROOT / "client.py"), "--scp-port", "0"]
STAMP = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z \[\w+ *\] [a-z_]+\.[a-z_]+ "


def test_a_table_stands_below_the_log_lines_and_ctrl_c_leaves_the_terminal_clean(tmp_path: Path) -> None:
    with server(tmp_path) as (_, url):
        command = [*GATEWAY, "--server-url", url, "--idle-policy", "fixed", "--idle-timeout-s", "600"]
        with on_a_terminal(command, tmp_path, width=250) as terminal:
            port = int(terminal.wait_for(r"(?<=port=)\d+"))
            terminal.wait_for(rf"STORESCP 127\.0\.0\.1:{port}  up 0:\d\d:\d\d")
            for _ in range(3):
                send(port, new_series(20))
            terminal.wait_for(r"3 series open, 60 images")  # and stay so until they are drained
            terminal.wait_for(r"series +from +images +quiet +waits *\n.*SCU CT +20 ")
            assert client_json(tmp_path, "drain", url=url) == {"reported": 3, "undelivered": 0}
            terminal.wait_for(r"✓ series 1\.2\.\S+ 20 images drained in \d")
            terminal.type("\x03")
            assert terminal.ended() == 0
    lines = [line for line in screen(terminal.written) if line and line != "^C"]
    assert len([line for line in lines if "report.delivered" in line]) == 3
    assert [line for line in lines if not re.match(STAMP, line)] == []  # no line torn, nothing left of the table
    assert "gateway.stopped" in lines[-1]
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_what_became_idle_stays_below_the_table(tmp_path: Path) -> None:
    with (
        server(tmp_path) as (_, url),
        on_a_terminal([*GATEWAY, "--server-url", url, "--idle-timeout-s", "0.5"], tmp_path) as terminal,
    ):
        send(int(terminal.wait_for(r"(?<=port=)\d+")), new_series(2))
        terminal.wait_for(r"✓ series 1\.2\.\S+ 2 images idle in \d")
        terminal.type("\x03")
        assert terminal.ended() == 0


def test_the_table_fits_a_small_terminal(tmp_path: Path) -> None:
    command = [*GATEWAY, "--server-url", NOWHERE, "--drain-timeout-s", "0.3"]
    with on_a_terminal(command, tmp_path, height=14, width=60) as terminal:
        port = int(terminal.wait_for(r"(?<=port=)\d+"))
        for _ in range(9):
            send(port, new_series(1))
        terminal.wait_for(r"9 series open")
        terminal.wait_for(r"  and \d more open series")
        terminal.type("\x03")
        assert terminal.ended() == 0


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"GATEWAY_WORKERS": "2"}], ids=["dumb", "workers"])
def test_there_is_no_table_on_a_dumb_terminal_and_with_several_workers(
    tmp_path: Path, environment: dict[str, Any]
) -> None:
    command = [*GATEWAY, "--server-url", NOWHERE, "--drain-timeout-s", "0.3"]
    with on_a_terminal(command, tmp_path, **environment) as terminal:
        workers = int(environment.get("GATEWAY_WORKERS", 1))
        terminal.wait_for("(?s)" + ".*".join([r"gateway\.started"] * workers))
        terminal.type("\x03")
        assert terminal.ended() == 0
    assert "inbox" not in plain(terminal.written)


def test_there_is_no_table_in_the_background(tmp_path: Path) -> None:
    shell = f"set -m; {' '.join(GATEWAY)} --server-url {NOWHERE} --drain-timeout-s 0.3 & read line; kill $!; wait"
    with on_a_terminal(["bash", "-c", shell], tmp_path) as terminal:
        terminal.wait_for("gateway.started")
        terminal.type("\n")
        terminal.ended()
    assert "gateway.stopped" in terminal.written
    assert "inbox" not in plain(terminal.written)


def test_without_a_terminal_every_line_is_json(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, drain_timeout_s=0.3) as (process, _):
        pass
    assert [line for line in process.lines if not line.startswith("{")] == []


@pytest.mark.slow
def test_drain_shows_what_still_waits(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, drain_timeout_s=0.3) as (_, port):
        send(port, new_series(2))
    command = [*GATEWAY, "--server-url", NOWHERE, "--drain-timeout-s", "2", "drain"]
    with on_a_terminal(command, tmp_path) as terminal:
        terminal.wait_for(r"draining: 0 series open, 1 reports to deliver")
        assert terminal.ended() == 3


def test_check_is_a_table_on_a_terminal(tmp_path: Path) -> None:
    with on_a_terminal([*GATEWAY, "--server-url", NOWHERE, "check"], tmp_path, width=70) as terminal:
        assert terminal.ended() == 3
    assert max(map(len, plain(terminal.written).splitlines())) <= 70
    assert "\x1b[1;31mfailed" in terminal.written


# --- shells -----------------------------------------------------------------------------------------------------

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "", "source <({python} {script} tab bash)"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -U compinit && compinit -u -D",
        "source <({python} {script} tab zsh)",
    ),
    "fish": (["fish", "--no-config", "-i"], "", "{python} {script} completion fish | source"),
}
EACH_SHELL = [
    pytest.param(shell, marks=[pytest.mark.peer(shell)] + [pytest.mark.slow] * (shell != "bash")) for shell in SHELLS
]
TYPED = {  # what Tab adds, and what then runs
    "python client.py sta": ("tus", "client.py status"),
    "python client.py --server-u": ("rl", "client.py --server-url"),
    "python client.py --idle-policy ad": ("aptive", "client.py --idle-policy adaptive"),
    "python client.py dead-letters rep": ("lay", "client.py dead-letters replay"),
    "python client.py --journal-path unmistak": ("able.db", "client.py --journal-path unmistakable.db"),
    "./client.py dr": ("ain", "./client.py drain"),
    "python unmistak": ("able.db", "unmistakable.db"),
    "python server.py keys rev": ("oke", "server.py keys revoke"),
}
STANDS_IN = """#!{python}
# {mark}
import os, runpy, sys
if os.path.exists("armed") and not {{"_CLIENT_PY_COMPLETE", "_SERVER_PY_COMPLETE"}} & os.environ.keys():
    sys.exit(f"RAN {{' '.join(sys.argv)}}")
sys.path.insert(0, {root!r})
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("shell", EACH_SHELL)
def test_tab_completes_in_a_real_shell(tmp_path: Path, shell: str) -> None:
    """Both programs are the real ones until they are armed: then they say what they would run."""
    command, before, source = SHELLS[shell]
    executable(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("client.py", "server.py"):
        text = STANDS_IN.format(mark=MARK, python=sys.executable, root=str(ROOT), script=str(ROOT / name))
        executable(tmp_path / name, text)
    (tmp_path / "unmistakable.db").write_text("print('RAN unmistakable.db')\n")
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    with on_a_terminal(command, tmp_path, PATH=path, HOME=str(tmp_path)) as terminal:
        for name in ("client.py", "server.py"):
            terminal.type(f"{before}\n{source.format(python='python', script=name)}\n")
        terminal.type("echo rea''dy\n")
        terminal.wait_for("ready")
        (tmp_path / "armed").touch()
        for typed, (added, wanted) in TYPED.items():
            terminal.forget()
            terminal.type(f"{typed}\t")
            terminal.wait_for(re.escape(added))
            terminal.type("\n")
            terminal.wait_for(f"RAN {re.escape(wanted)}\\b")


@pytest.mark.parametrize("shell", EACH_SHELL)
def test_tab_runs_no_program_of_another_project(tmp_path: Path, shell: str) -> None:
    command, before, source = SHELLS[shell]
    executable(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("client.py", "server.py"):
        executable(foreign / name, f"#!{sys.executable}\nopen('ran', 'w')\n")
    (foreign / "unmistakable.db").touch()
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    with on_a_terminal(command, foreign, PATH=path, HOME=str(tmp_path)) as terminal:
        for name in ("client.py", "server.py"):
            terminal.type(f"{before}\n{source.format(python=sys.executable, script=ROOT / name)}\n")
        terminal.type("echo rea''dy\n")
        terminal.wait_for("ready")
        for typed in ("python client.py", "python3 server.py", "./server.py", "./client.py"):
            terminal.forget()
            terminal.type(f"{typed} unmistak\t")
            terminal.wait_for("able.db")
            terminal.type("\x15")
    assert not (foreign / "ran").exists()


@pytest.mark.parametrize("program", ["client.py", "server.py"])
def test_tab_knows_our_programs_by_their_mark(program: str) -> None:
    assert f"# {MARK} (console/shell_completion.py)" in (ROOT / program).read_text().splitlines()


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)

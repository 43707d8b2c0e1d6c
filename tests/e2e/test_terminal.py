"""The gateway on a real terminal: the table below the log lines, Ctrl-C, and Tab in real shells."""

import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.rig.processes import ROOT, gateway, server
from console.shell_completion import MARK
from tests.rig.commands import NOWHERE, client_json
from tests.rig.factories import make_report
from tests.rig.sending import new_series, send
from tests.rig.terminals import on_a_terminal, plain, screen

ARMED = ROOT / "tests" / "rig" / "programs" / "armed.py"
GATEWAY = [sys.executable, str(ROOT / "client.py"), "--scp-port", "0"]
PORT = r"(?<=STORESCP 127\.0\.0\.1:)[1-9]\d*(?=  up 0:\d\d:\d\d)"
SERIES = r"\d\d:\d\d:\d\dZ {} 1\.2\.\S+ {}"
STOPPING = r"stopping: at most 0\.3 s for the server to take {} \(GATEWAY_DRAIN_TIMEOUT_S\)"


def test_a_table_stands_below_one_line_a_series_and_ctrl_c_leaves_the_terminal_clean(tmp_path: Path) -> None:
    with server(tmp_path) as (_, url):
        command = [*GATEWAY, "--server-url", url, "--idle-policy", "fixed", "--idle-timeout-s", "600"]
        with on_a_terminal(command, tmp_path, width=250) as terminal:
            port = int(terminal.wait_for(PORT))
            for _ in range(3):
                send(port, new_series(20))
            terminal.wait_for(r"3 series open, 60 images")  # and stay so until they are drained
            terminal.wait_for(r"series +from +images +quiet +waits *\n.*SCU CT +20 ")
            assert client_json(tmp_path, "drain", url=url) == {"reported": 3, "undelivered": 0}
            terminal.wait_for(SERIES.format("✓", r"20 images drained in \d"))
            terminal.type("\x03")
            assert terminal.ended() == 0
    *lines, stopping, stopped = [line for line in screen(terminal.written) if line and line != "^C"]
    assert len(lines) == 3  # and nothing is left of the table
    assert [line for line in lines if not re.match(SERIES.format("✓", "20 images drained in"), line)] == []
    assert stopping.endswith("Z stopping: nothing is open, nothing waits")
    assert stopped.endswith("Z all reports are delivered")
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_an_incomplete_series_and_one_in_conflict_are_no_green_tick_and_name_no_patient(tmp_path: Path) -> None:
    incomplete, conflicting, fine = new_series(7), new_series(3), new_series(2)
    for ds in incomplete:
        ds.NumberOfSeriesRelatedInstances = 12
    with server(tmp_path) as (_, url):
        stored = make_report("1", series=conflicting[0].SeriesInstanceUID).model_copy(update={"PatientID": "XYZ987"})
        httpx.post(f"{url}/series", json=stored.model_dump(mode="json"), trust_env=False).raise_for_status()
        command = [*GATEWAY, "--server-url", url, "--idle-policy", "fixed", "--idle-timeout-s", "0.5"]
        with on_a_terminal(command, tmp_path, width=250) as terminal:
            port = int(terminal.wait_for(PORT))
            for datasets in (incomplete, conflicting, fine):
                send(port, datasets)
            terminal.wait_for(SERIES.format("!", r"7 of 12, 5 missing, idle in \d"))
            terminal.wait_for(SERIES.format("!", r"\d images? idle - a conflict: another patient or study is stored"))
            terminal.wait_for(SERIES.format("✓", r"2 images idle in \d"))
            terminal.type("\x03")
            assert terminal.ended() == 0
    assert "\x1b[33m! 1.2." in terminal.written
    assert "\x1b[32m" not in terminal.written.replace("\x1b[32m\x1b[1mwarning", "")
    assert not re.search("Test.One|P1|XYZ987", plain(terminal.written))


def test_ctrl_c_says_what_it_waits_for_and_in_the_end_where_undelivered_reports_are(tmp_path: Path) -> None:
    command = [*GATEWAY, "--server-url", NOWHERE, "--drain-timeout-s", "0.3"]
    for waiting in (0, 2):
        with on_a_terminal(command, tmp_path, width=250) as terminal:
            port = int(terminal.wait_for(PORT))
            terminal.wait_for(rf"0 series open, 0 images  {waiting} reports undelivered")
            for _ in range(2):
                send(port, new_series(5))
            terminal.wait_for("2 series open, 10 images")
            terminal.type("\x03")
            terminal.wait_for(STOPPING.format(rf"2 open series \(10 images\) and {waiting} waiting reports"))
            assert terminal.ended() == 0
        *_, last = [line for line in screen(terminal.written) if line]
        journal = tmp_path / "gateway-journal.db"
        assert last.endswith(f"Z {waiting + 2} reports kept in {journal}, posted at the next start")


@pytest.mark.slow
def test_what_an_earlier_run_left_is_said_once_it_is_delivered(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, drain_timeout_s=0.3) as (_, port):
        send(port, new_series(2))
    with server(tmp_path) as (_, url), on_a_terminal([*GATEWAY, "--server-url", url], tmp_path) as terminal:
        terminal.wait_for(SERIES.format("·", "2 images reported before this start"))
        terminal.type("\x03")
        assert terminal.ended() == 0


@pytest.mark.parametrize("width", [20, 60])
def test_the_table_fits_a_small_terminal_and_follows_it(tmp_path: Path, width: int) -> None:
    command = [*GATEWAY, "--server-url", NOWHERE, "--drain-timeout-s", "0.3"]
    with on_a_terminal(command, tmp_path, height=14, width=100) as terminal:
        port = int(terminal.wait_for(PORT))
        for _ in range(9):
            send(port, new_series(1))
        terminal.wait_for(r"9 series open")
        terminal.wait_for(r"  and \d more open series")
        terminal.resize(40, width)
        terminal.wait_for(r"(1\.2\..*\n){8}1\.2\.")
        terminal.resize(9, width)
        terminal.forget()
        terminal.wait_for(r"  and 8 more op")
        shown = plain(terminal.written).split("9 series open")[-2]
        assert max(map(len, shown.splitlines())) <= width
        terminal.type("\x03")
        assert terminal.ended() == 0


def test_variables_of_a_size_do_not_make_the_table_larger_than_the_terminal(tmp_path: Path) -> None:
    shell = f"COLUMNS=250 LINES=100 exec {' '.join(GATEWAY)} --server-url {NOWHERE} --drain-timeout-s 0.3"
    with on_a_terminal(["bash", "-c", shell], tmp_path, height=9, width=60) as terminal:
        port = int(terminal.wait_for(PORT))
        for _ in range(3):
            send(port, new_series(1))
        terminal.wait_for(r"  and 2 more open series")
        terminal.type("\x03")
        assert terminal.ended() == 0
    assert "─" * 60 in terminal.written
    assert "─" * 61 not in terminal.written


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
    if "TERM" in environment:  # no table, and nothing that moves or colours; every event, and what a stop means
        assert "\x1b" not in terminal.written
        assert "Z stopping: nothing is open, nothing waits" in terminal.written
        *_, stopped = terminal.written.splitlines()
        assert stopped.endswith("Z all reports are delivered")


def test_there_is_no_table_in_the_background(tmp_path: Path) -> None:
    shell = f"set -m; {' '.join(GATEWAY)} --server-url {NOWHERE} --drain-timeout-s 0.3 & read line; kill $!; wait"
    with on_a_terminal(["bash", "-c", shell], tmp_path) as terminal:
        terminal.wait_for("gateway.started")
        terminal.type("\n")
        terminal.ended()
    assert "all reports are delivered" in terminal.written
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


@pytest.mark.parametrize("shell", EACH_SHELL)
def test_tab_completes_in_a_real_shell(tmp_path: Path, shell: str) -> None:
    """Both programs are the real ones until they are armed: then they say what they would run."""
    command, before, source = SHELLS[shell]
    executable(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("client.py", "server.py"):
        executable(tmp_path / name, f"#!{sys.executable}\n# {MARK}\n{ARMED.read_text()}")
    (tmp_path / "unmistakable.db").write_text("print('RAN unmistakable.db')\n")
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    with on_a_terminal(command, tmp_path, PATH=path, HOME=str(tmp_path), PYTHONPATH=str(ROOT)) as terminal:
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

"""deploy/systemd fits systemd's checks, itself, settings and processes; tests/e2e/test_systemd_units.py starts it."""

import re
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from api.cli.commands import command_line
from common.settings import GatewaySettings, ServerSettings, Settings, load, variable
from server import app
from tests.rig.papers import JOBS, OPERATIONS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
INSTALLED = "/opt/series-gateway"
UNITS = ["series-gateway", "series-server"]
ALL_UNITS = [*UNITS, "series-on-complete"]
SETTINGS: dict[str, type[Settings]] = {"series-gateway": GatewaySettings, "series-server": ServerSettings}
SPECIFIERS = {"%S": "/var/lib", "%d": "/run/credentials/series-gateway.service"}


def unit(name: str) -> dict[str, list[str]]:
    """Every option of a unit, in its order, with systemd's specifiers filled in."""
    options: dict[str, list[str]] = defaultdict(list)
    for line in (FOLDER / f"{name}.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            for specifier, text in SPECIFIERS.items():
                value = value.replace(specifier, text)
            options[key].append(value)
    return options


def environment(name: str) -> dict[str, str]:
    """What the process gets: the unit's variables, then its file's."""
    given = dict(entry.split("=", 1) for entry in unit(name)["Environment"])
    (path,) = unit(name)["EnvironmentFile"]
    lines = (FOLDER / Path(path).name).read_text().splitlines()
    return given | dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def installed_here(name: str, folder: Path) -> Path:
    """The unit, with commands that exist on this machine."""
    path = folder / f"{name}.service"
    text = (FOLDER / path.name).read_text()
    path.write_text(re.sub(rf"^ExecStart={INSTALLED}/\.venv/bin/\w+", f"ExecStart={sys.executable}", text, flags=re.M))
    return path


@pytest.mark.peer("systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    paths = [str(installed_here(name, tmp_path)) for name in ALL_UNITS]
    options = ["--recursive-errors=no", "--man=no"]  # what is wrong with this machine's own units is not asked
    done = subprocess.run(["systemd-analyze", "verify", *options, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "series-" in line] == []


@pytest.mark.peer("systemd")
@pytest.mark.parametrize("name", ALL_UNITS)
def test_systemd_finds_little_that_a_unit_could_do_to_the_machine(name: str, tmp_path: Path) -> None:
    path = str(installed_here(name, tmp_path))
    options = ["--offline=true", "--threshold=20", "--no-pager"]  # 2.0 of 10, where 10 is a service without any limits
    done = subprocess.run(["systemd-analyze", "security", *options, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_commands_name_what_exists() -> None:
    (gateway,), (server,) = (unit(name)["ExecStart"] for name in UNITS)
    assert shlex.split(gateway) == [f"{INSTALLED}/.venv/bin/python", f"{INSTALLED}/client.py"]
    assert (ROOT / "client.py").is_file()
    binary, *options, application = shlex.split(server)
    assert binary == f"{INSTALLED}/.venv/bin/uvicorn"
    assert options[options.index("--app-dir") + 1] == INSTALLED
    assert application == "server:app"
    assert app.title
    assert f"--port {options[options.index('--port') + 1]} " in server


def test_the_script_of_on_complete_may_run_as_long_as_its_time_out() -> None:
    (command,) = unit("series-on-complete")["ExecStart"]
    python, program, name, *options = shlex.split(command)
    assert (python, program) == (f"{INSTALLED}/.venv/bin/python", f"{INSTALLED}/server.py")
    on_complete = command_line().commands[name]
    given = on_complete.make_context(name, options).params
    assert given["command"][-1] == "{SeriesInstanceUID}"
    assert int(unit("series-on-complete")["TimeoutStopSec"][0]) > given["timeout_s"]
    assert unit("series-on-complete")["KillMode"] == ["mixed"]
    assert unit("series-on-complete")["LoadCredential"] == ["key:/etc/series-gateway/reader-key"]


@pytest.mark.parametrize("name", UNITS)
def test_every_setting_is_known_and_together_they_start(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        for cls in SETTINGS.values():
            for field in cls.model_fields:
                patch.delenv(variable(cls, field), raising=False)
        for key, value in environment(name).items():
            patch.setenv(key, value)
        patch.chdir(tmp_path)  # without a .env
        settings = load(SETTINGS[name])
    state = f"/var/lib/{unit(name)['StateDirectory'][0]}"
    if isinstance(settings, GatewaySettings):
        assert str(settings.journal_path.parent) == state
        assert str(settings.api_key_file) == "/run/credentials/series-gateway.service/key"
        assert unit(name)["LoadCredential"] == ["key:/etc/series-gateway/key"]
        assert not settings.exposes_key
        stop_s = int(unit(name)["TimeoutStopSec"][0])
        assert stop_s > 2 * settings.drain_timeout_s + 5
    elif isinstance(settings, ServerSettings):
        assert settings.database_url == f"sqlite+aiosqlite:///{state}/series.db"
        assert (
            str(settings.audit_path)
            == re.findall(r"^(/\S+) \{", (FOLDER / "logrotate.conf").read_text(), re.MULTILINE)[0]
        )
        (command,) = unit(name)["ExecStart"]
        graceful_s = int(re.findall(r"--timeout-graceful-shutdown (\d+)", command)[0])
        assert int(unit(name)["TimeoutStopSec"][0]) > graceful_s + 5


@pytest.mark.parametrize("name", ALL_UNITS)
def test_a_unit_has_a_user_of_its_own_and_writes_to_its_state_only(name: str) -> None:
    options = unit(name)
    assert options["User"] == options["StateDirectory"] == [name]
    assert options["WorkingDirectory"] == [f"/var/lib/{name}"]
    assert re.search(rf"^u {name} ", (FOLDER / "sysusers.conf").read_text(), re.MULTILINE)
    assert options["ProtectSystem"] == ["strict"]
    assert options["NoNewPrivileges"] == ["yes"]
    assert options["UMask"] == ["0077"]
    assert options["Restart"] == ["on-failure"]
    assert options["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    assert "ReadWritePaths" not in options


@pytest.mark.parametrize("name", ALL_UNITS)
def test_process_metrics_can_be_read(name: str) -> None:
    assert "ProcSubset" not in unit(name)  # /proc/stat has the boot time, from which an age is counted


def test_the_guide_installs_every_file() -> None:
    for path in FOLDER.iterdir():
        assert f"deploy/systemd/{path.name}" in OPERATIONS + JOBS, path.name


def test_an_operators_command_has_the_units_user_settings_and_key() -> None:
    (command,) = re.findall(r"^systemd-run .*\n(?:  .*\n)*", OPERATIONS, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", ""))
    gateway = unit("series-gateway")
    for name in ("User", "EnvironmentFile", "LoadCredential", "WorkingDirectory"):
        assert f"{name}={gateway[name][0]}" in words
    (name,) = [word.removeprefix("--unit=") for word in words if word.startswith("--unit=")]
    for value in gateway["Environment"]:
        assert value.replace("series-gateway.service", f"{name}.service") in words

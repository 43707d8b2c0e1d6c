"""What `--help` says, and what a wrong word on the command line is answered with."""

import asyncio
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.shell_completion import ZshComplete
from click.testing import CliRunner

from api.cli import commands as server_commands
from api.cli import readers
from common.settings import GatewaySettings, ServerSettings, variable
from gateway.cli import commands
from models import ChangeKind, SeriesVerdict

COLUMNS = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}


async def run(settings: GatewaySettings, stop: asyncio.Event, **_: Any) -> int:
    return 0


CLIENT, SERVER = commands.command_line(run), server_commands.command_line()


def answered(group: click.Group, *arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(group, list(arguments), env=COLUMNS)
    assert result.exit_code == exit_code, result.output
    return re.sub(r"\s+", " ", result.output)


@cache
def help_of(group: click.Group) -> str:
    return answered(group, "--help")


def all_commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, *path, name)


def test_the_words_for_changes_are_those_of_models() -> None:
    assert get_args(SeriesVerdict) == readers.VERDICTS
    assert get_args(ChangeKind) == server_commands.CHANGE_KINDS


def test_every_flag_stands_in_one_section() -> None:
    listed = [name for names in commands.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(GatewaySettings.model_fields.keys() - commands.NOT_FLAGS)


@pytest.mark.parametrize("name", sorted(GatewaySettings.model_fields.keys() - commands.NOT_FLAGS))
def test_every_flag_shows_its_variable_its_unit_and_its_default(name: str) -> None:
    text, default = help_of(CLIENT), GatewaySettings.model_fields[name].default
    dashed, known = name.replace("_", "-"), variable(GatewaySettings, name)
    assert f"--{dashed} " in text
    if isinstance(default, int | float) and not isinstance(default, bool):
        assert f"[{known}; default {default:g}]" in text or f"[{known}; default {default}]" in text
    else:
        assert f"[{known}" in text
    for ending, unit in {"_s": "SECONDS", "_bytes": "BYTES", "_port": "PORT"}.items():
        assert not name.endswith(ending) or f"--{dashed} {unit} " in text


def test_the_sections_and_what_else_there_is_to_know() -> None:
    text = CliRunner().invoke(CLIENT, ["--help"]).output
    assert re.findall(r"^(\w.*):$", text, re.MULTILINE) == ["Commands", *commands.SECTIONS, "Other"]
    assert "Exit codes: 0 done; 1" in text
    assert "tab bash" in text
    assert "--api-key " not in text


def test_the_servers_help_holds_every_setting_and_exit_code() -> None:
    text = help_of(SERVER)
    assert all(variable(ServerSettings, name) in text for name in ServerSettings.model_fields)
    assert "Exit codes: 0 done" in text
    assert answered(SERVER, exit_code=2) == text


@pytest.mark.parametrize(
    ("group", "path"),
    [pytest.param(g, p, id=" ".join(p)) for g in (CLIENT, SERVER) for p, _ in all_commands(g)],
)
def test_every_command_and_option_has_help(group: click.Group, path: tuple[str, ...]) -> None:
    command = dict(all_commands(group))[path]
    assert command.help
    assert all(p.help for p in command.params if isinstance(p, click.Option))
    assert answered(group, *path, "--help").startswith("Usage: ")


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize(
    "path", [(CLIENT,), (CLIENT, "dead-letters"), (SERVER,), (SERVER, "keys"), (SERVER, "webhooks")]
)
def test_the_line_of_a_command_is_whole_sentences(path: tuple[Any, ...], columns: str) -> None:
    group, *words = path
    output = CliRunner().invoke(group, [*words, "--help"], env={"COLUMNS": columns, "TERMINAL_WIDTH": columns}).output
    shown = output.partition("Commands:\n")[2].partition("\n\n")[0]
    told = [" ".join(text.split()) for text in re.split(r"^  (?=\S)", shown, flags=re.MULTILINE)[1:]]
    assert told
    assert all(text.endswith(".") and "..." not in text for text in told), told


def test_tab_tells_whole_sentences_too() -> None:
    complete = ZshComplete(SERVER, {}, "server.py", "_SERVER_PY_COMPLETE")
    told = [item.help for item in complete.get_completions(["webhooks"], "")]
    assert told
    assert all(text and text.endswith(".") and "..." not in text for text in told)


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["--scp-prot", "1"], "--scp-port"),
        (["--tls-crt", "x"], "--tls-cert"),
        (["dead-letters", "lst"], "Did you mean 'list'?"),
        (["--scp-port"], "'--scp-port' requires an argument"),
        (["--allow-any-peer", "true"], "flags such as --allow-any-peer take no value"),
        (["completion", "csh"], "'bash', 'zsh', 'fish'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_likely_one(arguments: list[str], cure: str) -> None:
    assert cure in answered(CLIENT, *arguments, exit_code=2)


def test_the_same_for_the_server() -> None:
    assert "Did you mean 'keys'?" in answered(SERVER, "key", exit_code=2)
    assert "--expires-in" in answered(SERVER, "keys", "create", "x", "--expire-in", "3", exit_code=2)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("name", ["tab", "completion"])
@pytest.mark.parametrize(("group", "program"), [(CLIENT, "client.py"), (SERVER, "server.py")])
def test_tab_needs_no_settings_and_has_its_old_name(
    group: click.Group, program: str, name: str, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_NO_SUCH_THING", "1")
    monkeypatch.setenv("SERVER_NO_SUCH_THING", "1")
    script = answered(group, name, shell)
    assert name == "tab" or f"  {name}" not in CliRunner().invoke(group, ["--help"]).output
    assert f"_{program.replace('.', '_').upper()}_COMPLETE" in script
    assert "{" not in re.sub(r"\$?\{[^}]*\}|\{|\}", "", script)


@pytest.mark.parametrize("kind", get_args(ChangeKind))
def test_a_webhook_of_studies_takes_only_the_kinds_of_change_that_a_study_has(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    add = ["webhooks", "add", "https://ai.example/hook", "--kind", kind, "--subject"]
    env = COLUMNS | {"DATABASE_URL": url}
    for subject in ("series", "any"):
        assert CliRunner().invoke(SERVER, [*add, subject], env=env).exit_code == 0
    refused = CliRunner().invoke(SERVER, [*add, "study"], env=env)
    assert refused.exit_code == (0 if kind in server_commands.STUDY_KINDS else 2), refused.output
    if refused.exit_code:
        assert f"--kind {kind}" in refused.output
        assert all(allowed in refused.output for allowed in server_commands.STUDY_KINDS)

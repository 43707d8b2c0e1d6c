"""What a command does beside a server or a gateway that has the file and does not answer: it starts, or ends."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from api.cli import purge
from api.cli.commands import command_line
from client import run
from common import control
from common.at_rest import locked
from common.settings import GatewaySettings, load
from gateway import journal_file
from gateway.cli.commands import command_line as gateways_command_line
from gateway.journal import Bounds, Journal
from storage import engine

SERVER, CLIENT = command_line(), gateways_command_line(run)
COMMANDS = [
    (SERVER, ["keys", "create", "reader", "--scope", "series:read", "--yes"]),
    (SERVER, ["webhooks", "list"]),
    (SERVER, ["gateways", "list"]),
    (SERVER, ["purge", "--before", "2020-01-01"]),
    (CLIENT, ["drain"]),
    (CLIENT, ["dead-letters", "replay", "--all"]),
    (CLIENT, ["dead-letters", "discard", "--all", "--reason", "test"]),
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database and a journal that are there and empty."""
    journal = tmp_path / "journal.db"
    for name, value in (
        ("DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/series.db"),
        ("GATEWAY_JOURNAL_PATH", str(journal)),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(control, "ASKED_EVERY_S", 0)

    async def make_journal() -> None:
        settings = load(GatewaySettings)
        bounds = Bounds(settings.max_pending_instances, settings.journal_max_bytes, settings.min_free_bytes)
        async with Journal.open(journal, bounds):
            pass

    asyncio.run(make_journal())
    assert do(SERVER, ["webhooks", "list"]).exit_code == 0  # makes the database


def do(group: click.Group, arguments: Sequence[str]) -> Result:
    return CliRunner().invoke(group, list(arguments))


def held(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Path]:
    """Has another process hold database and journal the next so many times they are locked; returns what was tried."""
    tried: list[Path] = []

    def other(path: Path) -> AbstractContextManager[Any]:
        tried.append(path)
        if len(tried) <= times:
            raise BlockingIOError
        return locked(path)

    monkeypatch.setattr(engine, "locked", other)
    monkeypatch.setattr(journal_file, "locked", other)
    return tried


each_command = pytest.mark.parametrize(("group", "arguments"), COMMANDS, ids=[" ".join(one) for _, one in COMMANDS])


@each_command
def test_a_command_takes_the_file_once_the_process_that_had_it_has_ended_and_none_answers(
    monkeypatch: pytest.MonkeyPatch, group: click.Group, arguments: list[str]
) -> None:
    monkeypatch.setattr(control, "STARTS_WITHIN_S", 0.05)
    held(monkeypatch, times=1)
    done = do(group, arguments)
    assert (done.exit_code, done.exception) == (0, None), done.output


@each_command
def test_a_command_says_who_has_the_file_where_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, group: click.Group, arguments: list[str]
) -> None:
    monkeypatch.setattr(control, "STARTS_WITHIN_S", 0)
    held(monkeypatch, times=1000)
    done = do(group, arguments)
    assert done.exit_code == 1
    assert "is used by another" in done.output


def test_a_process_that_starts_or_ends_is_only_asked_until_it_answers() -> None:
    answers = [None, None, None, "its answer"]
    tried = 0

    def ask() -> str:
        if answer := answers.pop(0):
            return answer
        raise control.NotRunning

    async def do() -> str:
        nonlocal tried
        tried += 1
        raise control.FileInUse

    assert control.asked_or_done(ask, do, asyncio.run) == "its answer"
    assert tried == 1


def test_a_purge_only_asks_a_server_that_starts_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [True] * 3

    def request(_: Path, __: float, operation: str, **___: Any) -> dict[str, Any]:
        if silent:
            silent.pop()
            raise control.NotRunning
        return {"series": 0} if operation == "count_old" else {"after": None}

    monkeypatch.setattr(purge, "request", request)
    tried = held(monkeypatch, times=1000)
    done = do(SERVER, ["purge", "--before", "2020-01-01"])
    assert (done.exit_code, len(tried)) == (0, 1), done.output


def test_a_study_is_not_drained_where_no_gateway_runs() -> None:
    done = do(CLIENT, ["drain", "--study", "1.2"])
    assert done.exit_code == 1
    assert "no gateway runs on" in done.output


def test_what_does_not_run_on_a_file_is_done_at_once() -> None:
    def ask() -> str:
        raise control.NotRunning

    async def do() -> str:
        return "done here"

    assert control.asked_or_done(ask, do, asyncio.run) == "done here"

"""`python server.py …` beside a running server and without one, on both databases; the move to PostgreSQL."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from bench.rig.processes import ROOT, Process, ProcessFailed, running, server, start_server
from common.settings import ServerSettings
from db import Database
from storage.engine import DatabaseUnusable, Engine
from storage.move import TABLES, move, rows_of
from storage.schema import counters
from tests.rig.commands import answer, served, server_command, status_of
from tests.rig.factories import STUDY, make_report, make_state


@pytest.mark.slow
@pytest.mark.parametrize("beside_a_server", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_keys_are_made_listed_and_revoked(tmp_path: Path, database_url: str, beside_a_server: bool) -> None:
    with served(tmp_path, database_url, beside_a_server):
        made = answer(database_url, "keys", "create", "ai", "--scope", "series:read", "--expires-in", "30")
        answer(database_url, "keys", "create", "gw", "--scope", "series:write", "--scope", "series:read")
        first, second = answer(database_url, "keys", "list")
        assert (first["name"], first["scopes"], first["valid"]) == ("ai", "series:read", True)
        assert (second["scopes"], second["expires_at"]) == ("series:read series:write", None)
        assert made["key"] not in json.dumps([first, second])
        reader = server_command(database_url, "keys", "revoke", made["id"])
        assert (reader.returncode, reader.stderr) == (0, "")
        again = server_command(database_url, "keys", "revoke", made["id"])
        assert (again.returncode, "keys list" in again.stderr) == (1, True)
        assert [key["valid"] for key in answer(database_url, "keys", "list")] == [False, True]
        assert "--scope series:write" in server_command(database_url, "keys", "revoke", second["id"]).stderr


def test_a_key_works_at_once_and_no_longer_when_it_is_revoked(tmp_path: Path, database_url: str) -> None:
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        made = answer(database_url, "keys", "create", "ai", "--scope", "series:read")
        assert (status_of(url, made["key"]), status_of(url, "wrong")) == (200, 401)
        server_command(database_url, "keys", "revoke", made["id"])
        assert status_of(url, made["key"]) == 401


@pytest.mark.slow
def test_a_saved_key_is_for_its_owner_only_and_made_once(tmp_path: Path, database_url: str) -> None:
    path = tmp_path / "key"
    create = ("keys", "create", "gw", "--scope", "admin", "--save", str(path))
    first = server_command(database_url, *create)
    key = path.read_text().strip()
    assert (path.stat().st_mode & 0o777, key in first.stdout) == (0o600, False)
    assert "no key was made" in server_command(database_url, *create).stdout
    assert path.read_text().strip() == key
    assert len(answer(database_url, "keys", "list")) == 1


@pytest.mark.slow
def test_no_key_is_made_where_it_cannot_be_saved(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/s.db"
    done = server_command(url, "keys", "create", "gw", "--scope", "admin", "--save", "/nonexistent/key")
    assert (done.returncode, "no key was made" in done.stderr) == (1, True)
    empty = tmp_path / "empty"
    empty.touch()
    assert answer(url, "keys", "list") == []
    assert server_command(url, "keys", "create", "gw", "--scope", "admin", "--save", str(empty)).returncode == 0
    assert empty.read_text().startswith("sgk_")


@pytest.mark.slow
def test_two_links_to_one_sqlite_file_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with server(tmp_path, DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/real.db"):
        other = f"sqlite+aiosqlite:///{tmp_path}/link.db"
        assert answer(other, "keys", "create", "x", "--scope", "admin")["name"] == "x"  # the server did it
        with pytest.raises(ProcessFailed, match="used by another server process"):
            start_server(tmp_path, DATABASE_URL=other)


@pytest.mark.slow
def test_webhooks_are_added_listed_and_removed(database_url: str) -> None:
    added = answer(database_url, "webhooks", "add", "https://ai.example/hook")
    assert added["secret"].startswith("whsec_")
    (listed,) = answer(database_url, "webhooks", "list")
    assert (listed["url"], listed["behind"], "secret" in listed) == ("https://ai.example/hook", 0, False)
    rotated = answer(database_url, "webhooks", "rotate", str(added["id"]), "--keep-old", "2")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != added["secret"]
    assert server_command(database_url, "webhooks", "rotate", "99").returncode == 1
    refused = server_command(database_url, "webhooks", "rotate", str(added["id"]))
    assert (refused.returncode, "--keep-old 0" in refused.stderr) == (1, True)
    assert server_command(database_url, "webhooks", "add", "http://169.254.169.254/", "--link-local").returncode == 0
    for again in ("replay", "discard"):
        assert server_command(database_url, "webhooks", again, str(added["id"])).returncode == 1
    assert server_command(database_url, "webhooks", "remove", str(added["id"])).returncode == 0
    assert server_command(database_url, "webhooks", "remove", str(added["id"])).returncode == 1


@pytest.mark.slow
def test_gateways_are_listed_and_dismissed(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with server(tmp_path, DATABASE_URL=url) as (_, address):
        for name, stopped in (("here", False), ("gone", True)):
            state = make_state(name, Stopped=stopped)
            httpx.put(f"{address}/gateways/{name}", json=state, trust_env=False).raise_for_status()
        assert [(one["gateway"], one["stopped"]) for one in answer(url, "gateways", "list")] == [
            ("gone", True),
            ("here", False),
        ]
        assert server_command(url, "gateways", "dismiss", "gone").returncode == 0
        for name, said in (("gone", "no gateway gone"), ("here", "here is not gone")):
            refused = server_command(url, "gateways", "dismiss", name)
            assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
        assert [one["gateway"] for one in answer(url, "gateways", "list")] == ["here"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["webhooks", "add", "ftp://x"], "not an http or https URL"),
        (["webhooks", "add", "http://169.254.169.254/latest"], "add --link-local"),
        (["webhooks", "add", "http://[fe80::1]/"], "add --link-local"),
        (["keys", "create", "x", "--scope", "all"], "series:read"),
        (["keys", "create", "x"], "--scope"),
        (["move", "mysql://x"], "must have the form"),
        (["webhooks", "add", "http://[::1/hook"], "not an http or https URL"),
        (["webhooks", "add", "http://x:99999/"], "not an http or https URL"),
        (["keys", "create", "x", "--scope", "admin", "--expires-in", "1e9"], "--expires-in"),
    ],
)
def test_a_wrong_argument_is_named_with_the_cure(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = server_command(f"sqlite+aiosqlite:///{tmp_path}/s.db", *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_two_workers_on_sqlite_are_refused_with_the_cure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT), "--port", "0", "--workers", "2", "server:app"]
    process = Process("server", command, tmp_path, DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/s.db")
    with running(process):
        process.wait_for(lambda line: re.search(r"used by another server process.*PostgreSQL", line))
        process.wait_for(lambda line: re.search("stopping the parent process", line))
        assert process.popen.wait(120) != -signal.SIGKILL


# --- the move ---------------------------------------------------------------------------------------------------


async def fill(url: str, series: int = 30) -> None:
    async with Database.open(ServerSettings(database_url=url)) as database:
        for n in range(series):
            report = make_report(*map(str, range(n % 5 + 1)), series=f"{STUDY}.{n}")
            entry = {"At": "2026-01-01T00:00:00Z", "Event": "series.idle", "Details": {"Policy": "fixed", "S": 2.5}}
            update = {"Attributes": {"PatientName": ["Ünïcode^日本"]}, "Timeline": [entry], "Source": "CT1"}
            report = type(report).model_validate(report.model_dump() | update)
            await database.store(report)
            if n % 10 == 0:
                await database.store(report.model_copy(update={"PatientID": "other"}))
        await database.changes(since=0, limit=1)
        await database.store(make_report("1", series=f"{STUDY}.999"))  # has no number yet


async def contents(url: str) -> dict[str, list[dict[str, Any]]]:
    async with Engine.open(ServerSettings(database_url=url)) as engine:
        return {table.name: await engine.read(select(table).order_by(*table.primary_key)) for table in TABLES}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/source.db"


@pytest.mark.slow
@pytest.mark.peer("postgresql")
async def test_the_move_takes_every_row_and_the_server_goes_on_there(source: str, postgresql_url: str) -> None:
    await fill(source)
    done = await asyncio.to_thread(server_command, source, "move", postgresql_url)
    assert done.returncode == 0, done.stderr
    assert await contents(source) == await contents(postgresql_url)
    async with Database.open(ServerSettings(database_url=postgresql_url)) as database:
        record, created = await database.store(make_report("77", series=f"{STUDY}.0"))
        assert (record.NumInstances, created) == (2, False)
        numbers = [change.Number for change in await database.changes(since=0, limit=100)]
        assert numbers == list(range(1, 36))


@pytest.mark.slow
@pytest.mark.peer("postgresql")
@pytest.mark.parametrize("broken_off_at", [1, 40, 90])
async def test_a_move_that_was_broken_off_goes_on_and_is_exact(
    source: str, postgresql_url: str, broken_off_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.move.AT_ONCE", 7)
    await fill(source)

    class BrokenOff(Exception):
        pass

    moved = 0

    def count(rows: int) -> None:
        nonlocal moved
        moved += rows
        if moved >= broken_off_at:
            raise BrokenOff

    settings, to = ServerSettings(database_url=source), ServerSettings(database_url=postgresql_url)
    async with Engine.open(settings) as one, Engine.open(to) as two:
        with pytest.raises(BrokenOff):
            await move(one, two, count, lambda rows: None)
        done: list[int] = []
        await move(one, two, done.append, lambda rows: None)
        assert sum(done) == await rows_of(one)
    assert await contents(source) == await contents(postgresql_url)


@pytest.mark.slow
@pytest.mark.peer("postgresql")
async def test_a_move_into_a_database_with_rows_is_refused(source: str, postgresql_url: str) -> None:
    await fill(source, series=2)
    async with Database.open(ServerSettings(database_url=postgresql_url)) as database:
        await database.store(make_report("1"))
    async with (
        Engine.open(ServerSettings(database_url=source)) as one,
        Engine.open(ServerSettings(database_url=postgresql_url)) as two,
    ):
        with pytest.raises(DatabaseUnusable, match="name an empty one"):
            await move(one, two, lambda rows: None, lambda rows: None)


@pytest.mark.peer("postgresql")
async def test_a_move_says_so_where_something_else_wrote_to_the_target(source: str, postgresql_url: str) -> None:
    await fill(source, series=3)
    async with (
        Engine.open(ServerSettings(database_url=source)) as one,
        Engine.open(ServerSettings(database_url=postgresql_url)) as two,
    ):
        wrote = False

        def write(rows: int) -> None:
            nonlocal wrote
            wrote = True

        await two.write(lambda c: c.execute(counters.insert().values(Name="move", Value=0)))
        await Database(two).store(make_report("1", series="1.0.1"))
        with pytest.raises(DatabaseUnusable, match="something else wrote to it"):
            await move(one, two, write, lambda rows: None)
        assert wrote


@pytest.mark.slow
@pytest.mark.peer("postgresql")
def test_a_move_beside_a_running_server_is_refused(tmp_path: Path, source: str, postgresql_url: str) -> None:
    with server(tmp_path, DATABASE_URL=source):
        done = server_command(source, "move", postgresql_url)
    assert (done.returncode, "used by another server process" in done.stderr) == (1, True)

"""`server.py purge`, as an operator runs it: beside a real server and without one, broken off and gone on with."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine

from bench.database import fill
from bench.rig import warm
from bench.rig.processes import ROOT, server, without_settings
from common.settings import ServerSettings
from db import Database
from storage.move import TABLES
from tests.rig.factories import make_report
from tests.rig.old_series import aged, stored, uid
from tests.rig.papers import JOBS, filled, lines, shell
from tests.rig.terminals import on_a_terminal

SIZE = 3000  # series, of which IN_CONFLICT stay
IN_CONFLICT = 4
PURGE = [sys.executable, str(ROOT / "server.py"), "purge"]
ALL = [*PURGE, "--before", "2026-01-31"]


async def prepare(url: str) -> None:
    """Old are 1 to 4: 2 is in conflict, 4 has a change that was given up."""
    async with Database.open(ServerSettings(database_url=url)) as database:
        await stored(database, 1, 2, 3, 4, 5)
        await stored(database, 2, sop="2", PatientID="P2")
        await aged(database, 1, 2, 3, 4)
        id, _ = await database.webhooks.add("http://127.0.0.1:9/", 6, {})
        await database.webhooks.bury(id, 4, "HTTP 500")


def uids(url: str) -> list[str]:
    return [one["SeriesInstanceUID"] for one in httpx.get(f"{url}/series", trust_env=False).json()["series"]]


@pytest.mark.slow
def test_the_guides_commands_forget_what_is_old_beside_a_running_server(tmp_path: Path, database_url: str) -> None:
    asyncio.run(prepare(database_url))
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        told = []
        for n, command in enumerate(lines(JOBS, "python server.py purge")):
            said = shell(f"{filled(command.partition('#')[0])} --json", tmp_path, DATABASE_URL=database_url)
            told.append(json.loads(said))
            assert uids(url) == [uid(i) for i in ((1, 2, 3, 4, 5), (2, 4, 5))[n]]
        assert told[0] == told[1] | {"dry_run": True}
        assert {name: told[1][name] for name in ("series", "images", "kept_in_conflict", "kept_untold")} == {
            "series": 2,
            "images": 2,
            "kept_in_conflict": 1,
            "kept_untold": 1,
        }
        assert told[1]["ended"]
        report = make_report("7", series=uid(1)).model_dump(mode="json")
        assert httpx.post(f"{url}/series", json=report, trust_env=False).status_code == 201
        events = httpx.get(f"{url}/series/{uid(1)}/timeline", trust_env=False).json()["events"]
        assert (events[0]["Event"], events[0]["Details"]) == ("series.purged", {"Images": 1})
        page = httpx.get(f"{url}/changes", params={"since": 6}, trust_env=False).json()
        assert [(change["Kinds"], change["Revision"]) for change in page["changes"]] == [(["created"], 1)]


def test_what_is_printed_names_no_patient_and_says_what_stays(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    asyncio.run(prepare(url))
    done = warm.run(ALL, env=without_settings() | {"DATABASE_URL": url})
    assert done.returncode == 0, done.stderr
    assert not [word for word in ("P1", "P2", "Test^One", "purging") if word in done.stdout + done.stderr]
    assert ("GET /conflicts" in done.stderr, "webhooks list" in done.stderr) == (True, True)
    assert "━" not in done.stderr  # no terminal, no bar


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["--before", "2999-01-01"], 2, "2999-01-01 is in the future"),
        (["--before", "tomorrow"], 2, "tomorrow is not a day or time"),
        (["--before", "0001-01-01"], 2, "0001-01-01 is not a day or time"),
        ([], 2, "--before"),
        (["--before", "2020-01-01"], 1, "series.db does not exist"),  # in another folder than the server's
    ],
)
def test_a_wrong_day_or_database_removes_nothing_and_is_named(
    tmp_path: Path, words: list[str], exit_code: int, said: str
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    environment = without_settings() | {"DATABASE_URL": url, "TZ": "Pacific/Auckland"}
    done = warm.run([*PURGE, *words], env=environment)
    assert (done.returncode, said in done.stderr) == (exit_code, True), done.stderr
    assert not (tmp_path / "series.db").exists()


# --- broken off -------------------------------------------------------------------------------------------------


def counts(url: str) -> dict[str, int]:
    """Rows of each table, whoever else has the database open."""

    async def read() -> dict[str, int]:
        engine = create_async_engine(url)
        sums = [select(func.count()).select_from(table).scalar_subquery().label(table.name) for table in TABLES]
        try:
            async with engine.connect() as connection:
                return {**(await connection.execute(select(*sums))).mappings().one()}
        finally:
            await engine.dispose()

    return asyncio.run(read())


def is_whole(found: dict[str, int]) -> bool:
    """Each series is there with its two images and its change, or is gone with them."""
    there = SIZE - found["purged"]
    return (found["series"], found["instances"], found["changes"]) == (there, 2 * there, there)


@contextmanager
def begun(url: str) -> Iterator["subprocess.Popen[str]"]:
    """A purge that has removed some."""
    environment = without_settings() | {"DATABASE_URL": url}
    with subprocess.Popen(ALL, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not counts(url)["purged"]:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_purge_that_is_broken_off_leaves_whole_series_and_goes_on(database_url: str, number: int) -> None:
    asyncio.run(fill(Console(), database_url, SIZE))
    with begun(database_url) as process:
        process.send_signal(number)
        said = process.communicate(timeout=120)
    found = counts(database_url)
    assert 0 < found["purged"] < SIZE - IN_CONFLICT
    assert is_whole(found)
    if number == signal.SIGINT:
        assert (process.returncode, "interrupted" in said[1]) == (1, True), said
        assert f"series              {found['purged']}" in " ".join(said[0].split("\n"))
    environment = {"DATABASE_URL": database_url}
    again = json.loads(shell(" ".join([*ALL, "--json"]), ROOT, **environment))
    assert (again["series"], again["kept_in_conflict"]) == (SIZE - IN_CONFLICT - found["purged"], IN_CONFLICT)
    assert is_whole(counts(database_url))


@pytest.mark.slow
def test_a_server_that_is_killed_meanwhile_ends_the_command_with_the_cure(tmp_path: Path, database_url: str) -> None:
    asyncio.run(fill(Console(), database_url, SIZE))
    with server(tmp_path, DATABASE_URL=database_url) as (process, _), begun(database_url) as purging:
        process.popen.kill()
        process.popen.wait()
        out, err = purging.communicate(timeout=120)
    found = counts(database_url)
    assert is_whole(found)
    if database_url.startswith("sqlite"):
        assert (purging.returncode, "run the same command again" in err) == (1, True), out + err
        assert found["purged"] < SIZE - IN_CONFLICT
    else:
        assert (purging.returncode, found["series"]) == (0, IN_CONFLICT), out + err


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    asyncio.run(fill(Console(), url, SIZE))
    with on_a_terminal(ALL, tmp_path, DATABASE_URL=url) as terminal:
        terminal.wait_for(rf"series .*\d+/{SIZE}")
        terminal.wait_for(rf"series +{SIZE - IN_CONFLICT}\b")
        assert terminal.ended() == 0

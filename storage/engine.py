"""How the server's database is opened, read and written: SQLite with one writer, PostgreSQL with a pool."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
import alembic.config
import alembic.util
import asyncpg
import sqlalchemy
import structlog
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Dialect, Executable, Table, event, exc, func, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from common import metrics
from common.at_rest import locked
from common.connections import OF_POSTGRESQL, notice_death
from common.control import FileInUse
from common.errors import SeriesGatewayError
from common.settings import ServerSettings, without_password
from storage.connection import Connection, Do, run

BUSY_TIMEOUT_MS = 5000
WAL_BYTES = 64 * 2**20  # how much of SQLite's write-ahead log stays on the disk once it was larger
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    f"journal_size_limit={WAL_BYTES}",
)
READERS = 4
TRIES = 8  # how often one transaction is tried
FIRST_BACKOFF_S = 0.01
TRY_AGAIN = {"40001", "40P01"}  # serialization failure, deadlock: PostgreSQL, appendix A
PROMISES = ("fsync", "synchronous_commit", "full_page_writes")  # what PostgreSQL still has after a power cut
MIGRATING = 0x53475700  # key of the advisory lock: one server at a time brings the schema up to date

T = TypeVar("T")
log = structlog.get_logger()


class DatabaseUnavailable(SeriesGatewayError):
    """The database cannot answer now; nothing was changed, and trying again may help."""


class DatabaseUnusable(SeriesGatewayError):
    """The database cannot be opened at all. The text says why and names the cure."""


class DatabaseInUse(DatabaseUnusable, FileInUse):
    """Another process has the SQLite file."""


class Engine:
    """Transactions on one database."""

    def __init__(self, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self.writer = writer
        self.readers = readers
        self._running = 0
        self._closing = False
        self._unused = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ServerSettings) -> AsyncIterator["Engine"]:
        """Open the database, bringing its schema up to date. Raises DatabaseUnusable."""
        url = make_url(settings.database_url)
        on_sqlite = url.get_backend_name() == "sqlite"
        with _only_process(url) if on_sqlite else nullcontext():
            writer = _sqlite(url, writes=True) if on_sqlite else _postgresql(url, settings)
            readers = _sqlite(url, writes=False) if on_sqlite else _alone(writer)
            try:
                await _migrate(url, writer if on_sqlite else _patient(url))
                engine = cls(writer, readers)
                try:
                    yield engine
                finally:
                    await engine.close()
            finally:
                await readers.dispose()
                await writer.dispose()

    async def close(self) -> None:
        """Begin no transaction any more, and wait for those that run: a pool takes none back once it is disposed of."""
        self._closing = True
        while self._running:
            self._unused.clear()
            await self._unused.wait()

    async def read(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a query. Raises DatabaseUnavailable."""

        async def rows(connection: Connection) -> list[dict[str, Any]]:
            return [{**row} for row in (await connection.execute(query, parameters)).mappings()]

        with _measured("read"):
            return await self._tried(self.readers, rows)

    async def unkept_promises(self) -> list[str]:
        """Return the settings of PostgreSQL that are off, for want of which a power cut loses what was committed."""
        if self.readers.dialect.name != "postgresql":
            return []  # PRAGMAS has what SQLite needs
        return [name for name in PROMISES if (await self.read(text(f"SHOW {name}")))[0][name] == "off"]

    async def write(self, do: Do[T]) -> T:
        """Run `do` in one transaction, and again where PostgreSQL asks for that or the connection broke.

        In the latter case it may have been committed, so `do` has to bear that. Raises DatabaseUnavailable.
        """
        with _measured("write"):
            return await self._tried(self.writer, do)

    async def _tried(self, engine: AsyncEngine, do: Do[T]) -> T:
        for attempt in range(TRIES):
            try:
                with self._used(), _translated():
                    return await run(engine, do)
            except _TryAgain as error:
                reason = str(error)
                metrics.database_retries.inc()
                await asyncio.sleep(random.uniform(0, FIRST_BACKOFF_S * 2.0**attempt))  # noqa: S311 - not a secret
        raise DatabaseUnavailable(f"{reason}, {TRIES} times")

    @contextmanager
    def _used(self) -> Iterator[None]:
        if self._closing:
            raise DatabaseUnavailable("it is being closed")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._unused.set()


@contextmanager
def _measured(kind: str) -> Iterator[None]:
    try:
        with metrics.database_seconds.labels(kind).time():
            yield
    except DatabaseUnavailable:
        metrics.database_failures.inc()
        raise


async def insert(
    connection: Connection,
    table: Table,
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    or_update: Mapping[str, Any] | None = None,
    fill: Sequence[str] = (),
) -> int:
    """Insert what is not there yet, by primary key; else change `or_update`, or `fill` columns that are empty.

    Of a single row, how many that were.
    """
    name = connection.dialect.name
    if or_update is None:
        statement: sqlalchemy.Insert = _insert_of(name, table, tuple(fill))
    else:
        new = (postgresql if name == "postgresql" else sqlite).insert(table)
        statement = new.on_conflict_do_update(index_elements=list(table.primary_key), set_=or_update)
    return (await connection.execute(statement, rows)).rowcount


async def insert_plain(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], fill: Sequence[str]
) -> None:
    """Insert rows likewise, of texts and numbers as the driver takes them: SQLAlchemy looks at none of them."""
    await connection.execute_plain(_plain_insert(connection.dialect, table, columns, tuple(fill)), rows)


@lru_cache(maxsize=8)  # dialects are made anew with each engine
def _plain_insert(dialect: Dialect, table: Table, columns: tuple[str, ...], fill: tuple[str, ...]) -> str:
    compiled = _insert_of(dialect.name, table, fill).compile(dialect=dialect, column_keys=columns)
    if tuple(compiled.positiontup or ()) != columns:
        raise RuntimeError(f"the columns of {table.name} have another order: {columns}")
    return str(compiled)


@cache  # to make a statement costs more than to execute it
def _insert_of(dialect: str, table: Table, fill: tuple[str, ...]) -> sqlalchemy.Insert:
    """Return what inserts rows that are not there yet, and fills empty columns of those that are."""
    statement: postgresql.Insert | sqlite.Insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    if not fill:
        return statement.on_conflict_do_nothing()
    filled = {name: func.coalesce(table.c[name], statement.excluded[name]) for name in fill}
    empty = table.c[fill[0]].is_(None)
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=filled, where=empty)


# --- opening ----------------------------------------------------------------------------------------------------


@contextmanager
def _only_process(url: URL) -> Iterator[None]:
    """Hold the database's lock file: SQLite before 3.51.3 can corrupt a WAL that several processes write."""
    path = Path(url.database or "").resolve()  # one lock, whichever link leads to it
    if not path.parent.is_dir():
        raise DatabaseUnusable(f"DATABASE_URL={url}: its folder does not exist. Make it, or name another file.")
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
            path.touch(mode=0o600)  # patients' names are nobody else's business; SQLite's other files take its mode
        except BlockingIOError:
            raise DatabaseInUse(
                f"DATABASE_URL={url} is used by another server process, and SQLite bears one. Stop it, run uvicorn "
                "with one worker, or use PostgreSQL: DATABASE_URL=postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
            ) from None
        except OSError as error:
            raise DatabaseUnusable(
                f"DATABASE_URL={url} cannot be written: {error.strerror}. Let this user write the file and its folder."
            ) from error
        yield


def _sqlite(url: URL, *, writes: bool) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=1 if writes else READERS, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below is the only one
        try:
            for pragma in (*PRAGMAS, f"query_only={'OFF' if writes else 'ON'}"):
                connection.cursor().execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _alone(engine: AsyncEngine) -> AsyncEngine:
    """Make what reads of PostgreSQL's pool: a query alone is a transaction without being told so."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _postgresql(url: URL, settings: ServerSettings) -> AsyncEngine:
    """Make the pool, in READ COMMITTED: a row lock makes the union exact, a statement sees what is committed."""
    timeout_s = settings.database_timeout_s
    return create_async_engine(
        url,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "connection_class": _Watched,
            "timeout": timeout_s,
            "command_timeout": timeout_s,
            "server_settings": {
                **OF_POSTGRESQL,
                "application_name": "series-gateway",
                "statement_timeout": str(int(1000 * timeout_s)),
                "idle_in_transaction_session_timeout": str(int(1000 * timeout_s)),
            },
        },
    )


def _patient(url: URL) -> AsyncEngine:
    """Make connections without a time-out: a migration takes as long as it takes, and another server waits for it.

    But not for one that has vanished: PostgreSQL then ends its session, and with it the lock.
    """
    arguments = {"connection_class": _Watched, "server_settings": OF_POSTGRESQL}
    return create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)


class _Watched(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's, that ends when PostgreSQL's host has vanished."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *arguments: Any) -> None:
        super().__init__(protocol, transport, *arguments)
        notice_death(transport.get_extra_info("socket"))


async def _migrate(url: URL, engine: AsyncEngine) -> None:
    shown = without_password(url.render_as_string(hide_password=True))

    async def migrate(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
        await connection.run_sync(_upgrade)

    try:
        await run(engine, migrate)
    except alembic.util.CommandError as error:
        raise DatabaseUnusable(
            f"DATABASE_URL={shown} has a schema this version does not know ({error}). Run the version that wrote it, "
            "or a newer one, or name another database."
        ) from error
    except (exc.DBAPIError, OSError, TimeoutError) as error:
        reason = getattr(error, "orig", None) or str(error) or type(error).__name__
        raise DatabaseUnusable(
            f"DATABASE_URL={shown} cannot be opened: {reason}. SQLite: is it such a file, and may this user write it "
            "and its folder? PostgreSQL: is it running there, are user, password and database right?"
        ) from error


def _upgrade(connection: sqlalchemy.Connection) -> None:
    config = _migrations()
    config.attributes["connection"] = connection
    before, wanted = revision(connection), revisions()[-1]
    if before == wanted:
        return
    if before is None:
        alembic.command.upgrade(config, "head")
        return
    log.info("database.migrating", before=before, to=wanted)  # of a large database it takes its time
    began = time.monotonic()
    alembic.command.upgrade(config, "head")
    log.info("database.migrated", to=wanted, seconds=round(time.monotonic() - began, 3))


def revision(connection: sqlalchemy.Connection) -> str | None:
    """Return the revision of the schema as it is; None if there is none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def revisions() -> list[str]:
    """Return the revisions of the schema that this version knows, the oldest first."""
    scripts = ScriptDirectory.from_config(_migrations()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def _migrations() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


# --- errors -----------------------------------------------------------------------------------------------------


class _TryAgain(Exception):
    """The transaction was rolled back for another's sake, or its connection broke: then it may have been committed."""


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the driver's errors as DatabaseUnavailable: their texts can hold patient data."""
    try:
        yield
    except exc.DBAPIError as error:
        code = getattr(error.orig, "sqlstate", None)
        if code in TRY_AGAIN or error.connection_invalidated:
            raise _TryAgain(f"{type(error).__name__} {code or ''}".strip()) from error
        raise DatabaseUnavailable(f"{type(error).__name__} {code or ''}".strip()) from error
    except asyncpg.InterfaceError as error:  # of a connection that broke while SQLAlchemy was not looking
        raise _TryAgain(type(error).__name__) from error
    except (exc.TimeoutError, OSError, TimeoutError) as error:
        raise DatabaseUnavailable(type(error).__name__) from error

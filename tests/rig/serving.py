"""A server without a process of its own: an empty database, and the application in a thread behind a real uvicorn."""

import asyncio
import shutil
import socket
import threading
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import uvicorn
from fastapi import FastAPI

from common.settings import ServerSettings
from db import Database
from server import create_app

START_TIMEOUT_S = 120.0


def empty_database(folder: Path | str, name: str = "series.db") -> str:
    """Return the DATABASE_URL of a SQLite file in a folder; a new one is a copy, ten times cheaper than new tables."""
    path = Path(folder, name)
    if not path.exists():
        shutil.copy(_template(), path)
    return _url(path)


def make_tables(url: str) -> None:
    """Make the tables of a new database."""

    async def make() -> None:
        async with Database.open(ServerSettings(database_url=url)):
            pass

    with ThreadPoolExecutor(1) as thread:  # a test's loop may be running in this one
        thread.submit(asyncio.run, make()).result()


@cache
def _template() -> Path:
    path = Path(mkdtemp(prefix="empty-database-")) / "series.db"
    make_tables(_url(path))
    return path


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


class Serving(uvicorn.Server):
    """A server on a free port and on a SQLite file of its own."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, ws="none"))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.app, self._listener = app, listener
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run_here, name="server")

    def __enter__(self) -> "Serving":
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or not self.started:
            raise RuntimeError("the server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.app.state.follower.end)  # else its streams have no end
        self.should_exit = True
        self._thread.join()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._started.set()

    def new_key(self, *scopes: str) -> str:
        """A key with these scopes, made as the command makes it."""
        return str(self.done(self.app.state.keys.create("test", scopes))[1])

    def done(self, work: Awaitable[Any]) -> Any:
        """Do something in the server's loop; what comes of it."""

        async def do() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(START_TIMEOUT_S)

    @property
    def database(self) -> Database:
        found: Database = self.app.state.database
        return found

    def _run_here(self) -> None:
        try:
            self.run([self._listener])
        finally:
            self._started.set()


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Serving]:
    """A server of its own, stopped at the end."""
    app = create_app(ServerSettings(database_url=empty_database(folder), **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener, Serving(app, listener) as running:
        yield running

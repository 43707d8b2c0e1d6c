"""Real peers: skipped with a plain word where one is missing, unless REQUIRE_REAL_PEERS=1; then the test fails."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import looptime
import pytest
from sqlalchemy.engine import URL

from bench import postgres
from bench.peers import CHROMIUM, CHROMIUM_MISSING, DCMTK_MISSING, ORTHANC, ORTHANC_MISSING
from bench.scale import HAPROXY, HAPROXY_MISSING
from db import Database
from settings import ServerSettings

PROMTOOL_MISSING = "promtool is not installed (Debian: apt-get install prometheus)"
CURL_MISSING = "curl is not installed (Debian: apt-get install curl)"
MISSING = {
    "curl": None if shutil.which("curl") else CURL_MISSING,
    "chromium": None if CHROMIUM else CHROMIUM_MISSING,
    "orthanc": None if ORTHANC else ORTHANC_MISSING,
    "postgresql": postgres.missing(),
    "haproxy": None if HAPROXY else HAPROXY_MISSING,
    "promtool": None if shutil.which("promtool") and shutil.which("prometheus") else PROMTOOL_MISSING,
    "dcmtk": None if shutil.which("storescu") and shutil.which("dcmsend") else DCMTK_MISSING,
}


def pytest_configure() -> None:
    asyncio.set_event_loop(None)  # else pytest-asyncio's first look at "the current loop" makes one it never closes


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("peer"):
        problem = MISSING[mark.args[0]]
        if problem and os.environ.get("REQUIRE_REAL_PEERS") == "1":
            pytest.fail(problem)
        if problem:
            pytest.skip(problem)


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests marked `virtual_time` run on a loop whose clock jumps to the next timer instead of waiting.

    Those of the SCP run on asyncio's loop and on uvloop, where it is installed.
    """
    if item.get_closest_marker("virtual_time"):
        return {"virtual": looptime.new_event_loop}
    if item.path.name.startswith("test_scp") and find_spec("uvloop") is not None:
        return {"asyncio": asyncio.new_event_loop, "uvloop": import_module("uvloop").new_event_loop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A real PostgreSQL on which databases may be created."""
    with postgres.postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: URL) -> Iterator[str]:
    """DATABASE_URL of a PostgreSQL database of its own, without tables yet."""
    with postgres.new_database(postgresql_server) as url:
        yield url


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.peer("postgresql"))]


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATABASE_URL of a database of its own, without tables yet."""
    on_sqlite = request.param == "sqlite"
    url: str = (
        f"sqlite+aiosqlite:///{tmp_path / 'series.db'}" if on_sqlite else request.getfixturevalue("postgresql_url")
    )
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(ServerSettings(database_url=database_url)) as database:
        yield database

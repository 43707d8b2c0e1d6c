"""The real peers, and databases to test with. Which tests run, and in what order: tests/selection.py."""

import asyncio
import gc
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import httpx
import hypothesis
import looptime
import psutil
import pytest
from sqlalchemy.engine import URL, make_url

from bench import partitions
from bench.rig import forgetful_mount, images, postgres, processes, warm
from bench.rig.haproxy import HAPROXY, HAPROXY_MISSING
from bench.rig.nginx import NGINX, NGINX_MISSING
from bench.rig.peers import (
    CHROMIUM,
    CHROMIUM_MISSING,
    DCMTK_MISSING,
    ORTHANC,
    ORTHANC_DICOMWEB,
    ORTHANC_DICOMWEB_MISSING,
    ORTHANC_MISSING,
)
from common.settings import ServerSettings
from db import Database
from tests.rig.serving import empty_database, make_tables
from tests.selection import (
    MISSING,
    asks_for_slow,
    lacking,
    pytest_collection_modifyitems,
    pytest_report_header,
    pytest_runtest_setup,
    pytest_sessionstart,
    pytest_xdist_auto_num_workers,
)

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_report_header",
    "pytest_runtest_setup",
    "pytest_sessionstart",
    "pytest_xdist_auto_num_workers",
]
MEMORY = "/dev/shm"  # noqa: S108 - a folder in memory, where there is one
MISSING.update(
    {
        "bash": lacking("bash", "bash"),
        "cc": lacking("cc", "gcc libc6-dev"),
        "chromium": None if CHROMIUM else CHROMIUM_MISSING,
        "curl": lacking("curl", "curl"),
        "dcmtk": None if shutil.which("storescu") and shutil.which("dcmsend") else DCMTK_MISSING,
        "docker": images.missing(),
        "fish": lacking("fish", "fish"),
        "fuse": forgetful_mount.missing(),
        "haproxy": None if HAPROXY else HAPROXY_MISSING,
        "kubectl": None if shutil.which("kubectl") else "kubectl is not installed (no Debian package is new enough)",
        "namespaces": partitions.missing(),
        "nginx": None if NGINX else NGINX_MISSING,
        "openssl": lacking("openssl", "openssl"),
        "orthanc": None if ORTHANC else ORTHANC_MISSING,
        "orthanc-dicomweb": None if ORTHANC_DICOMWEB.exists() else ORTHANC_DICOMWEB_MISSING,
        "postgresql": postgres.missing(),
        "promtool": lacking("promtool", "prometheus") or lacking("prometheus", "prometheus"),
        "sqlite3": lacking("sqlite3", "sqlite3"),
        "systemd": lacking("systemd-analyze", "systemd"),
        "tmpfs": None if os.path.isdir(MEMORY) else f"this machine has no tmpfs at {MEMORY}",
        "zsh": lacking("zsh", "zsh"),
    }
)


hypothesis.settings.register_profile(
    "a busy machine is no failure", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("a busy machine is no failure")
for kind in ("connect", "read", "write", "pool"):  # httpx's 5 s, for who asks without a time-out of its own
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, kind, 120.0)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process that a test starts compiles the project anew
processes.started = warm.popen


def pytest_configure() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        if (
            signal.getsignal(number) is signal.SIG_IGN
        ):  # as a shell's background and nohup have it; so had what tests start
            signal.signal(number, lambda *_: None)
    asyncio.set_event_loop(None)  # else pytest-asyncio's first look at "the current loop" makes one it never closes


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # else each collection looks at all the tests and modules there are


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests marked `virtual_time` run on a loop whose clock jumps to the next timer instead of waiting.

    Those of the SCP run on uvloop, where it is installed, and where slow tests are asked for on asyncio's loop, too.
    """
    if item.get_closest_marker("virtual_time"):
        return {"virtual": looptime.new_event_loop}
    if item.path.name.startswith("test_scp") and find_spec("uvloop") is not None:
        loops = {"uvloop": import_module("uvloop").new_event_loop}
        return loops | {"asyncio": asyncio.new_event_loop} if asks_for_slow(item.config) else loops
    return {"real": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A real PostgreSQL on which databases may be created."""
    with postgres.postgresql(in_memory()) as server:
        yield server


def in_memory() -> str | None:
    """Return MEMORY where it is large: there a new database costs a third. None for the usual folder."""
    if MISSING["tmpfs"]:
        return None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    return MEMORY if free > 2 * workers << 30 else None


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: URL) -> Iterator[str]:
    """The name of an empty database whose tables are there."""
    with postgres.new_database(postgresql_server) as url:
        make_tables(url)
        yield str(make_url(url).database)


@pytest.fixture
def postgresql_url(postgresql_server: URL, postgresql_template: str) -> Iterator[str]:
    """DATABASE_URL of an empty PostgreSQL database of its own."""
    with postgres.new_database(postgresql_server, postgresql_template) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.peer("postgresql"), pytest.mark.slow])])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATABASE_URL of an empty database of its own; PostgreSQL's turn is slow."""
    if request.param == "sqlite":
        return empty_database(tmp_path)
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    patient = ServerSettings(database_url=database_url, database_timeout_s=120)  # hundreds of reports wait at once
    async with Database.open(patient) as database:
        yield database

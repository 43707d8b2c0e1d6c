"""Real peers: skipped with a plain word where one is missing, unless REQUIRE_REAL_PEERS=1; then the test fails."""

import asyncio
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import looptime
import pytest

from bench.peers import DCMTK_MISSING, ORTHANC, ORTHANC_MISSING

MISSING = {
    "orthanc": None if ORTHANC else ORTHANC_MISSING,
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

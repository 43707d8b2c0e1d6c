"""A server in this process, on a database of its own, and a client of it on this machine."""

import time
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from common.settings import ServerSettings
from server import create_app


@pytest.fixture(autouse=True)
def time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a test moves has run so far, and was not set."""
    monkeypatch.setattr("storage.leaps.monotonic", time.time)


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(database_url=database_url))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield client

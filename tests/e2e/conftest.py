"""On PostgreSQL, what runs whole processes is slow: `make test` leaves it to SQLite."""

from pathlib import Path

import pytest

from tests.conftest import new_url

ON_POSTGRESQL = [pytest.mark.peer("postgresql"), pytest.mark.slow]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=ON_POSTGRESQL)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATABASE_URL of a database of its own, without tables yet."""
    return new_url(request, tmp_path)

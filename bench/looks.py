"""Looks at a running server and gateway from outside: memory, descriptors, files, rows, time series."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bench.faults import Lab
from storage.schema import metadata

MIB, KIB = 2**20, 2**10
GATEWAY, SERVER = "gateway", "server"
UNTOLD = 'SELECT (SELECT max("Number") FROM changes) - (SELECT min("Position") FROM webhooks)'


class Looks:
    """What was seen at each look, by measure."""

    def __init__(self, lab: Lab, database: str, metrics_port: int) -> None:
        """`database` is its URL."""
        self.seen: dict[str, list[float]] = {"series": []}
        self._lab = lab
        self._database = database
        self._metrics = {
            GATEWAY: f"http://127.0.0.1:{metrics_port}/metrics",
            SERVER: f"http://127.0.0.1:{lab.proxy.upstream_port}/metrics",
        }

    def look(self, series: int) -> None:
        """Look at everything, after so many series."""
        self.seen["series"].append(series)
        measures = self._processes() | self._files() | self._rows() | self._time_series()
        for name, value in measures.items():
            self.seen.setdefault(name, []).append(round(value, 1))

    def untold(self) -> int:
        """Return how many changes the webhook was not told yet."""
        return int(query(self._database, UNTOLD)[0][0] or 0)

    def _processes(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, process in ((GATEWAY, self._lab.gateway), (SERVER, self._lab.server)):
            one = psutil.Process(process.popen.pid)
            found[f"{name} RSS, MiB"] = one.memory_info().rss / MIB
            found[f"{name} descriptors"] = one.num_fds()
            found[f"{name} threads"] = one.num_threads()
        return found

    def _files(self) -> dict[str, float]:
        paths = {"journal": self._lab.journal, "journal WAL": Path(f"{self._lab.journal}-wal")}
        if self._database.startswith("sqlite"):
            paths |= {"database": self._lab.database, "database WAL": Path(f"{self._lab.database}-wal")}
        paths["audit log"] = audit_log(self._lab.folder)
        found = {f"{name}, KiB": path.stat().st_size / KIB if path.exists() else 0 for name, path in paths.items()}
        if "database, KiB" not in found:
            found["database, KiB"] = query(self._database, "SELECT pg_database_size(current_database())")[0][0] / KIB
        return found

    def _rows(self) -> dict[str, float]:
        names = sorted(metadata.tables)
        counted = ", ".join(f"(SELECT count(*) FROM {name})" for name in names)  # noqa: S608 - the schema's
        counts = query(self._database, f"SELECT {counted}")
        found: dict[str, float] = {f"rows of {name}": n for name, n in zip(names, counts[0], strict=True)}
        found["changes that the webhook was not told yet"] = self.untold()
        with closing(sqlite3.connect(f"file:{self._lab.journal}?mode=ro", uri=True, timeout=30)) as journal:
            tables = journal.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
            for (name,) in tables:
                (count,) = journal.execute(f"SELECT count(*) FROM {name}").fetchone()  # noqa: S608 - the schema's
                found[f"journal rows of {name}"] = count
        return found

    def _time_series(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, url in self._metrics.items():
            lines = httpx.get(url, timeout=60, trust_env=False).raise_for_status().text.splitlines()
            found[f"{name} time series"] = sum(bool(line) and not line.startswith("#") for line in lines)
        return found


def audit_log(folder: Path) -> Path:
    """Return where the server writes its audit log."""
    return folder / "server" / "audit.jsonl"


def query(database: str, statement: str) -> Sequence[Any]:
    """Return the rows of a query to SQLite or PostgreSQL."""

    async def ask() -> Sequence[Any]:
        engine = create_async_engine(database)
        try:
            async with engine.connect() as connection:
                return (await connection.execute(text(statement))).all()
        finally:
            await engine.dispose()

    return asyncio.run(ask())

"""Which changes are still to be acted upon, and how far the changes were read: one small SQLite file.

A page of changes is written down together with the place behind it, in one transaction; a change goes when its script
has ended well. So whatever ends the process, a change is run again rather than forgotten. The file is synced at each
commit (rollback journal, synchronous=EXTRA): several commands may write it, which WAL of older SQLite does not bear.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import Change

BUSY_TIMEOUT_S = 10.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS place (Number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (Number INTEGER PRIMARY KEY, Series TEXT NOT NULL, Change TEXT NOT NULL,
  Attempts INTEGER NOT NULL DEFAULT 0, NextAt REAL NOT NULL DEFAULT 0, Problem TEXT, Failed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_of_series ON jobs (Failed, Series, Number);
CREATE TABLE IF NOT EXISTS seen (Series TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
FIRST_OF_SERIES = "SELECT min(Number) FROM jobs WHERE Failed = 0 GROUP BY Series"


@dataclass(frozen=True, slots=True)
class Job:
    """One change that a script is to run for."""

    change: Change
    attempts: int


class Backlog:
    """One file of jobs. Times are seconds since 1970."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["Backlog"]:
        """Open the file, made where there is none. Raises sqlite3.Error."""
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(SCHEMA)
            yield cls(connection)
        finally:
            connection.close()

    def place(self) -> int | None:
        """Up to which change all are known here; None where nothing was read yet."""
        row = self._connection.execute("SELECT Number FROM place").fetchone()
        return row and int(row[0])

    def take(self, wanted: Sequence[Change], last: int, *, first_only: bool) -> None:
        """Write down what is to be done up to the change `last`, whose place it then is."""
        with self._transaction():
            for change in wanted:
                if not first_only or self._is_first(change.SeriesInstanceUID):
                    values = [change.Number, change.SeriesInstanceUID, change.model_dump_json()]
                    self._connection.execute("INSERT INTO jobs (Number, Series, Change) VALUES (?, ?, ?)", values)
            self._connection.execute("DELETE FROM place")
            self._connection.execute("INSERT INTO place VALUES (?)", [last])

    def _is_first(self, series: str) -> bool:
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", [series]).rowcount == 1

    def due(self, now: float, besides: Collection[str], most: int) -> list[Job]:
        """Up to `most` jobs whose time has come: of each series the first, of none that is among `besides`."""
        query = f"SELECT Series, Change, Attempts FROM jobs WHERE Number IN ({FIRST_OF_SERIES}) AND NextAt <= ?"  # noqa: S608
        rows = self._connection.execute(f"{query} ORDER BY Number LIMIT ?", [now, most + len(besides)])
        free = [
            Job(Change.model_validate_json(change), attempts) for one, change, attempts in rows if one not in besides
        ]
        return free[:most]

    def done(self, number: int) -> None:
        self._connection.execute("DELETE FROM jobs WHERE Number = ?", [number])

    def delay(self, number: int, next_at: float, problem: str) -> None:
        """Let a job be tried again, not before `next_at`."""
        update = "UPDATE jobs SET Attempts = Attempts + 1, NextAt = ?, Problem = ? WHERE Number = ?"
        self._connection.execute(update, [next_at, problem, number])

    def fail(self, number: int, problem: str) -> None:
        """Give a job up, until it is replayed; the next of its series is free."""
        update = "UPDATE jobs SET Attempts = Attempts + 1, Problem = ?, Failed = 1 WHERE Number = ?"
        self._connection.execute(update, [problem, number])

    def hurry(self) -> None:
        """Let all that wait be tried now: who starts anew has mended something, or set a clock."""
        self._connection.execute("UPDATE jobs SET NextAt = 0 WHERE Failed = 0")

    def replay(self) -> int:
        """Let those that were given up be tried again; how many."""
        return self._connection.execute(
            "UPDATE jobs SET Failed = 0, Attempts = 0, NextAt = 0 WHERE Failed = 1"
        ).rowcount

    def counts(self) -> tuple[int, int]:
        """How many wait or run, and how many were given up."""
        rows = dict(self._connection.execute("SELECT Failed, count(*) FROM jobs GROUP BY Failed").fetchall())
        return rows.get(0, 0), rows.get(1, 0)

    def failed(self) -> list[dict[str, Any]]:
        """Those that were given up, and why."""
        rows = self._connection.execute("SELECT Change, Attempts, Problem FROM jobs WHERE Failed = 1 ORDER BY Number")
        told = [(Change.model_validate_json(change), attempts, problem) for change, attempts, problem in rows]
        return [
            {
                "change": change.Number,
                "series": change.SeriesInstanceUID,
                "revision": change.Revision,
                "attempts": attempts,
                "problem": problem,
            }
            for change, attempts, problem in told
        ]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


class Lock:
    """Held by who works on a file of jobs, and by the scripts that it starts, which inherit it.

    So a script that outlives a killed process is waited for by the next one, and runs beside no other of its series.
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_to_take(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """For whatever scripts left in the background, too."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)


def now() -> float:
    return time.time()

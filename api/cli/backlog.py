"""The small SQLite file in which on-complete remembers its jobs, and how far it has read the server's changes.

A page of changes and the number of its last change are stored in one transaction. A job is deleted when its script has
succeeded. Therefore a change may be run twice if the process is killed, but it is never forgotten. Every commit is
synced to disk. The file uses a rollback journal (synchronous=EXTRA) and not WAL, since several commands may write to it
and older versions of SQLite have a bug in WAL with several writers.
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

from api.told import uid_of
from models import Change

BUSY_TIMEOUT_S = 10.0  # longest wait for another command that writes to the file
SCHEMA = """
CREATE TABLE IF NOT EXISTS place (Number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (Number INTEGER PRIMARY KEY, Series TEXT NOT NULL, Change TEXT NOT NULL,
  Attempts INTEGER NOT NULL DEFAULT 0, NextAt REAL NOT NULL DEFAULT 0, Problem TEXT, Failed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_of_series ON jobs (Failed, Series, Number);
CREATE TABLE IF NOT EXISTS seen (Series TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subject (Name TEXT NOT NULL);
PRAGMA user_version = 1;
"""
# Series: in a file of jobs for studies, the study's UID.
FIRST_OF_SERIES = "SELECT min(Number) FROM jobs WHERE Failed = 0 GROUP BY Series"


@dataclass(frozen=True, slots=True)
class Job:
    """A change for which the script has to run."""

    change: Change
    attempts: int


class Backlog:
    """One file of jobs. Times are seconds since 1970."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["Backlog"]:
        """Open the file; create it if it does not exist. Raises sqlite3.Error."""
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(SCHEMA)
            yield cls(connection)
        finally:
            connection.close()

    def belongs_to(self, subject: str) -> bool:
        """Tell if the file has jobs for this subject alone, series or study; a new file is then for this one."""
        with self._transaction():
            row = self._connection.execute("SELECT Name FROM subject").fetchone()
            if row is None:
                known = "series" if self.place() is not None else subject  # files of earlier versions do not say it
                self._connection.execute("INSERT INTO subject VALUES (?)", [known])
                row = (known,)
        return bool(row[0] == subject)

    def place(self) -> int | None:
        """Return the number of the last change that was read; None if none was read yet."""
        row = self._connection.execute("SELECT Number FROM place").fetchone()
        return row and int(row[0])

    def take(self, wanted: Sequence[Change], last: int, *, first_only: bool) -> None:
        """Store the wanted changes as jobs, and `last` as the last change that was read."""
        with self._transaction():
            for change in wanted:
                if not first_only or self._is_first(uid_of(change)):
                    values = [change.Number, uid_of(change), change.model_dump_json()]
                    self._connection.execute("INSERT INTO jobs (Number, Series, Change) VALUES (?, ?, ?)", values)
            self._connection.execute("DELETE FROM place")
            self._connection.execute("INSERT INTO place VALUES (?)", [last])

    def _is_first(self, series: str) -> bool:
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", [series]).rowcount == 1

    def due(self, now: float, besides: Collection[str], most: int) -> list[Job]:
        """Return up to `most` jobs that can run now: the first of each series, except of the series in `besides`."""
        query = f"SELECT Series, Change, Attempts FROM jobs WHERE Number IN ({FIRST_OF_SERIES}) AND NextAt <= ?"  # noqa: S608
        rows = self._connection.execute(f"{query} ORDER BY Number LIMIT ?", [now, most + len(besides)])
        free = [
            Job(Change.model_validate_json(change), attempts) for one, change, attempts in rows if one not in besides
        ]
        return free[:most]

    def done(self, number: int) -> None:
        self._connection.execute("DELETE FROM jobs WHERE Number = ?", [number])

    def delay(self, number: int, next_at: float, problem: str) -> None:
        """Let a job be tried again, but not before `next_at`."""
        update = "UPDATE jobs SET Attempts = Attempts + 1, NextAt = ?, Problem = ? WHERE Number = ?"
        self._connection.execute(update, [next_at, problem, number])

    def fail(self, number: int, problem: str) -> None:
        """Give up a job until it is replayed. The next job of its series can run."""
        update = "UPDATE jobs SET Attempts = Attempts + 1, Problem = ?, Failed = 1 WHERE Number = ?"
        self._connection.execute(update, [problem, number])

    def hurry(self) -> None:
        """Let all waiting jobs run now: at a restart somebody may have fixed a script or set the clock."""
        self._connection.execute("UPDATE jobs SET NextAt = 0 WHERE Failed = 0")

    def replay(self) -> int:
        """Let the jobs that were given up be tried again; return how many there are."""
        return self._connection.execute(
            "UPDATE jobs SET Failed = 0, Attempts = 0, NextAt = 0 WHERE Failed = 1"
        ).rowcount

    def counts(self) -> tuple[int, int]:
        """Return how many jobs wait or run, and how many were given up."""
        rows = dict(self._connection.execute("SELECT Failed, count(*) FROM jobs GROUP BY Failed").fetchall())
        return rows.get(0, 0), rows.get(1, 0)

    def failed(self) -> list[dict[str, Any]]:
        """Return the jobs that were given up, and why."""
        rows = self._connection.execute("SELECT Change, Attempts, Problem FROM jobs WHERE Failed = 1 ORDER BY Number")
        told = [(Change.model_validate_json(change), attempts, problem) for change, attempts, problem in rows]
        return [
            {
                "change": change.Number,
                change.Subject: uid_of(change),
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
    """A lock on the file of jobs, held by the process that works on it and inherited by the scripts that it starts.

    If the process is killed while a script still runs, the next process waits for that script. So two scripts of one
    series never run at the same time.
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
        """Release the lock, even if a script has left a background process that inherited it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)


def now() -> float:
    return time.time()

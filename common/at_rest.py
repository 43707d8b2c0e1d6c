"""A SQLite file between processes: locked by the one that owns it, read by others without leaving a trace."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file of a file, which the kernel frees at exit, however that comes about.

    Raises BlockingIOError where another process holds it, and OSError where it cannot be made.
    """
    with open(f"{real(path)}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def rows(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """The rows of a query; bytes that are no text are replaced. Raises sqlite3.Error."""
    with closing(sqlite3.connect(read_only(real(path)), uri=True, timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda stored: stored.decode(errors="replace")
        return [dict(row) for row in connection.execute(query, parameters)]


def read_only(path: Path) -> str:
    """The URI that opens a SQLite file and leaves nothing beside it.

    To read what has a write-ahead log SQLite makes files of its own, even where nobody writes and the log is gone.
    """
    at_rest = not Path(f"{path}-wal").exists()
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if at_rest else ''}"


def real(path: Path) -> Path:
    """The file itself, whichever links lead there: it, its lock and its socket stand side by side."""
    return Path(os.path.realpath(path))

"""Files on a disk. A SQLite file is locked by the one that owns it, and read by others without leaving a trace.

What has to outlast a power cut is synced: a file, and its folder, which holds its name.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file. The kernel releases it when the process ends, in whatever way.

    Raises BlockingIOError if another process holds it, and OSError if the lock file cannot be made.
    """
    with open(f"{real(path)}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def rows(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Return the rows of a query. Bytes that are not valid text are replaced. Raises sqlite3.Error."""
    with closing(sqlite3.connect(read_only(real(path)), uri=True, timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda stored: stored.decode(errors="replace")
        return [dict(row) for row in connection.execute(query, parameters)]


def read_only(path: Path) -> str:
    """Return a URI that opens a SQLite file for reading, and leaves no files beside it.

    SQLite creates -wal and -shm files to read a database in WAL mode, even if nobody writes to it. If there is no -wal
    file, nobody does, and `immutable` tells SQLite that it needs none.
    """
    at_rest = not Path(f"{path}-wal").exists()
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if at_rest else ''}"


def real(path: Path) -> Path:
    """Return the path of a file behind all links. Its lock and its socket are beside that path."""
    return Path(os.path.realpath(path))


def sync_folder(path: Path) -> None:
    """Sync a folder to disk, since the name of a new, renamed or removed file is not part of the file."""
    with contextlib.suppress(OSError):  # some file systems cannot do that; SQLite ignores it as well
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def name_for_good(part: Path, path: Path) -> None:
    """Give a complete file its name, in the place of an earlier one; after a power cut there is one of the two.

    The content is synced first: a file system may keep the new name and not yet the bytes, which leaves an empty file.
    """
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)

"""Open the journal's file: lock it for one process, create or migrate it, or set it aside if it is corrupt."""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog

from common.at_rest import locked, real, sync_folder
from gateway import journal_rows as rows
from gateway.journal_reader import JournalInUse, JournalUnusable

SCHEMA = """
CREATE TABLE open_series (
    id INTEGER PRIMARY KEY,
    study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL, patient_id TEXT,
    sop_class_uid TEXT NOT NULL, transfer_syntax_uid TEXT NOT NULL,  -- these four: as of the first instance
    calling_ae_title TEXT NOT NULL, peer_address TEXT NOT NULL,
    content TEXT NOT NULL  -- JSON: attributes, the bytes of those that are undecoded, what is doubtful
);
CREATE TABLE instances (
    series_id INTEGER NOT NULL REFERENCES open_series,
    sop_instance_uid TEXT NOT NULL,
    received_at REAL NOT NULL,  -- seconds since 1970, UTC
    PRIMARY KEY (series_id, sop_instance_uid)
) WITHOUT ROWID;
CREATE TABLE reports (
    id INTEGER PRIMARY KEY,
    study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL, patient_id TEXT,
    revision INTEGER NOT NULL, verdict TEXT, instances INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'dead', 'delivered', 'discarded')),
    report TEXT,  -- the JSON that is posted; null in the history
    attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at REAL NOT NULL DEFAULT 0,
    answer TEXT,  -- the last problem, the refusal, or why it was discarded
    changed_at REAL NOT NULL
);
CREATE INDEX reports_by_state ON reports (state, id);
CREATE TABLE server (  -- one row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    paused_until REAL NOT NULL,  -- no post before, seconds since 1970
    probed_at REAL NOT NULL
);
INSERT INTO server VALUES (1, 0, 0);
"""
SCHEMA_2 = """
CREATE TABLE learnt (  -- the idle policy's, by source
    calling_ae_title TEXT NOT NULL, modality TEXT NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (calling_ae_title, modality)
);
"""
SCHEMA_3 = """
ALTER TABLE instances ADD COLUMN attributes TEXT;  -- JSON: the values of INSTANCE_KEYWORDS; null of earlier versions
"""
SCHEMA_4 = """
ALTER TABLE reports ADD COLUMN reported_at REAL;  -- seconds since 1970, UTC; null of earlier versions
ALTER TABLE reports ADD COLUMN traceparent TEXT;  -- W3C Trace Context, where traces are exported
"""
SCHEMA_5 = """
CREATE TABLE learnt_of_stations (
    calling_ae_title TEXT NOT NULL, modality TEXT NOT NULL, station TEXT NOT NULL DEFAULT '', content TEXT NOT NULL,
    PRIMARY KEY (calling_ae_title, modality, station)
);
INSERT INTO learnt_of_stations SELECT calling_ae_title, modality, '', content FROM learnt ORDER BY rowid;
DROP TABLE learnt;
ALTER TABLE learnt_of_stations RENAME TO learnt;
CREATE TABLE pacs (ae_title TEXT PRIMARY KEY, trust INTEGER NOT NULL);  -- how many series in a row it had all of
CREATE INDEX reports_by_series ON reports (series_instance_uid, id);
"""
SCHEMA_6 = """
ALTER TABLE open_series ADD COLUMN called_ae_title TEXT NOT NULL DEFAULT '';  -- as of the first instance
"""
SCHEMA_7 = """
CREATE TABLE sources (  -- of reported series
    name TEXT PRIMARY KEY, last_image_at REAL NOT NULL,  -- seconds since 1970, UTC
    series INTEGER NOT NULL, images INTEGER NOT NULL
);
"""
SCHEMAS = (
    SCHEMA,
    SCHEMA_2,
    SCHEMA_3,
    SCHEMA_4,
    SCHEMA_5,
    SCHEMA_6,
    SCHEMA_7,
)  # each leads from the version before to its own
SCHEMA_VERSION = len(SCHEMAS)

BESIDE = ("-wal", "-shm", "-journal")  # the files that SQLite keeps beside a database, and reads with it

log = structlog.get_logger()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the journal's lock, which the kernel releases at exit. Raises JournalUnusable if another process has it."""
    used = f"GATEWAY_JOURNAL_PATH={path} is used by another gateway. Stop it, or give each gateway its own."
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except BlockingIOError as error:
            raise JournalInUse(used) from error
        except OSError as error:
            raise JournalUnusable(
                f"GATEWAY_JOURNAL_PATH={path} cannot be locked: {error.strerror}. Make its folder, writable by this "
                "user."
            ) from error
        if _is_open_by_another_name(real(path)):
            raise JournalInUse(used)
        yield


def _is_open_by_another_name(file: Path) -> bool:
    """Tell if another process has this file open through a hard link. Our lock is by name and does not notice that.

    The file itself is not locked, since on some file systems, such as NFS, that would conflict with SQLite's locks.
    """
    try:
        status = file.stat()
        locks = Path("/proc/locks").read_text("ascii", "replace") if status.st_nlink > 1 else ""
    except OSError:  # no such file yet; not Linux
        return False
    return any(word.endswith(f":{status.st_ino}") for word in locks.split())


def connect_or_set_aside(path: Path) -> sqlite3.Connection:
    """Open the journal, or create a new one. Raises JournalUnusable.

    1. If there is no file, but files that belonged to one (left by an interrupted `_set_aside`), rename them: SQLite
       would take them for those of the new file.
    2. If there is no file, create it.
    3. Open it. If it is corrupt, rename it with all its files, and create a new one.
    """
    try:
        if not path.exists() or not path.stat().st_size:
            if any(os.path.exists(f"{path}{suffix}") for suffix in BESIDE):
                _set_aside(path, "the file that it belonged to is gone", BESIDE)
            _make(path)
        try:
            return connect(path)
        except sqlite3.OperationalError:  # it cannot be opened; the path is wrong
            raise
        except sqlite3.DatabaseError as error:  # it can be opened, but is corrupt
            _set_aside(path, str(error), ("", *BESIDE))
        _make(path)
        return connect(path)
    except (OSError, sqlite3.Error) as error:
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} cannot be opened: {error}") from error


def _make(path: Path) -> None:
    """Create the file, readable by its owner only: it holds patients' names. SQLite's other files get its mode."""
    path.touch(mode=0o600)
    sync_folder(path.parent)


def _set_aside(path: Path, reason: str, suffixes: Sequence[str]) -> None:
    """Rename the file first, and then those beside it, so that an interruption leaves none beside a wrong file."""
    now = datetime.now(UTC)
    names = (f"{path}.corrupt-{now:%Y%m%dT%H%M%SZ}{n}" for n in ("", *(f"-{n}" for n in range(2, 1000))))
    aside = next(name for name in names if not any(os.path.exists(f"{name}{suffix}") for suffix in ("", *BESIDE)))
    for suffix in suffixes:
        if os.path.exists(f"{path}{suffix}"):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    sync_folder(path.parent)
    log.error("journal.set_aside", journal=str(path), moved_to=aside, reason=reason)


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.text_factory = rows.decode
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has to come before the first table
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}")
        (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not 0 <= version <= SCHEMA_VERSION:
            raise JournalUnusable(
                f"GATEWAY_JOURNAL_PATH={path} was written by a newer version (schema {version}, known "
                f"{SCHEMA_VERSION}). Run that version until the journal is empty, or use another file."
            )
        if version and not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'open_series'").fetchone():
            raise JournalUnusable(
                f"GATEWAY_JOURNAL_PATH={path} is no journal: it has no table open_series. Use another file."
            )
        steps = "".join(SCHEMAS[version:])
        connection.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        if not connection.execute("PRAGMA application_id").fetchone()[
            0
        ]:  # by which the file is known, whoever opens it
            connection.execute(f"PRAGMA application_id = {secrets.randbelow(2**31 - 1) + 1}")
    except BaseException:
        connection.close()
        raise
    return connection

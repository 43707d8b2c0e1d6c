"""Read the journal for commands, whether the gateway runs or not."""

import sqlite3
from pathlib import Path
from typing import Any

from common.at_rest import rows
from common.control import FileInUse
from common.errors import SeriesGatewayError

DEAD = "SELECT id, series_instance_uid, revision, instances, answer, changed_at{more} FROM reports WHERE state = 'dead'"
STATUS = """
SELECT (SELECT count(*) FROM open_series) AS open_series,
    (SELECT count(*) FROM instances) AS open_instances,
    count(*) FILTER (WHERE state = 'waiting') AS waiting_reports,
    CAST(total(instances) FILTER (WHERE state = 'waiting' AND verdict IS NOT NULL) AS INTEGER) AS waiting_instances,
    count(*) FILTER (WHERE state = 'dead') AS dead_letters,
    count(*) FILTER (WHERE state = 'delivered') AS delivered_in_history,
    max(changed_at) FILTER (WHERE state = 'delivered') AS last_delivered_at,
    (SELECT answer FROM reports WHERE state = 'waiting' AND answer IS NOT NULL ORDER BY changed_at DESC LIMIT 1)
        AS last_problem
FROM reports
"""
OPEN = """
SELECT calling_ae_title, CAST(max(received_at) AS REAL) AS last_image_at, count(*) AS images,
    CASE WHEN json_valid(content) THEN content -> '$[0].Modality' END AS modality,
    CASE WHEN json_valid(content) THEN content -> '$[0].StationName' END AS station
FROM open_series JOIN instances ON series_id = open_series.id GROUP BY open_series.id
"""
SOURCES = """
SELECT name, CAST(last_image_at AS REAL) AS last_image_at, CAST(series AS INTEGER) AS series,
    CAST(images AS INTEGER) AS images
FROM sources
"""
UNDELIVERED = "SELECT (SELECT count(*) FROM instances) + count(*) AS n FROM reports WHERE state = 'waiting'"
COUNTS_SOURCES = 7  # schema version from which on sources are counted


class JournalUnusable(SeriesGatewayError):
    """The journal cannot be opened. The text says why, and how to fix it."""


class JournalInUse(JournalUnusable, FileInUse):
    """Another gateway, or a command, has the journal."""


def status(path: Path) -> dict[str, Any]:
    """Count what the journal holds. Raises JournalUnusable."""
    return read(path, STATUS)[0]


def dead_letters(path: Path) -> list[dict[str, Any]]:
    """List reports that the server refused for good, and why, without patient data. Raises JournalUnusable."""
    return read(path, f"{DEAD.format(more='')} ORDER BY id")


def dead_letter(path: Path, id: int) -> dict[str, Any] | None:
    """Return one dead letter with its report, which is patient data. Raises JournalUnusable."""
    return next(iter(read(path, f"{DEAD.format(more=', report')} AND id = ?", id)), None)


def sources(path: Path) -> list[dict[str, Any]]:
    """List the sources of reported series; none if the schema is too old to count them. Raises JournalUnusable."""
    return read(path, SOURCES) if schema_version(path) >= COUNTS_SOURCES else []


def open_series(path: Path) -> list[dict[str, Any]]:
    """List the sources of open series, a row for each series; modality and station are JSON. Raises JournalUnusable."""
    return read(path, OPEN)


def learnt(path: Path) -> list[dict[str, Any]]:
    """List what the idle policy has learnt, by source; nothing if the schema is too old. Raises JournalUnusable."""
    query = "SELECT calling_ae_title, modality, station, content FROM learnt ORDER BY rowid"
    return read(path, query) if schema_version(path) >= COUNTS_SOURCES else []


def undelivered(path: Path) -> int:
    """Count the images and reports that wait for the server. Raises JournalUnusable."""
    return int(read(path, UNDELIVERED)[0]["n"])


def schema_version(path: Path) -> int:
    """Return the version of the tables; 0 if there are none. Raises JournalUnusable."""
    return int(read(path, "PRAGMA user_version")[0]["user_version"])


def read(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Return the rows of a query. Raises JournalUnusable."""
    if not path.exists():
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path}: no journal there. Give the path that the gateway uses.")
    try:
        return rows(path, query, *parameters)
    except sqlite3.Error as error:
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} cannot be read: {error}") from error

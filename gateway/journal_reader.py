"""The journal read beside a running gateway, or without one: what operators ask of it."""

import sqlite3
from pathlib import Path
from typing import Any

from common.at_rest import rows
from common.errors import GatewayError

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
UNDELIVERED = "SELECT (SELECT count(*) FROM instances) + count(*) AS n FROM reports WHERE state = 'waiting'"


class JournalUnusable(GatewayError):
    """The journal cannot be opened at all. The text says why and names the cure."""


def status(path: Path) -> dict[str, Any]:
    """What the journal holds, in counts. Raises JournalUnusable."""
    return read(path, STATUS)[0]


def dead_letters(path: Path) -> list[dict[str, Any]]:
    """Reports that the server refused for good, and why; no patient data. Raises JournalUnusable."""
    return read(path, f"{DEAD.format(more='')} ORDER BY id")


def dead_letter(path: Path, id: int) -> dict[str, Any] | None:
    """One of them with its report: this is patient data. Raises JournalUnusable."""
    return next(iter(read(path, f"{DEAD.format(more=', report')} AND id = ?", id)), None)


def undelivered(path: Path) -> int:
    """How many images and reports wait for the server. Raises JournalUnusable."""
    return int(read(path, UNDELIVERED)[0]["n"])


def schema_version(path: Path) -> int:
    """The version of its tables; 0 where it has none. Raises JournalUnusable."""
    return int(read(path, "PRAGMA user_version")[0]["user_version"])


def read(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Rows of a read-only query. Raises JournalUnusable."""
    if not path.exists():
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path}: no journal there. Name the one that the gateway uses.")
    try:
        return rows(path, query, *parameters)
    except sqlite3.Error as error:
        raise JournalUnusable(f"GATEWAY_JOURNAL_PATH={path} cannot be read: {error}") from error

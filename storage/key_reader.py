"""Keys to the HTTP API as they are listed, and what they may be for. Reads SQLite beside the server, or without one."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.at_rest import rows
from common.times import stamp

SCOPES = {
    "series:write": "post series reports",
    "series:read": "read series, changes and DICOMweb",
    "metrics:read": "read what is measured, for Prometheus",
    "admin": "everything, and resolve conflicts",
}
ALL = "SELECT Id, Name, Scopes, CreatedAt, ExpiresAt, RevokedAt FROM api_keys ORDER BY CreatedAt"


def listed(path: Path) -> list[dict[str, Any]]:
    """List every key that was ever made, the oldest first. Raises sqlite3.Error, also if there is no such table yet."""
    found = rows(path, ALL) if path.exists() else []
    return [shown(id, name, scopes.split(), *map(_utc, times)) for id, name, scopes, *times in map(dict.values, found)]


def shown(  # noqa: PLR0913, PLR0917 - keys.Key
    id: str,
    name: str,
    scopes: Iterable[str],
    created_at: datetime | None,
    expires_at: datetime | None,
    revoked_at: datetime | None,
) -> dict[str, Any]:
    """Return a key as an operator sees it."""
    valid = revoked_at is None and (expires_at is None or expires_at > datetime.now(UTC))
    times = {"created_at": created_at, "expires_at": expires_at, "revoked_at": revoked_at}
    known = {"id": id, "name": name, "scopes": " ".join(sorted(scopes)), "valid": valid}
    return known | {what: at and stamp(at) for what, at in times.items()}


def _utc(stored: str | None) -> datetime | None:
    """Read a time, which SQLite stores without its zone."""
    return datetime.fromisoformat(stored).replace(tzinfo=UTC) if stored else None

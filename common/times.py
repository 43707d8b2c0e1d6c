"""How every command prints a time."""

from datetime import UTC, datetime


def stamp(at: datetime) -> str:
    """Format a time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

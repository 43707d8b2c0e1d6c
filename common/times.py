"""A time, as every command prints it."""

from datetime import UTC, datetime


def stamp(at: datetime) -> str:
    """In UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

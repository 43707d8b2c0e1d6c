"""The server, with a bug whose error names a patient."""

from typing import Any

import db
from server import app

__all__ = ["app"]


async def broken(*_: Any) -> None:
    raise ValueError("QZMARK^Name is too much")


db.Database.get = broken  # type: ignore[assignment]

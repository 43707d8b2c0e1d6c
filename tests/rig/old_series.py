"""Series of long ago, for what forgets them."""

from datetime import UTC, datetime
from typing import Any

from db import Database
from models import SeriesReport
from storage.connection import Connection
from storage.schema import changes, series
from tests.rig.factories import STUDY, make_report

OLD = datetime(2020, 1, 1, tzinfo=UTC)


def uid(n: int) -> str:
    """Returns the UID of the series with this number."""
    return f"{STUDY}.{n}"


async def stored(database: Database, *numbers: int, sop: str = "1", **more: Any) -> None:
    """Stores a report of one image of each of these series."""
    for n in numbers:
        report = make_report(sop, series=uid(n)).model_dump() | {"GatewayID": "one"} | more
        await database.store(SeriesReport.model_validate(report))


async def aged(database: Database, *numbers: int) -> None:
    """Let these series, and what was told of them, be of long ago."""
    uids = [uid(n) for n in numbers]

    async def age(connection: Connection) -> None:
        of_series = series.c.SeriesInstanceUID.in_(uids)
        await connection.execute(series.update().where(of_series).values(UpdatedAt=OLD))
        await connection.execute(changes.update().where(changes.c.SeriesInstanceUID.in_(uids)).values(At=OLD))

    await database.last_change()
    await database.engine.write(age)

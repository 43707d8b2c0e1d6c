"""Which gateways hold images of a study, or may: by what each said last of itself."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select

from storage.connection import Connection
from storage.heartbeats import SPEAKS_WITHIN
from storage.schema import gateways

_SAID = ("Stopped", "OpenStudies", "OpenSeries", "UndeliveredReports", "InboxInstances")
_OWN = (gateways.c.GatewayID, gateways.c.At, gateways.c.ClockSetAt)
_STATES = select(*_OWN, *(gateways.c.State[name].label(name) for name in _SAID))
NAME_LENGTH = 64  # characters of a GatewayID


class Reporter(NamedTuple):
    """The gateway whose report has just come, and the series that this is about."""

    gateway_id: str | None
    series_instance_uid: str | None


class Holders(NamedTuple):
    """Who holds images of a study, or may, in words; None: nobody."""

    first: str | None
    """The first gateway that does."""
    elsewhere: str | None
    """The same if the report that has just come was its gateway's last of the study."""
    clocks_set_at: Collection[datetime]
    """When the clocks of gateways and the server's were set last."""


async def held(connection: Connection, study_instance_uid: str, now: datetime, reporter: Reporter) -> Holders:
    """Say which gateway holds images of a study or may hold them.

    The reporter named the study before it was told that the report has come. It holds no more of it if that was the
    only series of the study that it named as open, and it named all; what it has not delivered yet, the count of its
    PACS contains. If it has not spoken lately, it is not known what it holds, nor if a clock was set.
    """
    rows = [{**row} for row in (await connection.execute(_STATES)).mappings()]
    set_at = [row["ClockSetAt"] for row in rows if row["ClockSetAt"] is not None]
    whys = {row["GatewayID"]: why for row in rows if (why := _holds(row, study_instance_uid, now)) is not None}
    own = [row for row in rows if row["GatewayID"] == reporter.gateway_id and not row["Stopped"]]
    silent = [row for row in own if now - row["At"] > SPEAKS_WITHIN]
    whys |= {row["GatewayID"]: whys.get(row["GatewayID"]) or f"{_silent(row)}, and has reported" for row in silent}
    first = elsewhere = next(iter(whys.values()), None)
    others = [why for gateway, why in whys.items() if gateway != reporter.gateway_id]
    if others:
        elsewhere = others[0]
    elif whys and not silent and await _was_its_last(connection, study_instance_uid, reporter):
        elsewhere = None
    return Holders(first, elsewhere, set_at)


def _holds(row: Mapping[str, Any], study_instance_uid: str, now: datetime) -> str | None:
    """Say why a gateway counts as holding images of a study; None if it holds none.

    1. It names the study: it has series of it open, or reports of them undelivered, if it has stopped in its journal.
    2. It has stopped, and has said of which studies it holds images: it has nothing else of it.
    3. It is silent, and had something open or undelivered: what may have come since is not known.
    4. It has something open, and does not say of which studies.
    """
    name, named = row["GatewayID"][:NAME_LENGTH], row["OpenStudies"]
    if study_instance_uid in (named or ()):  # 1
        return f"gateway {name} has images of it that it has not reported"
    if row["Stopped"] and named is not None:  # 2
        return None
    has_any = any(row[count] for count in ("OpenSeries", "UndeliveredReports", "InboxInstances"))
    if now - row["At"] > SPEAKS_WITHIN and has_any:  # 3
        return f"{_silent(row)}, and had images that it had not reported"
    if named is None and has_any:  # 4
        return f"gateway {name} has images that it has not reported, and does not say of which studies"
    return None


def _silent(row: Mapping[str, Any]) -> str:
    return f"gateway {row['GatewayID'][:NAME_LENGTH]} is silent since {row['At'].isoformat(timespec='seconds')}"


async def _was_its_last(connection: Connection, study_instance_uid: str, reporter: Reporter) -> bool:
    """Return whether a gateway names no other open series of the study, and names all that it has open."""
    columns = (gateways.c.State[name].label(name) for name in ("Arriving", "OpenSeries"))
    row = (await connection.execute(select(*columns).where(gateways.c.GatewayID == reporter.gateway_id))).one_or_none()
    if row is None or row.OpenSeries > len(row.Arriving or ()):
        return False
    of_study = (one for one in row.Arriving or () if one.get("StudyInstanceUID") in (None, study_instance_uid))
    return all(one["SeriesInstanceUID"] == reporter.series_instance_uid for one in of_study)

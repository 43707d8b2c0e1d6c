"""A study as it is answered: its row, with how many of their series gateways name as open."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select

from storage.answers import StudyRecord
from storage.engine import Engine
from storage.schema import gateways, studies

_OPEN = select(gateways.c.State["Arriving"].label("Arriving"), gateways.c.State["Stopped"].label("Stopped"))


def select_study(study_instance_uid: str) -> Select[Any]:
    """Return the query for the row of one study."""
    return select(studies).where(studies.c.StudyInstanceUID == study_instance_uid)


async def open_series(engine: Engine) -> Mapping[str, int]:
    """Count by study the series that gateways which have not ended name as open; one that two name is two."""
    rows = await engine.read(_OPEN)
    arriving = (one for row in rows if not row["Stopped"] for one in row["Arriving"] or ())
    return Counter(str(one["StudyInstanceUID"]) for one in arriving if one.get("StudyInstanceUID"))


def as_study(row: Mapping[str, Any], open_series: int = 0) -> StudyRecord:
    """Return a row as the API tells it."""
    modalities = sorted(filter(None, row["Modalities"]))
    return StudyRecord.model_validate({**row, "Modalities": modalities, "OpenSeries": open_series})

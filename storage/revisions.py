"""One series' row in a transaction: read and locked, revised, told to those who follow, counted in the figures."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models import ChangeKind, SeriesRecord
from storage import merge
from storage.engine import insert
from storage.rows import SeriesRow, with_changes
from storage.schema import changes, completions, series

TOLD = (
    *("SeriesInstanceUID", "StudyInstanceUID", "Modality", "Source", "CalledAETitle"),
    *("Revision", "NumInstances", "ExpectedInstances", "Verdict", "Doubtful"),
)
MAX_COMPLETIONS = 5000  # rows; figures of sources beyond that stand together under an empty name


def select_series(series_instance_uid: str) -> Select[Any]:
    """Return the query for the row of one series."""
    return select(series).where(series.c.SeriesInstanceUID == series_instance_uid)


def as_record(row: Mapping[str, Any]) -> SeriesRecord:
    """Return a row as the API tells it."""
    told = merge.truthful(row)
    return SeriesRecord.model_validate(told | {"Missing": merge.missing(told)})


async def locked(connection: AsyncConnection, series_instance_uid: str) -> SeriesRow | None:
    """Return the row of a series, which no other transaction changes or removes until this one ends; None: no row."""
    query = select_series(series_instance_uid).with_for_update()
    row = (await connection.execute(query)).mappings().one_or_none()
    return cast("SeriesRow", merge.truthful(row)) if row else None


async def revise(connection: AsyncConnection, known: SeriesRow, changed: Mapping[str, Any]) -> None:
    """Make the next revision of a row, and let it be told."""
    await update(connection, known["SeriesInstanceUID"], changed)
    row = with_changes(known, changed)
    await tell(connection, row, merge.kinds(known, row), row["UpdatedAt"])


async def tell(connection: AsyncConnection, row: Mapping[str, Any], kinds: Sequence[ChangeKind], at: datetime) -> None:
    """Let those who follow know how a series stands now."""
    values = {column: row[column] for column in TOLD}
    await connection.execute(changes.insert().values(values | {"Kinds": " ".join(kinds), "At": at}))


async def update(connection: AsyncConnection, series_instance_uid: str, changed: Mapping[str, Any]) -> None:
    """Change columns of a row, and tell nobody."""
    await connection.execute(series.update().where(series.c.SeriesInstanceUID == series_instance_uid).values(changed))


async def count_verdict(connection: AsyncConnection, row: SeriesRow, figure: str) -> None:
    """Count the verdict of a row up in one column of the figures.

    Last of the transaction: many reports want the same few rows.
    """
    source = await figures_of(connection, completions, row["Source"] or "", MAX_COMPLETIONS)
    counted = {"Source": source, "IdlePolicy": row["IdlePolicy"] or "", "Verdict": row["Verdict"]}
    counts = dict.fromkeys(("Series", "False", "AfterCapped"), 0) | {figure: 1}
    await insert(connection, completions, counted | counts, or_update={figure: completions.c[figure] + 1})


async def figures_of(connection: AsyncConnection, table: Table, source: str, most: int) -> str:
    """Return the name that a source's figures stand under: senders choose names, and not how many rows exist."""
    rows, name = select(func.count()).select_from(table), next(iter(table.primary_key))
    known = (await connection.execute(rows.where(name == source))).scalar_one()
    return source if known or (await connection.execute(rows)).scalar_one() < most else ""

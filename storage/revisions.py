"""One series' row in a transaction: read and locked, revised, told to those who follow, counted in the figures."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Select, Table, Update, bindparam, func, select

from models import INSTANCE_KEYWORDS, ChangeKind, SeriesRecord, SeriesReport
from storage import merge
from storage.connection import Connection
from storage.engine import insert, insert_plain
from storage.rows import SeriesRow, with_changes
from storage.schema import changes, completions, instances, series

TOLD = (
    *("SeriesInstanceUID", "StudyInstanceUID", "Modality", "Source", "CalledAETitle"),
    *("Revision", "NumInstances", "ExpectedInstances", "Verdict", "Doubtful"),
)
MAX_COMPLETIONS = 5000  # rows; figures of sources beyond that stand together under an empty name


BY_KEY = series.c.SeriesInstanceUID == bindparam("key")
# Made once: to make a statement costs more than to execute it.
LOCKED = select(series).where(BY_KEY).with_for_update()
UPDATE = series.update().where(BY_KEY)
TELL = changes.insert()
COUNT = select(func.count()).select_from(instances).where(instances.c.SeriesInstanceUID == bindparam("series"))


def select_series(series_instance_uid: str) -> Select[Any]:
    """Return the query for the row of one series."""
    return select(series).where(series.c.SeriesInstanceUID == series_instance_uid)


def as_record(row: Mapping[str, Any]) -> SeriesRecord:
    """Return a row as the API tells it."""
    told = merge.truthful(row)
    return SeriesRecord.model_validate(told | {"Missing": merge.missing(told)})


async def locked(connection: Connection, series_instance_uid: str) -> SeriesRow | None:
    """Return the row of a series, which no other transaction changes or removes until this one ends; None: no row."""
    row = (await connection.execute(LOCKED, {"key": series_instance_uid})).mappings().one_or_none()
    return cast("SeriesRow", merge.truthful({**row})) if row else None


async def begin(connection: Connection, known: SeriesRow, changed: Mapping[str, Any]) -> bool:
    """Make the first revision of a row, and let it be told; return False, and do nothing, if there is a row by now."""
    row = with_changes(known, changed)
    if not await insert(connection, series, row):
        return False
    await tell(connection, row, merge.kinds(known, row), row["UpdatedAt"])
    return True


async def revise(connection: Connection, known: SeriesRow, changed: Mapping[str, Any]) -> None:
    """Make the next revision of a row, and let it be told."""
    await update(connection, known["SeriesInstanceUID"], changed)
    row = with_changes(known, changed)
    await tell(connection, row, merge.kinds(known, row), row["UpdatedAt"])


async def add_images(connection: Connection, report: SeriesReport) -> None:
    """Add the images of a report; what is not known of one that is there is filled in."""
    if rows := list(merge.instance_rows(report)):
        await insert_plain(connection, instances, merge.INSTANCE_COLUMNS, rows, fill=INSTANCE_KEYWORDS)


async def count_images(connection: Connection, report: SeriesReport) -> int:
    """Return how many images of a series are known with those of a report, which are added."""
    await add_images(connection, report)
    return int((await connection.execute(COUNT, {"series": report.SeriesInstanceUID})).scalar_one())


async def tell(connection: Connection, row: Mapping[str, Any], kinds: Sequence[ChangeKind], at: datetime) -> None:
    """Let those who follow know how a series stands now."""
    values = {column: row[column] for column in TOLD}
    await connection.execute(TELL, values | {"Kinds": " ".join(kinds), "At": at})


async def update(connection: Connection, series_instance_uid: str, changed: Mapping[str, Any]) -> None:
    """Change columns of a row, and tell nobody."""
    await connection.execute(UPDATE, {"key": series_instance_uid, **changed})


async def count_verdict(connection: Connection, row: SeriesRow, figure: str) -> None:
    """Count the verdict of a row up in one column of the figures.

    Last of the transaction: many reports want the same few rows.
    """
    named = {"source": row["Source"] or "", "policy": row["IdlePolicy"] or "", "verdict": row["Verdict"]}
    if (await connection.execute(_count_up(figure), named)).rowcount:
        return
    source = await figures_of(connection, completions, row["Source"] or "", MAX_COMPLETIONS)
    counted = {"Source": source, "IdlePolicy": row["IdlePolicy"] or "", "Verdict": row["Verdict"]}
    counts = dict.fromkeys(("Series", "False", "AfterCapped"), 0) | {figure: 1}
    await insert(connection, completions, counted | counts, or_update={figure: completions.c[figure] + 1})


@cache
def _count_up(figure: str) -> Update:
    """Return what counts one column of the figures up, if they are there."""
    of = (completions.c.Source == bindparam("source")) & (completions.c.IdlePolicy == bindparam("policy"))
    of &= completions.c.Verdict == bindparam("verdict")
    return completions.update().where(of).values({figure: completions.c[figure] + 1})


async def figures_of(connection: Connection, table: Table, source: str, most: int) -> str:
    """Return the name that a source's figures stand under: senders choose names, and not how many rows exist."""
    rows, name = select(func.count()).select_from(table), next(iter(table.primary_key))
    known = (await connection.execute(rows.where(name == source))).scalar_one()
    return source if known or (await connection.execute(rows)).scalar_one() < most else ""

"""Who sends, and in which hours: filled from the series of the last five weeks."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEPT = timedelta(weeks=5)
MOST = 1000  # sources
AT_ONCE = 1000  # rows


def upgrade() -> None:
    sources = op.create_table(
        "sources",
        sa.Column("Source", KEY, primary_key=True),
        sa.Column("FirstReceivedAt", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
    source_hours = op.create_table(
        "source_hours",
        sa.Column("Source", KEY, sa.ForeignKey("sources.Source", ondelete="CASCADE"), primary_key=True),
        sa.Column("Hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("LastReceivedAt", sa.DateTime(timezone=True), nullable=False),
        sa.Column("Images", NUMBER, nullable=False),
        sa.Column("Series", NUMBER, nullable=False),
        sqlite_with_rowid=False,
    )
    hours = _hours(datetime.now(UTC))
    sent = Counter(row["Source"] for row in hours)
    kept = {source for source, _ in sent.most_common(MOST)}
    first: dict[str, datetime] = {}
    for row in hours:
        first[row["Source"]] = min(row.pop("FirstReceivedAt"), first.get(row["Source"], row["LastReceivedAt"]))
    _insert(sources, [{"Source": source, "FirstReceivedAt": first[source]} for source in kept])
    _insert(source_hours, [row for row in hours if row["Source"] in kept])


def _hours(now: datetime) -> list[dict[str, Any]]:
    """A row for each source and hour, out of what was stored since."""
    time = sa.DateTime(timezone=True)
    names = ("Source", "NumInstances", "FirstReceivedAt", "LastReceivedAt", "UpdatedAt")
    series = sa.table("series", *(sa.column(name, time if name.endswith("At") else None) for name in names))
    last = sa.func.coalesce(series.c.LastReceivedAt, series.c.UpdatedAt)
    since_1970 = sa.extract("epoch", last)  # of PostgreSQL with a fraction, which a cast would round
    if op.get_bind().dialect.name == "postgresql":
        since_1970 = sa.func.floor(since_1970)
    hour = (sa.cast(since_1970, sa.BigInteger) // 3600).label("Hour")
    query = (
        sa.select(
            series.c.Source,
            hour,
            sa.func.min(sa.func.coalesce(series.c.FirstReceivedAt, last), type_=time).label("FirstReceivedAt"),
            sa.func.max(last, type_=time).label("LastReceivedAt"),
            sa.func.sum(series.c.NumInstances).label("Images"),
            sa.func.count().label("Series"),
        )
        .where(series.c.UpdatedAt >= now - KEPT, last >= now - KEPT, last <= now, series.c.Source != "")
        .group_by(series.c.Source, hour)
    )
    return [{**row, "Images": int(row["Images"])} for row in op.get_bind().execute(query).mappings()]


def _insert(table: sa.Table, rows: list[dict[str, Any]]) -> None:
    for first in range(0, len(rows), AT_ONCE):
        op.bulk_insert(table, rows[first : first + AT_ONCE])


def downgrade() -> None:
    op.drop_table("source_hours")
    op.drop_table("sources")

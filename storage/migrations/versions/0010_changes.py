"""Changes say enough to act upon them, webhooks may filter, and series are found by what is asked for most."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")

TOLD = {"Modality": KEY, "Source": sa.Text, "ExpectedInstances": sa.Integer, "Kinds": sa.Text}
ASKED = {
    "series_by_update": ("UpdatedAt", "SeriesInstanceUID"),
    "series_by_modality_and_update": ("Modality", "UpdatedAt", "SeriesInstanceUID"),
    "series_by_verdict": ("Verdict", "UpdatedAt", "SeriesInstanceUID"),
    "series_by_source": ("Source", "UpdatedAt", "SeriesInstanceUID"),
}
RARE = {
    "incomplete_series": sa.text('"ExpectedInstances" > "NumInstances"'),
    "series_in_conflict": sa.text('"Conflicts" > 0'),
}


def upgrade() -> None:
    for name, kind in TOLD.items():
        op.add_column("changes", sa.Column(name, kind))
    op.add_column("webhooks", sa.Column("Filters", DOCUMENT))
    op.execute(  # a row is found by its verdict only if it tells the same
        """UPDATE series SET "Verdict" = 'idle' WHERE "Verdict" = 'expected' AND "ExpectedInstances" IS NULL"""
    )
    for name, columns in ASKED.items():
        op.create_index(name, "series", list(columns))
    for name, is_rare in RARE.items():
        columns = ["UpdatedAt", "SeriesInstanceUID"]
        op.create_index(name, "series", columns, sqlite_where=is_rare, postgresql_where=is_rare)


def downgrade() -> None:
    for name in (*RARE, *ASKED):
        op.drop_index(name, "series")
    op.drop_column("webhooks", "Filters")
    op.execute("""DELETE FROM changes WHERE "Kinds" = 'conflict'""")  # which an earlier version takes for revisions
    for name in reversed(TOLD):
        op.drop_column("changes", name)

"""What a verdict rests on: expectations, the timeline of a series, and how verdicts fared."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("series", sa.Column("ExpectedFrom", sa.Text))
    op.add_column("series", sa.Column("Basis", sa.Text))
    op.add_column("series", sa.Column("FalseCompletions", sa.Integer, nullable=False, server_default="0"))
    op.add_column("series", sa.Column("Source", sa.Text))
    op.add_column("series", sa.Column("IdlePolicy", sa.Text))
    op.create_table(
        "timeline",
        sa.Column("Id", NUMBER, primary_key=True),
        sa.Column("SeriesInstanceUID", KEY, sa.ForeignKey("series.SeriesInstanceUID"), nullable=False),
        sa.Column("At", sa.DateTime(timezone=True), nullable=False),
        sa.Column("GatewayID", sa.Text),
        sa.Column("Revision", sa.Integer, nullable=False),
        sa.Column("Event", sa.Text, nullable=False),
        sa.Column("Details", DOCUMENT, nullable=False),
    )
    op.create_index("timeline_by_series", "timeline", ["SeriesInstanceUID", "At", "Id"])
    op.create_table(
        "completions",
        sa.Column("Source", KEY, primary_key=True),
        sa.Column("IdlePolicy", KEY, primary_key=True),
        sa.Column("Verdict", KEY, primary_key=True),
        sa.Column("Series", sa.Integer, nullable=False),
        sa.Column("False", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("completions")
    op.drop_index("timeline_by_series")
    op.drop_table("timeline")
    for column in ("IdlePolicy", "Source", "FalseCompletions", "Basis", "ExpectedFrom"):
        op.drop_column("series", column)

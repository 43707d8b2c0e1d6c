"""Series, their instances, and the reports that contradict them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "series",
        sa.Column("SeriesInstanceUID", KEY, primary_key=True),
        sa.Column("PatientID", KEY),
        sa.Column("PatientName", sa.Text),
        sa.Column("StudyInstanceUID", KEY, nullable=False),
        sa.Column("NumInstances", sa.Integer, nullable=False),
        sa.Column("Modality", KEY),
        sa.Column("Attributes", DOCUMENT, nullable=False),
        sa.Column("Undecoded", DOCUMENT, nullable=False),
        sa.Column("Revision", sa.Integer, nullable=False),
        sa.Column("Verdict", sa.Text),
        sa.Column("ExpectedInstances", sa.Integer),
        sa.Column("FirstReceivedAt", sa.DateTime(timezone=True)),
        sa.Column("LastReceivedAt", sa.DateTime(timezone=True)),
        sa.Column("UpdatedAt", sa.DateTime(timezone=True), nullable=False),
        sa.Column("Conflicts", sa.Integer, nullable=False),
    )
    for name, column in (("patient", "PatientID"), ("study", "StudyInstanceUID"), ("modality", "Modality")):
        op.create_index(f"series_by_{name}", "series", [column, "SeriesInstanceUID"])
    op.create_table(
        "instances",
        sa.Column("SeriesInstanceUID", KEY, sa.ForeignKey("series.SeriesInstanceUID"), primary_key=True),
        sa.Column("SOPInstanceUID", KEY, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "conflicts",
        sa.Column("SeriesInstanceUID", KEY, sa.ForeignKey("series.SeriesInstanceUID"), primary_key=True),
        sa.Column("Digest", KEY, primary_key=True),
        sa.Column("Report", DOCUMENT, nullable=False),
        sa.Column("ReceivedAt", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("conflicts", "instances", "series"):
        op.drop_table(table)

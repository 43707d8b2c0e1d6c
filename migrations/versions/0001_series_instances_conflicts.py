"""Series, their instances, and the reports that contradict them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "series",
        sa.Column("SeriesInstanceUID", sa.Text, primary_key=True),
        sa.Column("PatientID", sa.Text),
        sa.Column("PatientName", sa.Text),
        sa.Column("StudyInstanceUID", sa.Text, nullable=False),
        sa.Column("NumInstances", sa.Integer, nullable=False),
        sa.Column("Modality", sa.Text),
        sa.Column("Attributes", sa.JSON, nullable=False),
        sa.Column("Undecoded", sa.JSON, nullable=False),
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
        sa.Column("SeriesInstanceUID", sa.Text, sa.ForeignKey("series.SeriesInstanceUID"), primary_key=True),
        sa.Column("SOPInstanceUID", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "conflicts",
        sa.Column("SeriesInstanceUID", sa.Text, sa.ForeignKey("series.SeriesInstanceUID"), primary_key=True),
        sa.Column("Digest", sa.Text, primary_key=True),
        sa.Column("Report", sa.JSON, nullable=False),
        sa.Column("ReceivedAt", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("conflicts", "instances", "series"):
        op.drop_table(table)

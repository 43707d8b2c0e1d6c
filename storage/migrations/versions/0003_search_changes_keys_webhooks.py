"""What is searched by, what is known of each instance, changes in order, keys, webhooks, and resolved conflicts."""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)

SEARCHED = {
    "studies_by_patient": ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    "studies_by_modality": ("Modality", "StudyInstanceUID", "SeriesInstanceUID"),
    "studies_by_modality_and_date": ("Modality", "StudyDate", "StudyInstanceUID", "SeriesInstanceUID"),
    "studies_by_date": ("StudyDate", "StudyInstanceUID", "SeriesInstanceUID"),
    "studies_by_name": ("FoldedName", "StudyInstanceUID", "SeriesInstanceUID"),
    "studies_by_accession": ("AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID"),
}


def upgrade() -> None:
    for name in ("StudyDate", "AccessionNumber", "FoldedName"):
        op.add_column("series", sa.Column(name, KEY))
    op.add_column("instances", sa.Column("SOPClassUID", sa.Text))
    for name in ("InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"):
        op.add_column("instances", sa.Column(name, sa.Integer))
    for name, kind in (("Resolution", sa.Text), ("ResolvedAt", TIME), ("ResolvedBy", sa.Text), ("Before", DOCUMENT)):
        op.add_column("conflicts", sa.Column(name, kind))
    _fill()
    for name, columns in SEARCHED.items():
        op.create_index(name, "series", list(columns))
    op.create_index("instances_by_uid", "instances", ["SOPInstanceUID"])
    op.create_index("conflicts_by_digest", "conflicts", ["Digest"])
    _create_changes()
    _create_keys_and_webhooks()


def _fill() -> None:
    """The new columns of what is stored already, some series at a time."""
    connection = op.get_bind()
    some = sa.text(
        'SELECT "SeriesInstanceUID", "PatientName", "Attributes" FROM series '
        'WHERE "SeriesInstanceUID" > :after ORDER BY "SeriesInstanceUID" LIMIT 1000'
    )
    update = sa.text(
        'UPDATE series SET "StudyDate" = :date, "AccessionNumber" = :accession, "FoldedName" = :name '
        'WHERE "SeriesInstanceUID" = :uid'
    )
    after = ""
    while rows := connection.execute(some, {"after": after}).all():
        connection.execute(update, [_searched(*row) for row in rows])
        after = rows[-1][0]


def _searched(uid: str, name: str | None, content: object) -> dict[str, str | None]:
    attributes = json.loads(content) if isinstance(content, str) else content
    date, accession = (next(iter(attributes.get(k, ())), None) for k in ("StudyDate", "AccessionNumber"))
    folded = name and name.casefold()[:64]
    return {"date": date and date[:64], "accession": accession and accession[:64], "name": folded, "uid": uid}


def _create_changes() -> None:
    op.create_table(
        "changes",
        sa.Column("Id", NUMBER, primary_key=True),
        sa.Column("Number", NUMBER),
        sa.Column("SeriesInstanceUID", KEY, sa.ForeignKey("series.SeriesInstanceUID"), nullable=False),
        sa.Column("StudyInstanceUID", KEY, nullable=False),
        sa.Column("Revision", sa.Integer, nullable=False),
        sa.Column("NumInstances", sa.Integer, nullable=False),
        sa.Column("Verdict", sa.Text),
        sa.Column("At", TIME, nullable=False),
    )
    without = sa.text('"Number" IS NULL')
    op.create_index("changes_by_number", "changes", ["Number"], unique=True)
    op.create_index("changes_without_number", "changes", ["Id"], sqlite_where=without, postgresql_where=without)
    op.create_table("counters", sa.Column("Name", KEY, primary_key=True), sa.Column("Value", NUMBER, nullable=False))
    columns = '"SeriesInstanceUID", "StudyInstanceUID", "Revision", "NumInstances", "Verdict"'
    known = f'SELECT {columns}, "UpdatedAt" FROM series ORDER BY "UpdatedAt"'  # noqa: S608 - constants
    op.execute(f'INSERT INTO changes ({columns}, "At") {known}')


def _create_keys_and_webhooks() -> None:
    op.create_table(
        "api_keys",
        sa.Column("Id", KEY, primary_key=True),
        sa.Column("Name", sa.Text, nullable=False),
        sa.Column("Salt", sa.Text, nullable=False),
        sa.Column("Hash", sa.Text, nullable=False),
        sa.Column("Scopes", sa.Text, nullable=False),
        sa.Column("CreatedAt", TIME, nullable=False),
        sa.Column("ExpiresAt", TIME),
        sa.Column("RevokedAt", TIME),
    )
    op.create_table(
        "webhooks",
        sa.Column("Id", NUMBER, primary_key=True),
        sa.Column("Url", sa.Text, nullable=False),
        sa.Column("Secret", sa.Text, nullable=False),
        sa.Column("CreatedAt", TIME, nullable=False),
        sa.Column("Position", NUMBER, nullable=False),
        sa.Column("Attempts", sa.Integer, nullable=False),
        sa.Column("FirstAttemptAt", TIME),
        sa.Column("NextAttemptAt", TIME),
        sa.Column("Problem", sa.Text),
        sa.Column("Owner", sa.Text),
        sa.Column("OwnedUntil", TIME),
    )
    op.create_table(
        "dead_changes",
        sa.Column("Webhook", NUMBER, sa.ForeignKey("webhooks.Id"), primary_key=True),
        sa.Column("Number", NUMBER, primary_key=True),
        sa.Column("Problem", sa.Text, nullable=False),
        sa.Column("At", TIME, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("dead_changes", "webhooks", "api_keys", "counters", "changes"):
        op.drop_table(table)
    op.drop_index("conflicts_by_digest", "conflicts")
    op.drop_index("instances_by_uid", "instances")
    for name in SEARCHED:
        op.drop_index(name, "series")
    for name in ("Before", "ResolvedBy", "ResolvedAt", "Resolution"):
        op.drop_column("conflicts", name)
    for name in ("NumberOfFrames", "BitsAllocated", "Columns", "Rows", "InstanceNumber", "SOPClassUID"):
        op.drop_column("instances", name)
    for name in ("FoldedName", "AccessionNumber", "StudyDate"):
        op.drop_column("series", name)

"""Series that were purged leave a tombstone; the changes of a series are found."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "purged",
        sa.Column("SeriesInstanceUID", KEY, primary_key=True),
        sa.Column("At", sa.DateTime(timezone=True), nullable=False),
        sa.Column("NumInstances", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("changes_by_series", "changes", ["SeriesInstanceUID"])


def downgrade() -> None:
    op.drop_index("changes_by_series", "changes")
    op.drop_table("purged")

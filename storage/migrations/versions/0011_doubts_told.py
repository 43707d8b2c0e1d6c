"""Changes say what is doubtful, and series are found by it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"

DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
IS_DOUBTFUL = sa.text("\"Doubtful\" != '[]'")


def upgrade() -> None:
    op.add_column("changes", sa.Column("Doubtful", DOCUMENT, nullable=False, server_default="[]"))
    columns = ["UpdatedAt", "SeriesInstanceUID"]
    op.create_index("doubtful_series", "series", columns, sqlite_where=IS_DOUBTFUL, postgresql_where=IS_DOUBTFUL)


def downgrade() -> None:
    op.drop_index("doubtful_series", "series")
    op.drop_column("changes", "Doubtful")

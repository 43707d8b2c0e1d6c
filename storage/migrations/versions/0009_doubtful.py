"""What of a series' images breaks the standard."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"

DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("series", sa.Column("Doubtful", DOCUMENT, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("series", "Doubtful")

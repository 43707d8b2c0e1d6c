"""What each gateway said last of itself, and conflicts that are open counted by an index."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("GatewayID", KEY, primary_key=True),
        sa.Column("At", sa.DateTime(timezone=True), nullable=False),
        sa.Column("State", DOCUMENT, nullable=False),
    )
    unresolved = sa.text('"Resolution" IS NULL')
    op.create_index("open_conflicts", "conflicts", ["Digest"], sqlite_where=unresolved, postgresql_where=unresolved)


def downgrade() -> None:
    op.drop_index("open_conflicts", "conflicts")
    op.drop_table("gateways")

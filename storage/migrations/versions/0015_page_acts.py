"""The live page acts: sessions that were ended stay so, and every server process knows which gateways are refused."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "ended_sessions",
        sa.Column("Session", KEY, primary_key=True),
        sa.Column("EndsAt", TIME, nullable=False),
        sqlite_with_rowid=False,
    )
    op.add_column("gateways", sa.Column("RefusedAt", TIME))
    op.add_column("gateways", sa.Column("Refused", sa.Text))


def downgrade() -> None:
    op.drop_column("gateways", "Refused")
    op.drop_column("gateways", "RefusedAt")
    op.drop_table("ended_sessions")

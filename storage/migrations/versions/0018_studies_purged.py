"""A study knows what of it was purged, and a tombstone its study; how far a gateway's clock is behind."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("studies", sa.Column("PurgedSeries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("studies", sa.Column("PurgedInstances", NUMBER, nullable=False, server_default="0"))
    op.add_column("purged", sa.Column("StudyInstanceUID", KEY))  # of earlier ones it is not known
    op.add_column("gateways", sa.Column("BehindS", sa.Float))


def downgrade() -> None:
    op.drop_column("gateways", "BehindS")
    op.drop_column("purged", "StudyInstanceUID")
    op.drop_column("studies", "PurgedInstances")
    op.drop_column("studies", "PurgedSeries")

"""A webhook's secret can be replaced while it is told, and a link-local address has to be allowed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("OldSecret", sa.Text))
    op.add_column("webhooks", sa.Column("OldSecretUntil", sa.DateTime(timezone=True)))
    op.add_column("webhooks", sa.Column("LinkLocal", sa.Boolean, nullable=False, server_default=sa.false()))
    # Whoever gave such an address by itself has meant it.
    op.execute(
        """UPDATE webhooks SET "LinkLocal" = true WHERE "Url" LIKE 'http%://169.254.%' OR "Url" LIKE 'http%://[fe80:%'"""
    )


def downgrade() -> None:
    for name in ("LinkLocal", "OldSecretUntil", "OldSecret"):
        op.drop_column("webhooks", name)

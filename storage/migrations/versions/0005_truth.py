"""Images after `capped` are counted, and no row claims more than what is known bears out."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("completions", sa.Column("AfterCapped", sa.Integer, nullable=False, server_default="0"))
    op.execute(
        'UPDATE series SET "ExpectedInstances" = NULL, "ExpectedFrom" = NULL WHERE "ExpectedInstances" < "NumInstances"'
    )
    op.execute(
        """UPDATE series SET "Verdict" = 'idle' WHERE "Verdict" = 'verified' AND NOT """
        """("ExpectedInstances" IS NOT NULL AND "ExpectedInstances" = "NumInstances" AND "ExpectedFrom" = 'pacs')"""
    )


def downgrade() -> None:
    op.drop_column("completions", "AfterCapped")

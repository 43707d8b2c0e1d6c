"""By what name a series' sender called the gateway."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("series", sa.Column("CalledAETitle", sa.Text))
    op.add_column("changes", sa.Column("CalledAETitle", sa.Text))


def downgrade() -> None:
    op.drop_column("changes", "CalledAETitle")
    op.drop_column("series", "CalledAETitle")

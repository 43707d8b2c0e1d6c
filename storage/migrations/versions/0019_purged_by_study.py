"""What was purged of a study is found, for when it comes again; when a gateway's clock or the server's was set."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.create_index("purged_by_study", "purged", ["StudyInstanceUID"])
    op.add_column("gateways", sa.Column("ClockSetAt", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("gateways", "ClockSetAt")
    op.drop_index("purged_by_study", "purged")

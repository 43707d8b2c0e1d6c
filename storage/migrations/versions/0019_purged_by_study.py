"""What was purged of a study is found, for when it comes again after it had gone whole."""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.create_index("purged_by_study", "purged", ["StudyInstanceUID"])


def downgrade() -> None:
    op.drop_index("purged_by_study", "purged")

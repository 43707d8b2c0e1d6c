"""A person may say that a series is complete, or that it is not; gateways are given orders."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("series", sa.Column("Withdrawn", sa.Text))
    op.create_table(
        "orders",
        sa.Column("Id", NUMBER, primary_key=True),
        sa.Column("GatewayID", KEY, nullable=False),
        sa.Column("Kind", sa.Text, nullable=False),
        sa.Column("SeriesInstanceUID", KEY),
        sa.Column("DeadLetter", NUMBER),
        sa.Column("By", sa.Text, nullable=False),
        sa.Column("Because", sa.Text),
        sa.Column("At", TIME, nullable=False),
        sa.Column("Settles", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("DoneAt", TIME),
        sa.Column("Problem", sa.Text),
    )
    op.create_index("orders_by_gateway", "orders", ["GatewayID", "Id"])
    op.create_index("orders_by_series", "orders", ["SeriesInstanceUID", "Id"])
    waits = sa.text('"DoneAt" IS NULL')
    op.create_index("orders_waiting", "orders", ["GatewayID", "Id"], sqlite_where=waits, postgresql_where=waits)


def downgrade() -> None:
    op.drop_table("orders")
    # An earlier version does not know the verdict, nor the kind of change.
    for table in ("series", "changes"):
        op.execute(f"""UPDATE {table} SET "Verdict" = 'idle' WHERE "Verdict" = 'declared'""")  # noqa: S608
    op.execute("""UPDATE changes SET "Kinds" = replace("Kinds", ' declared', '') WHERE "Kinds" LIKE '%declared%'""")
    op.drop_column("series", "Withdrawn")

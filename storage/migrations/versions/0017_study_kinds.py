"""Studies of 0016 get the kinds of their series; a PACS is trusted as one, and not for each source anew."""

import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
AT_ONCE = 1000  # series in one read, studies in one write
MAX_KINDS = 64  # of a study
NUMBER = re.compile(r"(?<![^\W_])\d+")

studies = sa.table("studies", sa.column("StudyInstanceUID"), sa.column("Kinds", DOCUMENT))
series = sa.table(
    "series",
    *(sa.column(name) for name in ("SeriesInstanceUID", "StudyInstanceUID", "Modality")),
    sa.column("Attributes", DOCUMENT),
)


def upgrade() -> None:
    op.create_table(
        "study_pacs",
        sa.Column("PACS", KEY, primary_key=True),
        sa.Column("Stored", sa.Boolean, primary_key=True),
        sa.Column("Trust", sa.Integer, nullable=False),
        sa.Column("UpdatedAt", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
    op.drop_column("study_sources", "Trust")  # which PACS it was about is not known: that is learnt again
    this = studies.c.StudyInstanceUID == sa.bindparam("uid")
    fill = sa.update(studies).where(this).values(Kinds=sa.bindparam("kinds", type_=DOCUMENT))
    rows: list[dict[str, Any]] = []
    for uid, of_study in groupby(_series(), key=lambda row: str(row["StudyInstanceUID"])):
        kinds = dict.fromkeys(_kind(one) for one in of_study)
        rows.append({"uid": uid, "kinds": list(kinds)[:MAX_KINDS]})
        if len(rows) == AT_ONCE:
            op.get_bind().execute(fill, rows)
            rows = []
    if rows:
        op.get_bind().execute(fill, rows)


def _series() -> Iterator[Mapping[str, Any]]:
    """Every series of a study without kinds, in order of the study, some at a time."""
    without = sa.select(studies.c.StudyInstanceUID).where(sa.text("\"Kinds\" = '[]'"))
    place = (series.c.StudyInstanceUID, series.c.SeriesInstanceUID)
    query = sa.select(series).where(series.c.StudyInstanceUID.in_(without)).order_by(*place).limit(AT_ONCE)
    rows = op.get_bind().execute(query).mappings().all()
    while rows:
        yield from rows
        after = sa.tuple_(*(sa.literal(rows[-1][column.name], KEY) for column in place))
        rows = op.get_bind().execute(query.where(sa.tuple_(*place) > after)).mappings().all()


def _kind(row: Mapping[str, Any]) -> str:
    """Return what common.study_kinds.kind_of does."""
    description = str(next(iter((row["Attributes"] or {}).get("SeriesDescription", ())), ""))
    letters = "".join(filter(str.isalnum, NUMBER.sub("", description.casefold())))
    digest = f"d{blake2b(letters.encode('utf-8', 'replace'), digest_size=3).hexdigest()}" if letters else ""
    return f"{(row['Modality'] or '')[:4]}{digest}"


def downgrade() -> None:
    op.drop_table("study_pacs")
    op.add_column("study_sources", sa.Column("Trust", sa.Integer, nullable=False, server_default="0"))

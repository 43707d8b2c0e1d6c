"""A study has a row of its own, with a verdict: filled from the series that there are, in one pass."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)
AT_ONCE = 1000  # series in one read
WRITTEN = 1000  # studies in one write
QUIET = timedelta(days=1)  # without an image for so long, a study is taken to be over
SETTLED = ("verified", "declared", "expected", "idle")
MOST_MODALITIES = 50
TEXTS = ("PatientID", "PatientName", "StudyDate", "AccessionNumber", "Source")
SURROGATES = re.compile("[\ud800-\udfff]")  # no text, and in JSON of an earlier version
READ = {name: sa.column(name) for name in ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "Verdict", *TEXTS)}
READ |= {name: sa.column(name) for name in ("NumInstances", "ExpectedInstances", "FalseCompletions")}
READ |= {name: sa.column(name, TIME) for name in ("FirstReceivedAt", "LastReceivedAt", "UpdatedAt")}
READ |= {"Attributes": sa.column("Attributes", DOCUMENT)}

INCOMPLETE = (
    """CASE WHEN ("Incomplete" > 0 OR "MissingSeries" != '[]' OR "ExpectedSeries" > "NumSeries" """
    """OR "ExpectedInstances" > "NumInstances") THEN 1 ELSE 0 END = 1"""
)


def upgrade() -> None:
    op.add_column("changes", sa.Column("Subject", sa.Text, nullable=False, server_default="series"))
    op.add_column("changes", sa.Column("NumSeries", sa.Integer))
    of_study = sa.text("\"Subject\" = 'study'")
    op.create_index("changes_of_studies", "changes", ["Number"], sqlite_where=of_study, postgresql_where=of_study)
    op.add_column("orders", sa.Column("StudyInstanceUID", KEY))
    op.add_column("orders", sa.Column("CallingAETitle", sa.Text))
    op.create_table(
        "study_completions",
        sa.Column("Source", KEY, primary_key=True),
        sa.Column("Policy", KEY, primary_key=True),
        sa.Column("Verdict", KEY, primary_key=True),
        sa.Column("Studies", sa.Integer, nullable=False),
        sa.Column("False", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "study_sources",
        sa.Column("Source", KEY, primary_key=True),
        sa.Column("Learnt", DOCUMENT, nullable=False),
        sa.Column("Trust", sa.Integer, nullable=False),
        sa.Column("UpdatedAt", TIME, nullable=False),
        sqlite_with_rowid=False,
    )
    studies = _make_studies()
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for uid, of_study in groupby(_series(), key=lambda row: str(row["StudyInstanceUID"])):
        rows.append(_study(uid, of_study, now))
        if len(rows) == WRITTEN:
            op.bulk_insert(studies, rows)
            rows = []
    op.bulk_insert(studies, rows)
    _index_studies()


def _make_studies() -> sa.Table:
    return op.create_table(
        "studies",
        sa.Column("StudyInstanceUID", KEY, primary_key=True),
        sa.Column("PatientID", KEY),
        sa.Column("PatientName", sa.Text),
        sa.Column("StudyDate", KEY),
        sa.Column("StudyTime", sa.Text),
        sa.Column("StudyDescription", sa.Text),
        sa.Column("AccessionNumber", KEY),
        sa.Column("Source", sa.Text),
        sa.Column("Modalities", DOCUMENT, nullable=False),
        sa.Column("Verdicts", DOCUMENT, nullable=False),
        sa.Column("NumSeries", sa.Integer, nullable=False),
        sa.Column("NumInstances", NUMBER, nullable=False),
        sa.Column("Unsettled", sa.Integer, nullable=False),
        sa.Column("Incomplete", sa.Integer, nullable=False),
        sa.Column("Contradicted", sa.Integer, nullable=False),
        sa.Column("Verdict", sa.Text),
        sa.Column("Policy", sa.Text),
        sa.Column("Basis", sa.Text),
        sa.Column("MissingSeries", DOCUMENT, nullable=False, server_default="[]"),
        sa.Column("Withdrawn", sa.Text),
        sa.Column("FalseCompletions", sa.Integer, nullable=False, server_default="0"),
        sa.Column("Revision", sa.Integer, nullable=False),
        sa.Column("FirstReceivedAt", TIME),
        sa.Column("LastReceivedAt", TIME),
        sa.Column("UpdatedAt", TIME, nullable=False),
        sa.Column("ExpectedSeries", sa.Integer),
        sa.Column("ExpectedInstances", NUMBER),
        sa.Column("CountedAt", TIME),
        sa.Column("CountedSince", TIME),
        sa.Column("CountedAhead", sa.Boolean),
        sa.Column("CountGrew", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("CountedBy", sa.Text),
        sa.Column("PACS", sa.Text),
        sa.Column("Kinds", DOCUMENT, nullable=False, server_default="[]"),
        sa.Column("Gaps", DOCUMENT, nullable=False, server_default="{}"),
        sa.Column("OpenSince", TIME, nullable=False),
        sa.Column("DueAt", TIME),
    )


def _index_studies() -> None:
    """Only once the rows are there, which is sooner."""
    for name, column in (("due", "DueAt"), ("update", "UpdatedAt"), ("patient", "PatientID")):
        op.create_index(f"study_by_{name}", "studies", [column, "StudyInstanceUID"])
    op.create_index("study_by_accession", "studies", ["AccessionNumber", "StudyInstanceUID"])
    op.create_index("study_by_date", "studies", ["StudyDate", "StudyInstanceUID"])
    op.create_index("study_by_verdict", "studies", ["Verdict", "UpdatedAt", "StudyInstanceUID"])
    lacks = sa.text(INCOMPLETE)
    place = ["UpdatedAt", "StudyInstanceUID"]
    op.create_index("incomplete_studies", "studies", place, sqlite_where=lacks, postgresql_where=lacks)


def _series() -> Iterator[Mapping[str, Any]]:
    """Every series in order of its study, some at a time."""
    series = sa.table("series", *READ.values())
    place = (series.c.StudyInstanceUID, series.c.SeriesInstanceUID)
    query = sa.select(series).order_by(*place).limit(AT_ONCE)
    rows = op.get_bind().execute(query).mappings().all()
    while rows:
        yield from rows
        after = sa.tuple_(*(sa.literal(rows[-1][column.name], KEY) for column in place))
        rows = op.get_bind().execute(query.where(sa.tuple_(*place) > after)).mappings().all()


def _study(uid: str, series: Iterator[Mapping[str, Any]], now: datetime) -> dict[str, Any]:
    """The row of a study. One that has been quiet for long is over, and nobody is told of that."""
    row: dict[str, Any] = dict.fromkeys((*TEXTS, "StudyTime", "StudyDescription"))
    numbers = Counter[str](dict.fromkeys(("NumSeries", "NumInstances", "Unsettled", "Incomplete", "Contradicted"), 0))
    modalities, verdicts = Counter[str](), Counter[str]()
    times: dict[str, list[datetime]] = {name: [] for name in ("FirstReceivedAt", "LastReceivedAt", "UpdatedAt")}
    for one in series:
        row |= {name: one[name] for name in TEXTS if row[name] is None}
        for name, length in (("StudyTime", 64), ("StudyDescription", 1024)):
            row[name] = row[name] or _first(one["Attributes"], name, length)
        numbers["NumSeries"] += 1
        numbers["NumInstances"] += one["NumInstances"]
        numbers["Unsettled"] += one["Verdict"] not in SETTLED
        numbers["Incomplete"] += (one["ExpectedInstances"] or 0) > one["NumInstances"]
        numbers["Contradicted"] += one["FalseCompletions"] > 0
        modality = one["Modality"] or ""
        modalities[modality if modality in modalities or len(modalities) < MOST_MODALITIES else ""] += 1
        verdicts[one["Verdict"] or ""] += 1
        for name, found in times.items():
            if one[name] is not None:
                found.append(one[name] if one[name].tzinfo else one[name].replace(tzinfo=UTC))
    updated = max(times["UpdatedAt"])
    last = max(times["LastReceivedAt"], default=None)
    is_over = (last or updated) < now - QUIET
    return {
        **row,
        **numbers,
        **({"Verdict": "capped" if numbers["Unsettled"] else "idle"} if is_over else {"Verdict": None}),
        "Policy": "upgrade" if is_over else None,
        "Basis": "quiet for a day or more when studies got verdicts" if is_over else None,
        "StudyInstanceUID": uid,
        "Modalities": dict(modalities),
        "Verdicts": dict(verdicts),
        "Revision": 0,
        "FirstReceivedAt": min(times["FirstReceivedAt"], default=None),
        "LastReceivedAt": last,
        "UpdatedAt": updated,
        "OpenSince": now,
        "DueAt": None if is_over else now,
    }


def _first(attributes: Any, keyword: str, length: int) -> str | None:
    """The first value of an attribute, in valid Unicode."""
    known = json.loads(attributes) if isinstance(attributes, str) else attributes
    text = next(iter((known or {}).get(keyword, ())), "")
    return SURROGATES.sub("\ufffd", text)[:length] or None


def downgrade() -> None:
    for table in ("studies", "study_completions", "study_sources"):
        op.drop_table(table)
    op.execute("""DELETE FROM changes WHERE "Subject" = 'study'""")
    op.drop_index("changes_of_studies", "changes")
    op.drop_column("changes", "Subject")
    op.drop_column("changes", "NumSeries")
    # An earlier version does not know the kind; the rows stay, since SQLite could give a deleted Id again.
    op.execute(
        """UPDATE orders SET "Kind" = 'declare', "DoneAt" = coalesce("DoneAt", "At"), """
        """"Problem" = 'not known any more' WHERE "Kind" = 'count'"""
    )
    op.drop_column("orders", "StudyInstanceUID")
    op.drop_column("orders", "CallingAETitle")

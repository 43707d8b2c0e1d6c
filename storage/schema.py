"""The server's tables: one definition for SQLite and PostgreSQL. Migrations bring a database up to it."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    false,
    literal_column,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from models import fitting, fitting_bytes, valid_unicode


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC timestamp; SQLite stores none with a zone, so it is added when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Document(TypeDecorator[Any]):
    """JSON of valid Unicode; what an earlier version stored otherwise is read so, too."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> TypeEngine[Any]:
        kind: TypeEngine[Any] = JSONB() if dialect.name == "postgresql" else JSON()
        return kind

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        return self.impl_instance.coerce_compared_value(op, value)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return valid_unicode(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return valid_unicode(value)


class _Unread(UserDefinedType[Any]):
    """SQLite's JSON, as the text that is stored."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"


class Learnt(Document):
    """What was learnt, as JSON. Text that is none, as SQLite takes it, is read as None."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> TypeEngine[Any]:
        return JSONB() if dialect.name == "postgresql" else _Unread()

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value if dialect.name == "postgresql" else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        if dialect.name == "postgresql":
            return value
        try:
            return json.loads(value)
        except ValueError:
            return None


class Attributes(Document):
    """Keyword to values, read as much as a record holds: an earlier version stored without bounds."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and fitting(value)


class Undecoded(Document):
    """Keyword to bytes in Base64, read as much as a record holds."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and fitting_bytes(valid_unicode(value))


ORDERED_TEXT = Text().with_variant(
    Text(collation="C"), "postgresql"
)  # ordered by bytes, as SQLite does; a prefix is a range
DOCUMENT = Document()
NUMBER = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's rowid is an INTEGER, of 64 bits

metadata = MetaData()
series = Table(
    "series",
    metadata,
    Column("SeriesInstanceUID", ORDERED_TEXT, primary_key=True),
    Column("PatientID", ORDERED_TEXT),
    Column("PatientName", Text),
    Column("StudyInstanceUID", ORDERED_TEXT, nullable=False),
    Column("NumInstances", Integer, nullable=False),
    Column("Modality", ORDERED_TEXT),
    Column("Attributes", Attributes, nullable=False),
    Column("Undecoded", Undecoded, nullable=False),
    Column("Revision", Integer, nullable=False),
    Column("Verdict", Text),
    Column("ExpectedInstances", Integer),
    Column("FirstReceivedAt", UtcDateTime),
    Column("LastReceivedAt", UtcDateTime),
    Column("UpdatedAt", UtcDateTime, nullable=False),
    Column("Conflicts", Integer, nullable=False),
    Column("ExpectedFrom", Text),
    Column("Basis", Text),
    Column("FalseCompletions", Integer, nullable=False, server_default="0"),
    Column("Source", Text),
    Column("IdlePolicy", Text),
    # Out of Attributes, to be searched by:
    Column("StudyDate", ORDERED_TEXT),
    Column("AccessionNumber", ORDERED_TEXT),
    Column("FoldedName", ORDERED_TEXT),  # PatientName as names are compared (folding.py)
    Column("FoldedReferrer", ORDERED_TEXT),  # ReferringPhysicianName likewise
    Column("CalledAETitle", Text),
    Column("Doubtful", DOCUMENT, nullable=False, server_default="[]"),
    Column("Withdrawn", Text),  # the verdict that the series had when a person declared it incomplete, or `part`
    Index("series_by_patient", "PatientID", "SeriesInstanceUID"),
    Index("series_by_study", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("series_by_modality", "Modality", "SeriesInstanceUID"),
    Index("studies_by_patient", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("studies_by_modality", "Modality", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("studies_by_modality_and_date", "Modality", "StudyDate", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("studies_by_date", "StudyDate", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("studies_by_name", "FoldedName", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("studies_by_accession", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID"),
    Index("series_by_update", "UpdatedAt", "SeriesInstanceUID"),
    Index("series_by_modality_and_update", "Modality", "UpdatedAt", "SeriesInstanceUID"),
    Index("series_by_verdict", "Verdict", "UpdatedAt", "SeriesInstanceUID"),
    Index("series_by_source", "Source", "UpdatedAt", "SeriesInstanceUID"),
)
Index(  # of names with more than their first group, word by word as SQLAlchemy asks for them (matching.py)
    "studies_by_further_group",
    series.c.FoldedName,
    series.c.StudyInstanceUID,
    series.c.SeriesInstanceUID,
    sqlite_where=text("\"FoldedName\" GLOB '*=*' = 1"),
    postgresql_where=text("\"FoldedName\" LIKE '%=%'"),
)
# In the words of their indexes, which are not gone along otherwise: a bound number is not seen to be the same.
IS_INCOMPLETE = series.c.ExpectedInstances > series.c.NumInstances
IS_IN_CONFLICT = series.c.Conflicts > literal_column("0")
IS_DOUBTFUL = series.c.Doubtful != literal_column("'[]'")
for _name, _is_rare in (
    ("incomplete_series", IS_INCOMPLETE),
    ("series_in_conflict", IS_IN_CONFLICT),
    ("doubtful_series", IS_DOUBTFUL),
):
    _columns = (series.c.UpdatedAt, series.c.SeriesInstanceUID)
    Index(_name, *_columns, sqlite_where=_is_rare, postgresql_where=_is_rare)


def _of_series() -> Column[str]:
    return Column("SeriesInstanceUID", ORDERED_TEXT, ForeignKey("series.SeriesInstanceUID"), primary_key=True)


# One row per study, of what its series' rows say; a transaction locks its series first, then their study.
studies = Table(
    "studies",
    metadata,
    Column("StudyInstanceUID", ORDERED_TEXT, primary_key=True),
    Column("PatientID", ORDERED_TEXT),
    Column("PatientName", Text),
    Column("StudyDate", ORDERED_TEXT),
    Column("StudyTime", Text),
    Column("StudyDescription", Text),
    Column("AccessionNumber", ORDERED_TEXT),
    Column("Source", Text),  # of its first series: what was learnt of whom
    Column("Modalities", DOCUMENT, nullable=False),  # how many series each has
    Column("Verdicts", DOCUMENT, nullable=False),  # how many series have each; "" for none
    Column("NumSeries", Integer, nullable=False),
    Column("NumInstances", NUMBER, nullable=False),
    Column("Unsettled", Integer, nullable=False),  # series without a final verdict
    Column("Incomplete", Integer, nullable=False),  # series of which images are missing
    Column("Contradicted", Integer, nullable=False),  # series with false completions
    Column("Verdict", Text),
    Column("Policy", Text),  # what decided
    Column("Basis", Text),
    Column("MissingSeries", DOCUMENT, nullable=False, server_default="[]"),  # descriptions of required ones
    Column("Withdrawn", Text),  # the verdict that the study had when a person declared it incomplete, or `part`
    Column("FalseCompletions", Integer, nullable=False, server_default="0"),
    Column("Revision", Integer, nullable=False),
    Column("FirstReceivedAt", UtcDateTime),
    Column("LastReceivedAt", UtcDateTime),
    Column("UpdatedAt", UtcDateTime, nullable=False),
    Column("ExpectedSeries", Integer),  # what the PACS said of it last, without what was purged
    Column("ExpectedInstances", NUMBER),
    Column("CountedAt", UtcDateTime),  # when it said so
    Column("CountedSince", UtcDateTime),  # since when it has said the same, of the same series
    Column("CountedAhead", Boolean),  # it had more than had come when it was first asked; null: not asked yet
    Column("CountGrew", Boolean, nullable=False, server_default=false()),
    Column("CountedBy", Text),  # the gateway that asked last, …
    Column("PACS", Text),  # … and the AE title of whom
    Column(
        "Kinds", DOCUMENT, nullable=False, server_default="[]"
    ),  # of its series, for what is learnt (study_kinds.py)
    Column("Gaps", DOCUMENT, nullable=False, server_default="{}"),  # series to the numbers that it seems to lack
    Column(
        "OpenSince", UtcDateTime, nullable=False
    ),  # by the server's clock: stored first, or contradicted last, be it by a person
    Column("DueAt", UtcDateTime),  # when it is looked at next; null: not before something comes
    Column("PurgedSeries", Integer, nullable=False, server_default="0"),  # of it, that have not come again
    Column("PurgedInstances", NUMBER, nullable=False, server_default="0"),  # images that these had
    Index("study_by_due", "DueAt", "StudyInstanceUID"),
    Index("study_by_update", "UpdatedAt", "StudyInstanceUID"),
    Index("study_by_verdict", "Verdict", "UpdatedAt", "StudyInstanceUID"),
    Index("study_by_patient", "PatientID", "StudyInstanceUID"),
    Index("study_by_accession", "AccessionNumber", "StudyInstanceUID"),
    Index("study_by_date", "StudyDate", "StudyInstanceUID"),
)
# In the words of its index, as those of series above, and as one term: SQLite goes along no index of several. What is
# missing: images of series, required series, or what the PACS says that it has.
_LACKS = or_(
    studies.c.Incomplete > literal_column("0"),
    studies.c.MissingSeries != literal_column("'[]'"),
    studies.c.ExpectedSeries > studies.c.NumSeries,
    studies.c.ExpectedInstances > studies.c.NumInstances,
)
IS_INCOMPLETE_STUDY = case((_LACKS, literal_column("1")), else_=literal_column("0")) == literal_column("1")
# Of these, those that are waited for: of a declared one a person has said that nothing is missing.
LACKS_SOMETHING = IS_INCOMPLETE_STUDY & studies.c.Policy.is_distinct_from(literal_column("'declared'"))
Index(
    "incomplete_studies",
    studies.c.UpdatedAt,
    studies.c.StudyInstanceUID,
    sqlite_where=IS_INCOMPLETE_STUDY,
    postgresql_where=IS_INCOMPLETE_STUDY,
)
# How the verdicts of studies have fared, as `completions` does for series.
study_completions = Table(
    "study_completions",
    metadata,
    Column("Source", ORDERED_TEXT, primary_key=True),
    Column("Policy", ORDERED_TEXT, primary_key=True),
    Column("Verdict", ORDERED_TEXT, primary_key=True),
    Column("Studies", Integer, nullable=False),
    Column("False", Integer, nullable=False),
    sqlite_with_rowid=False,
)
# What was learnt of each source's studies: its silences between series.
study_sources = Table(
    "study_sources",
    metadata,
    Column("Source", ORDERED_TEXT, primary_key=True),
    Column("Learnt", Learnt(), nullable=False),
    Column("UpdatedAt", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
# How many studies in a row each PACS held from the start; of those of an earlier day by itself.
study_pacs = Table(
    "study_pacs",
    metadata,
    Column("PACS", ORDERED_TEXT, primary_key=True),
    Column("Stored", Boolean, primary_key=True),
    Column("Trust", Integer, nullable=False),
    Column("UpdatedAt", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
instances = Table(
    "instances",
    metadata,
    _of_series(),
    Column("SOPInstanceUID", ORDERED_TEXT, primary_key=True),
    Column("SOPClassUID", Text),
    Column("InstanceNumber", Integer),
    Column("Rows", Integer),
    Column("Columns", Integer),
    Column("BitsAllocated", Integer),
    Column("NumberOfFrames", Integer),
    Index("instances_by_uid", "SOPInstanceUID"),
    sqlite_with_rowid=False,
)
conflicts = Table(
    "conflicts",
    metadata,
    _of_series(),
    Column(
        "Digest", ORDERED_TEXT, primary_key=True
    ),  # of the contradicting identity and instances: a repeat is kept once
    Column("Report", DOCUMENT, nullable=False),
    Column("ReceivedAt", UtcDateTime, nullable=False),
    Column("Resolution", Text),
    Column("ResolvedAt", UtcDateTime),
    Column("ResolvedBy", Text),
    Column("Before", DOCUMENT),  # the identity that `correct` replaced
    Index("conflicts_by_digest", "Digest"),
    sqlite_with_rowid=False,
)
Index(
    "open_conflicts",
    conflicts.c.Digest,
    sqlite_where=conflicts.c.Resolution.is_(None),
    postgresql_where=conflicts.c.Resolution.is_(None),
)
timeline = Table(
    "timeline",
    metadata,
    Column("Id", NUMBER, primary_key=True),
    Column("SeriesInstanceUID", ORDERED_TEXT, ForeignKey("series.SeriesInstanceUID"), nullable=False),
    Column("At", UtcDateTime, nullable=False),
    Column("GatewayID", Text),
    Column("Revision", Integer, nullable=False),
    Column("Event", Text, nullable=False),
    Column("Details", DOCUMENT, nullable=False),
    Index("timeline_by_series", "SeriesInstanceUID", "At", "Id"),
)
# What stays of a series that was purged, until it comes again (purge.py).
purged = Table(
    "purged",
    metadata,
    Column("SeriesInstanceUID", ORDERED_TEXT, primary_key=True),
    Column("At", UtcDateTime, nullable=False),
    Column("NumInstances", Integer, nullable=False),
    Column("StudyInstanceUID", ORDERED_TEXT),  # null of those that a version before 0.3 has left
    Index("purged_by_study", "StudyInstanceUID"),
    sqlite_with_rowid=False,
)
completions = Table(
    "completions",
    metadata,
    Column("Source", ORDERED_TEXT, primary_key=True),
    Column("IdlePolicy", ORDERED_TEXT, primary_key=True),
    Column("Verdict", ORDERED_TEXT, primary_key=True),
    Column("Series", Integer, nullable=False),
    Column("False", Integer, nullable=False),
    Column("AfterCapped", Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
# One row per revision, and per report kept aside. A transaction cannot know its place among those that commit beside
# it: Number is given afterwards, to what is committed, so whoever has read up to a number has missed nothing below it.
changes = Table(
    "changes",
    metadata,
    Column("Id", NUMBER, primary_key=True),
    Column("Number", NUMBER),
    Column("SeriesInstanceUID", ORDERED_TEXT, ForeignKey("series.SeriesInstanceUID"), nullable=False),
    Column("StudyInstanceUID", ORDERED_TEXT, nullable=False),
    Column("Revision", Integer, nullable=False),
    Column("NumInstances", Integer, nullable=False),
    Column("Verdict", Text),
    Column("At", UtcDateTime, nullable=False),
    Column("CalledAETitle", Text),
    Column("Modality", ORDERED_TEXT),
    Column("Source", Text),
    Column("ExpectedInstances", Integer),
    Column("Kinds", Text),  # separated by spaces; null in what an earlier version told
    Column("Doubtful", DOCUMENT, nullable=False, server_default="[]"),
    Column("Subject", Text, nullable=False, server_default="series"),  # of a study, SeriesInstanceUID is its last one
    Column("NumSeries", Integer),  # of a study
)
Index("changes_by_number", changes.c.Number, unique=True)
Index("changes_by_series", changes.c.SeriesInstanceUID)
IS_OF_STUDY = changes.c.Subject == literal_column("'study'")  # few are, among those of series
Index("changes_of_studies", changes.c.Number, sqlite_where=IS_OF_STUDY, postgresql_where=IS_OF_STUDY)
Index(
    "changes_without_number",
    changes.c.Id,
    sqlite_where=changes.c.Number.is_(None),
    postgresql_where=changes.c.Number.is_(None),
)
counters = Table(
    "counters", metadata, Column("Name", ORDERED_TEXT, primary_key=True), Column("Value", NUMBER, nullable=False)
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("Id", ORDERED_TEXT, primary_key=True),
    Column("Name", Text, nullable=False),
    Column("Salt", Text, nullable=False),
    Column("Hash", Text, nullable=False),
    Column("Scopes", Text, nullable=False),  # separated by spaces, as in RFC 6749 §3.3
    Column("CreatedAt", UtcDateTime, nullable=False),
    Column("ExpiresAt", UtcDateTime),
    Column("RevokedAt", UtcDateTime),
)
# Logged out before their end: whoever kept a copy has nothing.
ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("Session", ORDERED_TEXT, primary_key=True),  # without its signature
    Column("EndsAt", UtcDateTime, nullable=False),  # then it is forgotten
    sqlite_with_rowid=False,
)
webhooks = Table(
    "webhooks",
    metadata,
    Column("Id", NUMBER, primary_key=True),
    Column("Url", Text, nullable=False),
    Column("Secret", Text, nullable=False),  # as it is: each body is signed with it
    Column("CreatedAt", UtcDateTime, nullable=False),
    Column("Position", NUMBER, nullable=False),  # the last change it was told, or that was given up
    Column("Attempts", Integer, nullable=False),
    Column("FirstAttemptAt", UtcDateTime),  # of the change that comes next
    Column("NextAttemptAt", UtcDateTime),
    Column("Problem", Text),
    Column("Owner", Text),  # the server process that tells it
    Column("OwnedUntil", UtcDateTime),
    Column("OldSecret", Text),  # signed with beside Secret, until …
    Column("OldSecretUntil", UtcDateTime),
    Column("LinkLocal", Boolean, nullable=False, server_default=false()),  # it may be at such an address
    Column("Filters", DOCUMENT),  # a change's field to the values that it is told for
)
dead_changes = Table(
    "dead_changes",
    metadata,
    Column("Webhook", NUMBER, ForeignKey("webhooks.Id"), primary_key=True),
    Column("Number", NUMBER, primary_key=True),
    Column("Problem", Text, nullable=False),
    Column("At", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
# What each gateway said last of itself, so that every server process can show it.
gateways = Table(
    "gateways",
    metadata,
    Column("GatewayID", ORDERED_TEXT, primary_key=True),
    Column("At", UtcDateTime, nullable=False),  # by the server's clock
    Column("State", DOCUMENT, nullable=False),
    Column("RefusedAt", UtcDateTime),  # when a heartbeat of its name was not let in
    Column("Refused", Text),  # why
    Column("BehindS", Float),  # how far its clock is behind the server's, or ahead if below 0, as it said this
    Column("ClockSetAt", UtcDateTime),  # when one of these two clocks was set last (leaps.py); null: not known to be
)
# Who sends, and in which hours: the last one of each source says when it was heard of last.
sources = Table(
    "sources",
    metadata,
    Column("Source", ORDERED_TEXT, primary_key=True),
    Column("FirstReceivedAt", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
source_hours = Table(
    "source_hours",
    metadata,
    Column("Source", ORDERED_TEXT, ForeignKey("sources.Source", ondelete="CASCADE"), primary_key=True),
    Column("Hour", Integer, primary_key=True, autoincrement=False),  # since 1970, in UTC
    Column("LastReceivedAt", UtcDateTime, nullable=False),
    Column("Images", NUMBER, nullable=False),  # that were new to their series
    Column("Series", NUMBER, nullable=False),  # that were new
    sqlite_with_rowid=False,
)
# What gateways are to do, until each has said that it is done. Settles: that gateway had the series open.
orders = Table(
    "orders",
    metadata,
    Column("Id", NUMBER, primary_key=True),
    Column("GatewayID", ORDERED_TEXT, nullable=False),
    Column("Kind", Text, nullable=False),
    Column("SeriesInstanceUID", ORDERED_TEXT),  # of declare and count; it may not be stored yet
    Column("DeadLetter", NUMBER),  # of the others
    Column("By", Text, nullable=False),
    Column("Because", Text),
    Column("At", UtcDateTime, nullable=False),
    Column("Settles", Boolean, nullable=False, server_default=false()),
    Column("DoneAt", UtcDateTime),
    Column("Problem", Text),
    Column("StudyInstanceUID", ORDERED_TEXT),  # of count, and of declare where a whole study was declared
    Column("CallingAETitle", Text),  # of count
    Index("orders_by_gateway", "GatewayID", "Id"),
    Index("orders_by_series", "SeriesInstanceUID", "Id"),
)
Index(
    "orders_waiting",
    orders.c.GatewayID,
    orders.c.Id,
    sqlite_where=orders.c.DoneAt.is_(None),
    postgresql_where=orders.c.DoneAt.is_(None),
)

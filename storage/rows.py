"""The rows of a series and of a study as the rules read them (merge.py, study_rules.py), and what they say of them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar, cast

from models import SeriesVerdict


class SeriesRow(TypedDict):
    """A row of the table `series` (schema.py), each column by its name."""

    SeriesInstanceUID: str
    PatientID: str | None
    PatientName: str | None
    StudyInstanceUID: str
    NumInstances: int
    Modality: str | None
    Attributes: dict[str, list[str]]
    Undecoded: dict[str, str]
    Revision: int
    Verdict: SeriesVerdict | None
    ExpectedInstances: int | None
    FirstReceivedAt: datetime | None
    LastReceivedAt: datetime | None
    UpdatedAt: datetime
    Conflicts: int
    ExpectedFrom: Literal["pacs", "tags"] | None
    Basis: str | None
    FalseCompletions: int
    Source: str | None
    IdlePolicy: str | None
    StudyDate: str | None
    AccessionNumber: str | None
    FoldedName: str | None
    FoldedReferrer: str | None
    CalledAETitle: str | None
    Doubtful: list[str]
    Withdrawn: str | None


class StudyRow(TypedDict):
    """A row of the table `studies` (schema.py), each column by its name."""

    StudyInstanceUID: str
    PatientID: str | None
    PatientName: str | None
    StudyDate: str | None
    StudyTime: str | None
    StudyDescription: str | None
    AccessionNumber: str | None
    Source: str | None
    Modalities: dict[str, int]
    Verdicts: dict[str, int]
    NumSeries: int
    NumInstances: int
    Unsettled: int
    Incomplete: int
    Contradicted: int
    Verdict: SeriesVerdict | None
    Policy: str | None
    Basis: str | None
    MissingSeries: list[str]
    Withdrawn: str | None
    FalseCompletions: int
    Revision: int
    FirstReceivedAt: datetime | None
    LastReceivedAt: datetime | None
    UpdatedAt: datetime
    ExpectedSeries: int | None
    ExpectedInstances: int | None
    CountedAt: datetime | None
    CountedSince: datetime | None
    CountedAhead: bool | None
    CountGrew: bool
    CountedBy: str | None
    PACS: str | None
    Kinds: list[str]
    Gaps: dict[str, str]
    OpenSince: datetime
    DueAt: datetime | None
    PurgedSeries: int
    PurgedInstances: int


class Claim(TypedDict):
    """The columns that say whether a series is over, and why; a report has the same as fields."""

    Verdict: SeriesVerdict | None
    Basis: str | None
    Source: str | None
    IdlePolicy: str | None


Row = TypeVar("Row", SeriesRow, StudyRow)


def with_changes(row: Row, changed: Mapping[str, Any]) -> Row:
    """Return a row as it is once these columns have changed."""
    return cast("Row", {**row, **changed})

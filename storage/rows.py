"""The row of a series as the rules read it (merge.py), and what they say of it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict, cast

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


class Claim(TypedDict):
    """The columns that say whether a series is over, and why; a report has the same as fields."""

    Verdict: SeriesVerdict | None
    Basis: str | None
    Source: str | None
    IdlePolicy: str | None


def with_changes(row: SeriesRow, changed: Mapping[str, Any]) -> SeriesRow:
    """Return a row as it is once these columns have changed."""
    return cast("SeriesRow", {**row, **changed})

"""Rows of studies and what is known of them, for the rules that decide about a study."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from models import CountsOfStudy
from storage.rows import StudyRow
from storage.schema import studies
from storage.study_rules import Evidence, decide, new_study
from tests.rig.factories import STUDY

LAST = datetime(2026, 1, 1, 12, tzinfo=UTC)
SILENCE = timedelta(minutes=10)


def row(**change: Any) -> StudyRow:
    """A study of two series with ten images, all reported; its last image came at LAST."""
    known = dict.fromkeys(studies.c.keys()) | new_study(STUDY, LAST - timedelta(minutes=1))
    known |= {"NumSeries": 2, "NumInstances": 10, "Verdicts": {"idle": 2}, "CountGrew": False}
    return cast("StudyRow", known | {"FirstReceivedAt": LAST, "LastReceivedAt": LAST} | change)


def counted_row(series: int = 2, images: int = 10, *, asked: timedelta = timedelta(), **change: Any) -> StudyRow:
    """The same, whose PACS has said what it has."""
    said = {"ExpectedSeries": series, "ExpectedInstances": images, "CountedAt": LAST + asked, "CountedAhead": True}
    return row(**{"CountedBy": "one", "PACS": "ORTHANC", "Verdicts": {"verified": 2}, **said, **change})


def seen(after: timedelta = timedelta(), **change: Any) -> Evidence:
    """What is known so long after the last image."""
    given = {"trust": 0, "max_open": timedelta(days=1), **change}
    return Evidence(now=LAST + after, silence=SILENCE, **given)


def verdict(known: StudyRow, evidence: Evidence) -> tuple[str | None, str | None]:
    """Returns the verdict and its policy."""
    columns = decide(known, evidence).columns
    return columns["Verdict"], columns["Policy"]


def counts(series: int, images: int, at: timedelta = timedelta()) -> CountsOfStudy:
    """Returns what the PACS has of the study, and when it said so."""
    return CountsOfStudy(Series=series, Instances=images, At=LAST + at)

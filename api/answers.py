"""What the server answers with, in the order of its routes; and the bodies that only it knows."""

from datetime import date
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from models import (
    Change,
    Completeness,
    CountsOfStudy,
    Order,
    OrderKind,
    Positive,
    SeriesRecord,
    SeriesVerdict,
    Why,
)
from storage.answers import Completion, Conflict, Decision, Gateway, SeriesEvent, StudyCompletion, StudyRecord


class SeriesPage(BaseModel):
    """One page of series, in order of SeriesInstanceUID."""

    series: list[SeriesRecord]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class Timeline(BaseModel):
    events: list[SeriesEvent]


class StudyPage(BaseModel):
    """One page of studies, in order of StudyInstanceUID, or another that was asked for."""

    studies: Annotated[list[StudyRecord], Field(description="In that order.")]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class StudyEvent(SeriesEvent):
    """One entry of a study's timeline."""

    SeriesInstanceUID: Annotated[str | None, Field(description="Of the series that it is about; null: the study.")]


class StudyTimeline(BaseModel):
    """What happened to a study and its series, in order of time."""

    events: Annotated[list[StudyEvent], Field(description="The first first.")]
    next: Annotated[str | None, Field(description="Pass it as `after` to go on; null at the end.")]
    NotShown: Annotated[int, Field(description="How many of its series have no events here: it has too many.")]


class StudyCompletions(BaseModel):
    """How the verdicts of studies have fared."""

    completions: Annotated[list[StudyCompletion], Field(description="A row for each source, policy and verdict.")]


class Declare(BaseModel):
    """What a person says of a series or study."""

    model_config = ConfigDict(extra="forbid")

    Declared: Annotated[
        Completeness,
        Field(
            description="complete: what is open of it is reported now, and it is `declared`. incomplete: its verdict "
            "is withdrawn until images come, or a PACS newly has just what is here."
        ),
    ]
    Because: Why


class Declaration(BaseModel):
    """What came of it."""

    Did: Annotated[str, Field(description="In words, for whoever asked.")]
    Changed: Annotated[bool, Field(description="The record has another revision by it.")]
    Closing: Annotated[
        list[str], Field(description="Gateways that have it open and are told to close it: their reports follow.")
    ]
    Record: Annotated[SeriesRecord | None, Field(description="As it is now; null if no report of it has come yet.")]


class StudyDeclaration(BaseModel):
    """What came of a person's word about a study."""

    Did: Annotated[str, Field(description="In words, for whoever asked.")]
    Changed: Annotated[bool, Field(description="The record has changed by it.")]
    Closing: Annotated[
        list[str],
        Field(description="Gateways that have series of it open and are told to close them: then it is declared."),
    ]
    Record: Annotated[StudyRecord, Field(description="As it is now.")]


class StudyCounts(CountsOfStudy):
    """What a PACS has of a study, as a gateway was told."""

    GatewayID: Annotated[str, Field(min_length=1, max_length=64, description="The gateway that asked.")]


class ConflictPage(BaseModel):
    """One page of conflicts, in order of Digest."""

    conflicts: list[Conflict]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class Resolve(BaseModel):
    """What becomes of a conflict."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"Resolution": "merge"}]})

    Resolution: Annotated[
        Decision,
        Field(
            description="dismiss: not this series' images. merge: they are, and patient and study stay as stored. "
            "correct: they are, and patient and study become those of the report."
        ),
    ]


class Would(BaseModel):
    """One thing that a decision would change of a record."""

    What: Annotated[str, Field(description="A field of the record, or a keyword of its Attributes.")]
    Before: str | None
    After: str | None


class Outlook(BaseModel):
    """An open conflict, and what would come of each decision about it."""

    Conflict: Conflict
    Record: Annotated[SeriesRecord, Field(description="As it is stored.")]
    Would: Annotated[
        dict[Decision, list[Would]],
        Field(description="What each decision would change of the record now; none where it stays as it is."),
    ]


class ChangePage(BaseModel):
    """Revisions in the order in which they came about."""

    changes: list[Change]
    last: Annotated[int, Field(description="Pass it as `since` to go on.")]
    done: Annotated[bool, Field(description="There was no more when this was asked.")]


class InstanceList(BaseModel):
    SOPInstanceUIDs: list[str]


class Completions(BaseModel):
    completions: list[Completion]


class SourceDay(BaseModel):
    """What came of a source in a day."""

    Day: Annotated[date, Field(description="In UTC.")]
    Images: Annotated[int, Field(description="That were new to their series.")]
    Series: Annotated[int, Field(description="That were new.")]


class SourceVerdict(BaseModel):
    """How one verdict about a source has fared, under whatever policy."""

    Verdict: str
    Series: Annotated[int, Field(description="How many were reported so.")]
    Contradicted: Annotated[int, Field(description="Of these, how many images came after.")]


class LearntSource(BaseModel):
    """What a gateway has learnt of a source."""

    GatewayID: str
    LearntFrom: Annotated[int, Field(description="So many of its series.")]
    WaitS: Annotated[
        dict[str, float],
        Field(description="How many seconds of silence are waited for, by where the silence stands."),
    ]


class SourceSent(BaseModel):
    """Who sends, and when it did. Names no patient."""

    Source: Annotated[str, Field(description="Calling AE title, modality and station, as learnt for.")]
    FirstReceivedAt: Annotated[AwareDatetime, Field(description="Of its first image that is known.")]
    LastReceivedAt: Annotated[
        AwareDatetime,
        Field(description="Of its last image, be it of a series that is still open, or one that was sent again."),
    ]
    SilentForS: Annotated[float, Field(description="Seconds since then.")]
    MissedHours: Annotated[
        int,
        Field(
            description="Whole hours since then, within a week, in which it sent in three of four weeks before; "
            "0 of a source that is known for less than two."
        ),
    ]
    Unusual: Annotated[bool, Field(description="It has missed three hours or more.")]
    Days: Annotated[list[SourceDay], Field(description="In which new images came, of five weeks, the latest first.")]
    Verdicts: list[SourceVerdict]
    Learnt: Annotated[
        list[LearntSource], Field(description="By gateway; of each gateway the 50 sources it heard last.")
    ]


class SourcePage(BaseModel):
    """One page of sources, in order of Source."""

    sources: list[SourceSent]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class GatewayList(BaseModel):
    gateways: list[Gateway]


class GivenOrders(BaseModel):
    """What a gateway is to do, the first first: the next heartbeat says in `OrdersDone` what became of it."""

    Orders: list[Order]


class WantedOrder(BaseModel):
    """What a gateway is to do about a dead letter."""

    model_config = ConfigDict(extra="forbid")

    Kind: Literal["replay", "discard"]
    DeadLetter: Annotated[Positive, Field(description="Its `Id` in the gateway's `Dead`.")]
    Because: Why | None = None


class GatewayOrder(BaseModel):
    """What a gateway was told to do, and what became of it."""

    Number: int
    Kind: OrderKind
    SeriesInstanceUID: str | None
    DeadLetter: int | None
    By: Annotated[str, Field(description="Who wanted it.")]
    Because: str | None
    At: AwareDatetime
    State: Annotated[
        Literal["waiting", "done", "failed", "expired"],
        Field(description="waiting: the gateway has not said that it is done. failed: there was nothing to do."),
    ]
    DoneAt: AwareDatetime | None
    Problem: Annotated[str | None, Field(description="What the gateway says of one that failed.")]


class GatewayOrders(BaseModel):
    orders: list[GatewayOrder]


class UntoldChange(BaseModel):
    """A change that a webhook was not told."""

    Number: int
    Problem: Annotated[str, Field(description="Of the last try.")]
    At: Annotated[AwareDatetime, Field(description="When it was given up.")]
    SeriesInstanceUID: Annotated[str | None, Field(description="Null of a study, and where the change was purged.")]
    StudyInstanceUID: Annotated[str | None, Field(description="Null where the change was purged.")]


class Untold(BaseModel):
    """What a webhook was not told."""

    Host: Annotated[str | None, Field(description="Of its URL.")]
    Ended: Annotated[bool, Field(description="It answered 410: it is told nothing more until it is replayed.")]
    Problem: Annotated[str | None, Field(description="Of the last try of the change that comes next.")]
    Count: Annotated[int, Field(description="How many changes were given up.")]
    changes: Annotated[list[UntoldChange], Field(description="The first 100 of them.")]


class DoAgain(BaseModel):
    """What becomes of the changes that a webhook was not told."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"Do": "replay"}]})

    Do: Annotated[
        Literal["replay", "discard"],
        Field(description="replay: tell them again, and what came after them. discard: give them up for good."),
    ]


class DoneAgain(BaseModel):
    Did: Annotated[str, Field(description="In words, for whoever asked.")]
    From: Annotated[int | None, Field(description="The change that is told next; null where none is.")] = None


class StoredSeries(BaseModel):
    """A stored series as the live page's table has it."""

    Number: Annotated[int | None, Field(description="Of its last change; null in what a search finds.")] = None
    SeriesInstanceUID: str
    StudyInstanceUID: str
    PatientID: str | None
    PatientName: str | None
    StudyDate: str | None
    StudyDescription: str | None
    AccessionNumber: str | None
    SeriesInStudy: Annotated[int, Field(description="How many series of its study are stored.")]
    Modality: str | None
    SeriesDescription: str | None
    Source: str | None
    Revision: int
    NumInstances: int
    ExpectedInstances: int | None
    Verdict: SeriesVerdict | None
    FalseCompletions: int
    Conflicts: int
    Doubtful: bool
    UpdatedAt: AwareDatetime
    LastReceivedAt: AwareDatetime | None


class StoredStudy(BaseModel):
    """A study as the live page's table has it."""

    StudyInstanceUID: Annotated[str, Field(description="The key of its row.")]
    Verdict: Annotated[SeriesVerdict | None, Field(description="Null: it is open.")]
    Withdrawn: Annotated[str | None, Field(description="The verdict that a person has withdrawn.")]
    Basis: Annotated[str | None, Field(description="What the verdict, or its absence, rests on.")]
    NumSeries: Annotated[int, Field(description="How many are stored.")]
    NumInstances: Annotated[int, Field(description="How many these have.")]
    Unsettled: Annotated[int, Field(description="How many series are not over.")]
    Incomplete: Annotated[int, Field(description="How many series lack images.")]
    MissingSeries: Annotated[list[str], Field(description="Required series that are not here.")]
    ExpectedSeries: Annotated[int | None, Field(description="How many its PACS has.")]
    ExpectedInstances: Annotated[int | None, Field(description="How many images its PACS has.")]
    Gaps: Annotated[dict[str, str], Field(description="By series, which InstanceNumbers seem to be missing.")]
    FalseCompletions: Annotated[int, Field(description="How often images came after it was told complete.")]
    UpdatedAt: Annotated[AwareDatetime, Field(description="When its row last changed.")]


class StoredPage(BaseModel):
    """One page of the live page's table."""

    series: list[StoredSeries]
    studies: Annotated[list[StoredStudy], Field(description="Of these series.")]
    next: Annotated[
        int | None,
        Field(
            description="Pass it as `before`, where anything but the newest is asked for as `skip`; null at the end."
        ),
    ]
    more: Annotated[bool, Field(description="There is more than is told: it has to be narrowed.")] = False
    LookedThrough: Annotated[
        int | None,
        Field(description="Among so many series that changed last, words inside of a text were looked for."),
    ] = None


class Session(BaseModel):
    """Who asks."""

    Who: Annotated[str, Field(description="Id and name of the key, or `this machine`, as the audit log has it.")]
    Scopes: Annotated[list[str], Field(description="What it may do; for a key of scope admin that is everything.")]
    Viewer: Annotated[str | None, Field(description="`SERVER_VIEWER_URL`, whose placeholders the page fills.")] = None
    Token: Annotated[
        str | None,
        Field(description="What this browser's page shows as `X-CSRF-Token` to act; null of a key, or without admin."),
    ] = None


class Health(BaseModel):
    status: str
    version: str


class Problem(BaseModel):
    detail: str

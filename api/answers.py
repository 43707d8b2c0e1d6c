"""What the server answers with, in the order of its routes; and `Resolve`, the one body that only it knows."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

from models import Change, Completion, Conflict, Decision, Gateway, SeriesEvent, SeriesRecord, SeriesVerdict


class SeriesPage(BaseModel):
    """One page of series, in order of SeriesInstanceUID."""

    series: list[SeriesRecord]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class Timeline(BaseModel):
    events: list[SeriesEvent]


class ConflictPage(BaseModel):
    """One page of conflicts, in order of Digest."""

    conflicts: list[Conflict]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class Resolve(BaseModel):
    Resolution: Annotated[
        Decision,
        Field(
            description="dismiss: not this series' images. merge: they are, and patient and study stay as stored. "
            "correct: they are, and patient and study become those of the report."
        ),
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


class GatewayList(BaseModel):
    gateways: list[Gateway]


class StoredSeries(BaseModel):
    """A stored series as the live page's table has it."""

    Number: Annotated[int | None, Field(description="Of its last change; null in what a search finds.")] = None
    SeriesInstanceUID: str
    StudyInstanceUID: str
    PatientID: str | None
    PatientName: str | None
    AccessionNumber: str | None
    Modality: str | None
    SeriesDescription: str | None
    Source: str | None
    Revision: int
    NumInstances: int
    ExpectedInstances: int | None
    Verdict: SeriesVerdict | None
    FalseCompletions: int
    Conflicts: int
    UpdatedAt: AwareDatetime
    LastReceivedAt: AwareDatetime | None


class StoredPage(BaseModel):
    series: list[StoredSeries]
    next: Annotated[int | None, Field(description="Pass it as `before` to get the next page; null on the last one.")]
    more: Annotated[bool, Field(description="A search found more than is shown: it has to be narrowed.")] = False


class Session(BaseModel):
    """Who asks."""

    Who: Annotated[str, Field(description="Id and name of the key, or `this machine`, as the audit log has it.")]
    Scopes: Annotated[list[str], Field(description="What it may do; for a key of scope admin that is everything.")]
    Viewer: Annotated[str | None, Field(description="`SERVER_VIEWER_URL`, whose placeholders the page fills.")] = None


class Health(BaseModel):
    status: str
    version: str


class Problem(BaseModel):
    detail: str

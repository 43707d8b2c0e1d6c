"""What the server alone knows, as it is answered: conflicts, timelines, how verdicts fared, gateways."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from models import GatewayState, SeriesReport, SeriesVerdict

Decision = Literal["dismiss", "merge", "correct"]
"""Of a conflict. dismiss: the images are not this series'. merge: they are, and what is stored of patient and study
stays. correct: they are, and patient and study become those of the report."""


class Conflict(BaseModel):
    """A report that contradicts the record of its series, kept aside until an operator resolves it."""

    Digest: Annotated[str, Field(description="Its name in the API.")]
    SeriesInstanceUID: str
    Report: SeriesReport
    ReceivedAt: AwareDatetime
    Resolution: Decision | None
    ResolvedAt: AwareDatetime | None
    ResolvedBy: str | None
    Before: Annotated[
        dict[str, str | dict[str, list[str]] | None] | None,
        Field(description="Patient, study and Attributes that `correct` replaced."),
    ]


class SeriesEvent(BaseModel):
    """One entry of a series' timeline, as stored."""

    At: AwareDatetime
    Event: str
    Details: dict[str, bool | int | float | str | None]
    GatewayID: Annotated[str | None, Field(description="Null: the server's own.")]
    Revision: Annotated[int, Field(description="Of the gateway's report; in the server's own, of the record.")]


class Completion(BaseModel):
    """How the verdicts of one policy about one source have fared."""

    Source: str
    IdlePolicy: str
    Verdict: str
    Series: Annotated[int, Field(description="How many were reported so.")]
    False_: Annotated[int, Field(alias="False", description="Of these, how many images came after.")]
    AfterCapped: Annotated[
        int,
        Field(description="The same of those that were capped, which had not claimed to be over."),
    ] = 0

    model_config = ConfigDict(populate_by_name=True)


class StudyRecord(BaseModel):
    """A study: what its stored series come to, and whether that is all of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    StudyInstanceUID: Annotated[str, Field(description="The key of the row.")]
    PatientID: Annotated[str | None, Field(description="Null if the images have none.")]
    PatientName: Annotated[str | None, Field(description="Null if the images have none.")]
    StudyDate: Annotated[str | None, Field(description="As its series say it: eight digits (DA).")]
    StudyTime: Annotated[str | None, Field(description="As its series say it (TM).")]
    StudyDescription: Annotated[str | None, Field(description="As its series say it.")]
    AccessionNumber: Annotated[str | None, Field(description="As its series say it.")]
    Modalities: Annotated[list[str], Field(description="Of its series.")]
    Source: Annotated[str | None, Field(description="Of its first series: calling AE title, modality, station.")]
    NumSeries: Annotated[int, Field(description="How many are stored.")]
    NumInstances: Annotated[int, Field(description="How many these have.")]
    OpenSeries: Annotated[int, Field(description="How many of its series gateways name as open now.")] = 0
    Unsettled: Annotated[int, Field(description="How many have no verdict that says that they are over.")]
    Incomplete: Annotated[int, Field(description="How many lack images that are expected.")]
    Contradicted: Annotated[int, Field(description="To how many images came after such a verdict.")]
    Verdict: Annotated[SeriesVerdict | None, Field(description="Why it is taken to be over; null: it is not.")]
    Policy: Annotated[str | None, Field(description="What decided that.")]
    Basis: Annotated[str | None, Field(description="What the verdict, or its absence, rests on, in words.")]
    MissingSeries: Annotated[list[str], Field(description="Required series (SERVER_REQUIRED_SERIES) not here.")]
    ExpectedSeries: Annotated[
        int | None, Field(description="How many its PACS has, as it said last, without those that were purged here.")
    ]
    ExpectedInstances: Annotated[int | None, Field(description="The same of images.")]
    Withdrawn: Annotated[
        SeriesVerdict | Literal["part"] | None,
        Field(description="A person has declared it incomplete: the verdict that it had; `part`: none."),
    ]
    FalseCompletions: Annotated[int, Field(description="How often images came after it was told complete.")]
    Gaps: Annotated[
        dict[str, str], Field(description="By SeriesInstanceUID: which InstanceNumbers seem to be missing. Some only.")
    ] = {}
    Revision: Annotated[int, Field(description="Counts the changes of its verdict that were told.")]
    FirstReceivedAt: Annotated[AwareDatetime | None, Field(description="When its first image came.")]
    LastReceivedAt: Annotated[AwareDatetime | None, Field(description="When its last image came.")]
    UpdatedAt: Annotated[AwareDatetime, Field(description="When this record last changed.")]


class StudyCompletion(BaseModel):
    """How the verdicts of one policy about the studies of one source have fared."""

    Source: Annotated[str, Field(description="Of the study's first series.")]
    Policy: Annotated[str, Field(description="What decided.")]
    Verdict: Annotated[str, Field(description="What was told of the study.")]
    Studies: Annotated[int, Field(description="How many were told so.")]
    False_: Annotated[int, Field(alias="False", description="Of these, how many images or series came after.")]

    model_config = ConfigDict(populate_by_name=True)


class Gateway(BaseModel):
    """What the server knows of a gateway."""

    SeenAt: Annotated[AwareDatetime, Field(description="When it said this, by the server's clock.")]
    SilentS: Annotated[float, Field(description="Seconds since then.")]
    State: GatewayState
